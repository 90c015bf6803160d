"""Work spread over forked processes, which share what the parent has built."""

import collections
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Out = TypeVar("Out")

_function: Any = None  # of this worker


class ForkedPool(Generic[Item, Out]):
    """`function` over items, in order, in `num_workers` processes (1: in this one; 0: as many as it
    has cores). They are forked at the first use, so that `function` may hold what cannot be
    pickled (a language model); it must not call torch, whose threads a fork does not take along."""

    def __init__(self, function: Callable[[Item], Out], num_workers: int = 0) -> None:
        self.num_workers = num_workers or len(os.sched_getaffinity(0))
        self._function = function
        self._executor: ProcessPoolExecutor | None = None

    def map(self, items: Iterable[Item]) -> Iterator[Out]:
        """The results in the order of the items; few items are taken ahead."""
        if self.num_workers == 1:
            yield from map(self._function, items)
            return
        if self._executor is None:
            context = multiprocessing.get_context("fork")
            arguments = (self.num_workers, context, _inherit, (self._function,))
            self._executor = ProcessPoolExecutor(*arguments)
        pending: collections.deque[Future[Out]] = collections.deque()
        try:
            for item in items:
                pending.append(self._executor.submit(_call, item))
                if len(pending) > 4 * self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise ValueError(
                f"one of {self.num_workers} processes died, most likely for want of memory: "
                "decode with fewer --workers"
            ) from None
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """End the processes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


def _inherit(function: Any) -> None:
    global _function
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = function


def _call(item: Any) -> Any:
    return _function(item)


def _end_with_parent() -> None:
    """A killed parent tells its workers nothing, and they would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
