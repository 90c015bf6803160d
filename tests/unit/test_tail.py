"""Logs are read once, line by line, whatever happens to their files meanwhile."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.run_logs import append, make_run, training_record
from w2v2dist.reporting.history import QUICK, Curve, History
from w2v2dist.reporting.status import read_status, status_of
from w2v2dist.reporting.tail import ReplacedError, Tail, parse
from w2v2dist.runtime.logging import append_jsonl


def read(tail: Tail) -> list[bytes]:
    return [line.strip() for line in tail.lines() if line.strip()]


def test_only_what_was_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert read(tail) == []  # not there yet
    path.write_bytes(b'{"a": 1}\n{"b": ')
    assert read(tail) == [b'{"a": 1}']
    assert read(tail) == []  # half-written
    with path.open("ab") as file:
        file.write(b"2}")
    assert read(tail) == [b'{"b": 2}']  # whole without its end of line
    with path.open("ab") as file:
        file.write(b'\n{"c": 3}\n')
    assert read(tail) == [b'{"c": 3}']


@pytest.mark.parametrize("how", ["truncated", "grown", "replaced", "removed"])
def test_another_file_is_noticed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2}\n')
    tail = Tail(path)
    assert len(read(tail)) == 2
    if how == "truncated":
        path.write_bytes(b'{"c": 3}\n')
    elif how == "grown":  # truncated, and longer than before by now
        path.write_bytes(b'{"c": 3}\n' * 10)
    elif how == "replaced":
        (tmp_path / "new").write_bytes(b'{"a": 1}\n{"b": 2}\n{"c": 3}\n')
        (tmp_path / "new").replace(path)
    else:
        path.unlink()
    with pytest.raises(ReplacedError):
        read(tail)
    expected = {"truncated": 1, "grown": 10, "replaced": 3, "removed": 0}
    assert len(read(tail)) == expected[how]


def replay_slowly(training: list[dict[str, Any]], starts: list[dict[str, Any]]) -> Any:
    """By the definition: an attempt from step s makes all that was logged after s be lost."""
    kept: dict[int, dict[str, Any]] = {}
    step = repeated = 0
    for item in sorted([*training, *starts], key=lambda r: r["time"]):
        step = item["step"]
        if "event" in item:
            lost = [s for s in kept if s > step]
            repeated += max(lost, default=step) - step
            kept = {s: r for s, r in kept.items() if s <= step}
        else:
            kept[step] = item
    return [*kept.values()], step, repeated


@pytest.mark.parametrize("seed", range(20))
def test_a_run_read_in_pieces_adds_up_to_the_whole(tmp_path: Path, seed: int) -> None:
    rng, step, clock = random.Random(seed), 0, 1000.0
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("task: pretrain\nloop: {max_steps: 100}\n")
    history = History(run)
    training, starts = [], []
    for _ in range(40):
        clock += 1
        if rng.random() < 0.25:
            step = rng.randint(0, step)
            starts.append({"event": "resumed", "time": clock, "step": step, "new_world_size": 2})
            append(run, "events", starts[-1])
        else:
            step += 1
            training.append(training_record(step, clock, audio_hours=rng.random()))
            append(run, "metrics", training[-1])
        if rng.random() < 0.3:
            history.update()
    history.update()
    kept, last, repeated = replay_slowly(training, starts)
    status, whole = status_of(history), read_status(run)
    assert (status["step"], status["repeated_steps"]) == (last, repeated)
    assert status["audio_hours"] == pytest.approx(sum(r["audio_hours"] for r in kept))
    changing = ("seconds_silent",)
    assert {k: v for k, v in status.items() if k not in changing} == {
        k: v for k, v in whole.items() if k not in changing
    }
    assert not history.update()


def test_a_replaced_log_is_read_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=5)
    history = History(run)
    history.update()
    assert status_of(history)["step"] == 50
    (run / "metrics.jsonl").unlink()
    append(run, "metrics", training_record(10, time.time()))
    assert history.update()
    status = status_of(history)
    assert (status["step"], status["audio_hours"], status["attempts"]) == (10, 0.5, 1)


def test_what_a_training_writes_is_read_the_quick_way(tmp_path: Path) -> None:
    """And means the same as its JSON."""
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, training_record(7, 1790000000.123, lr=1e-05, loss=float("nan")))
    (line,) = Tail(path).lines()
    found, record = QUICK.match(line), parse(line)
    assert found is not None
    assert record is not None
    assert int(found[1]) == record["step"] == 7
    assert float(found[3]) == record[found[2].decode()] == 0.5
    assert float(found[4]) == record["time"]
    validation = b'{"step": 7, "valid/loss": 1.0, "time": 1790000000.123}\n'
    assert QUICK.match(validation) is None


def test_a_curve_of_any_length_stays_short() -> None:
    curve, count = Curve(most=64), 10_000
    for step in range(1, count + 1):
        if curve.wants():
            record = {"step": step, "loss": 1.0, "seconds": 2.0, "audio_hours": 1.0}
            curve.add(record, "audio_hours")
    steps = [step for step, *_ in curve.points]
    assert 32 <= len(steps) <= 64
    assert steps == sorted(set(steps))
    assert steps[0] < count / 20
    assert steps[-1] > 0.95 * count
    assert {point[1:] for point in curve.points} == {(1.0, 0.5)}
