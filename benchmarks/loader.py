"""Tars to micro-batches: hours of audio a second and core, beside bare decoding of the same files.

    python benchmarks/loader.py --input LibriSpeech/train-clean-100/19
    python benchmarks/loader.py --shards FOLDER --workers 4 --json loader.json

Ours (the source of a pre-training: read, decode, crop, normalise, masks, distractors), plain
webdataset with soundfile, single files with soundfile, and bare decoding: the bytes of the tars
through soundfile, and through dr_flac, which ours uses where it can, and nothing else. All take
turns. The slow store is simulated, alike for all: a request waits for --latency and its bytes come
at --bandwidth; webdataset, which streams whole tars, waits once a tar. Without --shards and
--input, noise like speech is made in a temporary folder. Beside it: what the paper's layouts need.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import miniaudio
import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.loader_needs import needs
from benchmarks.loader_page import OURS, markdown
from benchmarks.machine import machine, write_json
from benchmarks.speechlike import build_shards, write_recordings
from w2v2dist.data.audio import decode, to_flac
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.loader import keep_big_blocks
from w2v2dist.runtime.files import unwritable
from w2v2dist.tasks.pretrain import pretrain_source
from w2v2dist.tasks.train import read_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SECONDS_PER_HOUR = 3600 * 16_000  # in samples
BARE = "bare decoding, soundfile"
Samples = Callable[[bytes], int]  # decodes, and says how many there were
Contents = Callable[[], Iterator[bytes]]
PREAD = os.pread


@dataclass(kw_only=True)
class Row:
    """One way of reading: seconds an hour of audio of each turn, on the clock and of all cores."""

    name: str
    workers: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    error: str | None = None


def with_soundfile(data: bytes) -> int:
    """Samples that were decoded."""
    return len(soundfile.read(io.BytesIO(data), dtype="float32")[0])


def with_dr_flac(data: bytes) -> int:
    """The same, as floats too."""
    pcm = np.frombuffer(miniaudio.flac_read_s16(data).samples, np.int16)
    return len(pcm * np.float32(2**-15))


def tar_members(index: ShardIndex) -> Iterator[bytes]:
    """The FLAC files of the tars one after the other, for ever; a request each."""
    files = [os.open(path, os.O_RDONLY) for path in index.shard_paths]
    places = [c.tolist() for c in (index.shard, index.size, index.offset)]
    try:
        while True:
            for shard, size, offset in zip(*places, strict=True):
                yield os.pread(files[shard], size, offset)
    finally:
        for file in files:
            os.close(file)


def single_files(folder: Path) -> Iterator[bytes]:
    """The same files as they lie in a folder, for ever; opened for each use."""
    paths = sorted(folder.iterdir())
    while True:
        for path in paths:
            file = os.open(path, os.O_RDONLY)
            yield os.pread(file, os.fstat(file).st_size, 0)
            os.close(file)


def until(hours: float, decoded: Iterator[int]) -> float:
    """Decode until there are so many hours; how many there are."""
    samples = 0
    while samples < hours * SECONDS_PER_HOUR:
        samples += next(decoded)
    return samples / SECONDS_PER_HOUR


def plain(hours: float, workers: int, contents: Contents, how: Samples) -> float:
    """Contents through a decoder, in this process or shared out to several."""
    if not workers:
        return until(hours, map(how, contents()))
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        parts = [
            pool.apply_async(_plain_part, (hours / workers, contents, how)) for _ in range(workers)
        ]
        return sum(part.get() for part in parts)


def _plain_part(hours: float, contents: Contents, how: Samples) -> float:
    return until(hours, map(how, contents()))


def ours(hours: float, workers: int, folder: Path, name: str) -> float:
    """The micro-batches of a pre-training of one slot; hours are those that it trains on."""
    overrides = [f"data.train={folder}", "data.valid=null", "data.virtual_world_size=1"]
    config = read_config(CONFIGS / f"{name}.yaml", [*overrides, f"data.num_workers={workers}"])
    source = pretrain_source(config)
    with contextlib.closing(source.batches(range(1, 1 << 40), [0], config.seed)) as batches:
        return until(hours, (batch.amount for batch in batches))


class Stream(io.RawIOBase):
    """A tar that is streamed from the slow store."""

    def __init__(self, path: str, latency_s: float, bandwidth: float) -> None:
        self._file = Path(path).open("rb")  # noqa: SIM115
        self._owed_s, self._bandwidth = latency_s, bandwidth

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._owed_s += len(data) / self._bandwidth
        if self._owed_s > 0.002:  # shorter sleeps are not kept
            before = time.perf_counter()
            time.sleep(self._owed_s)
            self._owed_s -= time.perf_counter() - before
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def webdataset(hours: float, workers: int, index: ShardIndex, store: tuple[float, float]) -> float:
    """webdataset's pipeline: tars in order, samples as they come, soundfile; no batches."""
    import webdataset as wds
    from webdataset.gopen import gopen_schemes

    latency_s, bandwidth = store
    slow = bool(latency_s)
    gopen_schemes["slow"] = lambda url, *_: Stream(url[5:], latency_s, bandwidth)
    urls = [f"{'slow:' if slow else ''}{path}" for path in index.shard_paths]
    dataset = wds.WebDataset(urls, shardshuffle=False, empty_check=False).repeat()
    dataset = dataset.map(_wds_sample)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
    return until(hours, (len(wave) for wave in loader))


