"""`w2v2dist codes`: what the codes of a pre-trained model stand for (the paper's appendix D)."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.index_writer import atomic, made
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.source import open_index
from w2v2dist.data.timit import SIZES
from w2v2dist.decode.code_counts import CodeCounts, Ints, bits, by_likeliest
from w2v2dist.decode.codes import Fold, Listener, quantized
from w2v2dist.decode.evaluated import data_config
from w2v2dist.decode.phone_times import FORMS, labeller
from w2v2dist.interop.open import is_run, model_arguments, open_model
from w2v2dist.reporting.code_picture import picture
from w2v2dist.runtime.files import write_whole
from w2v2dist.runtime.logging import console
from w2v2dist.training.bad_samples import most_frequent

FEW_FRAMES = 10  # of a combination of codes
OF_CHANCE = ("purity", "cluster_purity", "normalized")  # that few frames make large
MAX_WITHOUT = 0.1  # share of the utterances that may lack phones


@dataclass(frozen=True, kw_only=True, slots=True)
class CodesConfig:
    """Which codes are counted, with which phones, and where the results go."""

    model: str
    data: str | None = None  # shards; None: the run's data.valid
    phones: str | None = None  # where their times are; None: in the shards
    fold: Fold = "39"
    max_without: float = MAX_WITHOUT
    output: str | None = None  # None: RUN/codes/NAME, after the shards
    checkpoint: str | None = None
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        if self.fold not in (*map(str, SIZES), "none"):
            raise ConfigError(f"--fold is {self.fold!r} but must be 61, 48, 39 or none")
        if not 0 <= self.max_without <= 1:
            raise ConfigError(
                f"--max-without is {self.max_without} but must be a share from 0 to 1"
            )


def count_codes(config: CodesConfig) -> dict[str, Any]:
    """Count the codes of all utterances, write the folder (codes.json, counts.npz, codes.svg),
    "folder" of what is returned. Raises ConfigError, ValueError."""
    opened = open_model(config.model, config.checkpoint, trust_pickle=config.trust_pickle)
    model = quantized(opened)
    if opened.normalize is None:
        raise ConfigError(
            f"{opened.source}: its normalisation of audio is not known "
            f"({'; '.join(opened.notes) or 'no file says'}): import it with --config"
        )
    settings = data_config(opened)
    data = config.data or settings.valid
    if not data:
        raise ConfigError(f"{config.model} has no validation set of its own: name shards (--data)")
    index, find = (
        open_index(data, "--data" if config.data else "data.valid"),
        labeller(config.phones),
    )
    index.check_shard_sizes()
    folder = made(Path(config.output) if config.output else _folder(config.model, data), "--output")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    counts = CodeCounts(
        num_codebooks=model.config.num_codebooks, num_entries=model.config.num_codebook_entries
    )
    listener = Listener(
        model=model.to(device),
        normalized=opened.normalize,
        device=device,
        find=find,
        fold=config.fold,
        counts=counts,
    )
    limits = {"retries": settings.read_retries, "timeout_s": settings.read_timeout_s}
    reader = ShardReader(index, **limits)  # type: ignore[arg-type]
    for i in _shown(index):
        listener.add(reader, i)
    _check(listener, config.max_without, data)
    about = {"checkpoint": str(opened.source), "data": data, "phones": config.phones or "shards"}
    return {"folder": str(folder), **_write(folder, about | {"fold": config.fold}, listener)}


def _folder(model: str, data: str) -> Path:
    if not is_run(Path(model)):
        raise ConfigError(
            f"{model} is no run folder: say with --output where its results are to go"
        )
    return Path(model) / "codes" / "+".join(Path(name).resolve().name for name in data.split(","))


def _shown(index: ShardIndex) -> Iterator[int]:
    """Every utterance, with a bar of the audio that is done."""
    lengths = [int(n) / SAMPLE_RATE for n in index.num_samples]
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("counting codes", total=sum(lengths))
        for i, seconds in enumerate(lengths):
            yield i
            bar.advance(task, seconds)


def _check(listener: Listener, max_without: float, data: str) -> None:
    """Raise ConfigError where too little can be said of phones."""
    total, few = listener.num_heard, len(listener.without)
    if not total:
        why = most_frequent(listener.skipped) if listener.skipped else "there are none"
        raise ConfigError(f"no utterance of {data} can be heard: {why}")
    if few > max_without * total or few == total:
        raise ConfigError(
            f"{few} of {total} utterances of {data} have no phones that can be used "
            f"({most_frequent(listener.without)}), more than --max-without "
            f"{max_without:g}: TIMIT's shards hold them where shards/build.py made "
            f"them since they have phone_spans; of others give --phones ({FORMS})"
        )
    if not listener.counts.with_phone:
        raise ConfigError(f"no frame of {data} is of a phone: are the times those of its audio?")


def _write(folder: Path, about: dict[str, Any], listener: Listener) -> dict[str, Any]:
    """The files, each whole or not there, codes.json last; returns what it says."""
    counts = listener.counts
    phones = [*counts.phones]
    ids, table = counts.table()
    columns, rows = by_likeliest(table, phones)
    names = [phones[p] for p in columns]
    ordered = table[rows][:, columns]
    codes = counts.split(ids[rows])
    result = {**about, **_numbers(listener), "phones": _per_phone(names, ordered)}
    with atomic(folder / "counts.npz") as file:
        np.savez_compressed(file, codes=codes, counts=ordered, phones=np.array(names))
    write_whole(folder / "codes.svg", picture(ordered, names))
    with atomic(folder / "codes.json") as file:
        file.write(json.dumps(result, ensure_ascii=False, indent=1).encode())
    return result


def _numbers(listener: Listener) -> dict[str, Any]:
    """What is measured of the codes."""
    counts, frames = listener.counts, listener.counts.frames
    usage = counts.usage()
    of = ["combinations", *(f"codebook {g}" for g in range(counts.num_codebooks))]
    total = sum(frames.values())
    share = np.array([*frames.values()]) / total
    entropies = [bits(use / total) for use in usage]
    without, skipped = listener.without, listener.skipped
    return {
        "num_frames": total,
        "num_frames_labelled": sum(counts.with_phone.values()),
        "num_frames_deleted": counts.num_deleted,
        "num_frames_unlabelled": counts.num_unlabelled,
        "num_phones_overlapping": counts.num_overlapping,
        "num_frames_of_utterances_without_phones": counts.num_frames_without,
        "num_without_phones": len(without),
        "why_without": most_frequent(without) if without else "",
        "num_skipped": len(skipped),
        "why_skipped": most_frequent(skipped) if skipped else "",
        "num_codebooks": counts.num_codebooks,
        "num_codebook_entries": counts.num_entries,
        "entries_in_use": [int((use > 0).sum()) for use in usage],
        "combinations_in_use": len(frames),
        "combinations_of_one_frame": sum(n == 1 for n in frames.values()),
        "code_perplexity": round(sum(2**h for h in entropies), 4),  # as metrics.jsonl's: summed
        "entropies": [round(h, 4) for h in entropies],  # of each codebook, in bits
        "entropy_of_combinations": round(bits(share), 4),
        "with_phones": _named(of, counts, counts.with_phone),
        "with_speakers": _named(of, counts, counts.with_speaker) if counts.with_speaker else {},
    }


def _named(of: list[str], counts: CodeCounts, what: Counter[tuple[int, int]]) -> dict[str, Any]:
    rows = []
    for found, chance in counts.agreements(what):
        row: dict[str, Any] = {k: round(v, 6) for k, v in asdict(found).items()}
        rows.append(row | {"chance": {k: round(getattr(chance, k), 6) for k in OF_CHANCE}})
    return dict(zip(of, rows, strict=True))


def _per_phone(names: list[str], ordered: Ints) -> list[dict[str, Any]]:
    """Of each phone: its frames, the codes that it is the likeliest of, and how sure they are."""
    best = ordered.argmax(1)
    out = []
    for p, name in enumerate(names):
        own = ordered[best == p]
        frames = int(own.sum())
        row = {"phone": name, "num_frames": int(ordered[:, p].sum()), "num_codes": len(own)}
        out.append(row | {"purity": round(float(own[:, p].sum()) / frames, 6) if frames else 0.0})
    return out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist codes` takes."""
    model_arguments(parser)
    add = parser.add_argument
    add("--data", metavar="SHARDS", help="folders of shards (default: the run's data.valid)")
    add("--phones", metavar="PATH", help=f"where the times of phones are: {FORMS} (default: in the "
        "shards, as TIMIT's have them)")  # fmt: skip
    add("--fold", choices=["61", "48", "39", "none"], default="39",
        help="TIMIT's symbols to so many; none: any phones, as they are (default 39)")  # fmt: skip
    add("--max-without", type=float, default=MAX_WITHOUT, metavar="SHARE",
        help="of the utterances, that may lack phones (default 0.1)")  # fmt: skip
    add("--output", metavar="DIR", help="where the results go (default: RUN/codes/NAME)")


