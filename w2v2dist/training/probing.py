"""When a model in training is probed, and what is logged of it; what a probe does is a task's."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.training.plain_engine import AnyEngine
from w2v2dist.training.run_folder import Run


class Probe(Protocol):
    """A measure of a model that costs too much for every validation."""

    @property
    def every(self) -> int:
        """Steps from one to the next."""

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know of its data; said when the run starts."""

    def run(
        self, engine: AnyEngine, world: World, going_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        """NAME/METRIC of the model as it is, which it leaves as it is, with all random numbers;
        collective. None where `going_on`, collective too and asked often, says no."""


class Probing:
    """The probes of a run in progress; without one nothing is ever due."""

    def __init__(self, run: Run, engines: Mapping[str, AnyEngine], probe: Probe | None) -> None:
        self._run, self._engines, self._probe = run, engines, probe
        self.owed: int | None = None  # the step whose probe a signal has interrupted

    @property
    def notes(self) -> Sequence[str]:
        """Of the probe."""
        return self._probe.notes if self._probe else ()

    def state(self) -> int | None:
        """For a checkpoint."""
        return self.owed

    def restore(self, state: int | None) -> None:
        """Back to a checkpoint's state."""
        self.owed = state

    def due(self, step: int) -> bool:
        """Whether this step's model is to be probed."""
        probe, loop = self._probe, self._run.config.loop
        return probe is not None and (loop.due(step, probe.every) or step == self.owed)

    def run(self, step: int, flag: PreemptionFlag) -> bool:
        """Probe and log; collective. False where a signal came: it is owed then."""
        assert self._probe is not None
        self.owed = step
        world = self._run.world

        def going_on() -> bool:
            self._run.watchdog.progress()
            if agreed := int(world.max([flag.signal_number])[0]):
                flag.signal_number = agreed
            return not agreed

        before = time.perf_counter()
        engine = next(iter(self._engines.values()))
        engine.train(False)
        values = self._probe.run(engine, world, going_on)
        engine.train()
        if values is None:
            return False
        self.owed = None
        seconds = time.perf_counter() - before
        self._run.logger.metrics({"step": step, **values, "probe/seconds": seconds})
        said = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._run.logger.say(f"step {step}  {said}  ({seconds:.1f} s)")
        return True
