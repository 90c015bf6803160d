"""The loop of every training: resume, step, validate, log, save, and stop when told to."""

from __future__ import annotations

import contextlib
import itertools
import platform
import statistics
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from w2v2dist import __version__, checkpoint
from w2v2dist.config import ConfigError, to_dict
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.loader import Batch, Collate, MicroBatches, iterate, training_items
from w2v2dist.data.order import SAMPLE_RATE, DataConfig, DataOrder, MicroBatch, validation_batches
from w2v2dist.data.reader import ShardReader
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.distributed import VirtualRanks, World
from w2v2dist.runtime.keyed import keyed_rng, keyed_seed
from w2v2dist.runtime.logging import RunLogger
from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.runtime.watchdog import Watchdog
from w2v2dist.training.alarms import AlarmConfig, Alarms, seed_at
from w2v2dist.training.engine import Engine, EngineConfig, OptimizerConfig
from w2v2dist.training.run_folder import (
    attempt,
    locked,
    log_batch,
    most_frequent_fault,
    prepare_run_folder,
    refused_changes,
)
from w2v2dist.training.schedules import ScheduleConfig, learning_rate, warmup_steps

SAVE_ATTEMPTS = 3  # in a row; the last must succeed


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long to train, and how often (in steps) to log, validate and save."""

    max_steps: int = 400_000
    log_every: int = 100
    validate_every: int = 5_000
    save_every: int = 5_000
    keep_last: int = 3  # checkpoints, besides latest and best
    keep_every: int = 0  # checkpoints of a multiple of so many steps are kept for ever; 0: none
    async_save: bool = True  # training waits for a copy in host memory only, not for the disk
    log_samples: bool = False  # logs/samples-RANK.jsonl: what every step used
    num_threads: int = 0  # of a process on the CPU; 0 leaves the choice to torch
    timeout_s: int = 1800  # of a collective operation
    # A process without progress for so long ends, and logs/stacks-* say where it was; 0: never
    stall_timeout_s: int = 1800

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "log_every",
            "validate_every",
            "save_every",
            "keep_last",
            "timeout_s",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} but must be at least 1")
        for name in ("stall_timeout_s", "keep_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must be at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """What every training has; pretrain.py and finetune.py add their own."""

    run_dir: str
    seed: int = 1
    model: Wav2Vec2Config = field(default_factory=Wav2Vec2Config)
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)


class Task(Protocol):
    """What differs between trainings. Sums are added up over slots, steps and processes before
    `metrics`."""

    @property
    def config(self) -> TrainingConfig: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def crop(self) -> bool:
        """Whether micro-batches are cropped to one length (no padding)."""

    @property
    def with_labels(self) -> bool: ...
    @property
    def best_metric(self) -> str:
        """The validation metric that chooses the best checkpoint; lower is better."""

    def collate(self, train: bool, seed: int | None = None) -> Collate:
        """Makes batches in the workers; `seed` instead of the configured one."""

    def losses(
        self, engine: Engine, batch: Batch, step: int, drop_layers: list[bool] | None
    ) -> dict[str, Tensor]:
        """Sums over the micro-batch (0-d tensors); `loss` is to be minimised, not yet divided."""

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Numbers to log from the sums."""

    def schedule_metrics(self, step: int) -> dict[str, float]:
        """Scheduled values to log beside the learning rate."""


@dataclass(slots=True)
class _Pending:
    """A save that has begun; `started` and the value of `written` are of time.perf_counter()."""

    step: int
    improved: bool
    written: Future[float]
    started: float
    pause: float  # seconds that training waited for it


@dataclass(slots=True)
class _Run:
    """The parts of a training in progress."""

    config: TrainingConfig
    task: Task
    engine: Engine
    world: World
    logger: RunLogger
    alarms: Alarms
    watchdog: Watchdog
    index: ShardIndex
    rounds: list[int | None]
    valid: ShardIndex | None
    valid_micro: list[MicroBatch]
    saver: checkpoint.Saver
    best: float = float("inf")
    bad: set[str] = field(default_factory=set)  # utterances that could not be used, by key
    best_before: float = float("inf")  # the last validation, which waits for the save in flight
    saved_step: int = -1  # durable
    pending: _Pending | None = None
    num_failed_saves: int = 0  # in a row
    retry_step: int | None = None  # of a failed save
    sums: dict[str, Tensor] = field(default_factory=dict)
    forward: list[tuple[Any, Any]] = field(default_factory=list)  # begin and end since the last log

    @property
    def root(self) -> Path:
        return Path(self.config.run_dir) / "checkpoints"

    def seed_at(self, step: int) -> int:
        """The seed of what is drawn at a step: the configured one, unless after a rollback."""
        return seed_at(self.alarms.rollbacks, self.config.seed, step)


