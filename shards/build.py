"""Build WebDataset shards of 16 kHz mono FLAC from folders of recordings.

    python shards/build.py --input LibriSpeech --split train-960 --output data/ls960
    python shards/build.py --input my_recordings --output data/mine

After an interruption run it again with the same arguments: it makes only what is missing.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import soundfile
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from shards import completeness, encode, summary
from shards.cut import CUTS
from shards.encode import ShardReport, build_shard
from shards.layouts import LAYOUTS, Problem, Recording, Scan, scan
from shards.splits import chosen
from w2v2dist.data.index_writer import ShardEntry, atomic, made, write_index

BYTES_PER_SECOND = 18_600  # speech as 16 kHz FLAC, the mean of LibriSpeech
LEAST_BYTES_PER_SECOND = 300  # of a codec for speech; a header that states more is wrong
BYTES_PER_UTTERANCE = 2_560  # headers of two tar members, padding, labels
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Which recordings make which shard; a function of the recordings and the arguments alone."""

    identity: str
    seconds: float
    hours: dict[str, float]  # of each set of --split
    groups: list[tuple[int, int]]  # first and last + 1 of each shard, in the order of `scan`


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", type=Path, required=True, action="append",
        help="folder of recordings, or a manifest; may be given several times")  # fmt: skip
    add("--output", type=Path, required=True, help="folder for the shards and their index")
    add("--layout", choices=LAYOUTS, default="auto", help="how files and labels are named")
    add("--split", help="sets of a known corpus, such as dev-clean,dev-other: what was published "
        "of them is checked (docs/commands.md lists them)")  # fmt: skip
    add("--allow-incomplete", action="store_true",
        help="build what is there of --split, although something is missing")  # fmt: skip
    add("--shard-mb", type=float, default=512, help="size of a shard in MB (default 512)")
    cores = len(os.sched_getaffinity(0))  # of this job, not of the machine
    add("--workers", type=int, default=cores, help="processes (default: all cores it may use)")
    add("--name", help="start of the shards' names (default: the output folder's)")
    add("--cut", choices=CUTS, default="vad", help="long recordings: at pauses (vad, the default), "
        "or as Libri-Light cuts its own, by its metadata, or not at all")  # fmt: skip
    add("--no-cut", action="store_const", const="none", dest="cut", help="keep them "
        "whole, with their text, for w2v2dist align --segments")  # fmt: skip
    add("--max-bad-samples", type=int, default=100,
        help="stop when more recordings or texts cannot be used (default 100)")  # fmt: skip
    add("--clean-text", action="store_true",
        help="English: texts to upper case, without accents and punctuation. Not needed: a "
             "training normalises texts (data.text); in other languages it harms")  # fmt: skip
    args = parser.parse_args(argv)
    args.name = args.name or args.output.resolve().name
    if args.shard_mb <= 0 or args.workers < 1 or args.max_bad_samples < 0:
        parser.error("--shard-mb and --workers must be positive, --max-bad-samples not negative")
    named = args.split is not None
    args.split = [name.strip() for name in (args.split or "").split(",") if name.strip()]
    if named and not args.split:
        parser.error("--split names no set: give one, or leave it out to build all that is there")
    if args.allow_incomplete and not args.split:
        parser.error("--allow-incomplete needs --split: of other folders nothing is published")
    if "/" in args.name or "." in args.name:
        parser.error(f"--name {args.name!r} must have no dot and no slash: it starts a file name")
    return args


