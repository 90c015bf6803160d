"""Level 5 of the made languages: pieces of speech under the right phones, put together in another
order; what a generator that is told the phones reads; what is said of speech that will not do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import SHARED, build_shards
from tests.speech import write_librispeech, write_timit
from tests.unit.test_unsupervised_audio import write_model
from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.source import open_index
from w2v2dist.data.timit import fold
from w2v2dist.decode.phone_times import Timed, labeller
from w2v2dist.interop.open import open_model
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.tasks.train import open_source, read_config
from w2v2dist.unsupervised import collage_folder
from w2v2dist.unsupervised.collage import (
    FIELD,
    MOST_SILENCE,
    STRIDE,
    Collage,
    cut,
    phone_of,
    span_of,
    standard,
    words_of,
)
from w2v2dist.unsupervised.collage_folder import CollageConfig, write_collage
from w2v2dist.unsupervised.feature_store import FeatureStore
from w2v2dist.unsupervised.generator import GeneratorConfig
from w2v2dist.unsupervised.linear_reading import read_linearly
from w2v2dist.unsupervised.mfcc_targets import mfcc
from w2v2dist.unsupervised.phone_text import SILENCE, PhoneText
from w2v2dist.unsupervised.pronunciation import read_pronunciations
from w2v2dist.unsupervised.synthetic_language import WORDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def timit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards of two speakers, and of another one."""
    root = tmp_path_factory.mktemp("timit")
    speakers = {"dr1-fvmh0": "train", "dr2-marc0": "train", "dr6-mbma1": "valid"}
    write_timit(root / "timit", speakers)
    names = ("train", "valid")
    return tuple(build_shards(root / "timit" / n, root / n) for n in names)  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collage_folder, "NUM_SENTENCES", {"train": 150, "valid": 20})
    monkeypatch.setattr(collage_folder, "NUM_TEXT", 300)
    monkeypatch.setattr(collage_folder, "NUM_TARGETS", 16)
    monkeypatch.setattr("w2v2dist.unsupervised.linear_reading.NUM_STEPS", 60)


def test_every_phone_of_the_words_is_one_of_timits() -> None:
    classes = {phone_of(symbol) for symbol in fold(61)}
    words = read_pronunciations(WORDS).phones
    assert classes - {None, SILENCE} == {phone for spoken in words.values() for phone in spoken}
    assert [phone_of(s) for s in ("h#", "PAU", "bcl", "q", "zh", "ix")] == [
        SILENCE, SILENCE, None, None, "ZH", "IH",
    ]  # fmt: skip


def test_a_phone_has_the_frames_whose_centre_it_covers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        start = int(rng.integers(0, 20_000))
        end = start + int(rng.integers(1, 4_000))
        first, last = span_of(Timed(start, end, "a"), 50)
        inside = [k for k in range(50) if start <= k * STRIDE + FIELD // 2 < end]
        if inside:
            assert [*range(first, last)] == inside
        else:  # too short, or behind the last frame
            assert (last - first, 0 <= first < 50) == (1, True)
            wanted = min(50 - 1, max(0, (start + end) / 2 - FIELD / 2) / STRIDE)
            assert abs(first - wanted) <= 0.5


def test_pieces_are_the_frames_of_their_phones(timit: tuple[Path, Path]) -> None:
    index = open_index(str(timit[0]), "--speech")
    pieces = cut(index, labeller(None), None, "--speech")
    assert pieces.num_utterances == len(index) == 20
    reader = ShardReader(index)
    labels, wave = reader.labels(0), reader.audio(0)
    frames = standard(mfcc(wave)[::2])
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-4)
    spans = {**pieces.spans}
    symbols, times = labels["phones"].split(), labels["phone_spans"]
    seen: dict[str, int] = {}
    for symbol, (start, end) in zip(symbols, times, strict=True):
        if (phone := phone_of(symbol)) is None:
            continue
        first, last = span_of(Timed(start, end, symbol), len(frames))
        k = seen.setdefault(phone, 0)
        seen[phone] += 1
        a, b = spans[phone][k].tolist()
        np.testing.assert_array_equal(pieces.frames[a:b], frames[first:last])


