"""The loop of every training: resume, step, log, validate, save, and stop when told to."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from w2v2dist.config import ConfigError, flatten, to_dict
from w2v2dist.runtime.distributed import VirtualRanks, World, is_out_of_memory
from w2v2dist.runtime.keyed import keyed_seed
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.runtime.preemption import SIGNALS, PreemptionFlag
from w2v2dist.training.alarms import Alarms
from w2v2dist.training.bad_samples import BadSamples
from w2v2dist.training.checkpointer import Checkpointer, Part
from w2v2dist.training.config import TrainingConfig
from w2v2dist.training.metrics import Metrics
from w2v2dist.training.plain_engine import AnyEngine, PlainEngineConfig, make_engines
from w2v2dist.training.probing import Probe, Probing
from w2v2dist.training.rollbacks import Rollback, Rollbacks
from w2v2dist.training.run_folder import Run, log_batch, opened
from w2v2dist.training.task import Batches, Source, Task
from w2v2dist.training.validation import Validation


@dataclass(frozen=True, slots=True)
class Finished:
    """All steps are done."""


@dataclass(frozen=True, slots=True)
class Preempted:
    """A signal came; all is saved, and the same call continues."""

    signal_number: int


Outcome = Finished | Preempted
OUT_OF_MEMORY = (
    "the memory is full: continue the run with model.activation_checkpointing=true or a higher "
    "engine.zero_stage, which changes no result, or begin another with a smaller "
)
SIZES = ("max_samples_per_slot", "max_tokens_per_slot", "batch_size")  # of data: a micro-batch's


class _Training:
    """The parts of a training; each owns its state, and is complete when it is made."""

    def __init__(
        self, run: Run, task: Task, source: Source, flag: PreemptionFlag, probe: Probe | None
    ) -> None:
        self.run, self.task, self.source, self.flag = run, task, source, flag
        config, world = run.config, run.world
        virtual = VirtualRanks(config.data.virtual_world_size)
        self.slots = virtual.slots(world.rank, world.size)  # of this process, one a round
        groups = {name: (group.module, group.optimizer) for name, group in task.groups.items()}
        self.engines = make_engines(groups, config.engine, len(self.slots), world)
        self.bad = BadSamples(run)
        self.metrics = Metrics(run, task)
        self.validation = Validation(run, task, source, self.engines, self.bad)
        self.probing = Probing(run, self.engines, probe)
        parts: dict[str, Part] = {"bad": self.bad, "validation": self.validation}
        parts |= {"probing": self.probing} if probe else {}
        self.checkpointer = Checkpointer(run, self.engines, parts)
        self.rollbacks = Rollbacks(run)
        self.alarms = Alarms(run, task, self.rollbacks, self.checkpointer)


def fit(
    config: TrainingConfig,
    task: Task,
    world: World,
    flag: PreemptionFlag,
    probe: Probe | None = None,
) -> Outcome:
    """Train to `max_steps`, from the newest checkpoint of the run folder if there is one. Raises
    ConfigError (also for more than data.max_bad_samples bad samples) or CheckpointError."""
    VirtualRanks(config.data.virtual_world_size).check(world.size)
    task.check(world.size)
    if config.loop.num_threads and world.device.type == "cpu":
        torch.set_num_threads(config.loop.num_threads)
    source = task.source()
    _check(source, world)
    with (
        opened(config, source.fingerprint, task.records, world) as run,
        _remedy_of_a_full_memory(config),
    ):
        training = _Training(run, task, source, flag, probe)
        with contextlib.closing(training.checkpointer):
            while isinstance(ended := _train(training), dict):  # go on from where it leads to
                training.checkpointer.roll_back(ended["from"])
                training.rollbacks.append(ended)
                run.logger.event("rollback", step=ended["from"], **ended)
    return ended


@contextlib.contextmanager
def _remedy_of_a_full_memory(config: TrainingConfig) -> Iterator[None]:
    """Wherever it fills: engines that are made, steps, validations, probes."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            smaller = next(f"data.{name}" for name in SIZES if hasattr(config.data, name))
            if isinstance(config.engine, PlainEngineConfig):  # which has no other way
                error.add_note(f"the memory is full: begin another run with a smaller {smaller}")
            else:
                error.add_note(OUT_OF_MEMORY + smaller)
        raise


