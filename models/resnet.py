"""A residual network over time: He et al.'s ResNet in one dimension, and the parts that its variants share.

He et al. 2016, arXiv:1512.03385. Shapes: B records, C leads, T samples, H channels, t samples after some strides,
D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.batch_norm import BatchNorm
from models.encoder import Encoder, Gift, lead_rows
from models.unit import Unit

ResNetSize = Literal["laptop", "resnet18", "resnet34", "resnet50"]


class Plan(NamedTuple):
    """How many blocks a residual network has, and how wide they are.

    Attributes:
        blocks: of each stage; every stage but the first halves the samples and doubles the channels.
        channels: of the first stage, before the expansion.
        expansion: 1 for blocks of two convolutions; 4 for bottlenecks, whose output has as many times the channels.
    """

    blocks: tuple[int, ...]
    channels: int
    expansion: int

    @property
    def width(self) -> int:
        """D, the channels of the last stage's output."""
        return int(self.channels * 2 ** (len(self.blocks) - 1) * self.expansion)


RESNETS: dict[str, Plan] = {
    "laptop": Plan((2, 2, 2, 2), 16, 1),
    "resnet18": Plan((2, 2, 2, 2), 64, 1),
    "resnet34": Plan((3, 4, 6, 3), 64, 1),
    "resnet50": Plan((3, 4, 6, 3), 64, 4),
}
"""Table 1 of the paper; `laptop` is a resnet18 of a quarter of its channels."""


