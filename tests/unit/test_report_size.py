"""A page stays below 5 MB, whatever a run has logged."""

from __future__ import annotations

import json
from pathlib import Path

from tests.report_runs import evaluation, finetuning, pretraining, write_lines
from w2v2dist.reporting.page import cut
from w2v2dist.reporting.report import write_report
from w2v2dist.reporting.scores import LONGEST, differences

MOST_BYTES = 5_000_000


def test_marks_of_many_resumptions_stand_there_once(tmp_path: Path) -> None:
    folders = [pretraining(tmp_path / f"run{i}", 2_000, 10) for i in range(12)]
    for folder in folders:
        resumed = {"event": "resumed", "old_world_size": 64, "new_world_size": 48}
        events = [{**resumed, "step": 5 * i, "time": 1.7e9 + i} for i in range(400)]
        write_lines(folder / "events.jsonl", events)
    page = write_report(folders, tmp_path / "report.html")
    assert page.read_text().count('"resumed on 48 processes instead of 64"') == 12 * 400
    assert page.stat().st_size < MOST_BYTES


def test_long_texts_are_cut(tmp_path: Path, shards: Path) -> None:
    run = finetuning(tmp_path / "run", [0.5])
    made = evaluation(run / "evaluations" / "greedy", shards, wrong=2)
    path = made / "hypotheses.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    long = {"reference": "A" * 500_000, "hypothesis": "ONE " * 125_000}
    write_lines(path, [row | long for row in rows])
    confusions = f"count\tkind\tsaid\tread\n9\tsubstitution\t{'B' * 500_000}\tC\n"
    (made / "confusions.tsv").write_text(confusions)
    alarm = {"event": "alarm", "alarm": "x", "value": 1.0, "limit": 1.0, "action": "D" * 20_000}
    events = [{**alarm, "step": i, "time": 1.7e9, "text": "E" * 20_000} for i in range(300)]
    write_lines(run / "events.jsonl", events)
    page = write_report([run], tmp_path / "report.html")
    assert page.stat().st_size < MOST_BYTES / 3
    text = page.read_text()
    assert f"{'A' * LONGEST}…" in text
    assert f"{'B' * LONGEST}…" in text
    assert text.count("DDDD…") == 300 + 20  # events, and the last alarms


def test_a_text_is_cut_where_it_is_too_long() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "abc…"
    said, read = differences("A " * LONGEST, "A " * 10, "word")
    assert read == "A " * 9 + "A "
    assert said.startswith("A " * 10 + "<del>A A")
