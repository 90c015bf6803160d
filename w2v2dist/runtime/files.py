"""Text files that appear under their names whole or not at all, and whether they can."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all. Characters that no encoding has become `?`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def in_the_way(folder: Path, key: str) -> str:
    """Why a folder that an option or a key names cannot be made: a file is in its place, or above
    it; "" where none is."""
    there = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), None)
    if there is None or there.is_dir():
        return ""
    return f"{key} needs the folder {folder}, but {there} is a file: choose another {key}"


def unwritable(path: Path) -> str:
    """Why a file cannot be written there; "" where it can. It is asked before hours of work."""
    if path.is_dir():
        return f"{path} is a folder: name a file in it"
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir():
        return f"{path} cannot be written, because {folder} is no folder: name another place"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{path} cannot be written: you have no right to write to {folder}, or nobody can"
    return ""
