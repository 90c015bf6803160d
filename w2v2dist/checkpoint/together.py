"""What all processes do together to write or read a checkpoint: all succeed, or all fail alike."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from w2v2dist.runtime.distributed import limit_groups
from w2v2dist.runtime.logging import DISK_FULL

T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; names the folder and the remedy."""


def together(work: Callable[[], T]) -> list[T]:
    """The results of `work` of all ranks. Raises CheckpointError in all where it fails in one."""
    result, problem = None, ""
    try:
        result = work()
    except (Exception, CheckpointException) as error:  # the others wait below, whatever it is
        problem = reason(error)
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, (result, problem), group=host_group())
    for _, problem in answers:
        if problem:
            raise CheckpointError(problem)
    return [answer for answer, _ in answers]


def reason(error: BaseException) -> str:
    """The first line a person needs from a nested checkpoint failure."""
    failures: list[BaseException] = [error]
    if isinstance(error, CheckpointException):
        failures = [failure[0] for failure in error.failures.values()]
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in DISK_FULL:
                return DISK_FULL[cause.errno]
            cause = cause.__cause__ or cause.__context__
    text = str(failures[0]) or type(failures[0]).__name__
    return text.splitlines()[0]


_host_groups: dict[Any, Any] = {}  # by the world's own group


def host_group() -> Any:
    """A gloo group of all processes: checkpoints are coordinated over the host network."""
    world = dist.group.WORLD
    if world not in _host_groups:
        _host_groups[world] = dist.new_group(backend="gloo")
        limit_groups()
    return _host_groups[world]
