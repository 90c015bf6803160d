"""`w2v2dist batches`: what a step trains on, without reading audio."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from w2v2dist.config import ConfigError
from w2v2dist.data.loader import Rows
from w2v2dist.data.order import DataOrder
from w2v2dist.tasks.finetune import FinetuneCollate
from w2v2dist.tasks.pretrain import PretrainCollate
from w2v2dist.tasks.train import config_arguments, read_config
from w2v2dist.training.alarms import read_rollbacks, seed_at
from w2v2dist.training.loop import open_index
from w2v2dist.training.run_folder import sample_record


def print_batches(config_path: str, overrides: list[str], step: int, slot: int | None) -> None:
    """Print one JSON line a slot: the keys, crops and mask fractions of a step, from the index
    alone."""
    config = read_config(config_path, overrides)
    index = open_index(config.data.train, "data.train")
    crop = config.task == "pretrain"
    seed = seed_at(read_rollbacks(Path(config.run_dir)), config.seed, step)
    order = DataOrder(index, config.data, seed, crop)
    slots = range(config.data.virtual_world_size) if slot is None else [slot]
    if step < 1 or not all(0 <= s < config.data.virtual_world_size for s in slots):
        raise ConfigError(
            f"step is {step} and slot {slot} but steps count from 1 and slots from 0 to "
            f"{config.data.virtual_world_size - 1} (data.virtual_world_size - 1)"
        )
    collate = (
        PretrainCollate(config.model, seed, config.data.min_samples, True)
        if crop
        else FinetuneCollate(config.model, config.data.tokens, seed, True)
    )
    for s in slots:
        micro = order.micro_batch(step, s)
        # Masks depend on lengths alone: silence stands in for the audio
        rows = Rows(
            micro, position=list(range(len(micro.ids))), keys=[index.key(int(i)) for i in micro.ids]
        )
        rows.waveforms = [np.zeros(int(n), np.float32) for n in micro.num_samples]
        print(json.dumps(sample_record(collate.audio_batch(rows))))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist batches` takes."""
    config_arguments(parser)
    parser.add_argument("--step", type=int, required=True, help="update, 1 is the first")
    parser.add_argument("--slot", type=int, help="one slot only (default: all)")


def run(args: argparse.Namespace) -> None:
    """Print the samples of a step (keys, crops, mask fractions) without reading audio.

    example:
      w2v2dist batches configs/tiny_pretrain.yaml data.train=demo/shards/train --step 7
    """
    print_batches(args.config, args.overrides, args.step, args.slot)
