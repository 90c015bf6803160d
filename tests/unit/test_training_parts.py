"""The loop and its parts with a real task of the smallest size: two layers, each with an optimizer
of its own, in turn."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from launch import demo
from tests.training_parts import make_run
from tests.training_parts import world as world  # the fixture
from w2v2dist.config import ConfigError
from w2v2dist.data.batch import Batch
from w2v2dist.data.config import DataConfig
from w2v2dist.reporting.status import read_status
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.tasks.pretrain import PretrainConfig
from w2v2dist.training.bad_samples import BadSamples
from w2v2dist.training.checkpointer import Checkpointer
from w2v2dist.training.engine import Engine, EngineConfig, OptimizerConfig
from w2v2dist.training.loop import Finished, Outcome, Preempted, fit
from w2v2dist.training.metrics import Metrics
from w2v2dist.training.schedules import LoopConfig
from w2v2dist.training.task import Group, Reading, Record, Transcript, Update


class Numbers:
    """A source: each slot of a step is its own number; `told` is signalled in the validation of
    that step's second batch."""

    fingerprint = "numbers"
    validation = {"valid": range(3)}  # noqa: RUF012
    notes = ()

    def __init__(self, flag: PreemptionFlag, told: int) -> None:
        self.flag, self.told, self.validations = flag, told, 0

    def check(self) -> None: ...

    def batches(
        self, steps: Iterable[int], slots: list[int | None], seed: int
    ) -> Generator[Batch, None, None]:
        for step in steps:
            yield from (Batch(step=step, slot=s or 0, num_targets=1, amount=10) for s in slots)

    def validation_batches(
        self, name: str, rank: int, world_size: int
    ) -> Generator[Batch, None, None]:
        self.validations += 1
        for i in self.validation[name]:
            if i == 1 and self.validations == self.told:
                self.flag.set(signal.SIGTERM)
            yield Batch(step=0, slot=i, num_targets=1)


class InTurn:
    """A task: odd steps move the left layer, even ones the right layer."""

    best_metric = "valid/loss"
    records: dict[str, Any] = {}  # noqa: RUF012
    notes = ()

    def __init__(self, source: Numbers) -> None:
        torch.manual_seed(0)
        self._source = source
        self.layers = {"left": nn.Linear(3, 2), "right": nn.Linear(3, 2)}
        self.groups = {
            "left": Group(self.layers["left"], OptimizerConfig()),
            "right": Group(self.layers["right"], OptimizerConfig(weight_decay=0.5)),
        }

    def check(self, world_size: int) -> None: ...

    def source(self) -> Numbers:
        return self._source

    def update(self, step: int) -> Update:
        return Update("left" if step % 2 else "right", 0.1)

    def losses(self, engine: Any, batch: Batch, step: int, seed: int) -> dict[str, Tensor]:
        out = engine(torch.randn(4, 3) if step else torch.ones(4, 3))
        return {"loss": (out - batch.slot).square().sum(), "num": torch.tensor(1.0)}

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["num"]}

    def transcripts(self, count: int) -> list[Transcript]:
        return []

    def schedule_metrics(self, step: int) -> dict[str, float]:
        return {}

    def progress(self, amount: float) -> dict[str, float]:
        return {"tokens": amount}

    def readings(self, record: Record) -> list[Reading]:
        return []


def train(
    folder: Path, world: World, *, stage: int = 1, told: int = 0, **loop: Any
) -> tuple[Outcome, InTurn, Numbers]:
    steps = {"max_steps": 6, "log_every": 1, "validate_every": 3, "save_every": 3, **loop}
    config = PretrainConfig(
        run_dir=str(folder),
        data=DataConfig(virtual_world_size=2),
        loop=LoopConfig(**steps),
        engine=EngineConfig(zero_stage=stage, precision="fp32"),
    )
    flag = PreemptionFlag()
    source = Numbers(flag, told)
    task = InTurn(source)
    return fit(config, task, world, flag), task, source


def weights(task: InTurn) -> dict[str, list[float]]:
    return {name: layer.weight.flatten().tolist() for name, layer in task.layers.items()}


@pytest.mark.parametrize("stage", [0, 1])
def test_an_update_moves_its_group_alone(tmp_path: Path, world: World, stage: int) -> None:
    start = weights(InTurn(Numbers(PreemptionFlag(), 0)))
    after = weights(train(tmp_path, world, stage=stage, max_steps=1)[1])
    assert after["right"] == start["right"]
    assert after["left"] != start["left"]


