"""What is done to a text before it becomes ids: the steps of `data.text`, in the order of its keys.
Shards keep the texts as they came, so every step can be taken back."""

import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

READ_ALOUD = "%&@#‰"  # punctuation to Unicode, words to a speaker: only a person can spell them
JOINERS = (
    "\u200c\u200d"  # of category Cf, but part of the spelling of Persian and of India's scripts
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """The normalisation of transcripts; of phones `replace` and `form` alone."""

    # what stands for what, before all else; Turkish in lower case needs {I: ı}, in upper {i: İ}
    replace: dict[str, str] = field(default_factory=dict)
    form: Literal["NFC", "NFD", "NFKC", "NFKD", "keep"] = "NFC"  # of Unicode
    # fit: that of the alphabet's letters; keep where it has both, lower where it is made of texts
    # that have both
    case: Literal["fit", "upper", "lower", "keep"] = "fit"
    punctuation: Literal["drop", "keep"] = "drop"  # drop: a blank, but what the alphabet has stays
    keep: str = "'"  # characters that are not dropped

    def __post_init__(self) -> None:
        if "" in self.replace:
            raise ValueError("replace has '', which stands everywhere: name the text to replace")


def normalize(text: str, config: TextConfig, known: Collection[str] = ()) -> str:
    """The text after all steps, words separated by single blanks; `known` characters are not
    dropped."""
    for old, new in config.replace.items():
        text = text.replace(old, new)
    if config.form != "keep":
        text = unicodedata.normalize(config.form, text)
    text = in_case(text, config.case)
    if config.punctuation == "drop":
        text = drop_punctuation(text, {*config.keep, *known})
    return " ".join(text.split())


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


def drop_punctuation(text: str, kept: Collection[str]) -> str:
    """Punctuation and accents that stand alone become blanks; what has no width goes, but for
    joiners; a typographic apostrophe between letters is one."""
    out = []
    for i, c in enumerate(text):
        category = unicodedata.category(c)
        if c in kept or c in READ_ALOUD or c in JOINERS:
            out.append(c)
        elif c == "\u2019" and "'" in kept and _is_between_letters(text, i):
            out.append("'")
        elif category[0] == "P" or category == "Sk":
            out.append(" ")
        elif category != "Cf":
            out.append(c)
    return "".join(out)


def _is_between_letters(text: str, i: int) -> bool:
    beside = text[i - 1 : i] + text[i + 1 : i + 2]
    return len(beside) == 2 and all(unicodedata.category(c)[0] in "LM" for c in beside)


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
