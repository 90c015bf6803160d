"""Attention with dropout on a CPU, for which torch has no fused kernel.
N rows times heads, M frames that attend, T frames, D width of a head."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from w2v2dist.model.dropout import kept, noises

CACHED = 2**19  # scores that are worked on at a time: they stay in the processor's cache
ALIGNED = 16  # scores that the processor loads at once


def dropped_attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, p: float) -> Tensor:
    """F.scaled_dot_product_attention of q (B, H, M, D), k and v (B, H, T, D), all fp32, with
    dropout `p`, and key_mask (B, 1, 1, T) True where a key counts. A third of torch's memory: of
    the size of the scores only the probabilities are kept, with the mask as their signs."""
    rows = None if key_mask is None else key_mask.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    scaled = q.flatten(0, 1) / math.sqrt(q.shape[-1])
    padded = (_padded(t).flatten(0, 1) for t in (k, v))
    out = _DroppedAttention.apply(scaled, *padded, rows, (k.shape[2], p))  # type: ignore[no-untyped-call]
    return out.unflatten(0, q.shape[:2])  # type: ignore[no-any-return]


def _padded(keys: Tensor) -> Tensor:
    """(B, H, T, D) with zeros after it, so that rows of scores begin where the processor loads."""
    return F.pad(keys, (0, 0, 0, -keys.shape[2] % ALIGNED))


def _pieces(q: Tensor, num_keys: int) -> list[slice]:
    size = max(2, CACHED // max(1, q.shape[1] * num_keys))
    return [slice(i, i + size) for i in range(0, len(q), size)]


class _DroppedAttention(torch.autograd.Function):
    """Of k and v with padding after `num_keys`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, how: tuple[int, float]
    ) -> Tensor:
        num_keys, p = how
        out = torch.empty_like(q)
        signed = q.new_empty(*q.shape[:2], k.shape[1])  # probabilities, negative where dropped
        keys, pieces = signed[:, :, :num_keys], _pieces(q, num_keys)
        for n, draws in zip(pieces, noises([keys[n].shape for n in pieces], p), strict=True):
            scores, part = torch.bmm(q[n], k[n].mT), signed[n]
            if key_mask is not None:
                real = scores[:, :, :num_keys]
                real.masked_fill_(~key_mask[n], torch.finfo(scores.dtype).min)
            scores[:, :, num_keys:] = -math.inf
            torch.softmax(scores, -1, out=part)
            torch.copysign(keys[n], draws, out=keys[n])
            torch.bmm(torch.clamp_min(part, 0, out=scores), v[n], out=out[n])
        out /= kept(p)
        ctx.save_for_backward(q, k, v, out, signed)
        ctx.num_keys, ctx.p = how
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, signed = ctx.saved_tensors
        gradients = [torch.empty_like(t) for t in (q, k, v)]
        grad_q, grad_k, grad_v = gradients
        inner = (grad * out).sum(-1, keepdim=True)
        grad = grad / kept(ctx.p)
        for n in _pieces(q, ctx.num_keys):
            used = signed[n].clamp_min(0)
            torch.bmm(used.mT, grad[n], out=grad_v[n])
            part = torch.bmm(grad[n], v[n].mT).mul_(used)
            part.addcmul_(torch.abs(signed[n], out=used), inner[n], value=-1)
            torch.bmm(part, k[n], out=grad_q[n])
            torch.bmm(part.mT, q[n], out=grad_k[n])
        return *gradients, None, None
