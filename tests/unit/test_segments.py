"""Segments of long transcribed recordings: where they are cut, and the way there and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import build_shards
from tests.unit.test_transcribe import local_model, noise
from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet, alphabet, of_symbols
from w2v2dist.data.audio import load_any
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.text import TextConfig
from w2v2dist.decode.segments import (
    PADDING_S,
    SegmentConfig,
    Sources,
    Spoken,
    as_written,
    cut,
)
from w2v2dist.decode.words import Word

LETTERS = alphabet("letters")
CHINESE = of_symbols("一二三")


def symbols_of(text: str, spoken: Alphabet) -> list[Word]:
    """What an alignment finds of a text: a symbol every 0.1 s."""
    ids = [i for i in spoken.encode(text) if i != spoken.delimiter]
    return [Word(spoken.tokens[t], n / 10, n / 10 + 0.05, 0.5) for n, t in enumerate(ids)]


@pytest.mark.parametrize(
    ("spoken", "text", "said"),
    [
        (LETTERS, "— Hello,  well-known\nworld … !", ["— Hello,", "well-known", "world … !"]),
        (LETTERS, "‘Tis’ it", ["‘Tis’", "it"]),
        (alphabet("phones"), "sil q ax l", ["sil q", "ax", "l"]),
        (CHINESE, "一，二 二。", ["一，", "二 ", "二。"]),
    ],
)
def test_texts_keep_their_form(spoken: Alphabet, text: str, said: list[str]) -> None:
    symbols = symbols_of(text, spoken)
    words = as_written(text, symbols, spoken)
    assert [w.text for w in words] == said
    assert [s for w in words for s in w.scores] == [0.5] * len(symbols)
    assert words[0].start == 0.0
    assert words[-1].end == symbols[-1].end


def test_what_is_read_otherwise_than_word_by_word() -> None:
    """A replacement of two words: the alphabet's words stand for them."""
    spoken = of_symbols("|ABC", text=TextConfig(replace={"b c": "CAB"}))
    text = "A b c, A"
    words = as_written(text, symbols_of(text, spoken), spoken)
    assert [w.text for w in words] == ["A", "CAB", "A"]


@st.composite
def talks(draw: st.DrawFn) -> tuple[list[Spoken], float]:
    """Words with pauses, and how long the recording is."""
    at, words = draw(st.floats(0, 5)), []
    for n in range(draw(st.integers(1, 60))):
        end = at + draw(st.floats(0.05, 2))
        words.append(Spoken(f"w{n}", at, end, [draw(st.floats(0, 1))]))
        at = end + draw(st.floats(0, 4) | st.just(0.0))
    return words, at + draw(st.floats(0, 3))


@given(talks(), st.floats(0.5, 2), st.floats(5, 30), st.sampled_from([0.0, 0.4]))
@settings(deadline=None, max_examples=50)
def test_segments_keep_the_rules(
    talk: tuple[list[Spoken], float], least_s: float, most_s: float, min_score: float
) -> None:
    words, seconds = talk
    config = SegmentConfig(least_s=least_s, most_s=most_s, min_score=min_score)
    found, left_out = cut(words, seconds, LETTERS, config)
    end, said = 0.0, []
    for segment in found:
        assert segment.offset >= end - 0.002  # rounded to milliseconds
        end = segment.offset + segment.duration
        assert least_s - 0.001 <= segment.duration <= most_s + 0.001
        assert segment.score >= min_score - 1e-4
        texts = segment.text.split()
        numbers = [int(text[1:]) for text in texts]
        assert numbers == [*range(numbers[0], numbers[-1] + 1)]
        assert segment.offset <= words[numbers[0]].start + 0.001
        assert end >= words[numbers[-1]].end - 0.001
        said += numbers
    assert end <= seconds + 0.002
    assert said == sorted({*said})
    assert bool(left_out) == (len(said) < len(words))


