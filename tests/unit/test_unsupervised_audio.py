"""`w2v2dist unsupervised audio`: from shards to features, against slow references; what is resumed,
added, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import build_shards
from tests.speech import SENTENCE, say
from w2v2dist.cli import main
from w2v2dist.data.audio import normalize
from w2v2dist.data.config import DataConfig
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.reader import ShardReader
from w2v2dist.interop import open_model, save_huggingface
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForPretraining
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.unsupervised import audio_folder, audio_stages, mfcc_targets
from w2v2dist.unsupervised.clustering import Clusters
from w2v2dist.unsupervised.feature_store import FeatureStore, check_alike
from w2v2dist.unsupervised.fitted import Fitted
from w2v2dist.unsupervised.segments import pair_means, run_means
from w2v2dist.unsupervised.silence import Silence

V2 = ["--block", "2", "--targets", "8"]
V1 = ["--block", "2", "--version", "1", "--clusters", "16", "--pca", "12", "--dtype", "float32"]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """Utterances are read in this process, and fixtures have one thread as tests have: nothing
    waits for another process or thread to be given a core."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio_stages, "data_config", lambda opened: DataConfig(num_workers=0))
        yield


def write_model(folder: Path, seed: int = 0, **more: Any) -> Path:
    torch.manual_seed(seed)
    values = {"conv_channels": 32, "num_layers": 3, "embed_dim": 48, "ffn_dim": 64, "num_heads": 4}
    config = Wav2Vec2Config(**{**values, "num_codebook_entries": 8, "final_dim": 16, **more})
    save_huggingface(Wav2Vec2ForPretraining(config), folder, normalize=True)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m", norm_first=True)


