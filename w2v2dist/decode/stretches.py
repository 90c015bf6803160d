"""How decoders meet recordings of any length: in stretches, cut where nobody speaks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.decode.words import PAUSE_S, Word

LIMIT = 3_000  # frames of a stretch at most: a minute
PAUSE = round(50 * PAUSE_S)  # frames without a symbol that end a word, as in words.py


class Decoder(Protocol):
    """What turns a recording's log-probabilities, (frames, num_tokens) on the CPU in consecutive
    parts, into its text and the words of it, with their times in the recording."""

    def __call__(self, log_probs: Iterable[Tensor]) -> tuple[str, list[Word]]: ...


@dataclass(frozen=True, slots=True)
class InStretches:
    """A Decoder that has whole stretches decoded, as beams need them: `decode` makes the text and
    words of log-probabilities (T, num_tokens) that begin at a frame of the recording."""

    decode: Callable[[Tensor, int], tuple[str, list[Word]]]
    alphabet: Alphabet
    limit: int = LIMIT

    def __call__(self, log_probs: Iterable[Tensor]) -> tuple[str, list[Word]]:
        texts: list[str] = []
        said: list[Word] = []
        for first, part in stretches(log_probs, self.alphabet, self.limit):
            text, words = self.decode(part, first)
            texts += [text] if text else []
            said += words
        apart = self.alphabet.has_words or self.alphabet.units == "phones"
        return (" " if apart else "").join(texts), said


def stretches(
    log_probs: Iterable[Tensor], alphabet: Alphabet, limit: int = LIMIT
) -> Iterator[tuple[int, Tensor]]:
    """The frames of a recording, of any parts, as stretches (first frame, log-probabilities (T,
    num_tokens)) of at most `limit` frames. Each but the last is cut in its second half, inside the
    longest pause that ends a word, else the longest of any. Where the cuts are depends on the
    log-probabilities alone, not on the parts; no more than a part and a stretch is in memory."""
    first, held = 0, torch.zeros(0, alphabet.num_tokens)
    for part in log_probs:
        held = torch.cat([held, part])
        while len(held) > limit:
            cut = _cut(held[:limit], alphabet)
            yield first, held[:cut].clone()
            first, held = first + cut, held[cut:]
    if len(held):
        yield first, held


def _cut(log_probs: Tensor, alphabet: Alphabet) -> int:
    """The frame in the second half of (T, num_tokens) to cut before."""
    rest = [i for i in (alphabet.blank, alphabet.delimiter) if i is not None]
    earliest = max(1, len(log_probs) // 2)
    path = log_probs[earliest:].argmax(-1).tolist()
    best, at = (False, 0, 0), 0  # whether it ends a word, its frames, its middle
    for resting, frames in _pauses(path, rest):
        if resting:
            ends = alphabet.delimiter in frames or len(frames) > PAUSE or not alphabet.has_words
            best = max(best, (ends, len(frames), earliest + at + len(frames) // 2))
        at += len(frames)
    if best[1]:
        return best[2]
    silence = log_probs[earliest:, rest].logsumexp(-1)  # nobody pauses: where it is likeliest
    return earliest + int(silence.argmax())


def _pauses(path: list[int], rest: list[int]) -> Iterator[tuple[bool, list[int]]]:
    """Runs of frames in which symbols are said, and in which not."""
    run: list[int] = []
    for token in path:
        if run and (token in rest) != (run[0] in rest):
            yield run[0] in rest, run
            run = []
        run.append(token)
    yield run[0] in rest, run
