"""Batch norm over the global batch: a network with it trains the same on one worker and on many, on any device.

torch's own SyncBatchNorm needs a GPU. Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.across_workers import several, summed


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose statistics, while training, are those of all workers' records: (B, D) or (B, D, T)."""

    def forward(self, input: Tensor) -> Tensor:
        """Standardise every channel over records and time, then scale and shift it."""
        if not (self.training and several()):
            return super().forward(input)
        self._check_input_dim(input)
        dims = [0] if input.ndim == 2 else [0, 2]
        values = input.float()
        local = torch.cat([values.sum(dims), values.new_tensor([values.numel() / values.shape[1]])])
        total = summed(local)
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = values - _channels(mean, values)
        variance = summed(centred.square().sum(dims)) / count
        self._follow(mean.detach(), variance.detach(), float(count))
        scale, shift = (_channels(parameter, values) for parameter in (self.weight, self.bias))
        return (centred * (_channels(variance, values) + self.eps).rsqrt() * scale + shift).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Move the running statistics, which evaluation uses, as torch does: the variance unbiased."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


def _channels(per_channel: Tensor, values: Tensor) -> Tensor:
    """(D,) so that it broadcasts over (B, D) or (B, D, T)."""
    return per_channel.view(1, -1, *([1] * (values.ndim - 2)))
