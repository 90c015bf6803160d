"""A run is a pure function of its configuration, its index and the step: held for real processes
under gloo."""

from __future__ import annotations

import json
import platform
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.distributed.processes import event, finish, losses, samples, start, train, write_config
from w2v2dist.cli import main
from w2v2dist.reporting.status import read_status
from w2v2dist.runtime.logging import read_jsonl

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def reference(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps in one process, uninterrupted."""
    folder = tmp_path_factory.mktemp("reference")
    train(write_config(folder, "pretrain", shards), 1)
    return folder / "run"


@pytest.mark.parametrize(
    ("world_size", "zero_stage"),
    [(2, 1), pytest.param(3, 0, marks=pytest.mark.slow), (4, 2), (3, 3)],
)
def test_losses_and_samples_do_not_depend_on_the_world_size(
    reference: Path, shards: Path, tmp_path: Path, world_size: int, zero_stage: int
) -> None:
    # 3 processes for 4 slots: two of them run an empty slot. LayerDrop 0.3 skips layers, under ZeRO
    # 3 as well.
    config = write_config(tmp_path, "pretrain", shards, engine={"zero_stage": zero_stage})
    train(config, world_size)
    assert samples(tmp_path / "run") == samples(reference)
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), rel=2e-5)


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [
        (1, "fp32"),
        pytest.param(2, "fp32", marks=pytest.mark.slow),
        (3, "fp32"),
        *(pytest.param(stage, "bf16", marks=pytest.mark.slow) for stage in (1, 2, 3)),
    ],
)
def test_two_processes_save_and_resume_under_every_stage(
    shards: Path, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    engine = {"zero_stage": zero_stage, "precision": precision}
    whole = write_config(tmp_path, "pretrain", shards, engine=engine)
    train(whole, 2)
    run = tmp_path / "run"
    uninterrupted = losses(run)
    for name in ("step_00000006", "latest"):  # as if the run had died after step 3
        path = run / "checkpoints" / name
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    train(whole, 2)
    events = [e["event"] for e in read_jsonl(run / "events.jsonl")]
    assert events == ["start", "saved", "saved", "finished", "resumed", "saved", "finished"]
    resumed = [r["loss"] for r in read_jsonl(run / "metrics.jsonl") if "loss" in r][-3:]
    assert resumed == [uninterrupted[s] for s in (4, 5, 6)]  # to the bit


def test_a_signal_saves_and_the_same_command_continues_at_another_world_size(
    reference: Path, shards: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, "pretrain", shards, loop={"save_every": 100})
    processes = start(config, 2, fresh=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    # One rank alone is told, with its data workers, as Slurm does: all must agree
    subprocess.run(["pkill", "-TERM", "-P", str(processes[1].pid)], check=True, timeout=20)
    processes[1].send_signal(signal.SIGTERM)
    codes, output = finish(processes)
    assert codes == [75, 75], output[-3000:]
    preempted = event(tmp_path / "run", "preempted")
    saved, seconds = preempted["step"], event(tmp_path / "run", "saved")["seconds"]
    assert 1 <= saved < 6
    assert preempted["seconds_to_save"] >= seconds > 0
    train(config, 3, "engine.zero_stage=3")
    resumed = event(tmp_path / "run", "resumed")
    assert (resumed["step"], resumed["old_world_size"], resumed["new_world_size"]) == (saved, 2, 3)
    assert samples(tmp_path / "run") == samples(reference)
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), rel=2e-5)


def test_batches_prints_what_the_run_used(
    reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 5):
        assert main(["batches", str(reference / "config.yaml"), "--step", str(step)]) == 0
        printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert printed == [samples(reference)[step, slot] for slot in range(4)]


def test_more_processes_than_slots_is_an_error_that_names_both(
    shards: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, "pretrain", shards, data={"virtual_world_size": 1})
    codes, output = finish(start(config, 2))
    assert codes == [2, 2]
    assert "data.virtual_world_size is 1 but the job has 2 processes" in output


def test_fine_tuning_from_a_pre_trained_run_unfreezes_validates_and_is_evaluated(
    reference: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path,
        "finetune",
        shards,
        pretrained=str(reference),
        engine={"zero_stage": 3},
        loop={"validate_every": 6},
    )
    train(config, 2)
    run = tmp_path / "run"
    whole, best = losses(run), (run / "checkpoints" / "best").resolve()
    shutil.rmtree(best)  # as if it had died after step 3; the pre-trained model is gone as well
    reference.rename(reference.parent / "moved")
    try:
        train(config, 1, "engine.zero_stage=1")
    finally:
        (reference.parent / "moved").rename(reference)
    assert losses(run) == pytest.approx(whole, rel=2e-5)
    records = read_jsonl(run / "metrics.jsonl")
    frozen = [r["frozen"] for r in records if "frozen" in r]
    assert frozen == [1, 1, 0, 0, 0, 0, 0, 0, 0]  # three steps twice
    assert records[-1]["valid/wer"] > 0
    assert (run / "checkpoints" / "best").exists()
    assert main(["evaluate", str(run)]) == 0
    (found,) = (run / "evaluations").glob("*-greedy/evaluation.json")
    evaluation = json.loads(found.read_text())
    # The same weights outside DeepSpeed make the same errors as in the run's own validation
    assert evaluation["wer"] == pytest.approx(records[-1]["valid/wer"])
    assert "WER" in capsys.readouterr().out


@pytest.mark.slow
def test_a_hang_ends_the_run_and_leaves_the_stacks_of_who_waited(
    shards: Path, tmp_path: Path
) -> None:
    loop = {"max_steps": 10_000, "stall_timeout_s": 40}
    processes = start(write_config(tmp_path, "pretrain", shards, loop=loop), 2, fresh=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        while not read_jsonl(metrics) and processes[0].poll() is None:
            time.sleep(0.1)
        assert processes[0].poll() is None
        processes[1].send_signal(signal.SIGSTOP)  # as a process that waits for a dead disk
        assert processes[0].wait(timeout=120) == 1
    finally:
        processes[1].send_signal(signal.SIGCONT)
        codes, output = finish(processes)
    assert codes[1] != 0
    stacks = (tmp_path / "run" / "logs" / "stacks-00000.txt").read_text()
    assert "Timeout (0:00:40)!" in stacks
    assert "loop.py" in stacks, output[-2000:]


def test_the_process_that_holds_the_others_up_is_named(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, "pretrain", shards, loop={"max_steps": 12, "save_every": 100})
    processes = start(config, 2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        while not read_jsonl(metrics) and processes[0].poll() is None:
            time.sleep(0.02)
        while processes[0].poll() is None and processes[1].poll() is None:
            for number, seconds in ((signal.SIGSTOP, 0.2), (signal.SIGCONT, 0.05)):
                processes[1].send_signal(number)  # a fifth of the speed, as on a hot GPU
                time.sleep(seconds)
    finally:
        processes[1].send_signal(signal.SIGCONT)
        codes, output = finish(processes)
    assert codes == [0, 0], output[-3000:]
    slowest = read_status(tmp_path / "run")["slowest_rank"]
    assert (slowest["rank"], slowest["host"]) == (1, platform.node())
    assert slowest["ratio"] > 1.2
    records = [r for r in read_jsonl(metrics) if "seconds" in r]
    assert all(r["median_rank_seconds"] <= r["slowest_rank_seconds"] for r in records)
    assert all(r["slowest_rank_seconds"] <= r["seconds"] + 0.1 for r in records)
