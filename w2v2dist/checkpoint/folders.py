"""Step folders: their names, links, checksums and meta.json, and which are kept."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from w2v2dist.checkpoint.together import CheckpointError

SUMS = "SHA256SUMS"  # of all other files of a checkpoint, as `sha256sum -c` reads it


def find(run_or_step: Path, which: str | None = "latest") -> Path:
    """The step folder itself, or the one that a run's `which` names (None: best, else latest)."""
    if (run_or_step / "meta.json").is_file():
        return run_or_step
    which = which or ("best" if (run_or_step / "checkpoints/best").exists() else "latest")
    link = run_or_step / "checkpoints" / which
    if not run_or_step.exists():
        raise CheckpointError(
            f"{run_or_step} does not exist: give a run folder, or one of its step folders"
        )
    if not link.exists():
        raise CheckpointError(
            f"{run_or_step} has no checkpoints/{which}: is it a run folder that has saved?"
        )
    return link.resolve()


def step_of(folder: Path) -> int:
    """The step that a step folder's name states."""
    return int(folder.name.removeprefix("step_"))


def candidates(root: Path) -> list[Path]:
    """Step folders, newest first."""
    return sorted(root.glob("step_*"), reverse=True)


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a step folder. Raises CheckpointError where the checkpoint is not complete."""
    for name in ("meta.json", ".metadata"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a complete checkpoint: {name} is missing")
    try:
        return dict(json.loads((folder / "meta.json").read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/meta.json is damaged: {error}") from None


def verify(folder: Path, rank: int = 0, world_size: int = 1) -> None:
    """Compare the `rank`-th of `world_size` shares of a checkpoint's files with its checksums.
    Raises CheckpointError. A checkpoint of an older version has none."""
    if not (folder / SUMS).exists():
        return
    text = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    sums = {line[66:]: line[:64] for line in text.splitlines()}
    files = {"meta.json", ".metadata", *(path.name for path in folder.glob("*.distcp"))}
    for name in sorted({*sums, *files})[rank::world_size]:
        try:
            if sha256(folder / name) != sums.get(name):
                raise CheckpointError(f"{folder / name} is damaged: {SUMS} has another checksum")
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}") from None


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    """SHA256SUMS of the files that `sums` has, and of meta.json."""
    sums = {**sums, "meta.json": sha256(folder / "meta.json")}
    write_durably(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def point(root: Path, name: str, target: Path) -> None:
    """Make the link `root/name` name the step folder `target`, in one atomic move."""
    temporary = root / f".{name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, root / name)
    sync_folder(root)


def prune(root: Path, keep_last: int, keep_every: int = 0) -> None:
    """Remove all but the newest `keep_last` step folders, never what `latest` or `best` name, nor
    those of a multiple of `keep_every` steps (0: none)."""
    named = {(root / link).resolve() for link in ("latest", "best") if (root / link).exists()}
    for folder in candidates(root)[keep_last:]:
        milestone = keep_every and step_of(folder) % keep_every == 0
        if folder.resolve() not in named and not milestone:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a step folder."""
    trash = folder.with_name(f".tmp-old-{folder.name}")  # a half-removed one never keeps its name
    os.replace(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
