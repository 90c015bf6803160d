"""The order of data at the size of Libri-Light: what an index of 12 million utterances costs.

    python -m benchmarks.order --folder /scratch/order            # makes the index there, once
    python -m benchmarks.order --folder /scratch/order --parts jump traffic
    python -m benchmarks.order --folder /scratch/order --processes 16   # real ranks, tiny model

The index has no shards: no audio is read. Lengths, sizes and numbers of shards and speakers are
those of 53,000 hours cut by shards/build.py; the configuration is LARGE's for LV-60k. Prints rows
of Markdown tables. Needs Linux: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import itertools
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from shards.build import BYTES_PER_SECOND
from shards.build import main as build_main
from w2v2dist.cli import main as cli_main
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.config import DataConfig
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.index_writer import ShardEntry, write_index
from w2v2dist.data.loader import iterate
from w2v2dist.data.order import DataOrder
from w2v2dist.jobs.local import run_local
from w2v2dist.jobs.plan import FLAC_BYTES_PER_HOUR
from w2v2dist.runtime.distributed import VirtualRanks
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.tasks.train import read_config

ROOT = Path(__file__).parents[1]
NUM_SPEAKERS = 7_400
SHARD_BYTES = 512e6
STEP_SECONDS = 5.2 * 86_400 / 600_000  # the paper's LARGE: 600,000 updates in 5.2 days
GPUS_PER_NODE, NUM_NODES = 8, 16
STEPS = (1_000, 100_000, 400_000, 1_000_000)
MIB = 2**20


def synthetic_shards(num_utterances: int) -> Iterator[ShardEntry]:
    """Shards of pieces of 2 to 35 s, 15.9 s on average: 53,000 h are 12 million."""
    rng = np.random.default_rng(0)
    per_shard = round(SHARD_BYTES / (15.9 * BYTES_PER_SECOND + 2_048))
    for k, first in enumerate(range(0, num_utterances, per_shard)):
        n = min(per_shard, num_utterances - first)
        seconds = 2 + 33 * rng.beta(1.7, 2.33, n)
        size = (seconds * BYTES_PER_SECOND * rng.normal(1, 0.08, n).clip(0.5)).astype(int)
        member = 1_536 + -(-size // 512) * 512  # two headers, padding, one block of labels
        begin = np.cumsum(member) - member
        entry = ShardEntry(path=f"lv60k-{k:06d}.tar", bytes=int(member.sum()), sha256="0" * 64)
        entry.num_samples = (seconds * SAMPLE_RATE).astype(int).tolist()
        entry.size, entry.offset = size.tolist(), (begin + 512).tolist()
        entry.label_offset, entry.label_size = (begin + member - 512).tolist(), [230] * n
        speakers = rng.integers(NUM_SPEAKERS, size=n).tolist()
        entry.speakers = [str(s) for s in speakers]
        entry.keys = [
            f"{s}_the_name_of_a_book_{first // 55:06d}_librivox_64kb_mp3_a_chapter_64kb+{i:04d}"
            for i, s in enumerate(speakers)
        ]
        yield entry


def make(args: argparse.Namespace) -> None:
    """Write the index, one shard at a time."""
    args.folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    write_index(args.folder, "lv60k", synthetic_shards(args.utterances), {})
    index = ShardIndex.load(args.folder)
    hours = int(index.num_samples.sum(dtype=np.int64)) / SAMPLE_RATE / 3600
    size = sum(p.stat().st_size for p in args.folder.glob("index.*")) / MIB
    print(
        f"index: {len(index):,} utterances, {hours:,.0f} h, {len(index.shard_paths):,} shards, "
        f"{len(index.speakers):,} speakers, {size:,.0f} MiB of files; written in "
        f"{time.perf_counter() - start:.0f} s with a peak of {peak_mib():,.0f} MiB"
    )


def peak_mib() -> float:
    """Peak anonymous and file memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def open_both(args: argparse.Namespace) -> tuple[ShardIndex, DataOrder, float, float]:
    """The index and the order of it, and the seconds that each took."""
    start = time.perf_counter()
    index = ShardIndex.load_many(args.folder)
    middle = time.perf_counter()
    order = DataOrder(index, data_config(), 1, crop=True)
    return index, order, middle - start, time.perf_counter() - middle


def data_config() -> DataConfig:
    return read_config(ROOT / "configs/large_lv60k.yaml", []).data


