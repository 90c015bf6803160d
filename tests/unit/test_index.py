"""The shard index: columns, keys, several folders, and files that do not fit together."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.data.audio import to_flac
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.index_writer import ShardEntry, atomic, index_shard, write_index
from w2v2dist.data.source import open_index

Utterance = tuple[str, int, str | None]  # key, samples, speaker


def write_tar(path: Path, utterances: list[Utterance]) -> None:
    """A tar as webdataset lays it out; an utterance without speaker has no labels at all."""
    with tarfile.open(path, "w") as tar:
        for key, num_samples, speaker in utterances:
            members = {"flac": to_flac(np.zeros(num_samples, np.float32))}
            if speaker is not None:
                members["json"] = json.dumps({"key": key, "speaker": speaker}).encode()
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def make(folder: Path, shards: list[list[Utterance]]) -> str:
    """A folder of shards with its index; returns the fingerprint."""
    folder.mkdir(exist_ok=True)
    for k, utterances in enumerate(shards):
        write_tar(folder / f"x-{k:06d}.tar", utterances)
    tars = sorted(folder.glob("*.tar"))
    summary = {"note": 0}

    def entries() -> Iterator[ShardEntry]:  # as shards/build.py: one at a time, counting
        for tar in tars:
            yield index_shard(tar)
        summary["note"] = 1

    return write_index(folder, "x", entries(), summary)


ONE: list[list[Utterance]] = [
    [("a", 1_000, "ann"), ("b", 2_000, None)],
    [("c-1", 3_000, "zoe"), ("dd", 4_000, "ann"), ("e", 5_000, "bob")],
]
TWO: list[list[Utterance]] = [[("f", 6_000, "bob"), ("g", 7_000, "carl")]]


def test_columns_lead_to_the_bytes(tmp_path: Path) -> None:
    fingerprint = make(tmp_path, ONE)
    index = ShardIndex.load(tmp_path)
    flat = [u for shard in ONE for u in shard]
    assert len(index) == 5
    assert index.fingerprint == fingerprint
    assert list(index.keys()) == [key for key, _, _ in flat]
    assert index.num_samples.tolist() == [n for _, n, _ in flat]
    assert index.shard.tolist() == [0, 0, 1, 1, 1]
    assert index.shard_first.tolist() == [0, 2, 5]
    names = [index.speakers[s] if s >= 0 else None for s in index.speaker]
    assert names == [speaker for _, _, speaker in flat]
    for i, (key, _, speaker) in enumerate(flat):
        with tarfile.open(index.shard_paths[index.shard[i]]) as tar:
            expected = tar.extractfile(f"{key}.flac")
            assert expected is not None
            data = index.shard_paths[index.shard[i]].read_bytes()
            start, size = int(index.offset[i]), int(index.size[i])
            assert data[start : start + size] == expected.read()
        start, size = int(index.label_offset[i]), int(index.label_size[i])
        assert (size == 0) == (speaker is None)
        assert size == 0 or json.loads(data[start : start + size])["key"] == key
    content = json.loads((tmp_path / "index.json").read_text())
    assert (content["num_utterances"], content["num_samples_total"]) == (5, 15_000)
    assert content["summary"] == {"note": 1}
    assert isinstance(index.num_samples, np.memmap)
    with pytest.raises(IndexError, match="utterance 5 is not in an index of 5"):
        index.key(5)


def test_the_files_are_what_numpy_writes(tmp_path: Path) -> None:
    make(tmp_path, ONE)
    for path in tmp_path.glob("index.*.npy"):
        whole = io.BytesIO()
        np.save(whole, np.load(path))
        assert path.read_bytes() == whole.getvalue()


def test_an_index_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    make(tmp_path, ONE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def entries() -> Iterator[ShardEntry]:
        yield index_shard(tmp_path / "x-000000.tar")
        raise ValueError("the second report is damaged")

    with pytest.raises(ValueError, match="second report"):
        write_index(tmp_path, "x", entries(), {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_several_folders_are_one_index(tmp_path: Path) -> None:
    make(tmp_path / "one", ONE)
    make(tmp_path / "two", TWO)
    index = ShardIndex.load_many(f"{tmp_path / 'one'}, {tmp_path / 'two'}")
    flat = [u for shard in ONE + TWO for u in shard]
    assert list(index.keys()) == [key for key, _, _ in flat]
    assert index.num_samples.tolist() == [n for _, n, _ in flat]
    assert index.shard.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert index.shard_first.tolist() == [0, 2, 5, 7]
    assert [p.parent.name for p in index.shard_paths] == ["one", "one", "two"]
    names = [index.speakers[s] if s >= 0 else None for s in index.speaker]
    assert names == [speaker for _, _, speaker in flat]
    index.check_shard_sizes()
    swapped = ShardIndex.load_many(f"{tmp_path / 'two'},{tmp_path / 'one'}")
    single = ShardIndex.load_many(tmp_path / "one")
    assert len({index.fingerprint, swapped.fingerprint, single.fingerprint}) == 3


def test_pickle_maps_the_files_again(tmp_path: Path) -> None:
    make(tmp_path / "one", ONE)
    make(tmp_path / "two", TWO)
    for folders in ("one", "one,two"):
        index = ShardIndex.load_many(",".join(str(tmp_path / f) for f in folders.split(",")))
        data = pickle.dumps(index)
        other = pickle.loads(data)
        assert len(data) < 1_000
        assert list(other.keys()) == list(index.keys())
        assert other.fingerprint == index.fingerprint


def test_fingerprint_sees_every_change(tmp_path: Path) -> None:
    prints = {make(tmp_path / "a", ONE), make(tmp_path / "b", ONE)}
    assert len(prints) == 1
    prints.add(make(tmp_path / "c", [[("a", 1_001, "ann"), ONE[0][1]], ONE[1]]))
    prints.add(make(tmp_path / "d", [[("A", 1_000, "ann"), ONE[0][1]], ONE[1]]))
    prints.add(make(tmp_path / "e", [ONE[0] + ONE[1]]))
    assert len(prints) == 4


def test_a_shard_cut_short_is_named_with_the_remedy(tmp_path: Path) -> None:
    make(tmp_path, ONE)
    index = ShardIndex.load(tmp_path)
    index.check_shard_sizes()
    tar = tmp_path / "x-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-700])
    with pytest.raises(ValueError, match=r"x-000001\.tar was cut short.*copy it again, or delete"):
        index.check_shard_sizes()
    tar.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match=r"x-000001\.tar is another file than the indexed one"):
        index.check_shard_sizes()
    tar.unlink()
    with pytest.raises(ValueError, match=r"x-000001\.tar is missing.*shards/build\.py"):
        index.check_shard_sizes()


def test_a_tar_that_is_cut_or_no_tar_is_refused(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    write_tar(tar, [("a", 50_000, "ann"), ("b", 50_000, "ann")])
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"x\.tar is damaged.*delete it"):
        index_shard(tar)
    tar.write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match=r"x\.tar is damaged"):
        index_shard(tar)


def test_an_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no shard index.*--input AUDIO"):
        ShardIndex.load(tmp_path)
    with pytest.raises(ValueError, match="no shard folder is named"):
        ShardIndex.load_many(" ,")
    make(tmp_path, ONE)
    index = ShardIndex.load(tmp_path)
    assert index.index_problem() is None
    column = tmp_path / "index.num_samples.npy"
    np.save(column, np.full(5, 9, "<u4"))
    problem = ShardIndex.load(tmp_path).index_problem()
    assert problem is not None
    assert "was changed" in problem
    np.save(column, np.full(4, 9, "<u4"))
    with pytest.raises(ValueError, match="columns num_samples have another size"):
        ShardIndex.load(tmp_path)
    column.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be used"):
        ShardIndex.load(tmp_path)
    column.unlink()
    with pytest.raises(ValueError, match=r"index\.num_samples\.npy is missing"):
        ShardIndex.load(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 2}')
    with pytest.raises(ValueError, match="version is 2, not 1"):
        ShardIndex.load(tmp_path)


def test_atomic_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]
    with atomic(path) as file:
        file.write(b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"new")]


def test_a_file_is_no_folder_of_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text.txt"
    file.write_text("HI\n")
    make(tmp_path / "shards", [[("a", 16_000, None)]])
    with pytest.raises(ValueError, match=r"text.txt is a file but must be a folder of shards"):
        ShardIndex.load(file)
    with pytest.raises(ConfigError, match=r"data.train names .*text.txt, a file"):
        open_index(f"{tmp_path / 'shards'}, {file}", "data.train")
    assert main(["alphabet", str(file)]) == 2
    assert "SHARDS names" in capsys.readouterr().err
    out = str(tmp_path / "lm")
    assert main(["lm", "text", "--shards", str(file), "--output", out]) == 2
    assert "--shards names" in capsys.readouterr().err
    assert main(["lm", "text", str(file), "--output", str(file)]) == 2
    assert "--output needs the folder" in capsys.readouterr().err
