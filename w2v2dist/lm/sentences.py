"""Sentences of text files, and their words as an alphabet reads them."""

import re
from collections.abc import Iterator

from w2v2dist.data.alphabet import SPECIAL, Alphabet, UnknownSymbolError
from w2v2dist.lm.arpa import MARKS
from w2v2dist.lm.lexicon import spell
from w2v2dist.lm.lines import Told, decoded, lines

RESERVED = frozenset({*SPECIAL, *MARKS})  # no words: they mean something to language models
LONGEST = 1_000_000  # bytes of a line, characters of a sentence: a longer one is no sentence
REMEMBERED = 300_000  # words whose reading is kept: some 100 MB
# A sentence's end, with the quotation marks and brackets that close behind it
END = re.compile(r"[.!?…]+[\"'’”»)\]]*(?=\s)|[。！？]+[」』”’）]*|[؟।۔]+")
# What a full stop stands behind inside a sentence: titles, and (by END's user) single letters
SHORT = frozenset(
    "Mr Mrs Ms Dr St Messrs Prof Rev Hon Capt Col Gen Lieut Sergt Esq No vol pp".split()
)


def sentences(
    path: str, running: bool, told: Told = lambda position: None
) -> Iterator[tuple[int, str]]:
    """The sentences of a file with the number of a line each, what is blank left out: a line each,
    or of `running` text up to . ! ? or an empty line. One that is too long comes cut, but longer
    than LONGEST. Raises ConfigError where the file is damaged or is not UTF-8."""
    found = _running(_texts(path, told)) if running else _texts(path, told)
    return ((number, sentence) for number, sentence in found if sentence.strip())


def _texts(path: str, told: Told) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers."""
    for number, line in enumerate(lines(path, told, LONGEST), 1):
        if len(line) > LONGEST:  # where it was cut there may be half a character
            yield number, line.decode(errors="ignore").ljust(LONGEST + 1, ".")
        else:
            text = decoded(line, path, number)
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def _running(found: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The sentences of lines; up to LONGEST characters are held."""
    part: list[str] = []
    number, size = 0, 0
    for number, text in found:
        ends = not text.strip()
        part.append(text)
        size += len(text) + 1
        if not ends and size <= LONGEST:
            continue
        *whole, rest = split("\n".join(part) + "\n")
        if ends or len(rest) > LONGEST // 2:
            whole, rest = [*whole, rest if ends else rest.ljust(LONGEST + 1, ".")], ""
        yield from ((number, sentence) for sentence in whole)
        part, size = [rest], len(rest)
    yield from ((number, sentence) for sentence in split("\n".join(part) + "\n"))


def split(text: str) -> list[str]:
    """A text cut behind each end of a sentence; the last piece is what follows the last end."""
    out, start = [], 0
    for end in END.finditer(text):
        at = end.end()
        following = text[at : at + 20].lstrip()[:1]
        word = re.split(r"[\s(\[\"“‘]", text[max(start, end.start() - 20) : end.start()])[-1]
        inside = end[0] == "." and (word in SHORT or (len(word) == 1 and word.isalpha()))
        if not inside and not following.islower():
            out.append(text[start:at])
            start = at
    return [*out, text[start:]]


class Reader:
    """Texts as the labels of a training are read (`Alphabet.normalized`), each word only once while
    it is remembered."""

    def __init__(self, alphabet: Alphabet) -> None:
        self.alphabet = alphabet
        replaced = alphabet.text.replace
        blank = any(c.isspace() for old in replaced for c in old)
        # Else a word's reading may depend on others
        self._by_word = (alphabet.has_words or alphabet.units == "phones") and not (
            blank or "\u2018" in "".join(replaced.values())
        )
        self._words: dict[str, list[str]] = {}
        self._plain: set[str] = set()  # that are read as themselves: most, of a text read before
        self._spellings: dict[str, tuple[int, ...] | None] = {}
        self._spelled: set[str] = set()

    def words(self, text: str) -> list[str]:
        """The words of a text; of an alphabet without words all of it as one."""
        if not self._by_word or "\u2018" in text:  # a quotation: it may end words later
            text = self.alphabet.normalized(text)
            split_up = self.alphabet.has_words or self.alphabet.units == "phones"
            return text.split() if split_up else [text] * bool(text)
        known, given = self._words, text.split()
        if self._plain.issuperset(given):
            return given
        out: list[str] = []
        for word in given:
            read = known.get(word)
            if read is None:
                read = self.alphabet.normalized(word).split()
                if len(known) >= REMEMBERED:
                    known.clear()
                    self._plain.clear()
                known[word] = read
                if read == [word]:
                    self._plain.add(word)
            out += read
        return out

    def spelling(self, word: str) -> tuple[int, ...] | None:
        """A word's tokens as a lexicon has them; None where the alphabet does not spell it."""
        if not self._by_word:
            return spell(word, self.alphabet)
        try:
            return self._spellings[word]
        except KeyError:
            if len(self._spellings) >= REMEMBERED:
                self._spellings.clear()
                self._spelled.clear()
            found = self._spellings[word] = spell(word, self.alphabet)
            if found is not None:
                self._spelled.add(word)
            return found

    def spells(self, words: list[str]) -> bool:
        """Whether the alphabet spells all of these words."""
        return self._spelled.issuperset(words) or None not in [*map(self.spelling, words)]

    def strangers(self, word: str) -> tuple[str, ...]:
        """The symbols of a word that the alphabet has not."""
        try:
            self.alphabet.encode(word)
        except UnknownSymbolError as error:
            return error.symbols
        return ()