def fit(task: Task, world: World, flag: PreemptionFlag) -> str:
    """Train to `max_steps`, from the newest checkpoint of the run folder if there is one.

    Returns "finished", or "preempted" after a signal (saved; the same call continues). Raises
    ConfigError (also where more than data.max_bad_samples utterances are unusable) or
    CheckpointError.
    """
    config = task.config
    virtual = VirtualRanks(config.data.virtual_world_size)
    virtual.check(world.size)
    if config.model.layer_drop_per == "slot" and world.size > 1:
        raise ConfigError(
            f"model.layer_drop_per is slot but the job has {world.size} processes, which would "
            "wait for each other's layers: use one process, or model.layer_drop_per=step"
        )
    if config.loop.num_threads and world.device.type == "cpu":
        torch.set_num_threads(config.loop.num_threads)
    index = open_index(config.data.train, "data.train")
    order = DataOrder(index, config.data, config.seed, task.crop)
    valid, valid_micro = _open_validation(config, task.crop)
    check_shards(world, index, valid)
    run_dir = Path(config.run_dir)
    with contextlib.ExitStack() as stack:
        if world.is_main:
            stack.enter_context(locked(run_dir))
            prepare_run_folder(config, index.fingerprint)
        world.barrier()
        logger = RunLogger(run_dir, enabled=world.is_main)
        stack.callback(logger.close)
        stacks = run_dir / "logs" / f"stacks-{world.rank:05d}.txt"
        watchdog = Watchdog(stacks, config.loop.stall_timeout_s)
        stack.callback(watchdog.close)
        num_rounds = virtual.num_rounds(world.size)
        engine = Engine(task.model, config.engine, config.optimizer, num_rounds, world)
        slots = virtual.slots(world.rank, world.size)
        saver = checkpoint.Saver(engine, run_dir / "checkpoints")
        stack.callback(saver.close)
        # A rollback removes checkpoints: none may be in the making then
        alarms = Alarms(config.alarms, run_dir, world, logger, settle=lambda: _finish_save(run))
        run = _Run(
            config=config,
            task=task,
            engine=engine,
            world=world,
            logger=logger,
            alarms=alarms,
            watchdog=watchdog,
            index=index,
            rounds=slots,
            valid=valid,
            valid_micro=valid_micro,
            saver=saver,
        )
        while True:
            first = _resume(run) + 1
            if alarms.lost_best:  # its score is no longer that of a checkpoint
                run.best = float("inf")
            if first > config.loop.max_steps:
                logger.say(f"{run_dir} has finished all {config.loop.max_steps} steps")
                return "finished"
            watchdog.progress()
            alarms.resumed(first - 1)
            with contextlib.closing(_batches(run, order, first)) as batches:
                outcome = _train(run, batches, first, flag)
            if outcome != "rolled back":
                return outcome
            run.sums, run.retry_step = {}, None
            run.forward.clear()


def open_index(folders: str | None, key: str) -> ShardIndex:
    """The index that a configuration key names. Raises ConfigError where it is unset."""
    if not folders:
        raise ConfigError(
            f"{key} is not set: build shards with shards/build.py and pass {key}=FOLDER"
        )
    return ShardIndex.load_many(folders)


def check_shards(world: World, *indexes: ShardIndex | None) -> None:
    """Raise ConfigError on every rank where shards are missing or differ in size.

    Rank 0 alone looks: thousands of files times hundreds of ranks would be a storm of requests.
    """
    problem = None
    if world.is_main:
        try:
            for index in indexes:
                if index is not None:
                    index.check_shard_sizes()
        except ValueError as error:
            problem = str(error)
    if (found := world.gather(problem)[0]) is not None:
        raise ConfigError(found)