def write_speech(folder: Path, num: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for i in range(num):
        words = np.random.default_rng([seed, i]).permutation(SENTENCE.split())[: 1 + i % 3]
        said = say(words.tolist(), 100 * seed + i, i % 3, pauses=0.5)
        soundfile.write(folder / f"s{seed}-{i:03d}.wav", said.wave, 16_000)
        lines.append(f"s{seed}-{i:03d} {said.text}\n")
    (folder / f"s{seed}.trans.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of 70 and of 6 utterances, and of 4 that are silent but for the room or altogether."""
    folder = tmp_path_factory.mktemp("speech")
    write_speech(folder / "train", 70)
    write_speech(folder / "valid", 6, 1)
    quiet = folder / "quiet"
    quiet.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        wave = np.zeros(16_000) if i == 3 else 1e-4 * rng.standard_normal(16_000)
        soundfile.write(quiet / f"q{i}.wav", wave, 16_000, subtype="FLOAT")
    return {
        path.name: build_shards(path, folder / "shards" / path.name)
        for path in (folder / "train", folder / "valid", quiet)
    }


def audio(model: Path, output: Path, *more: str) -> int:
    return main(["unsupervised", "audio", str(model), "--output", str(output), *more])


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def second(model: Path, speech: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("v2") / "out"
    arguments = ["--data", str(speech["train"]), "--valid", str(speech["valid"]), *V2]
    assert audio(model, output, *arguments) == 0
    return output


@pytest.fixture(scope="module")
def first(model: Path, speech: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("v1") / "out"
    arguments = ["--data", str(speech["train"]), "--valid", str(speech["valid"]), *V1]
    assert audio(model, output, *arguments) == 0
    return output


def spoken(shards: Path, i: int) -> tuple[str, Any, dict[str, Any]]:
    """Key, waveform without silence, and labels of an utterance."""
    index = ShardIndex.load(shards)
    reader = ShardReader(index)
    return index.key(i), Silence().removed(reader.audio(i)), reader.labels(i)


def test_frames_of_the_block_and_targets_of_the_same_speech(
    model: Path, speech: dict[str, Path], second: Path
) -> None:
    opened = open_model(model)
    fitted = Fitted.load(second)
    assert fitted is not None
    for split in ("train", "valid"):
        store = FeatureStore(second / split)
        assert store.keys == [*ShardIndex.load(speech[split]).keys()]
        for i in range(0, len(store), 5):
            key, wave, labels = spoken(speech[split], i)
            with torch.no_grad():
                batch = torch.from_numpy(normalize(wave))[None]
                expected = opened.encoder(batch, block=2).features[0]
            assert store.keys[i] == key
            np.testing.assert_allclose(store.frames(i), expected, rtol=1e-3, atol=1e-3)
            ids = Clusters(fitted.arrays["centroids"]).assign(mfcc_targets.mfcc(wave))[::2]
            found = store.targets(i)
            assert found is not None
            assert found.tolist() == ids.tolist()
            assert len(found) == store.num_frames[i]
            assert store.labels[key] == {"text": labels["text"]}
        assert store.meta["rate_hz"] == 50
        assert store.dtype == np.float16
    check_alike(FeatureStore(second / "train"), FeatureStore(second / "valid"))
    assert {p.name for p in second.iterdir()} == {
        "audio.json",
        "fitted.safetensors",
        "train",
        "valid",
        "lock",
    }


def test_segments_of_the_frames(first: Path) -> None:
    fitted = Fitted.load(first)
    assert fitted is not None
    arrays = fitted.arrays
    for split in ("train", "valid"):
        frames, pairs = FeatureStore(first / "frames" / split), FeatureStore(first / split)
        assert frames.dim == 48
        assert pairs.dim == 12
        assert not pairs.has_targets
        assert pairs.labels == frames.labels
        assert pairs.keys == frames.keys
        for i in range(len(pairs)):
            values = frames.frames(i)
            distances = np.square(values[:, None] - arrays["centroids"]).sum(-1)
            small = values @ arrays["pca_matrix"] + arrays["pca_offset"]
            runs = run_means(small, distances.argmin(1))
            slow = [runs[k : k + 2].mean(0) for k in range(0, len(runs), 2)]
            np.testing.assert_allclose(pairs.frames(i), slow, rtol=1e-4, atol=1e-4)
    # PCA is fitted on the training frames alone: their mean is nothing
    every = np.concatenate([FeatureStore(first / "frames/train").frames(i) for i in range(70)])
    projected = every @ arrays["pca_matrix"] + arrays["pca_offset"]
    assert np.abs(projected.mean(0)).max() < 1e-3
    assert (np.diff(projected.std(0)) < 1e-3).all()


def test_segments_before_they_are_paired(
    model: Path, speech: dict[str, Path], first: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Asked for later, nothing is heard again and what is there stays; at once, all is the same."""
    output, before = tmp_path / "out", contents(first)
    shutil.copytree(first, output)
    added = ["--valid", str(speech["valid"]), *V1, "--segments"]
    with monkeypatch.context() as patch:
        patch.setattr(audio_stages.BlockFeatures, "__call__", None)
        assert audio(model, output, *added) == 0
    assert "segments before they are paired are in" in capsys.readouterr().out
    after = contents(output)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"segments"}
    segments, pairs = FeatureStore(output / "segments/valid"), FeatureStore(output / "valid")
    assert segments.keys == pairs.keys
    assert segments.labels == pairs.labels
    for i in range(len(pairs)):
        np.testing.assert_array_equal(pair_means(segments.frames(i)), pairs.frames(i))
        assert segments.num_frames[i] in (2 * pairs.num_frames[i] - 1, 2 * pairs.num_frames[i])
    with pytest.raises(ValueError, match="stage is pairs in one and segments in the other"):
        check_alike(pairs, segments)
    at_once = ["--data", str(speech["train"]), *added]
    assert audio(model, tmp_path / "new", *at_once) == 0
    assert contents(tmp_path / "new/segments/valid") == contents(output / "segments/valid")
    assert FeatureStore(tmp_path / "new/segments/train").keys == FeatureStore(first / "train").keys
    assert audio(model, tmp_path / "new", *at_once) == 0  # all is there
    assert audio(model, tmp_path / "v2", "--data", str(speech["train"]), *V2, "--segments") == 2
    assert "segments are of version 1" in capsys.readouterr().err
    assert audio(model, output, "--valid", f"segments={speech['valid']}", *V1) == 2


@pytest.mark.parametrize("arguments", [V1, V2], ids=["v1", "v2"])
def test_an_interrupted_one_goes_on(
    model: Path,
    speech: dict[str, Path],
    tmp_path: Path,
    arguments: list[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = contents(request.getfixturevalue("first" if arguments is V1 else "second"))
    output = tmp_path / "out"
    command = ["--data", str(speech["train"]), "--valid", str(speech["valid"]), *arguments]
    calls: dict[str, int] = {}

    def dying(at: str, after: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            calls[at] = calls.get(at, 0) + 1
            if calls[at] == after:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return called

    heard = audio_stages.BlockFeatures.__call__
    for at, after in (("features", 66), ("fit", 1), ("pooled", 3), ("publish", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(audio_stages.BlockFeatures, "__call__", dying("features", 66, heard))
            if at == "fit":
                patch.setattr(audio_stages, "fit", dying(at, after, audio_stages.fit))
            elif at == "pooled":
                patch.setattr(Fitted, "pooled", dying(at, after, Fitted.pooled))
            elif at == "publish":
                writer = audio_stages.FeatureStoreWriter
                patch.setattr(writer, "_publish", dying(at, after, writer._publish))
            try:
                audio(model, output, *command)
            except KeyboardInterrupt:
                continue
    assert audio(model, output, *command) == 0
    assert calls["features"] < 200, "what was heard is not heard again"
    assert contents(output) == {**whole, "audio.json": contents(output)["audio.json"]}
    assert not [*output.rglob(".*")]


def test_a_set_is_added_with_what_was_fitted(
    model: Path, speech: dict[str, Path], second: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(second, output)
    shutil.rmtree(output / "valid")
    before = contents(output)
    assert audio(model, output, "--valid", str(speech["valid"]), *V2) == 0
    assert audio(model, output, "--valid", f"dev={speech['valid']}", *V2) == 0
    after = contents(output)
    assert {name: after[name] for name in before} == before
    for name in ("features.npy", "targets.npy"):
        expected = (second / "valid" / name).read_bytes()
        assert (output / "valid" / name).read_bytes() == expected
        assert (output / "dev" / name).read_bytes() == expected


@pytest.mark.parametrize("num_workers", [0, 1])
def test_silence_alone_is_left_out_and_counted(
    model: Path, speech: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, num_workers: int,
) -> None:  # fmt: skip
    config = DataConfig(num_workers=num_workers)
    monkeypatch.setattr(audio_stages, "data_config", lambda opened: config)
    both = f"{speech['valid']},{speech['quiet']}"
    assert audio(model, tmp_path / "out", "--data", both, "--max-bad", "0", *V2) == 0
    store = FeatureStore(tmp_path / "out/train")
    assert len(store) == 6
    skipped = read_jsonl(tmp_path / "out/train/skipped.jsonl")
    assert sorted(r["key"] for r in skipped) == ["q0", "q1", "q2", "q3"]
    assert "silen" in skipped[0]["reason"]
    assert "4 left out" in capsys.readouterr().out
    # and where nothing else is there
    assert audio(model, tmp_path / "other", "--data", str(speech["quiet"]), *V2) == 2
    error = capsys.readouterr().err
    assert "no utterance of --data" in error
    assert "silen" in error
    assert not (tmp_path / "other/train").exists()


def test_short_utterances_are_left_out(model: Path, tmp_path: Path) -> None:
    folder = write_speech(tmp_path / "speech", 12)
    soundfile.write(folder / "short.wav", say(["YEAR"], 1).wave[3_000:3_900], 16_000)
    shards = build_shards(folder, tmp_path / "shards")
    arguments = ["--data", str(shards), "--silence", "none", *V2]
    assert audio(model, tmp_path / "out", *arguments) == 0
    (skipped,) = read_jsonl(tmp_path / "out/train/skipped.jsonl")
    assert skipped["key"] == "short"
    assert "has 2 frames of speech" in skipped["reason"]
    assert "short" not in FeatureStore(tmp_path / "out/train").keys


def test_damaged_utterances_are_counted_and_limited(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = build_shards(write_speech(tmp_path / "speech", 8), tmp_path / "shards")
    index = ShardIndex.load(shards)
    path = index.shard_path(0)
    whole = path.read_bytes()
    broken = bytearray(whole)
    for i in (2, 5):
        start = int(index.offset[i])
        broken[start : start + int(index.size[i])] = bytes(int(index.size[i]))
    path.write_bytes(broken)
    command = ["--data", str(shards), *V2]
    assert audio(model, tmp_path / "out", *command, "--max-bad", "1") == 2
    error = capsys.readouterr().err
    assert "2 utterances could not be used, more than --max-bad 1" in error
    assert "shards/verify.py" in error
    assert audio(model, tmp_path / "out", *command, "--max-bad", "2") == 0
    skipped = read_jsonl(tmp_path / "out/train/skipped.jsonl")
    assert [record["key"] for record in skipped] == [index.key(2), index.key(5)]
    # mended: the same command goes on and misses none
    assert audio(model, tmp_path / "mended", *command, "--max-bad", "1") == 2
    path.write_bytes(whole)
    assert audio(model, tmp_path / "mended", *command, "--max-bad", "1") == 0
    assert len(FeatureStore(tmp_path / "mended/train")) == 8


def test_features_of_two_models_are_not_mixed(
    model: Path, speech: dict[str, Path], second: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = write_model(tmp_path / "other", seed=1, norm_first=True)
    valid = ["--valid", f"more={speech['valid']}", *V2]
    before = contents(second)
    assert audio(other, second, *valid) == 2
    assert "features of other settings (model is" in capsys.readouterr().err
    assert audio(model, second, "--valid", f"more={speech['valid']}", "--block", "1") == 2
    assert "(block is 2 there and 1 now)" in capsys.readouterr().err
    assert audio(model, second, "--valid", f"more={speech['valid']}", *V1) == 2
    assert "(version is 2 there and 1 now)" in capsys.readouterr().err
    assert audio(model, second, *valid, "--silence", "none") == 2
    assert "silence is webrtc there" in capsys.readouterr().err
    assert audio(model, second, "--data", str(speech["valid"]), *V2) == 2
    assert "another training set" in capsys.readouterr().err
    assert contents(second) == before
    output = tmp_path / "theirs"
    assert audio(other, output, "--data", str(speech["valid"]), *V2) == 0
    with pytest.raises(ValueError, match=r"cannot be mixed: (fitted|model) is"):
        check_alike(FeatureStore(second / "train"), FeatureStore(output / "train"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "train", "--block", "4"], "has the blocks 1 to 3"),
        (["--data", "train", "--block", "0"], "block is 0 but must be at least 1"),
        (["--data", "train"], "--block is 15"),
        (["--valid", "valid", "--block", "2"], "no clusters of a training set yet"),
        (["--block", "2"], "there are no shards"),
        (["--data", "nowhere", "--block", "2"], "holds no shard index"),
        (["--data", "train", "--valid", "train", "--block", "2"], "'train' is there twice"),
        (["--valid", "train", "--block", "2"], "cannot be the name of a split"),
        (["--data", "train", "--valid", "frames=valid", "--block", "2"], "give another name"),
        (["--data", "train", "--valid", "valid", "--valid", "valid", "--block", "2"], "twice"),
        (["--data", "train", "--version", "1", "--block", "2"], "PCA to 512 channels"),
        (["--data", "valid", "--targets", "99999", "--block", "2"], "cannot be found in"),
        (["--data", "valid,valid", "--block", "2"], "6 keys are there twice ("),
        (["--data", "train", "--max-frames", "3", "--block", "2"], "at least the number of"),
        (["--data", "train", "--max-bad", "-1", "--block", "2"], "must not be negative"),
    ],
)
def test_what_cannot_be_made(
    model: Path, speech: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    named = [",".join(str(speech.get(one, one)) for one in a.split(",")) for a in arguments]
    named = [a.replace("=valid", f"={speech['valid']}") for a in named]
    assert audio(model, tmp_path / "out", *named) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/train").exists()
    if "twice" in message:  # before anything is heard
        assert {p.name for p in tmp_path.glob("out/*")} <= {"audio.json", "lock"}


def test_too_many_channels_are_refused_before_anything_is_heard(
    model: Path, speech: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(speech["train"]), *V1, "--pca", "49"]
    assert audio(model, tmp_path / "out", *arguments) == 2
    assert "PCA to 49 channels was asked for, but the frames have 48" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_of_unknown_normalisation(
    model: Path, speech: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m/preprocessor_config.json").unlink()
    assert audio(tmp_path / "m", tmp_path / "out", "--data", str(speech["valid"]), *V2) == 2
    assert "whether its audio is normalised is not known" in capsys.readouterr().err


def test_folders_that_are_not_for_this(
    model: Path, speech: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    for name, message in (
        ("file", "is a file"),
        ("file/x", "/file is a file: choose another --output"),
        ("full", "has other things (thesis.tex)"),
    ):
        assert audio(model, tmp_path / name, "--data", str(speech["valid"]), *V2) == 2
        assert message in capsys.readouterr().err


def test_too_little_disk(
    model: Path, speech: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10**6)
    monkeypatch.setattr(audio_folder.shutil, "disk_usage", lambda path: usage)
    assert audio(model, tmp_path / "out", "--data", str(speech["train"]), *V2) == 2
    error = capsys.readouterr().err
    assert "GB of disk at most, 0.001 GB are free: free some" in error
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"audio.json", "lock"}


def test_what_is_needed_is_said_before(
    model: Path, speech: dict[str, Path], second: Path, first: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """At most so much, and not many times of it; nothing where all is there."""
    command = ["--data", str(speech["train"]), "--valid", str(speech["valid"])]
    for output, arguments in ((first, V1), (second, V2)):
        assert audio(model, output, *command, *arguments) == 0
        assert "needs 0 GB of disk" in capsys.readouterr().out
        index = {n: ShardIndex.load(speech[n]) for n in ("train", "valid")}
        seconds = sum(int(i.num_samples.sum()) for i in index.values()) / 16_000
        size = sum(p.stat().st_size for p in output.rglob("features.npy"))
        width = (48 + 12 / 2) * 4 if arguments is V1 else 48 * 2
        assert size < 50 * seconds * width < 3 * size


def test_a_damaged_fit_is_seen(
    model: Path, speech: dict[str, Path], second: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "out"
    shutil.copytree(second, output)
    path = output / "fitted.safetensors"
    whole = path.read_bytes()
    for data in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(data)
        assert audio(model, output, "--valid", f"more={speech['valid']}", *V2) == 2
        assert "fitted.safetensors" in capsys.readouterr().err


def test_clusters_of_a_sample_are_said_to_be_so(
    model: Path, speech: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(speech["valid"]), "--max-frames", "300", *V2]
    assert audio(model, tmp_path / "out", *arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "more frames than --max-frames 300" in said
    assert "of 6 utterances, drawn by the seed" in said


def test_long_recordings_are_heard_in_pieces(model: Path) -> None:
    opened = open_model(model)
    features = audio_stages.BlockFeatures(opened, 1, torch.device("cpu"))
    wave = 0.1 * np.random.default_rng(0).standard_normal(70 * 16_000).astype(np.float32)
    assert len(features(wave)) == opened.encoder.config.num_frames(len(wave))
    assert features(wave[:399]).shape == (0, 48)


def test_another_process_has_the_folder(
    model: Path, speech: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def taken(folder: Path) -> Any:
        raise audio_stages.InUseError(f"{folder} is in use by process 1: or use another run_dir")

    monkeypatch.setattr(audio_stages, "locked", taken)
    assert audio(model, tmp_path / "out", "--data", str(speech["valid"]), *V2) == 2
    assert "is in use by process 1: or use another --output" in capsys.readouterr().err


def test_what_is_said_of_a_store(second: Path) -> None:
    content = json.loads((second / "valid/store.json").read_text())
    assert content["meta"]["made_by"]["block"] == 2
    assert content["meta"]["made_by"]["stage"] == "frames"
    assert "num_clusters" not in content["meta"]["made_by"]
