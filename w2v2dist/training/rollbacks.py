"""The rollbacks of a run: after one, the steps (from, until] draw all (crops, masks, dropout) with
another seed, at every later start as well: RUN/rollbacks.jsonl remembers them."""

import os
from pathlib import Path
from typing import Any

from w2v2dist.runtime.keyed import keyed_seed
from w2v2dist.runtime.logging import append_jsonl, read_jsonl
from w2v2dist.training.run_folder import Run

Rollback = dict[str, Any]  # from, until, alarm_step, attempt


def read_rollbacks(run_dir: Path) -> list[Rollback]:
    """The rollbacks of a run, oldest first."""
    return read_jsonl(run_dir / "rollbacks.jsonl")


def seed_at(rollbacks: list[Rollback], seed: int, step: int) -> int:
    """The seed of everything that is drawn at a step: the last rollback to before it decides."""
    for number, entry in reversed([*enumerate(rollbacks, 1)]):
        if step > entry["from"]:
            return keyed_seed(seed, "rollback", number) if step <= entry["until"] else seed
    return seed


class Rollbacks:
    """The rollbacks of a run in progress, the same on all processes."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.entries: list[Rollback] = run.world.gather(read_rollbacks(run.path))[0]

    def seed_at(self, step: int) -> int:
        """The seed of what is drawn at a step: the configured one, unless after a rollback."""
        return seed_at(self.entries, self._run.config.seed, step)

    def append(self, entry: Rollback) -> None:
        """Remember one, durably."""
        if self._run.world.is_main:
            path = self._run.path / "rollbacks.jsonl"
            append_jsonl(path, entry)
            with path.open() as file:
                os.fsync(file.fileno())
        self.entries.append(entry)
