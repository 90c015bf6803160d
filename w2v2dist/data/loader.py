"""Workers that turn a process's micro-batches into tensors, from any step on, in order, ahead of
the training."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from w2v2dist.data.audio import SAMPLE_RATE, BadSample, ReadError, normalize, resample
from w2v2dist.data.order import DataOrder, MicroBatch
from w2v2dist.data.reader import ShardReader


@dataclass(slots=True)
class Rows:
    """The decoded utterances of a micro-batch. `position` is each one's row in the planned
    micro-batch, so that what is drawn per row does not change when another row is skipped."""

    micro: MicroBatch
    waveforms: list[npt.NDArray[np.float32]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)

    @property
    def starts(self) -> list[int]:
        """Where the crop of each decoded row begins."""
        return [int(self.micro.starts[p]) for p in self.position]

    @property
    def speeds(self) -> list[float]:
        """At what speed each decoded row is played."""
        return [int(self.micro.percent[p]) / 100 for p in self.position]

    def reject(self, row: int, reason: str) -> None:
        """Move a decoded row to the bad ones."""
        self.bad.append({"key": self.keys[row], "reason": reason})
        for column in (self.waveforms, self.labels, self.keys, self.position):
            del column[row]


@dataclass(slots=True)
class Batch:
    """What a model gets. B utterances, S samples, T frames, M masked frames, K distractors, L label
    tokens."""

    step: int
    slot: int
    waveforms: Tensor  # (B, S) float32
    # what the loss is divided by: masked frames, or utterances for CTC; 0 is an empty slot
    num_targets: float
    num_samples: Tensor | None = None  # (B,) int64 where rows are padded
    mask: Tensor | None = None  # (B, T) bool
    distractors: Tensor | None = None  # (B, M, K) int64
    channel_mask: Tensor | None = None  # (B, C) bool
    targets: Tensor | None = None  # (B, L) int64
    target_lengths: Tensor | None = None  # (B,) int64
    texts: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)  # 1.0 is the recording's own
    starts: list[int] = field(default_factory=list)  # where each crop begins, in samples
    lengths: list[int] = field(default_factory=list)  # samples of each crop
    bad: list[dict[str, Any]] = field(default_factory=list)

    @property
    def audio_samples(self) -> int:
        """Samples of audio, without padding."""
        return sum(self.lengths)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `function` applied to every tensor."""
        out = copy.copy(self)
        for item in fields(self):
            if isinstance(value := getattr(self, item.name), Tensor):
                setattr(out, item.name, function(value))
        return out

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory the copy does not block."""
        return self if device.type == "cpu" else self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by the DataLoader when training on a GPU."""
        return self.map(Tensor.pin_memory)


Collate = Callable[[Rows | None], Batch]  # None asks for an empty slot's micro-batch


class MicroBatches(Dataset[Batch]):
    """Maps a planned micro-batch to a Batch: read, decode, collate."""

    def __init__(
        self, reader: ShardReader, collate: Collate, *, with_labels: bool, normalized: bool
    ) -> None:
        self.reader, self.collate = reader, collate
        self.with_labels, self.normalized = with_labels, normalized
        self.order: DataOrder | None = None

    def __getitem__(self, item: tuple[int, int | None] | MicroBatch | None) -> Batch:
        if isinstance(item, tuple):
            assert self.order is not None
            step, slot = item
            item = None if slot is None else self.order.micro_batch(step, slot)
        return self.collate(None if item is None else self.rows(item))

    def rows(self, micro: MicroBatch) -> Rows:
        """Decode the micro-batch; an utterance that cannot be used is left out, and in `bad`."""
        rows = Rows(micro)
        for row, i in enumerate(micro.ids.tolist()):
            key = self.reader.index.key(i)
            try:
                wave = self.reader.audio(i, *micro.span(row))
                if (percent := int(micro.percent[row])) != 100:
                    wave = resample(wave, SAMPLE_RATE * percent // 100)
                    wave = wave[: int(micro.num_samples[row])]
                labels = self.reader.labels(i) if self.with_labels else {}
            except BadSample as error:
                shard = self.reader.index.shard_path(int(self.reader.index.shard[i]))
                record = {"key": key, "shard": str(shard), "reason": str(error)}
                rows.bad.append({**record, "read_error": isinstance(error, ReadError)})
                continue
            rows.waveforms.append(normalize(wave) if self.normalized else wave)
            rows.labels.append(labels)
            rows.keys.append(key)
            rows.position.append(row)
        return rows


def iterate(
    dataset: MicroBatches,
    items: Iterable[Any],
    *,
    num_workers: int,
    prefetch: int,
    device: torch.device,
) -> Generator[Batch, None, None]:
    """Batches of `items` in order, made by `num_workers` processes, each up to `prefetch` ahead.

    Close the generator to end the workers.
    """
    workers = min(num_workers, max(1, (os.cpu_count() or 1))) if num_workers else 0
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_signals,
    )
    yield from loader  # the workers end with this generator


def _ignore_signals(worker: int) -> None:
    """A preemption signals every process of the job: workers go on until their rank has saved (they
    end with it)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def training_items(
    slots: list[int | None], steps: Iterable[int]
) -> Iterator[tuple[int, int | None]]:
    """(step, slot) of a process: all its slots of a step, then the next step."""
    for step in steps:
        for slot in slots:
            yield step, slot


def pad(waveforms: list[npt.NDArray[np.float32]]) -> tuple[Tensor, Tensor | None]:
    """Stack (S,) arrays to (B, S); the true lengths (B,) where they differ, else None."""
    lengths = [len(w) for w in waveforms]
    out = torch.zeros(len(waveforms), max(lengths))
    for row, wave in zip(out, waveforms, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return out, None if len(set(lengths)) == 1 else torch.tensor(lengths)
