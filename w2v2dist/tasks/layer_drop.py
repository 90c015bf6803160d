"""LayerDrop drawn outside the model: the same layers in every slot, so that all processes save time
and none waits for another's layers (a deadlock under ZeRO 3)."""

from __future__ import annotations

from w2v2dist.config import ConfigError
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.keyed import keyed_rng


def check_layer_drop(config: Wav2Vec2Config, world_size: int) -> None:
    """Raise ConfigError where each slot draws for itself and there are several processes."""
    if config.layer_drop_per == "slot" and world_size > 1:
        raise ConfigError(
            f"model.layer_drop_per is slot but the job has {world_size} processes, which would "
            "wait for each other's layers: use one process, or model.layer_drop_per=step"
        )


def dropped_layers(config: Wav2Vec2Config, seed: int, step: int, slot: int) -> list[bool] | None:
    """The layers that are skipped at a step; None (the model drops none) in validation, step 0."""
    if step == 0:
        return None
    key = (step, slot) if config.layer_drop_per == "slot" else (step,)
    draws = keyed_rng(seed, "layer_drop", *key).random(config.num_layers)
    return (draws < config.layer_drop).tolist()  # type: ignore[no-any-return]