def _wds_sample(sample: dict[str, Any]) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")[0])


@contextlib.contextmanager
def slow_store(latency_s: float, bandwidth: float) -> Iterator[None]:
    """Every pread of this process and its children waits."""

    def pread(file: int, size: int, offset: int) -> bytes:
        time.sleep(latency_s + size / bandwidth)
        return PREAD(file, size, offset)

    os.pread = pread if latency_s else PREAD
    try:
        yield
    finally:
        os.pread = PREAD


def measure(row: Row, run: Callable[[float, int], float], hours: float) -> None:
    """One turn."""
    if row.error is not None:
        return
    before, started = _cpu_seconds(), time.perf_counter()
    try:
        done = run(hours, row.workers)
    except Exception as error:
        row.error = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        return
    row.wall.append((time.perf_counter() - started) / done)
    row.cpu.append((_cpu_seconds() - before) / done)


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def compare(args: argparse.Namespace, shards: Path, store: tuple[float, float]) -> list[Row]:
    """All ways in turns, on one store; hours a turn so that it lasts about a second or two."""
    index = ShardIndex.load_many(shards)
    with tempfile.TemporaryDirectory() as folder:
        for i, content in zip(range(len(index)), tar_members(index), strict=False):
            (Path(folder) / f"{i:06d}.flac").write_bytes(content)
        files, members = partial(single_files, Path(folder)), partial(tar_members, index)
        ways: dict[str, Callable[[float, int], float]] = {
            BARE: partial(plain, contents=members, how=with_soundfile),
            "bare decoding, dr_flac": partial(plain, contents=members, how=with_dr_flac),
            OURS: partial(ours, folder=shards, name=args.config),
            "webdataset, soundfile": partial(webdataset, index=index, store=store),
            "single files, soundfile": partial(plain, contents=files, how=with_soundfile),
        }
        rows = [Row(name=n, workers=w) for w in (0, args.workers) for n in ways]
        keep_big_blocks()  # as ours does: alike for all
        with slow_store(*store):
            for number in range(args.repeat + 1):
                for row in rows[:: -1 if number % 2 else 1]:
                    share = 0.1 if number == 0 else 1.0  # the first turn warms up
                    measure(row, ways[row.name], share * args.hours * max(1, row.workers))
                    if number == 0 and row.error is None:
                        row.wall.clear()
                        row.cpu.clear()
    return rows


