"""How words are spoken: by a lexicon's file, or by espeak-ng through phonemizer (an extra)."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2v2dist.config import ConfigError
from w2v2dist.data.text import describe, in_case
from w2v2dist.lm.lines import decoded, lines
from w2v2dist.unsupervised.phone_text import SILENCE, SPECIAL

COMMENT = ";;;"  # of CMUdict
VARIANT = re.compile(r"\(\d+\)$")  # WORD(2), as CMUdict has a word's second pronunciation
STRESS = re.compile(r"(?<=[A-Za-z])[012]$")  # of ARPABET's vowels
FLAG = re.compile(r"\([^()]*\)")  # espeak-ng names the language that it goes on in
INSIDE = "|"  # between the words that espeak-ng makes of one
Phones = tuple[str, ...]
# Languages have 11 to 160 phones; with tones and lengths as others some more
MOST_PHONES = 400
LONGEST_PHONE = 4  # plain letters: iang of Mandarin
FEW, PART = 3, 0.1  # symbols, or of all symbols, that may be longer: noise, breath


@dataclass(slots=True)
class Pronunciations:
    """The phones of words, one pronunciation each; what a person should know of them."""

    phones: dict[str, Phones]
    notes: list[str] = field(default_factory=list)


def read_pronunciations(
    path: str | Path, case: str = "keep", stress: bool = True
) -> Pronunciations:
    """The pronunciations of a file: a word, a tab or blanks, its phones between blanks (also of
    gzip; CMUdict as it is). The first of a word's pronunciations is taken; without `stress` the
    digit behind a vowel is left out. Raises ConfigError that names the line."""
    if not Path(path).is_file():
        wrong = "is a folder" if Path(path).is_dir() else "does not exist"
        raise ConfigError(
            f"the lexicon {str(path)!r} {wrong}: give a file with `word<TAB>phone phone …` "
            "in each line, or let espeak-ng speak the words (--language)"
        )
    found: dict[str, Phones] = {}
    variants = 0
    for number, line in enumerate(lines(path), 1):
        text = unicodedata.normalize("NFC", decoded(line, path, number).removeprefix("\ufeff"))
        if text.startswith(COMMENT) or not text.strip():
            continue
        word, phones = _entry(text, f"{path}, line {number}")
        if not stress:
            phones = tuple(STRESS.sub("", phone) for phone in phones)
        word = in_case(VARIANT.sub("", word), case)
        variants += found.setdefault(word, phones) != phones
    if not found:
        raise ConfigError(
            f"the lexicon {path} has no word: write `word<TAB>phone phone …`, a line each"
        )
    said = f"{variants:,} further pronunciations of words are not used: the first one is"
    return Pronunciations(found, [said] if variants else [])


def _entry(text: str, where: str) -> tuple[str, Phones]:
    """The word and the phones of a line."""
    head, tab, tail = text.partition("\t")
    fields = [head.strip(), *tail.split()] if tab else text.split()
    word, phones = fields[0], tuple(fields[1:])
    if not word or len(word.split()) > 1:
        raise ConfigError(
            f"{where}: the word is {describe(word)} but must be one without blanks: write "
            "`word<TAB>phone phone …`"
        )
    if not phones:
        raise ConfigError(f"{where}: {word!r} has no phones: write them behind it, between blanks")
    wrong = next((p for p in phones if p in (*SPECIAL, SILENCE) or not p.isprintable()), None)
    if wrong is not None:
        raise ConfigError(
            f"{where}: {word!r} has the phone {describe(wrong)}, which is a mark of ours or cannot "
            "be printed: rename or remove it"
        )
    return word, phones


def check_phones(found: Iterable[Phones], what: str) -> None:
    """Raise ConfigError where the phones of words are called as the special symbols are, or are no
    phones but words themselves: there are too many, or many are long. `what` has them, for
    people."""
    counts = Counter(phone for phones in found for phone in phones)
    if special := sorted(counts.keys() & {*SPECIAL, SILENCE}):
        raise ConfigError(
            f"{what} has {' '.join(special)} among its phones, which are no sounds: leave them out "
            f"({SILENCE} is put in by --silence), or call a phone otherwise"
        )
    letters = {p: sum(unicodedata.category(c) in ("Lu", "Ll", "Lo") for c in p) for p in counts}
    long = [phone for phone, _ in counts.most_common() if letters[phone] > LONGEST_PHONE]
    many = len(counts) > MOST_PHONES
    if not many and len(long) <= max(FEW, PART * len(counts)):
        return
    named = ", ".join(map(repr, (long or [phone for phone, _ in counts.most_common()])[:5]))
    why = (
        f"{len(counts):,} different symbols where {MOST_PHONES} are more than any language has"
        if many
        else f"{len(long):,} of {len(counts):,} symbols are longer than {LONGEST_PHONE} letters"
    )
    raise ConfigError(
        f"{what} has words where phones should be ({why}: {named}): write phones between blanks, "
        "or give the text as it is with a lexicon (--lexicon FILE) or a voice (--language NAME)"
    )


def phonemized(words: Collection[str], language: str) -> Pronunciations:
    """The words as espeak-ng speaks them, without stress and marks of other languages; words that
    it cannot read but spells letter by letter have none. Raises ConfigError where the extra or the
    language is missing, or most words are spelled: they are of another alphabet."""
    backend, separator = _espeak(language)
    spoken = backend.phonemize([*words], separator=separator, strip=True)
    found: dict[str, Phones] = {}
    strange = []  # all in the voice of another language, or spelled
    for word, said in zip(words, spoken, strict=True):
        spelled = INSIDE in said and not any(map(str.isdigit, word))
        if spelled or not FLAG.split(said)[0].strip():
            strange.append(word)
        phones = tuple(FLAG.sub(" ", said).replace(INSIDE, " ").split())
        if phones and not spelled:
            found[word] = phones
    if 2 * len(strange) > len(words):
        raise ConfigError(
            f"espeak-ng's {language} reads {len(strange):,} of {len(words):,} words in another "
            f"language or letter by letter ({', '.join(map(repr, strange[:3]))}): the text is in "
            "another alphabet or language; name its own (--language)"
        )
    silent = len(words) - len(found)
    said = f"{silent:,} words are not read but spelled by espeak-ng's {language}: left out"
    return Pronunciations(found, [said] if silent else [])


def _espeak(language: str) -> tuple[Any, Any]:
    """phonemizer's voice of a language, and how it sets phones apart."""
    try:
        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
        from phonemizer.separator import Separator
    except ImportError as error:
        raise ConfigError(
            f"--language needs phonemizer and espeak-ng ({error}): pip install 'w2v2dist[phones]', "
            "or give a lexicon (--lexicon FILE)"
        ) from None
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    known: Iterable[str] = EspeakBackend.supported_languages()
    if language not in known:
        near = [name for name in known if name.split("-")[0] == language.split("-")[0]]
        raise ConfigError(
            f"--language is {language!r}, which espeak-ng does not know: take one of "
            f"{', '.join(sorted(near or known))}"
        )
    voice = EspeakBackend(language, language_switch="keep-flags", words_mismatch="ignore")
    return voice, Separator(phone=" ", word=INSIDE, syllable="")
