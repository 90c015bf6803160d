"""Logs of a run folder: metrics.jsonl, events.jsonl, TensorBoard, the console (rank 0 writes)."""

import contextlib
import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

DISK_FULL = {errno.ENOSPC: "no space left on the device", errno.EDQUOT: "disk quota exceeded"}
console = Console(soft_wrap=True, highlight=False)


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line; NaN and infinity become null, which every reader parses."""
    broken = {k: None for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)}
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a full disk cut the last one
                file.write(b"\n")
        file.write(json.dumps(record | broken).encode() + b"\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every complete line of a JSON-lines file, without a half-written one; [] where it is not."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").split("\n"):  # texts may hold other ends of lines
        with contextlib.suppress(json.JSONDecodeError):  # the process died while it wrote this line
            records.append(json.loads(line))
    return records


class RunLogger:
    """Writes the logs of a run folder; nothing where `enabled` is false (other ranks than 0)."""

    def __init__(self, run_dir: Path, enabled: bool = True) -> None:
        self.run_dir, self.enabled = run_dir, enabled
        self._board: SummaryWriter | None = None
        if enabled:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._board = SummaryWriter(str(run_dir / "tensorboard"))

    def metrics(self, record: dict[str, Any]) -> None:
        """Append a record (it has `step`) to metrics.jsonl and its numbers to TensorBoard."""
        self._append("metrics.jsonl", {**record, "time": round(time.time(), 3)})
        if self._board is None:
            return
        try:
            for key, value in record.items():
                if key != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(key, value, record["step"])
            self._board.flush()
        except OSError as error:
            self._lost("tensorboard/, until the next start", error)
            self._board = None  # its thread has ended

    def event(self, name: str, **fields: Any) -> None:
        """Append to events.jsonl and say it on the console."""
        self._append("events.jsonl", {"event": name, "time": round(time.time(), 3), **fields})
        self.say(f"[{name}] " + " ".join(f"{k}={v}" for k, v in fields.items()))

    def _append(self, name: str, record: dict[str, Any]) -> None:
        try:
            if self.enabled:
                append_jsonl(self.run_dir / name, record)
        except OSError as error:
            self._lost(f"{name}: {record}", error)

    def _lost(self, what: str, error: OSError) -> None:
        """A full disk does not end a training; another error does."""
        if error.errno not in DISK_FULL:
            raise error
        self.say(f"{error.strerror}: lost in {what}")

    def say(self, text: str) -> None:
        """Print a line on the console."""
        if self.enabled:
            console.print(text, markup=False)

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._board is not None:
            self._board.close()
