"""Not learning is a failure: what raises an alarm, and the rollback that one may cause.

After a rollback the steps (from, until] draw everything (utterances, crops, masks, dropout) with
another seed. RUN/rollbacks.jsonl remembers it, so that every later start draws the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from w2v2dist import checkpoint
from w2v2dist.config import ConfigError
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.keyed import keyed_seed
from w2v2dist.runtime.logging import RunLogger, append_jsonl, read_jsonl

Record = dict[str, Any]
REMEDIES = {
    "not_finite": "lower schedule.peak_lr or warm up longer",
    "loss_scale": "use engine.precision=bf16, or a lower schedule.peak_lr",
    "chance_level": "lower schedule.peak_lr (see `w2v2dist paper`), warm up longer, or raise "
    "alarms.grace_steps where the model only needs more time",
    "code_collapse": "raise model.diversity_weight, lower schedule.peak_lr, or let the temperature "
    "fall more slowly",
    "early_accuracy": "look for silent or repeated audio, from which the answer can be told",
}


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
        for name in ("grace_steps", "early_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must not be negative")
        for name in ("rollback_steps", "max_rollbacks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} but must be at least 1")


@dataclass(frozen=True, slots=True)
class Reading:
    """A watched value beside its limit; `bad` where that is broken."""

    alarm: str
    value: float
    limit: float
    bad: bool


def readings(
    config: AlarmConfig, model: Wav2Vec2Config, warmup: int, record: Record
) -> list[Reading]:
    """What a record of metrics says about learning; a loss that is not contrastive only has to be
    finite."""
    step, loss = int(record["step"]), float(record["loss"])
    out = []
    if "loss_scale" not in record:  # else infinity is how the scale is found: see after_step
        out.append(Reading("not_finite", loss, math.inf, not math.isfinite(loss)))
    if not record.get("num_masked"):
        return out
    armed = step > warmup + config.grace_steps
    chance = math.log2(1 + model.num_distractors) - config.chance_margin
    bits, accuracy = float(record["contrastive_loss"]), float(record["accuracy"])
    leak = accuracy > config.max_accuracy and step < config.early_steps
    out.append(Reading("chance_level", bits, chance, armed and bits > chance))
    out.append(Reading("early_accuracy", accuracy, config.max_accuracy, leak))
    if model.quantize_targets or model.quantize_inputs:
        num_codes = model.num_codebooks * model.num_codebook_entries
        few = model.num_codebooks + config.min_code_usage * (num_codes - model.num_codebooks)
        used = float(record["code_perplexity"])
        out.append(Reading("code_collapse", used, few, armed and used < few))
    return out


def read_rollbacks(run_dir: Path) -> list[Record]:
    """The rollbacks of a run, oldest first."""
    return read_jsonl(run_dir / "rollbacks.jsonl")


def seed_at(rollbacks: list[Record], seed: int, step: int) -> int:
    """The seed of everything that is drawn at a step: the last rollback to before it decides."""
    for number, entry in reversed([*enumerate(rollbacks, 1)]):
        if step > entry["from"]:
            return keyed_seed(seed, "rollback", number) if step <= entry["until"] else seed
    return seed


class Alarms:
    """The alarms of a run in progress, in the same state on all processes; collective."""

    def __init__(
        self,
        config: AlarmConfig,
        run_dir: Path,
        world: World,
        logger: RunLogger,
        settle: Callable[[], None],
    ) -> None:
        self.config, self.run_dir, self.world, self.logger = config, run_dir, world, logger
        self._settle = settle  # waits for a checkpoint that is being written
        self.rollbacks: list[Record] = world.gather(read_rollbacks(run_dir))[0]
        self.lost_best = False  # whether a rollback has removed the best checkpoint
        self.resumed(0)

    def resumed(self, step: int) -> None:
        """Training goes on after the checkpoint of `step`."""
        self._active: set[str] = set()
        self._healthy = step  # the last step whose record showed nothing bad

    def after_step(self, step: int, norm: float, loss_scale: float | None, finite: bool) -> bool:
        """Judge the gradient norm, fp16's loss scale (else None), and whether the weights are
        finite (or were not looked at). True after a rollback; raises AlarmError."""
        # An infinite norm in fp16 skips the update and halves the scale, until that is at its end
        searching = loss_scale is not None and "loss_scale" not in self._active
        broken = not (math.isfinite(norm) or searching) or not finite
        found = [Reading("not_finite", norm, math.inf, broken)]
        if loss_scale is not None:
            found.append(Reading("loss_scale", loss_scale, 1.0, loss_scale <= 1))
        return self._react(step, found, step - 1)

    def after_record(self, record: Record, model: Wav2Vec2Config, warmup: int) -> bool:
        """Judge a record of metrics. True after a rollback; raises AlarmError."""
        step, found = int(record["step"]), readings(self.config, model, warmup, record)
        if self._react(step, found, self._healthy):
            return True
        if not any(reading.bad for reading in found):
            self._healthy = step
        return False

    def _react(self, step: int, found: list[Reading], healthy: int) -> bool:
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
            self.logger.event(
                "alarm", alarm=r.alarm, value=r.value, limit=r.limit, step=step, action=action
            )
            if entry:
                self._roll_back(entry)
                return True
            if action == "stop":
                raise AlarmError(
                    f"alarm {r.alarm} at step {step}: {r.value:.6g} (limit {r.limit:.6g}); "
                    f"{REMEDIES[r.alarm]}, in another run_dir; {problem} (docs/alarms.md)"
                )
        return False

    def _plan(self, step: int, healthy: int) -> tuple[Record | None, str]:
        """The rollback that an alarm at `step` calls for, or why there can be none."""
        last = self.rollbacks[-1] if self.rollbacks else None
        again = last is not None and step <= last["alarm_step"] + self.config.rollback_steps
        attempt = last["attempt"] + 1 if last and again else 1
        if attempt > self.config.max_rollbacks:
            return None, f"{attempt - 1} rollbacks in a row did not lead past it"
        self._settle()
        # Rank 0's view of the file system decides
        steps = self.world.gather([*map(checkpoint.step_of, checkpoint.candidates(self._root))])[0]
        steps = [s for s in steps if s <= healthy]
        if last and again:  # what the last one went back to may be spoilt already: further back
            steps = [s for s in steps if s < last["from"]] or steps[-1:]
        if not steps:
            return None, "there is no checkpoint from before it to go back to"
        until = max(steps[0] + self.config.rollback_steps, step)
        return {"from": steps[0], "until": until, "alarm_step": step, "attempt": attempt}, ""

    def _roll_back(self, entry: Record) -> None:
        """Remove the checkpoints after `from`, then remember the rollback. A kill in between leaves
        a run that meets the same alarm again."""
        lost_best = False
        if self.world.is_main:
            newest_first = checkpoint.candidates(self._root)
            (target,) = (f for f in newest_first if checkpoint.step_of(f) == entry["from"])
            checkpoint.point(self._root, "latest", target)
            for folder in newest_first[: newest_first.index(target)]:
                checkpoint.remove(folder)
            best = self._root / "best"
            lost_best = best.is_symlink() and not best.exists()
            if lost_best:
                checkpoint.point(self._root, "best", target)
            path = self.run_dir / "rollbacks.jsonl"
            append_jsonl(path, entry)
            with path.open() as file:
                os.fsync(file.fileno())
        self.rollbacks.append(entry)
        self.lost_best = self.world.gather(lost_best)[0]
        self.logger.event("rollback", step=entry["from"], **entry)

    @property
    def _root(self) -> Path:
        return self.run_dir / "checkpoints"
