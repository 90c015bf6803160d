"""The report reads what the run folder holds: values, chance line, interruptions, nothing twice;
what is missing or damaged it says, and no text becomes markup."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.report_runs import HOSTILE, evaluation, extremes, finetuning, write_lines
from w2v2dist.cli import main
from w2v2dist.reporting import logs, timeline
from w2v2dist.reporting.evaluations import Evaluation, p_values, paper_rates, read_evaluations
from w2v2dist.reporting.panels import Charts, panels_of
from w2v2dist.reporting.report import final_numbers, read_run, write_report
from w2v2dist.reporting.runs import _counting, find_runs
from w2v2dist.reporting.scores import differences
from w2v2dist.reporting.thin import thin, trend

SOURCE = """task: pretrain
model: {num_distractors: 100, num_layers: 4}
loop: {max_steps: 40}
"""


@pytest.fixture
def pretraining(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.yaml").write_text(SOURCE)
    first = [
        {"step": s, "contrastive_loss": 6.6 - s / 20, "loss": 7.0, "accuracy": 0.01 * s, "lr": 1e-4,
         "code_perplexity": 32.0, "temperature": 2.0, "audio_hours": 0.1, "seconds": 10.0,
         "slowest_rank": 1, "slowest_host": "node7", "slowest_rank_seconds": 4.0,
         "median_rank_seconds": 2.0, "world_size": 2, "time": 100.0 + s}
        for s in (10, 20, 30)
    ]  # fmt: skip
    repeated = {**first[2], "contrastive_loss": 5.0, "time": 220.0}
    again = [repeated, {**first[2], "step": 40, "contrastive_loss": None, "time": 230.0}]
    validation = [{"step": 20, "valid/contrastive_loss": 5.75, "valid/accuracy": 0.2, "time": 121}]
    write_lines(folder / "metrics.jsonl", [*first, *validation, *again])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "contrast')  # the process died here
    write_lines(
        folder / "events.jsonl",
        [
            {"event": "start", "time": 100.0, "world_size": 2},
            {"event": "saved", "time": 131.0, "step": 25, "seconds": 3.0, "pause_seconds": 1.0},
            {"event": "preempted", "time": 132.0, "step": 25, "signal": 15},
            {
                "event": "resumed",
                "time": 210.0,
                "step": 25,
                "old_world_size": 2,
                "new_world_size": 4,
            },
            {"event": "sample_skipped", "time": 211.0, "reason": HOSTILE},
        ],
    )
    return folder


def embedded(page: Path) -> dict[str, Any]:
    """The data of the page's curves."""
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_a_repeated_step_counts_once_and_the_last_time(pretraining: Path) -> None:
    run = read_run(pretraining)
    steps, values = run.series("contrastive_loss")
    assert steps.tolist() == [10, 20, 30]
    assert values.tolist() == [6.1, 5.6, 5.0]
    assert [x.tolist() for x in run.series("valid/contrastive_loss")] == [[20], [5.75]]
    assert run.series("speed")[1][0] == pytest.approx(36)
    assert run.series("code_usage")[1].tolist() == [0.05] * 4  # 32 of 2 × 320
    assert run.chance_bits == pytest.approx(math.log(101) / math.log(2))
    assert run.last("loss") == 7.0
    assert run.last("nothing") is None


def test_page_shows_curves_chance_and_interruption(pretraining: Path, tmp_path: Path) -> None:
    notes = {"Data": "a <small> set"}
    output = write_report([pretraining], tmp_path / "out" / "report.html", notes)
    page, data = output.read_text(), embedded(output)
    panels = {panel["title"]: panel for panel in data["panels"]}
    loss = panels["contrastive loss (bits)"]
    assert loss["lines"] == [{"y": 6.6582, "label": "chance 6.658"}]
    marks = data["marks"][loss["group"]]
    assert [(m["step"], m["kind"]) for m in marks] == [(25, "preempted"), (25, "resumed")]
    assert "on 4 processes instead of 2" in marks[1]["text"]
    assert [c["label"] for c in loss["curves"]] == ["train", "validation"]
    assert loss["curves"][0]["y"] == [6.1, 5.6, 5.0]
    assert panels["slowest process (s a record)"]["curves"][0]["names"] == ["rank 1 on node7"] * 4
    assert "diversity and penalty (bits)" not in panels  # nothing was logged under it
    assert "a &lt;small&gt; set" in page
    assert "<b>5.000</b><span>contrastive loss, bits (chance 6.658)" in page
    assert "<b>1</b><span>interruptions survived" in page
    assert "old_world_size 2, new_world_size 4" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # one file, nothing to fetch
    assert HOSTILE not in page
    assert not list(output.parent.glob(".*.tmp"))


