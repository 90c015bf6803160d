"""Not learning is a failure: what raises an alarm, and whether the run stops or rolls back."""

import math
from dataclasses import dataclass
from typing import Literal

from w2v2dist import checkpoint
from w2v2dist.config import ConfigError, at_least
from w2v2dist.training.checkpointer import Checkpointer
from w2v2dist.training.rollbacks import Rollback, Rollbacks
from w2v2dist.training.run_folder import Run
from w2v2dist.training.task import Reading, Record, Task

LOWER_RATE = "lower schedule.peak_lr or warm up longer"
NARROW = "use engine.precision=bf16, or a lower schedule.peak_lr"


class AlarmError(ConfigError):
    """A training that does not learn: running it again unchanged cannot help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmConfig:
    """What counts as not learning, and what to do about it."""

    # NaN and infinity stop under `log` as well: nothing can be learned after them
    on_alarm: Literal["log", "stop", "rollback"] = "log"
    # after the warm-up, before chance level and code collapse count; about 300 for tiny models
    grace_steps: int = 1_000
    chance_margin: float = 0.05  # bits below log2(1 + distractors) that are still chance level
    min_code_usage: float = 0.03  # of the code perplexity: 0 is one code a codebook, 1 all equally
    max_accuracy: float = 0.9  # of the contrastive task; more before early_steps is a leak
    early_steps: int = 100_000
    rollback_steps: int = 500  # steps with other samples after a rollback (at least to the alarm)
    max_rollbacks: int = 3  # in a row, without passing the alarm by rollback_steps

    def __post_init__(self) -> None:
        at_least(self, 0, "grace_steps early_steps")
        at_least(self, 1, "rollback_steps max_rollbacks")


class Alarms:
    """Judges a run; collective. A verdict is None, the rollback that is to follow or AlarmError."""

    def __init__(
        self, run: Run, task: Task, rollbacks: Rollbacks, checkpointer: Checkpointer
    ) -> None:
        self.run, self.task, self.rollbacks = run, task, rollbacks
        self.config: AlarmConfig = run.config.alarms
        self.checkpointer = checkpointer
        self.resumed(0)

    def resumed(self, step: int) -> None:
        """Training goes on after the checkpoint of `step`."""
        self._active: set[str] = set()
        self._healthy = step  # the last step whose record showed nothing bad

    def after_step(
        self, step: int, norm: float, loss_scale: float | None, finite: bool
    ) -> Rollback | None:
        """Judge the gradient norm, fp16's loss scale (else None), and the weights' finiteness."""
        # An infinite norm in fp16 skips the update and halves the scale, until that is at its end
        searching = loss_scale is not None and "loss_scale" not in self._active
        broken = not (math.isfinite(norm) or searching) or not finite
        found = [Reading("not_finite", norm, math.inf, broken, LOWER_RATE)]
        if loss_scale is not None:
            found.append(Reading("loss_scale", loss_scale, 1.0, loss_scale <= 1, NARROW))
        return self._react(step, found, step - 1)

    def after_record(self, record: Record) -> Rollback | None:
        """Judge a record of metrics: whether its loss is finite, and what the task reads in it."""
        step, loss, found = int(record["step"]), float(record["loss"]), self.task.readings(record)
        if "loss_scale" not in record:  # else infinity is how the scale is found: see after_step
            broken = not math.isfinite(loss)
            found = [Reading("not_finite", loss, math.inf, broken, LOWER_RATE), *found]
        verdict = self._react(step, found, self._healthy)
        if verdict is None and not any(reading.bad for reading in found):
            self._healthy = step
        return verdict

    def _react(self, step: int, found: list[Reading], healthy: int) -> Rollback | None:
        """Act on what turned bad; `healthy` is the last step before it may have begun."""
        new = [r for r in found if r.bad and r.alarm not in self._active]
        self._active -= {r.alarm for r in found}
        self._active |= {r.alarm for r in found if r.bad}
        for r in new:
            action: str = self.config.on_alarm
            entry, problem = None, "alarms.on_alarm=rollback would try other samples"
            if action == "rollback":
                entry, problem = self._plan(step, healthy)
            if (action == "rollback" and not entry) or r.alarm == "not_finite":
                action = "rollback" if entry else "stop"
            self.run.logger.event(
                "alarm", alarm=r.alarm, value=r.value, limit=r.limit, step=step, action=action
            )
            if entry:
                return entry
            if action == "stop":
                raise AlarmError(
                    f"alarm {r.alarm} at step {step}: {r.value:.6g} (limit {r.limit:.6g}); "
                    f"{r.remedy}, in another run_dir; {problem} (docs/alarms.md)"
                )
        return None

    def _plan(self, step: int, healthy: int) -> tuple[Rollback | None, str]:
        """The rollback that an alarm at `step` calls for, or why there can be none."""
        last = self.rollbacks.entries[-1] if self.rollbacks.entries else None
        again = last is not None and step <= last["alarm_step"] + self.config.rollback_steps
        attempt = last["attempt"] + 1 if last and again else 1
        if attempt > self.config.max_rollbacks:
            return None, f"{attempt - 1} rollbacks in a row did not lead past it"
        self.checkpointer.settle()
        steps = [*map(checkpoint.step_of, self.checkpointer.folders())]
        steps = [s for s in steps if s <= healthy]
        if last and again:  # what the last one went back to may be spoilt already: further back
            steps = [s for s in steps if s < last["from"]] or steps[-1:]
        if not steps:
            return None, "there is no checkpoint from before it to go back to"
        until = max(steps[0] + self.config.rollback_steps, step)
        return {"from": steps[0], "until": until, "alarm_step": step, "attempt": attempt}, ""
