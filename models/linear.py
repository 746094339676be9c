"""A linear layer that computes float32 on a CPU as fast as the CPU can.

torch multiplies float32 matrices on a CPU with MKL, which leaves half of the rate unused on processors of other makers
than its own (on an AMD EPYC with AVX-512 it reaches 104 GFLOP/s a core); oneDNN, which torch brings too, does not (235
there). torch offers it for convolutions, and a linear layer is a convolution over one sample.

Shapes: B any leading shape, I values in, O values out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_VALUES = 20481
"""Values of an input from which torch's convolution takes oneDNN."""

WORTHWHILE = 2**23
"""Multiplications from which it gains a third and more; they take 0.2 ms of one core."""


class Linear(nn.Linear):
    """`nn.Linear`, the same to float32's rounding: (B, I) -> (B, O)."""

    def forward(self, input: Tensor) -> Tensor:
        """Map values, as `nn.Linear.forward`."""
        if not _worthwhile(input, self.out_features):
            return F.linear(input, self.weight, self.bias)
        pixels = input.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)  # (1, I, 1, B): channels are last
        # A dilation of the axis of length 1 changes no value. Without one torch keeps to MKL for a kernel of one sample
        # on one thread.
        mapped = F.conv2d(pixels, self.weight[:, :, None, None], self.bias, dilation=(2, 1))
        return mapped.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)


def _worthwhile(values: Tensor, num_out: int) -> bool:
    """Whether oneDNN is to be had and pays; autocast, compiled and exported programs keep the plain operation."""
    return (
        values.device.type == "cpu"
        and values.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and values.numel() >= LEAST_VALUES
        and values.numel() * num_out >= WORTHWHILE
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
    )
