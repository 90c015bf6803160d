"""Random access to tar members by byte offset: only the bytes that a step trains on are read."""

import contextlib
import json
import math
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from w2v2dist.data.audio import BadSample, ReadError, Waveform, check_signal, decode
from w2v2dist.data.index import ShardIndex

T = TypeVar("T")
FIRST_WAIT_S = 0.1  # before the first retry; it doubles with each
# After a shard has failed all tries, each read of it is tried once for so long: its other
# utterances may be whole, and those that are not must not cost all the waiting again
GIVEN_UP_S = 60.0
READS_AHEAD = 4  # of what is asked for next, while an utterance is decoded
STALL_REST = 10  # a shard that did not answer is left alone for so many times read_timeout_s


class ShardReader:
    """Reads audio and labels of index rows; keeps the files of the last `max_open` shards open. A
    read that fails is tried `retries` times more, on a file opened anew (a cached descriptor of a
    replaced file stays stale), with growing pauses; one that takes over `timeout_s` has failed (0:
    never). Then it raises ReadError. What `expect` announces is read ahead of its use, several
    reads at a time: a store that is slow to answer is not waited for at every utterance."""

    def __init__(
        self, index: ShardIndex, max_open: int = 64, *, retries: int = 5, timeout_s: float = 60.0
    ) -> None:
        self.index, self.max_open = index, max_open
        self.retries, self.timeout_s = retries, timeout_s
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        # shard -> when its tries were used up, and whether it did not answer
        self._given_up: dict[int, tuple[float, bool]] = {}
        self._threads = DaemonThreads(READS_AHEAD + 1)
        self._expected: deque[tuple[int, int, int]] = deque()  # shard, offset, size
        self._begun: dict[tuple[int, int], Future[tuple[OpenFile, bytes]]] = {}  # their first tries

    def __reduce__(self) -> tuple[Any, ...]:  # open files do not travel to workers
        make = partial(type(self), retries=self.retries, timeout_s=self.timeout_s)
        return make, (self.index, self.max_open)

    def expect(self, ids: Iterable[int], *, with_labels: bool = False) -> None:
        """The audio (and labels) of these utterances are asked for next, in this order."""
        index, self._expected, self._begun = self.index, deque(), {}
        for i in ids:
            shard = int(index.shard[i])
            self._expected.append((shard, int(index.offset[i]), int(index.size[i])))
            if with_labels and (size := int(index.label_size[i])):
                self._expected.append((shard, int(index.label_offset[i]), size))
        self._read_ahead()

    def audio(self, i: int, start: int = 0, num_samples: int | None = None) -> Waveform:
        """Samples [start, start + num_samples) of utterance `i`, float32 (S,). Raises BadSample."""
        content = self._read(i, int(self.index.offset[i]), int(self.index.size[i]))
        if num_samples is None:
            num_samples = int(self.index.num_samples[i]) - start
        wave = decode(content, start, num_samples)
        check_signal(wave)
        return wave

    def flac(self, i: int) -> bytes:
        """The file of utterance `i` as it is in the shard. Raises ReadError."""
        return self._read(i, int(self.index.offset[i]), int(self.index.size[i]))

    def labels(self, i: int) -> dict[str, Any]:
        """The utterance's JSON member ({} where it has none). Raises BadSample."""
        size = int(self.index.label_size[i])
        if size == 0:
            return {}
        content = self._read(i, int(self.index.label_offset[i]), size)
        try:
            return dict(json.loads(content))
        except ValueError as error:
            raise BadSample(f"its labels are not valid JSON: {error}") from None

    def _read(self, i: int, offset: int, size: int) -> bytes:
        shard = int(self.index.shard[i])
        path = self.index.shard_path(shard)
        failed_at, stalled = self._given_up.get(shard, (-math.inf, False))
        age_s = time.monotonic() - failed_at
        if stalled and age_s < STALL_REST * self.timeout_s:
            raise ReadError(f"cannot be read: its shard did not answer {age_s:.0f} s ago")
        tries = 1 if stalled or age_s < GIVEN_UP_S else 1 + self.retries
        for n in range(tries):
            if n:
                time.sleep(FIRST_WAIT_S * 2 ** (n - 1))
            known = self._files.pop(shard, None)
            try:
                begun = self._begun.pop((shard, offset), None)
                begun = begun or self._threads.call(pread, known, path, offset, size)
                file, content = wait(begun, self.timeout_s)
            except OSError as error:
                reason = error.strerror or str(error)
                timed_out = isinstance(error, TimeoutError)
                if timed_out:  # leave the thread behind, and what waits behind it
                    self._threads, self._begun = DaemonThreads(READS_AHEAD + 1), {}
                if timed_out and n:  # several such shards must not outlast loop.stall_timeout_s
                    break
                continue
            self._files[shard] = file  # the last used one at the end
            if len(self._files) > self.max_open:
                self._files.popitem(last=False)
            if stalled:
                del self._given_up[shard]
            self._read_ahead()
            return content
        if tries > 1 or timed_out:
            self._given_up[shard] = time.monotonic(), timed_out
        raise ReadError(f"cannot be read: {reason}")

    def _read_ahead(self) -> None:
        """Begin what is expected next; not of shards that have failed, which need more care."""
        while self._expected and len(self._begun) < READS_AHEAD:
            shard, offset, size = self._expected.popleft()
            if shard not in self._given_up:
                known, path = self._files.get(shard), self.index.shard_path(shard)
                begun = self._threads.call(pread, known, path, offset, size)
                self._begun[shard, offset] = begun


class OpenFile:
    """A descriptor for reading, closed with the last reference to it: several threads may read."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it could not be opened
            os.close(self.descriptor)


def pread(file: OpenFile | None, path: Path, offset: int, size: int) -> tuple[OpenFile, bytes]:
    """`size` bytes from `offset` on, and the open file (opened where `file` is None). Raises
    OSError, also where the file is too short."""
    file = OpenFile(path) if file is None else file
    content = os.pread(file.descriptor, size, offset)
    if len(content) != size:
        raise OSError(f"the shard ends {size - len(content)} bytes before the end of the sample")
    return file, content


class DaemonThreads:
    """A few threads that calls run in. Nothing waits for them at the end of the process, as it
    would for an executor's: a read of a dead network mount cannot be interrupted."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._begin()

    def _begin(self) -> None:
        self._started, self._process = 0, os.getpid()
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def call(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """function(*args), as soon as a thread is free."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as error:  # raised again by who waits for it
                future.set_exception(error)

        if self._process != os.getpid():  # forked: the threads stayed behind
            self._begin()
        if self._started < self.number:
            self._started += 1
            threading.Thread(target=_run_all, args=(self._calls,), daemon=True).start()
        self._calls.put(run)
        return future

    def __del__(self) -> None:
        for _ in range(self._started):
            self._calls.put(None)


def _run_all(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    """What a thread does, until nobody can call it."""
    while (run := calls.get()) is not None:
        run()
        del run  # it holds the content until the next one comes


def wait(future: Future[T], timeout_s: float) -> T:
    """What the call returns or raises; TimeoutError after `timeout_s` seconds (0: no limit)."""
    try:
        return future.result(timeout_s or None)
    except TimeoutError:
        if future.done():  # just now, or it is the function's own: ETIMEDOUT
            return future.result()
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