def _check(source: Source, world: World) -> None:
    """Raise ConfigError on every rank where the data are not there. Rank 0 alone looks: thousands
    of files times hundreds of ranks would be a storm of requests."""
    problem = None
    if world.is_main:
        try:
            source.check()
        except ValueError as error:
            problem = str(error)
    if (found := world.gather(problem)[0]) is not None:
        raise ConfigError(found)


def _train(t: _Training) -> Outcome | Rollback:
    """Go on after the newest checkpoint, to the end or to what ends it before."""
    done, last = t.checkpointer.resume(), t.run.config.loop.max_steps
    t.run.watchdog.progress()
    if done == last and _has_said_so(t):
        t.run.logger.say(f"{t.run.config.run_dir} has finished all {last} steps")
        return Finished()
    owed = done > 0 and done in (t.validation.owed, t.probing.owed)
    t.run.logger.begin(done, flatten(to_dict(t.run.config)), owed=owed)
    for note in () if done else (*t.task.notes, *t.source.notes, *t.probing.notes):
        t.run.logger.event("note", step=done, text=note)
    for note in [note for engine in t.engines.values() for note in engine.notes]:
        t.run.logger.event("note", step=done, text=note)
    t.alarms.resumed(done)
    t.metrics.start(done)
    if owed and (outcome := _validate_and_save(t, done)) is not None:
        return outcome
    with contextlib.closing(_batches(t, done + 1)) as batches:
        for step in range(done + 1, last + 1):
            if (ended := _step(t, batches, step)) is not None:
                return ended
    t.run.logger.finished(last)
    return Finished()


def _has_said_so(t: _Training) -> bool:
    """Whether `finished` is logged: a kill may come between the last save and it."""
    events = read_jsonl(t.run.path / "events.jsonl") if t.run.world.is_main else []
    return bool(t.run.world.gather(any(e.get("event") == "finished" for e in events))[0])


def _batches(t: _Training, first: int) -> Batches:
    """This process's batches from step `first` on; rollbacks give some steps another seed."""
    steps = range(first, t.run.config.loop.max_steps + 1)
    for seed, part in itertools.groupby(steps, key=t.rollbacks.seed_at):
        yield from t.source.batches(part, t.slots, seed)


def _step(t: _Training, batches: Iterator[Any], step: int) -> Preempted | Rollback | None:
    """One step and what is due after it; None: the next one may follow."""
    t.run.watchdog.progress()
    if t.rollbacks.seed_at(step) != t.rollbacks.seed_at(step - 1):
        t.checkpointer.settle()  # new workers are forked, and no thread with them
    with t.metrics.waiting():
        micro = [next(batches) for _ in t.slots]
    agreed = _agree(t, micro)
    if agreed.all_written:
        t.checkpointer.settle()
    if agreed.signal_number:
        return _preempted(t, step - 1, agreed.signal_number)
    if t.run.logger.listens:
        t.run.logger.listen(step, micro[0].recording())
    for batch in micro:
        log_batch(t.run, batch, samples=t.run.config.loop.log_samples)
    if agreed.num_bad:
        t.bad.count([record for batch in micro for record in batch.bad], step)
    update = t.task.update(step)
    engine = t.engines[update.group]
    norm = _update(t, engine, micro, step, update.lr, agreed.num_targets)
    looked_at = (t.validation, t.probing, t.checkpointer)
    finite = not any(part.due(step) for part in looked_at) or _has_finite_weights(t)
    scale = engine.loss_scale if t.run.config.engine.precision == "fp16" else None
    if (verdict := t.alarms.after_step(step, norm, scale, finite)) is not None:
        return verdict
    t.metrics.add_amount(agreed.amount)
    if t.metrics.due(step):
        fp16 = {} if scale is None else {"loss_scale": scale}
        values = {"lr": update.lr, "grad_norm": norm, **fp16}
        if (verdict := t.alarms.after_record(t.metrics.record(step, values))) is not None:
            return verdict
    return _validate_and_save(t, step)


