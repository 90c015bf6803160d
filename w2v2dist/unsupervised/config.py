"""The settings of wav2vec-U's training; the defaults are version 1's, as the reference
implementation has them."""

from dataclasses import dataclass, field
from typing import Literal

from w2v2dist.config import at_least
from w2v2dist.training.alarms import AlarmConfig
from w2v2dist.training.config import TrainingConfig
from w2v2dist.training.engine import OptimizerConfig
from w2v2dist.training.plain_engine import PlainEngineConfig
from w2v2dist.training.schedules import ScheduleConfig
from w2v2dist.unsupervised.gan import GanConfig
from w2v2dist.unsupervised.gan_losses import GanLossConfig
from w2v2dist.unsupervised.gan_source import GanDataConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class GanOptimizerConfig(OptimizerConfig):
    """Adam of both networks; `weight_decay` is the generator's."""

    betas: tuple[float, ...] = (0.5, 0.98)
    weight_decay: float = 0.0
    discriminator_weight_decay: float = 1e-4

    @property
    def discriminator(self) -> OptimizerConfig:
        """The discriminator's Adam."""
        decay = self.discriminator_weight_decay
        return OptimizerConfig(betas=self.betas, eps=self.eps, weight_decay=decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class GanScheduleConfig(ScheduleConfig):
    """The generator's learning rate is `peak_lr`, the discriminator's in the same shape."""

    name: Literal["linear", "tri_stage", "cosine", "constant"] = "constant"
    peak_lr: float = 4e-4
    discriminator_peak_lr: float = 5e-4

    def __post_init__(self) -> None:
        ScheduleConfig.__post_init__(self)
        if self.discriminator_peak_lr <= 0:
            raise ValueError(
                f"discriminator_peak_lr is {self.discriminator_peak_lr} but must be positive"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GanAlarmConfig(AlarmConfig):
    """What counts as not learning, after `grace_steps`."""

    grace_steps: int = 10_000
    min_code_usage: float = 0.5  # code perplexity / number of symbols; less is a collapse
    # Of both cross entropies, nats a row; where each is less, the discriminator has won
    min_discriminator_loss: float = 0.1
    # Of what is read: 1 is the text itself, 0 its phones in a random order
    min_text_likeness: float = 0.5

    def __post_init__(self) -> None:
        AlarmConfig.__post_init__(self)
        at_least(self, 0, "min_code_usage min_discriminator_loss")
        if not 0 <= self.min_text_likeness <= 1:
            raise ValueError(
                f"min_text_likeness is {self.min_text_likeness} but must be in [0, 1]: 1 is the "
                "text itself, and 0 lets everything pass"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsupervisedConfig(TrainingConfig):
    """Everything about a training of wav2vec-U."""

    task: Literal["unsupervised"] = "unsupervised"
    model: GanConfig = field(default_factory=GanConfig)
    losses: GanLossConfig = field(default_factory=GanLossConfig)
    data: GanDataConfig = field(default_factory=GanDataConfig)
    engine: PlainEngineConfig = field(default_factory=PlainEngineConfig)
    optimizer: GanOptimizerConfig = field(default_factory=GanOptimizerConfig)
    schedule: GanScheduleConfig = field(default_factory=GanScheduleConfig)
    alarms: GanAlarmConfig = field(default_factory=GanAlarmConfig, metadata={"may_change": True})