def test_where_the_time_went(pretraining: Path) -> None:
    found = timeline.spent(read_run(pretraining))
    assert found is not None
    # 100 to 132 on 2 processes, the step at 130 trained again; then 210 to 230 on 4
    assert found.wall == pytest.approx(130)
    assert found.seconds["counted"] == pytest.approx(40)
    assert found.seconds["repeated"] == pytest.approx(10)
    assert found.seconds["saving"] == pytest.approx(1)
    assert found.seconds["between"] == pytest.approx(78)
    assert found.goodput == pytest.approx(40 / 130)
    assert [a.world_size for a in found.attempts] == [2, 4]
    assert found.attempts[0].lost_from == 120


def test_two_finetunings_are_compared(tmp_path: Path) -> None:
    a = finetuning(tmp_path / "from_pretrained", [0.5, 0.25])
    b = finetuning(tmp_path / "from_scratch", [0.9, 0.95])
    output = write_report([a, b], tmp_path / "report.html")
    data = embedded(output)
    words = data["panels"][0]
    assert [(c["label"], c["run"]) for c in words["curves"]] == [
        ("from_pretrained", 0),
        ("from_scratch", 1),
    ]
    assert words["curves"][0]["y"] == [50.0, 25.0]
    assert {m["kind"] for m in data["marks"][words["group"]]} == {"freeze"}
    numbers = [final_numbers(read_run(folder)) for folder in (a, b)]
    assert [n["best word errors on validation"] for n in numbers] == ["25.0 %", "90.0 %"]


def test_a_metric_that_no_panel_knows_has_one(pretraining: Path) -> None:
    with (pretraining / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 60, "seconds": 1, "entropy": 3.5, "time": 4e9}\n')
        file.write('{"step": 60, "other/loss": 2}\n')
    panels = panels_of([read_run(pretraining)])
    assert "entropy" in [panel.title for panel in panels]


def test_a_model_without_quantizers_has_no_panels_of_codes(pretraining: Path) -> None:
    def titles() -> set[str]:
        return {panel.title for panel in panels_of([read_run(pretraining)])}

    codes = {"perplexity (of all codebooks)", "codes in use (%)", "Gumbel temperature"}
    assert codes <= titles()
    config = yaml.safe_load((pretraining / "config.yaml").read_text())
    config.setdefault("model", {})["quantize_targets"] = False
    (pretraining / "config.yaml").write_text(yaml.safe_dump(config))
    assert not codes & titles()
    assert "code perplexity" not in final_numbers(read_run(pretraining))


