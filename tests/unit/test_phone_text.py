"""A text of phones: written whole, read as it was written, refused where it is not."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from w2v2dist.unsupervised.phone_text import PhoneText, write_phone_text

COUNTS = {"a": 9, "t": 5, "ʃ": 2}


def test_lines_are_what_was_written(tmp_path: Path) -> None:
    rows = [[7, 4, 5, 7], [], [7, 6, 7], [4]]
    written = write_phone_text(tmp_path / "text", COUNTS, rows, {"silence": 0.5})
    text = pickle.loads(pickle.dumps(written))
    assert text.symbols == ["<s>", "<pad>", "</s>", "<unk>", "a", "t", "ʃ", "<SIL>"]
    assert [text.line(i).tolist() for i in range(len(text))] == [rows[0], rows[2], rows[3]]
    assert text.line(0).dtype == np.int64
    assert text.meta["silence"] == 0.5
    assert text.silence == 7
    dictionary = (tmp_path / "text/dict.phn.txt").read_text("utf-8")
    assert dictionary == "a 9\nt 5\nʃ 2\n<SIL> 0\n"


def test_fingerprint_is_of_content_and_symbols(tmp_path: Path) -> None:
    def of(name: str, counts: dict[str, int], rows: list[list[int]]) -> str:
        return write_phone_text(tmp_path / name, counts, rows, {}).fingerprint

    prints = [
        of("a", COUNTS, [[4, 5], [6]]),
        of("b", COUNTS, [[4, 5], [6]]),
        of("c", COUNTS, [[4], [5, 6]]),
        of("d", {"a": 9, "ʃ": 2, "t": 5}, [[4, 5], [6]]),
    ]
    assert prints[0] == prints[1]
    assert len({*prints}) == 3


def test_many_symbols_need_wider_ids(tmp_path: Path) -> None:
    counts = {f"p{i}": 1 for i in range(300)}
    text = write_phone_text(tmp_path / "text", counts, [[304, 4, 303]], {})
    assert text.line(0).tolist() == [304, 4, 303]


def test_what_is_cut_short_is_no_text(tmp_path: Path) -> None:
    def rows() -> Iterator[list[int]]:
        yield [4]
        raise KeyboardInterrupt

    write_phone_text(tmp_path / "text", COUNTS, [[4]], {})
    with pytest.raises(KeyboardInterrupt):
        write_phone_text(tmp_path / "text", COUNTS, rows(), {})
    with pytest.raises(ValueError, match=r"holds no text of phones \(meta\.json is missing\)"):
        PhoneText(tmp_path / "text")


def test_no_row_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no line of phones is left"):
        write_phone_text(tmp_path / "text", COUNTS, [[], []], {})
    assert [*(tmp_path / "text").iterdir()] == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "ids.npy").unlink(), "ids.npy"),
        (lambda f: (f / "dict.phn.txt").write_text("a 9\n<SIL> 0\n"), "other symbols"),
        (lambda f: (f / "dict.phn.txt").write_text("a 9\na 9\n<SIL> 0\n"), "is there twice"),
        (lambda f: (f / "dict.phn.txt").write_text("<SIL> 0\na 9\n"), "<SIL> last"),
        (lambda f: (f / "dict.phn.txt").write_text("a\n<SIL> 0\n"), "a phone, a blank and"),
        (lambda f: np.save(f / "ends.npy", np.array([1], np.uint64)), "other sizes"),
        (lambda f: (f / "meta.json").write_text(json.dumps({"version": 9})), "version is 9"),
        (lambda f: (f / "meta.json").write_text("{"), "is damaged"),
    ],
)
def test_damaged_folders(tmp_path: Path, damage, said: str) -> None:
    write_phone_text(tmp_path / "text", COUNTS, [[4, 5], [6]], {})
    damage(tmp_path / "text")
    with pytest.raises(ValueError, match=said):
        PhoneText(tmp_path / "text")


@pytest.mark.parametrize("phone", ["<SIL>", "<pad>", "a b", ""])
def test_phones_that_cannot_be(tmp_path: Path, phone: str) -> None:
    with pytest.raises(ValueError, match="rename it"):
        write_phone_text(tmp_path / "text", {phone: 1}, [[4]], {})
