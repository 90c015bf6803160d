"""The settings of a training: the root above the parts that own theirs."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from w2v2dist.training.alarms import AlarmConfig
from w2v2dist.training.engine import EngineConfig, OptimizerConfig
from w2v2dist.training.schedules import LoopConfig, ScheduleConfig


class Slots(Protocol):
    """What a training asks of the settings of its data."""

    @property
    def virtual_world_size(self) -> int:
        """Micro-batches (slots) of one step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """What every training has; the tasks say which model and data, and add their own."""

    run_dir: str = field(metadata={"may_change": True, "path": True})
    seed: int = 1
    model: Any
    data: Slots
    loop: LoopConfig = field(default_factory=LoopConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig, metadata={"may_change": True})
