"""Interpolated modified Kneser–Ney n-grams of texts that fit into memory, with the numbers of
KenLM's lmplz (Chen & Goodman 1998; Heafield et al. 2013).

n-grams of one order are numbered as lmplz sorts them: by their last word, then the one before it,
and so on, words in the order of their first appearance. An n-gram is the number of its suffix (all
but its first word) among those of the order below, and its first word; so an order is counted by
sorting one integer a token."""

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

UNK, BOS, EOS = 0, 1, 2  # <unk>, <s>, </s>
MARKS = (b"<unk>", b"<s>", b"</s>")
FALLBACK = (0.5, 1.0, 1.5)  # lmplz's discounts where a text is too small or artificial for its own
LEAST_LOG10 = -99.0  # of a weight that is zero
ROWS = 100_000  # of an ARPA file that are put into words at a time

Ints = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text as word numbers: of every sentence <s>, its words, </s>."""

    words: list[bytes]
    tokens: Ints

    @property
    def num_words(self) -> int:
        """Running words."""
        return len(self.tokens) - 2 * int(np.count_nonzero(self.tokens == BOS))


@dataclass(slots=True)
class Grams:
    """The n-grams of one order, (G,) each; `context`: number of all but the last word, in the order
    below."""

    first: Ints
    suffix: Ints
    context: Ints
    raw: Counts  # how often it stands in the text
    num_contexts: int

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, slots=True)
class Order:
    """The probabilities of one order's n-grams, and what was discounted of counts 1, 2, and 3 or
    more; `fell_back`: because the counts themselves do not say it."""

    grams: Grams
    kept: Bools
    log10: Floats
    backoff_log10: Floats
    discounts: tuple[float, float, float]
    fell_back: bool


class _Numbers(dict[bytes, int]):
    def __missing__(self, word: bytes) -> int:
        self[word] = number = len(self)
        return number


def read_corpus(sentences: Iterable[bytes]) -> Corpus:
    """The text of sentences with words between blanks, none of them empty, no word of MARKS."""
    numbers = _Numbers({mark: i for i, mark in enumerate(MARKS)})
    tokens = array("i")
    for sentence in sentences:
        tokens.append(BOS)
        tokens.extend(map(numbers.__getitem__, sentence.split()))
        tokens.append(EOS)
    return Corpus([*numbers], np.array(tokens, np.int32))


def estimate(
    corpus: Corpus,
    order: int,
    prune: Sequence[int] = (0,),
    allowed: Collection[bytes] | None = None,
) -> list[Order]:
    """The n-grams of all orders. Of order k those that stand in the text `prune[k - 1]` times or
    less are left out (the last number holds for higher orders, too), and those with a word that is
    not `allowed`; what they had goes to shorter ones, as lmplz does it."""
    grams = count(corpus, order)
    adjusted = [_adjusted(grams, k) for k in range(order)]
    kept = _kept(corpus, grams, prune, allowed)
    discounts = [_discounts(counts) for counts in _for_statistics(grams, adjusted)]
    lower = np.full(1, 1 / (np.count_nonzero(kept[0]) - 1))  # of all words alike; <s> is never next
    values: list[Floats] = []
    weights: list[Floats] = []
    for these, counts, stay, (taken, _) in zip(grams, adjusted, kept, discounts, strict=True):
        lower, weight = _interpolated(these, counts, stay, taken, lower)
        if not values:
            lower[BOS] = 1  # as lmplz has it; nobody asks for it
        values.append(np.minimum(_log10(lower), 0))
        weights.append(_log10(weight))
    weights.append(np.zeros(len(grams[-1])))
    return [
        Order(these, stay, value, weight, *discount)
        for these, stay, value, weight, discount in zip(
            grams, kept, values, weights[1:], discounts, strict=True
        )
    ]


def _kept(
    corpus: Corpus, grams: list[Grams], prune: Sequence[int], allowed: Collection[bytes] | None
) -> list[Bools]:
    """Which n-grams are in the model."""
    known = np.ones(len(corpus.words), bool)
    if allowed is not None:
        known = np.array([word in allowed for word in corpus.words])
        known[[UNK, BOS, EOS]] = True
    kept, spelled = [], known
    for k, these in enumerate(grams):
        spelled = known[these.first] & spelled[these.suffix] if k else known
        kept.append(spelled & (these.raw > prune[min(k, len(prune) - 1)]))
    kept[0][[UNK, BOS, EOS]] = True
    return kept


def count(corpus: Corpus, order: int) -> list[Grams]:
    """The n-grams of a text up to an order; none crosses a sentence's ends."""
    tokens, size = corpus.tokens, len(corpus.words)
    begins = tokens == BOS
    starts = np.flatnonzero(begins)
    place = np.arange(len(tokens)) - starts[np.cumsum(begins) - 1]  # in the sentence
    numbers = tokens  # of the n-gram that ends at each token
    zeros = np.zeros(size, np.int32)
    raw = np.bincount(tokens, minlength=size)
    raw[BOS] = 0  # it is never predicted
    out = [Grams(np.arange(size, dtype=np.int32), zeros, zeros, raw, 1)]
    for k in range(1, order):
        at = np.flatnonzero(place >= k)
        keys = numbers[at].astype(np.int64) * size + tokens[at - k]
        unique, ranks, raw = _ranked(keys)
        context = np.zeros(len(unique), np.int32)
        context[ranks] = numbers[at - 1]
        first, suffix = (unique % size).astype(np.int32), (unique // size).astype(np.int32)
        out.append(Grams(first, suffix, context, raw, len(out[-1])))
        numbers = np.zeros(len(tokens), np.int32)
        numbers[at] = ranks
    return out


def _ranked(
    keys: Counts,
) -> tuple[Counts, Ints, Counts]:
    """The different keys in order, each key's place among them, and how often each is there."""
    order = np.argsort(keys)
    keys = keys[order]
    new = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    ranks = np.empty(len(keys), np.int32)
    ranks[order] = np.cumsum(new, dtype=np.int32) - 1
    starts = np.flatnonzero(new)
    return keys[starts], ranks, np.diff(starts, append=len(keys))


def _adjusted(grams: list[Grams], k: int) -> Counts:
    """Counts of order k + 1 as they are smoothed: of the highest order, and of what a sentence
    begins with, those of the text; else the number of different words that stand before it."""
    these = grams[k]
    if k + 1 == len(grams):
        return these.raw
    before = np.bincount(grams[k + 1].suffix, minlength=len(these))
    return np.where(these.first == BOS, these.raw, before)


def _for_statistics(grams: list[Grams], adjusted: list[Counts]) -> Iterator[Counts]:
    """The counts that discounts are made of. lmplz takes of the very last n-gram of each lower
    order, where it has not met a sentence's start, the text's count; so do we, for equal numbers
    (in a large text it does not show)."""
    whole = True
    for these, counts in zip(grams, adjusted, strict=True):
        if whole and len(these):
            counts = counts.copy()
            counts[-1] = these.raw[-1]
            whole = int(these.first[-1]) != BOS
        yield counts


def _discounts(counts: Counts) -> tuple[tuple[float, float, float], bool]:
    """What is taken of counts 1, 2, and 3 or more (Chen & Goodman, equation 26), and whether these
    are the fallback's."""
    of = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    if of[1:4].all():
        y = of[1] / (of[1] + 2 * of[2])
        found = [j - (j + 1) * y * of[j + 1] / of[j] for j in (1, 2, 3)]
        if all(0 <= amount <= j for j, amount in enumerate(found, 1)):
            return (found[0], found[1], found[2]), False
    return FALLBACK, True


def _interpolated(
    grams: Grams,
    counts: Counts,
    kept: Bools,
    discounts: tuple[float, float, float],
    below: Floats,
) -> tuple[Floats, Floats]:
    """Probabilities (G,), and of each context the weight of the order below. What is not kept is
    counted in the sum, and all of its count goes to the weight."""
    taken = np.array([0.0, *discounts])[np.minimum(counts, 3)]
    size = grams.num_contexts
    total = np.bincount(grams.context, counts, size)
    left = np.bincount(grams.context, np.where(kept, taken, counts), size)
    weight = np.divide(left, total, out=np.ones(size), where=total > 0)
    values = (counts - taken) / total[grams.context]
    return values + weight[grams.context] * below[grams.suffix], weight


def _log10(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log10(values), LEAST_LOG10) + 0.0  # no -0


def write_arpa(file: BinaryIO, words: list[bytes], orders: list[Order]) -> None:
    """Write the model in ARPA form; numbers with 7 digits, as KenLM reads floats."""
    names = np.array(words, object)
    sizes = (f"ngram {k}={np.count_nonzero(o.kept)}\n" for k, o in enumerate(orders, 1))
    file.write(f"\\data\\\n{''.join(sizes)}\n".encode())
    for k, order in enumerate(orders):
        file.write(f"\\{k + 1}-grams:\n".encode())
        rows = np.flatnonzero(order.kept)
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            columns, at = [], part
            for lower in reversed(orders[: k + 1]):
                columns.append(names[lower.grams.first[at]])
                at = lower.grams.suffix[at].astype(np.intp)
            texts = map(b" ".join, zip(*columns, strict=True))
            logs = order.log10[part].tolist()
            if k + 1 < len(orders):
                backoffs = order.backoff_log10[part].tolist()
                lines = zip(logs, texts, backoffs, strict=True)
                file.write(b"".join(b"%.7g\t%b\t%.7g\n" % line for line in lines))
            else:
                file.write(b"".join(b"%.7g\t%b\n" % x for x in zip(logs, texts, strict=True)))
        file.write(b"\n")
    file.write(b"\\end\\\n")
