"""Forced alignment: exact times, long texts in pieces, the folder, and what is left out."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tests.conftest import build_shards
from tests.unit.test_interop import GROUP, LAYER, make
from tests.unit.test_transcribe import local_model, noise
from w2v2dist.cli import main
from w2v2dist.data.alphabet import Alphabet, alphabet, of_symbols
from w2v2dist.decode import alignment
from w2v2dist.decode.align import AlignConfig, align_shards
from w2v2dist.decode.alignment import _anchors, align, pieces
from w2v2dist.decode.alignment_files import own_part
from w2v2dist.decode.words import Symbol, words
from w2v2dist.interop import save_huggingface
from w2v2dist.runtime.distributed import World

LETTERS = alphabet("letters")
PHONES = alphabet("phones")
CHINESE = of_symbols("一二三")


def emissions(path: list[int], num_tokens: int, sure: float = 0.9) -> Tensor:
    """Log-probabilities whose best path is this one, each token with the same probability."""
    rest = (1 - sure) / (num_tokens - 1)
    out = torch.full((len(path), num_tokens), float(np.log(rest)))
    out[range(len(path)), path] = float(np.log(sure))
    return out


def spelled(text: str, spoken: Alphabet, seed: int, pauses: bool = True) -> list[int]:
    """A path that reads a text, each symbol for 1 to 3 frames, blanks between."""
    rng = np.random.default_rng(seed)
    path = [0] * 5
    for token in spoken.encode(text):
        path += [token] * int(rng.integers(1, 4)) + [0] * int(rng.integers(1, 6))
        if token == spoken.delimiter and pauses:
            path += [0] * int(rng.integers(0, 30))
    return path


@pytest.mark.parametrize(
    ("spoken", "text", "said"),
    [
        (LETTERS, "it's all, ALL!", "IT'S ALL ALL".split()),
        (PHONES, "sil hh ax l ow", "h# hh ah l ow".split()),
        (CHINESE, "一二二 三", [*"一二二三"]),
    ],
)
def test_exact_times(spoken: Alphabet, text: str, said: list[str]) -> None:
    said = ["sil" if s == "h#" and "sil" in spoken.tokens else s for s in said]
    path = spelled(text, spoken, 1)
    found = align(emissions(path, spoken.num_tokens), text, spoken, GROUP)
    assert [w.text for w in found.words] == said
    runs = [i for i in range(len(path)) if path[i] and path[i] != path[i - 1]]
    runs = [i for i in runs if path[i] != spoken.delimiter]
    assert [round(s.start / 0.02) for s in found.symbols] == runs
    for s in found.symbols:
        first, end = round(s.start / 0.02), round(s.end / 0.02)
        assert len({*path[first:end]}) == 1
        assert path[end] == 0
        assert s.confidence == pytest.approx(0.9, abs=1e-4)
    assert found.score == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_alignment_of_what_is_heard_is_the_greedy_path(seed: int) -> None:
    torch.manual_seed(seed)
    path = spelled("SHE HAD YOUR DARK SUIT IN GREASY WASH WATER", LETTERS, seed)
    log_probs = (emissions(path, 32, 0.5) + 0.3 * torch.randn(len(path), 32)).log_softmax(-1)
    greedy = log_probs.argmax(-1).tolist()
    assert greedy == path
    found = align(log_probs, LETTERS.decode(greedy), LETTERS, GROUP)
    heard = words(log_probs, LETTERS, GROUP)
    assert [(w.text, w.start, w.end) for w in found.words] == [
        (w.text, w.start, w.end) for w in heard
    ]


def test_a_pause_does_not_end_a_word_that_is_written() -> None:
    ids = LETTERS.encode("NO")
    log_probs = emissions([ids[0], *[0] * 100, ids[1]], 32)
    assert [w.text for w in words(log_probs, LETTERS, GROUP)] == ["N", "O"]
    (word,) = align(log_probs, "no", LETTERS, GROUP).words
    assert (word.text, word.start, word.end) == ("NO", 0.0, 2.04)


def long_text(seed: int, count: int) -> str:
    """Words without end, none twice in a row."""
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice([*"ETAONIHSR"], rng.integers(2, 7))) for _ in range(count))


def test_long_texts_are_aligned_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same times as at once, though a tenth of the words is heard wrongly."""
    monkeypatch.setattr(alignment, "PIECE", 1_500)
    text = long_text(0, 400)
    path = spelled(text, LETTERS, 0)
    log_probs = emissions(path, 32)
    rng = np.random.default_rng(1)
    for frame in np.flatnonzero(path)[:: int(rng.integers(40, 50))]:
        log_probs[frame] = log_probs[frame].roll(3)
    torch.manual_seed(0)
    log_probs = (log_probs + 0.05 * torch.randn(log_probs.shape)).log_softmax(-1)  # no ties
    assert len(path) > 10_000
    whole = align(log_probs, text, LETTERS, GROUP, cells=1 << 40)
    cut = align(log_probs, text, LETTERS, GROUP, cells=1 << 23)
    same = cut == whole  # to show how they differ would take a minute
    assert same
    written = [tuple(LETTERS.encode(word)) for word in text.split()]
    found = pieces(log_probs, written, LETTERS)
    assert len(found) >= len(path) // 1_500
    for place in found:
        assert path[place.frame] in (0, LETTERS.delimiter)


