"""Which metrics raise an alarm, and the seed of a step after rollbacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training_parts import make_run
from tests.training_parts import world as world  # the fixture
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.tasks.pretrain import contrastive_readings
from w2v2dist.training.alarms import AlarmConfig, AlarmError, Alarms
from w2v2dist.training.checkpointer import Checkpointer
from w2v2dist.training.rollbacks import Rollbacks, seed_at
from w2v2dist.training.run_folder import Run
from w2v2dist.training.task import Reading

HEALTHY = {"loss": 5.0, "num_masked": 9.0, "contrastive_loss": 4.9, "accuracy": 0.3,
           "code_perplexity": 200.0}  # fmt: skip


def bad(step: int, model: Wav2Vec2Config | None = None, **values: Any) -> list[str]:
    """With a warm-up of 100 steps and 50 of grace."""
    record = {**HEALTHY, "step": step, **values}
    config = AlarmConfig(grace_steps=50)
    found = contrastive_readings(config, model or Wav2Vec2Config(), 100, record)
    return [reading.alarm for reading in found if reading.bad]


@pytest.mark.parametrize(
    ("step", "values", "expected"),
    [
        (151, {}, []),
        (150, {"contrastive_loss": 6.66, "code_perplexity": 2.0}, []),
        (
            151,
            {"contrastive_loss": 6.66, "code_perplexity": 2.0},
            ["chance_level", "code_collapse"],
        ),
        (151, {"contrastive_loss": 6.6}, []),
        (151, {"contrastive_loss": 60.0}, ["chance_level"]),  # worse than a guess
        (151, {"code_perplexity": 21.1}, ["code_collapse"]),  # 2 + 0.03 * 638 = 21.14
        (151, {"code_perplexity": 21.2}, []),
        (1, {"accuracy": 0.91}, ["early_accuracy"]),
        (100_000, {"accuracy": 0.91}, []),
        (151, {"num_masked": 0.0, "accuracy": 0.0, "code_perplexity": 0.0}, []),  # no audio at all
    ],
)
def test_what_metrics_mean(step: int, values: dict[str, Any], expected: list[str]) -> None:
    assert bad(step, **values) == expected


def test_models_and_losses_without_codes() -> None:
    continuous = Wav2Vec2Config(quantize_targets=False)
    assert bad(151, continuous, code_perplexity=0.0) == []


def test_the_last_rollback_before_a_step_decides() -> None:
    rollbacks = [{"from": 10, "until": 20}, {"from": 15, "until": 17}]
    seeds = {step: seed_at(rollbacks, 1, step) for step in range(1, 30)}
    assert {s for s in seeds if seeds[s] == 1} == {*range(1, 11), *range(18, 30)}
    assert len({seeds[s] for s in range(11, 16)}) == len({seeds[s] for s in (16, 17)}) == 1
    assert seeds[11] != seeds[16]


class Reads:
    """A task that watches its accuracy, as far as alarms know it."""

    def readings(self, record: dict[str, Any]) -> list[Reading]:
        accuracy = record.get("accuracy", 0.0)
        return [Reading("early_accuracy", accuracy, 0.9, accuracy > 0.9, "listen to it")]


@pytest.fixture
def run(tmp_path: Path, world: World) -> Iterator[Run]:
    with make_run(tmp_path, world) as run:
        yield run


@pytest.fixture
def alarms(run: Run) -> Alarms:
    return Alarms(run, Reads(), Rollbacks(run), Checkpointer(run, {}, {}))  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_stops_every_task(alarms: Alarms, tmp_path: Path) -> None:
    fp16 = {"step": 1, "loss": float("inf"), "loss_scale": 4.0}  # it looks for its scale
    assert alarms.after_record(fp16) is None
    with pytest.raises(AlarmError, match="not_finite at step 5000"):
        alarms.after_record({"step": 5_000, "loss": float("inf")})
    with pytest.raises(AlarmError, match="lower schedule"):
        Alarms(alarms.run, Reads(), alarms.rollbacks, alarms.checkpointer).after_record(  # type: ignore[arg-type]
            {"step": 1, "loss": float("nan")}
        )


def test_fp16_ends_when_its_smallest_scale_overflows(alarms: Alarms, tmp_path: Path) -> None:
    assert not alarms.after_step(1, float("inf"), 2.0, True)
    assert not alarms.after_step(2, float("inf"), 1.0, True)  # from 2 to 1
    assert not alarms.after_step(3, 5.0, 1.0, True)
    with pytest.raises(AlarmError, match="not_finite at step 4"):
        alarms.after_step(4, float("inf"), 1.0, True)
    events = [(e["alarm"], e["step"], e["action"]) for e in read_jsonl(tmp_path / "events.jsonl")]
    assert events == [("loss_scale", 2, "log"), ("not_finite", 4, "stop")]


def test_an_episode_is_one_event(alarms: Alarms, tmp_path: Path) -> None:
    for step, accuracy in enumerate((0.95, 0.97, 0.5, 0.95), 1):
        record = {**HEALTHY, "step": step, "accuracy": accuracy}
        assert not alarms.after_record(record)
    assert [e["step"] for e in read_jsonl(tmp_path / "events.jsonl")] == [1, 4]


def test_a_rollback_goes_back_to_before_the_last_healthy_record(
    run: Run, alarms: Alarms, tmp_path: Path
) -> None:
    for step in (2, 4, 6):
        (tmp_path / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    object.__setattr__(alarms.config, "on_alarm", "rollback")
    assert alarms.after_record({"step": 5, "loss": 1.0}) is None
    entry = alarms.after_record({"step": 7, "loss": 1.0, "accuracy": 0.95})
    assert entry == {"from": 4, "until": 504, "alarm_step": 7, "attempt": 1}
    assert alarms.rollbacks.entries == []  # it judges; the loop acts
    alarms.rollbacks.append(entry)
    assert Rollbacks(run).entries == [entry]
    alarms.resumed(4)
    again = alarms.after_record({"step": 7, "loss": 1.0, "accuracy": 0.95})
    assert again == {"from": 2, "until": 502, "alarm_step": 7, "attempt": 2}
