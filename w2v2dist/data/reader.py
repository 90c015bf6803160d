"""Random access to tar members by byte offset: only the bytes that a step trains on are read."""

import io
import json
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from w2v2dist.data.audio import BadSample, ReadError, Waveform, check_signal, decode
from w2v2dist.data.index import ShardIndex

T = TypeVar("T")
FIRST_WAIT_S = 0.1  # before the first retry; it doubles with each
# After a shard has failed all tries, each read of it is tried once for so long: its other
# utterances may be whole, and those that are not must not cost all the waiting again
GIVEN_UP_S = 60.0
STALL_REST = 10  # a shard that did not answer is left alone for so many times read_timeout_s


class ShardReader:
    """Reads audio and labels of index rows; keeps the files of the last `max_open` shards open. A
    read that fails is tried `retries` times more, on a file opened anew (a cached descriptor of a
    replaced file stays stale), with growing pauses; one that takes over `timeout_s` has failed (0:
    never). Then it raises ReadError."""

    def __init__(
        self, index: ShardIndex, max_open: int = 64, *, retries: int = 5, timeout_s: float = 60.0
    ) -> None:
        self.index, self.max_open = index, max_open
        self.retries, self.timeout_s = retries, timeout_s
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()
        # shard -> when its tries were used up, and whether it did not answer
        self._given_up: dict[int, tuple[float, bool]] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # open files do not travel to workers
        make = partial(type(self), retries=self.retries, timeout_s=self.timeout_s)
        return make, (self.index, self.max_open)

    def audio(self, i: int, start: int = 0, num_samples: int | None = None) -> Waveform:
        """Samples [start, start + num_samples) of utterance `i`, float32 (S,). Raises BadSample."""
        content = self._read(i, int(self.index.offset[i]), int(self.index.size[i]))
        if num_samples is None:
            num_samples = int(self.index.num_samples[i]) - start
        wave = decode(content, start, num_samples)
        check_signal(wave)
        return wave

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
                file, content = within(self.timeout_s, pread, known, path, offset, size)
            except OSError as error:
                reason = error.strerror or str(error)
                timed_out = isinstance(error, TimeoutError)
                if timed_out and n:  # several such shards must not outlast loop.stall_timeout_s
                    break
                continue
            self._files[shard] = file  # the last used one at the end
            if len(self._files) > self.max_open:
                self._files.popitem(last=False)[1].close()
            if stalled:
                del self._given_up[shard]
            return content
        if tries > 1 or timed_out:
            self._given_up[shard] = time.monotonic(), timed_out
        raise ReadError(f"cannot be read: {reason}")


def pread(file: io.FileIO | None, path: Path, offset: int, size: int) -> tuple[io.FileIO, bytes]:
    """`size` bytes from `offset` on, and the open file (opened where `file` is None). Raises
    OSError, also where the file is too short."""
    file = io.FileIO(path) if file is None else file
    content = os.pread(file.fileno(), size, offset)
    if len(content) != size:
        file.close()
        raise OSError(f"the shard ends {size - len(content)} bytes before the end of the sample")
    return file, content


def within(timeout_s: float, function: Callable[..., T], *args: Any) -> T:
    """function(*args); TimeoutError after `timeout_s` seconds (0: no limit), while a thread that
    nothing waits for stays behind in it: a read of a dead network mount cannot be interrupted."""
    if not timeout_s:
        return function(*args)
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # raised again by the caller
            future.set_exception(error)

    # A daemon: an executor's thread would keep the process from ending
    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if future.done():  # just now, or it is the function's own: ETIMEDOUT
            return future.result()
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
