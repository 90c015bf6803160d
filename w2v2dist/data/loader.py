"""Workers that turn a process's micro-batches into tensors, from any step on, in order, ahead of
the training."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from w2v2dist.data.audio import SAMPLE_RATE, BadSample, ReadError, normalize, resample
from w2v2dist.data.batch import Batch, Rows
from w2v2dist.data.batching import MicroBatch
from w2v2dist.data.order import DataOrder
from w2v2dist.data.reader import ShardReader


class Collate(Protocol):
    """Makes a task's batch of decoded rows; None asks for an empty slot's. Runs in a worker."""

    def __call__(self, rows: Rows | None) -> Batch: ...


class MicroBatches(Dataset[Batch]):
    """Maps a planned micro-batch to a Batch: read, decode, collate."""

    def __init__(
        self,
        reader: ShardReader,
        collate: Collate,
        order: DataOrder | None = None,  # for items that are (step, slot)
        *,
        with_labels: bool,
        normalized: bool,
    ) -> None:
        self.reader, self.collate, self.order = reader, collate, order
        self.with_labels, self.normalized = with_labels, normalized

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
    dataset: MicroBatches, items: Iterable[Any], *, num_workers: int, prefetch: int
) -> Generator[Any, None, None]:
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
        pin_memory=torch.cuda.is_available(),
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
