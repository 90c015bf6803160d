"""Transcribing: chunks of long recordings, times of words, formats, and what cannot be read."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from tests.unit.test_interop import GROUP, LAYER, make
from w2v2dist.cli import main
from w2v2dist.data.alphabet import alphabet, of_symbols
from w2v2dist.decode.chunks import chunks
from w2v2dist.decode.greedy import Greedy
from w2v2dist.decode.stretches import InStretches, stretches
from w2v2dist.decode.transcribe import transcribe
from w2v2dist.decode.words import Word, captions, words
from w2v2dist.interop import open_model, save_huggingface
from w2v2dist.model import Wav2Vec2ForCTC

LETTERS = alphabet("letters")


def local_model(folder: Path) -> Any:
    """A model that hears no farther than its convolutions: chunks with context are exact."""
    model = make(LAYER, True)
    assert isinstance(model, Wav2Vec2ForCTC)
    for layer in model.encoder.context_network.layers:
        nn.init.zeros_(layer.attention.out_proj.weight)
    with torch.no_grad():
        model.token_projection.weight.mul_(6)
    save_huggingface(model, folder, normalize=False)
    return open_model(folder)


def noise(seconds: float, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.uniform(0, 0.3, int(seconds * 10) + 1), 1_600)[: int(seconds * 16_000)]
    return (rng.normal(0, 1, int(seconds * 16_000)) * loud).astype(np.float32)


def times(found: list[Word], shift: float = 0) -> list[tuple[str, float, float]]:
    return [(w.text, round(w.start + shift, 2), round(w.end + shift, 2)) for w in found]


@pytest.mark.parametrize("seconds", [0.02, 0.5, 29.9, 30.0, 34.0, 61.3, 95.0])
def test_chunks_hold_every_frame_once(seconds: float) -> None:
    wave = noise(seconds)
    kept = 0
    for number, chunk in enumerate(chunks(wave, GROUP)):
        frames = GROUP.num_frames(len(chunk.waveform))
        assert chunk.last is not None
        assert 0 <= chunk.first < chunk.last <= frames
        assert number == 0 or chunk.first == 250  # 5 s of context
        kept += chunk.last - chunk.first
    assert kept == GROUP.num_frames(len(wave))


def test_a_long_recording_is_the_whole_of_its_parts(tmp_path: Path) -> None:
    """Without loss or doubling at the seams: the same symbols and times as in one piece."""
    opened = local_model(tmp_path / "hf")
    wave = noise(70)
    told: list[float] = []
    found = transcribe(opened, wave, told.append)
    with torch.no_grad():
        whole = opened.module(torch.from_numpy(wave)[None]).logits[0].log_softmax(-1)
    text = LETTERS.decode(whole.argmax(-1).tolist())
    assert found.text == text
    assert len(text) > 200
    said = words(whole, LETTERS, LAYER)
    assert times(found.words) == times(said)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(70, abs=0.1)
    parts = [transcribe(opened, wave[:560_000]), transcribe(opened, wave[560_000:])]
    assert parts[0].text[:100] == text[:100]
    assert parts[1].text[-80:] == text[-80:]
    assert transcribe(opened, noise(0.01)).text == ""
    assert transcribe(opened, np.zeros(16_000, np.float32)).seconds == 1


def test_times_and_confidence_of_words() -> None:
    path = [0, 5, 5, 0, 6, 4, 0, 7, *[0] * 45, 7, 0]  # E T | A, a pause of 0.9 s, A
    log_probs = torch.full((len(path), 32), -9.0)
    for frame, token in enumerate(path):
        log_probs[frame, token] = float(np.log(0.9 if token != 5 else 0.5))
    found = words(log_probs, LETTERS, GROUP)
    assert [(w.text, w.start, w.end) for w in found] == [
        ("ET", 0.02, 0.1), ("A", 0.14, 0.16), ("A", 1.06, 1.08)
    ]  # fmt: skip
    assert [w.confidence for w in found] == pytest.approx([0.7, 0.9, 0.9], abs=1e-3)
    chinese = of_symbols("一二")
    found = words(log_probs[:, :6], chinese, GROUP)
    assert [w.text for w in found] == ["二", "一"]
    assert words(log_probs[:0], LETTERS, GROUP) == []


def test_captions_are_cut_at_pauses_and_where_they_are_long() -> None:
    one = [Word("WORD", i * 0.4, i * 0.4 + 0.3, 1.0) for i in range(40)]
    cut = list(captions(one))
    assert [w for caption in cut for w in caption] == one
    assert all(c[-1].end - c[0].start <= 7 for c in cut)
    assert all(sum(len(w.text) + 1 for w in c) <= 85 for c in cut)
    paused = [Word("A", 0, 1, 1.0), Word("B", 2, 3, 1.0)]
    assert list(captions(paused)) == [[paused[0]], [paused[1]]]


def test_formats_and_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    local_model(tmp_path / "hf")
    model, audio = str(tmp_path / "hf"), tmp_path / "in"
    for name, rate in (("a b.wav", 16_000), ("c.flac", 8_000)):
        audio.mkdir(exist_ok=True)
        soundfile.write(audio / name, noise(2, len(name))[: 2 * rate], rate)
    assert main(["transcribe", model, str(audio / "a b.wav")]) == 0
    text = capsys.readouterr().out.strip()
    assert re.fullmatch("[A-Z' ]+", text)
    assert main(["transcribe", model, str(audio)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == f"{audio / 'a b.wav'}\t{text}"
    assert len(lines) == 2
    for kind in ("txt", "json", "srt", "vtt", "ctm"):
        out = ["--format", kind, "--output", str(tmp_path / "out")]
        assert main(["transcribe", model, str(audio), *out]) == 0
    found = json.loads((tmp_path / "out" / "a b.json").read_text())
    assert (found["text"], found["seconds"]) == (text, 2.0)
    assert " ".join(w["text"] for w in found["words"]) == text
    assert (tmp_path / "out" / "a b.txt").read_text() == text + "\n"
    ctm = [row.split() for row in (tmp_path / "out" / "a b.ctm").read_text().splitlines()]
    assert [row[4] for row in ctm] == text.split()
    assert all(row[:2] == ["a_b", "1"] and float(row[3]) > 0 for row in ctm)
    srt = (tmp_path / "out" / "a b.srt").read_text()
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\n[A-Z' ]+\n\n", srt)
    assert (tmp_path / "out" / "a b.vtt").read_text().startswith("WEBVTT\n\n00:00:00.")
    assert main(["transcribe", model, str(audio / "c.flac"), "--format", "txt"]) == 0
    assert (audio / "c.txt").exists()
    content = (audio / "a b.wav").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    capsys.readouterr()
    assert main(["transcribe", model, "-"]) == 0
    assert capsys.readouterr().out.strip() == text


def test_what_cannot_be_transcribed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local_model(tmp_path / "hf")
    model = str(tmp_path / "hf")
    soundfile.write(tmp_path / "a.wav", noise(1), 16_000)
    (tmp_path / "video.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    arguments = ["transcribe", model, str(tmp_path / "video.mp4")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "video.mp4: unreadable: MP4, MOV or M4A, which is not read: take its sound out" in error
    assert "(ffmpeg -i video.mp4 -vn -ac 1 -ar 16000 video.wav)" in error
    assert main(["transcribe", model, str(tmp_path)]) == 0
    assert f"{tmp_path}: 1 mp4 left out; take their sound out: ffmpeg" in capsys.readouterr().err
    (tmp_path / "talks").mkdir()
    for name in ("a.mkv", "b.webm", "c.MKV"):
        (tmp_path / "talks" / name).write_bytes(b"\x1aE\xdf\xa3" + bytes(100))
    assert main(["transcribe", model, str(tmp_path / "talks")]) == 2
    assert "its videos (2 mkv, 1 webm) are not read" in capsys.readouterr().err
    assert main(["transcribe", model, str(tmp_path / "talks" / "a.mkv")]) == 1
    assert "Matroska or WebM, which is not read" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "a.wav")]) == 0
    shown = capsys.readouterr()
    assert "1 of 2 could not be read" in shown.err
    assert str(tmp_path / "a.wav") in shown.out
    (tmp_path / "empty").mkdir()
    save_huggingface(make(LAYER, False), tmp_path / "pre", normalize=True)
    for given, message in (
        ([model, str(tmp_path / "gone.wav")], "does not exist: give a recording, a folder of them"),
        ([model, str(tmp_path / "empty")], "holds no recording"),
        ([model, str(tmp_path / "a.wav"), "--output", "x"], "say with --format which"),
        ([str(tmp_path / "pre"), str(tmp_path / "a.wav")], "it has no output layer to transcribe"),
        ([model, *[str(tmp_path / "a.wav")] * 2, "--format", "txt"], "two recordings would be"),
    ):
        assert main(["transcribe", *given]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("sound", ["short", "silent", "muted for a while"])
def test_no_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], sound: str) -> None:
    """What is too short for a frame, or all zeros, has an empty transcript in every format."""
    opened = local_model(tmp_path / "hf")
    wave = {"short": noise(0.02), "silent": np.zeros(36 * 16_000, np.float32)}.get(sound)
    if wave is None:
        wave = np.concatenate([noise(20), np.zeros(50 * 16_000, np.float32)])
        found = transcribe(opened, wave)
        assert found.text.startswith(transcribe(opened, wave[: 15 * 16_000]).text[:40])
        assert found.words[-1].end < 31  # the second chunk hears nothing
        return
    soundfile.write(tmp_path / "a.wav", wave, 16_000)
    arguments = ["transcribe", str(tmp_path / "hf"), str(tmp_path / "a.wav")]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == "\n"
    assert ("too short to hear a word" in shown.err) == (sound == "short")
    for kind, content in (("txt", "\n"), ("srt", ""), ("vtt", "WEBVTT\n\n"), ("ctm", "")):
        assert main([*arguments, "--format", kind]) == 0
        assert (tmp_path / f"a.{kind}").read_text() == content
    assert main([*arguments, "--format", "json"]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["words"] == []


def test_words_of_any_path() -> None:
    """Not the best one, and from a frame of the recording on."""
    log_probs = torch.full((6, 32), -5.0)
    log_probs[:, 0] = -0.1
    (word,) = words(log_probs, LETTERS, GROUP, torch.tensor([0, 5, 5, 6, 0, 0]), first_frame=100)
    assert (word.text, word.start, word.end) == ("ET", 2.02, 2.08)
    assert word.confidence == pytest.approx(np.exp(-5), abs=1e-4)


def spoken(seed: int, num_frames: int, pause: int) -> torch.Tensor:
    """Log-probabilities of words, and of pauses of up to so many frames."""
    rng = np.random.default_rng(seed)
    path: list[int] = []
    while len(path) < num_frames:
        for _ in range(int(rng.integers(1, 8))):
            path += [int(rng.integers(5, 32))] * int(rng.integers(1, 3)) + [0] * int(
                rng.integers(4)
            )
        path += [0, 4, *[0] * int(rng.integers(pause))]
    out = torch.full((num_frames, 32), -6.0)
    out[range(num_frames), path[:num_frames]] = -0.05
    return out


@pytest.mark.parametrize("pause", [1, 30])
@pytest.mark.parametrize("size", [1, 7, 500, 10_000])
def test_stretches(pause: int, size: int) -> None:
    """Every frame once, cut between words, wherever the parts begin; decoded they are the whole."""
    whole = spoken(0, 3_000, pause)
    parts = [whole[i : i + size] for i in range(0, len(whole), size)]
    found = list(stretches(iter(parts), LETTERS, 400))
    assert torch.equal(torch.cat([part for _, part in found]), whole)
    assert [first for first, _ in found] == np.cumsum(
        [0, *(len(part) for _, part in found)]
    ).tolist()[:-1]
    assert all(len(part) <= 400 for _, part in found)
    assert all(len(part) >= 200 for _, part in found[:-1])
    again = stretches([whole], LETTERS, 400)
    assert [first for first, _ in again] == [first for first, _ in found]

    def decode(log_probs: torch.Tensor, first: int) -> tuple[str, list[Word]]:
        text = LETTERS.decode(log_probs.argmax(-1).tolist())
        return text, words(log_probs, LETTERS, GROUP, first_frame=first)

    assert InStretches(decode, LETTERS, 400)(parts) == Greedy(LETTERS, GROUP)(parts)


def test_stretches_of_speech_without_a_pause() -> None:
    path = torch.randint(5, 32, (1_000,))
    log_probs = torch.full((1_000, 32), -6.0)
    log_probs[range(1_000), path] = -0.05
    log_probs[[350, 620], 0] = -1.0  # the likeliest
    firsts = [first for first, _ in stretches([log_probs], LETTERS, 400)]
    assert firsts[:3] == [0, 350, 620]
    assert list(stretches([], LETTERS)) == []
    unspaced = dataclasses.replace(LETTERS, delimiter=None)
    joined, _ = InStretches(lambda part, first: ("一", []), unspaced, 400)([log_probs])
    assert joined == "一" * len(firsts)


@pytest.mark.slow
def test_an_hour_in_bounded_memory(tmp_path: Path) -> None:
    """48 kHz stereo, of which the samples alone have 1.4 GB."""
    local_model(tmp_path / "hf")
    minute = np.stack([noise(180), noise(180, 1)], 1)  # of 48 kHz
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 48_000, 2) as file:
        for _ in range(60):
            file.write(minute)
    code = (
        "import resource, sys; from w2v2dist.cli import main; import w2v2dist.decode.transcribe;"
        "torch = sys.modules['torch']; torch.set_num_threads(1);"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024;"
        "before = used(); assert main(sys.argv[1:]) == 0; print(used() - before)"
    )
    arguments = ["transcribe", str(tmp_path / "hf"), str(tmp_path / "a.wav"), "--format", "txt"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 400
    text = (tmp_path / "a.txt").read_text()
    assert len(text) > 10_000
