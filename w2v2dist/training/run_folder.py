"""The run folder: its lock, its resolved configuration, which may not change, and the logs of
samples."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from w2v2dist import __version__
from w2v2dist.config import ConfigError, diff, merge, read_yaml, to_dict, to_yaml
from w2v2dist.data.loader import Batch
from w2v2dist.runtime.logging import DISK_FULL, append_jsonl, read_jsonl

# Keys of a run that may differ when it is resumed: they change neither numbers nor data
MAY_CHANGE = (
    "run_dir",
    "loop.log_every",
    "loop.validate_every",
    "loop.save_every",
    "loop.keep_last",
    "loop.keep_every",
    "loop.async_save",
    "loop.log_samples",
    "loop.num_threads",
    "loop.timeout_s",
    "loop.stall_timeout_s",
    "engine.zero_stage",
    "model.activation_checkpointing",
    "data.train",
    "data.valid",
    "data.num_workers",
    "data.prefetch",
    "data.max_bad_samples",
    "data.read_retries",
    "data.read_timeout_s",
    "data.on_read_error",
)


class InUseError(RuntimeError):
    """Another process trains in the run folder."""


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run folder for this process, until it ends in whatever way (a POSIX record lock, which
    workers do not inherit; file systems without locks are used without). Raises InUseError where
    another process has it and does not go."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("a+", encoding="utf-8") as file:
        started = time.monotonic()
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                file.seek(0)
                owner = file.read().strip()
                # A dead process of this host has let go; of a dead host the file server must notice
                wait_s = 5 if f"on {platform.node()}," in owner else 150
                if time.monotonic() - started > wait_s:
                    raise InUseError(
                        f"{run_dir} is in use by {owner}: wait for it or end it, or use another "
                        f"run_dir"
                    ) from None
                time.sleep(0.5)
            except OSError:  # no lock service
                break
        file.seek(0)
        file.truncate()
        job = os.environ.get("SLURM_JOB_ID", "none")
        file.write(f"process {os.getpid()} on {platform.node()}, Slurm job {job}\n")
        file.flush()
        yield


def holder(run_dir: Path) -> str:
    """The process that holds a run folder; "" where none does, or where the file system does not
    show locks to this host. Not for the holder itself: closing the file would let go."""
    try:
        with (run_dir / "lock").open(encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return file.read().strip()
    except OSError:
        pass
    return ""


def refused_changes(config: Any, old: dict[str, Any]) -> str:
    """A line for every key that differs from `old` and may not; "" where there is none."""
    # A key that an older version did not have had its default
    defaults = to_dict(type(config)(run_dir=config.run_dir))
    changed = diff(merge(defaults, old), to_dict(config))
    may = {*MAY_CHANGE, *(k for k in changed if k.startswith("alarms."))}
    refused = {k: v for k, v in changed.items() if k not in may}
    return "\n".join(f"  {k}: {old!r} -> {new!r}" for k, (old, new) in refused.items())


def prepare_run_folder(config: Any, fingerprint: str) -> None:
    """Write config.yaml and environment.json of a new run; refuse a changed configuration of an old
    one."""
    run_dir = Path(config.run_dir)
    resolved = run_dir / "config.yaml"
    if resolved.exists() and (lines := refused_changes(config, read_yaml(resolved))):
        raise ConfigError(
            f"{run_dir} is a run with another configuration:\n{lines}\nuse another run_dir "
            f"for a new run, or the "
            "old values to continue this one (docs/resume.md lists the keys that may change)"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "logs").mkdir(exist_ok=True)
    temporary = run_dir / ".config.yaml.tmp"
    temporary.write_text(to_yaml(config), encoding="utf-8")
    temporary.replace(resolved)
    environment = {
        "w2v2dist": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "index_fingerprint": fingerprint,
    }
    (run_dir / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")


def starts(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of events.jsonl those with which an attempt begins."""
    return [e for e in events if e["event"] in ("start", "resumed")]


def attempt(run_dir: Path, step: int) -> dict[str, int]:
    """Of a start at `step`: the number of this attempt, from 1, and how many logged steps of the
    one before are lost."""
    before = starts(read_jsonl(run_dir / "events.jsonl"))
    since = before[-1]["time"] if before else 0.0
    steps = [r["step"] for r in read_jsonl(run_dir / "metrics.jsonl") if r.get("time", -1) >= since]
    return {"attempt": len(before) + 1, "lost_steps": max([0, *(s - step for s in steps)])}


def sample_record(batch: Batch) -> dict[str, Any]:
    """What one slot used at one step, as `w2v2dist batches` prints it."""
    masked = None if batch.mask is None else round(float(batch.mask.float().mean()), 6)
    return {
        "step": batch.step,
        "slot": batch.slot,
        "keys": batch.keys,
        "speeds": batch.speeds,  # starts and numbers of samples are those at this speed
        "starts": batch.starts,
        "num_samples": batch.lengths,
        "masked_fraction": masked,
    }


def log_batch(run_dir: Path, rank: int, batch: Batch, *, samples: bool) -> None:
    """Append what a slot used (where `samples`) and what it had to skip to the logs of a rank."""
    logs = run_dir / "logs"
    try:
        if samples and batch.keys:
            append_jsonl(logs / f"samples-{rank:05d}.jsonl", sample_record(batch))
        for bad in batch.bad:
            record = {"event": "sample_skipped", "step": batch.step, "slot": batch.slot, **bad}
            append_jsonl(logs / f"skipped-{rank:05d}.jsonl", record)
    except OSError as error:  # a full disk costs lines of logs, not the run
        if error.errno not in DISK_FULL:
            raise


def most_frequent_fault(run_dir: Path) -> str:
    """Why most utterances were skipped and in which shard most of them lie, with their numbers."""
    logs = sorted((run_dir / "logs").glob("skipped-*.jsonl"))
    skipped = {r["key"]: r for log in logs for r in read_jsonl(log)}.values()
    said = {"the most frequent reason": Counter(re.sub(r"\d+", "…", r["reason"]) for r in skipped)}
    said["the worst shard"] = Counter(Path(r["shard"]).name for r in skipped if "shard" in r)
    tops = [(what, *counts.most_common(1)[0]) for what, counts in said.items() if counts]
    return ", ".join(f"{what} is {top!r} ({count} of {len(skipped)})" for what, top, count in tops)
