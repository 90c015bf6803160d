"""Workers that turn micro-batches into tensors, from any step on, in order, ahead of training."""

import atexit
import contextlib
import ctypes
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from w2v2dist.data.audio import SAMPLE_RATE, BadSample, ReadError, normalize, resample
from w2v2dist.data.batch import Batch, Rows
from w2v2dist.data.batching import MicroBatch
from w2v2dist.data.config import DataConfig
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.order import DataOrder
from w2v2dist.data.reader import ShardReader

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
ALIGNED = 64  # bytes
KEPT = 1 << 25  # bytes; the most that mallopt takes as the size of a block

# Makes a task's batch of decoded rows; None asks for an empty slot's. Runs in a worker.
Collate = Callable[[Rows | None], Batch]


class MicroBatches(Dataset[Batch]):
    """Maps a planned micro-batch to a Batch: read (as the configuration says), decode, collate.
    `order` is for items that are (step, slot)."""

    def __init__(
        self,
        index: ShardIndex,
        config: DataConfig,
        collate: Collate,
        order: DataOrder | None = None,
        *,
        with_labels: bool,
    ) -> None:
        retries, timeout_s = config.read_retries, config.read_timeout_s
        self.reader = ShardReader(index, retries=retries, timeout_s=timeout_s)
        self.collate, self.order = collate, order
        self.with_labels, self.normalized = with_labels, config.normalize

    def __getitem__(self, item: tuple[int, int | None] | MicroBatch | None) -> Batch:
        if isinstance(item, tuple):
            assert self.order is not None
            step, slot = item
            item = None if slot is None else self.order.micro_batch(step, slot)
        return self.collate(None if item is None else self.rows(item))

    def rows(self, micro: MicroBatch) -> Rows:
        """Decode the micro-batch; an utterance that cannot be used is left out, and in `bad`."""
        rows = Rows(micro)
        self.reader.expect(micro.ids.tolist(), with_labels=self.with_labels)
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
            rows.waveforms.append(normalize(wave, wave) if self.normalized else wave)
            rows.labels.append(labels)
            rows.keys.append(key)
            rows.position.append(row)
        return rows


def iterate(
    dataset: Dataset[Any], items: Iterable[Any], *, num_workers: int, prefetch: int
) -> Generator[Any, None, None]:
    """Batches of `items` in order, made by `num_workers` processes, each up to `prefetch` ahead.
    Close the generator to end the workers."""
    workers = min(num_workers, len(os.sched_getaffinity(0)))
    if not workers:
        keep_big_blocks()
    loader: DataLoader[Any] = DataLoader(
        _Packing(dataset, prefetch) if workers else dataset,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_begin_worker,
    )
    batches = iter(loader)
    # The traceback of an error keeps its frames, and with them workers that no signal ends
    end = batches._shutdown_workers if isinstance(batches, _MultiProcessingDataLoaderIter) else None
    if end is not None:
        atexit.register(end)  # this generator may be in such a frame itself, and never be closed
    try:
        for item in batches:
            yield item.unpacked() if isinstance(item, _Packed) else item
    finally:
        if end is not None:
            end()
            atexit.unregister(end)


Place = tuple[int, torch.dtype, torch.Size]  # of a field's tensor: first byte, kind, shape


@dataclass(slots=True)
class _Packed:
    """A batch whose tensors crossed from a worker in one memory file, `path`. As multiprocessing
    passes tensors, each would cost a handshake with a thread of the busy worker."""

    batch: Batch  # without its tensors
    path: str
    num_bytes: int
    places: dict[str, Place]

    def _block(self) -> Tensor:
        """The file's bytes (num_bytes,), shared; they outlive the file and the worker."""
        return torch.from_file(
            self.path, shared=True, size=max(self.num_bytes, 1), dtype=torch.uint8
        )

    def _views(self, block: Tensor) -> dict[str, Any]:
        """The fields that are tensors."""
        return {
            name: block[first : first + dtype.itemsize * shape.numel()].view(dtype).view(shape)
            for name, (first, dtype, shape) in self.places.items()
        }

    def unpacked(self) -> Batch:
        """The batch, on views of the file's memory."""
        return replace(self.batch, **self._views(self._block()))

    def pin_memory(self) -> Batch:
        """Called by the DataLoader when training on a GPU."""
        return replace(self.batch, **self._views(self._block().pin_memory()))


class _Packing(Dataset[Any]):
    """Packs the batches of another data set, in a worker that is at most `prefetch` ahead."""

    def __init__(self, dataset: Dataset[Any], prefetch: int) -> None:
        self.dataset, self.prefetch = dataset, prefetch
        self.files: deque[int] = deque()  # descriptors that nobody may have opened yet

    def __getitem__(self, item: Any) -> Any:
        made = self.dataset[item]
        return self._packed(made) if isinstance(made, Batch) else made

    def _packed(self, batch: Batch) -> _Packed:
        places: dict[str, Place] = {}
        file, end = os.memfd_create("batch"), 0
        self.files.append(file)
        if len(self.files) > self.prefetch + 1:  # the next was asked for when the oldest was opened
            os.close(self.files.popleft())
        for name in (item.name for item in fields(batch)):
            if isinstance(tensor := getattr(batch, name), Tensor):
                places[name] = (end, tensor.dtype, tensor.shape)
                # Not through a mapping, each of whose pages would be cleared first
                if tensor.numel():  # numpy's empty arrays have strides that no view takes
                    _write(file, tensor.contiguous().flatten().view(torch.uint8).numpy(), end)
                end += -(-tensor.nbytes // ALIGNED) * ALIGNED
        os.ftruncate(file, max(end, 1))
        absent: dict[str, Any] = dict.fromkeys(places)
        return _Packed(replace(batch, **absent), f"/proc/{os.getpid()}/fd/{file}", end, places)


def _write(file: int, values: Any, position: int) -> None:
    """All bytes of an array; a system call may take fewer."""
    while len(values):
        count = os.pwrite(file, values, position)
        values, position = values[count:], position + count


def keep_big_blocks() -> None:
    """Let this process keep the memory of waveforms that it frees: new pages for each cost a fifth
    of the time of reading and decoding. Without glibc nothing happens."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT)
        mallopt(M_TRIM_THRESHOLD, 8 * KEPT)


def _begin_worker(worker: int) -> None:
    """A preemption signals all processes of a job: workers go on, and end with their rank."""
    keep_big_blocks()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
