"""When the words of a greedy path were said, and how sure the model is of them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.model import Wav2Vec2Config

PAUSE_S = 0.8  # that ends a word and a caption
LONGEST_S, WIDEST = 7.0, 84  # of a caption: seconds, and characters (two lines of 42)


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or a symbol where the alphabet has no words; `start` and `end` in seconds,
    `confidence` the mean probability of its symbols."""

    text: str
    start: float
    end: float
    confidence: float


def words(log_probs: Tensor, alphabet: Alphabet, config: Wav2Vec2Config) -> list[Word]:
    """The words of the best path through log-probabilities (T, num_tokens). A long pause ends a
    word also where the model wrote no delimiter."""
    if not len(log_probs):
        return []
    best = log_probs.max(-1)
    path, scores = best.indices.tolist(), best.values.exp().tolist()
    frame_s = config.total_stride / SAMPLE_RATE
    out: list[Word] = []
    symbols: list[tuple[str, int, int, float]] = []  # text, first frame, last + 1, probability

    def close() -> None:
        if symbols:
            joined = "".join(s[0] for s in symbols)
            sure = sum(s[3] for s in symbols) / len(symbols)
            first, last = symbols[0][1] * frame_s, symbols[-1][2] * frame_s
            out.append(Word(joined, round(first, 3), round(last, 3), round(sure, 4)))
            symbols.clear()

    at = 0
    for token, run in itertools.groupby(path):
        size = sum(1 for _ in run)
        if token == alphabet.delimiter:
            close()
        elif token not in alphabet.special:
            if symbols and (at - symbols[-1][2]) * frame_s > PAUSE_S:
                close()
            symbols.append((alphabet.tokens[token], at, at + size, max(scores[at : at + size])))
            if not alphabet.has_words:
                close()
        at += size
    close()
    return out


def captions(found: list[Word]) -> Iterator[list[Word]]:
    """The words as captions: cut at pauses, and where they become too long or too wide."""
    caption: list[Word] = []
    for word in found:
        if caption:
            wide = sum(len(w.text) + 1 for w in caption) + len(word.text) > WIDEST
            long = word.end - caption[0].start > LONGEST_S
            if wide or long or word.start - caption[-1].end > PAUSE_S:
                yield caption
                caption = []
        caption.append(word)
    if caption:
        yield caption
