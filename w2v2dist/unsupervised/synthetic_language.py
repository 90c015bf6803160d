"""Made languages: sentences whose statistics tell their phones apart, as those of real ones do."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.unsupervised.pronunciation import read_pronunciations

Rng = np.random.Generator
Sentence = list[list[int]]  # words of phones (numbers from 0)
WORDS = Path(__file__).with_name("words.txt")
FREE_PHONES = 10  # of a language without words
SKEW = 0.25  # each successor is so much as likely as the one before it
NUM_SUCCESSORS = (2, 5)  # from, below
WORDS_A_SENTENCE = (2, 4)  # from, below: short enough for the discriminator to see whole


class Language(Protocol):
    """Sentences of phones."""

    phones: list[str]

    def sentence(self, rng: Rng) -> Sentence:
        """A sentence that a generator draws."""


@dataclass(frozen=True, slots=True)
class _Successors:
    """What may follow a context, and how likely."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, ids: Sequence[int] | NDArray[np.int64]) -> "_Successors":
        weights = SKEW ** np.arange(len(ids))
        return cls(np.asarray(ids), weights / weights.sum())

    def draw(self, rng: Rng) -> int:
        return int(rng.choice(self.ids, p=self.weights))


class MarkovLanguage:
    """Phones without words: each follows from the two before it, with 2 to 4 skewed successors. A
    sentence begins with one pair and ends with one phone."""

    def __init__(self, seed: int) -> None:
        self.phones = [f"p{i}" for i in range(FREE_PHONES)]
        rng = keyed_rng(seed, "markov language")
        everything = range(FREE_PHONES)
        self._after: dict[tuple[int, int], _Successors] = {}
        # Skewed as a whole, too: two phones that are equally frequent are easily taken for another
        likely = 1 / np.arange(2, FREE_PHONES + 2)
        for a in everything:
            for b in everything:
                others = [c for c in everything if c != b]  # a phone twice would be joined to one
                count = int(rng.integers(*NUM_SUCCESSORS))
                p = likely[others] / likely[others].sum()
                self._after[a, b] = _Successors.of(rng.choice(others, count, replace=False, p=p))
        first, second, last = rng.permutation(FREE_PHONES)[:3].tolist()
        self._start, self._end = (first, second), last

    def sentence(self, rng: Rng, least: int = 8, most: int = 16) -> Sentence:
        """Of `least` to `most` phones."""
        size = int(rng.integers(least, most))
        line = [*self._start]
        while len(line) < size:
            line.append(self._after[line[-2], line[-1]].draw(rng))
        if line[-1] != self._end:
            line.append(self._end)
        return [line]


class WordLanguage:
    """Words of phones: each word follows from the one before it. `lexicon` has their phones."""

    def __init__(self, seed: int, lexicon: dict[str, tuple[str, ...]]) -> None:
        self.phones = sorted({phone for phones in lexicon.values() for phone in phones})
        number = {phone: i for i, phone in enumerate(self.phones)}
        self._words = [[number[phone] for phone in phones] for phones in lexicon.values()]
        rng = keyed_rng(seed, "language of words")
        likely = 1 / np.arange(5, len(self._words) + 5)  # the list has frequent words first
        likely /= likely.sum()
        count = min(12, len(self._words))
        self._start = _Successors(np.arange(len(self._words)), likely)
        self._after = [
            _Successors(rng.choice(len(self._words), count, replace=False, p=likely), skewed)
            for _ in self._words
            for skewed in (rng.dirichlet(np.full(count, 0.5)),)
        ]

    def sentence(self, rng: Rng) -> Sentence:
        """Of two or three words."""
        word = self._start.draw(rng)
        words = [word]
        for _ in range(int(rng.integers(*WORDS_A_SENTENCE)) - 1):
            word = self._after[word].draw(rng)
            words.append(word)
        return [self._words[word] for word in words]


def english(seed: int, num_phones: int = 39) -> WordLanguage:
    """Of frequent English words: those that the most frequent `num_phones` phones can say."""
    return WordLanguage(seed, _english_words(num_phones))


def _english_words(num_phones: int) -> dict[str, tuple[str, ...]]:
    words = read_pronunciations(WORDS).phones
    often: dict[str, float] = defaultdict(float)
    for place, phones in enumerate(words.values()):
        for phone in phones:
            often[phone] += 1 / (place + 5)  # as often as the word is said (WordLanguage)
    kept = {*sorted(often, key=often.__getitem__, reverse=True)[:num_phones]}
    return {word: phones for word, phones in words.items() if kept.issuperset(phones)}


def invented(seed: int, num_phones: int = 39) -> WordLanguage:
    """Of words that nobody says, in the phones of `english`: consonants and vowels in turns, the
    frequent phones others than in English."""
    phones = sorted({p for word in _english_words(num_phones).values() for p in word})
    rng = keyed_rng(seed, "invented words")
    vowels = [p for p in rng.permutation(phones) if p[0] in "AEIOU"]
    consonants = [p for p in rng.permutation(phones) if p[0] not in "AEIOU"]
    lexicon: dict[str, tuple[str, ...]] = {}
    for number in range(300):
        begins = int(rng.integers(2))
        kinds = [(vowels, consonants)[(i + begins) % 2] for i in range(int(rng.integers(3, 8)))]
        skewed = [(kind, 1 / np.arange(1, len(kind) + 1)) for kind in kinds]
        lexicon[f"w{number}"] = tuple(str(rng.choice(k, p=w / w.sum())) for k, w in skewed)
    everything = {p for word in lexicon.values() for p in word}
    rest = [p for p in phones if p not in everything]
    return WordLanguage(seed, lexicon | {f"rest{i}": (p, vowels[0]) for i, p in enumerate(rest)})
