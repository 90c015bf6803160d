"""`w2v2dist unsupervised label`: shards whose transcripts are what a model read in them, for a
training with CTC (self-training)."""

import argparse
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.progress import track
from webdataset.writer import TarWriter

from w2v2dist.config import ConfigError
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.index_writer import ShardEntry, atomic, index_shard, made, write_index
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.source import open_index
from w2v2dist.decode.beam_config import WEIGHTS
from w2v2dist.decode.results import is_evaluation
from w2v2dist.runtime.files import unwritable
from w2v2dist.runtime.logging import console, read_jsonl
from w2v2dist.unsupervised.decode import read_arguments, read_by, write_read
from w2v2dist.unsupervised.kaldi import write_kaldi
from w2v2dist.unsupervised.trained import check_trained

Units = Literal["phones", "words"]
SAID = ("text", "phones", "words")  # labels that a hypothesis takes the place of
# Options of reading, which would do nothing where that was done before
HOW = (
    *("data", "text", "stride", "silence_weight", "tune", "trials"),
    *("decoder", "lm", "lexicon", "rescore_lm", "weights", *WEIGHTS),
    *("beam_size", "beam_size_token", "beam_threshold"),
)
NO_WORDS = (
    "what is read {} are no words of a lexicon: decode with --lm of words and --lexicon, or take "
    "--units phones"
)


