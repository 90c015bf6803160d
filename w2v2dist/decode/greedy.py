"""Greedy (best path) CTC decoding."""

from __future__ import annotations

from torch import Tensor

from w2v2dist.data.alphabet import Alphabet


def greedy_text(logits: Tensor, num_frames: Tensor, alphabet: Alphabet) -> list[str]:
    """logits (B, T, num_tokens) and frames (B,) to B texts: the best token of each frame, repeats
    merged."""
    paths = logits.float().argmax(-1).cpu()
    return [
        alphabet.decode(path[:n].tolist())
        for path, n in zip(paths, num_frames.tolist(), strict=True)
    ]
