"""What a run folder says: its settings, curves, events and evaluations; of a run that is being
written, died or is of an older version, what there is, and what is missing."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v2dist.config import flatten, read_yaml
from w2v2dist.reporting import logs, status
from w2v2dist.reporting.history import Replay
from w2v2dist.reporting.logs import Floats, Integers, Record, Table
from w2v2dist.reporting.status import is_run, read_status
from w2v2dist.reporting.tail import COUNTED
from w2v2dist.training import attempts

MOST_RUNS = 12
KINDS = {
    "pretrain": "pre-training",
    "finetune": "fine-tuning",
    "language_model": "language model",
    "unsupervised": "training without labels",
}
# What tells the kind of a run whose settings are lost: a metric that only it has
SIGNS = {
    "contrastive_loss": "pretrain",
    "perplexity": "language_model",
    "frozen": "finetune",
    "fake_items": "unsupervised",
}
OF_QUANTIZERS = set(
    "code_perplexity prob_perplexity code_usage prob_usage temperature diversity_loss".split()
)
ERRORS = {"wer": "word", "cer": "letter", "per": "phone"}  # rates, and what they count


@dataclass(frozen=True)
class Run:
    """A run folder as it was read; a step that was trained again counts once, the last time."""

    folder: Path
    config: dict[str, Any]  # by dotted key; {} where it cannot be read
    training: Table  # of the steps that count, in their order
    validation: Table
    logged: Table  # step, time and seconds of all records of training, in the order of the file
    alive: NDArray[np.bool_]  # which of them no resumption went back behind
    events: list[Record]
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name

    @cached_property
    def task(self) -> str:
        """That of its settings; where they are lost, what its metrics look like."""
        if (task := self.config.get("task")) or not self.problems:
            return str(task or "pretrain")
        return next((t for key, t in SIGNS.items() if key in self.training.columns), "pretrain")

    @property
    def kind(self) -> str:
        """What its training is called."""
        return KINDS.get(self.task, self.task)

    @property
    def error_rates(self) -> list[str]:
        """Those that its validation has."""
        return [rate for rate in ERRORS if len(self.series(f"valid/{rate}")[1])]

    @property
    def chance_bits(self) -> float:
        """Contrastive loss of a model that guesses: log2(1 + distractors), 6.658 bits for 100."""
        return math.log2(1 + max(0.0, self.number("model.num_distractors", 100)))

    @cached_property
    def num_codes(self) -> float:
        """Codes of all codebooks together, which a perplexity is at most."""
        entries = self.number("model.num_codebook_entries", 320)
        return max(1.0, self.number("model.num_codebooks", 2) * entries)

    @cached_property
    def last_step(self) -> int:
        """The last step that counts."""
        return int(max([0.0, *(t.column("step")[-1] for t in self._tables if len(t))]))

    @property
    def starts(self) -> list[Record]:
        """The events with which an attempt begins."""
        return attempts.starts(self.events)

    @cached_property
    def state(self) -> str:
        """running, finished, preempted, stopped, silent or new, as `w2v2dist status` says it."""
        return str(read_status(self.folder)["state"])

    @cached_property
    def signs(self) -> Floats:
        """When it was alive: the times of records and events. What the job's script notes after a
        failure is none."""
        own = [logs.number(e.get("time")) for e in self.events if "job" not in e]
        return np.concatenate([self.logged.column("time"), self.validation.column("time"), own])

    @property
    def _tables(self) -> tuple[Table, Table]:
        return self.training, self.validation

    @cached_property
    def _absent(self) -> set[str]:
        """Metrics of what the model has not: they were logged as zeros."""
        quantized = ("model.quantize_targets", True), ("model.quantize_inputs", False)
        out = (
            set() if any(self.config.get(k, default) for k, default in quantized) else OF_QUANTIZERS
        )
        no_penalty = self.number("model.feature_penalty_weight", 10) == 0
        return out | {"feature_penalty"} if no_penalty else out

    def number(self, key: str, default: float) -> float:
        """A setting that is a number, else `default`."""
        value = logs.number(self.config.get(key))
        return value if math.isfinite(value) else default

    def series(self, key: str) -> tuple[Integers, Floats]:
        """Steps and values of a metric, where it was logged as a finite number; none of
        what the model has not."""
        table = self.validation if "/" in key else self.training
        if key in DERIVED and key not in table.columns:
            with np.errstate(all="ignore"):
                values = DERIVED[key](self, table)
        else:
            values = table.column(key)
        known = np.isfinite(values) & (key not in self._absent)
        return table.column("step")[known].astype(np.int64), values[known]

    def last(self, key: str) -> float | None:
        """The last logged value of a metric."""
        values = self.series(key)[1]
        return float(values[-1]) if len(values) else None

    @cached_property
    def slowest(self) -> tuple[Integers, list[str]]:
        """Of each finite value of `slowest_rank_seconds`, which process that was: its place in the
        names of those that ever were the slowest."""
        table = self.training
        known = np.isfinite(table.column("slowest_rank_seconds"))
        who = [table.column(f"slowest_{what}")[known] for what in ("rank", "host")]
        found, place = np.unique(np.nan_to_num(np.stack(who), nan=-1), axis=1, return_inverse=True)
        hosts = dict(enumerate(table.texts))
        names = [
            f"rank {rank:.0f}" + (f" on {hosts[host]}" if host in hosts else "")
            for rank, host in found.T.tolist()
        ]
        return place.reshape(-1), names


def _speed(run: Run, table: Table) -> Floats:
    """Times real time, or tokens or utterances a second."""
    amount = table.column("audio_hours") * 3600
    for name in COUNTED:
        amount = np.where(np.isnan(amount), table.column(name), amount)
    return amount / table.column("seconds")


# Curves that are made of others
DERIVED: dict[str, Callable[[Run, Table], Floats]] = {
    "speed": _speed,
    "data_wait": lambda _, t: t.column("data_wait_seconds") / t.column("seconds"),
    "code_usage": lambda run, t: t.column("code_perplexity") / run.num_codes,
    "prob_usage": lambda run, t: t.column("prob_perplexity") / run.num_codes,
    "slowness": lambda _, t: t.column("slowest_rank_seconds") / t.column("median_rank_seconds"),
}


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises ValueError where it is none."""
    folder = Path(folder)
    if not is_run(folder, ["config.yaml"]):
        raise ValueError(
            f"{folder} is not a run folder: it has no config.yaml (give one that a training wrote, "
            "or a folder that holds such)"
        )
    problems = []
    try:
        config = flatten(read_yaml(folder / "config.yaml"))
    except (ValueError, OSError, RecursionError) as error:
        config = {}
        problems.append(f"Its settings cannot be read: {error}")
    events: list[Record] = []
    logged = validation = Table({}, [], 0)
    try:
        events = logs.read_events(folder / "events.jsonl")
        logged, validation = logs.read_metrics(folder / "metrics.jsonl")
    except OSError as error:
        problems.append(f"Its logs cannot be read: {error}")
    starts = attempts.starts(events)
    counting, counting_validation = (_counting(table, starts) for table in (logged, validation))
    training, validation = logged.rows(counting), validation.rows(counting_validation)
    alive = np.zeros(len(logged), bool)
    alive[counting] = True
    narrow = {key: logged.column(key) for key in ("step", "time", "seconds")}
    logged = Table(narrow, [], len(logged))
    if not len(training) and not len(validation):
        problems.append("No metrics were logged yet.")
    return Run(folder, config, training, validation, logged, alive, events, problems)


