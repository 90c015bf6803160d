"""Greedy (best path) CTC decoding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor


class Decodes(Protocol):
    """A tokenizer of w2v2dist.data.alphabet."""

    def decode(self, ids: Iterable[int], collapse: bool = True) -> str: ...


def greedy_text(logits: Tensor, num_frames: Tensor, tokenizer: Decodes) -> list[str]:
    """logits (B, T, num_tokens) and frames (B,) to B texts: the best token of each frame, repeats
    merged."""
    paths = logits.float().argmax(-1).cpu()
    return [
        tokenizer.decode(path[:n].tolist())
        for path, n in zip(paths, num_frames.tolist(), strict=True)
    ]
