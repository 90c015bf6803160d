"""Processes and nodes that die on a real Slurm: the run goes on in its allocation, and finishes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.slurm.cluster import Cluster
from tests.slurm.test_slurm import config as config  # the fixture
from tests.slurm.test_slurm import wait_for_step
from w2v2dist.jobs.cluster import ClusterConfig, job_functions
from w2v2dist.runtime.logging import read_jsonl

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900, func_only=True)]


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [e for e in read_jsonl(run_dir / "events.jsonl") if e["event"] == name]


def test_training_survives_a_killed_rank_and_a_lost_node_in_one_allocation(
    cluster: Cluster, config: Path
) -> None:
    run_dir = cluster.root / "runs" / "killed"
    run_dir.mkdir(parents=True)
    profile = yaml.safe_load(config.with_name("cluster.yaml").read_text()) | {"no_kill": True}
    (run_dir / "cluster.yaml").write_text(yaml.safe_dump(profile))
    command = [sys.executable, "launch/submit.py", "--nodes", "1-3", "--cluster"]
    command += [str(run_dir / "cluster.yaml"), str(config), f"run_dir={run_dir}"]
    job_id = cluster.submit(*command, "loop.save_every=5")

    wait_for_step(cluster, run_dir, 7)
    (rank,) = (p for p in cluster.processes("n2", "submitit") if parent(p) == "slurmstepd")
    os.kill(int(rank.name), signal.SIGKILL)  # as the kernel does when memory ends
    cluster.wait(lambda: bool(events(run_dir, "resumed")), "the first restart", 200)
    wait_for_step(cluster, run_dir, 14)
    cluster.kill_node("n3")
    cluster.wait(lambda: len(events(run_dir, "resumed")) == 2, "the second restart", 200)
    cluster.start_node("n3")
    cluster.finish(job_id, 200)
    assert cluster.job(job_id)["Restarts"] == "0"
    failed, resumed = events(run_dir, "failed"), events(run_dir, "resumed")
    # A killed rank's peers fail with it, and one of them may be reported first: then it is blamed
    assert failed[0]["nodes"] in ("n1", "n2", "n3")
    assert failed[1]["nodes"] == "n3"
    assert [e["new_world_size"] for e in resumed] == [3, 2]
    assert [e["attempt"] for e in resumed] == [2, 3]
    for before, after in zip(failed, resumed, strict=True):
        assert before["checkpoint"] == f"step_{after['step']:08d}"
        assert 0 <= after["lost_steps"] <= 8
    assert events(run_dir, "finished")


def parent(process: Path) -> str:
    """The name of a process's parent."""
    number = (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
    return Path(f"/proc/{number}/comm").read_text().strip()


class ScriptJob:
    """A job around `job_functions` whose tasks are a few lines of shell, so that it fails fast."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.run_dir = cluster, cluster.root / "runs" / name
        self.log = self.run_dir / "log.out"

    def start(self, task: str, *options: str, min_nodes: int, no_kill: bool = False) -> None:
        """`task` is run on every node; attempts are counted by the lines of the log."""
        self.run_dir.mkdir(parents=True)
        functions = job_functions(self.run_dir, str(min_nodes), ClusterConfig(no_kill=no_kill))
        functions = f"export PATH={self.slow_watcher()}:$PATH\n{functions}"
        run = "srun --kill-on-bad-exit=1 --ntasks-per-node=1 bash -c "
        task = f"echo task on $SLURMD_NODENAME, address $MASTER_ADDR:$MASTER_PORT; {task}"
        script = self.run_dir / "job.sh"
        script.write_text(f"#!/bin/bash\n{functions}\n{run} '{task}'\n")
        common = ["--requeue", "--open-mode=append", "--exclusive", f"--output={self.log}"]
        self.job_id = self.cluster.submit("sbatch", *common, *options, str(script))

    def slow_watcher(self) -> Path:
        """A folder for the PATH, with an srun that starts a watcher late, as a busy Slurm does."""
        srun = self.run_dir / "bin" / "srun"
        srun.parent.mkdir()
        late = (
            f'case "$*" in *"scontrol requeue"*) sleep 3;; esac\nexec {shutil.which("srun")} "$@"'
        )
        srun.write_text(f"#!/bin/bash\n{late}\n")
        srun.chmod(0o755)
        return srun.parent

    def said(self, text: str) -> int:
        """How often the log has this text."""
        return self.log.read_text().count(text) if self.log.exists() else 0

    def wait(self, text: str, times: int = 1, timeout: float = 60) -> None:
        self.cluster.wait(lambda: self.said(text) >= times, f"{times} times {text!r}", timeout)

    def restarts(self) -> str:
        return self.cluster.job(self.job_id)["Restarts"]


def test_node_that_failed_twice_is_excluded_when_the_job_is_requeued(cluster: Cluster) -> None:
    job = ScriptJob(cluster, "excluded")
    job.start("[ $SLURMD_NODENAME != n2 ]", "--nodes=2", min_nodes=2)
    cluster.finish(job.job_id, 120)
    # Once in place, then with another node: n2 was left out of the second allocation
    assert (job.said("task on n2"), job.restarts()) == (2, "1")
    assert cluster.job(job.job_id)["ExcNodeList"] == "n2"
    assert [e["nodes"] for e in events(job.run_dir, "failed")] == ["n2", "n2"]


def test_crash_loop_ends_the_job(cluster: Cluster) -> None:
    """A new checkpoint starts the count anew; leaving out nodes that failed twice does not."""
    job = ScriptJob(cluster, "crashing")
    saved = job.run_dir / "checkpoints"
    third = f"[ $(grep -c failed {job.run_dir}/events.jsonl) != 2 ]"
    job.start(f"{third} || mkdir -p {saved}/step_00000009; exit 1", "--nodes=1", min_nodes=1)
    cluster.wait(lambda: cluster.job(job.job_id)["JobState"] == "FAILED", "the job's end", 120)
    assert (job.said("task on"), job.restarts()) == (5, "2")
    checkpoints = [e["checkpoint"] for e in events(job.run_dir, "failed")]
    assert checkpoints == ["none"] * 2 + ["step_00000009"] * 3
    assert len(events(job.run_dir, "crash_loop")) == 1
    assert job.log.read_text().splitlines()[-1].startswith("crash loop: 3 failures without a new")


@pytest.fixture
def lost_node(cluster: Cluster) -> Iterator[str]:
    """A node that is back when the test is over."""
    yield "n1"
    cluster.start_node("n1")
    state = ("sinfo", "-h", "-n", "n1", "-p", "train", "-o", "%t")
    cluster.wait(lambda: cluster.command(*state) == "idle", "n1 to return", 60)


def test_job_whose_first_node_dies_is_requeued(cluster: Cluster, lost_node: str) -> None:
    """Under --no-kill Slurm would keep the allocation, with nothing running in it."""
    job = ScriptJob(cluster, "headless")
    restart = "[ ${SLURM_RESTART_COUNT:-0} = 1 ] || sleep 300"
    job.start(restart, "--nodes=2", "--no-kill", min_nodes=1, no_kill=True)
    job.wait("task on")
    # The watcher of the first node is there before any task is
    assert cluster.processes("n2", "scontrol requeue")
    assert cluster.job(job.job_id)["BatchHost"] == lost_node
    cluster.kill_node(lost_node)
    cluster.finish(job.job_id, 120)
    assert job.restarts() == "1"