def _open_validation(
    config: TrainingConfig, crop: bool
) -> tuple[ShardIndex | None, list[MicroBatch]]:
    """The validation shards, opened before the training so that a mistake shows at once."""
    if not config.data.valid:
        return None, []
    index = open_index(config.data.valid, "data.valid")
    micro = validation_batches(index, config.data, crop)
    if not micro:
        raise ConfigError(
            f"data.valid ({config.data.valid}) holds no utterance of data.min_samples = "
            f"{config.data.min_samples} samples or more: "
            "give it another folder, or set data.valid=null"
        )
    return index, micro


def _batches(run: _Run, order: DataOrder, first: int) -> Generator[Batch, None, None]:
    """This process's batches from step `first` on; after a rollback some steps have another
    seed."""
    config = run.config
    steps = range(first, config.loop.max_steps + 1)
    for seed, part in itertools.groupby(steps, key=run.seed_at):
        dataset = _dataset(run, run.index, train=True, seed=seed)
        usual = seed == config.seed
        dataset.order = order if usual else DataOrder(run.index, config.data, seed, run.task.crop)
        yield from iterate(
            dataset,
            training_items(run.rounds, part),
            num_workers=config.data.num_workers,
            prefetch=config.data.prefetch,
            device=run.world.device,
        )


def _dataset(run: _Run, index: ShardIndex, *, train: bool, seed: int | None = None) -> MicroBatches:
    data = run.config.data
    return MicroBatches(
        ShardReader(index, retries=data.read_retries, timeout_s=data.read_timeout_s),
        run.task.collate(train, seed),
        with_labels=run.task.with_labels,
        normalized=data.normalize,
    )


def _train(run: _Run, batches: Iterator[Batch], first: int, flag: PreemptionFlag) -> str:
    """Train from step `first` on; returns "finished", "preempted" or "rolled back"."""
    loop, world = run.config.loop, run.world
    started, waited, audio_samples = time.perf_counter(), 0.0, 0.0
    for step in range(first, loop.max_steps + 1):
        run.watchdog.progress()
        if run.seed_at(step) != run.seed_at(step - 1):
            _finish_save(run)  # new workers are forked, and no thread with them
        before = time.perf_counter()
        micro = [next(batches) for _ in run.rounds]
        waited += time.perf_counter() - before
        # The number that the loss is divided by is known before the first backward pass
        bad = [record for b in micro for record in b.bad]
        written = run.pending is not None and run.pending.written.done()
        total, samples, bad_total, num_written = world.sum(
            [
                sum(b.num_targets for b in micro),
                sum(b.audio_samples for b in micro),
                len(bad),
                written,
            ]
        )
        if num_written == world.size:
            _finish_save(run)
        agreed = int(world.max([flag.signal_number])[0])
        if agreed:  # else the flag stays: a signal may just have come
            flag.signal_number = agreed
            _finish_save(run)
            if run.saved_step != step - 1 and step > 1 and run.engine.has_finite_weights():
                save(run, step - 1, final=True)
            waited = time.monotonic() - flag.arrived if flag.arrived else 0.0
            run.logger.event(
                "preempted",
                step=step - 1,
                signal=flag.signal_number,
                seconds_to_save=round(world.max([waited])[0], 3),
            )
            return "preempted"
        for batch in micro:
            log_batch(Path(run.config.run_dir), world.rank, batch, samples=loop.log_samples)
        if bad_total:
            _count_bad(run, bad, step)
        norm = _step(run, micro, step, total)
        last = step == loop.max_steps
        validates, saves = (last or step % n == 0 for n in (loop.validate_every, loop.save_every))
        saves |= run.retry_step is not None and step >= run.retry_step
        finite = not (validates or saves) or run.engine.has_finite_weights()
        scale = run.engine.loss_scale if run.config.engine.precision == "fp16" else None
        if run.alarms.after_step(step, norm, scale, finite):
            return "rolled back"
        audio_samples += samples
        if step % loop.log_every == 0 or last:
            seconds = time.perf_counter() - started
            record = {"step": step, **_metrics(run, step, norm)}
            record |= {"audio_hours": audio_samples / SAMPLE_RATE / 3600, "seconds": seconds}
            record |= {**_slowest_rank(run, waited), "world_size": world.size}
            _log(run, record, first)
            started, waited, audio_samples = time.perf_counter(), 0.0, 0.0
            warmup = warmup_steps(run.config.schedule, loop.max_steps)
            if run.alarms.after_record(record, run.config.model, warmup):
                return "rolled back"
        before = time.perf_counter()
        improved = validates and _validate_and_compare(run, step)
        if improved or saves:
            save(run, step, improved=improved, final=last)
        started += time.perf_counter() - before  # seconds are those of training
    run.logger.event("finished", step=loop.max_steps)
    return "finished"