def _counting(table: Table, starts: Sequence[Record]) -> Integers:
    """The places of the records that count, in the order of their steps. Records and starts took
    place in the order of time; records without one (an older version's) come first."""
    steps, times = table.column("step"), table.column("time")
    timed = ~np.isnan(times)
    rows: list[tuple[float, int | Record]]
    rows = [(t, i) for i, t in enumerate(np.nan_to_num(times).tolist())]
    rows += [(logs.time_of(start), start) for start in starts]
    replay = Replay()
    for _, row in sorted(rows, key=itemgetter(0)):
        if isinstance(row, int):
            replay.record(int(steps[row]), row, bool(timed[row]))
        else:
            replay.start(logs.step_of(row))
    return np.array(replay.values, np.int64)


def find_runs(paths: list[Path], most: int = MOST_RUNS) -> tuple[list[Path], int]:
    """The run folders among `paths`, and below those that are none (newest last, at most `most` of
    them, and how many more there are), each once, wherever links lead to it too. Raises ValueError
    where a path leads to none."""
    found: dict[Path, Path] = {}  # by their real paths
    left_out = 0
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder: give a run folder, or one that holds runs")
        if is_run(path, ["config.yaml"]):
            found.setdefault(path.resolve(), path)
            continue
        runs = (run for run in status.find_runs(path) if is_run(run, ["config.yaml"]))
        inside = sorted(runs, key=_changed)
        if not inside:
            raise ValueError(
                f"{path} is not a run folder: it has no config.yaml, and neither has a folder in it"
            )
        left_out += max(0, len(inside) - most)
        for run in inside[-most:]:
            found.setdefault(run.resolve(), run)
    return [*found.values()], left_out


def _changed(folder: Path) -> float:
    """When a run was last written; 0 where that cannot be seen."""
    paths = [folder / f"{name}.jsonl" for name in ("metrics", "events")]
    return max((os.path.getmtime(p) for p in paths if os.path.exists(p)), default=0.0)
