"""What the demo trains on, and what it is tested on: nothing of the test is in a training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from launch import fetch_speech, speech_sources
from launch.fetch_speech import (
    HELD_OUT_S,
    LABELLED_S,
    SPLITS,
    own_recordings,
    prepare,
    sentence,
    split,
)
from launch.speech_sources import UnavailableError, Utterance

WORDS = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()


def sentences(number: int) -> list[str]:
    rng = np.random.default_rng(number)
    return [" ".join(rng.choice(WORDS, size=int(rng.integers(1, 7)))) for _ in range(number)]


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds each, without files."""
    monkeypatch.setattr(fetch_speech, "seconds", lambda path: 5.0)


@pytest.mark.parametrize("num_speakers", [1, 4, 5, 40])
@pytest.mark.usefixtures("lengths")
def test_the_test_is_on_what_no_training_has(num_speakers: int) -> None:
    everything = [
        Utterance(Path(f"{i}.wav"), text if i % 3 else None, str(i % num_speakers))
        for i, text in enumerate(sentences(900))
    ]
    out, how = split(everything)
    assert set(out) == set(SPLITS)
    trained = [*out["labelled"], *out["unlabelled"]]
    for name in HELD_OUT_S:
        assert out[name]
        assert not {u.path for u in out[name]} & {u.path for u in trained}
        assert not {u.text for u in out[name]} & {u.text for u in trained}
        if num_speakers >= 5:
            assert not {u.speaker for u in out[name]} & {u.speaker for u in trained}
            assert "speakers" in how
        else:
            assert all(len(str(u.text).split()) >= 3 for u in out[name])
    assert not {u.text for u in out["test"]} & {u.text for u in out["valid"]}
    assert sum(5 for _ in out["labelled"]) == LABELLED_S
    assert all(u.text for u in out["labelled"])
    assert not {*out["labelled"]} & {*out["unlabelled"]}
    assert any(u.text is None for u in out["unlabelled"])


@pytest.mark.usefixtures("lengths")
def test_a_split_does_not_depend_on_where_the_files_are_or_their_order() -> None:
    def made(folder: str, order: int) -> dict[str, list[str]]:
        found = [Utterance(Path(folder, f"{i}.wav"), t, "") for i, t in enumerate(sentences(300))]
        return {k: [u.path.name for u in v] for k, v in split(found[::order])[0].items()}

    assert made("/a", 1) == made("/b/c", -1)


def apart(out: dict[str, list[Utterance]], what: str) -> bool:
    """Whether the trainings have nothing of that of the test."""
    kinds = {"speaker": lambda u: u.speaker, "sentence": lambda u: sentence(u.text)}
    trained = [u for u in (*out["labelled"], *out["unlabelled"]) if u.text]
    held = [u for name in HELD_OUT_S for u in out[name]]
    return not {kinds[what](u) for u in held} & {kinds[what](u) for u in trained}