def _step(run: _Run, micro: list[Batch], step: int, total: float) -> float:
    """Forward and backward of all rounds, one update; returns the gradient norm."""
    config, world = run.config, run.world
    lr, seed = learning_rate(config.schedule, step, config.loop.max_steps), run.seed_at(step)
    run.engine.train()
    norm = None
    for round_, batch in enumerate(micro):
        run.watchdog.progress()
        torch.manual_seed(keyed_seed(seed, "model", step, batch.slot))
        drop_layers = _drop_layers(config, seed, step, batch.slot)
        begin = _now(world.device)
        sums = run.task.losses(run.engine, batch.to(world.device), step, drop_layers)
        run.forward.append((begin, _now(world.device)))
        weight = 1.0 if batch.num_targets else 0.0
        run.engine.backward(sums["loss"] * (weight / max(total, 1.0)))
        norm = run.engine.step(lr if round_ == len(micro) - 1 else None)
        for name, value in sums.items():
            value = value.detach().double() * weight
            run.sums[name] = run.sums[name] + value if name in run.sums else value
    assert norm is not None
    return norm


def _now(device: torch.device) -> Any:
    """A point in time: of the GPU's work, without waiting for it, or of the CPU."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _slowest_rank(run: _Run, waited: float) -> dict[str, Any]:
    """Which process holds the others up, and how long data let them wait since the last record;
    collective.

    All take the same time for a step, because they wait for each other in it. A process's own
    seconds here are its wait for data and its forward passes: the part in which it waits for no
    other (under ZeRO 3 the forward passes gather weights, which evens them out). On a GPU the
    events are over when this is called: the sums have been read.
    """
    own = waited + sum(
        end - begin if isinstance(end, float) else begin.elapsed_time(end) / 1000
        for begin, end in run.forward
    )
    run.forward.clear()
    waits, seconds, hosts = zip(*run.world.gather((waited, own, platform.node())), strict=True)
    rank = seconds.index(max(seconds))
    return {
        "data_wait_seconds": max(waits),
        "slowest_rank": rank,
        "slowest_host": hosts[rank],
        "slowest_rank_seconds": seconds[rank],
        "median_rank_seconds": statistics.median(seconds),
    }


def _drop_layers(config: TrainingConfig, seed: int, step: int, slot: int) -> list[bool]:
    """The layers that LayerDrop skips: the same in every slot, so that all processes save time."""
    key = (step, slot) if config.model.layer_drop_per == "slot" else (step,)
    draws = keyed_rng(seed, "layer_drop", *key).random(config.model.num_layers)
    return (draws < config.model.layer_drop).tolist()  # type: ignore[no-any-return]


def _metrics(run: _Run, step: int, norm: float) -> dict[str, float]:
    """Average the sums since the last record over slots and processes."""
    names = sorted(run.sums)
    values = run.world.sum(torch.stack([run.sums[n] for n in names]).tolist())
    run.sums = {}
    sums = dict(zip(names, values, strict=True))
    lr = learning_rate(run.config.schedule, step, run.config.loop.max_steps)
    out = {**run.task.metrics(sums), **run.task.schedule_metrics(step), "lr": lr, "grad_norm": norm}
    if run.config.engine.precision == "fp16":
        out["loss_scale"] = run.engine.loss_scale
    return out


def _log(run: _Run, record: dict[str, Any], first: int) -> None:
    run.logger.metrics(record)
    shown = ("loss", "contrastive_loss", "accuracy", "code_perplexity", "lr", "grad_norm")
    text = "  ".join(f"{k} {record[k]:.4g}" for k in shown if k in record)
    done, max_steps = int(record["step"]), run.config.loop.max_steps
    per_step = record["seconds"] / min(run.config.loop.log_every, done - first + 1)
    left = (max_steps - done) * per_step
    rate = record["audio_hours"] / max(record["seconds"], 1e-9)
    run.logger.say(
        f"step {done}/{max_steps}  {text}  {per_step:.2f} s/step  {rate:.3f} audio-h/s  left "
        f"{left / 3600:.1f} h"
    )


def validate(run: _Run, step: int) -> dict[str, float]:
    """Metrics over the whole validation set, in evaluation mode; every process takes every W-th
    micro-batch."""
    config, world = run.config, run.world
    assert run.valid is not None
    micro = run.valid_micro
    rounds = -(-len(micro) // world.size)
    items = [
        micro[i] if i < len(micro) else None
        for i in range(world.rank, rounds * world.size, world.size)
    ]
    batches = iterate(
        _dataset(run, run.valid, train=False),
        items,
        num_workers=min(config.data.num_workers, 2),
        prefetch=2,
        device=world.device,
    )
    run.engine.train(False)
    sums: dict[str, float] = {}
    bad: list[dict[str, Any]] = []
    with torch.no_grad(), contextlib.closing(batches):
        for batch in batches:
            run.watchdog.progress()
            # Logged at the first validation, not at each
            batch.bad = [record for record in batch.bad if record["key"] not in run.bad]
            bad += batch.bad
            log_batch(Path(config.run_dir), world.rank, batch, samples=False)
            out = run.task.losses(run.engine, batch.to(world.device), 0, None)
            for name, value in out.items():
                weight = 1.0 if batch.num_targets else 0.0
                sums[name] = sums.get(name, 0.0) + weight * float(value)
    run.engine.train()
    _count_bad(run, bad, step)
    names = sorted(sums)
    return run.task.metrics(dict(zip(names, world.sum([sums[n] for n in names]), strict=True)))


def _validate_and_compare(run: _Run, step: int) -> bool:
    """Validate, log, and say whether this is the best model so far."""
    if run.valid is None:
        return False
    _finish_save(run)  # whether that one is the best is known then; and no thread is forked
    values = {f"valid/{k}": v for k, v in validate(run, step).items()}
    run.logger.metrics({"step": step, **values})
    score = values[run.task.best_metric]
    improved = score < run.best
    run.logger.say(
        f"step {step}  {run.task.best_metric} {score:.4f}{'  (best)' if improved else ''}"
    )
    run.best_before, run.best = run.best, min(run.best, score)
    return improved


def save(run: _Run, step: int, *, improved: bool = False, final: bool = False) -> None:
    """Begin to save on all processes together; `latest`, and `best` for an improved model, name it
    once it is durable. Returns then where `final`, or else when training may go on.

    A save that fails is an event and tried again some steps later; CheckpointError where it is
    `final` or the last of SAVE_ATTEMPTS.
    """
    _finish_save(run)
    loop, root = run.config.loop, run.root
    final = final or run.num_failed_saves == SAVE_ATTEMPTS - 1
    run.retry_step = None
    meta = {
        "version": __version__,
        "best": None if run.best == float("inf") else run.best,
        "bad": sorted(run.bad),
        "index_fingerprint": run.index.fingerprint,
        "config": to_dict(run.config),
    }

    def commit(folder: Path) -> None:
        for name in ("latest", "best") if improved else ("latest",):
            checkpoint.point(root, name, folder)
        checkpoint.prune(root, loop.keep_last, loop.keep_every)

    run.watchdog.progress()
    started = time.perf_counter()
    written = run.saver.begin(step, meta, commit, copy=loop.async_save)
    run.pending = _Pending(step, improved, written, started, time.perf_counter() - started)
    if final or not loop.async_save:
        _finish_save(run, final=final)


def _finish_save(run: _Run, *, final: bool = False) -> None:
    """Wait for the save in flight, if there is one, and log what became of it. Raises
    CheckpointError where it failed and was `final`."""
    if run.pending is None:
        return
    pending, run.pending = run.pending, None
    run.watchdog.progress()
    before = time.perf_counter()
    try:
        durable = pending.written.result()
    except checkpoint.CheckpointError as error:
        run.num_failed_saves += 1
        run.logger.event("save_failed", step=pending.step, reason=str(error))
        if final:
            raise
        run.retry_step = pending.step + max(1, run.config.loop.save_every // 10)
        if pending.improved:  # there is no such checkpoint
            run.best = run.best_before
        return
    run.num_failed_saves, run.saved_step = 0, pending.step
    pending.pause += time.perf_counter() - before
    run.logger.event(
        "saved",
        step=pending.step,
        seconds=round(durable - pending.started, 3),
        pause_seconds=round(pending.pause, 3),
        best=pending.improved,
    )


def _resume(run: _Run) -> int:
    """Load the newest checkpoint that can be read; returns its step, 0 for a fresh run."""
    _finish_save(run)
    # Rank 0's view of the file system decides: another's may be older
    folders = run.world.gather(checkpoint.candidates(run.root))[0]
    for folder in folders:

        def check(meta: dict[str, Any], folder: Path = folder) -> None:
            _check_same_run(run, folder, meta)

        try:
            meta = checkpoint.load(run.engine, folder, check)
        except checkpoint.CheckpointError as error:
            run.logger.event("checkpoint_damaged", path=str(folder), reason=str(error))
            continue
        run.best = float("inf") if meta["best"] is None else float(meta["best"])
        run.bad, run.saved_step = set(meta["bad"]), int(meta["step"])
        if run.world.is_main:  # the newest readable one may be another than before
            checkpoint.point(run.root, "latest", folder)
        if run.saved_step < run.config.loop.max_steps:
            run.logger.event(
                "resumed",
                step=run.saved_step,
                old_world_size=meta["world_size"],
                new_world_size=run.world.size,
                **_attempt(run, run.saved_step),
            )
        return run.saved_step
    if folders:
        raise checkpoint.CheckpointError(
            f"none of the {len(folders)} checkpoints under {run.root} can be read (see "
            f"events.jsonl): restore one, or "
            "use another run_dir to start again"
        )
    run.logger.event(
        "start",
        world_size=run.world.size,
        num_parameters=sum(_sizes(run.engine.module)),
        **_attempt(run, 0),
    )
    return 0


def _check_same_run(run: _Run, folder: Path, meta: dict[str, Any]) -> None:
    """Raise ConfigError where a checkpoint is of other data or of another run's configuration."""
    if meta["index_fingerprint"] != run.index.fingerprint:
        raise ConfigError(
            f"{folder} was trained on shards with fingerprint {meta['index_fingerprint']} "
            f"but data.train has {run.index.fingerprint}: use the same shards, or another "
            "run_dir for a new run"
        )
    if lines := refused_changes(run.config, meta["config"]):
        raise ConfigError(
            f"{folder} is a checkpoint of another configuration:\n{lines}\nmove it out of "
            "run_dir, or continue the run that it belongs to"
        )


