"""Named sets of LibriSpeech and Libri-Light: what is published of them, what a download lacks, and
Libri-Light's own way of cutting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from shards import build, verify
from shards.cut import STITCHED_S, stitch
from shards.splits import SHORTHANDS, chosen, parts
from tests.speech import say, write_librispeech
from tests.unit.test_shards import labels, run, samples, skipped
from w2v2dist.data.audio import decode


def hum(seconds: int) -> np.ndarray[Any, Any]:
    """Sound that needs more bytes than a header without sound behind it could have."""
    return np.random.default_rng(seconds).normal(0, 1e-3, seconds * 16_000)


def libri(folder: Path, speakers: dict[str, int]) -> Path:
    """LibriSpeech/dev-clean with its lists, in small."""
    write_librispeech(folder / "LibriSpeech" / "dev-clean", speakers, 4)
    chapters = "; comment\n;ID |READER|MINUTES| SUBSET |\n"
    for speaker in ("84", "174", "251"):
        chapters += f"1 | {speaker} | 8.0 | dev-clean | 1 | 2 | T | P\n"
    chapters += "7 | 99 | 8.0 | dev-other | 1 | 2 | T | P\n"
    (folder / "LibriSpeech" / "CHAPTERS.TXT").write_text(chapters)
    return folder


def test_published_sets_add_up() -> None:
    known = parts()
    assert sum(known[name].published.utterances or 0 for name in SHORTHANDS["train-960"]) == 281_241
    assert {"10min-0", "10min-5", "1h", "10h", "small", "dev-other"} <= known.keys()
    hour = known["1h"].chapters
    assert hour is not None
    assert sum(hour.values()) == known["1h"].published.utterances
    assert [part.name for part in chosen(["unlab-60k", "small"], "auto")] == [
        "small", "medium", "large"
    ]  # fmt: skip


def test_an_incomplete_download_is_refused_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = libri(tmp_path, {"84": 2, "174": 1})
    chapter = root / "LibriSpeech/dev-clean/84/1"
    (chapter / "84-1-0001.flac").unlink()
    (root / "LibriSpeech/dev-clean/174/1/174-1.trans.txt").unlink()
    arguments = ("--split", "dev-clean", "--max-bad-samples", "9")
    for place in (root, root / "LibriSpeech", root / "LibriSpeech/dev-clean"):
        assert run(place, tmp_path / "out", *arguments) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert "found 2 of 2,703 utterances" in said
        assert "found 2 of 40 speakers" in said
        assert "missing by CHAPTERS.TXT: 1 of 3 chapters, 251/1" in said
        assert "1 texts without audio, such as" in said
        assert "84-1-0001" in said
        assert "1 utterances have no text, such as" in said
        assert "--allow-incomplete" in said
        assert not (tmp_path / "out/.build/plan.json").exists()
    assert run(root, tmp_path / "out", *arguments, "--allow-incomplete") == 0
    assert "incomplete: dev-clean in " in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "out/index.json").read_text())["summary"]["split"]["sets"]
    assert (found["utterances"], found["published_utterances"]) == (2, 2703)
    assert set(labels(tmp_path / "out")) == {"84-1-0000", "174-1-0000"}
    assert verify.main([str(tmp_path / "out"), "--workers", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "dev-clean: 2 utterances of 2,703 published" in said
    assert "incomplete: found 2" in said


def test_without_lists_of_chapters_speakers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = libri(tmp_path, {"84": 1})
    (root / "LibriSpeech/CHAPTERS.TXT").unlink()
    rows = "84 | F | dev-clean | 8.1 | A\n174 | M | dev-clean | 8.2 | B\n26 | M | train-clean-100 |"
    (root / "LibriSpeech/SPEAKERS.TXT").write_bytes(rows.encode() + b" 9 | \xe9\n")
    assert run(root, tmp_path / "out", "--split", "dev-clean") == 1
    assert "missing by SPEAKERS.TXT: 1 of 2 speakers, 174" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.fixture(scope="module")
def fold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten minutes of limited supervision: all that four chapters of the published list have."""
    root = tmp_path_factory.mktemp("limited")
    place = root / "librispeech_finetuning/1h/0"
    for kind, chapter in zip(
        ("clean", "clean", "other", "other"),
        ("6415-100596", "8765-295000", "831-130739", "248-130644"),
        strict=True,
    ):
        folder = place / kind / chapter.replace("-", "/")
        folder.mkdir(parents=True)
        lines = []
        for number in range((parts()["1h"].chapters or {})[chapter]):
            key = f"{chapter}-{number:04d}"
            soundfile.write(folder / f"{key}.flac", hum(12), 16_000)
            lines.append(f"{key} ONE\n")
        (folder / f"{chapter}.trans.txt").write_text("".join(lines))
    (root / "librispeech_finetuning/phones").mkdir()
    return root