@pytest.mark.parametrize("stage", [0, 1])
def test_two_groups_resume_to_the_bit(tmp_path: Path, world: World, stage: int) -> None:
    outcome, whole, _ = train(tmp_path / "whole", world, stage=stage)
    assert outcome == Finished()
    # A signal in the validation of step 3; its save has the moments and counts of both groups
    outcome, _, _ = train(tmp_path / "told", world, stage=stage, told=1)
    assert outcome == Preempted(signal.SIGTERM)
    outcome, resumed, _ = train(tmp_path / "told", world, stage=stage)
    assert outcome == Finished()
    assert weights(resumed) == weights(whole)


def test_a_validation_that_a_signal_interrupts_is_owed(tmp_path: Path, world: World) -> None:
    train(tmp_path / "whole", world)
    train(tmp_path / "told", world, told=1)
    records = read_jsonl(tmp_path / "told" / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3]
    assert not [r for r in records if "valid/loss" in r]
    events = read_jsonl(tmp_path / "told" / "events.jsonl")
    assert [(e["event"], e["step"]) for e in events[1:]] == [("saved", 3), ("preempted", 3)]
    train(tmp_path / "told", world, told=2)  # and once more, in that of step 6
    assert read_jsonl(tmp_path / "told" / "events.jsonl")[-1]["event"] == "preempted"
    outcome, _, source = train(tmp_path / "told", world)
    assert (outcome, source.validations) == (Finished(), 1)
    told, whole = (
        {r["step"]: r["valid/loss"] for r in read_jsonl(path) if "valid/loss" in r}
        for path in (tmp_path / "told" / "metrics.jsonl", tmp_path / "whole" / "metrics.jsonl")
    )
    assert told == whole
    assert [*told] == [3, 6]
    links = [(tmp_path / f / "checkpoints" / "best").resolve().name for f in ("told", "whole")]
    assert links[0] == links[1]


def test_a_validation_that_was_owed_is_on_the_board_once(tmp_path: Path, world: World) -> None:
    """Also where a kill comes after it and before the next save."""
    train(tmp_path, world, told=1, max_steps=5)
    (tmp_path / "metrics.jsonl").write_text("")
    for told in (2, 0):  # neither saves again: a signal comes in the validation of step 5, owed too
        kept = shutil.copytree(tmp_path / "checkpoints", tmp_path / "kept", symlinks=True)
        train(tmp_path, world, told=told, max_steps=5)
        shutil.rmtree(tmp_path / "checkpoints")
        kept.rename(tmp_path / "checkpoints")
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records if "valid/loss" in r].count(3) == 2
    found = EventAccumulator(str(tmp_path / "tensorboard" / "valid")).Reload().Scalars("loss/loss")
    assert [e.step for e in found] == [3, 5]


def test_that_it_has_finished_is_said_once_and_after_a_kill_before_it(
    tmp_path: Path, world: World
) -> None:
    train(tmp_path, world)
    events = tmp_path / "events.jsonl"
    whole = events.read_text()
    assert json.loads(whole.splitlines()[-1])["event"] == "finished"
    events.write_text(whole[: whole.rindex("\n", 0, -1) + 1])
    for _ in range(2):
        outcome, _, source = train(tmp_path, world)
        assert (outcome, source.validations) == (Finished(), 0)
        said = [e for e in read_jsonl(events) if e["event"] in ("finished", "resumed")]
        assert [(e["event"], e["step"]) for e in said] == [("finished", 6)]
    assert read_status(tmp_path)["state"] == "finished"


def test_an_owed_validation_of_the_last_step_is_made_once(tmp_path: Path, world: World) -> None:
    train(tmp_path, world, told=2)
    for expected in (1, 0):
        outcome, _, source = train(tmp_path, world)
        assert (outcome, source.validations) == (Finished(), expected)
    assert [e["event"] for e in read_jsonl(tmp_path / "events.jsonl")].count("finished") == 1


def test_an_error_inside_a_step_says_where_and_how_to_look(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: InTurn, engine: Any, batch: Batch, step: int, seed: int) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(InTurn, "losses", fail)
    with pytest.raises(RuntimeError, match="out of memory") as error:
        train(tmp_path, world)
    assert error.value.__notes__ == [
        f"at step 1, slot 0: `w2v2dist batches {tmp_path}/config.yaml --step 1 --slot 0` shows "
        "what it used"
    ]


