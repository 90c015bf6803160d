"""Metrics of training: sums and times since the last record, and the line that a person reads."""

import contextlib
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from w2v2dist.training.run_folder import Run
from w2v2dist.training.task import Record, Task


class Metrics:
    """Adds up what the slots of this process give, and logs it over all of them when due."""

    def __init__(self, run: Run, task: Task) -> None:
        self._run, self._task, self._loop = run, task, run.config.loop
        self.start(0)

    def start(self, step: int) -> None:
        """Begin anew after `step`; what was added is forgotten."""
        self._sums: dict[str, Tensor] = {}
        self._forward: list[tuple[Any, Any]] = []  # begin and end of each pass
        self._after, self._amount, self._waited = step, 0.0, 0.0
        self._started = time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether a record is due after this step."""
        return bool(self._loop.due(step, self._loop.log_every))

    def add(self, sums: Mapping[str, Tensor], weight: float) -> None:
        """Add a micro-batch's sums."""
        for name, value in sums.items():
            value = value.detach().double() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def add_amount(self, amount: float) -> None:
        """Add a step's progress, in the task's unit and over all processes."""
        self._amount += amount

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time in this block is a wait for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """The time in this block is a forward pass, on the GPU or the CPU."""
        begin = _now(self._run.world.device)
        yield
        self._forward.append((begin, _now(self._run.world.device)))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time in this block is not that of training."""
        before = time.perf_counter()
        yield
        self._started += time.perf_counter() - before

    def record(self, step: int, values: Mapping[str, float]) -> Record:
        """Log the averages over slots and processes, with `values`, and begin anew; collective."""
        seconds = time.perf_counter() - self._started
        names = sorted(self._sums)
        total = self._run.world.sum(torch.stack([self._sums[n] for n in names]).tolist())
        record = {"step": step, **self._task.metrics(dict(zip(names, total, strict=True)))}
        record |= {**self._task.schedule_metrics(step), **values}
        progress = self._task.progress(self._amount)
        record |= {**progress, "seconds": seconds, **self._slowest_rank()}
        record |= {"world_size": self._run.world.size}
        self._run.logger.metrics(record)
        self._say(record, progress, seconds / (step - self._after))
        self.start(step)
        return record

    def _slowest_rank(self) -> Record:
        """Which process holds the others up, and how long they waited for data; collective.

        All take the same time for a step, because they wait for each other in it. A process's own
        seconds here are its wait for data and its forward passes: the part in which it waits for no
        other (under ZeRO 3 the forward passes gather weights, which evens them out). On a GPU the
        events are over when this is called: the sums have been read.
        """
        own = self._waited + sum(
            end - begin if isinstance(end, float) else begin.elapsed_time(end) / 1000
            for begin, end in self._forward
        )
        found = self._run.world.gather((self._waited, own, platform.node()))
        waits, seconds, hosts = zip(*found, strict=True)
        rank = seconds.index(max(seconds))
        return {
            "data_wait_seconds": max(waits),
            "slowest_rank": rank,
            "slowest_host": hosts[rank],
            "slowest_rank_seconds": seconds[rank],
            "median_rank_seconds": statistics.median(seconds),
        }

    def _say(self, record: Record, progress: Mapping[str, float], per_step: float) -> None:
        """The record as a line on the console."""
        shown = "loss contrastive_loss accuracy code_perplexity perplexity lr grad_norm".split()
        text = "  ".join(f"{k} {record[k]:.4g}" for k in shown if k in record)
        done, max_steps = record["step"], self._loop.max_steps
        seconds = max(record["seconds"], 1e-9)
        rates = [f"{amount / seconds:.3f} {unit}/s" for unit, amount in progress.items()]
        text += f"  {per_step:.2f} s/step  {'  '.join(rates)}"
        left = (max_steps - done) * per_step / 3600
        self._run.logger.say(f"step {done}/{max_steps}  {text}  left {left:.1f} h")


def _now(device: torch.device) -> Any:
    """A point in time: of the GPU's work, without waiting for it, or of the CPU."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
