"""Logs of a run as a training writes them, for tests of what reads them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


def training_record(step: int, at: float | None, **values: Any) -> dict[str, Any]:
    """As Metrics writes it: ten steps in 20 s on half an hour of audio."""
    common = {"loss": 7.0, "contrastive_loss": 6.0, "lr": 1e-4, "grad_norm": 0.5}
    common |= {"audio_hours": 0.5, "seconds": 20.0, "data_wait_seconds": 1.0, "slowest_rank": 0}
    common |= {"slowest_host": "node0", "slowest_rank_seconds": 9.0, "median_rank_seconds": 8.0}
    timed = {} if at is None else {"time": at}
    return {"step": step, **common, "world_size": 2, **values, **timed}


def append(run: Path, name: str, *records: dict[str, Any]) -> None:
    """Append to metrics.jsonl or events.jsonl."""
    with (run / f"{name}.jsonl").open("a") as file:
        file.write("".join(json.dumps(r) + "\n" for r in records))


def make_run(run: Path, *, steps: int = 3, host: str = "", ago: float = 0.0) -> Path:
    """A run of 100 steps that logged `steps` times, the last time `ago` seconds ago."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("task: pretrain\nloop: {max_steps: 100}\n")
    now = time.time() - ago
    append(run, "events", {"event": "start", "time": now - 20 * steps - 1, "world_size": 2})
    records = (training_record(10 * i, now - 20 * (steps - i)) for i in range(1, steps + 1))
    append(run, "metrics", *records)
    if host:
        (run / "lock").write_text(f"process {os.getpid()} on {host}, Slurm job 7\n")
    return run
