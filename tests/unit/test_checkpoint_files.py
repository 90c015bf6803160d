"""What of a checkpoint is checked when it is read, and which are kept."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from w2v2dist import checkpoint
from w2v2dist.checkpoint import CheckpointError, read_parameters

VALUES = {"weight": torch.arange(3_000.0), "bias": torch.ones(7)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint.write_parameters(tmp_path, VALUES, {"version": "1"})


def test_every_flipped_bit_is_found_and_the_file_named(folder: Path) -> None:
    assert all(torch.equal(read_parameters(folder)[n], v) for n, v in VALUES.items())
    command = ["sha256sum", "--check", "--strict", checkpoint.SUMS]  # anyone can
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=20)
    files = [path for path in folder.iterdir() if path.name != checkpoint.SUMS]
    assert len(files) >= 3
    for path in files:
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=path.name):
                read_parameters(folder)
        path.write_bytes(whole)
    sums = folder / checkpoint.SUMS
    whole = sums.read_bytes()
    for position in (3, 63, 67):  # of a digest, of a name
        damaged = bytearray(whole)
        damaged[position] ^= 0x80  # no text any more
        sums.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_parameters(folder)
    sums.write_bytes(b"")
    with pytest.raises(CheckpointError):
        read_parameters(folder)


def test_the_shares_of_all_processes_are_the_whole(folder: Path) -> None:
    data = next(folder.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-1])
    for world_size in (1, 2, 3, 5, 8):
        found = []
        for rank in range(world_size):
            try:
                checkpoint.folders.verify(folder, rank, world_size)
            except CheckpointError as error:
                found.append(str(error))
        assert len(found) == 1
        assert data.name in found[0]


def test_a_checkpoint_of_an_older_version_has_no_checksums_and_is_read(folder: Path) -> None:
    (folder / checkpoint.SUMS).unlink()
    assert torch.equal(read_parameters(folder)["weight"], VALUES["weight"])


def test_milestones_are_kept_besides_the_newest_and_what_links_name(tmp_path: Path) -> None:
    for step in range(5, 65, 5):
        (tmp_path / f"step_{step:08d}").mkdir()
    checkpoint.point(tmp_path, "latest", tmp_path / "step_00000060")
    checkpoint.point(tmp_path, "best", tmp_path / "step_00000015")

    def steps() -> list[int]:
        return sorted(int(path.name[5:]) for path in checkpoint.candidates(tmp_path))

    checkpoint.folders.prune(tmp_path, 2, 20)
    assert steps() == [15, 20, 40, 55, 60]
    checkpoint.folders.prune(tmp_path, 2)
    assert steps() == [15, 55, 60]
