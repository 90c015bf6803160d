"""Silence is cut out, by each of the ways to find it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.speech import say
from w2v2dist.config import ConfigError
from w2v2dist.unsupervised import silence
from w2v2dist.unsupervised.silence import Silence

WORDS = "SHE HAD YOUR DARK SUIT IN GREASY WASH WATER ALL YEAR".split()


@pytest.mark.parametrize(("detector", "kept", "left"), [("webrtc", 0.9, 0.5), ("rvad", 0.7, 0.6)])
def test_pauses_go_and_words_stay(detector: silence.Detector, kept: float, left: float) -> None:
    said = say(WORDS, 3, pauses=0.6)
    is_speech = np.zeros(len(said.wave), bool)
    for start, end, name in said.phones:
        is_speech[start:end] = name not in ("h#", "pau")
    chosen = np.zeros(len(said.wave), bool)
    spans = Silence(detector).speech(said.wave)
    for start, end in spans:
        assert not chosen[start:end].any()
        chosen[start:end] = True
    assert spans == sorted(spans)
    assert len(spans) > 1
    assert (chosen & is_speech).sum() / is_speech.sum() > kept
    assert (chosen & ~is_speech).sum() / (~is_speech).sum() < left
    joined = Silence(detector).removed(said.wave)
    np.testing.assert_array_equal(joined, said.wave[chosen])
    assert joined.dtype == np.float32
    assert not np.shares_memory(joined, said.wave)


def test_none_keeps_all() -> None:
    wave = say(WORDS, 3).wave
    np.testing.assert_array_equal(Silence("none").removed(wave), wave)


@pytest.mark.parametrize("detector", ["webrtc", "rvad"])
@pytest.mark.parametrize("num_samples", [0, 1, 399, 480, 1_599, 1_600, 1_601, 16_000])
def test_what_is_silent_or_short(detector: silence.Detector, num_samples: int) -> None:
    found = Silence(detector)
    assert found.speech(np.zeros(num_samples, np.float32)) == []
    assert found.removed(np.full(num_samples, 0.5, np.float32)).shape == (0,)
    noise = 1e-3 * np.random.default_rng(0).standard_normal(num_samples)
    assert len(found.removed(noise.astype(np.float32))) <= num_samples


def test_the_room_alone_is_silence() -> None:
    noise = 3e-4 * np.random.default_rng(0).standard_normal(48_000)
    assert Silence("webrtc").speech(noise.astype(np.float32)) == []


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rVADfast", None)
    silence._rvad_detector.cache_clear()
    with pytest.raises(ConfigError, match="pip install"):
        Silence("rvad").speech(say(WORDS, 3).wave)