@pytest.mark.parametrize(
    ("texts", "speakers", "expected"),
    [
        # Ten words by six speakers; a hundred sentences by each of ten; one who says nearly all
        ([WORDS[i % 9] for i in range(3000)], [str(i // 50 % 6) for i in range(3000)], "speaker"),
        ([sentences(100)[i % 100] for i in range(1000)], [str(i // 100) for i in range(1000)],
         "speaker"),
        (sentences(2040), ["a"] * 2000 + [str(i % 4) for i in range(40)], "sentence"),
    ],
    ids=["words", "same sentences", "one speaker"],
)  # fmt: skip
@pytest.mark.usefixtures("lengths")
def test_something_is_always_left_to_train_on(
    texts: list[str], speakers: list[str], expected: str
) -> None:
    paired = enumerate(zip(texts, speakers, strict=True))
    out, how = split([Utterance(Path(f"{i}.wav"), t, s) for i, (t, s) in paired])
    assert sum(5 for _ in out["labelled"]) == LABELLED_S
    assert out["valid"]
    assert out["test"]
    assert apart(out, expected)
    assert f"hold {expected}s that" in how


@pytest.mark.usefixtures("lengths")
def test_a_sentence_is_the_same_in_any_case_and_punctuation() -> None:
    texts = [f"This is the sentence {w}." for w in sentences(60)]
    everything = [*texts, *(t.upper().rstrip(".") for t in texts)]
    out, _ = split([Utterance(Path(f"{i}.wav"), t, "") for i, t in enumerate(everything)])
    assert apart(out, "sentence")


@pytest.mark.usefixtures("lengths")
def test_few_labels_are_shared_out() -> None:
    everything = [Utterance(Path(f"{i}.wav"), t, "") for i, t in enumerate(sentences(60))]
    out, _ = split(everything)
    assert len(out["labelled"]) > 30
    assert 0 < len(out["valid"]) < len(out["test"]) <= 15


@pytest.mark.parametrize("number", [1, 2])
def test_one_or_two_long_recordings_are_trained_on(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_speech, "seconds", lambda path: 3600.0)
    out, _ = split([Utterance(Path(f"{i}.wav"), None, "") for i in range(number)])
    assert len(out["unlabelled"]) == number


def test_validation_without_transcripts_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long recordings among short ones: what is too long to validate on is trained on."""
    monkeypatch.setattr(fetch_speech, "seconds", lambda path: 600.0 if int(path.stem) % 3 else 5.0)
    everything = [Utterance(Path(f"{i}.wav"), None, "") for i in range(24)]
    out, _ = split(everything)
    assert out["valid"]
    assert not {*out["valid"]} & {*out["unlabelled"]}
    assert {*out["valid"]} | {*out["unlabelled"]} == {*everything}


@pytest.mark.usefixtures("lengths")
def test_without_transcripts_it_says_what_it_needs() -> None:
    out, how = split([Utterance(Path(f"{i}.wav"), None, "") for i in range(50)])
    assert out["test"] == out["labelled"] == []
    assert len(out["valid"]) + len(out["unlabelled"]) == 50
    assert "KEY.txt" in how
    assert "20 are needed" in how


def test_own_recordings_with_their_texts_and_speakers(tmp_path: Path) -> None:
    names = ("anna/x.wav", "anna/yy.wav", "84-121123-0001.wav", "z.flac", "digits.wav")
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(16_000 + i), 16_000)
    (tmp_path / "anna/x.txt").write_text("Größe\tund\nWürde \n", encoding="utf-8")
    (tmp_path / "84-121123.trans.txt").write_text("84-121123-0001 GO ON\n", encoding="utf-8")
    (tmp_path / "digits.txt").write_text("call 12", encoding="utf-8")
    found = {u.path.name: (u.text, u.speaker) for u in own_recordings(tmp_path)}
    assert found == {
        "x.wav": ("Größe und Würde", "anna"),
        "yy.wav": (None, "anna"),
        "84-121123-0001.wav": ("GO ON", "84"),
        "z.flac": (None, ""),
        "digits.wav": (None, ""),  # only a person can tell how they are read
    }


def test_a_recording_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "b.wav", np.linspace(-0.5, 0.5, 16_000), 16_000)
    (tmp_path / "b.txt").write_text("go on", encoding="utf-8")
    (tmp_path / "a/copy.wav").write_bytes((tmp_path / "b.wav").read_bytes())
    (tmp_path / "a/link.wav").symlink_to(tmp_path / "b.wav")
    (found,) = own_recordings(tmp_path)
    assert (found.path.name, found.text) == ("b.wav", "go on")


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "A.WAV", np.zeros(16_000), 16_000)
    (tmp_path / "A.TXT").write_text("go on", encoding="utf-8")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "README.txt").write_bytes(b"caf\xe9")  # of no recording
    (found,) = own_recordings(tmp_path)
    assert found.text == "go on"
    (tmp_path / "A.TXT").write_text("go on", encoding="utf-16")
    with pytest.raises(ValueError, match=r"A.TXT is not UTF-8: iconv"):
        own_recordings(tmp_path)
    (tmp_path / "A.TXT").unlink()
    (tmp_path / "A.WAV").rename(tmp_path / "a\tb.wav")
    with pytest.raises(ValueError, match="cannot stand in a manifest"):
        own_recordings(tmp_path)


def test_the_speech_of_an_older_version_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "SOURCE.txt").write_text("Speech.\n", encoding="utf-8")
    monkeypatch.setattr(fetch_speech, "fetch", lambda output: ([], "New speech."))
    prepare(tmp_path)
    assert (tmp_path / "SOURCE.txt").read_text().startswith("New speech.")


def test_manifests_and_texts_are_written_for_the_shards(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    for i, text in enumerate(sentences(80)):
        soundfile.write(audio / f"{i}.wav", np.zeros(8_000 + i), 16_000)
        (audio / f"{i}.txt").write_text(text, encoding="utf-8")
    prepare(tmp_path / "out", audio)
    rows = {
        name: (tmp_path / "out" / name / "manifest.tsv").read_text().splitlines()[1:]
        for name in SPLITS
        if (tmp_path / "out" / name).exists()
    }
    texts = {name: {row.split("\t")[1] for row in rows[name]} for name in rows}
    known = set((tmp_path / "out/texts.txt").read_text().splitlines())
    assert texts["labelled"] == known
    assert not known & (texts["test"] | texts["valid"])
    for name in rows:
        for row in rows[name]:
            assert (tmp_path / "out" / name / row.split("\t")[0]).resolve().exists()


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_a_folder_without_audio_is_refused(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    if what == "file":
        folder.write_text("")
    elif what == "empty":
        folder.mkdir()
    with pytest.raises(ValueError, match=r"AUDIO is .*audio, which (is not a folder|holds no rec)"):
        prepare(tmp_path / "out", folder)


def test_a_machine_without_a_network_is_told_what_the_demo_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get, no espeak-ng
    monkeypatch.setattr(speech_sources, "LIBRISPEECH", "http://127.0.0.1:9/dev-clean.tar.gz")
    with pytest.raises(UnavailableError, match="make demo AUDIO=") as caught:
        prepare(tmp_path / "out")
    for part in ("librispeech", "not a Debian system", "espeak-ng", "network"):
        assert part in str(caught.value)
    command = ["launch/fetch_speech.py", str(tmp_path / "out"), "--audio", str(tmp_path / "no")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 1
    assert "which is not a folder" in done.stderr
    assert "Traceback" not in done.stderr
