"""`w2v2dist batches`: what a step trains on, without reading audio."""

import argparse
import json
from pathlib import Path

from w2v2dist.config import ConfigError
from w2v2dist.tasks.train import config_arguments, open_source, read_config
from w2v2dist.training.rollbacks import read_rollbacks, seed_at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist batches` takes."""
    config_arguments(parser)
    parser.add_argument("--step", type=int, required=True, help="update, 1 is the first")
    parser.add_argument("--slot", type=int, help="one slot only (default: all)")


def run(args: argparse.Namespace) -> None:
    """Print the samples of a step (keys, crops, mask fractions) without reading audio; of a
    language model the lines of its text.

    example:
      w2v2dist batches configs/tiny_pretrain.yaml data.train=demo/shards/unlabelled --step 7
    """
    config = read_config(args.config, [*args.overrides, "data.valid=null"])
    num_slots = config.data.virtual_world_size
    slots = range(num_slots) if args.slot is None else [args.slot]
    if args.step < 1 or not all(0 <= slot < num_slots for slot in slots):
        raise ConfigError(
            f"step is {args.step} and slot {args.slot} but steps count from 1 and slots from 0 to "
            f"{num_slots - 1} (data.virtual_world_size - 1)"
        )
    seed = seed_at(read_rollbacks(Path(config.run_dir)), config.seed, args.step)
    source = open_source(config)
    for slot in slots:
        print(json.dumps(source.audit(args.step, slot, seed)))
