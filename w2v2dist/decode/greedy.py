"""Greedy (best path) CTC decoding."""

from torch import Tensor

from w2v2dist.data.alphabet import Alphabet


def greedy_text(logits: Tensor, num_frames: Tensor, alphabet: Alphabet) -> list[str]:
    """logits (B, T, num_tokens), frames (B,) to B texts: the best of each frame, repeats merged."""
    paths, frames = logits.float().argmax(-1).tolist(), num_frames.tolist()
    return [alphabet.decode(path[:n]) for path, n in zip(paths, frames, strict=True)]
