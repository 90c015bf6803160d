"""Texts as a source: what is written, and an order that no number of processes changes."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.data import sentences
from w2v2dist.data.sentences import Sentences, encode_texts
from w2v2dist.data.text_source import (
    TextBatch,
    TextDataConfig,
    TextFolders,
    TextSource,
    prepare_texts,
)
from w2v2dist.data.vocabulary import END, PAD, UNKNOWN, of_lines
from w2v2dist.runtime.distributed import VirtualRanks
from w2v2dist.tasks.train import read_config

WORDS = [f"w{i}" for i in range(50)]
SEED = 7
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 sentences of 1 to 12 words, with blank lines between some, in two files, one packed."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 13))) for _ in range(3_000)]
    lines[100] = lines[2_500] = ""
    (folder / "a.txt").write_text("\n".join(lines[:2_000]) + "\n")
    with gzip.open(folder / "b.txt.gz", "wt") as file:
        file.write("\n".join(lines[2_000:]))  # without an end of its last line
    (folder / "valid.txt").write_text("\n".join(lines[:37]) + "\n\n")
    (folder / "lines.json").write_text(json.dumps(lines))
    return folder


def settings(text: Path, **values: Any) -> TextDataConfig:
    common: dict[str, Any] = {
        "train": f"{text}/a.txt,{text}/b.txt.gz",
        "virtual_world_size": 6,
        "max_tokens_per_slot": 64,
        "max_tokens": 12,
        "shuffle_window": 100,
        "num_workers": 0,
    }
    return TextDataConfig(**(common | values))


@pytest.fixture(scope="module")
def folders(text: Path) -> TextFolders:
    return prepare_texts(settings(text, valid=f"{text}/valid.txt"), text / "encoded")


@pytest.fixture
def source(text: Path, folders: TextFolders) -> TextSource:
    return TextSource(settings(text), SEED, folders)


def lines_of(batch: TextBatch) -> list[str]:
    return [] if batch.used is None else batch.used["keys"]


# --- what is written -----------------------------------------------------------------------------


def test_what_was_written_is_the_text(text: Path, folders: TextFolders) -> None:
    lines, found = json.loads((text / "lines.json").read_text()), Sentences(folders.train)
    vocabulary = folders.vocabulary()
    assert len(found) == 3_000
    assert [vocabulary.decode(found.ids(i).tolist()) for i in range(3_000)] == lines
    sizes = [len(line.split()) + 1 if line else 0 for line in lines]
    assert found.num_samples.tolist() == sizes
    assert (found.key(0), found.key(1_999)) == ("a.txt:1", "a.txt:2000")
    assert (found.key(2_000), found.key(2_999)) == ("b.txt.gz:1", "b.txt.gz:1000")
    assert found.shard_first.tolist() == [0, 1024, 2048, 3000]
    again = pickle.loads(pickle.dumps(found))
    assert again.ids(5).tolist() == found.ids(5).tolist()
    total = sum(vocabulary.counts)
    assert found.meta["num_words"] == total == sum(len(line.split()) for line in lines)


def test_it_is_written_once(text: Path, folders: TextFolders, tmp_path: Path) -> None:
    before = (folders.train / "meta.json").stat().st_mtime_ns
    assert prepare_texts(settings(text), text / "encoded").train == folders.train
    assert (folders.train / "meta.json").stat().st_mtime_ns == before
    rarer = prepare_texts(settings(text, min_count=380), text / "encoded")
    assert rarer.train != folders.train
    assert len(rarer.vocabulary()) < len(folders.vocabulary())
    whole = Sentences(prepare_texts(settings(text), tmp_path).train)
    assert (
        whole.fingerprint
        == Sentences(folders.train).fingerprint
        != Sentences(rarer.train).fingerprint
    )


def test_bounded_buffers_change_nothing(
    text: Path, folders: TextFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentences, "BUFFER", 7)
    paths, vocabulary = [text / "a.txt", text / "b.txt.gz"], folders.vocabulary()
    found = Sentences(encode_texts(paths, vocabulary, tmp_path / "small", "x"))
    expected = Sentences(folders.train)
    assert all((found.ids(i) == expected.ids(i)).all() for i in range(3_000))


def test_a_damaged_folder_is_made_again(text: Path, tmp_path: Path) -> None:
    folder = prepare_texts(settings(text), tmp_path).train
    path = folder / "ids.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"is damaged .*: remove the folder, and it is made again"):
        Sentences(folder)
    assert prepare_texts(settings(text), tmp_path).train == folder
    assert len(Sentences(folder)) == 3_000
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_large_vocabularies_and_unknown_words(text: Path, tmp_path: Path) -> None:
    many = of_lines(
        "".join(f"x{i} 1\n" for i in range(70_000)) + "".join(f"{w} 1\n" for w in WORDS[5:])
    )
    found = Sentences(encode_texts([text / "a.txt"], many, tmp_path / "many", "x"))
    assert int(found.ids(0).max()) > 70_000
    unknown = sum(int((found.ids(i) == UNKNOWN).sum()) for i in range(len(found)))
    assert found.meta["num_unknown"] == unknown > 0


# --- the order -----------------------------------------------------------------------------------


def test_every_world_size_uses_the_same(text: Path, folders: TextFolders) -> None:
    steps, seen = range(1, 12), []
    for world_size in (1, 2, 3, 4):
        used: dict[tuple[int, int], list[str]] = {}
        for rank in range(world_size):
            source = TextSource(settings(text), SEED, folders)
            slots = VirtualRanks(6).slots(rank, world_size)
            batches = [*source.batches(steps, slots, SEED)]
            assert len(batches) == len(steps) * len(slots)
            for batch in batches:
                if batch.num_targets:
                    used[batch.step, batch.slot] = lines_of(batch)
        seen.append(used)
    assert len(seen[0]) == 11 * 6
    assert all(used == seen[0] for used in seen)
    # from the middle on it is the same, whatever was drawn before
    source = TextSource(settings(text), SEED, folders)
    late = [lines_of(b) for b in source.batches(range(9, 12), [2], SEED)]
    assert late == [seen[0][step, 2] for step in range(9, 12)]
    audit = source.audit(9, 2, SEED)
    assert (audit["keys"], audit["step"], audit["slot"]) == (late[0], 9, 2)
    assert source.audit(9, 2, SEED + 1)["keys"] != late[0]


def test_an_epoch_uses_every_sentence_once(text: Path, folders: TextFolders) -> None:
    found = Sentences(folders.train)
    usable = {
        found.key(i) for i in np.flatnonzero((found.num_samples > 0) & (found.num_samples <= 12))
    }
    source = TextSource(settings(text, virtual_world_size=1), SEED, folders)
    used: list[str] = []
    for batch in source.batches(range(1, 10_000), [0], SEED):
        used += lines_of(batch)
        if len(used) >= len(usable):
            break
    assert sorted(used) == sorted(usable)
    long = int((found.num_samples > 12).sum())
    assert long > 100
    assert f"{long} of its sentences are left out" in source.notes[1]


def test_batches_are_sentences_with_their_ends(source: TextSource, folders: TextFolders) -> None:
    found = Sentences(folders.train)
    index = {found.key(i): i for i in range(len(found))}
    for batch in source.batches(range(1, 20), [0, 5], SEED):
        assert batch.tokens.shape == batch.targets.shape
        assert batch.tokens.numel() <= 64
        assert batch.num_targets == batch.amount == int((batch.targets != PAD).sum())
        for row, key in enumerate(lines_of(batch)):
            ids = found.ids(index[key]).tolist()
            rest = [PAD] * (batch.tokens.shape[1] - len(ids) - 1)
            assert batch.tokens[row].tolist() == [END, *ids, *rest]
            assert batch.targets[row].tolist() == [*ids, END, *rest]


def test_workers_change_nothing(text: Path, folders: TextFolders) -> None:
    drawn = []
    for num_workers in (0, 2):
        source = TextSource(settings(text, num_workers=num_workers), SEED, folders)
        drawn.append([b.tokens.tolist() for b in source.batches(range(1, 5), [1, None, 4], SEED)])
    assert drawn[0] == drawn[1]
    assert drawn[0][1] == [[END]]  # an empty slot


def test_validation_has_every_sentence_once_for_any_world_size(source: TextSource) -> None:
    assert {*source.validation} == {"valid"}
    for world_size in (1, 2, 3):
        parts = [[*source.validation_batches("valid", r, world_size)] for r in range(world_size)]
        assert len({len(part) for part in parts}) == 1
        keys = [key for part in parts for batch in part for key in lines_of(batch)]
        assert sorted(keys) == sorted(f"valid.txt:{i + 1}" for i in range(37))


def test_characters(text: Path, tmp_path: Path) -> None:
    config = settings(text, units="characters", max_tokens=60)
    folders = prepare_texts(config, tmp_path)
    vocabulary = folders.vocabulary()
    assert {*vocabulary.symbols} == {*"w|0123456789"}
    source = TextSource(config, SEED, folders)
    (batch,) = source.batches([1], [0], SEED)
    ids = [i for i in batch.targets[0].tolist() if i not in (END, PAD)]
    lines = json.loads((text / "lines.json").read_text())
    name, line = lines_of(batch)[0].split(":")
    assert vocabulary.decode(ids) == lines[int(line) - 1 + (2_000 if name[0] == "b" else 0)]


def spelled_out(tmp_path: Path, alphabet: str) -> Path:
    """The folder that `lm text --units tokens` makes of a text."""
    (tmp_path / "book.txt").write_text("the cat sat\non a mat\n" * 10)
    command = ["lm", "text", str(tmp_path / "book.txt"), "--alphabet", alphabet]
    assert main([*command, "--units", "tokens", "--output", str(tmp_path / "lm")]) == 0
    return tmp_path / "lm"


def test_tiny_letters_is_for_what_lm_text_spells(tmp_path: Path) -> None:
    """The documented recipe: its vocabulary is the alphabet's, and | only between words."""
    folder = spelled_out(tmp_path, "letters")
    values = [f"data.train={folder}", "data.virtual_world_size=2"]
    data = read_config(str(CONFIGS / "lm/tiny_letters.yaml"), values).data
    folders = prepare_texts(data, tmp_path / "texts")
    assert {*folders.vocabulary().symbols} == {*"THECASONM|"}
    assert folders.vocabulary().decode(Sentences(folders.train).ids(0).tolist()) == (
        "T H E | C A T | S A T"
    )


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("units", ["words", "characters"])
def test_units_that_are_not_those_of_the_text(tmp_path: Path, units: Any, noted: bool) -> None:
    """Known by what `lm text` notes beside its text, and by how another's looks."""
    folder = spelled_out(tmp_path, "letters")
    if not noted:
        (folder / "summary.json").unlink()
    config = settings(folder, train=str(folder), units=units)
    with pytest.raises(ConfigError, match=rf"data.units is {units} .*: set data.units=tokens"):
        prepare_texts(config, tmp_path / "texts")
    other = tmp_path / "words.txt"
    other.write_text("THE CAT SAT ON THE MAT\nIS IT A | B\n")
    config = settings(folder, train=str(other), valid=str(folder), units=units)
    with pytest.raises(ConfigError, match=r"data.valid, .*text.txt, has .*data.units=tokens"):
        prepare_texts(config, tmp_path / "texts")


