"""Find recordings and their labels in the layouts in which speech corpora come."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from w2v2dist.data.text import clean_text

LAYOUTS = ("auto", "folder", "librispeech", "librilight", "timit", "manifest")
# What libsndfile reads, then what people have and it does not read: those are named as unreadable.
READABLE = "flac wav mp3 ogg oga opus aif aiff aifc au snd caf w64 rf64 sph nist"
UNREADABLE = "m4a mp4 aac wma amr webm"
AUDIO = {f".{suffix}" for suffix in f"{READABLE} {UNREADABLE}".split()}
MANIFESTS = ("manifest.tsv", "manifest.jsonl")


@dataclass(frozen=True, slots=True)
class Recording:
    """One audio file and its labels; `source`: its path in the input, `key`: its name in a tar."""

    key: str
    path: str
    source: str
    num_bytes: int
    text: str | None = None
    speaker: str | None = None
    phones: str | None = None


class Problem(NamedTuple):
    """Something that was left out, and why."""

    source: str
    reason: str


def scan(
    inputs: Sequence[Path], layout: str, clean: bool = False
) -> tuple[list[Recording], list[Problem], list[str]]:
    """All recordings of `inputs`, what is wrong with their labels, and the layout of each input.

    The order is that of a hash of the key, so that every shard is a fair sample of the corpus.
    Raises ValueError where an input is missing or holds no audio.
    """
    found: list[Recording] = []
    problems: list[Problem] = []
    layouts = []
    for number, root in enumerate(inputs):
        if not root.exists():
            raise ValueError(f"--input {root} does not exist: name a folder of recordings")
        name = detect(root) if layout == "auto" else layout
        layouts.append(name)
        here = list(READERS[name](root, problems))
        if not here:
            raise ValueError(_nothing_found(root, name))
        found += [replace(r, key=f"{number}/{r.key}") for r in here]
    recordings = _unique_keys(found)
    if clean:
        recordings = [replace(r, text=r.text and clean_text(r.text)) for r in recordings]
    recordings.sort(key=lambda r: (hashlib.sha256(r.key.encode()).digest(), r.key))
    return recordings, problems, layouts


def detect(root: Path) -> str:
    """The layout of an input, from its file names."""
    if root.is_file() or any((root / name).is_file() for name in MANIFESTS):
        return "manifest"
    names = [name for _, name in _walk(root)]
    lower = {name.lower() for name in names}
    stems = [Path(n).stem for n in names if Path(n).suffix.lower() in AUDIO]
    if any(name.endswith(".phn") for name in lower):
        return "timit"
    if stems and all(re.fullmatch(r"\d+-\d+-\d+", stem) for stem in stems):
        return "librispeech"
    if stems and all(f"{stem}.json".lower() in lower for stem in stems):
        return "librilight"
    return "folder"


def _nothing_found(root: Path, layout: str) -> str:
    if root.is_file():
        return f"the manifest {root} lists no recordings"
    kinds = Counter(Path(name).suffix or "no suffix" for _, name in _walk(root)).most_common(3)
    seen = ", ".join(f"{count} × {kind}" for kind, count in kinds) or "nothing"
    return (
        f"--input {root} holds no audio in layout {layout} (found {seen}): name a folder with "
        "audio files such as .flac, .wav, .mp3 or .ogg, or another --layout"
    )


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """(folder, name) of every file that is not hidden, in order; follows links, no circles."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from ((Path(folder), name) for name in sorted(names) if not name.startswith("."))


def _audio(root: Path) -> list[Path]:
    return [f / name for f, name in _walk(root) if Path(name).suffix.lower() in AUDIO]


def _recording(root: Path, path: Path, key: str | None = None) -> Recording:
    source = path.relative_to(root).as_posix()
    key = source.removesuffix(path.suffix) if key is None else key
    return Recording(key=key, path=str(path), source=source, num_bytes=path.stat().st_size)


