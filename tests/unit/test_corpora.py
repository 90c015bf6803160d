"""Tables and layouts of common corpora, and inputs of which a part is bad: what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from shards import build
from tests.unit.test_shards import labels, run, skipped


def wav(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).normal(0, 0.1, int(16_000 * seconds))
    soundfile.write(path, noise, 16_000)
    return path


def texts(output: Path) -> dict[str, str | None]:
    return {label["source"]: label.get("text") for label in labels(output).values()}


def test_a_file_that_is_named_twice_is_two_utterances(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav")
    wav(tmp_path / "b.wav")
    rows = "path\ttext\na.wav\tFIRST\nb.wav\tOTHER\na.wav\tSECOND\n"
    (tmp_path / "manifest.tsv").write_text(rows)
    assert run(tmp_path, tmp_path / "out") == 0
    found = {key: label["text"] for key, label in labels(tmp_path / "out").items()}
    assert found == {"a_0001": "FIRST", "a_0002": "SECOND", "b": "OTHER"}


@pytest.mark.parametrize("last", ["duration", "end"])
def test_segments_are_cut(tmp_path: Path, last: str) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 64_000)
    soundfile.write(tmp_path / "long.flac", wave, 16_000)
    ends = {"duration": (2.0, 1.5), "end": (2.0, 3.5)}[last]
    rows: list[dict[str, Any]] = [
        {"audio_filepath": "long.flac", "text": "FIRST HALF", "offset": 0.0, last: ends[0]},
        {"audio_filepath": "long.flac", "text": "SECOND HALF", "offset": "2", last: ends[1]},
        {"audio_filepath": "long.flac", "text": "BEYOND", "offset": 3.5, last: 9.0},
        {"audio_filepath": "long.flac", "text": "NO NUMBER", "offset": "x", last: 9.0},
    ]
    (tmp_path / "train_manifest.json").write_text("\n".join(map(json.dumps, rows)))
    assert run(tmp_path, tmp_path / "out") == 0
    found = {label["text"]: label["num_samples"] for label in labels(tmp_path / "out").values()}
    assert found == {"FIRST HALF": 32_000, "SECOND HALF": 24_000}
    assert len(skipped(tmp_path / "out")) == 1  # both of one file
    (tmp_path / "dev_manifest.json").write_text(json.dumps(rows[0]))


def test_common_voice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav(tmp_path / "clips" / "c1.mp3.wav")
    wav(tmp_path / "clips" / "c2.wav")
    head = "client_id\tpath\tsentence\tup_votes\tlocale\n"
    body = 'ann\tc1.mp3.wav\tHe said "no\t2\ten\nbob\tc2.wav\tLine\u2028two\x85three\t2\ten\n'
    (tmp_path / "validated.tsv").write_text(head + body, encoding="utf-8")
    (tmp_path / "train.tsv").write_text(head, encoding="utf-8")
    assert run(tmp_path, tmp_path / "out") == 0
    found = labels(tmp_path / "out")
    assert {label["text"] for label in found.values()} == {
        'He said "no', "Line\u2028two\x85three"
    }  # fmt: skip
    assert {label["speaker"] for label in found.values()} == {"ann", "bob"}
    assert "columns that are not read: up_votes, locale" in capsys.readouterr().out


def test_csv_jsonl_and_lists(tmp_path: Path) -> None:
    for name in "ab":
        wav(tmp_path / f"{name}.wav")
    tables = {
        "t.csv": 'wav_filename,wav_filesize,transcript\na.wav,9,"ONE, ""TWO"""\nb.wav,9,THREE\n',
        "t.jsonl": '{"audio": "a.wav", "text": "ONE, \\"TWO\\""}\n\n'
        '{"audio": "b.wav", "text": "THREE"}\r\n',
        "t.json": json.dumps(
            [{"file": "a.wav", "sentence": 'ONE, "TWO"'}, {"file": "b.wav", "sentence": "THREE"}]
        ),
    }
    for name, content in tables.items():
        (tmp_path / name).write_text(content)
        assert run(tmp_path / name, tmp_path / f"out-{name.replace('.', '-')}") == 0
        found = texts(tmp_path / f"out-{name.replace('.', '-')}")
        assert found == {"a.wav": 'ONE, "TWO"', "b.wav": "THREE"}, name


