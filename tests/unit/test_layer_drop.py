"""Which layers LayerDrop skips, drawn outside the model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from w2v2dist.config import ConfigError
from w2v2dist.data.config import DataConfig
from w2v2dist.model import Wav2Vec2Config
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.tasks.pretrain import PretrainConfig, PretrainTask
from w2v2dist.tasks.speech import dropped_layers
from w2v2dist.training.loop import fit

MODEL = Wav2Vec2Config(
    conv_channels=8, num_layers=24, embed_dim=32, ffn_dim=32, num_heads=2, final_dim=8,
    num_codebook_entries=4, pos_conv_kernel=4, layer_drop=0.25,
)  # fmt: skip
PER_SLOT = dataclasses.replace(MODEL, layer_drop_per="slot")


def test_layer_drop_is_one_draw_a_step_for_all_slots() -> None:
    steps = [[dropped_layers(MODEL, 1, step, slot) for slot in range(4)] for step in range(1, 201)]
    assert all(draw == draws[0] for draws in steps for draw in draws)
    assert len({tuple(draws[0]) for draws in steps}) > 150  # but another in every step
    rate = sum(sum(draws[0]) for draws in steps) / (200 * 24)
    assert abs(rate - 0.25) < 0.03  # 4.8 standard deviations: one false alarm in half a million


def test_layer_drop_per_slot_differs_between_slots_and_needs_one_process() -> None:
    draws = {tuple(dropped_layers(PER_SLOT, 1, 1, slot)) for slot in range(4)}
    assert len(draws) == 4
    world = World(rank=0, size=2, local_rank=0, device=torch.device("cpu"))
    config = PretrainConfig(run_dir="unused", model=PER_SLOT, data=DataConfig(virtual_world_size=4))
    with pytest.raises(ConfigError, match="layer_drop_per is slot but the job has 2 processes"):
        fit(config, PretrainTask(config), world, PreemptionFlag())


def test_no_layer_is_dropped_in_validation() -> None:
    assert dropped_layers(MODEL, 1, 0, 0) is None
