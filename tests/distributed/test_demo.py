"""`make demo AUDIO=…` from recordings to transcripts, with few updates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.speech import RATE, WORDS, say
from w2v2dist.runtime.logging import read_jsonl

ROOT = Path(__file__).parents[2]
RUSSIAN = "шея дом кот сук ель мир вода все год раз два три пять семь сон лес еда ночь".split()
CYRILLIC = dict(zip(WORDS, RUSSIAN, strict=True))


def record(folder: Path, number: int, texts: bool) -> Path:
    """Recordings of three speakers with their texts beside them."""
    names = list(CYRILLIC)
    for i in range(number):
        speaker = folder / f"s{i % 3}"
        speaker.mkdir(parents=True, exist_ok=True)
        words = [names[(i * k + k) % len(names)] for k in range(1, 4 + i % 3)]
        said = say(words, i, i % 3)
        soundfile.write(speaker / f"{i}.wav", said.wave, RATE)
        if texts:
            (speaker / f"{i}.txt").write_text(" ".join(CYRILLIC[w] for w in words), "utf-8")
    return folder


def demo(tmp_path: Path, audio: Path) -> str:
    command = [sys.executable, "launch/demo.py", "--audio", str(audio), "--share", "0.01"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "demo")],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_recordings_in_another_script_become_transcripts(tmp_path: Path) -> None:
    printed = demo(tmp_path, record(tmp_path / "audio", 60, texts=True))
    folder = tmp_path / "demo" / "own_audio"
    runs = folder / "runs"
    events = [e["event"] for e in read_jsonl(runs / "pretraining" / "events.jsonl")]
    assert events.index("preempted") < events.index("resumed") < events.index("finished")
    for name in ("from_pre-training", "from_scratch"):
        alphabet = json.loads((runs / name / "alphabet.json").read_text("utf-8"))
        assert "ш" in alphabet["tokens"]
        for decoder in ("greedy", "4-gram"):
            found = runs / name / "evaluations" / decoder / "evaluation.json"
            assert json.loads(found.read_text("utf-8"))["num_utterances"] >= 3
    words = {*(folder / "speech/texts.txt").read_text("utf-8").split()}
    assert words <= {*CYRILLIC.values()}
    assert "<html" in (folder / "report.html").read_text("utf-8")
    for part in ("said", "letters", "words", "transcribe", "pre-trained", "random", "minutes"):
        assert part in printed


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_without_texts_it_pretrains_and_says_why(tmp_path: Path) -> None:
    printed = demo(tmp_path, record(tmp_path / "audio", 40, texts=False))
    assert "KEY.txt beside KEY.wav" in printed
    assert "no word error rate" in printed
    runs = tmp_path / "demo" / "own_audio" / "runs"
    assert [p.name for p in runs.iterdir()] == ["pretraining"]