def drop_page_cache(folder: Path) -> None:
    """Forget the cached pages of the index, so that the next reading is from the disk."""
    for path in folder.glob("index.*"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    cached = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", *folder.glob("index.*")],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert sum(map(int, cached)) < MIB, f"{sum(map(int, cached))} bytes stayed in the cache"


def opening(args: argparse.Namespace) -> None:
    """Seconds to open, and of the first micro-batch."""
    print("| page cache | index s | order s | first micro-batch s |\n|-|-|-|-|")
    for cache in ("cold", "warm"):
        rows = []
        for _ in range(args.repeat):
            if cache == "cold":
                gc.collect()
                drop_page_cache(args.folder)
            index, order, *seconds = open_both(args)
            start = time.perf_counter()
            order.micro_batch(1, 5)
            rows.append([*seconds, time.perf_counter() - start])
            del index, order  # pages that are mapped would stay in the cache
        print("|", cache, *(f"| {statistics.median(s):.3f}" for s in zip(*rows, strict=True)), "|")


def jump(args: argparse.Namespace) -> None:
    """To a step from a fresh order, then micro-batch by micro-batch, for one process's slots.

    CPU time, which other programs do not lengthen much, and the jump's wall time.
    """
    print(
        "| processes | slots of one | step | epoch | jump, wall s | jump, CPU s "
        "| CPU ms per micro-batch after it | slowest, CPU ms |\n|-|-|-|-|-|-|-|-|"
    )
    virtual = VirtualRanks(data_config().virtual_world_size)
    for world_size in (GPUS_PER_NODE * NUM_NODES, GPUS_PER_NODE):
        slots = virtual.slots(3, world_size)
        for step in STEPS:
            _, order, *_ = open_both(args)
            start, cpu = time.perf_counter(), time.process_time()
            epoch = {order.micro_batch(step, s).epoch for s in slots if s is not None}
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
            seconds = []
            steps = range(step + 1, step + args.steps // len(slots) + 1)
            for item in itertools.product(steps, slots):
                start = time.process_time()
                order.micro_batch(*item)  # type: ignore[arg-type]
                seconds.append(1000 * (time.process_time() - start))
            print(
                f"| {world_size} | {len(slots)} | {step:,} | {max(epoch)} | {wall:.2f} | {cpu:.2f} "
                f"| {statistics.fmean(seconds):.2f} | {max(seconds):.0f} |",
                flush=True,
            )


class PlannedReads:
    """What a data worker asks of the index for its micro-batches, all but the audio."""

    def __init__(self, slots: list[int | None]) -> None:
        self.slots, self.fresh = slots, True
        self.order: DataOrder | None = None

    def __getitem__(self, part: tuple[range, int]) -> int:
        """One worker's share of some steps: every so many-th micro-batch, as `iterate` deals."""
        if self.fresh:  # a collection touches every object, and so copies every forked page
            gc.collect()
            self.fresh = False
        if self.order is None:
            return 0
        index, used, (steps, worker) = self.order.index, 0, part
        items = list(itertools.product(steps, self.slots))
        for item in items[worker :: self.order.config.num_workers]:
            micro = self.order.micro_batch(*item)  # type: ignore[arg-type]
            used += sum(len(index.key(i)) for i in micro.ids.tolist())
            for column in (index.shard, index.offset, index.size):
                used += int(column[micro.ids].max())
        return used


def process_tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def resident(pid: int) -> dict[str, float]:
    """MiB of a process by kind; Pss shares a page out over the processes that map it."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {name: int(kib) / 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
    return {name: found[name] for name in ("Pss", "Pss_Anon", "Pss_File")}


def rank_main(args: argparse.Namespace, rank: int, world_size: int, barrier: Any, out: Any) -> None:
    """One rank with its data workers: its memory without an index, then with one."""
    os.cpu_count = lambda: 64  # `iterate` starts no more workers than there are cores
    config = data_config()
    slots = VirtualRanks(config.virtual_world_size).slots(rank, world_size)
    last = args.steps // len(slots)
    # Many micro-batches at a time, that ranks need not wait for their workers long
    items = [
        (range(k + 1, k + 49), worker)
        for k in range(0, last - 47, 48)
        for worker in range(config.num_workers)
    ]
    for phase in ("without", "with"):
        dataset = PlannedReads(slots)
        if phase == "with":
            _, dataset.order, *_ = open_both(args)
        batches = iterate(
            dataset,  # type: ignore[arg-type]
            [*items, *items[: config.num_workers]],
            num_workers=config.num_workers,
            prefetch=config.prefetch,
        )
        with closing(batches):
            for _ in items:  # the workers stay for the last one
                next(batches)
            gc.collect()
            barrier.wait()
            tree = process_tree(os.getpid())
            assert len(tree) == 1 + config.num_workers, tree
            parts = [resident(pid) for pid in tree]
            out.put((phase, {name: sum(p[name] for p in parts) for name in parts[0]}))
            barrier.wait()


def node(args: argparse.Namespace) -> None:
    """Memory of a node's 8 × (1 + workers) processes, above that of the same without an index."""
    print(
        "| nodes | slots of a process | processes of a node | without an index MiB "
        "| anonymous, with it | file pages, with it | in all, with it |\n|-|-|-|-|-|-|-|"
    )
    context = multiprocessing.get_context("fork")
    torch.set_num_threads(1)
    for num_nodes in (NUM_NODES, 1):
        world_size = num_nodes * GPUS_PER_NODE
        barrier, out = context.Barrier(GPUS_PER_NODE), context.Queue()
        ranks = [
            context.Process(target=rank_main, args=(args, rank, world_size, barrier, out))
            for rank in range(GPUS_PER_NODE)
        ]
        for process in ranks:
            process.start()
        sums: dict[str, dict[str, float]] = {"without": {}, "with": {}}
        try:
            for _ in range(2 * GPUS_PER_NODE):
                phase, values = out.get(timeout=1_200)
                for name, value in values.items():
                    sums[phase][name] = sums[phase].get(name, 0) + value
        except BaseException:
            for process in ranks:
                process.terminate()
            raise
        for process in ranks:
            process.join()
        bare, full = sums["without"], sums["with"]
        count = GPUS_PER_NODE * (1 + data_config().num_workers)
        slots = VirtualRanks(data_config().virtual_world_size).num_rounds(world_size)
        print(
            f"| {num_nodes} | {slots} | {count} | {bare['Pss']:,.0f} "
            f"| +{full['Pss_Anon'] - bare['Pss_Anon']:,.0f} "
            f"| +{full['Pss_File'] - bare['Pss_File']:,.0f} "
            f"| +{full['Pss'] - bare['Pss']:,.0f} |",
            flush=True,
        )


def traffic(args: argparse.Namespace) -> None:
    """What each of 16 nodes reads, from the order and the index alone."""
    index, order, *_ = open_both(args)
    slots_of_node = data_config().virtual_world_size // NUM_NODES
    print(
        "| node | steps | utterances a step | MB a step | MB/s | reads/s | cropped off "
        "| shards | share of the bytes of these | forward reads |\n|-|-|-|-|-|-|-|-|-|-|"
    )
    for node_number in range(args.nodes):
        slots = [
            r + GPUS_PER_NODE * node_number for r in range(slots_of_node)
        ]  # 128 ranks: rank r has slot r
        reads = {slot: slot_reads(order, slot) for slot in slots}
        num_steps = min(len(r) for r in reads.values())
        for steps in (1_000, num_steps):
            used = [np.concatenate(reads[slot][:steps]) for slot in slots]
            rows = np.concatenate([u[:, 0] for u in used])
            size = index.size[rows].astype(np.int64)
            cropped = np.concatenate([u[:, 1] for u in used]).sum() / index.num_samples[rows].sum(
                dtype=np.int64
            )
            shards = np.unique(index.shard[rows])
            forward = np.concatenate([forward_reads(index, u[:, 0]) for u in used])
            megabytes = size.sum() / steps / 1e6
            of_shards = size.sum() / sum(index.shard_bytes[k] for k in shards)
            print(
                f"| {node_number} | {steps:,} | {len(rows) / steps:.1f} | {megabytes:.1f} "
                f"| {megabytes / STEP_SECONDS:.1f} | {len(rows) / steps / STEP_SECONDS:.0f} "
                f"| {1 - cropped:.1%} | {len(shards):,} | {of_shards:.1%} "
                f"| {forward.mean():.1%} |",
                flush=True,
            )
    config = data_config()
    hours = slots_of_node * config.max_samples_per_slot / SAMPLE_RATE / 3600
    print(f"\nplan: at most {hours:.3f} h, {hours * FLAC_BYTES_PER_HOUR / 1e6:.1f} MB a step")


def slot_reads(order: DataOrder, slot: int) -> list[Any]:
    """(utterance, samples used) of each step of the slot's first epoch."""
    out, step = [], 1
    while (micro := order.micro_batch(step, slot)).epoch == 0:
        out.append(np.stack([micro.ids, micro.num_samples], axis=1))
        step += 1
    return out


def forward_reads(index: ShardIndex, rows: Any) -> Any:
    """For each read of a slot but a shard's first: whether it lies after the one before it."""
    by_shard = np.argsort(index.shard[rows], kind="stable")
    shard, offset = index.shard[rows][by_shard], index.offset[rows][by_shard].astype(np.int64)
    return (np.diff(offset) > 0)[np.diff(shard.astype(np.int64)) == 0]


MODEL = {
    "conv_channels": 16, "num_layers": 1, "embed_dim": 32, "ffn_dim": 64, "num_heads": 2,
    "pos_conv_kernel": 16, "pos_conv_groups": 4, "final_dim": 16, "num_codebook_entries": 8,
    "num_distractors": 10,
}  # fmt: skip


def many_processes(args: argparse.Namespace) -> None:
    """Train a tiny model on noise in `--processes` real ranks, each one slot, and in one rank.

    Exits with an error unless both used, at every step and slot, what `w2v2dist batches` prints.
    """
    folder = args.folder / "processes"
    (folder / "noise").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12 * args.processes):
        noise = rng.normal(scale=0.1, size=int(rng.integers(20_000, 60_000)))
        soundfile.write(folder / f"noise/{i:04d}.flac", noise, SAMPLE_RATE)
    shards = folder / "shards"
    build_main(["--input", str(folder / "noise"), "--output", str(shards), "--shard-mb", "1"])
    config = {
        "task": "pretrain",
        "model": MODEL,
        "data": {
            "train": str(shards), "virtual_world_size": args.processes, "num_workers": 1,
            "max_samples_per_slot": 64_000, "max_crop": 32_000, "min_samples": 16_000,
        },
        "loop": {"max_steps": 8, "log_every": 1, "log_samples": True, "num_threads": 1},
        "engine": {"precision": "fp32", "zero_stage": 1},
    }  # fmt: skip
    used, losses = [], []
    print("| processes | s to the start of the run | s to the end of step 1 | s a step then |")
    print("|-|-|-|-|")
    for num_processes in (args.processes, 1):
        run = folder / f"run_{num_processes}"
        path = folder / f"{num_processes}.yaml"
        path.write_text(json.dumps(config | {"run_dir": str(run)}))
        begin = time.time()
        if run_local([str(path)], run / "logs", num_processes) != 0:
            raise SystemExit(f"{num_processes} processes failed: see {run / 'logs'}")
        steps = [r for r in read_jsonl(run / "metrics.jsonl") if "loss" in r]
        losses.append(np.array([r["loss"] for r in steps]))
        start = read_jsonl(run / "events.jsonl")[0]["time"] - begin
        seconds = [r["seconds"] for r in steps]
        print(
            f"| {num_processes} | {start:.1f} | {start + seconds[0]:.1f} "
            f"| {statistics.median(seconds[1:]):.2f} |"
        )
        logs = (run / "logs").glob("samples-*.jsonl")
        records = [r for log in logs for r in read_jsonl(log)]
        used.append(sorted(records, key=lambda r: (r["step"], r["slot"])))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for step in range(1, 9):
            cli_main(["batches", str(path), "--step", str(step)])
    used.append([json.loads(line) for line in printed.getvalue().splitlines()])
    same = used[0] == used[1] == used[2]
    verdict = "the same" if same else "NOT THE SAME"
    print(
        f"\n{len(used[0])} micro-batches, {verdict} in both runs and "
        "in `w2v2dist batches`;\n"
        f"losses differ by {np.abs(losses[0] / losses[1] - 1).max():.1e} at most, relative"
    )
    raise SystemExit(0 if same else 1)


PARTS = {"open": opening, "jump": jump, "node": node, "traffic": traffic}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where the synthetic index is or is to be made")
    add("--utterances", type=int, default=12_000_000, help="of a new index (default: 12 million)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--steps", type=int, default=3_000, help="micro-batches of a process (default: 3,000)")
    add("--nodes", type=int, default=3, help="nodes whose traffic is listed (default: the first 3)")
    add("--repeat", type=int, default=5, help="openings, of which the median counts (default: 5)")
    add("--processes", type=int, help="only this: so many real ranks against one")
    args = parser.parse_args()
    if args.processes:
        many_processes(args)
    if not (args.folder / "index.json").exists():
        make(args)
    for part in args.parts:
        print(f"\n{part}", flush=True)
        PARTS[part](args)


if __name__ == "__main__":
    main()
