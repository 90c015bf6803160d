"""Building and verifying shards: layouts, conversion, cutting, resuming, and bad input."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset

from shards import build, verify
from shards.cut import MAX_PIECE, MIN_PIECE, cut
from w2v2dist.data.audio import decode, load_any, to_flac
from w2v2dist.data.index import ShardIndex

ROOT = Path(__file__).parents[2]


def run(source: Path, output: Path, *extra: str) -> int:
    """Build in this process, one worker."""
    arguments = ["--input", source, "--output", output, "--workers", 1, "--name", "x", *extra]
    return build.main([str(a) for a in arguments])


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    """All samples as plain webdataset reads them: key -> members."""
    urls = sorted(str(p) for p in folder.glob("*.tar"))
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    found = {s["__key__"]: {**s, "json": json.loads(s["json"])} for s in dataset}
    assert len(found) == len(ShardIndex.load(folder))
    return found


def labels(folder: Path) -> dict[str, dict[str, Any]]:
    """Key -> content of the .json member."""
    return {key: sample["json"] for key, sample in samples(folder).items()}


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of the shards and their index."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def skipped(folder: Path) -> dict[str, str]:
    """What skipped.jsonl names, with the reasons."""
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {row["source"]: row["reason"] for row in map(json.loads, lines)}


def write_noise(path: Path, seconds: float = 1.0, rate: int = 16_000, **options: Any) -> None:
    """Noise: for tests of files, not of speech."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).normal(0, 0.1, int(seconds * rate))
    soundfile.write(path, noise, rate, **options)


# speech: made, and real where there is some


def test_plain_webdataset_yields_the_recordings(speech_dir: Path, tmp_path: Path) -> None:
    source = speech_dir / "librispeech" / "valid"
    assert run(source, tmp_path, "--shard-mb", "1") == 0
    index = ShardIndex.load(tmp_path)
    assert len(index.shard_paths) > 1
    index.check_shard_sizes()
    read = samples(tmp_path)
    assert list(read) == list(index.keys())
    texts = dict(
        line.split(" ", 1)
        for table in source.rglob("*.trans.txt")
        for line in table.read_text().splitlines()
    )
    assert sorted(texts) == sorted(read)
    for i, (key, sample) in enumerate(read.items()):
        wave, _ = soundfile.read(next(source.rglob(f"{key}.flac")), dtype="float32")
        np.testing.assert_array_equal(decode(sample["flac"]), wave)
        label = sample["json"]
        assert (label["key"], label["text"]) == (key, texts[key])
        assert label["speaker"] == key.split("-")[0] == index.speakers[index.speaker[i]]
        assert label["num_samples"] == len(wave) == index.num_samples[i]
        assert label["seconds"] == round(len(wave) / 16_000, 3)
        assert (source / label["source"]).is_file()
    summary = json.loads((tmp_path / "index.json").read_text())["summary"]
    assert (summary["utterances"], summary["speakers"], summary["with_text"]) == (20, 2, 20)
    assert verify.main([str(tmp_path), "--quick"]) == 0


