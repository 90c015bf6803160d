"""The run folder: its configuration, which may not change, and the logs of samples."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from w2v2dist import __version__
from w2v2dist.checkpoint import candidates
from w2v2dist.config import (
    ConfigError,
    changeable,
    diff,
    flatten,
    is_within,
    merge,
    read_yaml,
    to_dict,
    to_yaml,
)
from w2v2dist.data.batch import Batch
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import DISK_FULL, RunLogger, append_jsonl
from w2v2dist.runtime.watchdog import Watchdog
from w2v2dist.training.lock import locked

LEARNED_FROM = ("data.train", "data.text")  # a resumed run may find them elsewhere


@dataclass(frozen=True, slots=True)
class Run:
    """A run in progress, as one of its processes has it: what makes it this run, and its logs."""

    config: Any  # a TrainingConfig
    fingerprint: str  # of its data
    records: Mapping[str, Any]  # of its task
    world: World
    logger: RunLogger
    watchdog: Watchdog

    @property
    def path(self) -> Path:
        """The run folder."""
        return Path(self.config.run_dir)

    def meta(self) -> dict[str, Any]:
        """What every checkpoint says of its run."""
        config = to_dict(self.config)
        known = {"version": __version__, "index_fingerprint": self.fingerprint, "config": config}
        return {**known, **self.records}

    def check(self, folder: Path, meta: dict[str, Any]) -> None:
        """Raise ConfigError where a checkpoint is of other data or another run's configuration."""
        if meta["index_fingerprint"] != self.fingerprint:
            raise ConfigError(
                f"{folder} was trained on data with fingerprint {meta['index_fingerprint']} "
                f"but this configuration's has {self.fingerprint}: use the same data (all that "
                "data.* names for training), or another run_dir for a new run"
            )
        for name, record in self.records.items():  # an older version wrote none
            if meta.get(name, record) != record:
                raise ConfigError(
                    f"{folder} was trained with another {name} than {self.path / name}.json: move "
                    "it out of run_dir, or continue the run that it belongs to"
                )
        if lines := refused_changes(self.config, meta["config"]):
            raise ConfigError(
                f"{folder} is a checkpoint of another configuration:\n{lines}\nmove it out of "
                "run_dir, or continue the run that it belongs to"
            )


@contextlib.contextmanager
def opened(
    config: Any, fingerprint: str, records: Mapping[str, Any], world: World
) -> Iterator[Run]:
    """The run folder, held for this job; collective. Raises InUseError or ConfigError."""
    run_dir = Path(config.run_dir)
    with contextlib.ExitStack() as stack:
        if world.is_main:
            stack.enter_context(locked(run_dir))
            prepare_run_folder(config, fingerprint, records)
        world.barrier()
        logger = RunLogger(run_dir, enabled=world.is_main)
        stack.callback(logger.close)
        stacks = run_dir / "logs" / f"stacks-{world.rank:05d}.txt"
        watchdog = Watchdog(stacks, config.loop.stall_s)
        stack.callback(watchdog.close)
        yield Run(config, fingerprint, records, world, logger, watchdog)


def refused_changes(config: Any, old: dict[str, Any]) -> str:
    """A line for every key that differs from `old` and may not; "" where there is none."""
    # A key that an older version did not have had its default
    defaults = to_dict(type(config)(run_dir=config.run_dir))
    changed = diff(merge(defaults, old), to_dict(config))
    may = changeable(type(config))
    refused = {k: v for k, v in changed.items() if not is_within(k, may)}
    return "\n".join(f"  {k}: {old!r} -> {new!r}" for k, (old, new) in refused.items())


def learned_by(cls: type[Any], values: Mapping[str, Any]) -> str:
    """Tells a training from others by its settings (dotted keys): what is learned depends on all
    but those that a resumed run may change. Its data count by where they lie, and alarms where
    one can roll back."""
    settings = {**flatten(to_dict(cls(run_dir=""))), **values}
    may = {*changeable(cls)} - {*LEARNED_FROM}
    if settings.get("alarms.on_alarm") == "rollback":
        may -= {"alarms"}
    kept = {k: v for k, v in settings.items() if not is_within(k, may)}
    for key in LEARNED_FROM:
        if isinstance(text := kept.get(key), str):
            places = [os.path.realpath(os.path.expanduser(name)) for name in text.split(",")]
            kept[key] = ",".join(places)
    return json.dumps(kept, sort_keys=True, default=str)


def _differences(old: Any, new: Any, most: int = 3) -> str:
    """What a record had otherwise: of lists what only one of them has."""
    said = []
    for key, (before, now) in diff(old or {}, new).items():
        text = f"{before!r} -> {now!r}"
        if isinstance(before, list) and isinstance(now, list):
            only = [str(x) for x in (*before, *now) if (x in before) != (x in now)]
            text = f"only one has {' '.join(only[:8])}" if only else "in another order"
        said.append(f"{key}: {text}" if len(text) < 200 else f"{key} differs")
    return "; ".join(said[:most])


def prepare_run_folder(config: Any, fingerprint: str, records: Mapping[str, Any]) -> None:
    """Write config.yaml, environment.json and the records; refuse what an old run has otherwise."""
    run_dir = Path(config.run_dir)
    resolved = run_dir / "config.yaml"
    if resolved.exists() and (lines := refused_changes(config, read_yaml(resolved))):
        raise ConfigError(
            f"{run_dir} is a run with another configuration:\n{lines}\nuse another run_dir "
            "for a new run, or the old values to continue this one (docs/resume.md lists the keys "
            "that may change)"
        )
    for name, record in records.items():
        path = run_dir / f"{name}.json"
        # Before the first checkpoint nothing depends on it
        if path.exists() and has_saved(run_dir) and _read_json(path) != record:
            raise ConfigError(
                f"{run_dir} is a run with another {name}.json than this configuration's ("
                f"{_differences(_read_json(path), record)}): use another run_dir for a new run, "
                f"or the old {name} to continue this one"
            )
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        text = json.dumps(record, ensure_ascii=False, indent=1)
        _replace(run_dir / f"{name}.json", text)
    _replace(resolved, to_yaml(config))
    environment = {
        "w2v2dist": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "index_fingerprint": fingerprint,
    }
    (run_dir / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")


def has_saved(run_dir: Path) -> bool:
    """Whether a run has a checkpoint."""
    return bool(candidates(run_dir / "checkpoints"))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged ({error}): remove it, and it is written again"
        ) from None


def _replace(path: Path, text: str) -> None:
    """Write a file at once: it is whole, or as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def log_batch(run: Run, batch: Batch, *, samples: bool) -> None:
    """Append what a slot used (where `samples`) and what it had to skip to the logs of a rank."""
    logs, rank, where = run.path / "logs", run.world.rank, {"step": batch.step, "slot": batch.slot}
    try:
        if samples and batch.used is not None:
            append_jsonl(logs / f"samples-{rank:05d}.jsonl", {**where, **batch.used})
        for bad in batch.bad:
            record = {"event": "sample_skipped", **where, **bad}
            append_jsonl(logs / f"skipped-{rank:05d}.jsonl", record)
    except OSError as error:  # a full disk costs lines of logs, not the run
        if error.errno not in DISK_FULL:
            raise