@pytest.mark.parametrize("period", ["SIX", "TWO SIX", "TWO SIX ONE"])
@pytest.mark.parametrize("side", ["not heard", "not written"])
def test_no_anchor_where_one_of_several_is_missed(period: str, side: str) -> None:
    """A word every 10 frames. Of a repeated phrase one is not heard, or not written: no cut is at
    another place than between its two words."""
    around = long_text(0, 40).split()
    said = [tuple(LETTERS.encode(w)) for w in [*around[:20], *period.split() * 4, *around[20:]]]
    size = len(period.split())
    for missed in range(20, 20 + 3 * size + 1):
        kept = [n for n in range(len(said)) if not missed <= n < missed + size]
        heard_at = kept if side == "not heard" else [*range(len(said))]
        written_at = [*range(len(said))] if side == "not heard" else kept
        heard = [[Symbol(t, 10 * n, 10 * n + 5, 1.0) for t in said[n]] for n in heard_at]
        found = _anchors([said[n] for n in written_at], heard, 3)
        assert [cut.frame for cut in found] == [10 * written_at[cut.word] - 2 for cut in found]
        assert {cut.word for cut in found} >= {*range(1, 18)}


def test_speech_that_is_not_written() -> None:
    """The score does not see it; a pause, delimiters and blanks are no speech."""
    path = spelled("SHE HAD YOUR DARK SUIT IN GREASY WASH WATER", LETTERS, 0)
    log_probs = emissions(path, 32)
    whole = align(log_probs, "SHE HAD YOUR DARK SUIT IN GREASY WASH WATER", LETTERS, GROUP)
    assert (whole.unwritten(), whole.score) == (0.0, pytest.approx(0.9, abs=1e-3))
    part = align(log_probs, "SHE HAD YOUR WASH WATER", LETTERS, GROUP)
    assert part.score > 0.89
    first, last = (round(w.start / 0.02) for w in (whole.words[3], whole.words[7]))
    missing, all_of_it = (sum(t not in (0, 4) for t in p) for p in (path[first:last], path))
    assert part.unwritten() == pytest.approx(missing / all_of_it, abs=0.02)
    assert part.unwritten(0, whole.words[3].start) < 0.1  # an R of DARK does for that of YOUR
    assert part.unwritten(whole.words[3].start, whole.words[6].end) > 0.9
    assert part.unwritten(0, 0) == 0


def test_symbols_without_words_are_anchors_too() -> None:
    rng = np.random.default_rng(0)
    spoken = of_symbols([chr(0x4E00 + i) for i in range(500)])
    text = "".join(rng.choice(spoken.symbols, 2_000))
    log_probs = emissions(spelled(text, spoken, 0), spoken.num_tokens)
    whole = align(log_probs, text, spoken, GROUP, cells=1 << 40)
    same = align(log_probs, text, spoken, GROUP, cells=1 << 25) == whole
    assert same


