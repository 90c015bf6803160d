"""`w2v2dist align`: when the words and symbols of transcribed shards are said."""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import SAMPLE_RATE, BadSample
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.index_writer import made
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.source import open_index
from w2v2dist.decode.alignment import Alignment, align
from w2v2dist.decode.alignment_files import join, own_part
from w2v2dist.decode.chunks import hear
from w2v2dist.decode.evaluated import data_config
from w2v2dist.decode.segments import NotFoundError, SegmentConfig, Sources, as_written, cut, rows
from w2v2dist.interop.open import OpenedModel, is_run, model_arguments, open_model
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import console


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignConfig:
    """What is aligned, and where the results go."""

    model: str
    data: str | None = None  # shards; None: the run's data.valid
    output: str | None = None  # None: a folder of the run's alignments/, named after the shards
    checkpoint: str | None = None
    trust_pickle: bool = False
    textgrid: bool = False
    segments: Path | None = None  # a table of segments for shards/build.py
    audio_root: str | None = None  # where the recordings of the shards are; None: where they were
    segment: SegmentConfig = field(default_factory=SegmentConfig)

    def __post_init__(self) -> None:
        if self.segments is not None and self.segments.suffix not in (".tsv", ".jsonl"):
            raise ConfigError(f"--segments {self.segments} must end in .tsv or .jsonl")
        if self.segments is not None and self.segments.is_dir():
            raise ConfigError(f"--segments {self.segments} is a folder but must be a file")


@dataclass(frozen=True, slots=True)
class Aligner:
    """A model, shards, and how their utterances are cut."""

    opened: OpenedModel
    reader: ShardReader
    config: AlignConfig
    sources: Sources | None  # None: no segments are asked for

    def record(self, i: int, told: Callable[[float], None]) -> dict[str, Any]:
        """What is found of an utterance, or why it is left out ("reason"); `told` hears the seconds
        of it that are done."""
        _, alphabet, _ = self.opened.recogniser()
        record: dict[str, Any] = {"key": self.reader.index.key(i)}
        try:
            labels = self.reader.labels(i)
            text = alphabet.label(labels)
            if text is None:
                what = "phones" if alphabet.units == "phones" else "text"
                raise ValueError(f"has no {what!r} label: nothing can be aligned")
            record["text"] = text
            alphabet.encode(text)  # before the audio is heard
            wave = self.reader.audio(i)
            parts = [*hear(self.opened, wave, told)]
            heard = torch.cat(parts) if parts else torch.zeros(0, alphabet.num_tokens)
            found = align(heard, text, alphabet, self.opened.encoder.config)
        except (BadSample, ValueError) as error:
            return {**record, "reason": str(error)}
        seconds = len(wave) / SAMPLE_RATE
        record |= {"seconds": round(seconds, 3)}
        record |= {"score": found.score, "unwritten": found.unwritten()}
        record |= {"words": _times(found, "words"), "symbols": _times(found, "symbols")}
        if self.sources is not None:
            record |= self._segments(labels, found, text, seconds)
        return record

    def _segments(
        self, labels: dict[str, Any], found: Alignment, text: str, seconds: float
    ) -> dict[str, Any]:
        """The rows of the table of segments, and how much was left out for which reason."""
        assert self.sources is not None
        _, alphabet, _ = self.opened.recogniser()
        words = as_written(text, found.symbols, alphabet)
        segments, left_out = cut(words, seconds, alphabet, self.config.segment, found.unwritten)
        try:
            path = self.sources.find(labels, seconds)
        except NotFoundError as error:
            return {"segments": [], "left_out": {f"its recording {error.reason}": len(segments)}}
        return {"segments": [*rows(segments, labels, path, alphabet)], "left_out": dict(left_out)}


def _times(found: Alignment, what: str) -> list[dict[str, Any]]:
    return [
        {"text": w.text, "start": w.start, "end": w.end, "score": w.confidence}
        for w in getattr(found, what)
    ]


def align_shards(config: AlignConfig, world: World) -> dict[str, Any]:
    """Align every utterance of shards that has a label; collective, and the result is the same on
    any number of processes. Writes a folder (alignment_files.py), "folder" of what is returned, and
    the table of segments. Raises ConfigError, ValueError."""
    opened = open_model(config.model, config.checkpoint, trust_pickle=config.trust_pickle)
    opened.recogniser()
    opened.module.to(world.device)
    data = config.data or data_config(opened).valid
    if not data:
        raise ConfigError(f"{config.model} has no validation set of its own: name shards (--data)")
    index = open_index(data, "--data" if config.data else "data.valid")
    index.check_shard_sizes()
    folder = Path(config.output) if config.output else _folder(config.model, data)
    for note in opened.notes if world.is_main else ():
        console.print(f"note: {note}", markup=False)
    settings = data_config(opened)
    limits = {"retries": settings.read_retries, "timeout_s": settings.read_timeout_s}
    reader = ShardReader(index, **limits)  # type: ignore[arg-type]
    sources = None if config.segments is None else _sources(config, index, reader)
    aligner = Aligner(opened, reader, config, sources)
    made(folder, "--output")
    if config.segments is not None:
        made(config.segments.parent, "--segments")
    with own_part(folder, world.rank) as part:
        for i, told in _own(index, world):
            part.write(json.dumps(aligner.record(i, told), ensure_ascii=False) + "\n")
        part.close()  # before it is read, on another machine too
        world.barrier()
    result: dict[str, Any] = {"folder": str(folder)}
    if world.is_main:
        about = {"checkpoint": str(opened.source), "notes": [*opened.notes], "data": data}
        table = config.segments
        result |= join(folder, world.size, about, textgrid=config.textgrid, table=table)
    return result


