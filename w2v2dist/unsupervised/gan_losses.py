"""The five losses of wav2vec-U, with the reference implementation's arithmetic by default.

B rows, M items of speech, N of text, V symbols, T frames, S targets. Every loss is a weighted sum
over the rows; the mean over the step's rows is what moves the weights.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v2dist.config import at_least
from w2v2dist.unsupervised.join import Joined

EPSILON = 1e-7  # in the logarithm of the entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class GanLossConfig:
    """Weights and where means are taken; the defaults are version 1's."""

    penalty_weight: float = 1.5  # lambda
    smoothness_weight: float = 0.5  # gamma
    diversity_weight: float = 4.0  # eta
    auxiliary_weight: float = 0.0  # delta; 0: no auxiliary targets
    # What means and the gradient penalty take in: fairseq, padding too, as the reference
    # implementation does; masked, items, frames and targets alone
    padding: Literal["fairseq", "masked"] = "fairseq"
    # The gradient's norm in the penalty: per_channel, over time and one a symbol, as the reference
    # implementation does; whole, one a row, as the paper writes it
    penalty_norm: Literal["per_channel", "whole"] = "per_channel"
    # Of neighbouring items' squared differences: mean, over items and symbols, as the reference
    # implementation takes it; sum, a row's, as the paper writes it
    smoothness: Literal["mean", "sum"] = "mean"
    # What is minimised of the mean distribution: perplexity, 1 - it / number of symbols, as the
    # reference implementation does; entropy, its negative, as the paper writes it
    diversity: Literal["perplexity", "entropy"] = "perplexity"

    def __post_init__(self) -> None:
        names = "penalty_weight smoothness_weight diversity_weight auxiliary_weight"
        at_least(self, 0, names)

    @property
    def masked(self) -> bool:
        """Whether padding counts nowhere."""
        return self.padding == "masked"


@dataclass(frozen=True, slots=True)
class Rows:
    """What the discriminator reads: probabilities (B, M, V) of symbols, True where padded."""

    items: Tensor
    padding: Tensor


def text_rows(ids: Tensor, padding_id: int, num_symbols: int) -> Rows:
    """Sentences as one-hot rows, (B, N) -> (B, N, V); padding is a symbol, too."""
    return Rows(F.one_hot(ids, num_symbols).float(), ids == padding_id)


def discriminator_losses(
    discriminator: nn.Module, fake: Rows, real: Rows, alpha: Tensor, config: GanLossConfig
) -> dict[str, Tensor]:
    """What the discriminator minimises: speech is 1, text is 0. alpha (B,) from [0, 1), the share
    of the text in the penalty's mixture."""
    fake_scores = discriminator(fake.items, fake.padding)
    real_scores = discriminator(real.items, real.padding)
    losses = {
        "fake_loss": _cross_entropy(fake_scores, 1.0),
        "real_loss": _cross_entropy(real_scores, 0.0),
    }
    if config.penalty_weight:
        penalty = gradient_penalty(discriminator, fake, real, alpha, config)
        losses["gradient_penalty"] = config.penalty_weight * penalty.sum()
    return losses


def gradient_penalty(
    discriminator: nn.Module, fake: Rows, real: Rows, alpha: Tensor, config: GanLossConfig
) -> Tensor:
    """(norm of the score's gradient - 1) squared, between speech and text: (B, V), or (B, 1) for
    penalty_norm whole. Both are cut to the shorter length."""
    m = min(fake.items.shape[1], real.items.shape[1])
    share = alpha[:, None, None]
    mixture = share * real.items[:, :m] + (1 - share) * fake.items[:, :m]
    if not mixture.requires_grad:
        mixture.requires_grad_()
    padding = fake.padding[:, :m] | real.padding[:, :m] if config.masked else None
    score = discriminator(mixture, padding).sum()
    (gradient,) = torch.autograd.grad(score, mixture, create_graph=True)
    over = 1 if config.penalty_norm == "per_channel" else (1, 2)
    norm = torch.linalg.vector_norm(gradient, dim=over)
    excess: Tensor = norm.view(len(norm), -1) - 1
    return excess**2


def generator_losses(
    discriminator: nn.Module, fake: Rows, joined: Joined, config: GanLossConfig
) -> dict[str, Tensor]:
    """What the generator minimises, besides `auxiliary_loss`."""
    losses = {"fooling_loss": _cross_entropy(discriminator(fake.items, fake.padding), 0.0)}
    batch = len(fake.items)
    if config.diversity_weight:
        num_symbols = fake.items.shape[-1]
        used = perplexity(fake.items, _counted(fake, config))
        lost = (
            (num_symbols - used) / num_symbols if config.diversity == "perplexity" else -used.log()
        )
        losses["diversity_loss"] = config.diversity_weight * batch * lost
    if config.smoothness_weight:
        squares = (joined.logits[:, :-1] - joined.logits[:, 1:]) ** 2
        there = ~joined.padding[:, 1:]
        squares = squares * there.unsqueeze(-1)
        count = there.sum().clamp(min=1) * squares.shape[-1] if config.masked else squares.numel()
        total = squares.sum()
        # A single item has no neighbour; the mean of nothing is not a number
        mean = total / count if squares.numel() else total
        weight = config.smoothness_weight
        losses["smoothness_loss"] = (
            weight * total if config.smoothness == "sum" else weight * batch * mean
        )
    return losses


def auxiliary_loss(logits: Tensor, targets: Tensor, config: GanLossConfig) -> Tensor:
    """Cross entropy of the auxiliary head; logits (B, T, K), targets (B, S), -1 where padded. Both
    are cut to the shorter length."""
    length = min(logits.shape[1], targets.shape[1])
    logits, targets = logits[:, :length], targets[:, :length]
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-1, reduction="sum")
    count = (targets >= 0).sum().clamp(min=1) if config.masked else targets.numel()
    return config.auxiliary_weight * len(targets) * losses / count


def perplexity(probabilities: Tensor, counted: Tensor | None = None) -> Tensor:
    """Of the mean distribution over all rows and items, (B, M, V) -> (); with `counted` (B, M) over
    those that are True."""
    chosen = probabilities.flatten(0, 1) if counted is None else probabilities[counted]
    mean = chosen.float().mean(0)
    return torch.exp(-(mean * torch.log(mean + EPSILON)).sum())


def code_perplexity(joined: Joined, config: GanLossConfig) -> Tensor:
    """Of the most likely symbols: how many phones are in use."""
    hard = F.one_hot(joined.logits.argmax(-1), joined.logits.shape[-1]).float()
    return perplexity(hard, ~joined.padding if config.masked else None)


def _counted(rows: Rows, config: GanLossConfig) -> Tensor | None:
    return ~rows.padding if config.masked else None


def _cross_entropy(scores: Tensor, label: float) -> Tensor:
    labels = torch.full_like(scores, label)
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