def crop_costs() -> list[tuple[float, float, float]]:
    """(seconds of the file, of a crop from its middle, decoding time as a part of the whole's)."""
    out = []
    rng = np.random.default_rng(0)
    for whole_s, crop_s in ((15, 3), (15, 12), (300, 15.6)):
        data = to_flac((0.05 * rng.standard_normal(16_000 * whole_s)).astype(np.float32))
        size = int(16_000 * crop_s)
        seconds: list[list[float]] = [[], []]
        for _ in range(9):
            for k, span in enumerate(((0, 16_000 * whole_s), (8_000 * whole_s - size // 2, size))):
                started = time.process_time()
                decode(data, *span)
                seconds[k].append(time.process_time() - started)
        out.append((whole_s, crop_s, min(seconds[1]) / min(seconds[0])))
    return out


def summary(rows: list[Row]) -> list[dict[str, Any]]:
    """Rates and ratios to bare decoding with as many workers, by turn."""
    out = []
    for row in rows:
        entry: dict[str, Any] = {"name": row.name, "workers": row.workers, "error": row.error}
        if row.wall and row.error is None:
            base = next(r for r in rows if r.name == BARE and r.workers == row.workers)
            entry |= {
                "hours_per_second_core": [1 / (w * max(1, row.workers)) for w in row.wall],
                "hours_per_cpu_second": [1 / c for c in row.cpu],
                "of_bare": _ratio(base.wall, row.wall),
                "of_bare_cpu": _ratio(base.cpu, row.cpu),
            }
        out.append(entry)
    return out


def _ratio(base: list[float], own: list[float]) -> float | None:
    pairs = [b / o for b, o in zip(base, own, strict=False)]
    return statistics.median(pairs) if pairs else None


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shards", type=Path, help="what shards/build.py wrote")
    add("--input", type=Path, help="recordings, of which shards are made in a temporary folder")
    add("--config", default="base_ls960", help="large_lv60k normalises, too")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)))
    add("--hours", type=float, default=0.5, help="of audio, a turn and process")
    add("--repeat", type=int, default=5, help="turns")
    add("--latency", type=float, default=0.02, help="of the slow store, seconds; 0: leave it out")
    add("--bandwidth", type=float, default=100.0, help="of a request to it, MB/s")
    add("--step-seconds", type=float, help="of the layouts; default: the plan's")
    add("--json", type=Path, help="write all numbers here")
    args = parser.parse_args(arguments)
    if args.repeat < 1 or args.workers < 1:
        parser.error("--repeat and --workers must be at least 1")
    positive = (args.hours, args.bandwidth, args.step_seconds)
    if not all(0 < value < math.inf for value in positive if value is not None):
        parser.error("--hours, --bandwidth and --step-seconds must be above 0")
    if not 0 <= args.latency < math.inf:
        parser.error(f"--latency is {args.latency:g} but must be at least 0 seconds")
    config = CONFIGS / f"{args.config}.yaml"
    if not config.is_file() or read_config(config, []).task != "pretrain":
        parser.error(f"--config {args.config} is no pre-training in {CONFIGS}: try base_ls960")
    if args.json and (why := unwritable(args.json)):
        parser.error(f"--json {why}")
    return args


def main() -> int:
    """0; 1 where ours failed; 2 where there is nothing to read."""
    args = parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards, data = args.shards, f"shards {args.shards and args.shards.name}"
        try:
            if shards is None:
                source, data = args.input, f"recordings of {args.input and args.input.name}"
                if source is None:
                    source, data = write_recordings(Path(folder) / "noise", 120), "made noise"
                shards = build_shards(source, Path(folder) / "shards")
            index = ShardIndex.load_many(shards)
        except (RuntimeError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        hours = float(index.num_samples.sum()) / SECONDS_PER_HOUR
        stores = {"local disk": (0.0, 1.0)}
        if args.latency:
            name = f"slow store: {1000 * args.latency:g} ms a request, {args.bandwidth:g} MB/s"
            stores[name] = (args.latency, 1e6 * args.bandwidth)
        found = {
            "machine": machine(),
            "command": "python benchmarks/loader.py " + " ".join(sys.argv[1:]),
            "data": f"{data}: {len(index)} utterances, {hours:.2f} h",
            "stores": {name: summary(compare(args, shards, s)) for name, s in stores.items()},
            "crops": crop_costs(),
            "needs": needs(args.step_seconds),
        }
    print(markdown(found), flush=True)
    if args.json:
        write_json(args.json, found)
    mine = [r for rows in found["stores"].values() for r in rows if r["name"] == OURS]
    return int(any(r["error"] for r in mine))


if __name__ == "__main__":
    sys.exit(main())