@dataclass(frozen=True, slots=True)
class _Agreed:
    """What all processes know of a step before its first forward pass."""

    num_targets: float  # of the whole step: what its loss is divided by
    amount: float
    num_bad: float
    all_written: bool  # the save in flight, by every process
    signal_number: int  # the largest that any process has received; 0: none


def _agree(t: _Training, micro: list[Any]) -> _Agreed:
    """The step's one reduction."""
    targets, amount, num_bad, written, *received = t.run.world.sum(
        [
            sum(batch.num_targets for batch in micro),
            sum(batch.amount for batch in micro),
            sum(len(batch.bad) for batch in micro),
            t.checkpointer.ready,
            *(t.flag.signal_number == number for number in SIGNALS),
        ]
    )
    signals = (int(s) for s, count in zip(SIGNALS, received, strict=True) if count)
    return _Agreed(targets, amount, num_bad, written == t.run.world.size, max(signals, default=0))


def _update(
    t: _Training, engine: AnyEngine, micro: list[Any], step: int, lr: float, num_targets: float
) -> float:
    """Forward and backward of all rounds, one update; returns the gradient norm."""
    seed, norm = t.rollbacks.seed_at(step), None
    engine.train()
    for round_, batch in enumerate(micro):
        t.run.watchdog.progress()
        torch.manual_seed(keyed_seed(seed, "model", step, batch.slot))
        weight = 1.0 if batch.num_targets else 0.0
        try:
            with t.metrics.forward():
                sums = t.task.losses(engine, batch.to(t.run.world.device), step, seed)
            engine.backward(sums["loss"] * (weight / max(num_targets, 1.0)))
            norm = engine.step(lr if round_ == len(micro) - 1 else None)
        except Exception as error:
            error.add_note(
                f"at step {step}, slot {batch.slot}: `w2v2dist batches {t.run.config.run_dir}/"
                f"config.yaml --step {step} --slot {batch.slot}` shows what it used"
            )
            raise
        t.metrics.add(sums, weight)
    assert norm is not None
    return norm


def _validate_and_save(t: _Training, step: int) -> Preempted | None:
    """What is due of both after a step."""
    with t.metrics.paused():
        improved = False
        if t.probing.due(step):
            t.checkpointer.settle()
            if t.validation.due(step):
                t.validation.owed = step  # it would come after
            if not t.probing.run(step, t.flag):
                return _preempted(t, step, t.flag.signal_number)
        if t.validation.due(step):
            t.checkpointer.settle()  # whether that is the best is known then; no thread is forked
            values = t.validation.run(step, t.flag)
            if values is None:
                return _preempted(t, step, t.flag.signal_number)
            name = t.task.best_metric
            improved = t.checkpointer.improves(values[name])
            best = "  (best)" if improved else ""
            t.run.logger.say(f"step {step}  {name} {values[name]:.4f}{best}")
        if improved or t.checkpointer.due(step):
            final = step == t.run.config.loop.max_steps
            t.checkpointer.begin(step, improved=improved, final=final)
    return None


def _preempted(t: _Training, done: int, signal_number: int) -> Preempted:
    """Save after step `done`, all together."""
    t.flag.signal_number = signal_number
    t.checkpointer.settle()
    if 0 < done != t.checkpointer.saved_step and _has_finite_weights(t):
        t.checkpointer.begin(done, final=True)
    (seconds,) = t.run.world.max([t.flag.seconds_since()])
    t.run.logger.event(
        "preempted", step=done, signal=signal_number, seconds_to_save=round(seconds, 3)
    )
    return Preempted(signal_number)


def _has_finite_weights(t: _Training) -> bool:
    return all(engine.has_finite_weights() for engine in t.engines.values())
