"""Logs of a run folder: metrics.jsonl, events.jsonl, TensorBoard, the console (rank 0 writes)."""

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from torch import Tensor

    from w2v2dist.runtime.board import Board

# The board is imported late: reading logs needs no torch

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
    """Writes the logs of a run folder; nothing where `enabled` is false (other ranks than 0).
    TensorBoard has what comes after `begin`."""

    def __init__(self, run_dir: Path, enabled: bool = True) -> None:
        self.run_dir, self.enabled = run_dir, enabled
        self._board: Board | None = None
        self.listens = False  # whether a recording is wanted: the first one after `begin`
        if enabled:
            run_dir.mkdir(parents=True, exist_ok=True)

    def begin(self, step: int, hyperparameters: Mapping[str, Any], *, owed: bool = False) -> None:
        """Training goes on after `step`: TensorBoard forgets what it was shown of later ones, and
        of the validation of this one where it is `owed`."""
        from w2v2dist.runtime.board import Board

        if self.enabled:
            self.close()
            try:
                self._board = Board(self.run_dir / "tensorboard", step, owed=owed)
                self.listens = True
            except OSError as error:
                self._lost_board(error)
            self._show(lambda board: board.hyperparameters(hyperparameters))

    def metrics(self, record: dict[str, Any]) -> None:
        """Append a record (it has `step`) to metrics.jsonl and its numbers to TensorBoard."""
        now = time.time()
        self._append("metrics.jsonl", {**record, "time": round(now, 3)})
        self._show(lambda board: board.scalars(record, now))

    def listen(self, step: int, recording: "Tensor | None") -> None:
        """Put a waveform (S,) of 16 kHz into TensorBoard, once after `begin`."""
        if self.listens and recording is not None:
            self.listens = False
            self._show(lambda board: board.recording(step, recording))

    def table(self, name: str, tag: str, step: int, rows: Sequence[Sequence[str]]) -> None:
        """Put a table of texts of the validation set `name`, its head first, into TensorBoard."""
        self._show(lambda board: board.table(name, tag, step, rows))

    def finished(self, step: int) -> None:
        """The event that all steps are done."""
        self.event("finished", step=step)
        self._show(lambda board: board.finished())

    def _show(self, action: "Callable[[Board], None]") -> None:
        if self._board is None:
            return
        try:
            action(self._board)
        except OSError as error:
            self._lost_board(error)

    def _lost_board(self, error: OSError) -> None:
        self._board, self.listens = None, False  # its thread has ended
        self._lost("tensorboard/, until the next start", error)

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
        """Close the files of TensorBoard."""
        self._show(lambda board: board.close())
        self._board = None