def _attempt(run: _Run, step: int) -> dict[str, int]:
    return attempt(Path(run.config.run_dir), step) if run.world.is_main else {}


def _sizes(module: nn.Module) -> list[int]:
    return [int(getattr(p, "ds_numel", p.numel())) for p in module.parameters()]


def _count_bad(run: _Run, records: list[dict[str, Any]], step: int) -> None:
    """Count the utterances that could not be used, each once however often it comes; collective.
    Raises ConfigError past the limit, and for a failed read where data.on_read_error is stop."""
    found = {str(r["key"]): r for of_rank in run.world.gather(records) for r in of_rank}
    failed = [r for r in found.values() if r.get("read_error")]
    if failed and run.config.data.on_read_error == "stop":
        raise ConfigError(
            f"utterance {failed[0]['key']} of {failed[0]['shard']} {failed[0]['reason']}, and "
            "data.on_read_error is stop: mend the storage or copy the shard again and run the same "
            "command, or skip such utterances with data.on_read_error=skip"
        )
    new = {*found} - run.bad
    if not new:
        return
    run.bad |= new
    total, limit = len(run.bad), run.config.data.max_bad_samples
    where = "logs/skipped-*.jsonl"
    run.logger.event("sample_skipped", step=step, new=len(new), total=total, see=where)
    if total > limit:
        raise ConfigError(
            f"{total} utterances could not be used, more than data.max_bad_samples = {limit}: "
            f"{most_frequent_fault(Path(run.config.run_dir))}; {where} names each with its reason; "
            "run shards/verify.py, copy or build the shards again, or raise the limit"
        )
