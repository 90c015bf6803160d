"""A strided convolution as matrix products of frames, without a copy of its input.
B batch, T frames, C channels in, O channels out, K taps."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from w2v2dist.model import winograd_conv

CACHED = 2**20  # elements


def written_out(device: str) -> bool:
    """Whether only operators of torch's own can stand here: under autocast and in an export."""
    # Not torch.compiler.is_exporting(), which torch.compile takes to be true
    exporting = torch.compiler._is_exporting_flag or torch.jit.is_tracing()  # type: ignore[no-untyped-call]
    return exporting or torch.is_autocast_enabled(device)


class StridedConv(nn.Conv1d):
    """nn.Conv1d over frames, (B, T, C) -> (B, T', O). The GELU that precedes it, where its input is
    no waveform, belongs to it: on a GPU what GELU gives is not kept, but computed again in the
    backward pass."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, bias: bool
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, bias=bias)
        self.activated = self.in_channels > 1  # else it is the first, unless it is told otherwise

    def forward(self, x: Tensor) -> Tensor:
        if written_out(x.device.type):
            return super().forward((F.gelu(x) if self.activated else x).mT).mT
        given = (x.contiguous(), self.weight, self.bias, self.stride[0], self.activated)
        return _StridedConv.apply(*given)  # type: ignore[no-any-return, no-untyped-call]


def _taps(kernel: int, stride: int) -> Iterator[slice]:
    """Cuts the taps so that no two windows of a part overlap: a view of the input is a matrix then,
    which a product can also write to."""
    yield from (slice(j, min(j + stride, kernel)) for j in range(0, kernel, stride))


def _windows(x: Tensor, taps: slice, num_frames: int, stride: int) -> Tensor:
    """A view of x (B, T, C): what these taps see at each frame of the output (B, T', taps * C)."""
    channels = x.shape[2]
    shape = (x.shape[0], num_frames, (taps.stop - taps.start) * channels)
    strides = (x.stride(0), stride * channels, 1)
    return x.as_strided(shape, strides, x.storage_offset() + taps.start * channels)


def _matrix(weight: Tensor, taps: slice) -> Tensor:
    """(O, C, K) -> (taps * C, O)."""
    return weight[:, :, taps].permute(0, 2, 1).flatten(1).t()


def _pieces(y: Tensor, first: int) -> list[slice]:
    """Frames, from `first` on, that are worked on at a time: on a CPU what was just written stays
    in its cache."""
    size = CACHED // y.shape[2] if y.device.type == "cpu" else y.shape[1]
    return [slice(t, t + size) for t in range(first, y.shape[1], max(1, size))]


def _in_pairs(y: Tensor, weight: Tensor, stride: int) -> int:
    """How many frames of the output, the first ones, winograd_conv computes."""
    fits = weight.shape[2] == 3 and stride == 2 and min(weight.shape[:2]) >= winograd_conv.WIDE
    pays = fits and y.device.type == "cpu" and y.element_size() >= 4
    return y.shape[1] // 2 * 2 if pays else 0


def _add_product(out: Tensor, a: Tensor, b: Tensor, beta: float) -> None:
    """out (B, M, N) = beta * out + a (B, M, K) @ b (K, N)."""
    if out.device.type != "cpu":
        out.baddbmm_(a, b.expand(len(a), -1, -1), beta=beta)
        return
    for row, left in zip(out, a, strict=True):  # a batched product is slower on a CPU
        row.addmm_(left, b, beta=beta)


class _StridedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, activated: bool
    ) -> Tensor:
        active = F.gelu(x) if activated else x
        kept = active if x.device.type == "cpu" else None
        ctx.save_for_backward(x, weight, kept)
        ctx.stride, ctx.activated, ctx.has_bias = stride, activated, bias is not None
        kernel = weight.shape[2]
        num_frames = (x.shape[1] - kernel) // stride + 1
        y = x.new_empty(len(x), num_frames, len(weight))
        beta = 0.0
        if bias is not None:
            y.copy_(bias)
            beta = 1.0
        ctx.done = done = _in_pairs(y, weight, stride)
        if done:
            winograd_conv.output(active, weight, y, beta)
        # In 16 bits the sum over parts would be rounded twice: all taps at once, on a copy
        parts = [slice(0, kernel)] if y.element_size() < 4 else [*_taps(kernel, stride)]
        products = [(_windows(active, p, num_frames, stride), _matrix(weight, p)) for p in parts]
        for piece in _pieces(y, done):
            for i, (windows, matrix) in enumerate(products):
                _add_product(y[:, piece], windows[:, piece], matrix, 1.0 if i else beta)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, active = ctx.saved_tensors
        stride, (_, _, kernel), num_frames = ctx.stride, weight.shape, grad.shape[1]
        left = slice(ctx.done, num_frames)
        grad = grad.contiguous()
        grad_x = grad_weight = grad_bias = None
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 1))
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)
            if active is None:
                active = F.gelu(x) if ctx.activated else x
            for taps in _taps(kernel, stride):
                windows = _windows(active, taps, num_frames, stride)
                part = _weight_gradient(grad[:, left], windows[:, left])
                grad_weight[:, :, taps] = part.view(-1, x.shape[2], part.shape[1]).permute(2, 1, 0)
            if ctx.done:
                grad_weight += winograd_conv.weight_gradient(grad, active, weight)
            del active
        if ctx.needs_input_grad[0]:
            grad_x = x.new_empty(x.shape)
            if ctx.done:
                winograd_conv.input_gradient(grad, weight, grad_x)
            else:  # the first part writes what it sees, if that is without gaps; the others add
                grad_x[:, num_frames * stride if kernel >= stride else 0 :] = 0
            for taps in _taps(kernel, stride):
                into, matrix = _windows(grad_x, taps, num_frames, stride), _matrix(weight, taps)
                beta = 1.0 if ctx.done or taps.start else 0.0
                _add_product(into[:, left], grad[:, left], matrix.t(), beta)
            if ctx.activated:
                torch.ops.aten.gelu_backward(grad_x, x, grad_input=grad_x)
        return grad_x, grad_weight, grad_bias, None, None


def _weight_gradient(grad: Tensor, windows: Tensor) -> Tensor:
    """grad (B, T', O), windows (B, T', N) -> (N, O), the sum over rows and frames."""
    if grad.device.type != "cpu":
        return torch.bmm(windows.mT, grad).sum(0)
    out = grad.new_empty(windows.shape[2], grad.shape[2])
    for i, (left, right) in enumerate(zip(windows, grad, strict=True)):
        out.addmm_(left.t(), right, beta=1.0 if i else 0.0)
    return out