def _own(index: ShardIndex, world: World) -> Iterator[tuple[int, Callable[[float], None]]]:
    """This process's utterances, every W-th in the order of their keys, each with what moves the
    bar: it takes the seconds of the utterance that are done."""
    order = sorted(range(len(index)), key=index.key)[world.rank :: world.size]
    lengths = [int(index.num_samples[i]) / SAMPLE_RATE for i in order]
    with Progress(console=console, transient=True, disable=not world.is_main) as bar:
        task, done = bar.add_task("aligning", total=sum(lengths)), 0.0
        for i, seconds in zip(order, lengths, strict=True):
            yield i, lambda heard, done=done: bar.update(task, completed=done + heard)  # type: ignore[misc]
            done += seconds
            bar.update(task, completed=done)


def _folder(model: str, data: str) -> Path:
    """The folder of an alignment by a run that was not given one."""
    if not is_run(Path(model)):
        raise ConfigError(
            f"{model} is no run folder: say with --output where its results are to go"
        )
    return Path(model) / "alignments" / "+".join(Path(name).name for name in data.split(","))


def _sources(config: AlignConfig, index: ShardIndex, reader: ShardReader) -> Sources:
    """Where the recordings of shards are. Raises ConfigError where the first of them is not."""
    given = (config.audio_root or "").split(",") if config.audio_root else []
    roots = [Path(name) for name in given]
    for folder in index.folders.split(",") if not roots else ():
        content = json.loads((Path(folder) / "index.json").read_text(encoding="utf-8"))
        roots += [Path(name) for name in content["summary"].get("inputs", [])]
    sources = Sources([*dict.fromkeys(roots)])
    if len(index):
        sources.find(reader.labels(0), int(index.num_samples[0]) / SAMPLE_RATE)
    return sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist align` takes."""
    model_arguments(parser)
    add = parser.add_argument
    add("--data", metavar="SHARDS", help="folders of shards (default: the run's data.valid)")
    add("--output", metavar="DIR", help="where the results go (default: RUN/alignments/NAME)")
    add("--format", choices=["ctm", "textgrid"], default="ctm",
        help="textgrid: also a file for Praat of each utterance")  # fmt: skip
    group = parser.add_argument_group("segments of long recordings")
    add, s = group.add_argument, SegmentConfig()
    add("--segments", type=Path, metavar="FILE",
        help="cut at pauses: a table (.tsv or .jsonl) for shards/build.py --input")  # fmt: skip
    add("--segment-s", type=float, nargs=2, default=[s.least_s, s.most_s],
        metavar=("MIN", "MAX"), help="their seconds (default 2 30)")  # fmt: skip
    add("--min-score", type=float, default=s.min_score, metavar="P",
        help="leave out those of a lower score (default 0)")  # fmt: skip
    add("--max-unwritten", type=float, default=s.max_unwritten, metavar="SHARE",
        help="leave out those where more of what is heard is unwritten (default 0.2)")  # fmt: skip
    add("--audio-root", metavar="DIR",
        help="where the recordings are (default: where the shards were made of them)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Find when the words and symbols of transcribed shards are said (CTC forced alignment), in
    recordings of hours, too, with two measures of how text and audio agree: the score, which is low
    where the text has what is not said, and "unwritten", the share of what is heard that the text
    lacks. With --segments, cut long recordings at pauses, each part with its text. Starts alone or
    on several processes.

    example:
      w2v2dist align runs/base_10h --data data/test_clean --format textgrid
      python shards/build.py --input lectures --output data/whole --no-cut
      w2v2dist align runs/base_10h --data data/whole --segments lectures.tsv
      python shards/build.py --input lectures.tsv --output data/lectures
    """
    least_s, most_s = args.segment_s
    config = AlignConfig(
        model=args.model,
        data=args.data,
        output=args.output,
        checkpoint=args.checkpoint,
        trust_pickle=args.trust_pickle,
        textgrid=args.format == "textgrid",
        segments=args.segments,
        audio_root=args.audio_root,
        segment=SegmentConfig(
            least_s=least_s,
            most_s=most_s,
            min_score=args.min_score,
            max_unwritten=args.max_unwritten,
        ),
    )
    world = World.of_command()
    try:
        result = align_shards(config, world)
    finally:
        world.close()
    if world.is_main:
        _say(result, config)


def _say(result: dict[str, Any], config: AlignConfig) -> None:
    def say(text: str) -> None:
        console.print(text, markup=False)

    total = result["num_aligned"] + result["num_skipped"]
    say(
        f"{result['num_aligned']} of {total} utterances aligned, {result['seconds'] / 3600:.2f} h, "
        f"mean score {result['mean_score']:.3f}, unwritten {result['mean_unwritten']:.3f}   "
        f"(see {result['folder']})"
    )
    if result["num_skipped"]:
        were = "was" if result["num_skipped"] == 1 else "were"
        say(f"{result['num_skipped']} {were} left out: {result['why_skipped']}")
    for what, key, title in (
        ("score", "worst", "the lowest scores (is the text what is said?):"),
        ("unwritten", "most_unwritten", "the most that is heard and not written:"),
    ):
        if result[key][0][what] or what == "score":
            say(title)
            for row in result[key][:5]:
                say(f"  {row[what]:.3f}  {row['key']}  {row['text'][:70]}")
    if config.segments is not None:
        found = result["segments"]
        say(f"wrote {config.segments}: {found['num']} segments, {found['seconds'] / 3600:.2f} h")
        for reason, count in found["left_out"].items():
            say(f"{count} {'segment was' if count == 1 else 'segments were'} left out: {reason}")
