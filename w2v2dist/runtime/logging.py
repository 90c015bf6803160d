"""Logs of a run folder: metrics.jsonl, events.jsonl, TensorBoard, the console (rank 0 writes)."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

DISK_FULL = {errno.ENOSPC: "no space left on the device", errno.EDQUOT: "disk quota exceeded"}
console = Console(soft_wrap=True, highlight=False)


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line; NaN and infinity become null so that every reader can parse
    it."""
    clean = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END) and not _ends_a_line(file):  # a full disk cut the last one
            file.write(b"\n")
        file.write(json.dumps(clean).encode() + b"\n")


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every complete line of a JSON-lines file ([] where there is none); a half-written last line
    is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the process died while it wrote this line
            continue
    return records


class RunLogger:
    """Writes the logs of a run folder; nothing where `enabled` is false (other ranks than 0)."""

    def __init__(self, run_dir: Path, enabled: bool = True) -> None:
        self.run_dir = run_dir
        self.enabled = enabled
        self._board: SummaryWriter | None = None
        if enabled:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._board = SummaryWriter(str(run_dir / "tensorboard"))

    def metrics(self, record: dict[str, Any]) -> None:
        """Append a record (it has `step`) to metrics.jsonl and its numbers to TensorBoard."""
        if not self.enabled:
            return
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
        if not self.enabled:
            return
        record = {"event": name, "time": round(time.time(), 3), **fields}
        self._append("events.jsonl", record)
        self.say(f"[{name}] " + " ".join(f"{k}={v}" for k, v in fields.items()))

    def _append(self, name: str, record: dict[str, Any]) -> None:
        try:
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
