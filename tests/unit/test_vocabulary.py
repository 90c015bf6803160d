"""Vocabularies: fairseq's files, ids, and what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from w2v2dist.data.vocabulary import (
    UNKNOWN,
    Vocabulary,
    of_counts,
    of_lines,
    read_vocabulary,
    split,
)


@pytest.fixture
def words() -> Vocabulary:
    return of_lines("THE 120\nO'CLOCK 7\nÉTÉ 3\n")


def test_ids_begin_behind_the_special_ones(words: Vocabulary) -> None:
    assert len(words) == 7
    assert [words.symbol(i) for i in range(7)] == [
        "<s>", "<pad>", "</s>", "<unk>", "THE", "O'CLOCK", "ÉTÉ"
    ]  # fmt: skip
    assert words.encode("  THE  ÉTÉ\tof THE\n") == [4, 6, UNKNOWN, 4]
    assert words.encode("<s> </s>") == [UNKNOWN, UNKNOWN]  # of a text they are no marks
    assert words.decode([4, 6, 3]) == "THE ÉTÉ <unk>"
    assert (words.id_of("</s>"), words.id_of("THE"), words.id_of("the")) == (2, 4, None)


def test_characters_are_spelled_as_alphabets_spell(words: Vocabulary) -> None:
    letters = of_lines("| 5\nA 3\nB 1\n", "characters")
    assert split(" AB  A ", "characters") == ["A", "B", "|", "A"]
    ids = letters.encode("AB A C")
    assert ids == [5, 6, 4, 5, 4, UNKNOWN]
    assert letters.decode(ids[:4]) == "AB A"
    assert letters.encode("") == []
    assert split("HH AH0", "tokens") == ["HH", "AH0"]


def test_files_and_json_give_it_back(words: Vocabulary, tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text(words.lines(), encoding="utf-8")
    assert read_vocabulary(tmp_path / "dict.txt") == words
    assert Vocabulary.from_dict(json.loads(json.dumps(words.to_dict()))) == words
    written = "<s> 0\n<pad> 0\n</s> 0\n<unk> 0\n" + words.lines()  # as some tools write it
    assert of_lines("\ufeff".strip("\ufeff") + written) == words
    assert of_lines("THE\nO'CLOCK\nÉTÉ\r\n").fingerprint == words.fingerprint  # without counts
    other = [of_lines("O'CLOCK 7\nTHE 120\nÉTÉ 3\n"), of_lines(words.lines(), "tokens")]
    assert len({words.fingerprint, *(v.fingerprint for v in other)}) == 3


def test_made_of_counts() -> None:
    counts = {"B": 2, "A": 2, "C": 9, "D": 1, "<unk>": 50}
    made = of_counts(counts, 2, "words")
    assert (made.symbols, made.counts) == (("C", "A", "B"), (9, 2, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it has no symbol"),
        ("A 1\nB x\n", "line 2 is 'B x' but must be a symbol, a blank and a count"),
        ("A 1\nA 2\n", "'A' is there twice"),
        ("A 1\n</s> 4\n", "line 2 is </s>, a special symbol that is not in its place"),
        ("</s> 4\nA 1\n", "line 1 is </s>, a special symbol that is not in its place"),
    ],
)
def test_files_that_are_none(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text(content)
    with pytest.raises(
        ValueError, match=f"the vocabulary in .*dict.txt cannot be used: .*{message}"
    ):
        read_vocabulary(path)


def test_mistakes_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_bytes("É 1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_vocabulary(tmp_path / "dict.txt")
    with pytest.raises(FileNotFoundError):
        read_vocabulary(tmp_path / "none.txt")
    for values in ({}, {"symbols": "A 1\n", "units": "sentences"}, {"units": "words"}):
        with pytest.raises(ValueError, match=r"no vocabulary of w2v2dist|units is 'sentences'"):
            Vocabulary.from_dict(values)
    with pytest.raises(ValueError, match="has a blank in it"):
        Vocabulary(symbols=("A B",), counts=(1,))
    with pytest.raises(ValueError, match="1 symbols but 2 counts"):
        Vocabulary(symbols=("A",), counts=(1, 2))
