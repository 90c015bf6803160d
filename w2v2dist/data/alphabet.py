"""Alphabets: from texts to token ids and back, in any language, in characters or phones."""

import dataclasses
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from w2v2dist.config import from_dict
from w2v2dist.data.text import (
    READ_ALOUD,
    TextConfig,
    describe,
    fitting_case,
    in_form,
    normalize,
)

Units = Literal["characters", "phones"]
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # <pad> is the CTC blank
DELIMITER = "|"  # between words
SPELLED_OUT = READ_ALOUD | {*"$€£¥+=°"}  # signs that stand for words
LETTERS = tuple("|ETAONIHSRDLUMWCFGYPBVK'XJQZ")  # the order of fairseq's dict.ltr.txt

# TIMIT's 61 symbols, or 48, to the 39 classes that are scored (Lee & Hon, 1989): the first of each
# group stands for all of it; q is deleted.
FOLDED = """aa ao, ah ax ax-h, er axr, hh hv, ih ix, l el, m em, n en nx, ng eng, sh zh, uw ux,
sil h# pau epi bcl dcl gcl pcl tcl kcl cl vcl"""
KEPT = "ae aw ay b ch d dh dx eh ey f g iy jh k ow oy p r s t th uh v w y z"
FOLD = {p: g.split()[0] for g in [*FOLDED.split(","), *KEPT.split()] for p in g.split()}
PHONES = tuple(sorted({*FOLD.values()}))


class UnknownSymbolError(ValueError):
    """A text with symbols that the alphabet has not; `symbols` are they."""

    def __init__(self, symbols: Sequence[str], hint: str) -> None:
        shown = ", ".join(describe(symbol) for symbol in symbols[:5])
        more = f" and {len(symbols) - 5} more" if len(symbols) > 5 else ""
        what = "is" if len(symbols) == 1 else "are"
        super().__init__(f"its label holds {shown}{more}, which {what} not in the alphabet: {hint}")
        self.symbols = tuple(symbols)


