"""Transcribing: chunks of long recordings, times of words, formats, and what cannot be read."""

from __future__ import annotations

import io
import json
import re
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
    assert [(w.text, w.start, w.end) for w in found.words] == [
        (w.text, w.start, w.end) for w in said
    ]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(70, abs=0.1)
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
    assert "video.mp4: unreadable: " in capsys.readouterr().err
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
