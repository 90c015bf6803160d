"""What pre-training and fine-tuning share: one model that every step moves, and audio.

LayerDrop is drawn here, outside the model: the same layers in every slot, so that all processes
save time and none waits for another's layers (a deadlock under ZeRO 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.batch import Rows
from w2v2dist.data.config import DataConfig
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.training.config import TrainingConfig
from w2v2dist.training.schedules import learning_rate
from w2v2dist.training.task import Group, Transcript, Update


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechConfig(TrainingConfig):
    """What pre-training and fine-tuning have."""

    model: Wav2Vec2Config = field(default_factory=Wav2Vec2Config)
    data: DataConfig = field(default_factory=DataConfig)


class SpeechTask:
    """The part of a `Task` that does not depend on what is learned."""

    records: Mapping[str, Any] = {}
    notes: Sequence[str] = ()

    def __init__(self, config: SpeechConfig, model: nn.Module) -> None:
        self._training = config
        self.groups = {"": Group(model, config.optimizer)}

    def check(self, world_size: int) -> None:
        """Raise ConfigError where each slot draws its LayerDrop and there are several processes."""
        if self._training.model.layer_drop_per == "slot" and world_size > 1:
            raise ConfigError(
                f"model.layer_drop_per is slot but the job has {world_size} processes, which would "
                "wait for each other's layers: use one process, or model.layer_drop_per=step"
            )

    def update(self, step: int) -> Update:
        """All parameters that are not frozen, at the scheduled learning rate."""
        schedule, max_steps = self._training.schedule, self._training.loop.max_steps
        return Update("", learning_rate(schedule, step, max_steps))

    def transcripts(self, count: int) -> list[Transcript]:
        """None: nothing is read."""
        return []

    def progress(self, amount: float) -> dict[str, float]:
        """Samples as hours of audio."""
        return {"audio_hours": amount / SAMPLE_RATE / 3600}


def dropped_layers(config: Wav2Vec2Config, seed: int, step: int, slot: int) -> list[bool] | None:
    """The layers that are skipped at a step; None (the model drops none) in validation, step 0."""
    if step == 0:
        return None
    key = (step, slot) if config.layer_drop_per == "slot" else (step,)
    draws = keyed_rng(seed, "layer_drop", *key).random(config.num_layers)
    return (draws < config.layer_drop).tolist()  # type: ignore[no-any-return]


def empty_core(rows: Rows | None) -> dict[str, Any]:
    """The fields that the loop knows of a slot without usable utterances."""
    if rows is None:
        return {"step": 0, "slot": 0}
    return {"step": rows.micro.step, "slot": rows.micro.slot, "bad": rows.bad}
