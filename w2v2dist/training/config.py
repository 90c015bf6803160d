"""The settings of a training: the root above the parts that own theirs."""

from dataclasses import dataclass, field

from w2v2dist.data.config import DataConfig
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.training.alarms import AlarmConfig
from w2v2dist.training.engine import EngineConfig, OptimizerConfig
from w2v2dist.training.schedules import LoopConfig, ScheduleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """What every training has; the tasks add their own."""

    run_dir: str = field(metadata={"may_change": True, "path": True})
    seed: int = 1
    model: Wav2Vec2Config = field(default_factory=Wav2Vec2Config)
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig, metadata={"may_change": True})
