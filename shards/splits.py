"""The named sets of known corpora: where a download has them, and what was published of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import yaml

from shards import timit
from shards.recordings import Recording

PUBLISHED = Path(__file__).with_name("published.yaml")
# What an archive unpacks to: --input may be the folder that it is in
HERE = "."
ARCHIVES = ("", "LibriSpeech", "librispeech_finetuning")


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What is known of a complete set; None: nothing was published."""

    utterances: int | None = None
    utterances_within: int = 0
    hours: float | None = None
    hours_within: float = 0.0  # a share of `hours`
    speakers: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A published set: the reader and the folders of it (HERE: the input itself).

    `chapters`: SPEAKER-CHAPTER -> utterances, numbered from 0, of which it is made or has at least.
    `leave_out`: why a recording there is not of it, None of one that is. `missing`: what its own
    list has beyond these recordings, a line each.
    """

    name: str
    layout: str
    folders: tuple[str, ...]
    published: Published
    transcribed: bool = True
    leave_out: Callable[[Recording], str | None] | None = None
    missing: Callable[[Sequence[Recording]], list[str]] | None = None
    chapters: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a corpus on the disk: `root`, the --input; the folders below it that are there, and
    the names of those that are not."""

    part: Part
    root: Path
    folders: tuple[Path, ...]
    missing: tuple[str, ...]


SHORTHANDS = {
    "train-100": ("train-clean-100",),
    "train-460": ("train-clean-100", "train-clean-360"),
    "train-960": ("train-clean-100", "train-clean-360", "train-other-500"),
    "10min": ("10min-0",),  # as torchaudio and the papers after wav2vec 2.0 take it
    "unlab-600": ("small",),
    "unlab-6k": ("small", "medium"),
    "unlab-60k": ("small", "medium", "large"),
}


@cache
def parts() -> dict[str, Part]:
    """All sets by name."""
    content = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    within = {"hours_within": content["hours_within"]}
    known = {name: Published(**within | fields) for name, fields in content["sets"].items()}
    hour = content["limited_1h"]
    folds = tuple(f"1h/{fold}" for fold in range(6))
    found = [
        Part(name=name, layout="librispeech", folders=(name,), published=known[name])
        for name in known
        if name.startswith(("train-", "dev-", "test-"))
    ]
    limited: list[tuple[str, tuple[str, ...], Published]]
    limited = [(f"10min-{k}", (folds[k],), known["10min"]) for k in range(len(folds))]
    limited += [("1h", folds, known["1h"]), ("10h", (*folds, "9h"), known["10h"])]
    found += [
        Part(name=name, layout="librispeech", folders=folders, published=published, chapters=hour)
        for name, folders, published in limited
    ]
    found += [
        Part(
            name=name,
            layout="librilight",
            folders=(name,),
            published=known[name],
            transcribed=False,
        )
        for name in ("small", "medium", "large")
    ]
    found += [
        Part(
            name=name,
            layout="timit",
            folders=(HERE,),
            published=Published(**timit.published(name)),
            leave_out=partial(timit.leave_out, name),
            missing=partial(timit.missing, name),
        )
        for name in timit.splits()
    ]
    return {part.name: part for part in found}


def chosen(names: Sequence[str], layout: str) -> list[Part]:
    """The sets that --split names, each once. Raises ValueError."""
    known = parts()
    found: dict[str, Part] = {}
    for name in names:
        for part in SHORTHANDS.get(name, (name,)):
            if part not in known:
                raise ValueError(
                    f"--split {name} is no set that is known: name some of "
                    f"{', '.join([*known, *SHORTHANDS])}, or leave --split out and give its folder"
                )
            if layout not in ("auto", known[part].layout):
                raise ValueError(
                    f"--split {name} is of layout {known[part].layout} but --layout is {layout}: "
                    "leave --layout out"
                )
            found[part] = known[part]
    return list(found.values())


def placed(part: Part, inputs: Sequence[Path]) -> list[Place]:
    """Where the inputs have a part. Raises ValueError where none has."""
    found = []
    for root in inputs:
        itself = part.folders in ((HERE,), (root.resolve().name,))
        if itself and root.is_dir():
            found.append(Place(part, root, (root,), ()))
            continue
        for archive in ARCHIVES:
            there = {folder: root / archive / folder for folder in part.folders}
            missing = tuple(name for name, folder in there.items() if not folder.is_dir())
            if len(missing) < len(there):
                have = tuple(folder for name, folder in there.items() if name not in missing)
                found.append(Place(part, root, have, missing))
    if not found:
        looked = ", ".join(map(str, inputs))
        if part.folders == (HERE,):
            raise ValueError(
                f"--split {part.name} is of a folder, and {looked} is none: give --input the "
                "folder of the corpus, as it is unpacked"
            )
        raise ValueError(
            f"--split {part.name} is not in {looked}: give --input the folder that has "
            f"{part.folders[0]}/ in it, as the corpus is unpacked"
        )
    return found
