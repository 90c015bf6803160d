"""Made languages: what a seed makes, that its speech can be read by who knows the phones, and that
the text of another language does not explain it."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from w2v2dist.cli import main
from w2v2dist.lm.arpa import read_arpa
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.tasks.train import open_source, read_config
from w2v2dist.unsupervised import synthetic
from w2v2dist.unsupervised.feature_store import FeatureStore
from w2v2dist.unsupervised.made_language import SILENCE
from w2v2dist.unsupervised.phone_text import PhoneText
from w2v2dist.unsupervised.synthetic import LEVELS, Voice, write_synthetic
from w2v2dist.unsupervised.synthetic_language import MarkovLanguage, english, invented

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A small language of each level."""
    root = tmp_path_factory.mktemp("languages")
    with pytest.MonkeyPatch.context() as patch:
        for number, level in LEVELS.items():
            small = dataclasses.replace(level, num_train=150, num_valid=10, num_text=300)
            patch.setitem(synthetic.LEVELS, number, small)
            write_synthetic(root / str(number), number, seed=5)
    return {number: root / str(number) for number in LEVELS}


@pytest.mark.parametrize("number", sorted(LEVELS))
def test_speech_and_text_are_of_one_language(folders: dict[int, Path], number: int) -> None:
    folder = folders[number]
    store, text = FeatureStore(folder / "train"), PhoneText(folder / "text")
    said = {label["phones"] for label in store.labels.values()}
    assert len(store) == len(store.labels) == 150
    assert {p for line in said for p in line.split()} <= {*text.symbols[4:-1]}
    lines = {
        " ".join(text.symbols[i] for i in text.line(k) if i != text.silence)
        for k in range(len(text))
    }
    assert len(lines & said) < len(said) / 2, "other sentences, but a short one may be there, too"
    silent = [text.line(k)[[0, -1]].tolist() == [text.silence] * 2 for k in range(len(text))]
    assert all(silent) if LEVELS[number].silences else not any(silent)
    assert store.has_targets == LEVELS[number].anisotropic


@pytest.mark.parametrize("number", sorted(LEVELS))
def test_the_other_language_does_not_explain_it(folders: dict[int, Path], number: int) -> None:
    store = FeatureStore(folders[number] / "train")
    rows = [label["phones"].split() for label in store.labels.values()]

    def nats(name: str) -> float:
        model = read_arpa(PhoneText(folders[number] / name).lm_path(False))
        scored = [score for row in rows for score in model.score(row)]
        return -float(np.mean(scored)) * np.log(10)

    assert nats("other") > nats("text") + np.log(3)


@pytest.mark.parametrize("number", sorted(LEVELS))
def test_durations(number: int) -> None:
    level = LEVELS[number]
    language = level.language(5)
    voice = Voice(level, len(language.phones), 5)
    frames = said = 0.0
    for i in range(200):
        rng = keyed_rng(i, "test")
        sentence = language.sentence(rng)
        values, targets = voice.speak(sentence, rng)
        frames += len(values)
        said += sum(map(len, sentence))
        if level.silences:  # one at each end, and between some words
            said += 2 + SILENCE * (len(sentence) - 1)
        assert (targets is None) or len(targets) == len(values)
    mean = sum(n * p for n, p in enumerate(level.durations, 1))
    assert frames / said == pytest.approx(mean, rel=0.05)
    assert mean == pytest.approx({2: 1.0, 3: 1.4, 4: 4.44}[number], abs=0.02)


def test_who_knows_the_phones_reads_them(folders: dict[int, Path]) -> None:
    """A linear classifier of frames: the best that a kernel of one can do."""
    store = FeatureStore(folders[2] / "train")
    frames = np.concatenate([store.frames(i) for i in range(len(store))])
    said = [p for key in store.keys for p in store.labels[key]["phones"].split()]
    names = sorted({*said})
    wanted = np.array([[p == name for name in names] for p in said], float)
    inputs = np.hstack([frames, np.ones((len(frames), 1))])
    weights = np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    read = (inputs @ weights).argmax(1)
    assert np.mean(read == wanted.argmax(1)) > 0.99


def test_everything_follows_from_the_seed(tmp_path: Path, folders: dict[int, Path]) -> None:
    small = dataclasses.replace(LEVELS[2], num_train=150, num_valid=10, num_text=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthetic.LEVELS, 2, small)
        write_synthetic(tmp_path / "again", 2, seed=5)
        write_synthetic(tmp_path / "again", 2, seed=5)  # what is there stays
        write_synthetic(tmp_path / "other", 2, seed=6)
        with pytest.raises(ValueError, match="has another language"):
            write_synthetic(tmp_path / "other", 2, seed=5)
    for kind, names in ((FeatureStore, ("train", "valid")), (PhoneText, ("text", "other"))):
        for name in names:
            first = kind(folders[2] / name).fingerprint
            assert kind(tmp_path / "again" / name).fingerprint == first
            assert kind(tmp_path / "other" / name).fingerprint != first


def test_languages() -> None:
    rng = np.random.default_rng(0)
    markov = MarkovLanguage(3)
    lines = [markov.sentence(rng)[0] for _ in range(300)]
    assert len({tuple(line[:2]) for line in lines}) == len({line[-1] for line in lines}) == 1
    assert all(8 <= len(line) <= 16 for line in lines)
    assert not any(a == b for line in lines for a, b in itertools.pairwise(line))
    after: dict[tuple[int, int], set[int]] = {}
    for line in lines:
        for a, b, c in zip(line, line[1:], line[2:-1], strict=False):
            after.setdefault((a, b), set()).add(c)
    assert max(map(len, after.values())) <= 4
    assert len(english(0).phones) == 39
    assert english(0).phones == invented(0).phones
    assert len(english(0, num_phones=12).phones) == 12
    assert english(0, num_phones=12).phones == invented(0, num_phones=12).phones
    words = [len(english(0).sentence(rng)) for _ in range(50)]
    assert min(words) >= 2
    assert max(words) <= 5


@pytest.mark.parametrize("number", sorted(LEVELS))
def test_its_configuration_opens_it(folders: dict[int, Path], number: int) -> None:
    names = [f"data.{name}={folders[number]}/{name}" for name in ("train", "valid", "text")]
    config = read_config(str(ROOT / f"configs/unsupervised/synthetic_{number}.yaml"), names)
    source = open_source(config)
    batch = next(iter(source.batches([1], [0], 0)))
    assert len(batch.features) == config.data.batch_size
    assert (batch.targets is not None) == (number == 4)


def test_the_command_names_the_training(tmp_path: Path, capsys, monkeypatch) -> None:
    small = dataclasses.replace(LEVELS[2], num_train=10, num_valid=2, num_text=20)
    monkeypatch.setitem(synthetic.LEVELS, 2, small)
    given = [
        "unsupervised",
        "synthetic",
        "--level",
        "2",
        "--output",
        f"{tmp_path}/s",
        "--seed",
        "1",
    ]
    assert main(given) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"train configs/unsupervised/synthetic_2.yaml data.train={tmp_path}/s/train" in said
