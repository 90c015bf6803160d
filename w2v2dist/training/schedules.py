"""What is due at a step, and its learning rate. A step is one optimizer update."""

import math
from dataclasses import dataclass
from typing import Literal

from w2v2dist.config import at_least, may_change


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long to train, and how often (in steps) to log, validate and save."""

    max_steps: int = 400_000
    log_every: int = may_change(100)
    validate_every: int = may_change(5_000)
    save_every: int = may_change(5_000)
    keep_last: int = may_change(3)  # checkpoints, besides latest and best
    # Checkpoints of a multiple of so many steps are kept for ever; 0: none
    keep_every: int = may_change(0)
    # Training waits for a copy in host memory only, not for the disk
    async_save: bool = may_change(True)
    log_samples: bool = may_change(False)  # logs/samples-RANK.jsonl: what every step used
    num_threads: int = may_change(0)  # of a process on the CPU; 0 leaves the choice to torch
    timeout_s: int = may_change(1800)  # of a collective operation
    # A process without progress for so long ends, and logs/stacks-* say where it was; 0: never. At
    # most 9 / 10 of timeout_s, which would end the waiting ones without a word
    stall_timeout_s: int = may_change(1800)

    def __post_init__(self) -> None:
        at_least(self, 1, "max_steps log_every validate_every save_every keep_last timeout_s")
        at_least(self, 0, "stall_timeout_s keep_every")

    @property
    def stall_s(self) -> int:
        """Seconds without progress after which a process ends; 0: never."""
        return min(self.stall_timeout_s, max(1, self.timeout_s * 9 // 10))

    def due(self, step: int, every: int) -> bool:
        """Whether what is done every so many steps, and at the last, is done after this one."""
        return step % every == 0 or step == self.max_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """`linear` (warm-up, then decay to 0), `cosine` (the same along half a cosine), `tri_stage`
    (warm-up, hold, exponential decay) or `constant`."""

    name: Literal["linear", "tri_stage", "cosine", "constant"] = "linear"
    peak_lr: float = 5e-4
    warmup_steps: int = 32_000  # linear, cosine
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
            scales = f"initial_scale is {self.initial_scale}, final_scale {self.final_scale}"
            raise ValueError(f"{scales} but both must be positive")
        if self.warmup_fraction + self.hold_fraction > 1:
            raise ValueError(
                f"warmup_fraction is {self.warmup_fraction}, hold_fraction {self.hold_fraction} "
                "but their sum must be at most 1: what is left is the decay"
            )


def warmup_steps(config: ScheduleConfig, max_steps: int) -> int:
    """Updates until the learning rate is at its peak."""
    if config.name == "constant":
        return 0
    fraction = int(config.warmup_fraction * max_steps)
    return fraction if config.name == "tri_stage" else config.warmup_steps


def learning_rate(config: ScheduleConfig, step: int, max_steps: int) -> float:
    """Learning rate of update `step` (1 is the first) of `max_steps`."""
    if config.name == "constant":
        return config.peak_lr
    if config.name != "tri_stage":
        if step <= config.warmup_steps:
            return config.peak_lr * step / max(1, config.warmup_steps)
        left = (max_steps - step) / max(1, max_steps - config.warmup_steps)
        if config.name == "cosine":
            return config.peak_lr * (1 - math.cos(math.pi * max(0.0, left))) / 2
        return config.peak_lr * max(0.0, left)
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
