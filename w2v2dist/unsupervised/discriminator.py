"""The discriminator of wav2vec-U: sequences of phone probabilities to one logit each. B rows, M
items, V symbols."""

import itertools
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from w2v2dist.config import at_least

NUM_LAYERS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscriminatorConfig:
    """The defaults are version 1's."""

    dim: int = 384
    kernel_size: int = 6

    def __post_init__(self) -> None:
        at_least(self, 1, "dim kernel_size")


class Discriminator(nn.Module):
    """Three causal convolutions, GELU after the second; a row's score is its items' mean."""

    def __init__(self, config: DiscriminatorConfig, num_symbols: int) -> None:
        super().__init__()
        self.config = config
        widths = (num_symbols, config.dim, config.dim, 1)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, config.kernel_size) for a, b in itertools.pairwise(widths)
        )

    def forward(self, items: Tensor, padding: Tensor | None = None) -> Tensor:
        """items (B, M, V), padding (B, M) behind -> (B,). Without `padding` all items count."""
        outputs = self.outputs(items)
        if padding is None:
            return outputs.mean(1)
        return outputs.masked_fill(padding, 0.0).sum(1) / (~padding).sum(1)

    def outputs(self, items: Tensor) -> Tensor:
        """(B, M, V) -> (B, M): each is of this item and of those before it."""
        x = items.transpose(1, 2)
        for number, convolution in enumerate(self.convolutions, 1):
            x = convolution(F.pad(x, (self.config.kernel_size - 1, 0)))
            if number == NUM_LAYERS - 1:
                x = F.gelu(x)
        return x.squeeze(1)
