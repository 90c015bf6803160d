"""Real trainings for benchmarks/gpu.py: 200 steps for each ZeRO stage, with what waits for data;
and the same run resumed from its middle, whose losses must be those of the unbroken one."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT
from w2v2dist.runtime.logging import read_jsonl

TIME_S = 440.0  # no training is begun that would not end by then
# How far the losses of the resumed run may be from the unbroken one's, relative: a GPU adds in
# another order, and 16 bits round what is left of it; a CPU must give the same bits
TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}


def trainings(shards: Path, precision: str, tiny: bool) -> dict[str, Any]:
    """A row for each ZeRO stage, as far as there is time. Raises RuntimeError where one fails or
    the losses differ."""
    tolerance = TOLERANCES[precision] if torch.cuda.is_available() else 0.0
    rows: list[dict[str, Any]] = []
    begun = time.perf_counter()
    for stage in range(4):
        spent = time.perf_counter() - begun
        if rows and spent * (stage + 1) / stage > TIME_S:
            break
        rows.append(one_stage(shards, stage, precision, tiny))
    left_out = list(range(len(rows), 4))
    wrong = [r["zero_stage"] for r in rows if not r["difference"] <= tolerance]
    if wrong:
        raise RuntimeError(
            f"resumed losses differ by more than {tolerance:g} (relative) at ZeRO {wrong}: {rows}"
        )
    return {"precision": precision, "tolerance": tolerance, "rows": rows, "left_out": left_out}


def one_stage(shards: Path, stage: int, precision: str, tiny: bool) -> dict[str, Any]:
    """Train unbroken; take the second half away and train it again."""
    steps = 6 if tiny else 200
    name = "tiny_pretrain" if tiny else "base_ls960"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        arguments = [f"configs/{name}.yaml", f"run_dir={run}", f"data.train={shards}"]
        arguments += ["data.valid=null", "data.virtual_world_size=1", f"engine.zero_stage={stage}"]
        arguments += [f"engine.precision={precision}", f"loop.max_steps={steps}"]
        arguments += ["loop.log_every=1", f"loop.save_every={steps // 2}"]
        if tiny:  # where no step waits for several
            arguments += ["data.max_samples_per_slot=48_000", "data.max_crop=24_000"]
        seconds = train(arguments)
        whole = {r["step"]: r for r in read_jsonl(run / "metrics.jsonl")}
        if sorted(whole) != list(range(1, steps + 1)):
            raise RuntimeError(f"ZeRO {stage} logged {len(whole)} of {steps} steps")
        shutil.rmtree(run / "checkpoints" / f"step_{steps:08d}")
        (run / "metrics.jsonl").unlink()
        train(arguments)
        resumed = {r["step"]: r for r in read_jsonl(run / "metrics.jsonl")}
        if sorted(resumed) != list(range(steps // 2 + 1, steps + 1)):
            raise RuntimeError(f"ZeRO {stage} resumed with the steps {sorted(resumed)[:3]} …")
    late = [whole[s] for s in range(steps // 4 + 1, steps + 1)]  # after what warms up
    spent, waited = (sum(r[k] for r in late) for k in ("seconds", "data_wait_seconds"))
    return {
        "zero_stage": stage,
        "steps": steps,
        "seconds_with_start": seconds,
        "step_seconds": statistics.median(r["seconds"] for r in late),
        "audio_hours_per_second": sum(r["audio_hours"] for r in late) / spent,
        "data_wait": waited / spent,
        "first_loss": whole[1]["loss"],
        "last_loss": whole[steps]["loss"],
        "difference": max(
            abs(resumed[s]["loss"] - whole[s]["loss"]) / abs(whole[s]["loss"]) for s in resumed
        ),
    }


def train(arguments: list[str]) -> float:
    """Seconds of a training, start included. Raises RuntimeError with the end of its output."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "w2v2dist.cli", "train", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    print(done.stdout[-2000:], flush=True)
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no output"]
        raise RuntimeError(f"a training ended with status {done.returncode}: {lines[-1]}")
    return time.perf_counter() - started