def test_only_the_order_is_made(timit: tuple[Path, Path], tmp_path: Path) -> None:
    index = open_index(str(timit[0]), "--speech")
    pieces = cut(index, labeller(None), None, "--speech")
    phones = sorted({*pieces.spans} - {SILENCE})
    speaker = Collage(pieces=pieces, phones=phones, version=2)
    sentence = [[3, 1], [0]]
    frames, targets = speaker.speak(sentence, keyed_rng(1, "x"))
    again, _ = speaker.speak(sentence, keyed_rng(1, "x"))
    np.testing.assert_array_equal(frames, again)
    assert targets is None
    rows = {row.tobytes(): i for i, row in enumerate(pieces.frames)}
    where = np.array([rows[frame.tobytes()] for frame in frames])  # all of them are real
    jumps = np.flatnonzero(np.diff(where) != 1) + 1
    parts = np.split(where, jumps)
    order = [SILENCE, phones[3], phones[1], phones[0], SILENCE]
    if len(parts) == 6:
        order.insert(3, SILENCE)  # drawn between the words
    assert len(parts) == len(order)
    for phone, part in zip(order, parts, strict=True):
        span = [part[0], part[-1] + 1]
        inside = (pieces.spans[phone] <= span[0])[:, 0] & (pieces.spans[phone] >= span[1])[:, 1]
        assert inside.any()
        assert phone != SILENCE or len(part) <= MOST_SILENCE
    segments = Collage(pieces=pieces, phones=phones, version=1)
    joined, _ = segments.speak(sentence, keyed_rng(1, "x"))
    assert len(order) <= len(joined) < len(frames)
    whole = np.concatenate([frames[a:b] for a, b in zip([0, *jumps], [*jumps, None], strict=True)])
    assert joined.mean(0) == pytest.approx(whole.mean(0), abs=1)


