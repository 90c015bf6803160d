"""The generator of wav2vec-U (Baevski et al. 2021) and wav2vec-U 2.0 (Liu et al. 2022): speech
features to a phone's logits at each output.

B utterances, T frames of C channels, O outputs, V symbols, K classes of the auxiliary targets.
Padding stands behind the frames of a row; masks are True there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from w2v2dist.config import at_least
from w2v2dist.model.dropout import Dropout


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorConfig:
    """All but the widths of features, symbols and targets; the defaults are version 1's."""

    kernel_size: int = 4
    stride: int = 1  # frames an output
    dropout: float = 0.1
    # The scale that the batch norm in front begins with; 0: no batch norm
    batch_norm_scale: float = 0.0
    residual: bool = False  # a linear layer beside the features, from which targets are predicted

    def __post_init__(self) -> None:
        at_least(self, 1, "kernel_size stride")
        at_least(self, 0, "batch_norm_scale")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout} but must be in [0, 1)")

    def num_outputs(self, num_frames: int) -> int:
        """O of T frames: T + 1 for an even kernel at stride 1, ceil(T / 3) for version 2."""
        return (num_frames + 2 * (self.kernel_size // 2) - self.kernel_size) // self.stride + 1


@dataclass(frozen=True, slots=True)
class Generated:
    """What the generator makes of a batch."""

    logits: Tensor  # (B, O, V)
    padding: Tensor  # (B, O)
    branch: Tensor | None  # (B, T, C), of the linear layer: what the auxiliary head reads


class Generator(nn.Module):
    """One convolution; in version 2 batch norm and a residual linear layer in front of it. With
    `num_targets` classes an auxiliary head reads the linear layer (`auxiliary`)."""

    def __init__(
        self, config: GeneratorConfig, dim: int, num_symbols: int, num_targets: int = 0
    ) -> None:
        super().__init__()
        if num_targets and not config.residual:
            raise ValueError(
                "generator.residual is false, but auxiliary targets are predicted from its layer: "
                "set generator.residual=true, or losses.auxiliary_weight=0"
            )
        self.config, self.num_symbols = config, num_symbols
        self.dropout = Dropout(config.dropout)
        self.batch_norm: nn.BatchNorm1d | None = None
        if config.batch_norm_scale:
            self.batch_norm = nn.BatchNorm1d(dim)
            nn.init.constant_(self.batch_norm.weight, config.batch_norm_scale)
        self.linear = nn.Linear(dim, dim) if config.residual else None
        self.convolution = nn.Conv1d(
            dim,
            num_symbols,
            config.kernel_size,
            config.stride,
            padding=config.kernel_size // 2,
            bias=False,
        )
        self.auxiliary = nn.Linear(dim, num_targets) if num_targets else None

    def forward(self, features: Tensor, padding: Tensor, stride: int | None = None) -> Generated:
        """features (B, T, C), padding (B, T). `stride`: another than it was trained with, for
        decoding."""
        x, branch = self.normalized(features, padding), None
        if self.linear is not None:
            branch = self.linear(self.dropout(x))
            x = x + branch
        stride = stride or self.config.stride
        convolution = self.convolution
        logits = nn.functional.conv1d(
            self.dropout(x).transpose(1, 2),
            convolution.weight,
            stride=stride,
            padding=convolution.padding,
        ).transpose(1, 2)
        return Generated(logits, output_padding(padding, logits.shape[1], stride), branch)

    def normalized(self, features: Tensor, padding: Tensor) -> Tensor:
        """Features after the batch norm, whose statistics are of the frames alone; padding is kept.
        Without batch norm the features themselves."""
        if self.batch_norm is None:
            return features
        frames = ~padding
        out = features.clone()
        out[frames] = self.batch_norm(features[frames])
        return out


def output_padding(padding: Tensor, num_outputs: int, stride: int) -> Tensor:
    """The mask (B, T) of the frames to that of the outputs (B, O): every `stride`-th, and moved to
    the right where there are more outputs than frames, as the reference implementation has it."""
    padding = padding[:, ::stride]
    more = num_outputs - padding.shape[1]
    if more <= 0:
        return padding[:, :num_outputs]
    return torch.nn.functional.pad(padding, (more, 0), value=False)
