"""Starts real training processes under gloo for tests, and reads back what they logged."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import yaml

from w2v2dist.cli import main
from w2v2dist.runtime.distributed import free_port
from w2v2dist.runtime.logging import read_jsonl

MODEL = {
    "conv_channels": 32,
    "num_layers": 3,
    "embed_dim": 64,
    "ffn_dim": 128,
    "num_heads": 4,
    "pos_conv_kernel": 16,
    "pos_conv_groups": 4,
    "final_dim": 32,
    "num_codebook_entries": 40,
    "layer_drop": 0.3,
}


def write_config(folder: Path, task: str, shards: Path, **values: Any) -> Path:
    """A training of a few seconds on `shards`; `values` are merged one level deep."""
    config: dict[str, Any] = {
        "task": task,
        "run_dir": str(folder / "run"),
        "model": dict(MODEL),
        "data": {
            "train": str(shards),
            "valid": str(shards),
            "virtual_world_size": 4,
            "max_samples_per_slot": 64_000,
            "max_crop": 32_000,
            "min_samples": 16_000,
            "num_workers": 1,
        },
        "loop": {
            "max_steps": 6,
            "log_every": 1,
            "validate_every": 100,
            "save_every": 3,
            "log_samples": True,
            "num_threads": 1,
            "timeout_s": 300,  # a busy machine is no failure
        },
        "engine": {"precision": "fp32", "zero_stage": 1},
        "schedule": {"peak_lr": 1e-3, "warmup_steps": 3},
    }
    if task == "finetune":
        config |= {"freeze_steps": 2}
        config["data"] |= {"max_crop": 64_000, "min_samples": 1_600}
        config["schedule"] = {"name": "tri_stage", "peak_lr": 1e-3}
        config["model"] |= {"channel_mask_prob": 0.2, "channel_mask_length": 8}
    for key, value in values.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@functools.cache
def fork_server() -> ForkServerContext:
    """The process that trainings are forked from: it has imported all they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
        forkserver.ensure_running()
    return context


def fp16_on_cpu() -> None:
    """From here on DeepSpeed believes that this process's CPU has fp16, as GPUs have."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def _rank(arguments: list[str], env: dict[str, str], output: str) -> None:
    """What `python -m w2v2dist.cli` does, in a process that was forked."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(env)
    if "TEST_FP16_ON_CPU" in env:
        fp16_on_cpu()
    multiprocessing.set_start_method(None, force=True)  # not the fork server's: Python's default
    sys.argv = ["w2v2dist", *arguments]
    sys.exit(main(arguments))


class Forked:
    """A forked training, with what the tests use of subprocess.Popen."""

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        self._output = tempfile.NamedTemporaryFile("r", errors="replace")  # noqa: SIM115
        values = (arguments, env, self._output.name)
        self._process = fork_server().Process(target=_rank, args=values)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("w2v2dist", timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self._output.read(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[str] | Forked


def start(config: Path, world_size: int, *overrides: str, fresh: bool = False) -> list[Process]:
    """Start `w2v2dist train` as `world_size` processes on this machine."""
    return start_command(["train", str(config), *overrides], world_size, fresh=fresh)


def start_command(arguments: list[str], world_size: int, *, fresh: bool = False) -> list[Process]:
    """Start a command as `world_size` processes; `fresh`: not forked from one that has imported
    everything, but by the command line, as a user does."""
    env = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world_size),
    }
    ranks = [env | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world_size)]
    if not fresh:
        return [Forked(arguments, rank) for rank in ranks]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "w2v2dist.cli", *arguments],
            env=rank,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ranks
    ]


def finish(processes: Sequence[Process], timeout_s: float = 240) -> tuple[list[int | None], str]:
    """Exit codes and the joined output; a process that outlasts the limit is killed."""
    output = ""
    try:
        for process in processes:
            output += process.communicate(timeout=timeout_s)[0]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return [p.returncode for p in processes], output


def train(config: Path, world_size: int, *overrides: str) -> str:
    """Run a training to its end; fails with its output unless every process exits 0."""
    codes, output = finish(start(config, world_size, *overrides))
    assert codes == [0] * world_size, output[-4000:]
    return output


def losses(run: Path) -> dict[int, float]:
    """Step -> loss of metrics.jsonl (the last one, where a step was repeated)."""
    return {r["step"]: r["loss"] for r in read_jsonl(run / "metrics.jsonl") if "loss" in r}


def event(run: Path, name: str) -> dict[str, Any]:
    """The first event of that name."""
    return next(e for e in read_jsonl(run / "events.jsonl") if e["event"] == name)


def samples(run: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """(step, slot) -> what it used, from the logs of all ranks."""
    records = [
        r for path in sorted((run / "logs").glob("samples-*.jsonl")) for r in read_jsonl(path)
    ]
    return {(r["step"], r["slot"]): r for r in records}


def ends_at_the_smallest_scale(shards: Path, folder: Path) -> None:
    """A training in fp16 at an absurd learning rate stops, and says why."""
    config = write_config(
        folder,
        "pretrain",
        shards,
        engine={"precision": "fp16"},
        schedule={"peak_lr": 1e4},
        loop={"max_steps": 100, "save_every": 100},
    )
    codes, output = finish(start(config, 1))
    assert codes == [2], output[-3000:]
    alarms = [e for e in read_jsonl(folder / "run" / "events.jsonl") if e["event"] == "alarm"]
    found = [(a["alarm"], a["action"]) for a in alarms]
    assert found[-2:] == [("loss_scale", "log"), ("not_finite", "stop")]
