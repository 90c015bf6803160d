"""Fingerprints of what a recipe is given: corpora, and results in place of a stage's."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

# Their contents count, too: transcripts and tables are corrected, recordings get another length
TEXTS = (".txt", ".tsv", ".csv", ".jsonl", ".phn", ".wrd")
LARGEST = 1 << 20  # of a text that is read, and of the ends of a large file


def corpus_print(path: str | Path) -> str:
    """Tells a version of a corpus from others: names and sizes of its files, and what is in its
    texts; of a single file its size and its two ends. Where it lies does not count."""
    path = Path(path)
    digest = hashlib.sha256()
    for name, file in [("", path)] if path.is_file() else _files(path):
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        if file.suffix.lower() in TEXTS and size <= LARGEST:
            digest.update(file.read_bytes())
        elif not name:
            digest.update(_ends(file, size))
    return digest.hexdigest()[:16]


def is_empty(path: str | Path) -> bool:
    """Whether there is nothing to read: a folder without files, or a file without content. Raises
    OSError."""
    path = Path(path)
    return next(_files(path), None) is None if path.is_dir() else path.stat().st_size == 0


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file under a folder, links to folders followed, with its name there, in order. Raises
    OSError, also of a folder that may not be read: it is not the same as an empty one."""
    seen: set[str] = set()
    for above, folders, names in os.walk(folder, onerror=_raised, followlinks=True):
        real = os.path.realpath(above)
        folders[:] = [] if real in seen else sorted(n for n in folders if not n.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        for name in sorted(n for n in names if not n.startswith(".")):
            file = Path(above, name)
            if file.is_file():
                yield os.path.relpath(file, folder), file


def _raised(error: OSError) -> None:
    raise error


def _ends(file: Path, size: int) -> bytes:
    with file.open("rb") as opened:
        start = opened.read(LARGEST)
        opened.seek(max(0, size - LARGEST))
        return start + opened.read(LARGEST)


def given_print(path: str) -> str:
    """Tells a given result from others: a file's contents, a folder of shards' index, the name of a
    run's best checkpoint; of what is not here, such as an id of a hub, its name."""
    place = Path(path)
    index, checkpoints = place / "index.json", place / "checkpoints"
    if place.is_file():
        return corpus_print(place)
    if index.is_file():
        return hashlib.sha256(index.read_bytes()).hexdigest()[:16]
    links = [checkpoints / name for name in ("best", "latest")]
    said = [os.path.realpath(path) if place.exists() else path]
    said += (os.path.basename(os.path.realpath(p)) for p in links if p.exists())
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
