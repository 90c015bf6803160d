"""Check the shards of a folder against their index: sizes, checksums, and every utterance.

python shards/verify.py data/train --workers 8
python shards/verify.py data/train --quick     # only sizes and the index itself
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from shards.completeness import in_words
from w2v2dist.data.audio import BadSample, decode
from w2v2dist.data.index import REBUILD, ShardIndex
from w2v2dist.data.index_writer import ShardEntry, index_shard

console = Console(soft_wrap=True, highlight=False)


def verify_shard(folder: Path, k: int) -> list[str]:
    """What is wrong with shard `k` of `folder`: size, members, samples, checksum."""
    index = ShardIndex.load(folder)
    path = index.shard_path(k)
    problem = index.shard_problem(k)
    if problem is not None:
        return [problem]
    problems = []
    try:
        entry = index_shard(path)
    except ValueError as error:
        return [str(error)]
    problems += _compare(index, k, entry)
    with path.open("rb") as file:
        for key, offset, size, stated in zip(
            entry.keys, entry.offset, entry.size, entry.num_samples, strict=True
        ):
            file.seek(offset)
            try:
                decode(file.read(size), 0, stated)
            except BadSample as error:
                problems.append(f"shard {path}: utterance {key} is damaged ({error})")
    if entry.sha256 != index.shard_sha256[k]:
        problems.append(f"shard {path} was changed: its sha256 is not the one in the index")
    if problems:
        problems.append(f"shard {path}: copy it again, or delete it and {REBUILD}")
    return problems


def _compare(index: ShardIndex, k: int, entry: ShardEntry) -> list[str]:
    """Whether the index has the same utterances as the tar, at the same places."""
    first, last = index.shard_first[k : k + 2].tolist()
    where = f"the index does not match shard {entry.path}"
    if entry.keys != [index.key(i) for i in range(first, last)]:
        return [f"{where}: it names other utterances"]
    names = {f.name for f in fields(ShardEntry)} & {"offset", "size", "num_samples", "label_offset"}
    return [
        f"{where}: column {name} differs"
        for name in sorted(names)
        if getattr(entry, name) != getattr(index, name)[first:last].tolist()
    ]


def split_in_words(folder: Path) -> list[str]:
    """What the build found of the sets that it was told to make; [] where there was no --split."""
    summary = json.loads((folder / "index.json").read_bytes()).get("summary") or {}
    return in_words(summary["split"]) if "split" in summary else []


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with index.json")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--quick", action="store_true", help="sizes and index only, no audio")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Check a folder; returns 0, or 1 after printing what is wrong."""
    args = parse_args(argv)
    try:
        index = ShardIndex.load(args.folder)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    numbers = range(len(index.shard_paths))
    found = [index.index_problem()]
    if args.quick:
        found += [index.shard_problem(k) for k in numbers]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max(1, args.workers), context) as pool:
            jobs = [pool.submit(verify_shard, args.folder, k) for k in numbers]
            for job in track(jobs, "verifying", console=console):
                found += job.result()
    problems = [problem for problem in found if problem is not None]
    for problem in problems:
        console.print(problem, style="red", markup=False)
    if not problems:
        hours = index.num_samples.sum(dtype="i8") / 16_000 / 3600
        what = "sizes" if args.quick else "every utterance"
        console.print(
            f"{len(numbers)} shards, {len(index)} utterances, {hours:.2f} h: {what} checked, well"
        )
        for line in split_in_words(args.folder):
            console.print(line, markup=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