def run(args: argparse.Namespace) -> None:
    """Count which codes of a pre-trained model's quantizer stand with which phones: P(phone | code)
    as the paper draws it, codes in use, perplexity, purity against phones and speakers. A folder
    gets codes.json, counts.npz and the picture codes.svg; the report shows those of a run.

    example:
      w2v2dist codes runs/large_lv60k --data data/timit_train
      w2v2dist codes runs/base_ls960 --data data/dev_clean --phones alignments/dev_clean --fold none
    """
    config = CodesConfig(
        model=args.model,
        data=args.data,
        phones=args.phones,
        fold=args.fold,
        max_without=args.max_without,
        output=args.output,
        checkpoint=args.checkpoint,
        trust_pickle=args.trust_pickle,
    )
    _say(count_codes(config))


def _say(result: dict[str, Any]) -> None:
    def say(text: str) -> None:
        console.print(text, markup=False)

    entries, total = result["num_codebook_entries"], result["num_frames"]
    used = " + ".join(f"{n}" for n in result["entries_in_use"])
    say(
        f"{total:,} frames, {result['num_frames_labelled']:,} of them of a phone   "
        f"entries in use {used} of {entries} each, combinations "
        f"{result['combinations_in_use']:,} ({result['combinations_of_one_frame']:,} once)   "
        f"code perplexity {result['code_perplexity']:.1f}   entropy "
        f"{' + '.join(f'{h:.2f}' for h in result['entropies'])} bits, of combinations "
        f"{result['entropy_of_combinations']:.2f}"
    )
    for what, title in (("with_phones", "phones"), ("with_speakers", "speakers")):
        for of, a in result[what].items():
            say(
                f"{title:>9}, {of:<13} purity {100 * a['purity']:.1f} % (by chance "
                f"{100 * a['chance']['purity']:.1f} %, of one code {100 * a['most_frequent']:.1f} "
                f"%)   cluster purity {100 * a['cluster_purity']:.1f} %   normalised mutual "
                f"information {a['normalized']:.3f} (by chance {a['chance']['normalized']:.3f})"
            )
    each = result["num_frames_labelled"] / result["with_phones"]["combinations"]["num_codes"]
    if each < FEW_FRAMES:
        say(
            f"note: with {each:.1f} frames a combination its purity is in part of chance: codes "
            "that are seen once are pure. Take more data, and compare on the same only"
        )
    if overlapping := result["num_phones_overlapping"]:
        say(
            f"{overlapping} phones begin before an earlier one has ended: a frame of both is of "
            "the one that has more of it"
        )
    for count, why in (("num_without_phones", "why_without"), ("num_skipped", "why_skipped")):
        if result[count]:
            say(f"{result[count]} utterances {count[4:].replace('_', ' ')}: {result[why]}")
    say(f"wrote {os.path.join(result['folder'], 'codes.svg')}")
