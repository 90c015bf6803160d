"""The status of a run is what its logs add up to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from w2v2dist.cli import main
from w2v2dist.reporting.status import read_status
from w2v2dist.training.attempts import attempt


def slowest(rank: int, seconds: float, world_size: int = 2) -> dict[str, Any]:
    """What a record says of the slowest process, where the median needs 4 s."""
    values = {"slowest_rank": rank, "slowest_host": f"node{rank}", "slowest_rank_seconds": seconds}
    return {**values, "median_rank_seconds": 4.0, "world_size": world_size}


def record(step: int, time: float, **values: Any) -> dict[str, Any]:
    """Ten steps in 20 s on half an hour of audio."""
    common = {"loss": 7.0, "audio_hours": 0.5, "seconds": 20.0, "data_wait_seconds": 1.0}
    return {"step": step, "time": time, **common, **values}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """20 steps on 4 processes, saved after 10, killed; from 10 on to 40 on 2."""
    (tmp_path / "config.yaml").write_text("task: pretrain\nloop: {max_steps: 100}\n")
    metrics = [
        record(10, 120.0),
        record(20, 140.0, **slowest(3, 80.0, world_size=4)),  # before it went on with two
        {"step": 20, "time": 141.0, "valid/contrastive_loss": 5.5},
        record(20, 220.0, **slowest(1, 5.0)),
        record(30, 240.0, **slowest(0, 9.0)),
        record(40, 260.0, **slowest(1, 6.0), loss=6.0),
    ]
    events = [
        {"event": "start", "time": 100.0, "world_size": 4},
        {"event": "saved", "time": 121.0, "step": 10, "seconds": 1.0, "best": False},
        {"event": "resumed", "time": 200.0, "step": 10, "old_world_size": 4, "new_world_size": 2},
        {"event": "sample_skipped", "time": 205.0, "step": 12, "new": 1, "total": 3},
        {"event": "saved", "time": 262.0, "step": 40, "seconds": 2.5, "best": False},
    ]
    for name, records in (("metrics", metrics), ("events", events)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for step in (10, 40):
        (tmp_path / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    return tmp_path


def test_what_a_dead_run_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = read_status(run)
    expected = {
        "state": "stopped",
        "step": 40,
        "max_steps": 100,
        "seconds_per_step": 2.0,
        "seconds_left": 120.0,
        "audio_hours": 2.0,  # the steps trained twice count once
        "audio_hours_per_second": 0.025,
        "data_wait": 0.05,
        "attempts": 2,
        "world_sizes": [4, 2],
        "checkpoint_step": 40,
        "saving_seconds": 3.5,
        "restart_seconds": 59.0,  # from the validation at 141 s
        "repeated_steps": 10,
        "slowest_rank": {"rank": 1, "host": "node1", "ratio": 1.375, "count": 2, "of": 3},
        "skipped_utterances": 3,
        "last_sign_of_life": 262.0,
    }
    assert {k: status[k] for k in expected} == expected
    assert status["metrics"] == {"loss": 6.0, "valid/contrastive_loss": 5.5}
    assert main(["status", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "40 of 100 (40.0 %)" in shown
    assert "2, on 4 → 2 processes" in shown
    assert "rank 1 on node1: 1.38 × the median, in 2 of the last 3 records" in shown
    assert "0:00:59 to restarts, 10 steps trained again" in shown


@pytest.mark.parametrize(("event", "state"), [("finished", "finished"), ("preempted", "preempted")])
def test_how_it_ended(run: Path, event: str, state: str) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": event, "time": 270.0, "step": 40}) + "\n")
    assert read_status(run)["state"] == state


def test_a_resumption_from_before_discards_what_was_trained_after_it(run: Path) -> None:
    events = [
        {
            "event": "resumed",
            "time": 300.0 + i,
            "step": 10,
            "old_world_size": 2,
            "new_world_size": 2,
        }
        for i in range(3)
    ]
    with (run / "events.jsonl").open("a") as file:
        file.write("".join(json.dumps(e) + "\n" for e in events))
    status = read_status(run)
    assert (status["step"], status["audio_hours"]) == (10, 0.5)
    assert status["repeated_steps"] == 10 + 30  # once each, however often it failed


def test_attempt_and_lost_steps(run: Path) -> None:
    assert attempt(run, 10) == {"attempt": 3, "lost_steps": 30}  # not those of the first attempt
    assert attempt(run, 40) == {"attempt": 3, "lost_steps": 0}
    assert attempt(run / "new", 0) == {"attempt": 1, "lost_steps": 0}


def test_logs_without_times_count_nothing_as_repeated(run: Path) -> None:
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["time"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert read_status(run)["repeated_steps"] == 0
    assert read_status(run)["audio_hours"] == 2.0


def test_stacks_of_the_last_attempt_count(run: Path) -> None:
    (run / "logs").mkdir()
    for rank, seconds in enumerate((150, 250)):  # the last attempt began at 200
        path = run / "logs" / f"stacks-{rank:05d}.txt"
        path.write_text("Timeout")
        os.utime(path, (seconds, seconds))
    assert read_status(run)["stalled_processes"] == 1


def test_a_run_that_has_not_begun(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("metrics", "events"):
        (run / f"{name}.jsonl").unlink()
    assert read_status(run)["state"] == "new"
    assert main(["status", str(run)]) == 0
    assert "0 of 100" in capsys.readouterr().out


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "is no run folder: it has no config.yaml" in capsys.readouterr().err
