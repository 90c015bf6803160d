"""How long training waits for a checkpoint, when it is durable, how long it loads, and memory.

    python benchmarks/checkpoint.py --model large --load-at 1 2 --folder /tmp/checkpoints

The real engine with the model's weights and optimizer state, on the GPUs where there are some;
nothing is trained. Each world size runs in processes of its own, so that peak memory is its own.
Prints rows of Markdown tables.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import spawn

from w2v2dist import checkpoint
from w2v2dist.model import Wav2Vec2ForPretraining
from w2v2dist.runtime.distributed import World, free_port
from w2v2dist.tasks.train import read_config
from w2v2dist.training import engine_state
from w2v2dist.training.engine import Engine, EngineConfig

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = {"base": "base_ls960", "large": "large_lv60k"}


def _engine(rank: int, world_size: int, port: int, arguments: argparse.Namespace) -> Engine:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    config: Any = read_config(str(CONFIGS / f"{MODELS[arguments.model]}.yaml"), [])
    engine = EngineConfig(zero_stage=arguments.zero_stage, precision=arguments.precision)
    model = Wav2Vec2ForPretraining(config.model)
    return Engine(model, engine, config.optimizer, 1, World.from_environment())


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _save(rank: int, world_size: int, port: int, arguments: argparse.Namespace) -> None:
    engine = _engine(rank, world_size, port, arguments)
    root = Path(arguments.folder)
    writer = checkpoint.Writer(root, engine.world)
    state = engine_state.ranges({"": engine}, for_save=True)  # makes Adam's moments, as an update
    keep = checkpoint.Retention(("latest",), 1)
    if rank == 0:
        print("| save | training waits s | durable after s | peak GB a process |\n|-|-|-|-|")
    kinds = ["synchronous", "asynchronous, first", "asynchronous", "synchronous", "asynchronous"]
    for step, name in enumerate(kinds):
        copy = name != "synchronous"
        engine.world.barrier()
        os.sync()
        started = time.perf_counter()
        meta = {"step": step, **engine_state.settings({"": engine})}
        written = writer.begin(meta, state, keep, copy=copy)
        pause = time.perf_counter() - started
        durable = written.result() - started
        row = engine.world.max([pause if copy else durable, durable, _peak_gb()])
        if rank == 0:
            print(f"| {name} | {row[0]:.2f} | {row[1]:.2f} | {row[2]:.2f} |", flush=True)
    writer.close()
    engine.world.close()


def _load(rank: int, world_size: int, port: int, arguments: argparse.Namespace) -> None:
    engine = _engine(rank, world_size, port, arguments)
    state = engine_state.ranges({"": engine}, for_save=False)
    (folder,) = checkpoint.candidates(Path(arguments.folder))
    before = _peak_gb()
    started = time.perf_counter()
    checkpoint.folders.verify(folder, rank, world_size)
    verified = time.perf_counter() - started
    started = time.perf_counter()
    engine_state.restore({"": engine}, checkpoint.load(folder, engine.world, state))
    row = engine.world.max([time.perf_counter() - started, verified, before, _peak_gb()])
    if rank == 0:
        print(f"| {world_size} | " + " | ".join(f"{value:.2f}" for value in row) + " |", flush=True)
    engine.world.close()


def main() -> None:
    """Save at one world size, load at others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="base")
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--world-size", type=int, default=1, help="that saves")
    parser.add_argument("--load-at", type=int, nargs="+", default=[1], help="world sizes")
    parser.add_argument("--folder", required=True, help="a new folder, removed at the end")
    arguments = parser.parse_args()
    Path(arguments.folder).mkdir(parents=True)
    try:
        torch.set_num_threads(1)
        spawn(_save, (arguments.world_size, free_port(), arguments), nprocs=arguments.world_size)
        (folder,) = checkpoint.candidates(Path(arguments.folder))
        print(f"\n{sum(path.stat().st_size for path in folder.iterdir()):,} bytes\n")
        print("| load at | load s | of it checksums s | GB before | peak GB a process |")
        print("|-|-|-|-|-|")
        for world_size in arguments.load_at:
            spawn(_load, (world_size, free_port(), arguments), nprocs=world_size)
    finally:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