def test_cuts_are_at_the_longest_pauses() -> None:
    starts = [0.5 * n + (n >= 20) * 0.6 + (n >= 50) * 0.9 for n in range(70)]  # after 10, 25 s
    words = [Spoken(str(n), at, at + 0.4, [0.5 + (n < 20) / 4]) for n, at in enumerate(starts)]
    found, _ = cut(words, 40.0, LETTERS, SegmentConfig(most_s=20))
    assert [segment.text.split()[0] for segment in found] == ["0", "20", "50"]
    assert found[1].offset == pytest.approx(10.6 - PADDING_S)
    assert found[0].offset == 0.0
    assert found[-1].offset + found[-1].duration == pytest.approx(starts[-1] + 0.4 + PADDING_S)
    assert [segment.score for segment in found] == [0.75, 0.5, 0.5]
    good, left_out = cut(words, 40.0, LETTERS, SegmentConfig(most_s=20, min_score=0.6))
    assert good == found[:1]
    assert left_out == {"a score below 0.6": 2}
    whole, _ = cut(words[:3], 40.0, LETTERS, SegmentConfig(least_s=0.5))
    assert [segment.text for segment in whole] == ["0 1 2"]
    assert cut([], 5.0, LETTERS, SegmentConfig()) == ([], {})
    more, left_out = cut(words, 40.0, LETTERS, SegmentConfig(most_s=20), lambda a, b: a / 100)
    assert [segment.unwritten for segment in more] == [0.0, 0.103]
    assert left_out == {"more than 0.2 of what is heard is not written": 1}


