"""A sweep as an array job on a real Slurm: a node is lost, its cells go on elsewhere, and every
cell finishes with the losses of an uninterrupted one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gan_data import write_gan_config, write_language
from tests.slurm.cluster import REPOSITORY, Cluster
from w2v2dist.jobs.sweep import read_sweep
from w2v2dist.runtime.logging import read_jsonl

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900, func_only=True)]
STEPS = 2_000


def write_sweep(folder: Path) -> Path:
    data = write_language(folder / "language")
    loop = {"max_steps": STEPS, "log_every": 50, "validate_every": STEPS, "save_every": 50}
    config = write_gan_config(folder, data, loop={**loop, "num_threads": 1})
    values: dict[str, Any] = {"config": config.name, "run_dir": str(folder / "sweep")}
    values["grid"] = {"losses.penalty_weight": [1.5, 2], "losses.diversity_weight": [2, 4]}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**values, "seeds": [1, 2]}, sort_keys=False))
    profile = {"gpus_per_node": 0, "time": "00:20:00", "sbatch": {"cpus-per-task": 4}}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(profile))
    return path


def said(cluster: Cluster, *command: str) -> str:
    """What a command prints in the repository, with the cluster at hand."""
    done = subprocess.run(
        command,
        env=cluster.environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def step_of(folder: Path) -> int:
    return max([0, *(int(r["step"]) for r in read_jsonl(folder / "metrics.jsonl"))])


def test_a_sweep_survives_a_lost_node(cluster: Cluster) -> None:
    folder = cluster.root / "runs" / "swept"
    path = write_sweep(folder)
    command = [sys.executable, "launch/submit.py", "--cluster", str(folder / "cluster.yaml")]
    command += ["--sweep", str(path)]
    job_id = cluster.submit(*command)
    sweep = read_sweep(str(path), [])
    assert len(sweep.cells) == 8

    def queued() -> list[str]:
        shown = cluster.command("squeue", "-h", "-r", f"--jobs={job_id}", "-o", "%K %N")
        return shown.splitlines()

    def begun() -> bool:
        return all(step_of(cell.folder) > 100 for cell in sweep.cells)

    cluster.wait(begun, "all cells to have saved", 300)
    on_node = [line.split()[0] for line in queued() if line.endswith(" n2")]
    assert len(on_node) == 2
    lost = [sweep.cells[int(task)] for task in on_node]
    cluster.kill_node("n2")
    cluster.wait(lambda: not any(line.endswith(" n2") for line in queued()), "their requeue", 60)
    again = said(cluster, *command)
    assert "0 finished, 8 in the queue" in again
    cluster.start_node("n2")
    cluster.wait(lambda: not queued(), "the end of the array", 500)
    for cell in sweep.cells:
        events = read_jsonl(cell.folder / "events.jsonl")
        assert cell.is_finished, cell.name
        names = [e["event"] for e in events]
        assert names.count("resumed") == (cell in lost), cell.name
        steps = {r["step"] for r in read_jsonl(cell.folder / "metrics.jsonl") if "loss" in r}
        assert steps == {*range(50, STEPS + 1, 50)}
    again = said(cluster, *command)
    assert "8 finished, 0 in the queue" in again
    assert "submitted" not in again
    # To the bit: the lost cell's losses are those of the same training that was let alone
    whole = read_sweep(str(path), [f"run_dir={folder / 'whole'}", f"loop.save_every={STEPS}"])
    (same,) = [cell for cell in whole.cells if cell.name == lost[0].name]
    said(cluster, sys.executable, "-m", "w2v2dist.cli", "train", str(same.write_config()))
    assert last_losses(lost[0].folder) == last_losses(same.folder)


def last_losses(folder: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_jsonl(folder / "metrics.jsonl") if "loss" in r}