def test_a_complete_fold_of_ten_minutes(
    fold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(fold, tmp_path / "out", "--split", "10min") == 0
    assert "10min-0: 51 utterances, 0.17 h, 4 speakers, complete" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/index.json").read_text())["summary"]
    assert summary["split"]["sets"][0]["lacks"] == []
    assert summary["with_text"] == 51
    assert run(fold, tmp_path / "out", "--split", "10min") == 0  # the plan knows the hours
    assert "hours" in json.loads((tmp_path / "out/.build/plan.json").read_text())
    capsys.readouterr()
    assert run(fold, tmp_path / "hour", "--split", "1h") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "no folder 1h/1, 1h/2, 1h/3, 1h/4, 1h/5" in said
    assert "missing by the published list: 235 utterances" in said
    assert run(fold, tmp_path / "three", "--split", "10min-3") == 1
    assert "--split 10min-3 is not in" in capsys.readouterr().out


def test_one_utterance_short_is_named(
    fold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = fold / "librispeech_finetuning/1h/0/other/831/130739/831-130739-0014.flac"
    moved = lost.rename(tmp_path / "kept.flac")
    try:
        assert run(fold, tmp_path / "out", "--split", "10min") == 1
        said = " ".join(capsys.readouterr().out.split())
        assert "missing by the published list: 1 utterances, 831-130739-0014" in said
    finally:
        moved.rename(lost)


def test_what_cannot_be_used_is_missing_of_a_set(
    fold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(fold, tmp_path / "in")
    broken = root / "librispeech_finetuning/1h/0/other/831/130739/831-130739-0014.flac"
    broken.write_bytes(broken.read_bytes()[:20_000])  # its header is whole
    assert run(root, tmp_path / "out", "--split", "10min") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "incomplete: 1 utterances cannot be used, such as " in said
    assert "/831-130739-0014.flac" in said
    summary = json.loads((tmp_path / "out/index.json").read_text())["summary"]
    assert summary["utterances"] == 50
    assert len(summary["split"]["sets"][0]["lacks"]) == 1
    assert verify.main([str(tmp_path / "out"), "--quick"]) == 0
    assert "incomplete: 1 utterances cannot" in " ".join(capsys.readouterr().out.split())


def test_too_few_hours_are_named(
    fold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in fold.rglob("*.flac"):
        copy = tmp_path / "in" / file.relative_to(fold)
        copy.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(copy, hum(1), 16_000)
        text = file.parent / f"{file.stem.rpartition('-')[0]}.trans.txt"
        (copy.parent / text.name).write_text(text.read_text())
    assert run(tmp_path / "in", tmp_path / "out", "--split", "10min") == 1
    assert "found 0.01 of 0.1667 hours" in capsys.readouterr().out


def test_copies_and_overlapping_sets_are_refused(
    fold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        libri(tmp_path / name, {"84": 1})
    twice = ["--input", str(tmp_path / "b"), "--split", "dev-clean", "--allow-incomplete"]
    assert run(tmp_path / "a", tmp_path / "out", *twice) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "84-1-0000 stands in two places" in said
    assert "one copy" in said
    both = ("--split", "10min-0,1h", "--allow-incomplete")
    assert run(fold, tmp_path / "out", *both) == 1
    assert "--split 10min-0 and 1h both hold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "dev-cleen"), "--split dev-cleen is no set that is known"),
        (("--split", "test-other"), "--split test-other is not in"),
        (("--split", "dev-clean", "--layout", "timit"), "--layout is timit: leave --layout out"),
        (("--split", "dev-clean,small"), "--split small is not in"),
    ],
)
def test_wrong_sets_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = libri(tmp_path, {"84": 1})
    assert run(root, tmp_path / "out", *arguments) == 1
    assert message in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("extra", [["--allow-incomplete"], ["--split", ""], ["--split", " , "]])
def test_what_needs_a_set_is_refused_without_one(extra: list[str]) -> None:
    with pytest.raises(SystemExit):
        build.parse_args(["--input", "a", "--output", "b", *extra])


def book(folder: Path, name: str, activity: Any, seconds: float = 8.0) -> np.ndarray[Any, Any]:
    """A recording of Libri-Light with its metadata."""
    place = folder / "small/100/a_book"
    place.mkdir(parents=True, exist_ok=True)
    wave = say(["ONE", "TWO", "THREE"] * 12, len(name)).wave[: int(seconds * 16_000)]
    soundfile.write(place / f"{name}.flac", wave, 16_000)
    if activity is not None:
        text = activity if isinstance(activity, str) else json.dumps({"voice_activity": activity})
        (place / f"{name}.json").write_text(text)
    return soundfile.read(place / f"{name}.flac", dtype="float32")[0]


def test_libri_lights_own_cutting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wave = book(tmp_path, "good", [[0.5, 2.5], [3.0, 5.25], [5.25, 8.02]])
    bad = {
        "beyond": [[0.5, 9.0]],
        "overlap": [[0, 3], [2, 4]],
        "backwards": [[3, 2]],
        "infinite": '{"voice_activity": [[0, Infinity]]}',
        "words": [["a", "b"]],
        "one": [[1]],
        "true": [[False, True]],
        "none": [],
        "cut off": '{"voice_activity": [[0,',
        "list": "[1]",
        "missing": None,
    }
    for name, activity in bad.items():
        book(tmp_path, name, activity)
    extra = ("--split", "small", "--allow-incomplete", "--cut", "librilight")
    assert run(tmp_path, tmp_path / "out", *extra) == 0
    (found,) = samples(tmp_path / "out").values()
    spans = [[8_000, 40_000], [48_000, 84_000], [84_000, 128_000]]
    assert found["json"]["spans"] == spans
    assert found["json"]["start"] == 8_000
    heard = decode(found["flac"], 0, found["json"]["num_samples"])
    assert np.array_equal(heard, np.concatenate([wave[a:b] for a, b in spans]))
    reasons = {Path(k).stem: v for k, v in skipped(tmp_path / "out").items() if "voice" in v}
    assert reasons.keys() == bad.keys()
    assert "ends at 9 s but the recording has 8.00 s" in reasons["beyond"]
    assert "segment 1: it begins at 2 s, before the end" in reasons["overlap"]
    assert "is not JSON" in reasons["cut off"]
    assert "No such file" in reasons["missing"]
    said = capsys.readouterr().out
    assert "small: 12 utterances of 2,588 published" in said
    # Ours leaves short recordings whole, and the same folder is not built in another way
    assert run(tmp_path, tmp_path / "out", *extra[:3]) == 1
    assert "cut changed since they were begun" in capsys.readouterr().out


def test_metadata_without_audio_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book(tmp_path, "good", [[0, 2]])
    (tmp_path / "small/100/a_book/lost.json").write_text("{}")
    assert run(tmp_path, tmp_path / "out", "--split", "small") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 metadata without audio, such as small/100/a_book/lost.json" in said


def test_segments_are_not_cut_by_the_metadata_of_the_whole(tmp_path: Path) -> None:
    wave = book(tmp_path, "long", [[0.5, 3.0]], 50.0)
    place = tmp_path / "small/100/a_book"
    soundfile.write(place / "long.flac", np.tile(wave, 5), 16_000)
    table = place / "manifest.tsv"
    table.write_text("path\toffset\tduration\nlong.flac\t4\t40\nlong.flac\t0\t5\n")
    assert run(table, tmp_path / "a", "--cut", "librilight") == 1
    assert {*skipped(tmp_path / "a").values()} == {
        "a segment of a recording: only whole ones are cut by metadata"
    }
    assert run(table, tmp_path / "b") == 0  # ours, by what is heard
    assert sum(row["seconds"] for row in labels(tmp_path / "b").values()) > 20


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.5, 90)), min_size=1, max_size=30))
def test_stitching_is_that_of_libri_light(drawn: list[tuple[float, float]]) -> None:
    segments, now = [], 0.0
    for pause, length in drawn:
        segments.append((now + pause, now + pause + length))
        now = segments[-1][1]
    pieces = stitch(segments, int(now * 16_000) + 1)
    assert [s for piece in pieces for s in piece] == [
        (int(a * 16_000), int(b * 16_000)) for a, b in segments
    ]
    taken = 0
    for piece in pieces:
        inside = segments[taken : taken + len(piece)]
        taken += len(piece)
        seconds = sum(b - a for a, b in inside)
        assert len(piece) == 1 or seconds <= STITCHED_S + 1e-6
        if taken < len(segments):
            following = segments[taken][1] - segments[taken][0]
            assert seconds + following > STITCHED_S - 1e-6