def test_a_full_gpu_names_the_keys_to_turn(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: InTurn, engine: Any, batch: Batch, step: int, seed: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(InTurn, "losses", fail)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as error:
        train(tmp_path, world)
    assert "model.activation_checkpointing=true" in error.value.__notes__[1]
    assert error.value.__notes__[1].endswith("a smaller data.max_samples_per_slot")


@pytest.mark.parametrize("where", ["a step", "a validation", "the engine"])
def test_a_full_memory_names_them_wherever_it_fills(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """What torch says of a CPU is no OutOfMemoryError."""
    losses = InTurn.losses

    def fill(*_: Any) -> Any:
        torch.empty(2**60, dtype=torch.uint8)

    def in_turn(self: InTurn, engine: Any, batch: Batch, step: int, seed: int) -> Any:
        full = (step > 0) == (where == "a step")
        return fill() if full else losses(self, engine, batch, step, seed)

    if where == "the engine":
        monkeypatch.setattr("w2v2dist.training.loop.make_engines", fill)
    else:
        monkeypatch.setattr(InTurn, "losses", in_turn)
    with pytest.raises(RuntimeError, match="allocate memory") as error:
        train(tmp_path, world)
    assert "model.activation_checkpointing=true" in error.value.__notes__[-1]


def test_a_gpu_without_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would emulate it: slower than fp32, and nothing would say so."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: (
        including_emulation
    ))  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cuda"))
    message = "precision is bf16, which Tesla V100 does not compute in .*: use fp16 or fp32"
    with pytest.raises(ValueError, match=message):
        Engine(nn.Linear(3, 2), EngineConfig(), OptimizerConfig(), 1, world)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert demo.fast_precision() == "fp32"


def test_metrics_are_averages_since_the_last_record(tmp_path: Path, world: World) -> None:
    with make_run(tmp_path, world, max_steps=9, log_every=4) as run:
        metrics = Metrics(run, InTurn(Numbers(PreemptionFlag(), 0)))
        assert [step for step in range(1, 10) if metrics.due(step)] == [4, 8, 9]
        for loss, weight in ((2.0, 1.0), (4.0, 1.0), (float("nan"), 0.0)):
            sums = {"loss": torch.tensor(loss).nan_to_num(), "num": torch.tensor(1.0)}
            metrics.add(sums, weight)  # an empty slot weighs nothing
            metrics.add_amount(10)
        record = metrics.record(4, {"lr": 0.5})
        assert (record["loss"], record["tokens"], record["lr"]) == (3.0, 30, 0.5)
        metrics.add({"loss": torch.tensor(7.0), "num": torch.tensor(1.0)}, 1.0)
        assert metrics.record(8, {})["loss"] == 7.0  # begun anew
    logged = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in logged] == [(4, 3.0), (8, 7.0)]


def test_bad_samples_are_counted_once_and_survive_a_restart(tmp_path: Path, world: World) -> None:
    with make_run(tmp_path, world) as run:
        bad = BadSamples(run)
        bad.count([{"key": "a", "reason": "cut"}, {"key": "b", "reason": "cut"}], 1)
        again = BadSamples(run)
        again.restore(bad.state())
        records = [{"key": key, "reason": "cut"} for key in "abc"]
        assert [r["key"] for r in again.unknown(records)] == ["c"]
        again.count(records, 2)
        assert again.state() == ["a", "b", "c"]
        many = [{"key": str(i), "reason": f"ends at {i}"} for i in range(98)]
        with pytest.raises(ConfigError, match=r"101 utterances .* data.max_bad_samples = 100"):
            again.count(many, 3)
    totals = [e["total"] for e in read_jsonl(tmp_path / "events.jsonl")]
    assert totals == [2, 3, 101]


def test_a_best_score_counts_once_its_checkpoint_is_there(tmp_path: Path, world: World) -> None:
    with make_run(tmp_path, world, save_every=5) as run:
        checkpointer = Checkpointer(run, {}, {})
        assert [step for step in range(1, 11) if checkpointer.due(step)] == [5, 10]
        assert [checkpointer.improves(score) for score in (3.0, 3.0, 2.0)] == [True, False, True]
        (tmp_path / "checkpoints").write_text("not a folder")
        checkpointer.begin(5, improved=True)
        checkpointer.settle()
        assert read_jsonl(tmp_path / "events.jsonl")[-1]["event"] == "save_failed"
        assert checkpointer.due(6)  # tried again
        assert checkpointer.improves(2.5)  # 2.0 was never saved
        checkpointer.close()


def test_a_rollback_removes_what_came_after_and_the_score_of_a_lost_best(
    tmp_path: Path, world: World
) -> None:
    root = tmp_path / "checkpoints"
    with make_run(tmp_path, world) as run:
        checkpointer = Checkpointer(run, {}, {})
        for best, lost in ((2, False), (3, True)):
            for step in (1, 2, 3):
                (root / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)
            (root / "best").unlink(missing_ok=True)
            (root / "best").symlink_to(f"step_{best:08d}")
            checkpointer.roll_back(2)
            assert checkpointer._lost_best == lost
            assert [p.name for p in checkpointer.folders()] == ["step_00000002", "step_00000001"]
            for name in ("best", "latest"):
                assert (root / name).resolve().name == "step_00000002"
        checkpointer.close()
