"""Validation: the metrics of whole validation sets, in evaluation mode."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.training.bad_samples import BadSamples
from w2v2dist.training.plain_engine import AnyEngine
from w2v2dist.training.run_folder import Run, log_batch
from w2v2dist.training.task import Source, Task, Transcript

NUM_TRANSCRIPTS = 8  # of a validation set, for TensorBoard


class Validation:
    """The validation sets of a run in progress; every process takes every W-th micro-batch."""

    def __init__(
        self,
        run: Run,
        task: Task,
        source: Source,
        engines: Mapping[str, AnyEngine],
        bad: BadSamples,
    ) -> None:
        self._run, self._task, self._source = run, task, source
        self._engines, self._bad = engines, bad
        self._read: list[tuple[int, Transcript]] = []  # in which micro-batch of the set
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
            self._show(name, step)
        self.owed = None
        self._run.logger.metrics({"step": step, **values})
        return values

    def _sums(self, name: str, step: int, flag: PreemptionFlag) -> dict[str, float] | None:
        """The sums over a set and all processes."""
        engine = next(iter(self._engines.values()))
        sums: dict[str, float] = {}
        self._read = []
        bad: list[dict[str, Any]] = []
        world = self._run.world
        batches = self._source.validation_batches(name, world.rank, world.size)
        shown = spread(len(self._source.validation[name]), NUM_TRANSCRIPTS)
        engine.train(False)
        with torch.no_grad(), contextlib.closing(batches):
            for number, batch in enumerate(batches):
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
                if count := shown.get(place := world.rank + number * world.size, 0):
                    self._read += [(place, text) for text in self._task.transcripts(count)]
        engine.train()
        self._bad.count(bad, step)
        names = sorted(sums)
        return dict(zip(names, world.sum([sums[n] for n in names]), strict=True))

    def _show(self, name: str, step: int) -> None:
        """A table of what was read of some utterances, the same at each validation; collective."""
        found = [place for of_rank in self._run.world.gather(self._read) for place in of_rank]
        found.sort(key=lambda item: item[0])  # stable: in the order of the micro-batch
        if found:
            texts = [text for _, text in found[:NUM_TRANSCRIPTS]]
            rows = [(t.key, t.reference, t.hypothesis, t.errors) for t in texts]
            head = ("utterance", "reference", "hypothesis", "errors")
            self._run.logger.table(name, "hypotheses", step, [head, *rows])


def spread(total: int, count: int) -> dict[int, int]:
    """Of the micro-batches 0 … total-1 those that `count` utterances come from, all over the set,
    and how many from each at most."""
    if total >= count:
        return {i * (total - 1) // max(1, count - 1): 1 for i in range(count)}
    return dict.fromkeys(range(total), -(-count // max(1, total)))
