"""A measurement of `launch/submit.py --autotune`, as one of its processes: some steps of a
training's engine on random audio. `python -m w2v2dist.jobs.measure CONFIG [key=value …] --output
FILE`, one process per rank."""

import argparse
import errno
import json
import os
import re
import resource
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from w2v2dist.data.alphabet import alphabet
from w2v2dist.data.batch import Rows
from w2v2dist.data.batching import MicroBatch
from w2v2dist.data.config import DataConfig
from w2v2dist.runtime.distributed import VirtualRanks, World, is_out_of_memory
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.tasks.finetune import FinetuneCollate, FinetuneTask
from w2v2dist.tasks.pretrain import PretrainCollate, PretrainTask
from w2v2dist.tasks.train import read_config
from w2v2dist.training.engine import Engine

EXIT_OUT_OF_MEMORY = errno.ENOMEM
WARM_UP = 2  # steps: memory is allocated, kernels are chosen or compiled
SPOKEN = "THE WORDS OF NOBODY "  # labels of random audio: 14 letters a second, as in English


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Seconds of each measured step, of its slowest process; the most bytes that a process held;
    what the engine says."""

    step_seconds: list[float]
    memory_bytes: float
    notes: list[str]


def shape(data: DataConfig) -> tuple[int, int]:
    """Rows of a full micro-batch and the samples of each: equal, as long as data.max_crop lets them
    be, so that every split of a batch has the same audio."""
    num_rows = -(-data.max_samples_per_slot // data.max_crop)
    num_samples = data.max_samples_per_slot // num_rows
    multiple = min(data.crop_multiple, num_samples)
    return num_rows, num_samples - num_samples % multiple


def measured_config(config: Any) -> Any:
    """The configuration as it is measured: every layer, and all of it trained. So the memory is
    that of the fullest step, and LayerDrop's luck does not decide."""
    config = replace(config, model=replace(config.model, layer_drop=0.0))
    if config.task == "finetune":  # on the paper's letters
        config = replace(config, freeze_steps=0, pretrained=None, best_metric="auto")
    return config


def random_batch(config: Any, slot: int) -> Any:
    """A full micro-batch of noise, with the masks, distractors or labels of its task."""
    num_rows, num_samples = shape(config.data)
    lengths = np.full(num_rows, num_samples)
    if config.task == "finetune":  # padded, as utterances are
        lengths[1:] -= np.arange(1, num_rows) * num_samples // (20 * num_rows)
    nothing = np.zeros(num_rows, np.int64)
    micro = MicroBatch(1, slot, 0, np.arange(num_rows), nothing, lengths, nothing + 100)
    rng, rows = keyed_rng(config.seed, "measure", slot), Rows(micro)
    for row, size in enumerate(lengths.tolist()):
        rows.waveforms.append(rng.standard_normal(size, dtype="float32"))
        text = SPOKEN * (1 + size // 16_000)
        rows.labels.append({"text": text[: max(3, 14 * size // 16_000)]})
        rows.keys.append(f"noise-{row}")
        rows.position.append(row)
    if config.task == "finetune":
        return FinetuneCollate(config.model, alphabet("letters"), config.seed, True)(rows)
    return PretrainCollate(config.model, config.seed, config.data.min_samples, True)(rows)


def measure(config: Any, world: World, num_steps: int) -> Measured:
    """Steps of at most two rounds: of those in front of the last, which exchanges gradients and
    updates, one is run and counts for all. Collective."""
    num_rounds = VirtualRanks(config.data.virtual_world_size).num_rounds(world.size)
    rounds = min(num_rounds, 2)
    task: PretrainTask | FinetuneTask
    if config.task == "finetune":
        task = FinetuneTask(config, alphabet("letters"), skip_pretrained=True)
    else:
        task = PretrainTask(config)
    group, batches = task.groups[""], [random_batch(config, slot) for slot in range(rounds)]
    engine = Engine(group.module, config.engine, group.optimizer, rounds, world)
    engine.train()
    seconds = []
    for step in range(1, WARM_UP + num_steps + 1):
        world.barrier()
        times = []
        for i, batch in enumerate(batches):
            begin = time.perf_counter()
            loss = task.losses(engine, batch.to(world.device), step, config.seed)["loss"]
            engine.backward(loss / (rounds * world.size * max(batch.num_targets, 1.0)))
            engine.step(1e-6 if i == rounds - 1 else None)
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        seconds.append((num_rounds - 1) * times[0] + times[-1] if rounds > 1 else times[0])
    (memory,) = world.max([peak_memory(world.device)])
    slowest = world.max(seconds[WARM_UP:])
    return Measured(step_seconds=slowest, memory_bytes=memory, notes=[*engine.notes])


def peak_memory(device: torch.device) -> float:
    """The most bytes that tensors had on the GPU, or this process in memory."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024.0 * int(found[1]) if found else 0.0


def available_memory(on_gpu: bool, num_processes: int) -> float:
    """Bytes that a process may have: its GPU's, or its share of what is free on this machine."""
    if on_gpu:
        return float(torch.cuda.get_device_properties(0).total_memory)
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    known = {line.split(":")[0]: 1024.0 * int(line.split()[1]) for line in lines}
    free = known["MemAvailable"]
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
        free = min(free, float(text) - float(used.read_text(encoding="utf-8")))
    return free / num_processes


def main(argv: list[str] | None = None) -> int:
    """Rank 0 writes FILE. Exit status EXIT_OUT_OF_MEMORY, and an empty FILE.oom, where a process
    finds too little memory."""
    parser = argparse.ArgumentParser(prog="w2v2dist.jobs.measure", description=__doc__)
    add = parser.add_argument
    add("config")
    add("overrides", nargs="*")
    add("--steps", type=int, default=3)
    add("--memory", type=int, default=0, help="bytes that a process on the CPU may have")
    add("--output", type=Path, required=True)
    args = parser.parse_intermixed_args(argv)
    config = measured_config(read_config(args.config, args.overrides))
    world = World.from_environment(config.loop.timeout_s)
    if world.device.type == "cpu":
        if args.memory:  # an allocation fails before the kernel ends another process
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (args.memory, hard))
        if config.loop.num_threads:
            torch.set_num_threads(config.loop.num_threads)
    try:
        measured = measure(config, world, args.steps)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"out of memory: {error}", flush=True)
        args.output.with_suffix(".oom").touch()
        # The others wait for this one, and leaving the group would wait for them
        os._exit(EXIT_OUT_OF_MEMORY)
    if world.is_main:
        temporary = args.output.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(measured)), encoding="utf-8")
        temporary.replace(args.output)
    world.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