@pytest.mark.parametrize("version", [1, 2])
def test_the_folder_can_be_trained_on(
    timit: tuple[Path, Path], tmp_path: Path, version: int, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--speech", str(timit[0]), "--valid", str(timit[1]), "--version", str(version)]
    command = ["unsupervised", "synthetic", "--level", "5", "--output", f"{tmp_path}/s", *given]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "words are left out: there is no" in said
    number = {1: 5, 2: 4}[version]
    assert f"train configs/unsupervised/synthetic_{number}.yaml" in said
    probe = json.loads((tmp_path / "s/probe.json").read_text())
    assert f"reads them with {probe['of_training']:.1%} errors" in said
    assert 0 < probe["of_training"] < 0.8
    store = FeatureStore(tmp_path / "s/train")
    assert (len(store), store.dim, store.has_targets) == (150, 39, version == 2)
    text = PhoneText(tmp_path / "s/text")
    assert {p for said in store.labels.values() for p in said["phones"].split()} <= {*text.symbols}
    names = [f"data.{name}={tmp_path}/s/{name}" for name in ("train", "valid", "text")]
    config = read_config(str(ROOT / f"configs/unsupervised/synthetic_{number}.yaml"), names)
    batch = next(iter(open_source(config).batches([1], [0], 0)))
    assert (batch.targets is not None) == (version == 2)
    before = store.fingerprint
    assert main(command) == 0  # what is there stays
    assert FeatureStore(tmp_path / "s/train").fingerprint == before
    with pytest.raises(ValueError, match="has another language"):
        write_collage(
            tmp_path / "s",
            CollageConfig(train=str(timit[0]), valid=str(timit[0]), version=version),  # type: ignore[arg-type]
        )


def test_features_of_a_model(
    timit: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(write_model(tmp_path / "model"))
    monkeypatch.setattr("w2v2dist.unsupervised.linear_reading.NUM_STEPS", 1)
    config = CollageConfig(train=str(timit[0]), valid=str(timit[1]), model=model, block=2)
    write_collage(tmp_path / "s", config)
    store = FeatureStore(tmp_path / "s/train")
    assert store.dim == open_model(model).encoder.config.embed_dim
    with pytest.raises(ConfigError, match="has another language"):
        write_collage(tmp_path / "s", dataclasses.replace(config, block=1))


def test_the_ceiling_is_what_can_be_read() -> None:
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((5, 16))  # of four phones and silence

    def utterance(noise: float) -> tuple[np.ndarray, np.ndarray]:
        said = rng.integers(4, size=8)
        frames = np.repeat(codes[np.append(said, 4)], 2, 0)
        return (frames + noise * rng.standard_normal(frames.shape)).astype(np.float32), said

    config = GeneratorConfig(kernel_size=1, dropout=0)
    clear, noisy = (
        read_linearly([utterance(n) for n in [noise] * 60], [utterance(noise) for _ in range(20)],
                      config, 4, seed=0)
        for noise in (0.05, 20.0)
    )  # fmt: skip
    assert clear.of_others < 0.3 < noisy.of_others  # equal neighbours cannot be told apart


def test_words_of_phones_that_are_there() -> None:
    lexicon = {"at": ("AE", "T"), "to": ("T", "UW"), "oh": ("OW",), "tow": ("T", "OW")}
    kept, missing = words_of(lexicon, ["AE", "T", "UW"])
    assert [*kept] == ["at", "to"]
    assert missing == {"OW": 2}


def test_speech_that_will_not_do(
    timit: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level = ["unsupervised", "synthetic", "--output", f"{tmp_path}/s", "--level"]
    speech = ["--speech", str(timit[0]), "--valid", str(timit[1])]
    read = build_shards(write_librispeech(tmp_path / "l", {"1": 2}, 6), tmp_path / "libri")
    (tmp_path / "t.ctm").write_text(
        "".join(f"{open_index(str(timit[0]), '').key(i)} 1 0.1 0.2 ʃ\n" for i in range(3))
    )
    for given, wrong in (
        (["5"], "there is no --speech and no --valid"),
        (["5", *speech[:2]], "there is no --valid: give shards of TIMIT"),
        (["5", "--speech", str(read), "--valid", str(read)], "no phones with times are known"),
        (["5", "--speech", f"{tmp_path}/no", "--valid", str(read)], "holds no shard index"),
        (["5", *speech, "--phones", f"{tmp_path}/none"], "does not exist"),
        (["5", *speech, "--phones", f"{tmp_path}/t.ctm"], "none of TIMIT's"),
        (["5", *speech, "--block", "3"], "--block is of a --model"),
        (["3", *speech], "level 3 takes no --speech and no --valid"),
        (["2", "--version", "1"], "level 2 takes no --version"),
        (["5", *speech, "--seed", "-1"], "seed is -1"),
    ):
        assert main([*level, *given]) == 2
        assert wrong in capsys.readouterr().err, given
        assert not (tmp_path / "s").exists(), given


def test_the_reading_follows_from_its_seed_alone() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (rng.standard_normal((12, 6)).astype(np.float32), rng.integers(4, size=5))
        for _ in range(30)
    ]
    found = []
    for state in (1, 2):  # of torch's own generator, which dropout must not read
        torch.manual_seed(state)
        found.append(read_linearly(rows[:20], rows[20:], GeneratorConfig(dropout=0.5), 4, 0))
    assert found[0] == found[1]


@pytest.mark.shared("data")
def test_the_real_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 39 phones are in it, and a generator that is told them reads more than chance: which with
    a few sentences it does not of other speakers."""
    monkeypatch.setattr(collage_folder, "NUM_SENTENCES", {"train": 1000, "valid": 100})
    for name in ("train", "valid", "test"):
        build_shards(SHARED / "data/timit" / name, tmp_path / name)
    valid = f"{tmp_path}/valid,{tmp_path}/test"
    found = write_collage(tmp_path / "s", CollageConfig(train=f"{tmp_path}/train", valid=valid))
    assert len(PhoneText(tmp_path / "s/text").symbols) == 4 + 39 + 1
    assert found.of_training < found.of_others < 0.95
