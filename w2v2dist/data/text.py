"""What is done to a text before it becomes ids: the steps of `data.text`, in the order of its keys.
Shards keep the texts as they came, so every step can be taken back."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

# Punctuation and symbols to Unicode, words to a speaker: only a person can spell them
READ_ALOUD = frozenset("%&@#§‰٪％＆＠＃﹪")
# Signs that people type for an apostrophe, or where their language has a letter like one
APOSTROPHES = frozenset("\u2018\u2019\u201b\u02b9\u2032\uff07\u00b4`\u05f3\u055a")
INSIDE = frozenset("·")  # part of a word between letters (Catalan's l·l)
# Marks that stand inside words and are no letters: Armenian's accents, Hebrew's acronyms
NO_BREAK = frozenset("\u055b\u055c\u055e\u05f4")
LETTERS = frozenset(
    "\u0f0b"
)  # punctuation to Unicode, but what spelling rests on (Tibetan's tsheg)
JOINERS = frozenset("\u200c\u200d")  # of no width, but part of the spelling of Persian, of India
# Of no width, though of other categories than such characters have
IGNORED = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """The normalisation of transcripts; of phones `form` and `replace` alone."""

    form: Literal["NFC", "NFD", "NFKC", "NFKD", "keep"] = "NFC"  # of Unicode, before and after all
    # what stands for what, all at once; Turkish in lower case needs {I: ı}, in upper {i: İ}
    replace: dict[str, str] = field(default_factory=dict)
    # fit: that of the alphabet's letters; keep where it has both, lower where it is made of texts
    # that have both
    case: Literal["fit", "upper", "lower", "keep"] = "fit"
    punctuation: Literal["drop", "keep"] = "drop"  # drop: a blank; what the alphabet has stays
    keep: str = "'"  # characters that are not dropped where an alphabet is made of texts

    def __post_init__(self) -> None:
        if "" in self.replace:
            raise ValueError("replace has '', which stands everywhere: name the text to replace")


def normalize(
    text: str,
    config: TextConfig,
    known: Collection[str] | None = None,
    dropped: Counter[str] | None = None,
) -> str:
    """The text after all steps, words separated by single blanks; of punctuation the `known`
    characters stay (None: `config.keep`). What is dropped is counted in `dropped`, and once more
    with the letters beside it where it stands inside a word."""
    text = composed(text, config.form)
    if config.replace:
        table = {composed(old, config.form): new for old, new in config.replace.items()}
        longest = sorted(table, key=len, reverse=True)
        text = re.sub("|".join(map(re.escape, longest)), lambda found: table[found[0]], text)
    text = in_case(composed(text, config.form), config.case)
    if config.punctuation == "drop":
        text = drop_punctuation(text, config.keep if known is None else known, dropped)
    return " ".join(in_form(text, config.form).split())


def in_form(text: str, form: str) -> str:
    """The text in a form of Unicode; keep: as it is."""
    return text if form == "keep" else unicodedata.normalize(form, text)  # type: ignore[arg-type]


def composed(text: str, form: str) -> str:
    """The text as letters are replaced and change their case: composed, in the form's kind."""
    return in_form(text, {"NFD": "NFC", "NFKD": "NFKC"}.get(form, form))


def in_case(text: str, case: str) -> str:
    """The text in upper or lower case (else as it is), one character for one: ß has no upper case
    of one, İ becomes i."""
    if case == "lower":
        return text.replace("İ", "i").lower()
    if case == "upper":
        return "".join(u if len(u := c.upper()) == 1 else c for c in text)
    return text


def fitting_case(characters: Iterable[str]) -> Literal["upper", "lower", "keep"]:
    """The case of all of these characters that have one; keep where they have both or none."""
    upper = lower = False
    for c in characters:
        upper |= in_case(c, "lower") != c
        lower |= in_case(c, "upper") != c
    return "keep" if upper == lower else "upper" if upper else "lower"


def drop_punctuation(text: str, kept: Collection[str], dropped: Counter[str] | None = None) -> str:
    """Punctuation becomes a blank, what has no width goes (not joiners). An apostrophe is one
    however it was typed; where ‘ is in the text ’ may close a quotation, and is one between letters
    alone."""
    kept, quoted = {*kept}, "\u2018" in text
    out = []
    for i, c in enumerate(text):
        before, after = text[max(0, i - 1) : i], text[i + 1 : i + 2]
        fate = _fate(c, before, after, kept, quoted)
        out.append(fate)
        if dropped is not None and fate in ("", " ") and not c.isspace():
            dropped[c] += 1
            dropped[before + c + after] += _is_letter(before) and _is_letter(after)
    return "".join(out)


def _fate(c: str, before: str, after: str, kept: set[str], quoted: bool) -> str:
    """What becomes of a character between two others: itself, another, a blank or nothing."""
    category, beside = unicodedata.category(c), (_is_letter(before), _is_letter(after))
    inside = all(beside)
    if c in kept or c in READ_ALOUD or c in JOINERS or c in LETTERS or (c in INSIDE and inside):
        return c
    if c == "'" or c in APOSTROPHES:
        if inside or (c in "\u2019\u05f3" and any(beside) and not quoted):
            return "'" if "'" in kept else ""
        return " "
    if c in NO_BREAK or (c == '"' and inside and "\u0590" < before < "\u0600"):
        return ""
    if category == "Cf" or c in IGNORED or "VARIATION SELECTOR" in unicodedata.name(c, ""):
        return ""
    accent = category == "Sk" and (c < "\u0100" or c > "\uff00")  # no tone letter
    return " " if category[0] == "P" or accent or c == "|" else c


def _is_letter(c: str) -> bool:
    return bool(c) and unicodedata.category(c)[0] in "LM"


def describe(symbol: str) -> str:
    """A symbol as a message shows it, with the names of characters that are hard to see."""
    if symbol.isascii() and symbol.isprintable():
        return repr(symbol)
    names = ", ".join(f"U+{ord(c):04X} {unicodedata.name(c, 'without a name')}" for c in symbol)
    return f"{symbol!r} ({names})"


def clean_text(text: str) -> str:
    """English: upper case without accents and punctuation; digits stay: only a person can spell
    them. In other languages accents and marks are letters: leave those to `data.text`."""
    plain = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    kept = (c if c.isalnum() or c == "'" else " " for c in plain)
    # A quotation mark is an apostrophe outside a word: strip it, and keep the one in DON'T.
    return " ".join(word for part in "".join(kept).upper().split() if (word := part.strip("'")))
