"""Gumbel product quantizer (section 2, equation 1) and its perplexities.
B batch, N vectors in a row, C feature width, G codebooks, V entries in each, D codeword width."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from w2v2dist.model.config import Wav2Vec2Config
from w2v2dist.model.losses import perplexity


class Quantized(NamedTuple):
    """Codewords (B, N, D), codes (B, N, G) int64, perplexities of hard and soft codes, 0-d fp32."""

    codewords: Tensor
    codes: Tensor
    code_perplexity: Tensor
    prob_perplexity: Tensor


def draw_gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape and device of `like`, in fp32."""
    return -torch.empty_like(like, dtype=torch.float32).exponential_().log()


class GumbelQuantizer(nn.Module):
    """Choose one entry in each of G codebooks and lay them end to end. (B, N, C) -> (B, N, D)."""

    def __init__(self, config: Wav2Vec2Config, codeword_dim: int) -> None:
        super().__init__()
        shape = (config.num_codebooks, config.num_codebook_entries)
        self.num_codebooks, self.num_entries = shape
        self.projection = nn.Linear(config.conv_channels, math.prod(shape))
        nn.init.normal_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.codebooks = nn.Parameter(torch.rand(*shape, codeword_dim // config.num_codebooks))

    def forward(
        self, x: Tensor, temperature: float, gumbel_noise: Tensor | None = None
    ) -> Quantized:
        """Hard choices: with Gumbel noise (drawn, or given as (B, N, G, V)) and gradients through
        the softmax at `temperature` in training; the largest logit, without gradients to the
        projection, in evaluation. Perplexities are of the logits without noise, in both."""
        logits = self.logits(x)
        codes = logits.argmax(-1)
        choice = one_hot(codes, self.num_entries)
        hard = choice.flatten(0, 1).mean(0)
        if self.training:
            noise = draw_gumbel(logits) if gumbel_noise is None else gumbel_noise.type_as(logits)
            soft = ((logits + noise) / temperature).softmax(-1)
            codes = soft.argmax(-1)
            # the difference is an exact zero: the forward value is one-hot to the bit
            choice = one_hot(codes, self.num_entries) + (soft - soft.detach())
        codewords = torch.einsum("bngv,gvd->bngd", choice.type_as(x), self.codebooks).flatten(2)
        probabilities = logits.softmax(-1).flatten(0, 1).mean(0)
        return Quantized(codewords, codes, perplexity(hard), perplexity(probabilities))

    def logits(self, x: Tensor) -> Tensor:
        """Of each entry, fp32: (B, N, C) -> (B, N, G, V)."""
        logits: Tensor = self.projection(x).unflatten(-1, (self.num_codebooks, -1)).float()
        return logits


def one_hot(codes: Tensor, num_entries: int) -> Tensor:
    """(…) int64 -> (…, V) fp32; unlike torch's it never waits for the GPU."""
    zeros = torch.zeros(*codes.shape, num_entries, device=codes.device)
    return zeros.scatter_(-1, codes.unsqueeze(-1), 1.0)
