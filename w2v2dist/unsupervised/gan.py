"""Generator and discriminator together: what one update computes, and what a trained generator
reads. B rows, T frames, S targets, O outputs, M items, V symbols."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from w2v2dist.config import at_least
from w2v2dist.data.batch import Batch
from w2v2dist.unsupervised.discriminator import Discriminator, DiscriminatorConfig
from w2v2dist.unsupervised.gan_losses import (
    GanLossConfig,
    Rows,
    auxiliary_loss,
    code_perplexity,
    discriminator_losses,
    generator_losses,
    perplexity,
    text_rows,
)
from w2v2dist.unsupervised.generator import Generated, Generator, GeneratorConfig
from w2v2dist.unsupervised.join import Joined, join
from w2v2dist.unsupervised.phone_text import PAD

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


@dataclass(frozen=True, kw_only=True, slots=True)
class GanConfig:
    """Both networks; the widths are those of the features and of the text's symbols."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    num_targets: int = 64  # classes of the auxiliary targets

    def __post_init__(self) -> None:
        at_least(self, 1, "num_targets")


@dataclass(kw_only=True, slots=True)
class GanBatch(Batch):
    """B utterances, and sentences that have nothing to do with them. In training with all that is
    drawn for the step; in validation features and padding alone, and the keys of the utterances."""

    features: Tensor  # (B, T, C) float32, zero where padded
    padding: Tensor  # (B, T), True behind the frames of a row
    targets: Tensor | None = None  # (B, S) int64, -1 where padded
    text: Tensor | None = None  # (B, N) int64, <pad> behind
    alpha: Tensor | None = None  # (B,) the share of the text in the penalty's mixture
    join_draws: Tensor | None = None  # (B, O) which member of a run stands for it
    keys: tuple[str, ...] = ()


class Gan:
    """The two networks and their losses; not a module, because each has an optimizer of its own."""

    def __init__(
        self, config: GanConfig, losses: GanLossConfig, dim: int, num_symbols: int
    ) -> None:
        num_targets = config.num_targets if losses.auxiliary_weight else 0
        self.generator = Generator(config.generator, dim, num_symbols, num_targets)
        self.discriminator = Discriminator(config.discriminator, num_symbols)
        self.config = losses

    def losses(self, batch: GanBatch, turn: str) -> dict[str, Tensor]:
        """The loss terms of one network's turn, weighted sums over the rows, `loss` their sum. The
        gradients of either turn reach both networks: they are clipped together."""
        assert batch.text is not None
        assert batch.alpha is not None
        assert batch.join_draws is not None
        generated = self.generator(batch.features, batch.padding)
        joined = join(generated.logits, generated.padding, batch.join_draws)
        fake = Rows(joined.logits.softmax(-1), joined.padding)
        if turn == DISCRIMINATOR:
            real = text_rows(batch.text, PAD, self.generator.num_symbols)
            terms = discriminator_losses(self.discriminator, fake, real, batch.alpha, self.config)
        else:
            terms = generator_losses(self.discriminator, fake, joined, self.config)
            terms |= self._auxiliary(generated, batch)
        return {"loss": torch.stack([*terms.values()]).sum(), **terms, **self._watched(joined)}

    def _auxiliary(self, generated: Generated, batch: GanBatch) -> dict[str, Tensor]:
        head = self.generator.auxiliary
        if head is None:
            return {}
        assert generated.branch is not None
        assert batch.targets is not None
        loss = auxiliary_loss(head(generated.branch), batch.targets, self.config)
        return {"auxiliary_loss": loss}

    def _watched(self, joined: Joined) -> dict[str, Tensor]:
        """Numbers that say how the generator does, and move nothing."""
        with torch.no_grad():
            counted = ~joined.padding if self.config.masked else None
            return {
                "code_perplexity": code_perplexity(joined, self.config),
                "prob_perplexity": perplexity(joined.logits.softmax(-1), counted),
                "fake_items": (~joined.padding).sum(),
            }


def read_batch(generator: Generator, batch: GanBatch) -> list[list[int]]:
    """The symbols of each row in evaluation mode: the most likely one of every run's mean."""
    generated = generator(batch.features, batch.padding)
    joined = join(generated.logits, generated.padding, None)
    symbols = joined.logits.argmax(-1).tolist()
    counts = (~joined.padding).sum(1).tolist()
    return [row[:count] for row, count in zip(symbols, counts, strict=True)]
