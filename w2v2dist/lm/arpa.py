"""n-gram models in ARPA form (plain or gzip): their words, and scores by textbook back-off.
Decoders search with KenLM; this is for small models and for what a file says of itself."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from w2v2dist.config import ConfigError
from w2v2dist.lm.lines import lines, opened

KENLM = b"mmap lm http://kheafield.com/code format version"  # what its binary files begin with
MARKS = ("<s>", "</s>", "<unk>", "<UNK>")  # unigrams that are no words
NO_UNK_LOG10 = -100.0  # of a word outside a model without <unk>, as KenLM has it


@dataclass(frozen=True, slots=True)
class Arpa:
    """An n-gram model: of each order, word numbers -> log10 of probability and of back-off."""

    words: list[str]
    grams: list[dict[tuple[int, ...], tuple[float, float]]]
    numbers: dict[str, int]

    @property
    def order(self) -> int:
        """The length of its longest n-grams."""
        return len(self.grams)

    def score(self, words: Sequence[str], bos: bool = True, eos: bool = True) -> list[float]:
        """log10 of each word's probability after those before it: with `bos` at the start of a
        sentence, with `eos` that of its end, too. Words that it has not are <unk>."""
        unk = self.numbers.get("<unk>", self.numbers.get("<UNK>", -1))
        ids = [self.numbers.get(word, unk) for word in words]
        ids = [self.numbers["<s>"]] * bos + ids + [self.numbers["</s>"]] * eos
        return [self._log10(tuple(ids[: i + 1])[-self.order :]) for i in range(bos, len(ids))]

    def _log10(self, gram: tuple[int, ...]) -> float:
        backoff = 0.0
        while True:
            found = self.grams[len(gram) - 1].get(gram)
            if found is not None:
                return backoff + found[0]
            if len(gram) == 1:
                return backoff + NO_UNK_LOG10
            backoff += self.grams[len(gram) - 2].get(gram[:-1], (0.0, 0.0))[1]
            gram = gram[1:]


def read_arpa(path: str | Path) -> Arpa:
    """The model of a file. Raises ConfigError where it is none, is cut short or contradicts
    itself."""
    words: list[str] = []
    numbers: dict[str, int] = {}
    grams: list[dict[tuple[int, ...], tuple[float, float]]] = []
    for number, order, fields in _entries(path):
        if order == 1:
            numbers.setdefault(fields[1], len(words))
            words.append(fields[1])
        grams += [{} for _ in range(order - len(grams))]
        try:
            gram = tuple(numbers[word] for word in fields[1 : order + 1])
        except KeyError as error:
            raise ConfigError(
                f"{path}, line {number}: {error} is not among its unigrams: the file is damaged"
            ) from None
        if gram in grams[-1]:
            raise ConfigError(f"{path}, line {number}: {' '.join(fields[1:])} is there twice")
        backoff = fields[order + 1] if len(fields) > order + 1 else "0"
        grams[-1][gram] = _number(fields[0], path, number), _number(backoff, path, number)
    for mark in ("<s>", "</s>"):
        if mark not in numbers:
            raise ConfigError(f"{path} has no {mark}, with which sentences begin or end")
    return Arpa(words, grams, numbers)


def arpa_words(path: str | Path) -> Iterator[str]:
    """The words of a model, without <s>, </s> and <unk>, one at a time and without the rest of the
    file. Raises ConfigError as `read_arpa` does."""
    for _, order, fields in _entries(path):
        if order > 1:
            return
        if fields[1] not in MARKS:
            yield fields[1]


def sniff(path: str | Path) -> Literal["arpa", "kenlm"]:
    """Whether a file is an ARPA text (also compressed by gzip) or a KenLM binary. Raises
    ConfigError where it is neither."""
    raw, file = opened(path)
    with raw, file:
        if file.read(len(KENLM)) == KENLM:
            return "kenlm"
    _header(path, lines(path, longest=1000))
    return "arpa"


def _header(path: str | Path, found: Iterator[bytes]) -> int:
    """Read up to \\data\\; how many lines that were. As in KenLM, only comments stand before it."""
    for number, line in enumerate(found, 1):
        if line.strip() == b"\\data\\":
            return number
        if line.strip() and not line.startswith(b"#"):
            break
    raise ConfigError(
        f"{path} is no n-gram model: neither an ARPA file, which begins with \\data\\, nor a "
        "binary of KenLM"
    )


def _entries(path: str | Path) -> Iterator[tuple[int, int, list[str]]]:
    """Of every n-gram: its line, its order, and its fields (log10, words, maybe back-off). The
    counts of the header are compared with what was there at the end of each order."""
    found = lines(path)
    start = _header(path, found)
    sizes: list[int] = []
    order = there = 0

    def complete(following: str) -> None:
        if order and there != sizes[order - 1]:
            raise ConfigError(
                f"{path} has {there} {order}-grams but its header says {sizes[order - 1]}"
            )
        if following != (f"\\{order + 1}-grams:" if order < len(sizes) else "\\end\\"):
            raise ConfigError(
                f"{path}: {following} follows {order}-grams of {len(sizes)} orders: it is damaged"
            )

    for number, line in enumerate(found, start + 1):
        fields = line.split()  # of bytes: at blanks alone, not at those of other scripts
        if not fields:
            continue
        if fields[0].startswith(b"\\") and len(fields) == 1:
            complete(fields[0].decode(errors="replace"))
            if fields[0] == b"\\end\\":
                return
            order, there = order + 1, 0
        elif not order:
            size = re.fullmatch(rb"ngram +(\d+) *= *(\d+)", line.strip())
            if size is None or int(size[1]) != len(sizes) + 1:
                raise ConfigError(f"{path}, line {number}, is {line[:60]!r}, no `ngram N=COUNT`")
            sizes.append(int(size[2]))
        else:
            there += 1
            if not order + 1 <= len(fields) <= order + 2:
                raise ConfigError(f"{path}, line {number}, is {line[:60]!r}, no {order}-gram")
            try:
                yield number, order, [field.decode() for field in fields]
            except UnicodeDecodeError:
                raise ConfigError(f"{path}, line {number}, is not UTF-8 text") from None
    raise ConfigError(f"{path} is cut short: it has no \\end\\")


def _number(text: str, path: str | Path, number: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{path}, line {number}: {text!r} is no number") from None
