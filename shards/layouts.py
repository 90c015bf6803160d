"""Find recordings and their labels in the layouts in which speech corpora come."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shards.completeness import Found, refuse_twice
from shards.manifests import find_table, manifest
from shards.recordings import (
    AUDIO,
    Problem,
    Recording,
    Remarks,
    audio_files,
    lines_of,
    read_text,
    walk,
)
from shards.splits import Part, Place, placed
from w2v2dist.data.text import clean_text

LAYOUTS = (
    "auto", "folder", "librispeech", "librilight", "timit", "manifest", "commonvoice", "nemo",
    "voxpopuli", "mls", "libritts",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scan:
    """All recordings of the inputs, what is wrong with them, and the layout of each input."""

    recordings: list[Recording]
    problems: list[Problem]
    layouts: list[str]
    notes: list[str]
    sets: list[Found]  # of --split


def scan(
    inputs: Sequence[Path], layout: str, clean: bool = False, parts: Sequence[Part] = ()
) -> Scan:
    """Look through `inputs`, or where they have `parts`. The order is that of a hash of the key, so
    that every shard is a fair sample of the corpus. Raises ValueError where an input is missing or
    holds no audio."""
    for root in inputs:
        if not root.exists():
            raise ValueError(f"--input {root} does not exist: name a folder of recordings")
        if root.is_file() and root.suffix.lower() in AUDIO:
            raise ValueError(
                f"--input {root} is one recording: give the folder that it is in, or a manifest "
                "that names it"
            )
    remarks = Remarks()
    sets: list[Found] = []
    if parts:
        layouts = [", ".join(part.name for part in parts)] * len(inputs)
        sets = [_found([_read(place) for place in placed(part, inputs)]) for part in parts]
        refuse_twice(sets)
        remarks.problems.extend(problem for one in sets for problem in one.problems)
        found = [replace(r, key=f"0/{r.key}") for one in sets for r in one.recordings]
    else:
        layouts = [detect(root) if layout == "auto" else layout for root in inputs]
        found = []
        for number, (root, name) in enumerate(zip(inputs, layouts, strict=True)):
            here = list(READERS[name](root, remarks))
            if not here:
                raise ValueError(_nothing_found(root, name, remarks))
            found += [replace(r, key=f"{number}/{r.key}") for r in here]
    recordings = _unique_keys(found)
    if clean:
        recordings = [replace(r, text=r.text and clean_text(r.text)) for r in recordings]
    recordings.sort(key=lambda r: (hashlib.sha256(r.key.encode()).digest(), r.key))
    return Scan(recordings, remarks.problems, layouts, remarks.notes, sets)


def _read(place: Place) -> Found:
    """The recordings of a set in an input; their sources are relative to that."""
    found = Found(places=[place], recordings=[])
    for folder in place.folders:
        remarks = Remarks()
        inside = "" if folder == place.root else f"{folder.relative_to(place.root).as_posix()}/"
        for r in READERS[place.part.layout](folder, remarks):
            why = place.part.leave_out(r) if place.part.leave_out else None
            if why is None:
                found.recordings.append(replace(r, source=inside + r.source))
            else:
                found.left_out[why] += 1
        found.problems += [Problem(inside + p.source, p.reason) for p in remarks.problems]
    return found


def _found(places: Sequence[Found]) -> Found:
    """A set that lies in several inputs. Raises ValueError where none has any of it."""
    left_out: Counter[str] = sum((one.left_out for one in places), Counter())
    if not any(one.recordings for one in places):
        there = "; ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        raise ValueError(
            f"--split {places[0].name}, a set of layout {places[0].places[0].part.layout}: "
            f"{places[0].places[0].folders[0]} holds no audio of it"
            + (f" (but {there})" if there else "")
        )
    return Found(
        left_out=left_out,
        places=[place for one in places for place in one.places],
        recordings=[r for one in places for r in one.recordings],
        problems=[p for one in places for p in one.problems],
    )


def detect(root: Path) -> str:
    """The layout of an input, from its file names."""
    if root.is_file() or find_table(root) is not None:
        return "manifest"
    names = [name for _, name in walk(root)]
    lower = {name.lower() for name in names}
    stems = [Path(n).stem for n in names if Path(n).suffix.lower() in AUDIO]
    if any(name.endswith(".phn") for name in lower):
        return "timit"
    if any(name.endswith(".normalized.txt") for name in lower):
        return "libritts"
    if "transcripts.txt" in lower and (root / "audio").is_dir():
        return "mls"
    if stems and all(re.fullmatch(r"\d+-\d+-\d+", stem) for stem in stems):
        return "librispeech"
    if stems and all(f"{stem}.json".lower() in lower for stem in stems):
        return "librilight"
    return "folder"


def _nothing_found(root: Path, layout: str, remarks: Remarks) -> str:
    left_out = f"; of {len(remarks.problems)} left out the first is " if remarks.problems else ""
    left_out += ": ".join(remarks.problems[0]) if remarks.problems else ""
    if root.is_file():
        return f"the manifest {root} lists no recordings{left_out}"
    kinds = Counter(Path(name).suffix or "no suffix" for _, name in walk(root)).most_common(3)
    seen = ", ".join(f"{count} × {kind}" for kind, count in kinds) or "nothing"
    return (
        f"--input {root} holds no audio in layout {layout} (found {seen}{left_out}): name a folder "
        "with audio files such as .flac, .wav, .mp3 or .ogg, or another --layout"
    )


def _recording(root: Path, path: Path, key: str | None = None) -> Recording:
    source = path.relative_to(root).as_posix()
    key = source.removesuffix(path.suffix) if key is None else key
    return Recording(key=key, path=str(path), source=source, num_bytes=path.stat().st_size)


def _folder(root: Path, remarks: Remarks, corpus: bool = False) -> Iterator[Recording]:
    """Any folder: text from STEM.txt beside the audio, or from *.trans.txt with lines `STEM TEXT`.

    `corpus`: LibriSpeech, whose file names SPEAKER-CHAPTER-NUMBER tell the speaker and are unique.
    """
    audio = audio_files(root, remarks)
    texts: dict[tuple[Path, str], tuple[Path, str]] = {}
    for folder, name in walk(root):
        path = folder / name
        if name.endswith(".trans.txt"):
            for line in lines_of(read_text(path, root, remarks)):
                stem, _, text = line.strip().partition(" ")
                if stem:
                    texts[folder, stem] = (path, text.strip())
        elif name.endswith(".txt") and not corpus:
            texts[folder, path.stem] = (
                path,
                "",
            )  # read when its audio turns up: it may be a README
    used = set()
    for path in audio:
        used.add((path.parent, path.stem))
        transcript, text = texts.get((path.parent, path.stem), (None, ""))
        if transcript is not None and not transcript.name.endswith(".trans.txt"):
            text = " ".join(read_text(transcript, root, remarks).split())
        recording = _recording(root, path, path.stem if corpus else None)
        speaker = path.stem.split("-")[0] if corpus and "-" in path.stem else None
        yield replace(recording, text=text or None, speaker=speaker)
    folders = {path.parent for path in audio}
    other = re.compile("readme|license|licence|copying", re.IGNORECASE)
    for folder, stem in sorted(texts.keys() - used):
        path = texts[folder, stem][0]
        in_list = path.name.endswith(".trans.txt")
        if in_list or (folder in folders and not other.match(stem)):
            where = path.relative_to(root).as_posix() + (f": {stem}" if in_list else "")
            remarks.problems.append(Problem(where, "text without audio"))


def _librispeech(root: Path, remarks: Remarks) -> Iterator[Recording]:
    """SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac with SPEAKER-CHAPTER.trans.txt."""
    return _folder(root, remarks, corpus=True)


def _librilight(root: Path, remarks: Remarks) -> Iterator[Recording]:
    """SPLIT/SPEAKER/BOOK/NAME.flac with NAME.json (speaker, voice activity to cut by)."""
    for path in audio_files(root, remarks):
        speaker = path.parent.parent.name
        meta = path.with_suffix(".json")
        if meta.exists():
            try:
                speaker = str(json.loads(read_text(meta, root, remarks)).get("speaker", speaker))
            except (ValueError, AttributeError):
                where = meta.relative_to(root).as_posix()
                remarks.problems.append(Problem(where, "metadata is not a JSON object"))
        yield replace(_recording(root, path), speaker=speaker)


def _timit(root: Path, remarks: Remarks) -> Iterator[Recording]:
    """DRn/SPEAKER/NAME.WAV (or drn-SPEAKER/NAME.flac) with NAME.PHN, .WRD and .TXT, in any case."""
    heard = set()
    for path in audio_files(root, remarks):
        stem = path.name.partition(".")[0]
        if (path.parent, stem.lower()) in heard:  # SA1.WAV.wav: a converted copy of SA1.WAV
            continue
        heard.add((path.parent, stem.lower()))
        beside = {p.name.lower(): p for p in path.parent.glob(f"{stem}.*")}
        rows = {
            kind: [
                row
                for line in lines_of(read_text(file, root, remarks))
                if len(row := line.split(maxsplit=2)) == 3
            ]
            for kind in ("phn", "wrd", "txt")
            if (file := beside.get(f"{stem.lower()}.{kind}")) is not None
        }
        labels = {kind: [row[2].strip() for row in rows[kind]] for kind in rows}
        text = clean_text(" ".join(labels.get("txt") or labels.get("wrd") or []))
        region = path.parent.name.lower()
        if "-" not in region:
            region = f"{path.parent.parent.name.lower()}-{region}"
        recording = _recording(root, path, f"{region}-{stem.lower()}")
        phones = " ".join(labels.get("phn", []))
        yield replace(
            recording,
            text=text or None,
            speaker=region.rpartition("-")[2],
            phones=phones or None,
            phone_spans=_spans(rows.get("phn", [])),
        )
    for folder, name in walk(root):
        if name.lower().endswith(".phn") and (folder, Path(name).stem.lower()) not in heard:
            where = (folder / name).relative_to(root).as_posix()
            remarks.problems.append(Problem(where, "text without audio"))


def _spans(rows: list[list[str]]) -> tuple[tuple[int, int], ...] | None:
    """First and last + 1 sample of each phone; None where a row says none."""
    if not rows or not all(a.isdecimal() and b.isdecimal() for a, b, _ in rows):
        return None
    return tuple((int(a), int(b)) for a, b, _ in rows)


def _mls(root: Path, remarks: Remarks) -> Iterator[Recording]:
    """audio/SPEAKER/BOOK/SPEAKER_BOOK_NUMBER.flac; transcripts.txt with lines `NAME<TAB>TEXT`."""
    texts = dict(
        line.split("\t", 1)
        for path in sorted(root.glob("**/transcripts.txt"))
        for line in lines_of(read_text(path, root, remarks))
        if "\t" in line
    )
    for path in audio_files(root, remarks):
        text, speaker = texts.pop(path.stem, None), path.stem.split("_")[0]
        yield replace(_recording(root, path, path.stem), text=text or None, speaker=speaker)
    for stem in sorted(texts):
        remarks.leave_out(root / "transcripts.txt", root, f"text without audio: {stem}")


def _libritts(root: Path, remarks: Remarks) -> Iterator[Recording]:
    """SPEAKER/CHAPTER/NAME.wav with NAME.normalized.txt (else NAME.original.txt)."""
    for path in audio_files(root, remarks):
        beside = (path.with_name(f"{path.stem}.{kind}.txt") for kind in ("normalized", "original"))
        texts = [read_text(file, root, remarks) for file in beside if file.is_file()]
        text, speaker = " ".join(texts[0].split()) if texts else "", path.stem.split("_")[0]
        yield replace(_recording(root, path), text=text or None, speaker=speaker)


READERS: dict[str, Callable[[Path, Remarks], Iterator[Recording]]] = {
    "folder": _folder,
    "librispeech": _librispeech,
    "librilight": _librilight,
    "timit": _timit,
    "mls": _mls,
    "libritts": _libritts,
    **dict.fromkeys(("manifest", "commonvoice", "nemo", "voxpopuli"), manifest),
}


def _unique_keys(found: list[Recording]) -> list[Recording]:
    """Keys that any tar and any webdataset reader takes: ASCII, no dot, no slash, at most 80 long.

    Names that become equal (a.wav and a.flac) get a hash of where they come from.
    """
    plain = [re.sub(r"[^A-Za-z0-9_-]+", "_", r.key.partition("/")[2]).strip("_") for r in found]
    count = Counter(plain)
    recordings = []
    for recording, key in zip(found, plain, strict=True):
        if count[key] > 1 or not 0 < len(key) <= 80:
            origin = recording.key.partition("/")[0] + "/" + recording.source
            if recording.offset is not None:  # one of several segments
                origin = recording.key
            key = f"{key[:70]}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}"
        recordings.append(replace(recording, key=key))
    return recordings
