"""The report reads what the run folder holds: values, chance line, interruptions, nothing twice."""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path

import pytest

from w2v2dist.reporting.report import read_run, write_report


def write_lines(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


@pytest.fixture
def pretraining(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "task: pretrain\nmodel: {num_distractors: 100, num_layers: 4}\nloop: {max_steps: 40}\n"
    )
    first = [
        {"step": s, "contrastive_loss": 6.6 - s / 20, "loss": 7.0, "accuracy": 0.01 * s, "lr": 1e-4,
         "code_perplexity": 30.0, "temperature": 2.0, "audio_hours": 0.1, "seconds": 10.0}
        for s in (10, 20, 30)
    ]  # fmt: skip
    repeated = {**first[2], "contrastive_loss": 5.0}
    again = [repeated, {**first[2], "step": 40, "contrastive_loss": None}]
    validation = [{"step": 20, "valid/contrastive_loss": 5.75, "valid/accuracy": 0.2}]
    write_lines(folder / "metrics.jsonl", [*first, *validation, *again])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "contrast')  # the process died here
    write_lines(
        folder / "events.jsonl",
        [
            {"event": "start", "time": 1.0, "world_size": 2},
            {"event": "saved", "time": 2.0, "step": 25},
            {"event": "preempted", "time": 2.0, "step": 25, "signal": 15},
            {"event": "resumed", "time": 3.0, "step": 25, "old_world_size": 2, "new_world_size": 4},
            {"event": "sample_skipped", "time": 3.5, "reason": "<script>alert(1)</script>"},
        ],
    )
    return folder


def finetuning(folder: Path, errors: list[float]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("task: finetune\nloop: {max_steps: 20}\n")
    records = [
        {"step": 10 * (i + 1), "valid/wer": error, "valid/cer": error / 2}
        for i, error in enumerate(errors)
    ]
    write_lines(folder / "metrics.jsonl", [{"step": 5, "loss": 9.0}, *records])
    return folder


def figures(page: str) -> list[str]:
    encoded = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    return [base64.b64decode(e).decode() for e in encoded]


def test_a_repeated_step_counts_once_and_the_last_time(pretraining: Path) -> None:
    run = read_run(pretraining)
    steps, values = run.series("contrastive_loss")
    assert steps == [10, 20, 30]
    assert values == [6.1, 5.6, 5.0]
    assert run.series("valid/contrastive_loss") == ([20], [5.75])
    assert run.series("speed")[1][0] == pytest.approx(36)
    assert run.chance_bits == pytest.approx(math.log(101) / math.log(2))


def test_page_shows_curves_chance_and_interruption(pretraining: Path, tmp_path: Path) -> None:
    notes = {"Data": "a <small> set"}
    page = write_report([pretraining], tmp_path / "out" / "report.html", notes).read_text()
    (svg,) = figures(page)
    for text in ("contrastive loss (bits)", "chance 6.658", "preempted", "resumed", "Gumbel"):
        assert text in svg
    assert "feature penalty" not in svg  # nothing was logged under it
    assert "a &lt;small&gt; set" in page
    assert "<script>" not in page
    assert "<b>5.000</b><span>contrastive loss, bits (chance 6.658)" in page
    assert "<b>1</b><span>interruptions survived" in page
    assert "old_world_size 2, new_world_size 4" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # one file, nothing to fetch


def test_two_finetunings_are_compared(tmp_path: Path) -> None:
    a = finetuning(tmp_path / "from_pretrained", [0.5, 0.25])
    b = finetuning(tmp_path / "from_scratch", [0.9, 0.95])
    page = write_report([a, b], tmp_path / "report.html").read_text()
    comparison, one, other = figures(page)
    assert "from_pretrained" in comparison
    assert "from_scratch" in comparison
    assert "validation errors (%)" in one
    assert "validation errors (%)" in other
    assert "<b>25.0 %</b><span>best word errors" in page
    assert "<b>90.0 %</b><span>best word errors" in page


def test_a_run_without_metrics_yet(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("task: pretrain\n")
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "No metrics were logged yet" in page


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run folder: it has no config\.yaml"):
        write_report([tmp_path], tmp_path / "report.html")
