"""Texts for language models: read as labels are, with vocabulary and lexicon."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import EXAMPLES, fuzz
from w2v2dist.cli import main
from w2v2dist.data.alphabet import Alphabet, alphabet, of_symbols
from w2v2dist.data.alphabet_file import write_alphabet
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.text import TextConfig
from w2v2dist.data.texts import read_labels
from w2v2dist.lm.lexicon import read_lexicon
from w2v2dist.lm.sentences import LONGEST, Reader, sentences, split

LETTERS = alphabet("letters")
BOOK = """The quick brown fox—it's “quick”—jumps.
O'Brien's dog, ’tis said, sleeps!

He paid 40 pounds.
Naïve?
"""


def lm_text(tmp_path: Path, content: str | bytes, *options: str) -> dict[str, Any]:
    """The summary of `lm text`; its files are in lm/."""
    (tmp_path / "book.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    where = [str(tmp_path / "book.txt"), "--output", str(tmp_path / "lm")]
    assert main(["lm", "text", *where, *options]) == 0
    summary: dict[str, Any] = json.loads((tmp_path / "lm/summary.json").read_text())
    return summary


def written(tmp_path: Path, name: str) -> list[str]:
    return (tmp_path / "lm" / name).read_text().splitlines()


def test_text_vocabulary_lexicon_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = lm_text(tmp_path, BOOK)
    text = written(tmp_path, "text.txt")
    assert text == ["THE QUICK BROWN FOX IT'S QUICK JUMPS", "O'BRIEN'S DOG 'TIS SAID SLEEPS"]
    assert written(tmp_path, "dict.txt")[:3] == ["QUICK 2", "'TIS 1", "BROWN 1"]
    lexicon = read_lexicon(tmp_path / "lm/lexicon.txt", LETTERS)
    assert lexicon.spellings["IT'S"] == [(*LETTERS.encode("IT'S"), 4)]
    assert written(tmp_path, "lexicon.txt")[0] == "QUICK\tQ U I C K |"
    assert [*lexicon.spellings] == [x.split()[0] for x in written(tmp_path, "dict.txt")]
    alphabet_of_it = summary.pop("alphabet")
    assert Alphabet.from_dict(alphabet_of_it) == LETTERS
    assert summary == {
        "units": "words",
        "sentences": 2,
        "words": 12,
        "distinct_words": 11,
        "kept_words": 11,
        "coverage": 1.0,
        "min_count": 1,
        "max_words": None,
        "left_out": {"symbols outside the alphabet": 2},
        "strangers": {"4": 1, "0": 1, "Ï": 1},
        "sources": [str(tmp_path / "book.txt")],
    }
    shown = capsys.readouterr().out
    assert "2 sentences left out: 2 with symbols outside the alphabet" in shown
    assert "'4' (1)" in shown
    names = ["dict.txt", "lexicon.txt", "summary.json", "text.txt"]
    assert sorted(p.name for p in (tmp_path / "lm").iterdir()) == names


def test_vocabulary_is_cut(tmp_path: Path) -> None:
    summary = lm_text(tmp_path, "C B A\nA B D\nA\n", "--max-words", "3", "--min-count", "1")
    assert written(tmp_path, "dict.txt") == ["A 3", "B 2", "C 1"]
    assert (summary["kept_words"], summary["coverage"]) == (3, round(6 / 7, 6))
    (tmp_path / "lm/summary.json").unlink()
    lm_text(tmp_path, "C B A\nA B D\nA\n", "--min-count", "2")
    assert written(tmp_path, "dict.txt") == ["A 3", "B 2"]
    assert written(tmp_path, "lexicon.txt") == ["A\tA |", "B\tB |"]


def test_unspellable_words_may_stay_and_are_unknown(tmp_path: Path) -> None:
    summary = lm_text(tmp_path, BOOK + "a <s> b\n<unk>\n", "--keep-unspellable")
    assert (
        written(tmp_path, "text.txt")[2:] == ["HE PAID 40 POUNDS", "NAÏVE", "A <S> B", "<UNK>"][:3]
    )
    known = {line.split()[0] for line in written(tmp_path, "dict.txt")}
    assert {"HE", "PAID", "POUNDS"} < known
    assert not {"40", "NAÏVE", "<S>"} & known
    assert summary["distinct_words"] == len(known) + 3
    marks = "a mark of language models (</s> <UNK> <pad> <s> <unk>)"
    assert summary["left_out"] == {marks: 1}


def test_running_text(tmp_path: Path) -> None:
    text = "Mr. Smith met J. S. Bach\nat home '. He said “Go!” and\nwent. \n\nA title\n\nIs it? Yes"
    lm_text(tmp_path, text, "--running")
    assert written(tmp_path, "text.txt") == [
        "MR SMITH MET J S BACH AT HOME",
        "HE SAID GO AND WENT",
        "A TITLE",
        "IS IT",
        "YES",
    ]


def test_other_scripts_end_their_sentences() -> None:
    assert split("你好。我来了！ 好") == ["你好。", "我来了！", " 好"]
    assert split("क्या? हाँ। और") == ["क्या?", " हाँ।", " और"]


def test_tokens_of_characters(tmp_path: Path) -> None:
    summary = lm_text(tmp_path, BOOK, "--units", "tokens")
    assert written(tmp_path, "text.txt")[1].startswith("O ' B R I E N ' S | D O G | ' T I S |")
    assert not written(tmp_path, "text.txt")[1].endswith("|")
    assert written(tmp_path, "dict.txt")[0] == "| 10"
    assert not (tmp_path / "lm/lexicon.txt").exists()
    assert (summary["units"], summary["kept_words"]) == ("tokens", summary["distinct_words"])


def test_a_run_folders_alphabet_whose_delimiter_is_a_blank(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    tokens = ("<pad>", " ", *"abcdefé")
    letters = Alphabet(tokens=tokens, special=frozenset({0}), delimiter=1)
    write_alphabet(tmp_path / "run/alphabet.json", letters)
    options = "--alphabet", str(tmp_path / "run")
    lm_text(tmp_path, "Café, bed\nzoo\n", *options)
    assert written(tmp_path, "text.txt") == ["café bed"]
    assert written(tmp_path, "lexicon.txt") == ["bed\tb e d |", "café\tc a f é |"]
    (tmp_path / "lm/summary.json").unlink()
    lm_text(tmp_path, "Café, bed\nzoo\n", *options, "--units", "tokens")
    assert written(tmp_path, "text.txt") == ["c a f é | b e d"]


@pytest.mark.parametrize(
    ("letters", "given", "line"),
    [
        (alphabet("phones"), "dh ax-h q bcl b", "dh ah sil b"),
        (of_symbols("日本語"), "日本 語。", "日 本 語"),
        (of_symbols(["|", "a", "ch", "c"]), "cha ac", "ch a | a c"),
    ],
)
def test_tokens_of_other_alphabets(
    letters: Alphabet, given: str, line: str, tmp_path: Path
) -> None:
    write_alphabet(tmp_path / "alphabet.json", letters)
    units = ["--units", "tokens"] * letters.has_words  # else it is the default
    lm_text(tmp_path, given, "--alphabet", str(tmp_path / "alphabet.json"), *units)
    assert written(tmp_path, "text.txt") == [line]


def test_texts_of_shards_read_as_labels(shards: Path, tmp_path: Path) -> None:
    command = ["lm", "text", "--shards", str(shards), "--output", str(tmp_path / "lm")]
    assert main(command) == 0
    labels = [*read_labels(ShardIndex.load(shards), "characters")]
    assert written(tmp_path, "text.txt") == [LETTERS.normalized(label) for label in labels]


def test_folders_gzip_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "books/more").mkdir(parents=True)
    (tmp_path / "books/b.TXT").write_bytes(b"\xef\xbb\xbfb one\r\nb two\r\n")
    (tmp_path / "books/more/a.txt.gz").write_bytes(gzip.compress(b"a gz"))
    (tmp_path / "books/picture.png").write_bytes(b"\xff\xd8")
    stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(gzip.compress(b"in\n"))))
    monkeypatch.setattr(sys, "stdin", stdin)
    folder = str(tmp_path / "books")
    assert main(["lm", "text", folder, "-", "--output", str(tmp_path / "lm")]) == 0
    assert written(tmp_path, "text.txt") == ["B ONE", "B TWO", "A GZ", "IN"]


def test_lines_without_end_and_other_oddities(tmp_path: Path) -> None:
    content = (
        b"one\n" + b"word " * (LONGEST // 4) + b"\ntwo\0\n\n \t\n!!!\n\x0bthree\xe2\x80\xa8four"
    )
    summary = lm_text(tmp_path, content)
    assert written(tmp_path, "text.txt") == ["ONE", "THREE FOUR"]
    assert summary["strangers"] == {"\0": 1}
    assert {k.split(" ")[0]: n for k, n in summary["left_out"].items()} == {
        "longer": 1,
        "symbols": 1,
        "nothing": 1,
    }
    cut = b"\xe2\x82\xac" * (LONGEST // 3 + 9)  # the last character is cut in two
    (tmp_path / "cut.txt").write_bytes(cut + b"\nx\n")
    found = [s for _, s in sentences(str(tmp_path / "cut.txt"), False)]
    assert [len(s) > LONGEST for s in found] == [True, False]


def test_running_text_without_an_end_stays_in_bounds(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("word word\n" * (LONGEST // 4))
    sizes = [len(s) for _, s in sentences(str(tmp_path / "t.txt"), True)]
    assert sizes[:2] == [pytest.approx(LONGEST, rel=1e-3)] * 2
    assert min(sizes[:2]) > LONGEST
    assert len(sizes) == 3
    (tmp_path / "t.txt").write_text("Twelve words, and then. It goes\non!\n" * 60_000)
    found = [s.split() for _, s in sentences(str(tmp_path / "t.txt"), True)]
    assert found == ["Twelve words, and then.".split(), "It goes on!".split()] * 60_000


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", "", "no sentence is left of the text: it is empty"),
        ("1\n2\n", "", "no sentence is left of the text: 2 with symbols outside the alphabet"),
        (b"a\nb\xe9\n", "", "book.txt, line 2, is not UTF-8 text (byte 0xE9)"),
        (b"\xff\xfea\0", "", "line 1, is not UTF-8"),
        (gzip.compress(b"abc\n" * 99, mtime=0)[:-9], "", "book.txt is damaged"),
        ("a", "--min-count 0", "--min-count is 0 but must be at least 1"),
        ("a a b", "--min-count 3", "no word is there 3 times (--min-count)"),
        ("1 2", "--keep-unspellable", "no word is there 1 times"),
        ("a", "--max-words 0", "--max-words is 0 but must be at least 1"),
        ("a", "--alphabet nowhere", "--alphabet is 'nowhere', which does not exist"),
        ("a", "--alphabet phones --units words", "the alphabet has no words"),
        ("a", "--units tokens --keep-unspellable", "--keep-unspellable is for words"),
        ("a", "nowhere.txt", "'nowhere.txt' does not exist"),
        ("a", "--shards nowhere", "nowhere"),
    ],
)
def test_bad_input(
    content: str | bytes,
    options: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "book.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    command = ["lm", "text", str(tmp_path / "book.txt"), "--output", str(tmp_path / "lm")]
    assert main([*command, *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.rglob("*.tmp"), *tmp_path.rglob("summary.json")]
    assert not (tmp_path / "lm/text.txt").exists()


def test_nothing_to_read_and_an_output_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lm", "text", "--output", str(tmp_path / "lm")]) == 2
    assert "there is nothing to read" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    command = ["lm", "text", str(tmp_path / "folder"), "--output", str(tmp_path / "lm")]
    assert main(command) == 2
    assert "folder holds no text" in capsys.readouterr().err
    lm_text(tmp_path, "a")
    book = str(tmp_path / "book.txt")
    assert main(["lm", "text", book, "--output", str(tmp_path / "lm")]) == 2
    assert "has a text already" in capsys.readouterr().err


# Where a character's reading depends on its neighbours
ODD = "aB'’‘`´\"-–|.·ßİΣσ1 \t\n\xa0\u2028\u0301\u200b\u200d\u05f3אקé"
READERS = [
    LETTERS,
    of_symbols(["|", *"abσςé'"]),
    of_symbols(["|", *"ab"], text=TextConfig(form="NFKD", replace={"a b": "‘", "-": " "})),
    of_symbols(["|", *"ab"], text=TextConfig(form="NFKC", replace={"a": "b c"}, case="upper")),
    alphabet("phones"),
    of_symbols("ab日"),
]


@given(st.text(ODD, max_size=30) | st.text(max_size=30), st.sampled_from(READERS))
def test_words_are_read_as_labels_are(text: str, letters: Alphabet) -> None:
    reader = Reader(letters)
    for _ in range(2):  # again from memory
        assert " ".join(reader.words(text)) == letters.normalized(text)
        words = reader.words(text)
        assert reader.spells(words) == all(reader.spelling(word) for word in words)


def test_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2v2dist.lm.sentences.REMEMBERED", 3)
    reader = Reader(LETTERS)
    for text in ("a b C", "D e 1 f", "A B C D"):
        assert " ".join(reader.words(text)) == LETTERS.normalized(text)
        assert reader.spells(reader.words(text)) == ("1" not in text)
        assert max(map(len, (reader._words, reader._plain, reader._spellings, reader._spelled))) < 4


@pytest.mark.parametrize("examples", EXAMPLES)
def test_mutated_texts(examples: int, tmp_path: Path) -> None:
    path, reader = tmp_path / "t.txt", Reader(LETTERS)

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        running = [s for _, s in sentences(str(path), True)]
        return [reader.words(s) for s in [*running, *(s for _, s in sentences(str(path), False))]]

    fuzz(examples, [BOOK.encode(), gzip.compress(BOOK.encode())], read, (ValueError,))


def test_one_sentence_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm_text(tmp_path, "A B\nC 4\n")
    assert "\n1 sentence left out: 1 with" in capsys.readouterr().out
