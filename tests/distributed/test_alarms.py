"""A training that does not learn says so, stops or goes back: each alarm is provoked in real short
trainings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.conftest import synthetic_shards
from tests.distributed.processes import finish, losses, samples, start, train, write_config
from w2v2dist.checkpoint import candidates, read_parameters
from w2v2dist.cli import main
from w2v2dist.jobs.cluster import EXIT_CONFIG
from w2v2dist.jobs.local import run_local
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.training.rollbacks import read_rollbacks, seed_at

pytestmark = pytest.mark.timeout(600)
STEPS = 12
LOOP = {"max_steps": STEPS, "save_every": 2, "keep_last": 100}


def alarms(run: Path) -> list[dict[str, Any]]:
    return [e for e in read_jsonl(run / "events.jsonl") if e["event"] == "alarm"]


def saved(run: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step_")) for p in candidates(run / "checkpoints"))


def test_an_absurd_learning_rate_stops_before_anything_spoilt_is_saved(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`log` is the default, and stops here as well, on all processes."""
    config = write_config(
        tmp_path, "pretrain", shards, loop={"save_every": 1}, schedule={"peak_lr": 1e30}
    )
    codes, output = finish(start(config, 2))
    assert codes == [EXIT_CONFIG] * 2, output[-3000:]
    assert output.count("w2v2dist: alarm not_finite at step") == 2
    (alarm,) = alarms(tmp_path / "run")
    assert (alarm["alarm"], alarm["action"]) == ("not_finite", "stop")
    assert saved(tmp_path / "run") == list(range(1, alarm["step"]))
    for folder in candidates(tmp_path / "run" / "checkpoints"):
        assert all(bool(torch.isfinite(v).all()) for v in read_parameters(folder).values())
    assert main(["status", str(tmp_path / "run")]) == 0
    assert f"1; last: not_finite at step {alarm['step']} (stop)" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_beyond_all_numbers_are_not_saved(shards: Path, tmp_path: Path) -> None:
    """The first gradient is finite, the weights after it are not."""
    config = write_config(
        tmp_path, "pretrain", shards, loop={"save_every": 1}, schedule={"peak_lr": 1e39}
    )
    codes, output = finish(start(config, 1))
    assert codes == [EXIT_CONFIG], output[-3000:]
    assert [a["step"] for a in alarms(tmp_path / "run")] == [1]
    assert saved(tmp_path / "run") == []


@pytest.mark.slow
def test_rolling_back_in_vain_ends(shards: Path, tmp_path: Path) -> None:
    limits = {"on_alarm": "rollback", "max_rollbacks": 2}
    config = write_config(
        tmp_path,
        "pretrain",
        shards,
        loop={"save_every": 1},
        schedule={"peak_lr": 1e30},
        engine={"zero_stage": 2},
        alarms=limits,
    )
    codes, output = finish(start(config, 1))
    assert codes == [EXIT_CONFIG], output[-3000:]
    assert "2 rollbacks in a row did not lead past it" in output
    assert [a["action"] for a in alarms(tmp_path / "run")] == ["rollback", "rollback", "stop"]
    assert [r["attempt"] for r in read_rollbacks(tmp_path / "run")] == [1, 2]


