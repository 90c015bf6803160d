"""Tensors of shapes without numbers, on which a model runs as on a GPU or as on a CPU."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


@contextlib.contextmanager
def fake(gpu: bool) -> Iterator[None]:
    """Tensors made here have shapes and no numbers, and models run as on a GPU or a CPU."""
    with torch.device("meta"), _Device(gpu):
        yield


class _Device(TorchFunctionMode):
    """Meta tensors say that they are on a GPU, or on the CPU, so that the model goes the way that
    it goes there; attention and dropout are that device's kernels. A check of values finds nothing
    wrong."""

    def __init__(self, gpu: bool) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.__bool__:
            return False
        if func is Tensor.__int__:
            return 0
        if func is Tensor.__getitem__ and _is_mask(args[1]):
            return args[0].flatten(0, args[1].ndim - 1)  # all count
        if func is F.ctc_loss:  # a row's alphabet is tens of symbols: its reading is the work
            return args[0].sum()
        if func == Tensor.device.__get__ and not _by_torch():  # no `is`: a wrapper at each look
            return torch.device("cuda", 0) if self.gpu else torch.device("cpu")
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return self.gpu
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta")
        if func is F.scaled_dot_product_attention:
            return (_attention if self.gpu else _cpu_attention)(*args, **kwargs)
        if self.gpu and func in (F.dropout, torch.dropout):
            return _dropout(*args, **kwargs)
        return func(*args, **kwargs)


def _by_torch() -> bool:
    """Whether torch itself looks at the device: checkpointing compares it in two passes, and only
    one of them is seen here."""
    return bool(sys._getframe(2).f_globals["__name__"].startswith("torch."))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Tensor:
    """The kernels that CUDA chooses: flash, or the memory-efficient one with a mask."""
    narrow = q.dtype in (torch.bfloat16, torch.float16)
    if narrow and attn_mask is None:
        flash = aten._scaled_dot_product_flash_attention
        return flash(q, k, v, dropout_p, is_causal)[0]  # type: ignore[no-any-return]
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=q.dtype)
        bias = bias.expand(*q.shape[:-1], k.shape[-2])
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(q, k, v, bias, True, dropout_p, is_causal)[0]  # type: ignore[no-any-return]


def _cpu_attention(*args: Any, **kwargs: Any) -> Tensor:
    """The kernels of CPUs: the fused one knows no dropout."""
    if kwargs.get("dropout_p") or kwargs.get("attn_mask") is not None:
        return aten._scaled_dot_product_attention_math(*args, **kwargs)[0]  # type: ignore[no-any-return]
    flash = aten._scaled_dot_product_flash_attention_for_cpu
    kwargs = {key: value for key, value in kwargs.items() if key == "is_causal"}
    return flash(*args[:3], **kwargs)[0]  # type: ignore[no-any-return]


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """One kernel that keeps a mask of bytes."""
    return torch.native_dropout(x, p, True)[0] if training and p else x
