"""XResNet over time: a ResNet with the small changes that He et al. found to help.

He et al. 2019, 'Bag of tricks', arXiv:1812.01187, sec. 4, in one dimension; on ECGs Strodthoff et al. 2021,
arXiv:2004.13701. Shapes: B records, C leads, T samples, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from models.encoder import Encoder, Gift, lead_rows
from models.resnet import Blocks, ConvNorm, Plan, ResidualBlock, check_kernel_size, initialize, layer_of, plan_of

XResNetSize = Literal["laptop", "xresnet50", "xresnet101"]

XRESNETS: dict[str, Plan] = {
    "laptop": Plan((1, 1, 1, 1), 16, 1),
    "xresnet50": Plan((3, 4, 6, 3), 64, 4),
    "xresnet101": Plan((3, 4, 23, 3), 64, 4),
}
"""Blocks, channels of the first stage and expansion."""


class XResNet1d(Encoder):
    """A stem of three convolutions, four stages of residual blocks, mean over time.

    What differs from models.resnet.ResNet1d: three convolutions in the stem instead of one (ResNet-C of the paper);
    shortcuts that average two samples instead of leaving one out (ResNet-D); blocks that begin as their shortcut alone,
    as their last norm has the weight 0 (sec. 3.1). The strides of bottlenecks are those of ResNet-B there already.
    Convolutions are drawn as there too, where the paper draws them Xavier-uniform.

    With 12 leads and kernels of 5 samples the encoder has 18.486 and 33.022 million parameters (xresnet50, 101), the
    laptop's has 0.178.
    """

    gives: ClassVar[frozenset[Gift]] = frozenset({"vector", "segments"})

    def __init__(
        self, *, leads: Sequence[str], num_samples: int, sampling_rate_hz: float, size: XResNetSize, kernel_size: int
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            sampling_rate_hz: of the input; kernels count samples, whatever it is.
            size: a key of XRESNETS.
            kernel_size: samples that every convolution of the stem and of the blocks sees, but those over one sample;
                odd. 5 on ECGs of 100 Hz, 3 in the paper.

        Raises:
            ValueError: if the leads, the size or the kernel size are none of these.
        """
        super().__init__()
        lead_rows(leads)  # refuses what are none
        plan = plan_of(size, XRESNETS)
        check_kernel_size(kernel_size)
        self.leads, self.num_samples = tuple(leads), num_samples
        self.width, self.depth = plan.width, sum(plan.blocks)
        narrow = plan.channels // 2
        self.stem = nn.Sequential(
            ConvNorm(len(leads), narrow, kernel_size, stride=2),
            nn.ReLU(),
            ConvNorm(narrow, narrow, kernel_size),
            nn.ReLU(),
            ConvNorm(narrow, plan.channels, kernel_size),
            nn.ReLU(),
            nn.MaxPool1d(3, stride=2, padding=1),
        )
        self.blocks = Blocks(plan, kernel_size, averaging_projection)
        initialize(self)
        for block in self.blocks:
            assert isinstance(block, ResidualBlock)
            nn.init.zeros_(block.last_norm.weight)

    def forward(self, signal: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Embed signals, as `Encoder.forward` says: (B, C, T) -> (B, D)."""
        self._check(signal)
        embedding: Tensor = self.blocks(self.stem(signal), drop_path).mean(dim=-1)
        return embedding

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter, as `Encoder.layer_of` says; nothing follows the blocks."""
        return layer_of(parameter)


def averaging_projection(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """The shortcut of ResNet-D: the mean of `stride` samples, then a convolution over one where channels change.

    An odd last sample stands for itself, as the block's strided convolution sees it too.
    """
    pool = nn.Identity() if stride == 1 else nn.AvgPool1d(stride, ceil_mode=True)
    if channels_in == channels_out:
        return pool
    return nn.Sequential(pool, ConvNorm(channels_in, channels_out, 1))