def test_what_cannot_be_aligned() -> None:
    log_probs = emissions(spelled("SHE HAD", LETTERS, 0), 32)
    other = emissions(spelled(long_text(0, 800), LETTERS, 0), 32)
    for heard, text, reason in (
        (log_probs, "!?", "its label has no symbol"),
        (log_probs, "Straße", "not in the alphabet"),
        (log_probs[:8], "SEE ALL", "label of 7 tokens needs 9 frames but its audio has only 8"),
        (log_probs[:0], "A", "has only 0"),
        (log_probs * torch.nan, "A", "not finite"),
        (other, long_text(1, 800), "no 3 words in a row are heard as they are written"),
    ):
        with pytest.raises(ValueError, match=reason):
            align(heard, text, LETTERS, GROUP, cells=1 << 22)


def test_a_text_that_does_not_belong_has_a_low_score() -> None:
    log_probs = emissions(spelled("SHE HAD YOUR DARK SUIT", LETTERS, 0), 32)
    assert align(log_probs, "SHE HAD YOUR DARK SUIT", LETTERS, GROUP).score > 0.89
    assert align(log_probs, "IN GREASY WASH", LETTERS, GROUP).score < 0.5


@pytest.fixture
def transcribed(tmp_path: Path) -> Path:
    """Shards of utterances of which some cannot be aligned."""
    source = tmp_path / "wav"
    source.mkdir()
    texts = {f"u{i}": f"Hi, there{' SO' * i}" for i in range(5)}
    texts |= {"x_digits": "7 SEAS", "x_long": "A VERY LONG TEXT " * 40, "x_mute": ""}
    for number, (name, text) in enumerate(texts.items()):
        soundfile.write(source / f"{name}.flac", noise(2 + number / 4, number), 16_000)
        if text:
            (source / f"{name}.txt").write_text(text)
    soundfile.write(source / "x_silent.flac", np.zeros(32_000), 16_000)
    (source / "x_silent.txt").write_text("HI")
    return build_shards(source, tmp_path / "shards")


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_folder(tmp_path: Path, transcribed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local_model(tmp_path / "hf")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "hf"), "--data", str(transcribed), "--output", str(out)]
    assert main(["align", *arguments, "--format", "textgrid"]) == 0
    shown = capsys.readouterr().out
    assert "5 of 9 utterances aligned" in shown
    records = lines(out / "alignments.jsonl")
    assert [r["key"] for r in records] == [f"u{i}" for i in range(5)]
    for r in records:
        assert [w["text"] for w in r["words"]] == ["HI", "THERE", *["SO"] * int(r["key"][1:])]
        assert "".join(s["text"] for s in r["symbols"]) == "".join(w["text"] for w in r["words"])
        times = [t for w in r["words"] for t in (w["start"], w["end"])]
        assert times == sorted(times)
        assert times[-1] <= r["seconds"]
    reasons = {r["key"]: r["reason"] for r in lines(out / "skipped.jsonl")}
    assert [*reasons] == ["x_digits", "x_long", "x_mute", "x_silent"]
    for reason, part in zip(
        reasons.values(),
        ("'7', which is not in", "needs 679 frames", "no 'text' label", "is silent"),
        strict=True,
    ):
        assert part in reason
    for what in ("words", "symbols"):
        ctm = [row.split() for row in (out / f"{what}.ctm").read_text().splitlines()]
        said = [(r["key"], w) for r in records for w in r[what]]
        assert [row[:2] + row[4:] for row in ctm] == [
            [key, "1", w["text"], f"{w['score']:.4f}"] for key, w in said
        ]
        assert [float(row[2]) for row in ctm] == [w["start"] for _, w in said]
    summary = json.loads((out / "summary.json").read_text())
    scores = [r["score"] for r in records]
    assert summary["mean_score"] == pytest.approx(np.mean(scores), abs=1e-4)
    unwritten = [r["unwritten"] for r in records]
    assert summary["mean_unwritten"] == pytest.approx(np.mean(unwritten), abs=1e-4)
    assert [w["unwritten"] for w in summary["most_unwritten"]] == sorted(unwritten, reverse=True)
    assert [w["score"] for w in summary["worst"]] == sorted(scores)
    grid = (out / "textgrids" / "u1.TextGrid").read_text().splitlines()
    assert grid[:2] == ['File type = "ooTextFile"', 'Object class = "TextGrid"']
    edges = [float(row.split("=")[1]) for row in grid if row.startswith("      xm")]
    assert edges[0] == 0.0
    assert all(a == b for a, b in zip(edges[1::2], edges[2::2], strict=False) if b)
    assert not [*out.glob(".*")]