def test_same_bytes_for_any_workers_and_after_a_kill(speech_dir: Path, tmp_path: Path) -> None:
    source = speech_dir / "librispeech" / "valid"
    script = [sys.executable, str(ROOT / "shards" / "build.py"), "--name", "x", "--shard-mb", "0.2"]
    folders = {name: tmp_path / name for name in ("one", "two", "killed")}
    assert run(source, folders["one"], "--shard-mb", "0.2") == 0
    command = [*script, "--input", str(source), "--workers", "2"]
    subprocess.run([*command, "--output", str(folders["two"])], check=True, cwd=tmp_path)

    killed = folders["killed"]
    command = [*script, "--input", str(source), "--workers", "1", "--output", str(killed)]
    process = subprocess.Popen(command, cwd=tmp_path)
    while process.poll() is None and len(list(killed.glob("*.tar"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "index.json").exists()
    before = {tar.name: tar.stat().st_mtime_ns for tar in sorted(killed.glob("*.tar"))}
    assert 3 <= len(before) < len(list(folders["one"].glob("*.tar")))
    assert run(source, killed, "--shard-mb", "0.2") == 0
    kept = [name for name, then in before.items() if (killed / name).stat().st_mtime_ns == then]
    assert len(kept) >= 2  # the last may lack its report

    expected = contents(folders["one"])
    assert len(expected) > 15
    assert contents(folders["two"]) == expected
    assert contents(killed) == expected


def test_a_lost_shard_is_rebuilt_and_other_input_refused(
    speech_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(speech_dir / "kathleen" / "valid", source)
    assert run(source, output, "--shard-mb", "0.2") == 0
    expected = contents(output)
    (output / "x-000001.tar").write_bytes(expected["x-000001.tar"][:1_000])
    assert run(source, output, "--shard-mb", "0.2") == 0
    assert contents(output) == expected

    assert run(source, output, "--shard-mb", "0.3") == 1
    assert "shard_mb changed" in capsys.readouterr().out
    next(source.rglob("*.flac")).unlink()
    assert run(source, output, "--shard-mb", "0.2") == 1
    printed = capsys.readouterr().out
    assert "already holds shards of other input: recordings changed" in printed
    assert "Use another --output" in printed
    assert contents(output) == expected


def test_timit_in_both_forms(speech_dir: Path, tmp_path: Path) -> None:
    source = speech_dir / "timit"
    assert run(source, tmp_path / "out") == 0
    found = labels(tmp_path / "out")
    texts = dict(
        line.split(" ", 1)
        for table in source.rglob("*.trans.txt")
        for line in table.read_text().splitlines()
    )
    assert {key: label["text"] for key, label in found.items()} == texts
    label = found["dr1-fvmh0-sa1"]
    assert label["phones"].split()[:4] == ["h#", "sh", "iy", "hv"]
    assert label["speaker"] == "fvmh0"

    # as the LDC ships it: NIST files, capitals, DRn/SPEAKER/, and the .WAV.wav copies some have
    original = tmp_path / "TIMIT"
    folder = original / "TRAIN" / "DR1" / "FVMH0"
    folder.mkdir(parents=True)
    for path in (source / "train" / "dr1-fvmh0").glob("s*.*"):
        if path.suffix == ".flac":
            wave, rate = soundfile.read(path, dtype="int16")
            name = folder / f"{path.stem.upper()}.WAV"
            soundfile.write(name, wave, rate, format="NIST", subtype="PCM_16")
            soundfile.write(f"{name}.wav", wave, rate)
        else:
            shutil.copy(path, folder / path.name.upper())
    assert run(original, tmp_path / "out2") == 0
    again = labels(tmp_path / "out2")
    assert len(again) == 10
    for key, label in again.items():
        same = ("text", "phones", "speaker", "num_samples")
        assert {k: label[k] for k in same} == {k: found[key][k] for k in same}
    wave = decode(samples(tmp_path / "out2")["dr1-fvmh0-sa1"]["flac"])
    np.testing.assert_array_equal(wave, decode(samples(tmp_path / "out")["dr1-fvmh0-sa1"]["flac"]))


def test_long_recordings_are_cut_at_pauses(speech_dir: Path, tmp_path: Path) -> None:
    files = sorted((speech_dir / "librispeech" / "train" / "19").rglob("*.flac"))[:9]
    rng = np.random.default_rng(0)
    parts, speech = [], []
    position = 0
    for k, path in enumerate(files):
        pause = rng.normal(0, 1e-4, 16_000 * (1 + k % 4)).astype(np.float32)
        wave = load_any(path)
        parts += [pause, wave]
        speech.append((position + len(pause), position + len(pause) + len(wave)))
        position += len(pause) + len(wave)
    folder = tmp_path / "in" / "small" / "19" / "book"
    folder.mkdir(parents=True)
    long = np.concatenate(parts)
    soundfile.write(folder / "long.flac", long, 16_000)
    (folder / "long.json").write_text('{"speaker": "nineteen"}')
    write_noise(folder / "short.flac", 1.0)
    (folder / "short.json").write_text("{}")
    assert run(tmp_path / "in", tmp_path / "out", "--layout", "auto") == 0
    found = labels(tmp_path / "out")
    assert found["small_19_book_short"]["speaker"] == "19"
    pieces = {key: label for key, label in found.items() if "+" in key}
    assert len(pieces) == len(found) - 1 >= 3
    covered = np.zeros(len(long), bool)
    for label in pieces.values():
        assert 2 <= label["seconds"] <= 35
        assert label["speaker"] == "nineteen"
        assert not covered[label["start"] : label["start"] + label["num_samples"]].any()
        covered[label["start"] : label["start"] + label["num_samples"]] = True
    assert np.mean([covered[a:b].mean() for a, b in speech]) > 0.9
    silence = np.ones(len(long), bool)
    for a, b in speech:
        silence[a:b] = False
    assert covered[silence].mean() < 0.6  # pauses over a second are gone

    # Libri-Light's own voice activity goes before ours
    marked = [[a / 16_000, b / 16_000] for a, b in speech[2:4]]
    (folder / "long.json").write_text(json.dumps({"voice_activity": marked}))
    assert run(tmp_path / "in", tmp_path / "out2") == 0
    starts = [label["start"] for key, label in labels(tmp_path / "out2").items() if "+" in key]
    assert min(starts) == speech[2][0]


def test_transcribed_recordings_are_cut_later_and_lose_their_text(
    speech_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((speech_dir / "librispeech" / "train").rglob("*.flac"))
    wave = np.concatenate([load_any(path) for path in files[:12]])
    assert len(wave) > 41 * 16_000
    source = tmp_path / "in"
    source.mkdir()
    for name, seconds in (("kept", 36), ("cut", 41)):
        soundfile.write(source / f"{name}.wav", wave[: seconds * 16_000], 16_000)
        (source / f"{name}.txt").write_text("some words\n")
    assert run(source, tmp_path / "out") == 0
    found = labels(tmp_path / "out")
    assert found["kept"]["text"] == "some words"
    pieces = [label for key, label in found.items() if key.startswith("cut+")]
    assert len(pieces) >= 2
    assert not any("text" in label for label in pieces)
    printed = capsys.readouterr().out
    assert "texts dropped by cutting  1" in printed
    assert "warning: cut recordings lost their text" in printed


# files of any kind


def test_unbroken_sound_is_cut_where_it_is_quietest() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 100 * 16_000).astype(np.float32)
    noise[30 * 16_000 : 30 * 16_000 + 4_800] *= 0.1
    pieces = cut(noise, [(0, len(noise))])
    assert pieces[0][0] == 0
    assert 30 * 16_000 < pieces[0][1] < 30 * 16_000 + 4_800
    assert [a for a, _ in pieces[1:]] == [b for _, b in pieces[:-1]]
    assert pieces[-1][1] == len(noise)
    assert all(MIN_PIECE <= b - a <= MAX_PIECE for a, b in pieces)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_obey_the_limits_for_any_speech(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wave = np.zeros(600 * 16_000, np.float32)
    edges = np.sort(rng.integers(0, len(wave) + 50_000, 2 * int(rng.integers(1, 60))))
    speech = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    pieces = cut(wave, speech)
    assert all(MIN_PIECE <= b - a <= MAX_PIECE for a, b in pieces)
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(pieces))
    assert pieces == [] or (pieces[0][0] >= 0 and pieces[-1][1] <= len(wave))
    covered = np.zeros(len(wave), bool)
    for a, b in pieces:
        covered[a:b] = True
    # what is lost is short and alone, or the last bit before a cut
    assert all(covered[a : min(b, len(wave))].any() for a, b in speech if b - a > MIN_PIECE * 2)


def test_folder_of_mixed_formats(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_noise(source / "a.wav", rate=8_000)
    stereo = np.random.default_rng(0).normal(0, 0.1, (44_100, 2))
    soundfile.write(source / "b.wav", stereo, 44_100)
    write_noise(source / "sub dir" / "ü.v1.mp3", rate=44_100)
    write_noise(source / "sub dir" / "e.ogg", rate=48_000)
    write_noise(source / "same.wav")
    write_noise(source / "same.flac", seconds=1.5)
    write_noise(source / ("long" * 40 + ".flac"))
    write_noise(source / ".hidden.wav")
    (source / "a.txt").write_text("Héllo,\nworld!\n", encoding="utf-8")
    (source / "list.trans.txt").write_text("b TWO WORDS\n")
    (source / "README.txt").write_text("not a transcript")
    assert run(source, tmp_path / "out", "--clean-text") == 0
    found = labels(tmp_path / "out")
    assert len(found) == 7
    assert skipped(tmp_path / "out") == {}
    by_source = {label["source"]: label for label in found.values()}
    assert by_source["a.wav"]["text"] == "HELLO WORLD"
    assert by_source["b.wav"]["text"] == "TWO WORDS"
    for name in ("a.wav", "b.wav"):
        assert by_source[name]["num_samples"] == 16_000
    assert all(0.9 < label["seconds"] < 1.6 for label in found.values())
    assert {key for key in found if key.startswith("same-")} == {
        by_source[f"same.{suffix}"]["key"] for suffix in ("wav", "flac")
    }
    assert all(key.isascii() and len(key) <= 80 and "." not in key for key in found)
    assert ShardIndex.load(tmp_path / "out").speaker.tolist() == [-1] * 7


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_manifests(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_noise(tmp_path / "audio" / "a.wav")
    write_noise(tmp_path / "b.wav")
    absolute = str(tmp_path / "b.wav")
    rows = [
        {"path": "audio/a.wav", "text": 'SAY "HI"', "speaker": "ann", "phones": "h# s ey"},
        {"path": absolute, "text": "", "speaker": "", "phones": ""},
        {"path": "absent.wav", "text": "GONE", "speaker": "", "phones": ""},
    ]
    table = tmp_path / f"manifest.{kind}"
    if kind == "tsv":
        lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    table.write_text("\n".join(lines) + "\n")
    assert run(table, tmp_path / "out") == 0
    found = {label["source"]: label for label in labels(tmp_path / "out").values()}
    assert set(found) == {"audio/a.wav", absolute}
    assert {k: found["audio/a.wav"][k] for k in ("text", "speaker", "phones")} == {
        k: rows[0][k] for k in ("text", "speaker", "phones")
    }
    assert not {"text", "speaker", "phones"} & set(found[absolute])
    reason = "text without audio: the file does not exist"
    assert skipped(tmp_path / "out") == {"absent.wav": reason}
    assert run(tmp_path, tmp_path / "out2") == 0  # a folder with a manifest.* in it
    assert len(labels(tmp_path / "out2")) == 2
    table.write_text("/some/root\na.wav\t16000\n")
    capsys.readouterr()
    assert run(table, tmp_path / "out3") == 1
    assert "cannot be read" in capsys.readouterr().out


def test_one_recording_is_no_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "talk.FLAC"
    soundfile.write(path, np.zeros(16_000), 16_000)
    assert build.main(["--input", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "is one recording: give the folder that it is in" in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert build.main(["--input", str(tmp_path), "--output", str(tmp_path / "file")]) == 1
    assert "is a file: choose another --output" in capsys.readouterr().out


def test_several_inputs_do_not_clash(tmp_path: Path) -> None:
    write_noise(tmp_path / "one" / "a.wav", seconds=1)
    write_noise(tmp_path / "two" / "a.wav", seconds=2)
    assert run(tmp_path / "one", tmp_path / "out", "--input", str(tmp_path / "two")) == 0
    assert sorted(label["seconds"] for label in labels(tmp_path / "out").values()) == [1, 2]


def test_empty_and_missing_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "absent", tmp_path / "out") == 1
    assert "does not exist" in capsys.readouterr().out
    (tmp_path / "in").mkdir()
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert "holds no audio in layout folder (found nothing)" in capsys.readouterr().out
    (tmp_path / "in" / "a.doc").write_text("x")
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert "(found 1 × .doc): name a folder with audio files" in capsys.readouterr().out
    assert not (tmp_path / "out" / "index.json").exists()


def test_bad_samples_are_counted_named_and_limited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("good", "cut", "phone"):
        write_noise(source / f"{name}.wav")
    whole = (source / "cut.wav").read_bytes()
    (source / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (source / "phone.wav").rename(source / "phone.m4a")
    (source / "phone.m4a").write_bytes(b"ftypM4A " * 100)
    write_noise(source / "blip.wav", seconds=0.01)
    (source / "lone.txt").write_text("no audio")
    (source / "good.txt").write_bytes("fünf".encode("latin-1"))
    assert run(source, output, "--max-bad-samples", "4") == 1
    printed = capsys.readouterr().out
    assert "5 recordings or texts cannot be used but --max-bad-samples is 4" in printed
    assert "skipped.jsonl" in printed
    assert not (output / "index.json").exists()
    assert run(source, output, "--max-bad-samples", "5") == 0
    assert list(labels(output)) == ["good"]
    reasons = skipped(output)
    assert reasons["cut.wav"].startswith("truncated: 7989 samples")
    assert reasons["phone.m4a"].startswith("unreadable")
    assert reasons["blip.wav"].startswith("too short: 160 samples")
    assert reasons["lone.txt"] == "text without audio"
    assert reasons["good.txt"] == "text is not UTF-8"
    printed = capsys.readouterr().out
    assert "skipped 1 × truncated, such as cut.wav" in printed
    (source / "good.wav").unlink()
    assert run(source, tmp_path / "none") == 1
    assert "no recording could be used" in capsys.readouterr().out
    assert list((tmp_path / "none").glob("*.tar")) == []


def test_transcript_lines_without_audio_are_named(tmp_path: Path) -> None:
    write_noise(tmp_path / "in" / "1" / "2" / "1-2-0000.flac")
    table = tmp_path / "in" / "1" / "2" / "1-2.trans.txt"
    table.write_text("1-2-0000 HERE\n1-2-0001 GONE\n")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert skipped(tmp_path / "out") == {"1/2/1-2.trans.txt: 1-2-0001": "text without audio"}
    assert labels(tmp_path / "out")["1-2-0000"]["text"] == "HERE"


def test_full_disk_is_an_error_without_a_half_file(tmp_path: Path) -> None:
    for k in range(4):
        write_noise(tmp_path / "in" / f"{k}.flac", seconds=5 if k else 1)
    script = [sys.executable, str(ROOT / "shards" / "build.py"), "--workers", "1"]
    command = [*script, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]

    def limit() -> None:  # the kernel refuses to write past this size, as it does on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    result = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "no space left" in result.stdout
    assert "run the command again" in result.stdout
    assert "Traceback" not in result.stderr
    left = [p.name for p in (tmp_path / "out").rglob("*") if p.suffix in (".tar", ".tmp")]
    assert left == []
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_two_builds_cannot_share_an_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_noise(tmp_path / "in" / "a.wav")
    with build.locked(tmp_path / "out"):
        assert run(tmp_path / "in", tmp_path / "out") == 1
    assert "another build is writing" in capsys.readouterr().out


def test_foreign_shards_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_noise(tmp_path / "in" / "a.wav")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x-000000.tar").write_bytes(b"mine")
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert "use another --output" in capsys.readouterr().out
    assert (tmp_path / "out" / "x-000000.tar").read_bytes() == b"mine"


def test_groups_hold_every_recording_once_and_keep_the_size() -> None:
    seconds = np.random.default_rng(0).uniform(0, 60, 500).tolist()
    groups = build.group(seconds, 3e6)
    assert [a for a, _ in groups] == [0, *(b for _, b in groups[:-1])]
    assert groups[-1][1] == 500
    sizes = [sum(seconds[a:b]) * build.BYTES_PER_SECOND for a, b in groups]
    assert max(sizes) <= 3e6
    assert min(sizes[:-1]) > 3e6 - 1.2e6


@pytest.mark.parametrize("arguments", [["--shard-mb", "0"], ["--workers", "0"], ["--name", "a.b"]])
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        build.main(["--input", str(tmp_path), "--output", str(tmp_path / "out"), *arguments])


def test_verify_names_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        write_noise(tmp_path / "in" / f"{k}{'x' * k}.flac", seconds=2)
    out = tmp_path / "out"
    assert run(tmp_path / "in", out, "--shard-mb", "0.0001") == 0
    index = ShardIndex.load(out)
    assert len(index.shard_paths) == 3
    assert verify.main([str(out), "--workers", "1"]) == 0
    capsys.readouterr()

    # shard 0: a flipped byte inside the audio; shard 1: cut short; shard 2: another tar of its size
    data = bytearray(index.shard_paths[0].read_bytes())
    data[int(index.offset[0]) + int(index.size[0]) // 2] ^= 0xFF
    index.shard_paths[0].write_bytes(data)
    index.shard_paths[1].write_bytes(index.shard_paths[1].read_bytes()[:-512])
    whole = index.shard_paths[2].read_bytes()
    index.shard_paths[2].write_bytes(whole.replace(index.key(2).encode() + b".flac", b"zzz.flac"))
    assert verify.main([str(out), "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "x-000000.tar was changed: its sha256" in printed
    assert "x-000001.tar was cut short" in printed
    assert "x-000002.tar" in printed
    assert "shards/build.py" in printed
    assert verify.main([str(out), "--quick"]) == 1
    assert "x-000001.tar was cut short" in capsys.readouterr().out

    for path in index.shard_paths:
        path.unlink()
    assert run(tmp_path / "in", out, "--shard-mb", "0.0001") == 0
    assert verify.main([str(out), "--workers", "1"]) == 0
    assert verify.main([str(tmp_path / "in")]) == 1
    assert "holds no shard index" in capsys.readouterr().out


def test_verify_finds_an_index_of_other_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds in (("one", 1.0), ("two", 2.0)):
        write_noise(tmp_path / name / "a.flac", seconds=seconds)
        assert run(tmp_path / name, tmp_path / f"{name}_out") == 0
    stated = json.loads((tmp_path / "one_out" / "index.json").read_text())
    # the size fits, the content does not
    tar = tmp_path / "two_out" / "x-000000.tar"
    stated["shards"][0]["bytes"] = tar.stat().st_size
    (tmp_path / "one_out" / "index.json").write_text(json.dumps(stated))
    shutil.copy(tar, tmp_path / "one_out" / tar.name)
    assert verify.main([str(tmp_path / "one_out"), "--workers", "1"]) == 1
    assert "the index does not match shard x-000000.tar" in capsys.readouterr().out


def test_flac_of_the_target_form_is_kept_as_it_is(tmp_path: Path) -> None:
    write_noise(tmp_path / "in" / "same.flac", subtype="PCM_16")
    write_noise(tmp_path / "in" / "deep.flac", subtype="PCM_24")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    assert found["same"]["flac"] == (tmp_path / "in" / "same.flac").read_bytes()
    assert found["deep"]["flac"] == to_flac(load_any(tmp_path / "in" / "deep.flac"))
