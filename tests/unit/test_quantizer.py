"""The Gumbel quantizer against slow, obvious references."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from w2v2dist.model import Wav2Vec2Config
from w2v2dist.model.losses import perplexity
from w2v2dist.model.quantizer import GumbelQuantizer, draw_gumbel

CONFIG = Wav2Vec2Config(conv_channels=6, num_codebooks=2, num_codebook_entries=5, final_dim=8)


def make() -> tuple[GumbelQuantizer, Tensor, Tensor]:
    """A quantizer, its input (3, 7, 6) and Gumbel noise (3, 7, 2, 5)."""
    torch.manual_seed(0)
    return GumbelQuantizer(CONFIG, 8), torch.randn(3, 7, 6), draw_gumbel(torch.empty(3, 7, 2, 5))


def lookup(quantizer: GumbelQuantizer, scores: Tensor) -> Tensor:
    """Codewords by loops: the best entry of each codebook, end to end."""
    out = torch.zeros(3, 7, 8)
    for b in range(3):
        for n in range(7):
            best = [int(scores[b, n, g].argmax()) for g in range(2)]
            out[b, n] = torch.cat([quantizer.codebooks[g, k] for g, k in enumerate(best)])
    return out


def test_evaluation_takes_the_largest_logit() -> None:
    quantizer, x, noise = make()
    logits = quantizer.projection(x).view(3, 7, 2, 5)
    out = quantizer.eval()(x, 2.0, noise)
    assert torch.equal(out.codewords, lookup(quantizer, logits))
    assert torch.equal(out.codes, logits.argmax(-1))
    out.codewords.sum().backward()
    assert quantizer.codebooks.grad is not None
    assert quantizer.projection.weight.grad is None


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_training_forward_and_straight_through_gradient(temperature: float) -> None:
    quantizer, x, noise = make()
    x.requires_grad_()
    out = quantizer(x, temperature, noise)
    logits = quantizer.projection(x).view(3, 7, 2, 5)
    assert torch.equal(out.codewords, lookup(quantizer, logits + noise))  # one-hot to the bit
    weight = torch.randn(3, 7, 8)
    (gradient,) = torch.autograd.grad((out.codewords * weight).sum(), x)
    # the reference: the gradient as if the codewords were mixed by the softmax
    soft = ((logits + noise) / temperature).softmax(-1)
    mixed = torch.einsum("bngv,gvd->bngd", soft, quantizer.codebooks).flatten(2)
    (expected,) = torch.autograd.grad((mixed * weight).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_perplexities() -> None:
    quantizer, x, noise = make()
    out = quantizer(x, 2.0, noise)
    logits = quantizer.projection(x).view(21, 2, 5)
    soft = hard = 0.0
    for g in range(2):
        mean = logits[:, g].softmax(-1).mean(0).tolist()
        counts = F.one_hot(logits[:, g].argmax(-1), 5).float().mean(0).tolist()
        soft += math.exp(-sum(p * math.log(p + 1e-7) for p in mean))
        hard += math.exp(-sum(p * math.log(p + 1e-7) for p in counts))
    assert out.prob_perplexity.item() == pytest.approx(soft, rel=1e-5)
    assert out.code_perplexity.item() == pytest.approx(hard, rel=1e-5)
    assert perplexity(torch.full((2, 320), 1 / 320)).item() == pytest.approx(640, rel=1e-3)
    assert perplexity(torch.eye(2, 320)).item() == pytest.approx(2, rel=1e-3)


def test_drawn_noise_is_gumbel() -> None:
    """Choices follow the softmax of the logits (false alarms: 5 sigma, under 1e-6 an entry)."""
    torch.manual_seed(1)
    quantizer = GumbelQuantizer(CONFIG, 8)
    num_draws = 20_000
    x = torch.randn(1, 1, 6).expand(1, num_draws, 6)
    codes = quantizer(x, 2.0).codes[0]
    expected = quantizer.projection(x[0, 0]).view(2, 5).softmax(-1)
    for g in range(2):
        rates = F.one_hot(codes[:, g], 5).float().mean(0)
        sigma = (expected[g] * (1 - expected[g]) / num_draws).sqrt()
        assert ((rates - expected[g]).abs() <= 5 * sigma + 1e-4).all()
