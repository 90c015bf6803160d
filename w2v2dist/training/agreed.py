"""What one process makes for all."""

from collections.abc import Callable
from typing import TypeVar

from w2v2dist.config import ConfigError
from w2v2dist.runtime.distributed import World

T = TypeVar("T")


def agreed(make: Callable[[], T], world: World) -> T:
    """What `make` returns in rank 0, which alone calls it, in all; collective. Its ValueError and
    OSError are a ConfigError in all."""
    found: T | None = None
    problem: str | None = None
    if world.is_main:
        try:
            found = make()
        except (ValueError, OSError) as error:
            problem = str(error)
    found, problem = world.gather((found, problem))[0]
    if problem is not None:
        raise ConfigError(problem)
    return found
