"""What a language model's ids mean: words, or the tokens (characters, phones) that acoustic models
spell with. Files are fairseq's dict.txt: a symbol, a blank and how often it was seen in a line."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from w2v2dist.data.alphabet import DELIMITER
from w2v2dist.data.text import describe

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # with the ids 0 to 3, as in fairseq
PAD, END, UNKNOWN = 1, 2, 3
# words and tokens stand between blanks in texts; characters are those of words, | is the blank
TextUnits = Literal["words", "tokens", "characters"]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Symbols in the order of their ids, which begin behind the special ones. Raises ValueError
    where one is there twice or could be in no text."""

    symbols: tuple[str, ...]
    counts: tuple[int, ...]  # how often each was seen where it was made
    units: TextUnits = "words"

    def __post_init__(self) -> None:
        if len(self.symbols) != len(self.counts):
            raise ValueError(f"it has {len(self.symbols)} symbols but {len(self.counts)} counts")
        if self.units not in get_args(TextUnits):
            raise ValueError(f"units is {self.units!r} but must be words, tokens or characters")
        if not self.symbols:
            raise ValueError("it has no symbol: write a symbol, a blank and a count a line")
        if len(self._ids) < len(self.symbols):
            twice = next(s for s, count in Counter(self.symbols).items() if count > 1)
            raise ValueError(
                f"{describe(twice)} is there twice, and would have two ids: remove one"
            )
        for symbol in SPECIAL:
            if symbol in self._ids:
                raise ValueError(f"{symbol} is one of the four special symbols: leave its line out")
        for symbol in self.symbols:
            if symbol.split() != [symbol]:
                raise ValueError(f"{describe(symbol)} has a blank in it, as no symbol of texts has")

    def __str__(self) -> str:
        return f"{len(self.symbols):,} {self.units}"

    def __len__(self) -> int:
        """Number of ids, the special ones among them."""
        return len(SPECIAL) + len(self.symbols)

    def symbol(self, i: int) -> str:
        """The symbol with an id."""
        return SPECIAL[i] if i < len(SPECIAL) else self.symbols[i - len(SPECIAL)]

    def id_of(self, symbol: str) -> int | None:
        """The id of a symbol, a special one too; None where it has none."""
        return SPECIAL.index(symbol) if symbol in SPECIAL else self._ids.get(symbol)

    def encode(self, sentence: str) -> list[int]:
        """The ids of a sentence without its ends; UNKNOWN for what has none."""
        find = self._ids.get
        return [find(symbol, UNKNOWN) for symbol in split(sentence, self.units)]

    def decode(self, ids: list[int]) -> str:
        """The sentence of ids."""
        if self.units == "characters":
            return "".join(" " if (s := self.symbol(i)) == DELIMITER else s for i in ids)
        return " ".join(map(self.symbol, ids))

    @property
    def fingerprint(self) -> str:
        """Tells what ids mean from what they mean elsewhere; counts do not matter."""
        content = "\n".join((self.units, *self.symbols))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def lines(self) -> str:
        """The content of its file."""
        pairs = zip(self.symbols, self.counts, strict=True)
        return "".join(f"{symbol} {count}\n" for symbol, count in pairs)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; one text, because 200,000 lines of JSON are slow to read and write."""
        return {"units": self.units, "symbols": self.lines()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Vocabulary":
        """Back from `to_dict`. Raises ValueError."""
        try:
            return of_lines(str(values["symbols"]), values["units"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is no vocabulary of w2v2dist ({error!r})") from None

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols, len(SPECIAL))}


def split(sentence: str, units: TextUnits) -> list[str]:
    """The symbols of a sentence: what stands between blanks, or its characters, with | for blanks
    between words, as alphabets spell it."""
    parts = sentence.split()
    return [*DELIMITER.join(parts)] if units == "characters" else parts


def of_lines(content: str, units: TextUnits = "words") -> Vocabulary:
    """The vocabulary of a file's content. Raises ValueError that names the line."""
    symbols: list[str] = []
    counts: list[int] = []
    for number, line in enumerate(content.split("\n"), 1):
        if not (line := line.rstrip("\r ")):
            continue
        match = re.fullmatch(r"(\S+)(?:[ \t](\d+))?( #fairseq:overwrite)?", line)
        if match is None:
            raise ValueError(
                f"line {number} is {line[:80]!r} but must be a symbol, a blank and a count"
            )
        if match[1] in SPECIAL:  # some tools write them; their ids are the same here
            if len(symbols) or SPECIAL.index(match[1]) != number - 1:
                raise ValueError(
                    f"line {number} is {match[1]}, a special symbol that is not in its place: "
                    f"{', '.join(SPECIAL)} have the ids 0 to 3, written or not"
                )
            continue
        symbols.append(match[1])
        counts.append(int(match[2] or 1))
    return Vocabulary(symbols=tuple(symbols), counts=tuple(counts), units=units)


def read_vocabulary(path: Path, units: TextUnits = "words") -> Vocabulary:
    """The vocabulary of a file. Raises ValueError or FileNotFoundError that name it."""
    try:
        return of_lines(path.read_text(encoding="utf-8-sig"), units)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except ValueError as error:
        raise ValueError(f"the vocabulary in {path} cannot be used: {error}") from None


def of_counts(counts: Mapping[str, int], min_count: int, units: TextUnits) -> Vocabulary:
    """The symbols seen at least `min_count` times, the most frequent first."""
    kept = sorted((-n, symbol) for symbol, n in counts.items() if n >= min_count)
    kept = [pair for pair in kept if pair[1] not in SPECIAL]
    return Vocabulary(
        symbols=tuple(symbol for _, symbol in kept), counts=tuple(-n for n, _ in kept), units=units
    )
