"""submit.py and train.sbatch of launch/ on a real Slurm: a preempted job ends as if it were not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.slurm.cluster import REPOSITORY, Cluster
from w2v2dist.runtime.logging import read_jsonl

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400, func_only=True)]
NUM_STEPS = 60
CONFIG: dict[str, Any] = {
    "task": "pretrain",
    "run_dir": "set on the command line",
    "model": {
        "conv_channels": 16,
        "num_layers": 1,
        "embed_dim": 32,
        "ffn_dim": 64,
        "num_heads": 2,
        "pos_conv_kernel": 16,
        "pos_conv_groups": 4,
        "final_dim": 16,
        "num_codebook_entries": 8,
        "num_distractors": 10,
    },
    "data": {
        "virtual_world_size": 8,
        "max_samples_per_slot": 64_000,
        "max_crop": 32_000,
        "min_samples": 16_000,
        "num_workers": 1,
    },
    "loop": {
        "max_steps": NUM_STEPS,
        "log_every": 1,
        "validate_every": 1000,
        "save_every": 1000,
        "num_threads": 1,
    },
    "engine": {"precision": "fp32", "zero_stage": 1},
    "schedule": {"peak_lr": 1e-3, "warmup_steps": 10},
}
CLUSTER = {"gpus_per_node": 0, "tasks_per_node": 1, "partition": "train", "time": "10"}


@pytest.fixture(scope="session")
def config(cluster: Cluster, made_speech: Path) -> Path:
    """A training of about 20 s on two minutes of speech; cluster.yaml lies beside it."""
    shards = cluster.root / "shards"
    command = [sys.executable, "shards/build.py", "--input", str(made_speech / "librispeech/valid")]
    subprocess.run(
        [*command, "--output", str(shards)],
        cwd=REPOSITORY,
        check=True,
        timeout=120,
        capture_output=True,
    )
    data = {**CONFIG["data"], "train": str(shards), "valid": str(shards)}
    path = cluster.root / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "data": data}))
    (cluster.root / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    return path


def submit(cluster: Cluster, config: Path, run_dir: Path, *options: str) -> str:
    profile = str(config.with_name("cluster.yaml"))
    arguments = ["--nodes", "2", "--cluster", profile, *options, str(config), f"run_dir={run_dir}"]
    return cluster.submit(sys.executable, "launch/submit.py", *arguments)


def final_loss(run_dir: Path) -> float:
    """The loss of the last step; every step was logged, in order, once."""
    records = [r for r in read_jsonl(run_dir / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in records] == list(range(1, NUM_STEPS + 1))
    return float(records[-1]["loss"])


def wait_for_step(cluster: Cluster, run_dir: Path, step: int) -> None:
    metrics = run_dir / "metrics.jsonl"
    cluster.wait(lambda: len(read_jsonl(metrics)) >= step, f"step {step} of {run_dir.name}", 200)


def check_resumed(run_dir: Path, signal_number: int) -> None:
    """It stopped at a step in the middle on this signal and went on from exactly that step."""
    events = read_jsonl(run_dir / "events.jsonl")
    stopped = [e for e in events if e["event"] == "preempted"]
    assert [e["signal"] for e in stopped] == [signal_number]
    assert 3 <= stopped[0]["step"] < NUM_STEPS
    resumed = [e for e in events if e["event"] == "resumed"]
    assert [e["step"] for e in resumed] == [stopped[0]["step"]]
    assert events[-1]["event"] == "finished"


@pytest.fixture(scope="session")
def uninterrupted(cluster: Cluster, config: Path) -> float:
    """The final loss of the training on two nodes, in one go."""
    run_dir = cluster.root / "runs" / "uninterrupted"
    job_id = submit(cluster, config, run_dir, "--follow")
    assert cluster.job(job_id)["JobState"] == "COMPLETED"
    assert cluster.job(job_id)["Restarts"] == "0"
    return final_loss(run_dir)


@pytest.mark.parametrize(
    ("user_signal", "signal_number"), [(True, 12), (False, 15)], ids=["USR2", "TERM"]
)
def test_preempted_job_requeues_and_resumes(
    cluster: Cluster, config: Path, uninterrupted: float, user_signal: bool, signal_number: int
) -> None:
    cluster.configure(user_signal)
    cluster.command("scontrol", "reconfigure")
    run_dir = cluster.root / "runs" / ("usr2" if user_signal else "term")
    job_id = submit(cluster, config, run_dir)
    wait_for_step(cluster, run_dir, 3)
    urgent = cluster.submit(
        *(
            "sbatch",
            "--partition=urgent",
            "--nodes=4",
            "--exclusive",
            "--time=2",
            "--output=/dev/null",
        ),
        "--wrap=sleep 2",
    )
    cluster.finish(urgent, 90)
    cluster.finish(job_id, 200)
    assert cluster.job(job_id)["Restarts"] == "1"
    check_resumed(run_dir, signal_number)
    assert final_loss(run_dir) == pytest.approx(uninterrupted, abs=1e-5)


def test_plain_sbatch_requeues_and_resumes(
    cluster: Cluster, config: Path, uninterrupted: float
) -> None:
    run_dir = cluster.root / "runs" / "plain"
    run_dir.mkdir(parents=True)
    options = [
        "--nodes=2",
        "--gpus-per-node=0",
        "--ntasks-per-node=1",
        "--time=10",
        f"--output={run_dir}/%j.out",
    ]
    job_id = cluster.submit(
        "sbatch", *options, "launch/train.sbatch", str(config), f"run_dir={run_dir}"
    )
    wait_for_step(cluster, run_dir, 3)
    cluster.command("scancel", "--signal=USR1", job_id)  # as before the time limit
    cluster.wait(lambda: cluster.job(job_id)["Restarts"] == "1", "the job to requeue itself", 60)
    cluster.finish(job_id, 200)
    check_resumed(run_dir, 10)
    assert final_loss(run_dir) == pytest.approx(uninterrupted, abs=1e-5)


def test_cancelled_job_saves_and_stays_cancelled(cluster: Cluster, config: Path) -> None:
    run_dir = cluster.root / "runs" / "cancelled"
    job_id = submit(cluster, config, run_dir)
    wait_for_step(cluster, run_dir, 3)
    cluster.command("scancel", job_id)
    cluster.wait(lambda: not cluster.command("squeue", "-h", "-j", job_id), "the job to end", 60)
    time.sleep(3)
    assert cluster.job(job_id)["JobState"] == "CANCELLED"
    assert (run_dir / "checkpoints" / "latest").exists()


def test_slurm_accepts_what_dry_run_prints(cluster: Cluster, config: Path) -> None:
    command = [sys.executable, "launch/submit.py", "--nodes", "2-4", "--dry-run", "--cluster"]
    command += [str(config.with_name("cluster.yaml")), str(config)]
    printed = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    script = cluster.root / "dry_run.sh"
    script.write_text(printed[printed.index("#!/bin/bash") :])
    tested = subprocess.run(
        ["sbatch", "--test-only", str(script)],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert tested.returncode == 0, tested.stderr
    assert "in partition train" in tested.stderr