def test_a_model_at_chance_level_and_few_codes_are_reported_once(
    shards: Path, tmp_path: Path
) -> None:
    limits = {"grace_steps": 1, "min_code_usage": 0.99}
    config = write_config(tmp_path, "pretrain", shards, schedule={"peak_lr": 1e-12}, alarms=limits)
    train(config, 1)
    found = {a["alarm"]: a for a in alarms(tmp_path / "run")}
    assert len(alarms(tmp_path / "run")) == 2
    assert {(a["step"], a["action"]) for a in found.values()} == {(5, "log")}  # warm-up + grace + 1
    records = {r["step"]: r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl")}
    assert found["chance_level"]["value"] == records[5]["contrastive_loss"]
    assert found["chance_level"]["limit"] == pytest.approx(6.658 - 0.05, abs=1e-3)
    assert found["code_collapse"]["value"] == records[5]["code_perplexity"] < 79.22
    assert found["code_collapse"]["limit"] == pytest.approx(2 + 0.99 * 78)


@pytest.mark.parametrize("action", ["stop", pytest.param("rollback", marks=pytest.mark.slow)])
def test_early_accuracy_ends_the_job_for_good(shards: Path, tmp_path: Path, action: str) -> None:
    """Also where a rollback finds no checkpoint; .error keeps Slurm from starting it again."""
    limits = {"on_alarm": action, "max_accuracy": 0}
    config = write_config(tmp_path, "pretrain", shards, loop={"save_every": 1}, alarms=limits)
    logs = tmp_path / "run" / "logs"
    assert run_local([str(config)], logs, 1) == EXIT_CONFIG
    (alarm,) = alarms(tmp_path / "run")
    assert (alarm["alarm"], alarm["step"], alarm["action"]) == ("early_accuracy", 1, "stop")
    assert saved(tmp_path / "run") == []
    (error,) = logs.glob("*.error")
    assert "alarm early_accuracy at step 1" in error.read_text()
    assert ("there is no checkpoint from before it" in error.read_text()) == (action == "rollback")


def noise(num_samples: int, seed: int) -> npt.NDArray[np.float64]:
    """Noise whose loudness changes like syllables."""
    rng = np.random.default_rng(seed)
    rng.integers(16_000, 80_000)  # the number of samples
    loudness = np.repeat(rng.random(-(-num_samples // 1_600)), 1_600)[:num_samples]
    sound = np.convolve(rng.standard_normal(num_samples), rng.standard_normal(32), "same")
    return 0.02 * loudness * sound


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio on which the accuracy of a step stands out with some seed, which speech need not."""
    return synthetic_shards(tmp_path_factory.mktemp("shards"), sound=noise)


@pytest.fixture(scope="module")
def reference(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run without an alarm in which the accuracy of a step stands out, and its seed."""
    for seed in range(1, 9):
        folder = tmp_path_factory.mktemp("reference")
        train(write_config(folder, "pretrain", shards, loop=LOOP, seed=seed), 1)
        assert alarms(folder / "run") == []
        if outlier(folder / "run") is not None:
            return folder / "run", seed
    raise AssertionError("no seed has an accuracy that stands out")


def outlier(reference: Path) -> tuple[int, float] | None:
    """The step after 3 whose accuracy is furthest above all before it, and a limit between them;
    None where no step's is by a twentieth."""
    values = {r["step"]: r["accuracy"] for r in read_jsonl(reference / "metrics.jsonl")
              if "accuracy" in r}  # fmt: skip
    best = {s: max(values[t] for t in range(1, s)) for s in range(4, STEPS - 1)}
    step = max(best, key=lambda s: values[s] - best[s])
    if values[step] < 1.05 * best[step]:
        return None
    return step, (values[step] + best[step]) / 2


@pytest.mark.parametrize(
    ("sizes", "stages", "later"),
    [((1, 2), (0, 1), 2), pytest.param((2, 1), (3, 1), 0, marks=pytest.mark.slow)],
)
def test_rollback_takes_other_samples_for_a_while_and_every_restart_takes_the_same(
    reference: tuple[Path, int],
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sizes: tuple[int, int],
    stages: tuple[int, int],
    later: int,
) -> None:
    unbroken, seed = reference
    at, limit = outlier(unbroken) or (0, 0.0)
    limits = {"on_alarm": "rollback", "max_accuracy": limit, "early_steps": at + 1,
              "rollback_steps": 4, "max_rollbacks": 20}  # fmt: skip
    config = write_config(
        tmp_path, "pretrain", shards, loop=LOOP, alarms=limits, engine={"zero_stage": stages[0]},
        seed=seed,
    )  # fmt: skip
    train(config, sizes[0])
    run, entries = tmp_path / "run", read_rollbacks(tmp_path / "run")
    first, last = entries[0], entries[-1]
    assert (first["alarm_step"], first["from"]) == (at, (at - 1) // 2 * 2)
    assert first["until"] == max(first["from"] + 4, at)
    assert [a["action"] for a in alarms(run)] == ["rollback"] * len(entries)
    assert saved(run) == list(range(2, STEPS + 1, 2))

    used, usual = samples(run), samples(unbroken)
    others = {s for s in range(1, STEPS + 1) if seed_at(entries, seed, s) != seed}
    assert {*range(last["from"] + 1, last["until"] + 1)} <= others
    assert STEPS not in others
    for (step, slot), record in usual.items():
        assert (used[step, slot] == record) == (step not in others)
    for step in (last["from"] + 1, last["until"] + 1):
        assert main(["batches", str(config), "--step", str(step)]) == 0
        printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert printed == [used[step, slot] for slot in range(4)]

    resume = last["from"] + later
    before = losses(run)
    for folder in candidates(run / "checkpoints"):
        if int(folder.name.removeprefix("step_")) > resume:
            shutil.rmtree(folder)
    for path in (run / "logs").glob("samples-*.jsonl"):
        path.unlink()
    train(config, sizes[1], f"engine.zero_stage={stages[1]}", "alarms.on_alarm=log")
    assert samples(run) == {key: record for key, record in used.items() if key[0] > resume}
    assert losses(run) == pytest.approx(before, rel=2e-5)