def _read(path: Path, root: Path, problems: list[Problem]) -> str:
    """The content of a text file; "" and a problem where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        problems.append(Problem(path.relative_to(root).as_posix(), "text is not UTF-8"))
        return ""


def _folder(root: Path, problems: list[Problem], corpus: bool = False) -> Iterator[Recording]:
    """Any folder: text from STEM.txt beside the audio, or from *.trans.txt with lines `STEM TEXT`.

    `corpus`: LibriSpeech, whose file names SPEAKER-CHAPTER-NUMBER tell the speaker and are unique.
    """
    audio = _audio(root)
    texts: dict[tuple[Path, str], tuple[Path, str]] = {}
    for folder, name in _walk(root):
        path = folder / name
        if name.endswith(".trans.txt"):
            for line in _read(path, root, problems).splitlines():
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
            text = " ".join(_read(transcript, root, problems).split())
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
            problems.append(Problem(where, "text without audio"))


def _librispeech(root: Path, problems: list[Problem]) -> Iterator[Recording]:
    """SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac with SPEAKER-CHAPTER.trans.txt."""
    return _folder(root, problems, corpus=True)


def _librilight(root: Path, problems: list[Problem]) -> Iterator[Recording]:
    """SPLIT/SPEAKER/BOOK/NAME.flac with NAME.json (speaker, voice activity to cut by)."""
    for path in _audio(root):
        speaker = path.parent.parent.name
        meta = path.with_suffix(".json")
        if meta.exists():
            try:
                speaker = str(json.loads(_read(meta, root, problems)).get("speaker", speaker))
            except (ValueError, AttributeError):
                where = meta.relative_to(root).as_posix()
                problems.append(Problem(where, "metadata is not a JSON object"))
        yield replace(_recording(root, path), speaker=speaker)


def _timit(root: Path, problems: list[Problem]) -> Iterator[Recording]:
    """DRn/SPEAKER/NAME.WAV (or drn-SPEAKER/NAME.flac) with NAME.PHN, .WRD and .TXT, in any case."""
    heard = set()
    for path in _audio(root):
        stem = path.name.partition(".")[0]
        if (path.parent, stem.lower()) in heard:  # SA1.WAV.wav: a converted copy of SA1.WAV
            continue
        heard.add((path.parent, stem.lower()))
        beside = {p.name.lower(): p for p in path.parent.glob(f"{stem}.*")}
        labels = {
            kind: [
                line.split(maxsplit=2)[2]
                for line in _read(file, root, problems).splitlines()
                if len(line.split(maxsplit=2)) == 3
            ]
            for kind in ("phn", "wrd", "txt")
            if (file := beside.get(f"{stem.lower()}.{kind}")) is not None
        }
        text = clean_text(" ".join(labels.get("txt") or labels.get("wrd") or []))
        region = path.parent.name.lower()
        if "-" not in region:
            region = f"{path.parent.parent.name.lower()}-{region}"
        recording = _recording(root, path, f"{region}-{stem.lower()}")
        phones = " ".join(labels.get("phn", []))
        speaker = region.rpartition("-")[2]
        yield replace(recording, text=text or None, speaker=speaker, phones=phones or None)
    for folder, name in _walk(root):
        if name.lower().endswith(".phn") and (folder, Path(name).stem.lower()) not in heard:
            where = (folder / name).relative_to(root).as_posix()
            problems.append(Problem(where, "text without audio"))


def _manifest(root: Path, problems: list[Problem]) -> Iterator[Recording]:
    """A TSV with a header, or JSON lines: path (from the table's folder), text, speaker, phones."""
    if root.is_file():
        table = root
    else:
        table = next((root / n for n in MANIFESTS if (root / n).is_file()), root / MANIFESTS[0])
    if not table.is_file():
        raise ValueError(
            f"--input {root} has no manifest.tsv or manifest.jsonl: name the file itself"
        )
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    try:
        if table.suffix == ".jsonl":
            rows = [json.loads(line) for line in lines if line.strip()]
        else:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        paths = [Path(row["path"]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"manifest {table} cannot be read ({type(error).__name__}: {error}): it must be a TSV "
            "file whose first line names the columns (path, text, speaker, phones; only path is "
            "required), or a .jsonl file of objects with these keys"
        ) from None
    for path, row in zip(paths, rows, strict=True):
        labels = {
            k: str(row[k]) for k in ("text", "speaker", "phones") if row.get(k) not in (None, "")
        }
        where = table.parent / path  # an absolute path stays
        if not where.is_file():
            problems.append(Problem(path.as_posix(), "text without audio: the file does not exist"))
            continue
        yield Recording(
            key=path.as_posix().removesuffix(path.suffix),
            path=str(where),
            source=path.as_posix(),
            num_bytes=where.stat().st_size,
            **labels,
        )


READERS: dict[str, Callable[[Path, list[Problem]], Iterator[Recording]]] = {
    "folder": _folder,
    "librispeech": _librispeech,
    "librilight": _librilight,
    "timit": _timit,
    "manifest": _manifest,
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
            key = f"{key[:70]}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}"
        recordings.append(replace(recording, key=key))
    return recordings
