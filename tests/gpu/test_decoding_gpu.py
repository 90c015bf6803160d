"""Evaluating on a GPU: the CPU's emissions, and the same words from the same emissions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.simulated import Noise, emission
from tests.distributed.processes import MODEL
from tests.unit.test_transformer_beam import BEAM, LETTERS, SENTENCES, WORDS, language_model
from w2v2dist.data.config import DataConfig
from w2v2dist.decode.emissions import kept_emissions
from w2v2dist.decode.transformer_beam import TransformerBeam
from w2v2dist.interop import open_model, save_huggingface
from w2v2dist.lm.lexicon import Lexicon
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForCTC
from w2v2dist.runtime.distributed import World

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_emissions_are_those_of_the_cpu(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_huggingface(Wav2Vec2ForCTC(Wav2Vec2Config(**MODEL), 32), tmp_path / "model")
    found = []
    for device in ("cpu", "cuda"):
        world = World(rank=0, size=1, local_rank=0, device=torch.device(device))
        opened = open_model(tmp_path / "model")
        arguments = (DataConfig(), str(shards), tmp_path / device, world)
        found.append(kept_emissions(opened, *arguments))
    assert [u.key for u in found[0].utterances] == [u.key for u in found[1].utterances]
    for i in range(len(found[0])):
        assert np.allclose(found[0][i], found[1][i], atol=2e-2)


def test_the_beam_finds_the_same_words() -> None:
    emissions = [emission(t, i, LETTERS, Noise(strength=6)) for i, t in enumerate(SENTENCES * 8)]
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        lm = language_model(WORDS, "words", Lexicon.from_words(WORDS, LETTERS))
        assert lm.module is not None
        lm.module.to(device)
        decoder = TransformerBeam(LETTERS, lm, device)
        found.append([h[0] for h in decoder.decode(emissions, BEAM)])
    assert [h.words for h in found[0]] == [h.words for h in found[1]]
    assert [h.score for h in found[0]] == pytest.approx([h.score for h in found[1]], abs=1e-2)
