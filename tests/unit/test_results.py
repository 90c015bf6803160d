"""What an evaluation counts and writes, and whether two differ."""

from __future__ import annotations

import json
from pathlib import Path

import jiwer
import numpy as np
import pytest

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import alphabet, of_symbols
from w2v2dist.decode.results import Line, compare_folders, score, write
from w2v2dist.decode.scoring import confusions, error_counts, errors
from w2v2dist.decode.significance import compare, interval

LETTERS = alphabet("letters")
PAIRS = [
    ("THE CAT SAT", "THE CAT SAT"),
    ("THE CAT SAT", "A CAT SAT DOWN"),
    ("ON THE MAT", "THE MAT"),
    ("ON THE MAT", ""),
]
LINES = [Line(f"u{i}", *pair) for i, pair in enumerate(PAIRS)]


def test_errors_are_jiwers() -> None:
    references, hypotheses = map(list, zip(*PAIRS, strict=True))
    found = jiwer.process_words(references, hypotheses)
    ours = errors(references, hypotheses, "word")
    assert sum(e.substitutions for e in ours) == found.substitutions == 1
    assert sum(e.deletions for e in ours) == found.deletions == 4
    assert sum(e.insertions for e in ours) == found.insertions == 1
    assert sum(e.num_units for e in ours) == 12
    counts = error_counts(references, hypotheses)
    assert counts["word_errors"] / counts["num_words"] == found.wer
    assert counts["letter_errors"] / counts["num_letters"] == jiwer.cer(references, hypotheses)
    # an empty reference counts nothing, whatever was read
    assert error_counts([*references, ""], [*hypotheses, "A B"]) == counts


def test_confusions() -> None:
    found = confusions(*map(list, zip(*PAIRS, strict=True)), "word")  # type: ignore[arg-type]
    assert found == {
        ("THE", "A"): 1,
        ("", "DOWN"): 1,
        ("ON", ""): 2,
        ("THE", ""): 1,
        ("MAT", ""): 1,
    }


def test_intervals_hold_the_rate() -> None:
    """Of many samples of one population, about 95 % of the intervals hold the true rate."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(60):
        units = rng.integers(5, 25, 200)
        wrong = rng.binomial(units, 0.2)
        low, high = interval(wrong.tolist(), units.tolist())
        assert low < wrong.sum() / units.sum() < high
        held += low <= 0.2 <= high
    assert 52 <= held <= 60
    assert interval([3], [10]) == (0.3, 0.3)
    assert interval([0, 0], [0, 0]) == (0.0, 0.0)


def test_comparisons() -> None:
    rng = np.random.default_rng(2)
    units = rng.integers(5, 25, 300)
    worse = rng.binomial(units, 0.2)
    better = rng.binomial(worse, 0.8)  # a fifth of the errors less, of the same utterances
    found = compare(worse.tolist(), better.tolist(), units.tolist())
    assert found.significant
    assert 0 < found.low < found.difference < found.high
    assert compare(better.tolist(), worse.tolist(), units.tolist()).difference == -found.difference
    same = compare(worse.tolist(), worse.tolist(), units.tolist())
    assert (same.difference, same.p_value, same.significant) == (0, 1, False)
    # of equally good systems few differ
    others = (rng.binomial(units, 0.2) for _ in range(60))
    wrong = sum(compare(worse.tolist(), o.tolist(), units.tolist()).significant for o in others)
    assert wrong <= 12  # `worse` itself is one draw


def test_an_evaluations_folder(tmp_path: Path) -> None:
    skipped = [{"key": "u9", "reason": "it is too short"}]
    result = score(LINES, LETTERS)
    assert result["wer"] == 0.5
    assert result["wer_low"] < 0.5 < result["wer_high"]
    assert (result["word_substitutions"], result["word_deletions"]) == (1, 4)
    assert "per" not in result
    write(tmp_path / "e", LINES, skipped, {"wer": 0.5}, "word")
    assert {p.name for p in (tmp_path / "e").iterdir()} == {
        "evaluation.json",
        "hypotheses.jsonl",
        "hypotheses.tsv",
        "confusions.tsv",
        "worst.tsv",
        "skipped.jsonl",
    }
    lines = [json.loads(line) for line in (tmp_path / "e/hypotheses.jsonl").open()]
    assert [line["key"] for line in lines] == ["u0", "u1", "u2", "u3"]
    assert [line["errors"] for line in lines] == [0, 2, 1, 3]
    worst = (tmp_path / "e/worst.tsv").read_text().splitlines()
    assert worst[1].split("\t") == ["3", "3", "u3", "ON THE MAT", ""]
    assert len(worst) == 4
    confused = (tmp_path / "e/confusions.tsv").read_text().splitlines()
    assert confused[1].split("\t") == ["2", "deletion", "ON", ""]
    # what is written again takes its place
    write(tmp_path / "e", LINES[:1], [], {}, "word")
    assert (tmp_path / "e/skipped.jsonl").read_text() == ""


def test_words_phones_and_characters() -> None:
    phones = score([Line("a", "sil k ae", "sil k aa")], alphabet("phones"))
    assert phones["per"] == pytest.approx(1 / 3)
    assert "wer" not in phones
    together = of_symbols("的是不")
    assert score([Line("a", "的是不", "的不")], together)["cer"] == pytest.approx(1 / 3)


def test_two_folders(tmp_path: Path) -> None:
    better = [Line(line.key, line.reference, line.reference) for line in LINES]
    write(tmp_path / "a", LINES, [], {}, "word")
    write(tmp_path / "b", better, [], {}, "word")
    found, shared = compare_folders(tmp_path / "a", tmp_path / "b")
    assert (found.difference, shared) == (0.5, 4)
    for other, message in (
        ([Line("z", "A", "A")], "have no utterance in common"),
        ([Line("u1", "ANOTHER", "A")], "have other references"),
    ):
        write(tmp_path / "c", other, [], {}, "word")
        with pytest.raises(ConfigError, match=message):
            compare_folders(tmp_path / "a", tmp_path / "c")
    with pytest.raises(ConfigError, match="holds no evaluation"):
        compare_folders(tmp_path / "a", tmp_path)
