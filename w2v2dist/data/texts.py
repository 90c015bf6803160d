"""The texts of shards, and the alphabet that they need."""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from w2v2dist.data.alphabet import DELIMITER, SPECIAL, Alphabet, Units, of_symbols
from w2v2dist.data.audio import BadSample
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.text import TextConfig, fitting_case

RARE = 5  # texts: a symbol of fewer is hardly learned, and often a mistake
ENOUGH = 100  # texts: among fewer, rare means nothing
# Scripts (as the names of their characters begin) that put no blanks between words
WITHOUT_BLANKS = "CJK HIRAGANA KATAKANA BOPOMOFO THAI LAO KHMER MYANMAR TIBETAN JAVANESE".split()
# Scripts with letters that look alike: one in a text of another is a slip of the keyboard
ALIKE = "LATIN CYRILLIC GREEK ARMENIAN CHEROKEE".split()


def read_labels(index: ShardIndex, units: Units) -> Iterator[str]:
    """What every utterance that has a label says: "text", or of phones "phones" (else "text")."""
    reader, reading = ShardReader(index), Alphabet(tokens=SPECIAL, units=units)
    for i in range(len(index)):
        try:
            label = reading.label(reader.labels(i))
        except BadSample:  # training counts it
            continue
        if label:
            yield label


@dataclass(slots=True)
class SymbolCounts:
    """How often each symbol stands in labels, in how many of them, and in which first."""

    reading: Alphabet  # without symbols: its rules make of a label what is counted
    text: TextConfig  # of the alphabet that it makes
    num_labels: int = 0
    occurrences: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    example: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, units: Units, text: TextConfig) -> "SymbolCounts":
        """Without labels so far."""
        steps = dataclasses.replace(text, case="keep") if text.case == "fit" else text
        tokens = (*SPECIAL, DELIMITER)
        return cls(Alphabet(tokens=tokens, delimiter=4, units=units, text=steps), text)

    def add(self, label: str) -> None:
        """Count a label."""
        words = self.reading.normalized(label).split()
        symbols = words if self.reading.units == "phones" else [*"".join(words)]
        self.num_labels += 1
        self.occurrences.update(symbols)
        for symbol in {*symbols}:
            self.labels[symbol] += 1
            self.example.setdefault(symbol, label)

    def alphabet(self) -> Alphabet:
        """Of all symbols, the frequent ones first; among characters with `|`, unless the script has
        no blanks between words. Raises ValueError where there are none."""
        units, found = self.reading.units, self.by_frequency()
        if not found:
            raise ValueError(
                f"none of the {self.num_labels} labels has a symbol: an alphabet is made of texts; "
                "build the shards from transcribed audio, or name an alphabet (data.tokens)"
            )
        if units == "characters":
            if DELIMITER in found:
                raise ValueError(
                    f"a text has {DELIMITER!r}, which stands between words in alphabets: "
                    f"{self.example[DELIMITER]!r}. Let data.text.replace make something else of it"
                )
            if self.main_script() not in WITHOUT_BLANKS:
                found = [DELIMITER, *found]
        return of_symbols(found, units=units, text=self.text)

    def by_frequency(self) -> list[str]:
        """The symbols, the most frequent first."""
        return sorted(self.occurrences, key=lambda s: (-self.occurrences[s], s))

    def doubts(self, symbol: str) -> str:
        """Why a symbol may be a mistake; "" where nothing speaks against it."""
        found = []
        if self.reading.units == "characters":
            found += [doubt for c in symbol if (doubt := _doubt(c))]
            script, main = script_of(symbol), self.main_script()
            if script != main and script in ALIKE and main in ALIKE:
                found.append(f"{script.capitalize()} among {main.capitalize()}: looks like another")
            if {*"Iıİ"} & {symbol} and "ı" in self.occurrences and "I" in self.occurrences:
                found.append("Turkish? its case needs data.text.replace={I: ı}")
        if self.labels[symbol] < RARE and self.num_labels >= ENOUGH:
            found.append("rare")
        return ", ".join(found)

    def main_script(self) -> str:
        """The script of most characters; "" where there are no letters."""
        scripts: Counter[str] = Counter()
        for symbol, count in self.occurrences.items():
            scripts[script_of(symbol)] += count
        del scripts[""]
        return scripts.most_common(1)[0][0] if scripts else ""


def script_of(symbol: str) -> str:
    """The script of a symbol's first character, as its name begins; "" where that is no letter."""
    return unicodedata.name(symbol[0], "").split(" ")[0] if symbol[0].isalpha() else ""


def count_symbols(labels: Iterable[str], units: Units, text: TextConfig) -> SymbolCounts:
    """The symbols of labels. Where `text.case` is fit: as they are where all letters are of one
    case, else in lower case."""
    as_it_is = SymbolCounts.of(units, text)
    lower = SymbolCounts.of(units, dataclasses.replace(text, case="lower"))
    for label in labels:
        as_it_is.add(label)
        if text.case == "fit" and units == "characters":
            lower.add(label)
    cases = {fitting_case(symbol) for symbol in as_it_is.occurrences}
    return lower if lower.num_labels and {"upper", "lower"} <= cases else as_it_is


def _doubt(c: str) -> str:
    if c.isdigit():
        return "a digit: spell numbers as they are spoken"
    if c == "\ufffd":
        return "a character that was lost"
    kinds = {"P": "punctuation", "S": "a sign, no letter", "C": "invisible or unassigned"}
    return kinds.get(unicodedata.category(c)[0], "") if c != "'" else ""
