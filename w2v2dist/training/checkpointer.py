"""When a run is saved, what came of it, and from where it goes on."""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from w2v2dist import checkpoint
from w2v2dist.checkpoint import CheckpointError, Retention
from w2v2dist.training import engine_state
from w2v2dist.training.attempts import attempt
from w2v2dist.training.plain_engine import AnyEngine
from w2v2dist.training.run_folder import Run

SAVE_ATTEMPTS = 3  # in a row; the last must succeed
INFINITY = float("inf")


class Part(Protocol):
    """A part of a training whose state outlives its process, in the meta of each checkpoint."""

    def state(self) -> Any:
        """As JSON holds it."""

    def restore(self, state: Any) -> None:
        """Back to a checkpoint's state; None where an older version had no such part."""


@dataclass(slots=True)
class _Pending:
    """A save that has begun; `started` and the value of `written` are of time.perf_counter()."""

    step: int
    improved: bool
    written: Future[float]
    started: float
    pause: float  # seconds that training waited for it


class Checkpointer:
    """The checkpoints of a run in progress: the save in flight, what is durable, retries, and the
    best score. All methods but `due`, `ready` and `improves` are collective."""

    def __init__(
        self, run: Run, engines: Mapping[str, AnyEngine], parts: Mapping[str, Part]
    ) -> None:
        self._run, self._engines, self._parts = run, engines, parts
        self._loop, self._world, self._logger = run.config.loop, run.world, run.logger
        self._root = run.path / "checkpoints"
        self._writer = checkpoint.Writer(self._root, run.world)
        self._pending: _Pending | None = None
        self._num_failed = 0  # saves in a row
        self._retry_step: int | None = None  # of a failed save
        # Of the validations; the one before the last counts again if its save fails
        self._best = self._best_before = INFINITY
        self._lost_best = False  # a rollback has removed the best checkpoint
        self.saved_step = -1  # durable

    def close(self) -> None:
        """Wait for the save in flight."""
        self._writer.close()

    def due(self, step: int) -> bool:
        """Whether a save is due after this step."""
        retry = self._retry_step is not None and step >= self._retry_step
        return bool(retry or self._loop.due(step, self._loop.save_every))

    @property
    def ready(self) -> bool:
        """Whether this process has written its part of the save in flight."""
        return self._pending is not None and self._pending.written.done()

    def improves(self, score: float) -> bool:
        """Whether this is the best score so far (lower is better); remembers it."""
        improved = score < self._best
        self._best_before, self._best = self._best, min(self._best, score)
        return improved

    def begin(self, step: int, *, improved: bool = False, final: bool = False) -> None:
        """Begin to save; `latest`, and `best` for an improved model, name it once it is durable.
        Returns then where `final`, or else when training may go on. A save that fails is an event
        and tried again some steps later; CheckpointError where it is `final` or the last of
        SAVE_ATTEMPTS."""
        self.settle()
        if step == self.saved_step:  # it was interrupted in its validation
            if improved and self._world.is_main:
                checkpoint.point(self._root, "best", self._root / f"step_{step:08d}")
            return
        final = final or self._num_failed == SAVE_ATTEMPTS - 1
        self._retry_step = None
        meta = {
            **self._run.meta(),
            **{name: part.state() for name, part in self._parts.items()},
            "best": None if self._best == INFINITY else self._best,
            "step": step,
            "world_size": self._world.size,
            **engine_state.settings(self._engines),
        }
        links = ("latest", "best") if improved else ("latest",)
        keep = Retention(links, self._loop.keep_last, self._loop.keep_every)
        self._run.watchdog.progress()
        started = time.perf_counter()
        state = engine_state.ranges(self._engines, for_save=True)
        written = self._writer.begin(meta, state, keep, copy=self._loop.async_save)
        self._pending = _Pending(step, improved, written, started, time.perf_counter() - started)
        if final or not self._loop.async_save:
            self.settle(final=final)

    def settle(self, *, final: bool = False) -> None:
        """Wait for the save in flight and log what became of it. Raises CheckpointError where it
        failed and was `final`."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        self._run.watchdog.progress()
        before = time.perf_counter()
        try:
            durable = pending.written.result()
        except CheckpointError as error:
            self._num_failed += 1
            self._logger.event("save_failed", step=pending.step, reason=str(error))
            if final:
                raise
            self._retry_step = pending.step + max(1, self._loop.save_every // 10)
            if pending.improved:  # there is no such checkpoint
                self._best = self._best_before
            return
        self._num_failed, self.saved_step = 0, pending.step
        pending.pause += time.perf_counter() - before
        self._logger.event(
            "saved",
            step=pending.step,
            seconds=round(durable - pending.started, 3),
            pause_seconds=round(pending.pause, 3),
            best=pending.improved,
        )

    def resume(self) -> int:
        """Load the newest checkpoint that can be read; returns its step, 0 for a fresh run."""
        self.settle()
        self._retry_step = None
        folders = self.folders()
        for folder in folders:
            try:
                self._load(folder)
            except CheckpointError as error:
                self._logger.event("checkpoint_damaged", path=str(folder), reason=str(error))
                continue
            if self._world.is_main:  # the newest readable one may be another than before
                checkpoint.point(self._root, "latest", folder)
            return self.saved_step
        if folders:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints under {self._root} can be read (see "
                "events.jsonl): restore one, or use another run_dir to start again"
            )
        modules = (engine.module for engine in self._engines.values())
        sizes = [getattr(p, "ds_numel", p.numel()) for m in modules for p in m.parameters()]
        self._logger.event(
            "start",
            world_size=self._world.size,
            num_parameters=sum(map(int, sizes)),
            **self._attempt(0),
        )
        return 0

    def folders(self) -> list[Path]:
        """The step folders, newest first, as rank 0 sees them: another's view may be older."""
        return self._world.gather(checkpoint.candidates(self._root))[0]  # type: ignore[no-any-return]

    def roll_back(self, step: int) -> None:
        """Remove the checkpoints after that of `step`; `resume` follows. A kill in between leaves a
        run that meets the same alarm again."""
        lost_best = False
        if self._world.is_main:
            newest_first = checkpoint.candidates(self._root)
            (target,) = (f for f in newest_first if checkpoint.step_of(f) == step)
            checkpoint.point(self._root, "latest", target)
            for folder in newest_first[: newest_first.index(target)]:
                checkpoint.remove(folder)
            best = self._root / "best"
            lost_best = best.is_symlink() and not best.exists()
            if lost_best:
                checkpoint.point(self._root, "best", target)
        self._lost_best = self._world.gather(lost_best)[0]

    def _load(self, folder: Path) -> None:
        state = engine_state.ranges(self._engines, for_save=False)
        meta = checkpoint.load(
            folder, self._world, state, lambda meta: self._run.check(folder, meta)
        )
        engine_state.restore(self._engines, meta)
        for name, part in self._parts.items():
            part.restore(meta.get(name))
        known = meta["best"] is not None and not self._lost_best  # else no checkpoint has the score
        self._best = float(meta["best"]) if known else INFINITY
        self.saved_step = int(meta["step"])
        if self.saved_step < self._loop.max_steps:
            self._logger.event(
                "resumed",
                step=self.saved_step,
                old_world_size=meta["world_size"],
                new_world_size=self._world.size,
                **self._attempt(self.saved_step),
            )

    def _attempt(self, step: int) -> dict[str, int]:
        return attempt(self._run.path, step) if self._world.is_main else {}
