"""Simulated emissions of real transcripts, for measurements of decoders: what a CTC model of known
quality would say of a text.

The noise model: every token is held for one or two frames and followed by one to four blanks (of 20
ms). The logits of a frame are `strength` for the truth and Gaussian noise of deviation 1 for all
tokens. Words are mumbled with probability `mumbled`: there the truth has `mumbled_strength` alone.
With probability `confusion` a token is heard as another one: `rival` is added to the logit of a
wrong one in its frames; which one is drawn with a fixed table of preferences (a softmax of Gaussian
scores, doubled: some confusions are frequent, as they are in speech). All is drawn from the seed
and the utterance's number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.runtime.keyed import keyed_rng


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The settings of the noise model."""

    strength: float = 6.0
    mumbled: float = 0.25
    mumbled_strength: float = 2.5
    confusion: float = 0.1
    rival: float = 6.0
    seed: int = 1


def emission(text: str, number: int, alphabet: Alphabet, noise: Noise) -> NDArray[np.float32]:
    """Log-probabilities (T, num_tokens) of a text."""
    rng = keyed_rng(noise.seed, "simulated", number)
    spoken = [i for i in range(alphabet.num_tokens) if i not in alphabet.special]
    table = 2 * keyed_rng(noise.seed, "preferences").standard_normal((len(spoken), len(spoken)))
    np.fill_diagonal(table, -np.inf)
    path: list[int] = [alphabet.blank] * int(rng.integers(2, 6))
    wrong: dict[int, int] = {}  # frame -> the rival
    strengths = [noise.strength] * len(path)
    strength = noise.strength
    for place, token in enumerate(alphabet.encode(text)):
        if place == 0 or token == alphabet.delimiter:
            strength = noise.mumbled_strength if rng.random() < noise.mumbled else noise.strength
        frames = range(len(path), len(path) + int(rng.integers(1, 3)))
        if rng.random() < noise.confusion:
            likes = np.exp(table[spoken.index(token)])
            rival = spoken[int(rng.choice(len(spoken), p=likes / likes.sum()))]
            wrong |= dict.fromkeys(frames, rival)
        path += [token] * len(frames) + [alphabet.blank] * int(rng.integers(1, 5))
        strengths += [strength] * (len(path) - len(strengths))
    logits = rng.standard_normal((len(path), alphabet.num_tokens))
    logits[range(len(path)), path] += strengths
    for frame, rival in wrong.items():
        logits[frame, rival] += noise.rival
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits.astype(np.float16).astype(np.float32)
