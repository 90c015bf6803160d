"""Lexica: how the words of a language model are spelled in an alphabet's tokens. A file has
`word<TAB>token token … |` in each line, also of gzip; `|` is the delimiter whatever its name in the
alphabet is."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import DELIMITER, Alphabet, UnknownSymbolError
from w2v2dist.data.index_writer import atomic
from w2v2dist.data.text import describe
from w2v2dist.lm.arpa import MARKS
from w2v2dist.lm.lines import decoded, lines

BLANKS = " \t"


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The spellings of words, of which a word may have several: token ids, with the delimiter last
    where the alphabet has words. `left_out`: how many words could not be spelled."""

    spellings: dict[str, list[tuple[int, ...]]]
    left_out: int = 0

    @classmethod
    def from_words(cls, words: Iterable[str], alphabet: Alphabet) -> "Lexicon":
        """Each word spelled by the alphabet; those that it does not spell are left out. The marks
        of language models (<s>, </s>, <unk>) are no words. Raises ConfigError of phones."""
        if alphabet.units == "phones":
            raise ConfigError(
                "an alphabet of phones does not say how words are spelled: give a lexicon "
                "(word<TAB>phone phone …, a line each)"
            )
        spellings: dict[str, list[tuple[int, ...]]] = {}
        left_out = 0
        for word in words:
            if word in spellings or word in MARKS:
                continue
            spelling = spell(word, alphabet)
            if spelling is None:
                left_out += 1
            else:
                spellings[word] = [spelling]
        return cls(spellings, left_out)


def spell(word: str, alphabet: Alphabet) -> tuple[int, ...] | None:
    """A word's tokens, the delimiter last where the alphabet has words; None where it does not
    spell it as one word."""
    try:
        ids = alphabet.encode(word)
    except UnknownSymbolError:
        return None
    if not alphabet.has_words or alphabet.delimiter is None:
        return tuple(ids) or None
    return (*ids, alphabet.delimiter) if ids and alphabet.delimiter not in ids else None


def token_names(alphabet: Alphabet) -> dict[int, str]:
    """The names of the tokens that texts are made of, as files have them between blanks. Raises
    ConfigError where two would have one name, or a name has a blank."""
    names = {i: t for i, t in enumerate(alphabet.tokens) if i not in alphabet.special}
    if alphabet.delimiter is not None:
        names[alphabet.delimiter] = DELIMITER
    if len({*names.values()}) < len(names):
        raise ConfigError(
            f"the alphabet has {DELIMITER!r} beside its delimiter of words, which is written so, "
            "too: rename it"
        )
    for name in names.values():
        if len(name.split()) != 1:
            raise ConfigError(f"the alphabet has {describe(name)}, which has a blank: rename it")
    return names


def read_lexicon(path: str | Path, alphabet: Alphabet) -> Lexicon:
    """The lexicon of a file; identical lines are one, a word with several spellings has all of
    them. Raises ConfigError that names the line, the word and what is wrong."""
    ids = _ids(alphabet)
    spellings: dict[str, list[tuple[int, ...]]] = {}
    for number, line in enumerate(lines(path), 1):
        text = decoded(line, path, number).removeprefix("\ufeff").replace("\t", " ")
        word, *tokens = [field for field in text.split(" ") if field] or [""]
        if not word:
            continue
        strangers = [token for token in dict.fromkeys(tokens) if token not in ids]
        if strangers or not tokens:
            raise ConfigError(f"{path}, line {number}: {_wrong(word, strangers, ids)}")
        spelling = tuple(ids[token] for token in tokens)
        if alphabet.has_words and spelling[-1] != alphabet.delimiter:
            assert alphabet.delimiter is not None
            spelling = (*spelling, alphabet.delimiter)
        known = spellings.setdefault(word, [])
        if spelling not in known:
            known.append(spelling)
    if not spellings:
        raise ConfigError(f"{path} is empty: a lexicon has `word<TAB>token token …` in each line")
    return Lexicon(spellings)


def write_lexicon(path: Path, lexicon: Lexicon, alphabet: Alphabet) -> None:
    """Write it, in its order, whole or not at all. Raises ConfigError of a word with a blank."""
    with atomic(path) as file:
        for line in lexicon_lines(lexicon.spellings, alphabet):
            file.write(line)


def lexicon_lines(
    spellings: Mapping[str, Iterable[tuple[int, ...]]], alphabet: Alphabet
) -> Iterator[bytes]:
    """The lines of a lexicon's file."""
    names = token_names(alphabet)
    for word, all_of_it in spellings.items():
        if not word or {*word} & {*BLANKS, "\n", "\r"}:
            raise ConfigError(f"a word is {describe(word)} but must be without blanks")
        for spelling in all_of_it:
            yield f"{word}\t{' '.join(names[i] for i in spelling)}\n".encode()


def _ids(alphabet: Alphabet) -> dict[str, int]:
    """Token ids by the names that a file may have for them."""
    ids = {t: i for i, t in enumerate(alphabet.tokens) if i not in alphabet.special}
    if alphabet.delimiter is not None:
        ids.setdefault(DELIMITER, alphabet.delimiter)
    return ids


def _wrong(word: str, strangers: list[str], ids: Mapping[str, int]) -> str:
    if not strangers:
        return f"{word!r} has no spelling: write its tokens after it, between blanks"
    shown = ", ".join(map(describe, strangers[:5]))
    more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
    hint = "take the alphabet of the model that the lexicon is for, or correct the line"
    for case, of in (("upper", str.upper), ("lower", str.lower)):
        if all(of(token) in ids for token in strangers):
            hint = f"the alphabet's tokens are in {case} case: write them so"
    what = "is" if len(strangers) == 1 else "are"
    return f"{word!r} is spelled with {shown}{more}, which {what} not in the alphabet: {hint}"
