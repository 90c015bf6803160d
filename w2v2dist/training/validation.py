"""Validation: the metrics of whole validation sets, in evaluation mode."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.training.bad_samples import BadSamples
from w2v2dist.training.engine import Engine
from w2v2dist.training.run_folder import Run, log_batch
from w2v2dist.training.task import Source, Task


class Validation:
    """The validation sets of a run in progress; every process takes every W-th micro-batch."""

    def __init__(
        self, run: Run, task: Task, source: Source, engines: Mapping[str, Engine], bad: BadSamples
    ) -> None:
        self._run, self._task, self._source = run, task, source
        self._engines, self._bad = engines, bad
        self.owed: int | None = None  # the step whose validation a signal has interrupted

    def state(self) -> int | None:
        """For a checkpoint."""
        return self.owed

    def restore(self, state: int | None) -> None:
        """Back to a checkpoint's state."""
        self.owed = state

    def due(self, step: int) -> bool:
        """Whether this step's model is to be validated."""
        loop = self._run.config.loop
        due = loop.due(step, loop.validate_every) or step == self.owed
        return bool(due and self._source.validation)

    def run(self, step: int, flag: PreemptionFlag) -> dict[str, float] | None:
        """Log and return NAME/METRIC; collective. None where a signal came: it is owed then."""
        self.owed = step
        values: dict[str, float] = {}
        for name in self._source.validation:
            if (sums := self._sums(name, step, flag)) is None:
                return None
            values |= {f"{name}/{key}": v for key, v in self._task.metrics(sums).items()}
        self.owed = None
        self._run.logger.metrics({"step": step, **values})
        return values

    def _sums(self, name: str, step: int, flag: PreemptionFlag) -> dict[str, float] | None:
        """The sums over a set and all processes."""
        engine = next(iter(self._engines.values()))
        sums: dict[str, float] = {}
        bad: list[dict[str, Any]] = []
        world = self._run.world
        batches = self._source.validation_batches(name, world.rank, world.size)
        engine.train(False)
        with torch.no_grad(), contextlib.closing(batches):
            for batch in batches:
                self._run.watchdog.progress()
                if agreed := int(world.max([flag.signal_number])[0]):
                    flag.signal_number = agreed
                    return None
                batch.bad = self._bad.unknown(batch.bad)  # logged the first time, not at each
                bad += batch.bad
                log_batch(self._run, batch, samples=False)
                weight = 1.0 if batch.num_targets else 0.0
                for key, value in self._task.losses(engine, batch.to(world.device), 0, 0).items():
                    sums[key] = sums.get(key, 0.0) + weight * float(value)
        engine.train()
        self._bad.count(bad, step)
        names = sorted(sums)
        return dict(zip(names, world.sum([sums[n] for n in names]), strict=True))
