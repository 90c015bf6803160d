"""The Gumbel temperature as a pure function of the number of updates (section 4.2 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperatureConfig:
    """Gumbel temperature: max(floor, start * decay ** updates) (section 4.2 of the paper)."""

    start: float = 2.0
    floor: float = 0.5
    decay: float = 0.999995

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.start:
            raise ValueError(f"floor is {self.floor} but must be in (0, start = {self.start}]")


def temperature(config: TemperatureConfig, num_updates: int) -> float:
    """Temperature after `num_updates` finished updates (0 during the first one)."""
    return max(config.floor, config.start * config.decay**num_updates)
