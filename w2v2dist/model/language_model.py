"""A Transformer language model (Baevski and Auli 2018; Synnaeve et al. 2020): what the paper's
beams score words with. N sequences or positions, L tokens, V entries of the vocabulary, C width, H
heads, D width of a head, P cached positions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from w2v2dist.model.dropout import Dropout
from w2v2dist.model.word_layer import WordLayer

PADDING = 1  # in targets: the symbol that stands for none
FIRST_POSITION = 2  # fairseq counts positions from behind the number of its padding symbol


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelConfig:
    """All that defines the model but its number of words; the defaults are the paper's."""

    num_layers: int = 20
    embed_dim: int = 1280
    ffn_dim: int = 6144
    num_heads: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    # Where each cluster of rarer words begins: its embeddings are adaptive_factor times narrower
    # than those of the cluster before. None: one embedding for all, as small vocabularies have it
    cutoffs: tuple[int, ...] = ()
    adaptive_factor: int = 4
    activation: Literal["relu", "gelu"] = "relu"
    activation_checkpointing: bool = field(default=False, metadata={"may_change": True})

    def __post_init__(self) -> None:
        for name in ("num_layers", "embed_dim", "ffn_dim", "num_heads", "adaptive_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} but must be at least 1")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} but must be in [0, 1)")
        width = self.embed_dim
        if width % self.num_heads or width % 2 or width < 4:
            raise ValueError(
                f"embed_dim is {width} but must be even, at least 4 and a multiple of num_heads = "
                f"{self.num_heads}"
            )
        starts = (4, *self.cutoffs)  # behind the special symbols
        if any(a >= b for a, b in zip(starts, self.cutoffs, strict=False)):
            raise ValueError(
                f"cutoffs is {list(self.cutoffs)} but must be numbers above 4 that rise, or []"
            )
        if width < self.adaptive_factor ** len(self.cutoffs):
            raise ValueError(
                f"cutoffs has {len(self.cutoffs)} entries, and embeddings of {width} values made "
                f"{self.adaptive_factor} times narrower at each would have none: have fewer of them"
            )


class CausalAttention(nn.Module):
    """Self-attention to what is not later."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        width = config.embed_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(projection.weight, 1 / math.sqrt(2))
        nn.init.xavier_uniform_(self.out_proj.weight)
        for module in self.children():
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, C) kept."""
        q, k, v = (self._heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def step(self, x: Tensor, past: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One position (N, C) after the keys and values `past` (N, P, 2, C); `mask` (N, 1, 1,
        P + 1) True where one counts, the last is its own. Returns (N, C) and its own (N, 2, C)."""
        new = torch.stack([self.k_proj(x), self.v_proj(x)], 1)
        both = torch.cat([past, new.unsqueeze(1)], 1)
        parts = (self.q_proj(x).unsqueeze(1), both[:, :, 0], both[:, :, 1])
        q, k, v = map(self._heads, parts)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).flatten(1)), new

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, C) -> (N, H, L, D)."""
        return x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)


class CausalLayer(nn.Module):
    """Attention and feed-forward parts with residuals, layer norm in front of each."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.attention = CausalAttention(config)
        self.attention_norm = nn.LayerNorm(config.embed_dim)
        self.ffn_in = nn.Linear(config.embed_dim, config.ffn_dim)
        self.ffn_out = nn.Linear(config.ffn_dim, config.embed_dim)
        self.final_norm = nn.LayerNorm(config.embed_dim)
        self.dropout = Dropout(config.dropout)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.GELU()
        self.activation_dropout = Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, C) kept."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self._ffn(x)

    def step(self, x: Tensor, past: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As CausalAttention's."""
        y, new = self.attention.step(self.attention_norm(x), past, mask)
        x = x + self.dropout(y)
        return x + self._ffn(x), new

    def _ffn(self, x: Tensor) -> Tensor:
        hidden = self.activation_dropout(self.activation(self.ffn_in(self.final_norm(x))))
        return self.dropout(self.ffn_out(hidden))  # type: ignore[no-any-return]


class TransformerLanguageModel(nn.Module):
    """The next word's probabilities after each word: pre-norm layers without a final norm, in the
    form of fairseq's released model. Sentences begin with `</s>`, the end of the one before."""

    def __init__(self, config: LanguageModelConfig, num_words: int) -> None:
        super().__init__()
        self.config, self.num_words = config, num_words
        self.words = WordLayer(
            num_words, config.embed_dim, config.cutoffs, factor=config.adaptive_factor
        )
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(CausalLayer(config) for _ in range(config.num_layers))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """tokens (N, L) int64, padded behind with any number -> features (N, L, C). With `targets`
        (N, L), the words that follow, of which those that are 1 (padding) do not count: their
        negative log-likelihoods (nats) in fp32, (targets that count,)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device) + FIRST_POSITION
        x = self._embedded(tokens, positions)
        recompute = self.config.activation_checkpointing and self.training
        for layer in self.layers:
            if recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        if targets is None:
            return x
        counted = targets != PADDING
        return self.nll(x[counted], targets[counted])

    def log_probs(self, features: Tensor) -> Tensor:
        """(N, C) -> natural logarithms of all words' probabilities in fp32, (N, V)."""
        return self.words.log_probs(features)

    def nll(self, features: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood (nats) in fp32 of each target; (N, C), (N,) -> (N,). Only the
        words of its cluster are looked at."""
        return self.words(features, targets)  # type: ignore[no-any-return]

    def step(self, tokens: Tensor, past: Tensor, past_length: Tensor) -> tuple[Tensor, Tensor]:
        """One more word of each of N sequences: tokens (N,) int64; past (layers, N, P, 2, C), the
        keys and values of the words before, of which the first `past_length` (N,) count (P may be
        0). Returns features (N, C), and this word's keys and values (layers, N, 2, C)."""
        places = torch.arange(past.shape[2] + 1, device=past.device)
        counts = (places < past_length[:, None]) | (places == past.shape[2])
        mask = counts[:, None, None, :]
        x, news = self._embedded(tokens, past_length + FIRST_POSITION), []
        for layer, kept in zip(self._causal_layers(), past, strict=True):
            x, new = layer.step(x, kept, mask)
            news.append(new)
        return x, torch.stack(news)

    def no_past(self, num_sequences: int) -> Tensor:
        """What `step` takes as `past` before the first word."""
        weight = next(self.parameters())
        return weight.new_empty(len(self.layers), num_sequences, 0, 2, self.config.embed_dim)

    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.words(tokens)
        return self.dropout(x + sinusoids(positions, x.shape[-1]).type_as(x))  # type: ignore[no-any-return]

    def _causal_layers(self) -> Iterator[CausalLayer]:
        for layer in self.layers:
            assert isinstance(layer, CausalLayer)
            yield layer


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """(…,) -> (…, width): sines of rising wavelengths, then cosines of the same."""
    half = width // 2
    steps = torch.arange(half, device=positions.device, dtype=torch.float32)
    angles = positions.unsqueeze(-1) * torch.exp(steps * (-math.log(10_000) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], -1)
