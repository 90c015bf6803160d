"""When the words of a path through a model's outputs were said, and how sure it is of them."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.model import Wav2Vec2Config

PAUSE_S = 0.8  # that ends a word and a caption
LONGEST_S, WIDEST = 7.0, 84  # of a caption: seconds, and characters (two lines of 42)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording."""

    text: str
    seconds: float
    words: list["Word"]


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or a symbol where the alphabet has no words; `start` and `end` in seconds,
    `confidence` the mean probability of its symbols."""

    text: str
    start: float
    end: float
    confidence: float


class Symbol(NamedTuple):
    """A token that a path runs through: its frames, the last + 1, and its best probability."""

    token: int
    first: int
    last: int
    confidence: float


def runs(
    path: Sequence[int], probabilities: Sequence[float], alphabet: Alphabet
) -> Iterator[Symbol]:
    """The symbols of a path (a token for each frame), delimiters of words among them."""
    at = 0
    for token, run in itertools.groupby(path):
        size = sum(1 for _ in run)
        if token not in alphabet.special:
            yield Symbol(token, at, at + size, max(probabilities[at : at + size]))
        at += size


def words_of_path(
    path: Sequence[int],
    probabilities: Sequence[float],
    alphabet: Alphabet,
    config: Wav2Vec2Config,
    first_frame: int = 0,
    pause_s: float = PAUSE_S,
) -> list[Word]:
    """The words of a path, a token and its probability for each frame from `first_frame` of the
    recording on. A pause of `pause_s` ends a word also where the path has no delimiter."""
    longest = pause_s * SAMPLE_RATE / config.total_stride  # inside a word
    out: list[Word] = []
    word: list[Symbol] = []

    def close() -> None:
        if word:
            out.append(spoken(word, alphabet, config, first_frame))
            word.clear()

    for symbol in runs(path, probabilities, alphabet):
        if symbol.token == alphabet.delimiter:
            close()
            continue
        if word and symbol.first - word[-1].last > longest:
            close()
        word.append(symbol)
        if not alphabet.has_words:
            close()
    close()
    return out


def spoken(
    word: list[Symbol], alphabet: Alphabet, config: Wav2Vec2Config, first_frame: int = 0
) -> Word:
    """Symbols as one word."""
    times = ((first_frame + at) * frame_s(config) for at in (word[0].first, word[-1].last))
    start, end = (round(seconds, 3) for seconds in times)
    sure = sum(symbol.confidence for symbol in word) / len(word)
    text = "".join(alphabet.tokens[symbol.token] for symbol in word)
    return Word(text, start, end, round(sure, 4))


def frame_s(config: Wav2Vec2Config) -> float:
    """Seconds from a frame to the next."""
    return config.total_stride / SAMPLE_RATE


def words(
    log_probs: Tensor,
    alphabet: Alphabet,
    config: Wav2Vec2Config,
    path: Tensor | None = None,
    first_frame: int = 0,
) -> list[Word]:
    """The same of a path (T,) through log-probabilities (T, num_tokens); None: of the best one."""
    if path is None:
        path = log_probs.argmax(-1)
    probabilities = log_probs.gather(1, path[:, None].long())[:, 0].exp()
    return words_of_path(path.tolist(), probabilities.tolist(), alphabet, config, first_frame)


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
