"""The store of features: what is written is read, by any number of writers, and damage is seen."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from w2v2dist.config import ConfigError
from w2v2dist.unsupervised.feature_store import FeatureStore, FeatureStoreWriter, check_alike

META = {"made_by": {"model": "abc", "block": 2}, "rate_hz": 50.0}


def utterances(num: int = 10) -> list[tuple[str, Any, Any, Any]]:
    rng = np.random.default_rng(0)
    out = []
    for i in range(num):
        frames = rng.standard_normal((i + 1, 3)).astype(np.float32)
        targets = None if i % 3 == 0 else rng.integers(64, size=i + 1)
        out.append((f"k{i}\u2028é", frames, targets, {"text": f"SAID {i}"} if i % 2 else None))
    return out


def write(folder: Path, meta: Any = META, dtype: Any = "float32") -> FeatureStore:
    with FeatureStoreWriter(folder, 3, dtype, meta) as writer:
        for one in utterances():
            writer.add(*one)
    return FeatureStore(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_parts(folder: Path, numbers: list[int]) -> FeatureStoreWriter:
    """Parts of three utterances; the seventh utterance is left out."""
    writer = FeatureStoreWriter(folder, 3, "float32", META)
    for number in numbers:
        with writer.part(number) as part:
            for one in utterances()[3 * number : 3 * number + 3]:
                if one[0].startswith("k6"):
                    part.skip(one[0], "silence alone")
                else:
                    part.add(*one)
    return writer


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read(tmp_path: Path, dtype: Any) -> None:
    store = write(tmp_path / "s", dtype=dtype)
    assert store.keys == [one[0] for one in utterances()]
    assert store.num_frames.tolist() == [*range(1, 11)]
    assert (store.dim, len(store), store.meta) == (3, 10, META)
    for i, (key, frames, targets, label) in enumerate(utterances()):
        found = store.frames(i)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, frames.astype(dtype).astype(np.float32))
        assert store.labels.get(key) == label
        assert store.number[key] == i
        got = store.targets(i)
        assert (got is None) == (targets is None)
        if targets is not None and got is not None:
            assert got.dtype == np.int64
            np.testing.assert_array_equal(got, targets)
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


def test_the_order_of_the_parts_and_a_kill_do_not_matter(tmp_path: Path) -> None:
    write_parts(tmp_path / "one", [0, 1, 2, 3]).finish(4)
    writer = write_parts(tmp_path / "two", [3, 1])
    with pytest.raises(ConfigError, match="2 of 4 parts"):
        writer.finish(4)
    assert writer.missing(4) == [0, 2]
    with pytest.raises(ZeroDivisionError), writer.part(0) as part:  # killed inside a part
        part.add("k0", [[0, 0, 1 / 0]])
    assert FeatureStoreWriter(tmp_path / "two", 3, "float32", META).missing(4) == [0, 2]
    write_parts(tmp_path / "two", [2, 0]).finish(4)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert {*contents(tmp_path / "one")} == {
        "store.json",
        "features.npy",
        "targets.npy",
        "utterances.jsonl",
        "skipped.jsonl",
    }
    assert len(FeatureStore(tmp_path / "two")) == 9


def test_a_join_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path / "whole", [0, 1, 2, 3]).finish(4)
    for lived in range(4):
        folder = tmp_path / str(lived)
        writer, calls = write_parts(folder, [0, 1, 2, 3]), iter(range(lived))
        copy = shutil.copyfileobj

        def dies(source: Any, out: Any, size: int) -> None:
            if next(calls, None) is None:  # noqa: B023
                out.write(source.read(7))
                raise KeyboardInterrupt
            copy(source, out, size)  # noqa: B023

        monkeypatch.setattr(shutil, "copyfileobj", dies)
        with pytest.raises(KeyboardInterrupt):
            writer.finish(4)
        monkeypatch.undo()
        again = FeatureStoreWriter(folder, 3, "float32", META)
        assert again.missing(4) == []
        again.finish(4)
        assert contents(folder) == contents(tmp_path / "whole")


def test_a_finished_store_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "s")
    before = contents(tmp_path / "s")
    again = FeatureStoreWriter(tmp_path / "s", 3, "float32", META)
    assert again.complete
    assert again.missing(4) == []
    again.finish(4)
    assert contents(tmp_path / "s") == before


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "s")
    write_parts(tmp_path / "unfinished", [0])
    other = {**META, "made_by": {"model": "abc", "block": 3}}
    for folder in (tmp_path / "s", tmp_path / "unfinished"):
        with pytest.raises(ConfigError, match=r"other settings \(meta.made_by.block is 2 there"):
            FeatureStoreWriter(folder, 3, "float32", other)
        with pytest.raises(ConfigError, match="other settings"):
            FeatureStoreWriter(folder, 4, "float32", META)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        FeatureStoreWriter(tmp_path / "mine", 3)
    assert {*contents(tmp_path / "mine")} == {"thesis.txt"}


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 4)), "must be"),
        (np.zeros(3), "must be"),
        (np.zeros((0, 3)), "one frame at least"),
        (np.full((1, 3), np.nan), "NaN or infinity"),
        (np.full((1, 3), 1e6), "infinity as float16"),
    ],
)
def test_frames_that_cannot_be_kept(tmp_path: Path, frames: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), FeatureStoreWriter(tmp_path / "s", 3) as writer:
        writer.add("k", frames)
    assert not (tmp_path / "s").exists()


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s", 3)
    for _ in range(2):
        writer.add("k", np.zeros((1, 3)))
    with pytest.raises(ConfigError, match=r"1 keys are there twice \(k\)"):
        writer.finish()
    assert not (tmp_path / "s").exists()


def test_features_that_mean_something_else_are_not_mixed(tmp_path: Path) -> None:
    first = write(tmp_path / "a")
    check_alike(first, write(tmp_path / "b"))
    second = write(tmp_path / "c", {**META, "made_by": {"model": "xyz", "block": 2}})
    with pytest.raises(ConfigError, match="model is abc in one and xyz in the other"):
        check_alike(first, second)
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == FeatureStore(tmp_path / "b").fingerprint


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "short":
        del data[-2:]
    elif how == "gone":
        path.unlink()
        return
    else:
        data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["features.npy", "targets.npy", "store.json"])
@pytest.mark.parametrize("how", ["short", "flipped", "gone"])
def test_damage_is_seen(tmp_path: Path, name: str, how: str) -> None:
    write(tmp_path / "s")
    damage(tmp_path / "s" / name, how)
    with pytest.raises(ConfigError):
        FeatureStore(tmp_path / "s").verify()


def test_lines_that_were_changed_are_seen(tmp_path: Path) -> None:
    write(tmp_path / "s")
    path = tmp_path / "s" / "utterances.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    for text in ("\n".join(lines[:-2]), "\n".join([*lines[1::-1], *lines[2:]]), ""):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError):
            FeatureStore(tmp_path / "s")


def test_a_part_that_was_damaged_is_made_anew(tmp_path: Path) -> None:
    writer = write_parts(tmp_path / "s", [0, 1, 2, 3])
    (tmp_path / ".s.parts" / "parts" / "00000001.frames").write_bytes(b"short")
    with pytest.raises(ConfigError, match="was damaged"):
        writer.finish(4)
    assert not (tmp_path / "s").exists()
    assert FeatureStoreWriter(tmp_path / "s", 3, "float32", META).missing(4) == [1]
    write_parts(tmp_path / "s", [1]).finish(4)
    write_parts(tmp_path / "whole", [0, 1, 2, 3]).finish(4)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no features"):
        FeatureStore(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ConfigError, match="its version is 99"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("utterances.jsonl", b"{}\n", "'key' is missing"),
        ("utterances.jsonl", b"[]\n", "list indices"),
        ("utterances.jsonl", b"3\n", "not subscriptable"),
        ("utterances.jsonl", b'{"key": "k", "num_frames": "x", "crc": 1}\n', "'x'"),
        ("utterances.jsonl", b'{"key": "k", "num_frames": 1' + b"0" * 30 + b', "crc": 1}\n', ""),
        ("utterances.jsonl", b"\xff\n", "codec can't decode"),
        ("store.json", b'{"version": 1}', "'meta' is missing"),
        ("store.json", b'{"version": 1, "meta": {}, "dim": 3, "dtype": "floaty"}', "floaty"),
        ("store.json", b'{"version": 1, "meta": {}, "dim": null, "dtype": "float16"}', "int"),
        ("store.json", b"[]", "'version' is missing"),
        ("store.json", b"3", "not iterable"),
        ("store.json", b"no JSON", "Expecting value"),
        ("store.json", b"\xff", "codec can't decode"),
    ],
)
def test_files_with_something_else(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    write(tmp_path / "s")
    (tmp_path / "s" / name).write_bytes(data)
    with pytest.raises(ConfigError) as error:
        FeatureStore(tmp_path / "s")
    assert re.search(rf"/s are damaged \(.*{message}.*\): remove the folder and", str(error.value))
    if name == "store.json":  # nor is it written to
        with pytest.raises(ConfigError, match=r"store.json is damaged|has features of other"):
            FeatureStoreWriter(tmp_path / "s", 3, "float32", META)


def test_paths_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "t.txt").touch()
    with pytest.raises(ConfigError, match=r"t.txt is a file, but features are a folder"):
        FeatureStore(tmp_path / "t.txt")
    with pytest.raises(ConfigError, match="is several folders, but features are one"):
        FeatureStore(f"{write(tmp_path / 'a').folder},{write(tmp_path / 'b').folder}")
    with pytest.raises(ConfigError, match="holds no features"):
        FeatureStore(tmp_path / "t.txt" / "below")


def test_nothing_at_all(tmp_path: Path) -> None:
    with FeatureStoreWriter(tmp_path / "s", 3):
        pass
    store = FeatureStore(tmp_path / "s")
    assert (store.keys, store.has_targets, len(store)) == ([], False, 0)