def test_words_are_no_tokens(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("the cat sat\n" * 10)
    command = ["lm", "text", str(tmp_path / "book.txt"), "--output", str(tmp_path / "lm")]
    assert main(command) == 0
    config = settings(tmp_path, train=str(tmp_path / "lm"), units="tokens")
    with pytest.raises(ConfigError, match=r"set data.units=words, or characters"):
        prepare_texts(config, tmp_path / "texts")


def test_phones_are_tokens(tmp_path: Path) -> None:
    (tmp_path / "phones.txt").write_text("hh ah l ow\nw er l d\n" * 10)
    for units in ("words", "tokens"):
        prepare_texts(settings(tmp_path, train=str(tmp_path / "phones.txt"), units=units), tmp_path)
    config = settings(tmp_path, train=str(tmp_path / "phones.txt"), units="characters")
    with pytest.raises(ConfigError, match="less than two characters"):
        prepare_texts(config, tmp_path)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": None}, "data.train is not set: pass data.train=FILE"),
        ({"train": "nowhere.txt"}, r"data.train names nowhere.txt, which does not exist"),
        ({"vocabulary": "{text}/upper.txt"}, "are not in the vocabulary: is it another text's"),
        (
            {"vocabulary": "{text}/none.txt"},
            r"vocabulary is .*none\.txt.*, which does not exist",
        ),
        ({"min_count": 10**6}, "is there data.min_count = 1000000 times"),
        ({"train": "{text}/blank.txt", "vocabulary": "{text}/upper.txt"}, "has no sentence"),
        ({"train": "{text}/latin.txt"}, "line 2 of .*latin.txt is not UTF-8 text"),
        ({"train": "{text}/cut.txt.gz"}, "cut.txt.gz is damaged behind line"),
        ({"valid": "{text}/gone"}, "data.valid names .*gone, which does not exist"),
    ],
)
def test_texts_that_cannot_be_used(
    values: dict[str, Any], message: str, text: Path, tmp_path: Path
) -> None:
    (text / "upper.txt").write_text("W1 1\nW2 1\n")
    (text / "blank.txt").write_text("\n \n")
    (text / "latin.txt").write_bytes(b"w1\nw\xe9\n")
    (text / "cut.txt.gz").write_bytes((text / "b.txt.gz").read_bytes()[:2_000])
    given = {k: v.format(text=text) if isinstance(v, str) else v for k, v in values.items()}
    with pytest.raises((ValueError, OSError), match=message):
        prepare_texts(settings(text, **given), tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp")]


def test_too_little_text(text: Path, folders: TextFolders) -> None:
    with pytest.raises(ConfigError, match=r"sentences of at most data\.max_tokens = 1 tokens"):
        TextSource(settings(text, max_tokens=1), SEED, folders)
    with pytest.raises(
        ValueError, match="max_tokens is 65 but must be at most max_tokens_per_slot"
    ):
        settings(text, max_tokens=65)
    with pytest.raises(ValueError, match="vocabulary is ''"):
        settings(text, vocabulary="")
