"""Lexica: words to tokens, from files and by the alphabet."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import EXAMPLES, fuzz
from w2v2dist.data.alphabet import Alphabet, alphabet, of_symbols
from w2v2dist.lm.lexicon import Lexicon, read_lexicon, write_lexicon

LETTERS = alphabet("letters")
# As Hugging Face's tokenizers may have it: the delimiter is a blank, the specials stand elsewhere
BLANK = Alphabet(tokens=("a", "b", " ", "<pad>"), blank=3, special=frozenset({3}), delimiter=2)


def lexicon(content: str | bytes, tmp_path: Path, letters: Alphabet = LETTERS) -> Lexicon:
    path = tmp_path / "lexicon.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_lexicon(path, letters)


def test_words_and_their_spellings(tmp_path: Path) -> None:
    content = "THE\tT H E |\nA\tA |\n\nTHE\tD E |\r\nTHE\tT H E |\n  \nTOM'S T O M ' S\n"
    found = lexicon(content, tmp_path)
    t, h, e, d, a, end = (LETTERS.tokens.index(x) for x in "THEDA|")
    assert found.spellings["THE"] == [(t, h, e, end), (d, e, end)]
    assert found.spellings["A"] == [(a, end)]
    assert found.spellings["TOM'S"][0][-1] == end, "the delimiter is added where a file has none"
    assert [*found.spellings] == ["THE", "A", "TOM'S"]
    assert lexicon(gzip.compress(content.encode()), tmp_path) == found
    assert lexicon(b"\xef\xbb\xbf" + content.encode(), tmp_path) == found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = Lexicon.from_words(
        ["AB", "ÉTÉ", "B", "B", "<s>", "A-B", "...", "</s>", "<unk>"], LETTERS
    )
    assert [*found.spellings] == ["AB", "B"]
    assert found.left_out == 3  # É; two words; nothing
    found.spellings["AB"].append((7, 4))
    write_lexicon(tmp_path / "l.txt", found, LETTERS)
    assert (tmp_path / "l.txt").read_text() == "AB\tA B |\nAB\tA |\nB\tB |\n"
    assert read_lexicon(tmp_path / "l.txt", LETTERS).spellings == found.spellings
    with pytest.raises(ValueError, match="a word is 'A B' but must be without blanks"):
        write_lexicon(tmp_path / "m.txt", Lexicon({"A B": [(7, 4)]}), LETTERS)
    assert [p.name for p in tmp_path.iterdir()] == ["l.txt"]


def test_a_lower_case_model_is_spelled_in_the_alphabets_case() -> None:
    assert Lexicon.from_words(["ab"], LETTERS).spellings == {"ab": [(*LETTERS.encode("AB"), 4)]}


def test_a_delimiter_of_another_name(tmp_path: Path) -> None:
    found = Lexicon.from_words(["ab", "ba", "c"], BLANK)
    assert found.spellings == {"ab": [(0, 1, 2)], "ba": [(1, 0, 2)]}
    assert found.left_out == 1
    write_lexicon(tmp_path / "l.txt", found, BLANK)
    assert (tmp_path / "l.txt").read_text() == "ab\ta b |\nba\tb a |\n"
    assert read_lexicon(tmp_path / "l.txt", BLANK).spellings == found.spellings
    named = of_symbols(["|", "a"])
    assert lexicon("a\ta |\n", tmp_path, named).spellings == {"a": [(5, 4)]}
    both = Alphabet(tokens=("<pad>", " ", "|"), special=frozenset({0}), delimiter=1)
    with pytest.raises(ValueError, match=r"has '\|' beside its delimiter"):
        write_lexicon(tmp_path / "m.txt", Lexicon({"x": [(2, 1)]}), both)


def test_without_words(tmp_path: Path) -> None:
    """Scripts without blanks, and phones: no delimiter."""
    signs = of_symbols("日本")
    assert Lexicon.from_words(["日本", "英"], signs) == Lexicon({"日本": [(4, 5)]}, left_out=1)
    phones = alphabet("phones")
    found = lexicon("THE dh ah\nTHE dh iy\n", tmp_path, phones)
    assert [phones.decode(s, collapse=False) for s in found.spellings["THE"]] == ["dh ah", "dh iy"]
    with pytest.raises(ValueError, match="phones does not say how words are spelled"):
        Lexicon.from_words(["THE"], phones)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n \n\t\n", "is empty"),
        ("A\tA |\nBÉ\tB É Ü |\n", "line 2: 'BÉ' is spelled with 'É' .*, 'Ü' .*, which are not in"),
        ("A\ta |\n", "spelled with 'a', which is not in the alphabet: .* in upper case"),
        ("A\tA <unk> |\n", "'<unk>', which is not in the alphabet"),
        ("A\tA |\nB\n", "line 2: 'B' has no spelling"),
        (b"A\tA |\nB\xe9\tB |\n", "line 2, is not UTF-8"),
        (b"A\tA \0 |\n", r"'\\x00' .*, which is not in the alphabet"),
        (gzip.compress(b"A\tA |\n" * 99, mtime=0)[:-9], "is damaged"),
    ],
)
def test_bad_files(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        lexicon(content, tmp_path)
    assert "lexicon.txt" in str(error.value)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_mutated_files(examples: int, tmp_path: Path) -> None:
    def read(content: bytes) -> Any:
        return lexicon(content, tmp_path)

    def check(found: Lexicon) -> None:
        spellings = [s for several in found.spellings.values() for s in several]
        assert all(s[-1] == LETTERS.delimiter for s in spellings)

    fuzz(examples, [b"THE\tT H E |\nA\tA |\nB\tB |\n"], read, (ValueError,), check)