@dataclass(frozen=True, kw_only=True)
class Alphabet:
    """The symbols of a model's outputs: the place in `tokens` is the id. `special` ids stand for no
    text and are never produced by `encode`; `blank`, that of CTC, is one of them."""

    tokens: tuple[str, ...]
    blank: int = 0
    special: frozenset[int] = frozenset(range(len(SPECIAL)))
    delimiter: int | None = None  # between words; None: blanks in texts mean nothing
    units: Units = "characters"  # of one written text; phones are separated by blanks
    folding: Literal["timit"] | None = None
    text: TextConfig = dataclasses.field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        twice = [token for token, count in Counter(self.tokens).items() if count > 1]
        if twice:
            raise ValueError(f"{describe(twice[0])} is there twice, and would have two ids")
        places = range(len(self.tokens))
        for what, i in (("blank", self.blank), ("delimiter", self.delimiter)):
            if (what == "blank" or i is not None) and not (isinstance(i, int) and i in places):
                raise ValueError(
                    f"its {what} is {i!r} but must be an id from 0 to {len(places) - 1}"
                )
        if self.blank not in self.special or not self.special <= {*places}:
            raise ValueError("its special ids do not name the blank and tokens that are there")
        if self.delimiter in self.special:
            raise ValueError(f"its delimiter of words, {self.delimiter}, is a special id")
        if self.units not in get_args(Units) or self.folding not in (None, "timit"):
            raise ValueError(f"its units are {self.units!r}, its folding {self.folding!r}")
        if self.text.case == "fit":
            case = fitting_case(token for token in self._ids if len(token) == 1)
            object.__setattr__(self, "text", dataclasses.replace(self.text, case=case))

    def __str__(self) -> str:
        words = ", in words" if self.has_words else ""
        return f"{len(self._ids)} {self.units}{words}, {self.num_tokens} outputs"

    @property
    def num_tokens(self) -> int:
        """Size of the output layer."""
        return len(self.tokens)

    @property
    def symbols(self) -> list[str]:
        """All but the special tokens, in the order of their ids."""
        return [token for i, token in enumerate(self.tokens) if i not in self.special]

    @property
    def has_words(self) -> bool:
        """Whether its texts have words that can be counted."""
        return self.units == "characters" and self.delimiter is not None

    @property
    def error_rates(self) -> tuple[str, ...]:
        """Its error rates, the one to choose a checkpoint by first."""
        if self.units == "phones":
            return ("per",)
        return ("wer", "cer") if self.has_words else ("cer",)

    def label(self, labels: Mapping[str, Any]) -> str | None:
        """The text of an utterance's labels that is encoded: "text", of phones "phones" first."""
        names = ("phones", "text") if self.units == "phones" else ("text",)
        return next((str(labels[name]) for name in names if labels.get(name)), None)

    def normalized(self, text: str) -> str:
        """The text as `encode` reads it."""
        if self.units == "characters":
            text = normalize(text, self.text, self._known if self._ids else None)
            return text if self.has_words else in_form("".join(text.split()), self.text.form)
        plain = dataclasses.replace(self.text, case="keep", punctuation="keep")
        phones = normalize(text, plain).split()
        if self.folding == "timit":
            phones = [FOLD.get(p, p) for p in (p.lower() for p in phones) if p != "q"]
        return " ".join(phones)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, [] of an empty one. Raises UnknownSymbolError."""
        if strangers := self._strangers(text):
            raise UnknownSymbolError(strangers, self._hint(text, strangers))
        ids = [[self._ids[s] for s in word] for word in self._split(text)]
        if self.has_words and self.delimiter is not None:
            return [i for word in ids for i in (self.delimiter, *word)][1:]
        return [i for word in ids for i in word]

    def decode(self, ids: Iterable[int], collapse: bool = True) -> str:
        """Ids to text; `collapse` merges repeats first, as in a frame-by-frame CTC path."""
        path = [i for i, _ in itertools.groupby(ids)] if collapse else ids
        out = (
            " " if i == self.delimiter else self.tokens[i] for i in path if i not in self.special
        )
        return " ".join((" " if self.units == "phones" else "").join(out).split())

    def agrees(self, other: "Alphabet") -> bool:
        """Whether the same id means the same in both: a head of one serves the other."""
        return self.num_tokens == other.num_tokens and self._meanings == other._meanings

    def check(self) -> "Alphabet":
        """Itself. Raises ValueError where a symbol can never be found in a text."""
        if not self._ids:
            raise ValueError("the alphabet has no symbol beside the special ones")
        for symbol in self._ids:
            found = self.normalized(symbol)
            if found != symbol or len(symbol.split()) != 1:
                became = f"data.text makes {describe(found)} of it" if found else "it is blank"
                became = "it has a blank" if found == symbol else became
                raise ValueError(
                    f"the alphabet has {describe(symbol)}, which no text can match: {became}. "
                    "Change the symbol, or data.text (form, case, punctuation, keep)"
                )
        return self

    def resized(self, num_tokens: int, source: str) -> "Alphabet":
        """For an output layer of another size: special ids are left out or put at the end. Raises
        ValueError where a symbol would be lost."""
        if lost := [token for token, i in self._ids.items() if i >= num_tokens]:
            raise ValueError(
                f"{source} has {num_tokens} outputs but its alphabet {self.num_tokens} symbols, "
                f"{', '.join(map(describe, lost[:5]))} among those beyond: it is another model's"
            )
        if max(self.blank, self.delimiter or 0) >= num_tokens:
            raise ValueError(
                f"{source} has {num_tokens} outputs, and no blank or delimiter among them"
            )
        unused = (f"<unused-{i}>" for i in range(self.num_tokens, num_tokens))
        ids = {*self.special, *range(self.num_tokens, num_tokens)}
        tokens = (*self.tokens[:num_tokens], *unused)
        special = frozenset(i for i in ids if i < num_tokens)
        return dataclasses.replace(self, tokens=tokens, special=special)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            **dataclasses.asdict(self),
            "tokens": [*self.tokens],
            "special": sorted(self.special),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Alphabet":
        """Back from `to_dict`. Raises ValueError where it does not hold together."""
        try:
            rest = {k: v for k, v in values.items() if k not in ("tokens", "special", "text")}
            tokens, special = tuple(map(str, values["tokens"])), frozenset(values["special"])
            return cls(
                tokens=tokens, special=special, text=from_dict(TextConfig, values["text"]), **rest
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no alphabet of w2v2dist ({error!r})") from None

    @cached_property
    def _ids(self) -> dict[str, int]:
        skip = {*self.special, self.delimiter}
        return {token: i for i, token in enumerate(self.tokens) if i not in skip}

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(token for token in self._ids if len(token) == 1)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """The longest symbol first, then any character."""
        symbols = sorted(self._ids, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, symbols), "."]), re.DOTALL)

    @cached_property
    def _meanings(self) -> tuple[Any, ...]:
        spoken = tuple(sorted((i, token) for token, i in self._ids.items()))
        return self.blank, self.delimiter, self.units, spoken

    def _split(self, text: str) -> list[list[str]]:
        """The symbols of each word."""
        words = self.normalized(text).split()
        if self.units == "phones":
            return [[phone] for phone in words]
        return [self._pattern.findall(word) for word in words]

    def _strangers(self, text: str) -> list[str]:
        """The symbols that it has not, each once."""
        return [*{s: None for word in self._split(text) for s in word if s not in self._ids}]

    def _hint(self, text: str, strangers: list[str]) -> str:
        """What to do about them."""
        if self.folding == "timit":
            return "use TIMIT's 61 symbols or their 39 classes, or another data.tokens"
        forms = [("form", form) for form in ("NFC", "NFD", "keep")]
        for key, value in (*forms, ("case", "upper"), ("case", "lower")):
            steps = from_dict(TextConfig, {**dataclasses.asdict(self.text), key: value})
            if not dataclasses.replace(self, text=steps)._strangers(text):
                return f"with data.text.{key}={value} it is"
        if any(unicodedata.numeric(s[0], None) is not None or s in SPELLED_OUT for s in strangers):
            return "spell it in words, as it is spoken"
        return (
            "spell it otherwise, let data.text.replace do so, or take an alphabet that has it "
            "(data.tokens=FILE; auto has the symbols of data.train)"
        )


def of_symbols(
    symbols: Iterable[str], *, units: Units = "characters", text: TextConfig | None = None
) -> Alphabet:
    """The special tokens, then these; among characters `|` is the delimiter of words."""
    tokens = (*SPECIAL, *symbols)
    delimited = units == "characters" and DELIMITER in tokens
    return Alphabet(
        tokens=tokens,
        delimiter=tokens.index(DELIMITER) if delimited else None,
        units=units,
        text=text or TextConfig(),
    )


def alphabet(name: str, text: TextConfig | None = None) -> Alphabet:
    """The alphabet called "letters" (LibriSpeech's 26, apostrophe, `|`) or "phones" (TIMIT's 39
    classes). Raises ValueError for another name."""
    if name not in ("letters", "phones"):
        raise ValueError(f"tokens is {name!r} but must be letters or phones")
    if name == "letters":
        return of_symbols(LETTERS, text=text)
    return dataclasses.replace(of_symbols(PHONES, units="phones", text=text), folding="timit")
