"""Learning rate and Gumbel temperature as pure functions of the step (one step = one optimizer
update)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Learning-rate schedule: `linear` (warm-up, then decay to 0) or `tri_stage` (warm-up, hold,
    exponential decay)."""

    name: Literal["linear", "tri_stage"] = "linear"
    peak_lr: float = 5e-4
    warmup_steps: int = 32_000  # linear
    warmup_fraction: float = 0.1  # tri_stage: fractions of max_steps
    hold_fraction: float = 0.4
    initial_scale: float = 0.01
    final_scale: float = 0.05

    def __post_init__(self) -> None:
        if self.peak_lr <= 0:
            raise ValueError(f"peak_lr is {self.peak_lr} but must be positive")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps} but must not be negative")
        if min(self.initial_scale, self.final_scale) <= 0:
            raise ValueError("initial_scale and final_scale must be positive")
        if self.warmup_fraction + self.hold_fraction > 1:
            raise ValueError("warmup_fraction + hold_fraction must be at most 1")


def warmup_steps(config: ScheduleConfig, max_steps: int) -> int:
    """Updates until the learning rate is at its peak."""
    return (
        config.warmup_steps if config.name == "linear" else int(config.warmup_fraction * max_steps)
    )


def learning_rate(config: ScheduleConfig, step: int, max_steps: int) -> float:
    """Learning rate of update `step` (1 is the first) of `max_steps`."""
    if config.name == "linear":
        if step <= config.warmup_steps:
            return config.peak_lr * step / max(1, config.warmup_steps)
        return config.peak_lr * max(
            0.0, (max_steps - step) / max(1, max_steps - config.warmup_steps)
        )
    warmup = warmup_steps(config, max_steps)
    hold = int(config.hold_fraction * max_steps)
    decay = max(1, max_steps - warmup - hold)
    if step < warmup:
        scale = config.initial_scale + (1 - config.initial_scale) * step / warmup
        return config.peak_lr * scale
    if step < warmup + hold:
        return config.peak_lr
    progress = min(1.0, (step - warmup - hold) / decay)
    return config.peak_lr * math.exp(math.log(config.final_scale) * progress)


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