class Dealt(World):
    """A process whose others run before or after it."""

    def barrier(self) -> None:
        pass


@pytest.mark.parametrize("size", [2, 3, 12])
def test_the_same_on_any_number_of_processes(tmp_path: Path, transcribed: Path, size: int) -> None:
    local_model(tmp_path / "hf")
    config = AlignConfig(model=str(tmp_path / "hf"), data=str(transcribed))
    cpu = torch.device("cpu")
    for name, of in (("one", 1), ("several", size)):
        here = dataclasses.replace(config, output=str(tmp_path / name))
        for rank in reversed(range(of)):
            align_shards(here, Dealt(rank=rank, size=of, local_rank=rank, device=cpu))
    one = {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()}
    assert {p.name: p.read_bytes() for p in (tmp_path / "several").iterdir()} == one
    assert len(one) == 5


def test_what_is_refused(
    tmp_path: Path, transcribed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local_model(tmp_path / "hf")
    save_huggingface(make(LAYER, False), tmp_path / "pre", normalize=True)
    mute = tmp_path / "mute"
    mute.mkdir()
    soundfile.write(mute / "a.wav", noise(1), 16_000)
    build_shards(mute, tmp_path / "silent")
    model, data, file = str(tmp_path / "hf"), str(transcribed), str(mute / "a.wav")
    out = ["--output", str(tmp_path / "out")]
    for given, message in (
        ([model, "--data", data], "is no run folder: say with --output"),
        ([model, *out], r"name shards \(--data\)"),
        ([str(tmp_path / "pre"), "--data", data, *out], "it has no output layer"),
        ([model, "--data", str(tmp_path / "silent"), *out], "no utterance of .* could be aligned"),
        ([model, "--data", data, *out, "--segments", "a.csv"], "must end in .tsv or .jsonl"),
        ([model, "--data", data, *out, "--segment-s", "9", "3"], "the least must be positive"),
        ([model, "--data", data, *out, "--segment-s", "5", "5.2"], "up to 10.6 s or more"),
        ([model, "--data", data, *out, "--min-score", "7"], "--min-score is 7 but must be"),
        ([model, "--data", data, *out, "--max-unwritten", "-1"], "--max-unwritten is -1 but"),
        ([model, "--data", file, *out], "--data names .*a.wav, a file, but must name a folder"),
        ([model, "--data", data, "--output", file], "--output needs the folder .*a.wav is a file"),
        ([model, "--data", data, *out, "--segments", f"{file}/x.tsv"], "--segments needs the fol"),
    ):
        assert main(["align", *given]) == 2
        assert re.search(message, capsys.readouterr().err)
    # of what was left out one wants to know the reasons; nothing else is there
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["skipped.jsonl"]
    assert lines(tmp_path / "out" / "skipped.jsonl")[0]["reason"].startswith("has no 'text' label")


def fail(part: TextIO) -> None:
    part.write("{}")
    raise OSError("the disk is full")


def test_a_process_that_fails_leaves_no_part(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), own_part(tmp_path, 3) as part:
        fail(part)
    assert [*tmp_path.iterdir()] == []