def test_without_metrics(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("task: pretrain\n")
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "No metrics were logged yet" in page


def test_damaged_settings_are_said_and_the_metrics_tell_the_kind(pretraining: Path) -> None:
    (pretraining / "config.yaml").write_bytes(b"task: [\xff")
    page = write_report([pretraining], pretraining / "report.html").read_text()
    assert "Its settings cannot be read" in page
    assert "contrastive loss (bits)" in page
    assert read_run(pretraining).kind == "pre-training"


def test_an_older_version_without_times(pretraining: Path) -> None:
    lines = [json.loads(x) for x in (pretraining / "metrics.jsonl").read_text().splitlines()[:-1]]
    gone = {"time", "slowest_rank", "slowest_host", "slowest_rank_seconds", "world_size"}
    write_lines(
        pretraining / "metrics.jsonl",
        [{k: v for k, v in line.items() if k not in gone} for line in lines],
    )
    page = write_report([pretraining], pretraining / "report.html").read_text()
    assert "No times to show" in page
    assert "slowest process" not in page


@pytest.mark.parametrize(
    "line",
    [b"[1]", b"null", b'{"step": "3"}', b'{"step": 1e400}', b'{"step": -1, "a": 2}', b"\xff\xfe",
     b'{"step": 3, "loss": {"a": [1]}, "lr": "\\ud800", "time": "x", "grad_norm": 1' + b"0" * 400
     + b"}", b'{"step": 1, "world_size": NaN}', b"[" * 100_000],
)  # fmt: skip
def test_lines_that_no_version_wrote(pretraining: Path, line: bytes) -> None:
    for name in ("metrics", "events"):
        with (pretraining / f"{name}.jsonl").open("ab") as file:
            file.write(b"\n" + line + b'\n{"event": "alarm", "step": null, "time": 1e300}\n')
    write_report([pretraining], pretraining / "report.html")
    assert read_run(pretraining).series("contrastive_loss")[1].tolist() == [6.1, 5.6, 5.0]


def test_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"is not a run folder: it has no config\.yaml"):
        write_report([tmp_path], tmp_path / "report.html")
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "is not a folder: give a run folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, name in enumerate(("c", "a", "b/inside")):
        folder = finetuning(tmp_path / name, [0.5])
        os.utime(folder / "metrics.jsonl", (i, i))
        os.utime(folder / "events.jsonl", (i, i))
    folders, left_out = find_runs([tmp_path])
    assert [folder.name for folder in folders] == ["c", "a", "inside"]
    assert left_out == 0
    newest, left_out = find_runs([tmp_path], most=2)
    assert ([folder.name for folder in newest], left_out) == (["a", "inside"], 1)
    assert main(["report", str(tmp_path), "--no-audio"]) == 0
    assert (tmp_path / "report.html").exists()
    assert "report.html" in capsys.readouterr().out


@given(st.integers(1, 5_000), st.integers(4, 300), st.integers(0, 5))
def test_thinning_keeps_every_extreme_of_its_part(size: int, most: int, seed: int) -> None:
    values = extremes(size, seed)
    places = thin(values, most)
    assert len(places) <= max(most, 2)
    assert np.all(np.diff(places) > 0)
    assert {0, size - 1} <= {*places.tolist()}
    assert values[places].max() == values.max()
    assert values[places].min() == values.min()
    if size > most:  # slowly: each part's own
        width = -(-size // ((most - 2) // 2))
        for first in range(0, size, width):
            part = values[first : first + width]
            assert {part.min(), part.max()} <= {*values[places].tolist()}


def test_a_trend_is_the_mean_of_its_part() -> None:
    steps, values = np.arange(1, 601), np.arange(600.0)
    middle, means = trend(steps, values, 200)
    assert means.tolist() == [3.0 * i + 1 for i in range(200)]
    assert middle.tolist() == [3 * i + 2 for i in range(200)]
    assert len(trend(steps[:50], values[:50])[0]) == 0


# Those without a time are of older versions, and so before the others
records = st.lists(
    st.tuples(st.integers(1, 9), st.one_of(st.none(), st.integers(0, 20))), max_size=12
).map(lambda rows: sorted(rows, key=lambda row: row[1] is not None))
resumptions = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), max_size=4)


@given(records, resumptions)
def test_what_counts_is_what_was_logged_last_and_not_lost(
    logged: list[tuple[int, int | None]], resumed: list[tuple[int, int]]
) -> None:
    columns = {
        "step": np.array([s for s, _ in logged], float),
        "time": np.array([np.nan if t is None else t for _, t in logged], float),
    }
    # Never at the time of a record: which of the two came first is not known then
    starts = [{"event": "resumed", "step": s, "time": t + 0.5} for s, t in resumed]
    places = _counting(logs.Table(columns, [], len(logged)), starts)
    assert places.tolist() == _counting_slowly(logged, starts)


