"""Words of written text for a lexicon: which characters stay, which words are worth a
pronunciation, and which phones are frequent enough."""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from w2v2dist.config import ConfigError
from w2v2dist.data.text import APOSTROPHES, in_case
from w2v2dist.data.texts import script_of
from w2v2dist.unsupervised.pronunciation import Phones, Pronunciations
from w2v2dist.unsupervised.text_language import OnlyLanguage

KEPT = "'-"  # beside letters, digits and marks
TYPED = re.compile(rf"(?<=\w)[{''.join(sorted(APOSTROPHES))}](?=\w)")
DIGITS = re.compile(r"\d{5}")
BETWEEN = "|"  # between the words of a text of phones
LOOKED_AT = 10_000  # words that tell a text's script
Case = Literal["keep", "lower", "upper"]
DASHES, EMPTY, FOREIGN = "---", "no word", "another language"
RARE, UNSPOKEN, PRUNED = "a rare word", "a word outside the lexicon", "a word with a rare phone"


class _Kept(dict[int, int | str]):
    """For `str.translate`: what is kept as it is, all else as a blank."""

    def __missing__(self, code: int) -> int | str:
        kept = unicodedata.category(chr(code))[0] in "LNM" or chr(code) in KEPT
        self[code] = found = code if kept else " "
        return found


_KEPT = _Kept()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How lines become words: written ones, or those of a text of phones (`a t | ʃ a`)."""

    case: Case = "keep"
    phones: bool = False
    only: OnlyLanguage | None = None  # sentences of others are left out

    def words(self, line: str) -> list[str] | str:
        """The words of a line; else why it is left out."""
        if self.phones:
            found = [" ".join(word.split()) for word in line.split(BETWEEN)]
            return [word for word in found if word] or EMPTY
        if not line.isascii():
            line = unicodedata.normalize("NFC", TYPED.sub("'", line))
        if "---" in line:
            return DASHES
        words = in_case(line, self.case).translate(_KEPT).split()
        out = [stripped for word in words if (stripped := word.strip("-")).strip("'")]
        if out and self.only is not None and not self.only(" ".join(out)):
            return FOREIGN
        return out or EMPTY


@dataclass(slots=True)
class Counted:
    """What a text is made of."""

    words: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)  # lines by reason
    num_lines: int = 0

    def add(self, other: "Counted") -> None:
        """The counts of another part of it."""
        self.words.update(other.words)
        self.left_out.update(other.left_out)
        self.num_lines += other.num_lines


def count_words(sentences: Iterable[str], reading: Reading) -> Counted:
    """The words of sentences."""
    out = Counted()
    for sentence in sentences:
        out.num_lines += 1
        words = reading.words(sentence)
        if isinstance(words, str):
            out.left_out[words] += 1
        else:
            out.words.update(words)
    return out


def worth_speaking(words: Mapping[str, int], min_count: int) -> list[str]:
    """The words that are there so often, without long numbers; the frequent ones first."""
    often = [w for w, n in words.items() if n >= min_count and not DIGITS.search(w)]
    return sorted(often, key=lambda w: (-words[w], w))


@dataclass(frozen=True, slots=True)
class Spoken:
    """The words that can be spoken in frequent phones. `counts`: the phones by falling count over
    the list of words; `reasons`: why other words of the list are out."""

    phones: dict[str, Phones]
    counts: dict[str, int]
    pruned: dict[str, int]  # phones
    reasons: dict[str, str]


def prune(words: list[str], lexicon: Mapping[str, Phones], min_phones: int) -> Spoken:
    """Leave out phones that the list of words has less than `min_phones` times, and every word with
    one. Raises ConfigError where none is left."""
    known = {word: lexicon[word] for word in words if word in lexicon}
    reasons = {word: UNSPOKEN for word in words if word not in lexicon}
    counts = Counter(phone for phones in known.values() for phone in phones)
    rare = {phone: n for phone, n in counts.most_common() if n < min_phones}
    kept = {w: phones for w, phones in known.items() if not rare.keys() & {*phones}}
    reasons |= {word: PRUNED for word in known.keys() - kept.keys()}
    if not kept:
        raise ConfigError(
            f"no word is left: of the {len(counts)} phones of the {len(known):,} words in the list "
            f"{len(rare)} are there less than --min-phones {min_phones} times (the most frequent "
            f"one {max(counts.values(), default=0):,} times; words are counted once each, however "
            f"often the text has them): give more text, or lower it (--min-phones "
            f"{max(1, max(counts.values(), default=0) // 50)})"
        )
    used = {phone for phones in kept.values() for phone in phones}
    order = sorted(used, key=lambda phone: (-counts[phone], phone))
    return Spoken(kept, {phone: counts[phone] for phone in order}, rare, reasons)


def check_alphabet(words: Mapping[str, int], lexicon: Pronunciations, name: str) -> None:
    """Raise ConfigError where a lexicon has next to none of a text's words: it is of another
    alphabet, another case or another language."""
    total = sum(words.values())
    known = sum(count for word, count in words.items() if word in lexicon.phones)
    if not total or 2 * known > total:
        return
    theirs, ours = _script(lexicon.phones), _script(words)
    what = f"the lexicon {name} has {known:,} of the text's {total:,} words"
    if theirs and ours and theirs != ours:
        raise ConfigError(
            f"{what}: it is written in {theirs.capitalize()} letters and the text in "
            f"{ours.capitalize()} ones: give the lexicon of the text's language"
        )
    cases: tuple[Case, ...] = ("lower", "upper")
    for case in cases:
        found = sum(n for word, n in words.items() if in_case(word, case) in lexicon.phones)
        if 2 * found > total:
            raise ConfigError(f"{what}, in {case} case {found:,}: add --case {case}")
    if not known:
        raise ConfigError(f"{what}: it is of another language, or the text is not of words")


def _script(words: Mapping[str, object]) -> str:
    """The script of most letters of (the first) words; "" where they have none."""
    first = itertools.islice(words, LOOKED_AT)
    of_letters = Counter(script_of(letter) for word in first for letter in word)
    of_letters.pop("", None)
    return of_letters.most_common(1)[0][0] if of_letters else ""