@dataclass(slots=True)
class Counted:
    """What became of the utterances."""

    labelled: int = 0
    empty: int = 0  # hypotheses
    unread: int = 0  # without one: not in the features
    num_samples: int = 0
    speakers: set[str] = field(default_factory=set)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist unsupervised label` takes."""
    add = parser.add_argument
    what = "run folder of task unsupervised, which reads now; or a folder of what was read, by "
    add("run", metavar="RUN", help=what + "`unsupervised decode` or by `evaluate`")
    shards = "the recordings that the features are of (several: with commas)"
    add("--shards", required=True, metavar="SHARDS", help=shards)
    add("--output", required=True, type=Path, metavar="DIR", help="where the shards go")
    units = "what the transcripts are (default: words where a lexicon found some, else phones)"
    add("--units", choices=("phones", "words"), help=units)
    kaldi = "also files for Kaldi: text, wav.scp, utt2spk, and a lexicon of the phones"
    add("--kaldi", type=Path, metavar="FOLDER", help=kaldi)
    read_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write shards with the same recordings, whose transcripts are what a model read in them: a
    training with CTC on them learns what the generator knows and, hearing more at once, more.
    Utterances in which nothing was read are left out and counted.

    example:
      w2v2dist unsupervised label runs/unsupervised/v2 --data features/train --shards data/train \\
        --lm text/4gram.arpa --output data/round_1
      w2v2dist train configs/unsupervised/selftrain.yaml data.train=data/round_1
      w2v2dist unsupervised label runs/unsupervised/selftrain/evaluations/round_1-greedy \\
        --shards data/train --output data/round_2
    """
    _check_source(Path(args.run))
    index = open_index(args.shards, "--shards")
    if (args.output / "index.json").exists():
        raise ConfigError(f"{args.output} has shards already: remove it or choose another --output")
    for option, folder in (("--output", args.output), ("--kaldi", args.kaldi)):
        if folder and (why := unwritable(folder / "index.json")):  # before what may take hours
            raise ConfigError(f"{option}: {why}")
    said, units = _said(args, index)
    counted = write_shards(args.output, index, said, units)
    console.print(
        f"{counted.labelled:,} of {len(index):,} utterances, "
        f"{counted.num_samples / 16_000 / 3600:.2f} h, have what was read as their {units}",
        markup=False,
    )
    for count, why in (
        (counted.empty, "nothing was read in them"),
        (counted.unread, "they were not among what was read"),
    ):
        if count:
            console.print(f"{count:,} left out: {why}", style="yellow")
    if args.kaldi:
        write_kaldi(args.kaldi, ShardIndex.load(args.output), units)
        console.print(f"wrote {args.kaldi}", markup=False)
    console.print(f"wrote {args.output}", markup=False)


def _check_source(folder: Path) -> None:
    """Raise ConfigError where a folder is neither a run nor has what was read."""
    if is_evaluation(folder):
        return
    found = sorted(path.name for path in folder.glob("*") if is_evaluation(path))
    if found:
        raise ConfigError(
            f"{folder} has several folders of what was read: give one of them ({', '.join(found)})"
        )
    check_trained(
        folder,
        "a run of task unsupervised, or a folder of what was read (RUN/decoded/NAME of "
        "`unsupervised decode`, RUN/evaluations/NAME of `evaluate`)",
    )


def _told(args: argparse.Namespace) -> list[str]:
    """Which options say how to read."""
    return [name for name in HOW if getattr(args, name) is not None]


def _check_keys(keys: Collection[str], index: ShardIndex) -> None:
    """Raise ConfigError where shards have none of the utterances of these keys."""
    if not any(index.key(i) in keys for i in range(len(index))):
        raise ConfigError(
            f"none of the {len(keys):,} utterances that were read is in {index.folders}: give the "
            "shards that the features were made of"
        )


def _said(args: argparse.Namespace, index: ShardIndex) -> tuple[dict[str, str], Units]:
    """What was read, by key, in phones or words. Raises ConfigError."""
    folder = Path(args.run)
    if not is_evaluation(folder):
        if args.units == "words" and args.lm is None and args.lexicon is None:
            raise ConfigError(NO_WORDS.format("without --lm and --lexicon"))
        read = read_by(args, lambda store: _check_keys({*store.keys}, index))
        folder = read.folder_in(args.run)
        write_read(read, folder)
    elif given := [f"--{name.replace('_', '-')}" for name in _told(args)]:
        raise ConfigError(
            f"{folder} has been read already: leave out {', '.join(given)}, or give the run"
        )
    try:
        return _read(folder, args.units)
    except (LookupError, TypeError, AttributeError, json.JSONDecodeError) as error:
        remedy = "read it anew, or give another folder"
        raise ConfigError(f"what was read in {folder} is damaged ({error!r}): {remedy}") from None


def _read(folder: Path, asked: Units | None) -> tuple[dict[str, str], Units]:
    """The readings of a folder, by key, in the units that are asked for, else those they have."""
    rows = read_jsonl(folder / "hypotheses.jsonl")
    written = bool({"wer", "cer"} & json.loads((folder / "evaluation.json").read_bytes()).keys())
    in_words = written or any(row.get("lexicon_words") for row in rows)
    units: Units = asked or ("words" if in_words else "phones")
    if units == "words" and not in_words:
        raise ConfigError(NO_WORDS.format(f"in {folder}"))
    if units == "phones" and written:
        raise ConfigError(f"{folder} was read in letters, not in phones: leave --units out")
    if units == "phones" or not any("lexicon_words" in row for row in rows):
        return {row["key"]: str(row["hypothesis"]) for row in rows}, units
    instead = "hypothesis" if written else ""  # of a decoding by a lexicon, no word is nothing
    return {r["key"]: str(r.get("lexicon_words") or r.get(instead) or "") for r in rows}, units


def write_shards(output: Path, index: ShardIndex, said: dict[str, str], units: Units) -> Counted:
    """Write the shards of an index with other transcripts; returns what became of them. Raises
    ConfigError where none of the utterances was read, or no hypothesis has anything in it."""
    _check_keys(said, index)
    made(output, "--output")
    counted = Counted()
    reader, name = ShardReader(index), output.resolve().name.replace(".", "_")

    def entries() -> Iterator[ShardEntry]:
        number = range(len(index.shard_paths))
        for k in track(number, "labelling", console=console, transient=True):
            rows = range(int(index.shard_first[k]), int(index.shard_first[k + 1]))
            kept = [i for i in rows if said.get(index.key(i))]
            counted.empty += sum(said.get(index.key(i)) == "" for i in rows)
            counted.unread += sum(index.key(i) not in said for i in rows)
            if not kept:
                continue
            entry = _write_shard(output / f"{name}-{k:06d}.tar", reader, kept, said, units)
            counted.labelled += len(kept)
            counted.num_samples += sum(entry.num_samples)
            counted.speakers.update(s for s in entry.speakers if s)
            summary.update(_summary(counted, units))
            yield entry
        if not counted.labelled:
            raise ConfigError(
                f"all {counted.empty:,} hypotheses are empty: nothing can be learned from them; "
                "look at the training's score (`w2v2dist unsupervised select`), or lower "
                "--silence-weight"
            )

    summary: dict[str, Any] = {}
    write_index(output, name, entries(), summary)
    return counted


def _summary(counted: Counted, units: Units) -> dict[str, Any]:
    """What index.json says, as shards/build.py has it."""
    return {
        "hours": round(counted.num_samples / 16_000 / 3600, 4),
        "utterances": counted.labelled,
        "with_text": counted.labelled,
        "speakers": len(counted.speakers),
        "pseudo_labels": units,
        "empty_hypotheses": counted.empty,
        "without_hypothesis": counted.unread,
    }


def _write_shard(
    path: Path, reader: ShardReader, rows: list[int], said: dict[str, str], units: Units
) -> ShardEntry:
    """A tar of these utterances: the audio as it is, labels with what was read."""
    with atomic(path) as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for i in rows:
            key = reader.index.key(i)
            label = {k: v for k, v in reader.labels(i).items() if k not in SAID}
            label |= {"phones" if units == "phones" else "text": said[key], "pseudo_label": True}
            content = json.dumps(label, ensure_ascii=False).encode()
            writer.write({"__key__": key, "flac": reader.flac(i), "json": content})
    return index_shard(path)
