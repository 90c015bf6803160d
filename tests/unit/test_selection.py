"""Choosing without labels: the reference implementation's score, and both rules by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.unit.test_gan_parity import FOLDERS
from w2v2dist.lm.arpa import Arpa, read_arpa
from w2v2dist.unsupervised.phone_text import PhoneText
from w2v2dist.unsupervised.selection import (
    Candidate,
    Scorer,
    code_choice,
    paper_choice,
    phones_of,
    text_likeness,
)
from w2v2dist.unsupervised.synthetic import write_synthetic

SCORE = 1e-5  # relative


@pytest.fixture(params=FOLDERS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, dict[str, Any], Arpa]:
    folder = Path(request.getfixturevalue(request.param))
    with safe_open(folder / "w2vu_selection.safetensors", "pt") as file:
        info = json.loads(file.metadata()["json"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (tmp_path / "lm.arpa").write_text(info["arpa"])
    return tensors, info, read_arpa(tmp_path / "lm.arpa")


def test_the_score_is_the_reference_s(golden: tuple[Any, dict[str, Any], Arpa]) -> None:
    tensors, info, lm = golden
    scorer = Scorer(info["symbols"], lm, lm)
    compared = 0
    for name, case in info["cases"].items():
        sums: dict[str, float] = {}
        for number, batch in enumerate(case["batches"]):
            ids = tensors[f"{name}.{number}.ids"].tolist()
            lengths = tensors[f"{name}.{number}.lengths"].tolist()
            read = [row[:length] for row, length in zip(ids, lengths, strict=True)]
            assert [phones_of(row, info["sil"]) for row in read] == batch["kept"]
            for key, value in scorer.sums(read).items():
                sums[key] = sums.get(key, 0.0) + value
        found = scorer.metrics(sums)
        if any(not any(batch["kept"]) for batch in case["batches"]):
            assert found["weighted_lm_ppl"] == math.inf  # the worst; the reference stops, or not
            continue
        for key, theirs in (
            ("weighted_lm_ppl", "weighted_lm_ppl"),
            ("lm_ppl", "lm_ppl"),
            ("batch_usage", "vocab_seen_pct"),
        ):
            expected = case["without_labels"][theirs]
            assert found[key] == pytest.approx(expected, rel=SCORE), (name, key)
        compared += 1
    assert compared >= 4


def candidate(run: str, nll: float, usage: float, log_prob: float, score: float = 1.0) -> Candidate:
    return Candidate(run, 1, score, nll, usage, log_prob)


def test_the_score_s_choice_by_hand() -> None:
    runs = [candidate(n, 1, 1, 1, s) for n, s in (("a", 20.0), ("b", 15.5), ("c", math.inf))]
    chosen = code_choice(runs)
    assert chosen is not None
    assert chosen.run == "b"
    assert code_choice(runs[2:]) is None
    assert code_choice([]) is None
    assert code_choice([candidate("d", 1, 1, 1, math.nan), runs[0]]) == runs[0]


def test_the_paper_s_three_steps_by_hand() -> None:
    """NLL - ln U: 2.0 - ln 0.9 = 2.105 (a), 1.9 - ln 0.5 = 2.593 (b), 2.1 - ln 0.95 = 2.151 (c),
    2.3 - ln 1.0 = 2.3 (d), so a is the anchor. Kept: NLL < 2.0 + ln(U / 0.9) + 0.1823, that is b
    < 1.594 (no), c < 2.236 (yes), d < 2.288 (no). Of a and c, c has the higher probability."""
    a, b, c, d = (
        candidate("a", 2.0, 0.9, -900.0),
        candidate("b", 1.9, 0.5, -300.0),
        candidate("c", 2.1, 0.95, -800.0),
        candidate("d", 2.3, 1.0, -100.0),
    )
    assert paper_choice([a, b, c, d]) == c
    assert paper_choice([b, a]) == a
    assert paper_choice([b]) == b
    assert paper_choice([candidate("silent", 1.0, 0.0, 0.0)]) is None
    assert paper_choice([]) is None
    assert paper_choice([candidate("broken", math.nan, 1.0, 0.0), a]) == a


def test_sums_add_up_over_batches_and_the_set_has_its_own_usage() -> None:
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "<SIL>"]
    grams = [{(0,): (-99.0, 0.0), (1,): (-1.0, 0.0), (2,): (-0.5, 0.0), (3,): (-0.25, 0.0)}]
    words = ["<s>", "</s>", "a", "b"]
    lm = Arpa(words, grams, {word: i for i, word in enumerate(words)})
    scorer = Scorer(symbols, lm, lm)
    assert scorer.num_phones == 3
    sums = scorer.sums([[6, 4, 4, 6], [4]])  # a a, a
    for key, value in scorer.sums([[5, 6], [1, 6, 0]]).items():  # b, nothing
        sums[key] = sums.get(key, 0.0) + value
    found = scorer.metrics(sums)
    # log10: -0.5 - 0.5 - 1; -0.5 - 1; -0.25 - 1; -1, of 3 + 2 + 2 + 1 marks
    assert found["lm_ppl"] == pytest.approx(10 ** (5.75 / 8))
    assert found["batch_usage"] == pytest.approx(1 / 3)  # one phone of three in each batch
    assert found["weighted_lm_ppl"] == pytest.approx(10 ** (5.75 / 8) * 9)
    assert found["phone_usage"] == pytest.approx(2 / 3)
    nats = math.log(10)
    assert found["log_prob"] == pytest.approx(-5.75 * nats)
    assert found["nll"] == pytest.approx(nats * (2 / 3 + 1.5 / 2 + 1.25 / 2 + 1) / 4)
    assert found["num_silent"] == 1


def test_a_silent_batch_is_the_worst() -> None:
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "a", "<SIL>"]
    grams = [{(0,): (-99.0, 0.0), (1,): (-1.0, 0.0), (2,): (-0.5, 0.0)}]
    lm = Arpa(["<s>", "</s>", "a"], grams, {"<s>": 0, "</s>": 1, "a": 2})
    scorer = Scorer(symbols, lm, lm)
    assert scorer.metrics(scorer.sums([[5], [5, 1]]))["weighted_lm_ppl"] == math.inf


def test_likeness_is_between_the_text_and_its_phones_in_a_random_order(tmp_path: Path) -> None:
    assert text_likeness(2.0, 2.0, 4.0) == 1
    assert text_likeness(3.0, 2.0, 4.0) == 0.5
    assert text_likeness(9.0, 2.0, 4.0) == 0
    assert math.isnan(text_likeness(3.0, 2.0, 2.0))  # the order says nothing
    assert math.isnan(text_likeness(3.0, math.nan, math.nan))
    write_synthetic(tmp_path, 2, seed=0)
    text, other = (PhoneText(str(tmp_path / name)) for name in ("text", "other"))
    lms = (read_arpa(text.lm_path(with_silence)) for with_silence in (True, False))
    scorer = Scorer(text.symbols, *lms)
    unread = scorer.metrics(scorer.sums([text.line(0).tolist()]))
    assert not {"text_nll", "text_likeness"} & unread.keys()
    scorer.read_text(text)

    def likeness(lines: list[list[int]]) -> float:
        return scorer.metrics(scorer.sums(lines))["text_likeness"]

    assert likeness([text.line(i).tolist() for i in range(1, 400)]) == pytest.approx(1, abs=0.05)
    assert likeness([other.line(i).tolist() for i in range(1, 400)]) < 0.3
