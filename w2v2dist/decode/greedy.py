"""Greedy (best path) CTC decoding."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.words import Word, words_of_path
from w2v2dist.model import Wav2Vec2Config


def greedy_text(logits: Tensor, num_frames: Tensor, alphabet: Alphabet) -> list[str]:
    """logits (B, T, num_tokens), frames (B,) to B texts: the best of each frame, repeats merged."""
    paths, frames = logits.float().argmax(-1).tolist(), num_frames.tolist()
    return [alphabet.decode(path[:n]) for path, n in zip(paths, frames, strict=True)]


@dataclass(frozen=True, slots=True)
class Greedy:
    """The best path as a recording's `Decoder`: in memory are eight bytes a frame."""

    alphabet: Alphabet
    config: Wav2Vec2Config

    def __call__(self, log_probs: Iterable[Tensor]) -> tuple[str, list[Word]]:
        path, probabilities = array("i"), array("f")
        for part in log_probs:
            best = part.max(-1)
            path.extend(best.indices.tolist())
            probabilities.extend(best.values.exp().tolist())
        said = words_of_path(path, probabilities, self.alphabet, self.config)
        return self.alphabet.decode(path), said
