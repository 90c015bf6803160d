"""Which metrics raise an alarm, and the seed of a step after rollbacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from w2v2dist import checkpoint
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import RunLogger, read_jsonl
from w2v2dist.training.alarms import AlarmConfig, AlarmError, Alarms, readings, seed_at

HEALTHY = {"loss": 5.0, "num_masked": 9.0, "contrastive_loss": 4.9, "accuracy": 0.3,
           "code_perplexity": 200.0}  # fmt: skip


def bad(step: int, model: Wav2Vec2Config | None = None, **values: Any) -> list[str]:
    """With a warm-up of 100 steps and 50 of grace."""
    record = {**HEALTHY, "step": step, **values}
    found = readings(AlarmConfig(grace_steps=50), model or Wav2Vec2Config(), 100, record)
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
        (1, {"loss": float("nan")}, ["not_finite"]),
        (1, {"loss": float("inf"), "loss_scale": 4.0}, []),  # fp16 looks for its scale
        (151, {"num_masked": 0.0, "accuracy": 0.0, "code_perplexity": 0.0}, []),  # no audio at all
    ],
)
def test_what_metrics_mean(step: int, values: dict[str, Any], expected: list[str]) -> None:
    assert bad(step, **values) == expected


def test_models_and_losses_without_codes() -> None:
    continuous = Wav2Vec2Config(quantize_targets=False)
    assert bad(151, continuous, code_perplexity=0.0) == []
    ctc = readings(AlarmConfig(), Wav2Vec2Config(), 0, {"step": 5_000, "loss": float("inf")})
    assert [r.alarm for r in ctc if r.bad] == ["not_finite"]


def test_the_last_rollback_before_a_step_decides() -> None:
    rollbacks = [{"from": 10, "until": 20}, {"from": 15, "until": 17}]
    seeds = {step: seed_at(rollbacks, 1, step) for step in range(1, 30)}
    assert {s for s in seeds if seeds[s] == 1} == {*range(1, 11), *range(18, 30)}
    assert len({seeds[s] for s in range(11, 16)}) == len({seeds[s] for s in (16, 17)}) == 1
    assert seeds[11] != seeds[16]


@pytest.fixture
def alarms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Alarms]:
    names = "RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT DS_ACCELERATOR"
    for name in names.split():  # what joining the world sets is undone afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    world, logger = World.from_environment(), RunLogger(tmp_path)
    yield Alarms(AlarmConfig(), tmp_path, world, logger, settle=lambda: None)
    logger.close()
    world.close()


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
        assert not alarms.after_record(record, Wav2Vec2Config(), 100)
    assert [e["step"] for e in read_jsonl(tmp_path / "events.jsonl")] == [1, 4]


def test_a_best_checkpoint_that_is_removed_leaves_no_best_score(
    alarms: Alarms, tmp_path: Path
) -> None:
    root = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        (root / f"step_{step:08d}").mkdir(parents=True)
    for best, lost in ((2, False), (3, True)):
        checkpoint.point(root, "best", root / f"step_{best:08d}")
        alarms._roll_back({"from": 2, "until": 9, "alarm_step": 3, "attempt": 1})
        assert alarms.lost_best == lost
        assert (root / "best").resolve().name == "step_00000002"
        (root / "step_00000003").mkdir(exist_ok=True)
