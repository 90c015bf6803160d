"""Five products for the six of a convolution with 3 taps and stride 2: Winograd's F(2, 2) for the
two taps that see even frames. Of input frames e0 o0 e1 o1 e2 and taps w0 w1 w2

    y0 = (e0 - e1) w0 + e1 (w0 + w2) + o0 w1
    y1 = (e2 - e1) w2 + e1 (w0 + w2) + o1 w1

where e1 (w0 + w2) is computed once, and gradients are those of these lines. On a CPU, where sums of
frames cost little while they are in its cache, it saves a sixth of the time.
B batch, T frames, C channels in, O channels out; P pairs of output frames."""

from collections.abc import Iterator

import torch
from torch import Tensor

CACHED = 2**18  # elements of every tensor that are worked on at a time
WIDE = 256  # channels from which on it pays


# Many products in place, nothing to fuse: it would take minutes to compile
@torch.compiler.disable  # type: ignore[untyped-decorator]
def output(x: Tensor, weight: Tensor, y: Tensor, beta: float) -> None:
    """y (B, T', O) = beta * y + x (B, T, C) with weight (O, C, 3), but for a last odd frame."""
    w0, w1, w2 = weight.permute(2, 1, 0).contiguous()
    both = w0 + w2
    for seen, made in zip(x, y, strict=True):
        for pairs in _pieces(weight, y):
            (e0, e1, e2, odd), (y0, y1, all_y) = _even_and_odd(seen, pairs), _made(made, pairs)
            y0.addmm_(e1, both, beta=beta)
            y1.copy_(y0)
            y0.addmm_(e0 - e1, w0)
            y1.addmm_(e2 - e1, w2)
            all_y.addmm_(odd, w1)


def input_gradient(grad: Tensor, weight: Tensor, grad_x: Tensor) -> None:
    """Of `output`, of grad (B, T', O), into grad_x (B, T, C)."""
    w0, w1, w2 = weight.permute(2, 0, 1).contiguous()
    both = w0 + w2
    grad_x[:, grad.shape[1] // 2 * 4 :] = 0
    for given, into in zip(grad, grad_x, strict=True):
        for pairs in _pieces(weight, grad):
            (e0, e1, e2, odd), (g0, g1, all_g) = _even_and_odd(into, pairs), _made(given, pairs)
            torch.mm(all_g, w1, out=odd)
            torch.mm(g0 + g1, both, out=e1)
            torch.mm(g0, w0, out=e0)
            last = g1 @ w2
            e1.sub_(e0).sub_(last)
            e2.add_(last)  # e0 of the pair after it, which is complete: the last ones come first


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Of `output`, of grad (B, T', O): (O, C, 3)."""
    w0, w1, w2, both = grad.new_zeros(4, *weight.shape[1::-1])
    for given, seen in zip(grad, x, strict=True):
        for pairs in _pieces(weight, grad):
            (e0, e1, e2, odd), (g0, g1, all_g) = _even_and_odd(seen, pairs), _made(given, pairs)
            w0.addmm_((e0 - e1).t(), g0)
            w1.addmm_(odd.t(), all_g)
            w2.addmm_((e2 - e1).t(), g1)
            both.addmm_(e1.t(), g0 + g1)
    return torch.stack([w0 + both, w1, w2 + both], 2).transpose(0, 1)


def _pieces(weight: Tensor, y: Tensor) -> Iterator[slice]:
    """Pairs of output frames, the last ones first."""
    num_pairs, size = y.shape[1] // 2, max(1, CACHED // max(weight.shape[:2]))
    for start in reversed(range(0, num_pairs, size)):
        yield slice(start, min(start + size, num_pairs))


def _even_and_odd(x: Tensor, pairs: slice) -> tuple[Tensor, ...]:
    """Views of x (T, C): e0, e1, e2 (P, C) of these pairs, and o0 and o1 of all (2 P, C)."""
    odd = x[1::2][2 * pairs.start : 2 * pairs.stop]
    return x[::4][pairs], x[2::4][pairs], x[4::4][pairs], odd


def _made(y: Tensor, pairs: slice) -> tuple[Tensor, ...]:
    """Views of y (T', O): y0 and y1 (P, O) of these pairs, and both (2 P, O)."""
    return y[::2][pairs], y[1::2][pairs], y[2 * pairs.start : 2 * pairs.stop]