def _counting_slowly(
    logged: list[tuple[int, int | None]], starts: list[dict[str, Any]]
) -> list[int]:
    rows: list[Any] = [(t or 0, i, None) for i, (_, t) in enumerate(logged)]
    rows += [(start["time"], -1, start) for start in starts]
    alive: dict[int, int] = {}  # place -> step
    for _, i, start in sorted(rows, key=lambda row: row[0]):
        if start is None:
            step = logged[i][0]
            alive = {j: s for j, s in alive.items() if s < step} | {i: step}
        else:
            alive = {j: s for j, s in alive.items() if s <= start["step"] or logged[j][1] is None}
    return [*alive]


def test_differences_of_two_texts() -> None:
    said, read = differences("a b c", "a x <c>", "word")
    assert said == "a <del>b c</del> "
    assert read == "a <ins>x &lt;c&gt;</ins> "
    assert differences("", "x", "word") == ("", "x")
    assert differences("ab", "b", "letter") == ("<del>a</del>b", "b")


def test_evaluations_with_and_without_their_shards(tmp_path: Path, shards: Path) -> None:
    run = finetuning(tmp_path / "run", [0.5])
    evaluation(run / "evaluations" / "greedy", shards, wrong=2)
    beam = evaluation(run / "evaluations" / "beam", shards, wrong=1, lm="4gram.arpa (9 bytes, 0)")
    output = write_report([run], tmp_path / "report.html")
    data, page = embedded(output), output.read_text()
    assert all(clip.startswith("data:audio/flac;base64,ZkxhQ") for clip in data["clips"])
    # The utterances of both evaluations are the same: each stands there once
    assert 10 <= len(data["clips"]) < 20
    assert page.count("<audio") == 20
    assert HOSTILE not in page
    assert not embedded(write_report([run], output, audio=False))["clips"]
    found, problems = read_evaluations(read_run(run))
    assert problems == []
    values = p_values(found)
    assert values[beam] is None  # the best
    assert values[run / "evaluations/greedy"] < 0.01  # type: ignore[operator]
    about = json.loads((beam / "evaluation.json").read_text())
    gone = {**about, "data": "/nowhere/test_clean"}
    (beam / "evaluation.json").write_text(json.dumps(gone))
    (run / "evaluations/greedy/evaluation.json").write_text('{"wer": 0.5}')  # an older version's
    (run / "evaluations/bad").mkdir()
    (run / "evaluations/bad/evaluation.json").write_text('{"wer": ')
    output = write_report([run], output)
    assert "<audio" not in output.read_text()
    assert "bad: evaluation.json cannot be read" in output.read_text()
    assert "9.1 to 15" not in output.read_text()
    assert "2.0 to 9.1 %" in output.read_text()  # the paper's 4-gram on test-clean


@pytest.mark.parametrize(
    ("name", "about", "expected"),
    [
        ("base_10h", {"asked.decoder": "greedy", "data": "d/test-clean"}, (11.1, 1)),
        ("base_100h", {"asked.decoder": "greedy", "data": "d/test_other"}, (13.3, 1)),
        ("base_10h", {"asked.lm": "4gram.arpa (1)", "data": "test_other"}, (9.5, 1)),
        ("base_10h", {"asked.lm": "lm (1 bytes, ab)", "data": "test_clean"}, (3.2, 1)),
        ("base_10h", {"asked.decoder": "greedy", "data": "dev_clean"}, (10.9, 1)),
        ("base_10h", {"asked.decoder": "greedy", "data": "valid"}, (None, 0)),
    ],
)
def test_the_papers_numbers(
    tmp_path: Path, name: str, about: dict[str, Any], expected: tuple[float | None, int | None]
) -> None:
    folder = finetuning(tmp_path / name, [0.5])
    with (folder / "config.yaml").open("a") as file:
        file.write("data: {train: shards}\n")
    run = read_run(folder)
    run.config["model.embed_dim"] = 768
    found = paper_rates(Evaluation(run, folder, {"wer": 0.1, **about}))
    rate, count = expected
    assert rate is None or rate in found.values()
    assert count is None or len(found) == count


def test_a_page_keeps_its_size_with_many_curves(pretraining: Path) -> None:
    run = read_run(pretraining)
    assert Charts.for_runs([[run]]).most == 1_500
    assert 200 <= Charts.for_runs([[run] * 12]).most < 1_500
