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
from w2v2dist.data.text import (
    INSIDE,
    JOINERS,
    LETTERS,
    TextConfig,
    fitting_case,
    in_form,
    normalize,
)

RARE = 5  # texts: a symbol of fewer is hardly learned, and often a mistake
ENOUGH = 20  # texts: among fewer, rare means nothing
MOST_PHONES = 1_000  # more are words
# Scripts (as the names of their characters begin) that put no blanks between words
WITHOUT_BLANKS = (
    "CJK HIRAGANA KATAKANA HALFWIDTH BOPOMOFO THAI LAO KHMER MYANMAR TIBETAN JAVANESE YI"
).split()
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
    # characters that data.text drops, and once more with the letters beside those inside words
    dropped: Counter[str] = field(default_factory=Counter)
    dotless: bool = False  # whether a label has ı or İ, as Turkish and Azeri have

    @classmethod
    def of(cls, units: Units, text: TextConfig) -> "SymbolCounts":
        """Without labels so far."""
        steps = dataclasses.replace(text, case="keep") if text.case == "fit" else text
        tokens = (*SPECIAL, DELIMITER)
        return cls(Alphabet(tokens=tokens, delimiter=4, units=units, text=steps), text)

    def add(self, label: str) -> None:
        """Count a label."""
        if self.reading.units == "phones":
            symbols = self.reading.normalized(label).split()
        else:
            text = normalize(label, self.reading.text, dropped=self.dropped)
            symbols = [*"".join(text.split())]
            # Without blanks a mark may meet another letter
            joined = in_form("".join(symbols), self.text.form)
            symbols += {*joined} - {*symbols}
            self.dotless |= not {*"ıİ"}.isdisjoint(label)
        self.num_labels += 1
        self.occurrences.update(symbols)
        for symbol in {*symbols}:
            self.labels[symbol] += 1
            self.example.setdefault(symbol, label)

    def alphabet(self) -> Alphabet:
        """Of all symbols, the frequent ones first; among characters with `|`, unless the script has
        no blanks between words. Raises ValueError where there are none, or what cannot be one."""
        units, found = self.reading.units, self.by_frequency()
        if not found:
            raise ValueError(
                f"none of the {self.num_labels} labels has a symbol: an alphabet is made of texts; "
                "build the shards from transcribed audio, or name an alphabet (data.tokens)"
            )
        if units == "phones" and len(found) > MOST_PHONES:
            raise ValueError(
                f"the labels have {len(found)} different symbols, too many for phones: do the "
                "shards hold words? (data.units=characters)"
            )
        for taken in SPECIAL if units == "phones" else (DELIMITER,):
            if taken in found:
                raise ValueError(
                    f"a label has {taken!r}, which means something else in alphabets: "
                    f"{self.example[taken]!r}. Let data.text.replace make something else of it"
                )
        if units == "characters" and self.puts_blanks():
            found = [DELIMITER, *found]
        return of_symbols(found, units=units, text=self.text)

    def by_frequency(self) -> list[str]:
        """The symbols, the most frequent first."""
        return sorted(self.occurrences, key=lambda s: (-self.occurrences[s], s))

    def scripts(self) -> Counter[str]:
        """How many letters are of each script."""
        out: Counter[str] = Counter()
        for symbol, count in self.occurrences.items():
            if script := script_of(symbol):
                out[script] += count
        return out

    def puts_blanks(self) -> bool:
        """Whether most letters are of scripts with blanks between words."""
        scripts = self.scripts()
        return 2 * sum(scripts[s] for s in WITHOUT_BLANKS) < max(1, scripts.total())

    def doubts(self) -> dict[str, str]:
        """Of symbols that may be mistakes: why."""
        scripts = self.scripts()
        main = scripts.most_common(1)[0][0] if scripts else ""
        out = {}
        for symbol in self.by_frequency():
            found = []
            if self.reading.units == "characters":
                found += [doubt for c in symbol if (doubt := _doubt(c))]
                script = script_of(symbol)
                if script != main and script in ALIKE and main in ALIKE:
                    found.append(f"{script.capitalize()} among {main.capitalize()} letters")
                if self.dotless and symbol in "Iıİi" and "I" not in self.text.replace:
                    found.append("Turkish? Its lower case needs data.text.replace={I: ı, İ: i}")
            if self.labels[symbol] < RARE and self.num_labels >= ENOUGH:
                found.append("rare")
            if found:
                out[symbol] = ", ".join(found)
        return out


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
    if c.isdigit() or (unicodedata.numeric(c, None) is not None and script_of(c) != "CJK"):
        return "a number: spell it as it is spoken"
    if c == "\ufffd":
        return "a character that was lost"
    if c == "\u0640":
        return "only stretches a word: let data.text.replace remove it"
    if c in LETTERS or c in JOINERS or c in INSIDE or c == "'":
        return ""
    if (c.isalpha() and len(unicodedata.normalize("NFKC", c)) != 1) or c in "\u0132\u0133":
        return "several letters in one: data.text.form=NFKC takes it apart"
    kinds = {"P": "punctuation", "S": "a sign, no letter", "C": "invisible or unassigned"}
    tone = unicodedata.category(c) == "Sk"
    return "" if tone else kinds.get(unicodedata.category(c)[0], "")