def main(argv: list[str] | None = None) -> int:
    """Build the shards; returns the exit code: 0, or 1 after an error, which is printed."""
    args = parse_args(argv)
    try:
        with locked(args.output):
            build(args)
    except (ValueError, OSError) as error:
        no_space = isinstance(error, OSError) and error.errno in NO_SPACE
        remedy = ": free some space and run the command again; whole shards are kept"
        text = f"no space left for {args.output}{remedy}" if no_space else str(error)
        console.print(f"error: {text}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted: the same command continues with the missing shards")
        return 130
    return 0


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the output folder for this process. Raises ValueError where another build has it."""
    made(output / ".build", "--output")
    with (output / ".build" / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another build is writing to {output}: wait for it to end") from None
        except OSError as error:  # Lustre without flock, NFS without a lock service
            console.print(
                f"note: {output} has no locks ({error.strerror}): let one build write to it"
            )
        yield


def build(args: argparse.Namespace) -> None:
    """Scan, plan, make missing shards, write the index and a summary. Raises ValueError."""
    scanned = scan(args.input, args.layout, args.clean_text, chosen(args.split, args.layout))
    recordings, problems = scanned.recordings, scanned.problems
    found = ", ".join(f"{p} ({name})" for p, name in zip(args.input, scanned.layouts, strict=True))
    console.print(f"{len(recordings)} recordings in {found}", markup=False)
    for note in scanned.notes:
        console.print(f"note: {note}", markup=False)
    plan = make_plan(args, scanned)
    for one in scanned.sets:
        one.hours = plan.hours[one.name]
    for line in completeness.check(scanned.sets, args.allow_incomplete):
        console.print(f"incomplete: {line}", style="yellow", markup=False)
    reports: dict[int, ShardReport] = {}
    for k in range(len(plan.groups)):
        report = ShardReport.read(_report_path(args, k), plan.identity)
        if report is not None:
            reports[k] = report.without_rows()
    if reports:
        console.print(f"{len(reports)} of {len(plan.groups)} shards are there already")
    check_bad(args, problems, reports)
    make_shards(args, plan, recordings, problems, reports)
    finish(args, plan, scanned, reports)


def make_plan(args: argparse.Namespace, scanned: Scan) -> Plan:
    """The plan of an earlier run where there is one, else a new one.

    Raises ValueError where the output holds shards of other recordings or other arguments.
    """
    settings = {"name": args.name, "shard_mb": args.shard_mb, "clean_text": args.clean_text}
    # Folders of before have no such keys
    settings |= {"no_cut": True} if args.cut == "none" else {}
    settings |= {"cut": args.cut} if args.cut == "librilight" else {}
    settings |= {"split": args.split} if args.split else {}
    recordings = scanned.recordings
    listing = hashlib.sha256()
    for r in recordings:  # not the path: the input may have moved
        listing.update(repr(r.identity).encode())
    settings["recordings"] = listing.hexdigest()[:16]
    path = args.output / ".build" / "plan.json"
    old = json.loads(path.read_bytes()) if path.exists() else None
    if old is not None:
        keys = {**settings, **old["settings"]}
        changed = [k for k in keys if settings.get(k) != old["settings"].get(k)]
        if changed and _begun(args.output, "*.tar"):
            raise ValueError(
                f"{args.output} already holds shards of other input: {', '.join(changed)} "
                "changed since they were begun. Use another --output, or delete that folder"
            )
        old = None if changed else old  # what came to nothing may be mended
    elif _begun(args.output, f"{args.name}-*.tar"):
        raise ValueError(f"{args.output} holds shards that are not ours: use another --output")
    if old is None:
        completeness.check(scanned.sets, args.allow_incomplete)  # before hours of reading headers
        with ThreadPoolExecutor(16) as pool, console.status("reading headers"):
            seconds = list(pool.map(_seconds, recordings))
        groups = group(seconds, args.shard_mb * 1e6)
        hours = completeness.hours(seconds, recordings, scanned.sets)
        old = {"settings": settings, "seconds": sum(seconds), "groups": groups, "hours": hours}
        with atomic(path) as file:
            file.write(json.dumps(old).encode())
    identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    groups = [(first, last) for first, last in old["groups"]]
    return Plan(
        identity=identity, seconds=old["seconds"], hours=old.get("hours", {}), groups=groups
    )


def _begun(output: Path, pattern: str) -> bool:
    """Whether a folder has shards, or an index of some."""
    return (output / "index.json").exists() or next(output.glob(pattern), None) is not None


def _seconds(recording: Recording) -> float:
    """Duration by the file's header, as far as its size allows it; 0 where it cannot be read, which
    the worker will report."""
    if recording.duration is not None:
        return recording.duration
    try:
        stated = float(soundfile.info(recording.path).duration)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return 0.0
    return min(stated, recording.num_bytes / LEAST_BYTES_PER_SECOND)


def group(seconds: list[float], shard_bytes: float) -> list[tuple[int, int]]:
    """Consecutive recordings of about `shard_bytes` in all: (first, last + 1) of each shard."""
    groups, first, size = [], 0, 0.0
    for i, duration in enumerate(seconds):
        estimate = duration * BYTES_PER_SECOND + BYTES_PER_UTTERANCE
        if size and size + estimate > shard_bytes:
            groups.append((first, i))
            first, size = i, 0.0
        size += estimate
    return [*groups, (first, len(seconds))]


def _report_path(args: argparse.Namespace, k: int) -> Path:
    path: Path = args.output / ".build" / f"{args.name}-{k:06d}.json"
    return path


def check_bad(
    args: argparse.Namespace, problems: list[Problem], reports: dict[int, ShardReport]
) -> list[Problem]:
    """All that was left out so far, saved in skipped.jsonl. Raises ValueError over the limit."""
    bad = problems + [p for k in sorted(reports) for p in reports[k].skipped]
    with atomic(args.output / "skipped.jsonl") as file:
        file.write("".join(json.dumps(p._asdict()) + "\n" for p in bad).encode())
    if len(bad) > args.max_bad_samples:
        shown = "\n  ".join(f"{p.source}: {p.reason}" for p in bad[:5])
        raise ValueError(
            f"{len(bad)} recordings or texts cannot be used but --max-bad-samples is "
            f"{args.max_bad_samples}: mend them or raise it. All are listed in "
            f"{args.output / 'skipped.jsonl'}, the first are\n  {shown}"
        )
    return bad


def make_shards(
    args: argparse.Namespace,
    plan: Plan,
    recordings: list[Recording],
    problems: list[Problem],
    reports: dict[int, ShardReport],
) -> None:
    """Build what is missing of the plan, each shard in one worker process, into `reports`."""
    missing = [k for k in range(len(plan.groups)) if k not in reports]
    if not missing:
        return
    context = multiprocessing.get_context("spawn")  # safe beside threads; workers start bare
    done = context.Value("d", 0.0)
    workers = min(args.workers, len(missing))
    pool: Executor
    if args.workers == 1:
        pool = ThreadPoolExecutor(1, "build", encode.set_progress, (done,))
    else:
        pool = ProcessPoolExecutor(workers, context, encode.set_progress, (done,))
    columns = ("{task.description}", "{task.fields[hours]}", "{task.fields[rate]}")
    bar = Progress(BarColumn(), *map(TextColumn, columns), TimeRemainingColumn(), console=console)
    try:
        with bar:
            share = len(missing) / len(plan.groups)  # of the whole, roughly
            task = bar.add_task("shards", total=plan.seconds * share or None, hours="", rate="")
            futures: dict[Future[ShardReport], int] = {}
            for k in missing:
                first, last = plan.groups[k]
                name = _report_path(args, k).stem
                some = recordings[first:last]
                job = pool.submit(build_shard, args.output, name, some, plan.identity, args.cut)
                futures[job] = k
            while futures:
                finished, _ = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    reports[futures.pop(future)] = future.result().without_rows()
                if finished:
                    check_bad(args, problems, reports)
                hours = done.value / 3600
                rate = hours / max(1e-9, bar.tasks[task].elapsed or 0)
                text = f"{len(reports)}/{len(plan.groups)} shards"
                bar.update(task, completed=done.value, description=text,
                           hours=f"{hours:.2f} h", rate=f"{rate:.3f} h/s")  # fmt: skip
    except BrokenProcessPool:
        raise ValueError(
            "a worker process died, most likely for want of memory: run the command again with "
            "fewer --workers; whole shards are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def finish(
    args: argparse.Namespace, plan: Plan, scanned: Scan, reports: dict[int, ShardReport]
) -> None:
    """Write the index and say what is in it. Raises ValueError where there is nothing."""
    bad = check_bad(args, scanned.problems, reports)
    shards = [k for k in sorted(reports) if reports[k].entry is not None]
    if not shards:
        first = f" ({bad[0].source}: {bad[0].reason})" if bad else ""
        raise ValueError(f"no recording could be used{first}: see {args.output / 'skipped.jsonl'}")
    found = summary.begin(reports, len(bad), args.input, scanned.sets)

    def entries() -> Iterator[ShardEntry]:
        num_samples, speakers = 0, set()
        for k in shards:
            report = ShardReport.read(_report_path(args, k), plan.identity)
            if report is None or report.entry is None:
                raise ValueError(f"shard {k} changed while it was indexed: run the command again")
            found["utterances"] += len(report.entry.keys)
            found["bytes"] += report.entry.bytes
            num_samples += sum(report.entry.num_samples)
            speakers.update(report.entry.speakers)
            yield report.entry
        found["hours"] = round(num_samples / 16_000 / 3600, 4)
        found["speakers"] = len(speakers - {None})

    fingerprint = write_index(args.output, args.name, entries(), found)
    summary.say(console, found, bad)
    console.print(f"wrote {args.output / 'index.json'} (fingerprint {fingerprint})", markup=False)


if __name__ == "__main__":
    sys.exit(main())