def test_recordings_are_found_where_they_are(tmp_path: Path) -> None:
    lengths = {"a/x.wav": 3, "b/x.wav": 3, "a/w.wav": 3, "b/w.wav": 5}
    for name in (*lengths, "a/clips/y.mp3"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if name in lengths:
            soundfile.write(path, np.zeros(8_000 * lengths[name]), 8_000)
    a, b = tmp_path / "a", tmp_path / "b"
    x, w = {"source": "x.wav"}, {"source": "w.wav"}
    assert Sources([a]).find(x, 3) == a / "x.wav"
    assert Sources([b, a]).find({"source": "y.mp3"}, 9) == a / "clips" / "y.mp3"  # no header
    assert Sources([]).find({"source": str(b / "x.wav")}, 3) == b / "x.wav"  # a table names it so
    with pytest.raises(ConfigError, match=r"x.wav is there 2 times .*--audio-root"):
        Sources([a, b]).find(x, 3)
    with pytest.raises(ConfigError, match=r"z.wav is not there"):
        Sources([a, b]).find({"source": "z.wav"}, 3)
    # of the same name, but another recording
    assert Sources([a, b]).find(w, 5.05) == b / "w.wav"
    assert Sources([a, b]).find({**w, "offset": 2.0}, 2.5) == b / "w.wav"
    assert Sources([a, b]).find({**w, "start": 32_000}, 2.5) == b / "w.wav"
    for labels, seconds in ((w, 5), ({**w, "offset": 2.0}, 2.5)):
        with pytest.raises(ConfigError, match=r"w.wav has another length"):
            Sources([a]).find(labels, seconds)


def test_recordings_of_one_name_in_two_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each segment is of its own, or left out: never of the other."""
    local_model(tmp_path / "hf")
    for number, seconds in enumerate((20, 30)):
        folder = tmp_path / f"in{number}"
        folder.mkdir()
        soundfile.write(folder / "talk.wav", noise(seconds, number), 16_000, "PCM_16")
        (folder / "talk.txt").write_text("so it is said " * 10)
    more = ["--no-cut", "--input", str(tmp_path / "in1")]
    whole = build_shards(tmp_path / "in0", tmp_path / "whole", more=more)
    table = tmp_path / "table.jsonl"
    arguments = ["align", str(tmp_path / "hf"), "--data", str(whole), "--segments", str(table)]
    arguments += ["--output", str(tmp_path / "out"), "--max-unwritten", "1"]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert {row["path"] for row in rows} == {str(tmp_path / f"in{n}/talk.wav") for n in (0, 1)}
    for n, seconds in enumerate((20, 30)):
        ends = [r["offset"] + r["duration"] for r in rows if f"in{n}/talk" in r["path"]]
        assert max(ends) <= seconds + 0.001
    capsys.readouterr()
    first = ShardReader(ShardIndex.load(whole)).labels(0)
    same = 0 if first["num_samples"] == 20 * 16_000 else 1
    assert main([*arguments, "--audio-root", str(tmp_path / f"in{same}")]) == 0
    assert "1 segment was left out: its recording has another length" in capsys.readouterr().out
    kept = [json.loads(line)["path"] for line in table.read_text().splitlines()]
    assert {*kept} == {str(tmp_path / f"in{same}/talk.wav")}


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_from_long_recordings_to_shards_with_their_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Built whole, aligned, cut and built again: the audio and the text of the recordings, the
    shards of which are refused without the recordings."""
    local_model(tmp_path / "hf")
    rng = np.random.default_rng(0)
    long = tmp_path / ("talks-" * 15)
    texts = {}
    for number, seconds in enumerate((55, 45)):
        (long / f"s{number}").mkdir(parents=True)
        texts[number] = " ".join(rng.choice(["Well,", "hello", "world!", "Öl", "so"], 60))
        texts[number] = texts[number].replace("Öl", "oil")
        path = long / f"s{number}" / "talk.wav"
        soundfile.write(path, np.tile(noise(seconds, number)[:, None], 2), 16_000, "PCM_16")
        path.with_suffix(".txt").write_text(texts[number])
    cut_by_voice = build_shards(long, tmp_path / "dropped")
    summary = json.loads((cut_by_voice / "index.json").read_text())["summary"]
    assert summary["texts_dropped_by_cutting"] == 2
    whole = build_shards(long, tmp_path / "whole", more=["--no-cut"])
    assert ShardIndex.load(whole).num_samples.tolist() in ([880_000, 720_000], [720_000, 880_000])
    table = tmp_path / f"segments.{kind}"
    arguments = [str(tmp_path / "hf"), "--data", str(whole), "--output", str(tmp_path / "out")]
    arguments += ["--segments", str(table), "--segment-s", "1", "20", "--max-unwritten", "1"]
    assert main(["align", *arguments]) == 0
    assert f"wrote {table}: " in capsys.readouterr().out
    shards = build_shards(table, tmp_path / "cut")
    index = ShardIndex.load(shards)
    reader = ShardReader(index)
    assert len(index) > 6
    assert len({*index.keys()}) == len(index)
    found: dict[int, list[tuple[float, str]]] = {0: [], 1: []}
    for i in range(len(index)):
        labels, wave = reader.labels(i), reader.audio(i)
        assert 16_000 <= len(wave) <= 320_000
        original = load_any(labels["source"])
        start = round(labels["offset"] * 16_000)
        np.testing.assert_array_equal(wave, original[start : start + len(wave)])
        number = int(Path(labels["source"]).parent.name[1:])
        found[number].append((labels["offset"], labels["text"]))
    for number, parts in found.items():
        said, at = texts[number], 0
        for _, text in sorted(parts):  # in order, as it was written
            at = said.index(text, at) + len(text)
        assert sum(len(text.split()) for _, text in parts) >= 30
    long.rename(tmp_path / "moved")
    assert main(["align", *arguments]) == 2
    assert "is not there" in capsys.readouterr().err
    assert main(["align", *arguments, "--audio-root", str(tmp_path / "moved")]) == 0


def test_an_older_folder_is_not_continued_uncut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from shards import build

    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", noise(3), 16_000)
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    arguments += ["--workers", "1"]
    assert build.main([*arguments, "--no-cut"]) == 0
    assert build.main([*arguments, "--no-cut"]) == 0
    capsys.readouterr()
    assert build.main(arguments) == 1
    assert "no_cut changed since they were begun" in capsys.readouterr().out