def test_voxpopuli_names_utterances_not_files(tmp_path: Path) -> None:
    wav(tmp_path / "2013" / "20130101-en_1.ogg")
    head = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\n"
    body = "20130101-en_1\tHello!\thello\ts1\ttrain\n20130101-en_2\tGone\tgone\ts1\ttrain\n"
    (tmp_path / "asr_train.tsv").write_text(head + body)
    assert run(tmp_path, tmp_path / "out") == 0
    (label,) = labels(tmp_path / "out").values()
    assert (label["text"], label["speaker"]) == ("hello", "s1")
    assert skipped(tmp_path / "out") == {
        "20130101-en_2": "text without audio: the file does not exist"
    }


def test_mls_and_libritts(tmp_path: Path) -> None:
    wav(tmp_path / "mls" / "audio" / "12" / "34" / "12_34_000001.flac")
    (tmp_path / "mls" / "transcripts.txt").write_text("12_34_000001\tein text\n12_34_9\tfehlt\n")
    assert run(tmp_path / "mls", tmp_path / "out1") == 0
    (label,) = labels(tmp_path / "out1").values()
    assert (label["text"], label["speaker"]) == ("ein text", "12")
    assert skipped(tmp_path / "out1") == {"transcripts.txt": "text without audio: 12_34_9"}
    folder = tmp_path / "tts" / "84" / "121"
    wav(folder / "84_121_000000_000001.wav")
    (folder / "84_121_000000_000001.normalized.txt").write_text("Mister Smith")
    (folder / "84_121_000000_000001.original.txt").write_text("Mr. Smith")
    assert run(tmp_path / "tts", tmp_path / "out2") == 0
    (label,) = labels(tmp_path / "out2").values()
    assert (label["text"], label["speaker"]) == ("Mister Smith", "84")
    assert skipped(tmp_path / "out2") == {}


def test_one_bad_file_does_not_end_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "b.wav").symlink_to("annexed")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert skipped(tmp_path / "out") == {"b.wav": "cannot be read: the link leads nowhere: annexed"}
    assert "no text was found" in capsys.readouterr().out
    (tmp_path / "in" / "c.raw").write_bytes(bytes(64_000))
    rows = "path\ttext\na.wav\tONE\nb.wav\tTWO\nc.raw\tTHREE\n"
    (tmp_path / "in" / "manifest.tsv").write_text(rows)
    assert run(tmp_path / "in", tmp_path / "out2") == 0
    assert texts(tmp_path / "out2") == {"a.wav": "ONE"}
    assert skipped(tmp_path / "out2")["c.raw"].endswith("has no rate: convert it to WAV")
    assert "no text was found" not in capsys.readouterr().out


def test_a_build_that_came_to_nothing_takes_mended_recordings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav(tmp_path / "in" / "a.wav").write_bytes(b"half of it")
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert "no recording could be used (a.wav" in capsys.readouterr().out
    wav(tmp_path / "in" / "a.wav")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    wav(tmp_path / "in" / "b.wav")
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert "already holds shards of other input: recordings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.tsv", "a\tb\n1\t2\n", "its columns are a, b"),
        ("m.json", '{"path": "a.wav"', "JSONDecodeError"),
        ("m.jsonl", "[1]", "a row is no object"),
        ("m.jsonl", "1\n2\n", "a row is no object"),
        ("m.json", "[" * 100_000, "cannot be read"),
        ("m.csv", 'path,text\n"a.wav', "lists no recordings"),
    ],
)
def test_tables_that_cannot_be_read(
    tmp_path: Path, name: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert run(tmp_path / name, tmp_path / "out") == 1
    assert message in capsys.readouterr().out


def test_several_tables_and_file_systems_without_locks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wav(tmp_path / "in" / "a.wav")
    for name in ("train_manifest.json", "dev_manifest.json"):
        (tmp_path / "in" / name).write_text('{"audio_filepath": "a.wav", "text": "x"}\n')
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert "has several tables (dev_manifest.json, train_manifest.json)" in capsys.readouterr().out

    def flock(*arguments: Any) -> None:
        raise OSError(38, "Function not implemented")  # Lustre

    monkeypatch.setattr(build.fcntl, "flock", flock)
    assert run(tmp_path / "in" / "dev_manifest.json", tmp_path / "out") == 0
    assert "has no locks (Function not implemented)" in capsys.readouterr().out