class ResNet1d(Encoder):
    """Stem, four stages of residual blocks, mean over time.

    The stem is a convolution over 7 samples and a max pool over 3, each of stride 2: an output of the last stage stands
    for 32 samples. Convolutions have no bias, as a batch norm follows each. With 12 leads and kernels of 3 samples the
    encoder has 3.849, 7.223 and 15.959 million parameters (resnet18, 34, 50), exactly those of the ResNets that ECG
    pre-training is compared on (3.85, 7.22, 15.96); the laptop's has 0.243. A bottleneck's stride lies in its middle
    convolution, not in its first as in the paper, so that no sample goes unread (ResNet-B of arXiv:1812.01187, and
    torchvision's); this changes no count.
    """

    gives: ClassVar[frozenset[Gift]] = frozenset({"vector", "segments"})

    def __init__(
        self, *, leads: Sequence[str], num_samples: int, sampling_rate_hz: float, size: ResNetSize, kernel_size: int
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            sampling_rate_hz: of the input; kernels count samples, whatever it is.
            size: a key of RESNETS.
            kernel_size: samples that a block's convolutions see, odd; paper: 3. The stem has its own.

        Raises:
            ValueError: if the leads, the size or the kernel size are none of these.
        """
        super().__init__()
        lead_rows(leads)  # refuses what are none
        plan = plan_of(size, RESNETS)
        check_kernel_size(kernel_size)
        self.leads, self.num_samples = tuple(leads), num_samples
        self.width, self.depth = plan.width, sum(plan.blocks)
        self.stem = nn.Sequential(
            ConvNorm(len(leads), plan.channels, 7, stride=2), nn.ReLU(), nn.MaxPool1d(3, stride=2, padding=1)
        )
        self.blocks = Blocks(plan, kernel_size, projection)
        initialize(self)

    def forward(self, signal: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Embed signals, as `Encoder.forward` says: (B, C, T) -> (B, D)."""
        self._check(signal)
        embedding: Tensor = self.blocks(self.stem(signal), drop_path).mean(dim=-1)
        return embedding

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter, as `Encoder.layer_of` says; nothing follows the blocks."""
        return layer_of(parameter)


class ConvNorm(nn.Sequential):
    """A convolution without bias, then batch norm: (B, channels_in, t) -> (B, channels_out, t / stride, rounded up)."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__(
            nn.Conv1d(channels_in, channels_out, kernel_size, stride, padding=kernel_size // 2, bias=False),
            BatchNorm(channels_out),
        )


Shortcut = Callable[[int, int, int], nn.Module]
"""Makes a block's way round its convolutions, given the channels it takes and gives and its stride."""


def projection(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """The paper's shortcut (its option B): a convolution over one sample where the shape changes, else nothing."""
    if channels_in == channels_out and stride == 1:
        return nn.Identity()
    return ConvNorm(channels_in, channels_out, 1, stride=stride)


class ResidualBlock(Unit):
    """Convolutions added to a shortcut, then ReLU: (B, channels_in, t) -> (B, expansion * channels, t / stride)."""

    def __init__(
        self, channels_in: int, channels: int, expansion: int, kernel_size: int, stride: int, shortcut: Shortcut
    ) -> None:
        """Build a block, of the arguments that `Plan` and `ResNet1d` describe."""
        super().__init__()
        width = channels * expansion
        if expansion == 1:
            self.branch = nn.Sequential(
                ConvNorm(channels_in, channels, kernel_size, stride=stride),
                nn.ReLU(),
                ConvNorm(channels, width, kernel_size),
            )
        else:
            self.branch = nn.Sequential(
                ConvNorm(channels_in, channels, 1),
                nn.ReLU(),
                ConvNorm(channels, channels, kernel_size, stride=stride),
                nn.ReLU(),
                ConvNorm(channels, width, 1),
            )
        self.shortcut = shortcut(channels_in, width, stride)

    @property
    def last_norm(self) -> BatchNorm:
        """The norm that ends the branch."""
        *_, last = self.branch.modules()
        assert isinstance(last, BatchNorm)
        return last

    def forward(self, values: Tensor, factor: Tensor | None = None) -> Tensor:
        """Transform channels over time.

        Args:
            values: (B, channels_in, t).
            factor: (B,) what the convolutions' result is multiplied by; None stands for ones.

        Returns:
            (B, expansion * channels, t / stride, rounded up), none negative.

        Source: sec. 3; stochastic depth, Huang et al. 2016, arXiv:1603.09382.
        """
        change: Tensor = self.branch(values)
        return F.relu(self.shortcut(values) + (change if factor is None else change * factor[:, None, None]))


class Blocks(nn.ModuleList):
    """The residual blocks of all stages, one after another."""

    def __init__(self, plan: Plan, kernel_size: int, shortcut: Shortcut) -> None:
        super().__init__()
        channels_in = plan.channels
        for stage, num_blocks in enumerate(plan.blocks):
            channels = plan.channels * 2**stage
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                self.append(ResidualBlock(channels_in, channels, plan.expansion, kernel_size, stride, shortcut))
                channels_in = channels * plan.expansion

    def forward(self, values: Tensor, drop_path: Tensor | None) -> Tensor:
        """Run all blocks.

        Args:
            values: (B, H, t) the stem's output.
            drop_path: (B, depth, 2) of which each block takes the first factor, or None.

        Returns:
            (B, D, t / 8, rounded up).
        """
        for index, block in enumerate(self):
            values = block(values, None if drop_path is None else drop_path[:, index, 0])
        return values


def plan_of(size: str, plans: dict[str, Plan]) -> Plan:
    """The plan of a size.

    Raises:
        ValueError: if there is none of that name.
    """
    if size not in plans:
        raise ValueError(f"size must be one of {', '.join(plans)}, got {size!r}")
    return plans[size]


def check_kernel_size(kernel_size: int) -> None:
    """Refuse a kernel without a middle: the convolutions of a block would not fit its shortcut."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")


def layer_of(parameter: str) -> int:
    """0 for the stem's parameters, i + 1 for those of block i."""
    part, _, rest = parameter.partition(".")
    return int(rest.partition(".")[0]) + 1 if part == "blocks" else 0


def initialize(module: nn.Module) -> None:
    """Draw all convolutions in place from N(0, 2 / (channels_out * kernel size)); batch norms begin as the identity.

    Draws come from torch's global generator. Source: He et al. 2015, arXiv:1502.01852, eq. 14.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
