"""The beam with a Transformer language model in it, as a decoder: what it says of a sentence is
what the model says of the whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.simulated import Noise, emission
from tests.lm_files import write_arpa
from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet, alphabet, of_symbols
from w2v2dist.data.vocabulary import Vocabulary
from w2v2dist.decode.beam_config import BeamConfig
from w2v2dist.decode.decoders import DecodingConfig, make_decoder
from w2v2dist.decode.language_models import LanguageModel, open_lm, transformer_scores
from w2v2dist.decode.transformer_beam import TransformerBeam
from w2v2dist.lm.lexicon import Lexicon
from w2v2dist.model.language_model import LanguageModelConfig, TransformerLanguageModel

LETTERS = alphabet("letters")
CPU = torch.device("cpu")
SENTENCES = ["THE CAT SAT ON THE MAT", "A CAT ATE THE RAT", "THE RAT SAT", "A MAT IS FLAT"]
WORDS = [*dict.fromkeys(" ".join(SENTENCES).split())]
BEAM = BeamConfig(beam_size=15, lm_weight=1.2, word_score=0.4)
PHONES = of_symbols(("sil", "k", "ae", "t"), units="phones")


def language_model(symbols: list[str], units: str, lexicon: Lexicon | None) -> LanguageModel:
    """A model of random weights that has opinions."""
    vocabulary = Vocabulary(symbols=tuple(symbols), counts=(1,) * len(symbols), units=units)  # type: ignore[arg-type]
    config = LanguageModelConfig(num_layers=2, embed_dim=16, ffn_dim=32, num_heads=2)
    torch.manual_seed(3)
    module = TransformerLanguageModel(config, len(vocabulary)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.3)
    return LanguageModel(name="lm", lexicon=lexicon, module=module, vocabulary=vocabulary)


@pytest.mark.parametrize("units", ["words", "some words", "characters", "tokens"])
def test_the_search_scores_as_the_model_does(units: str) -> None:
    spelling: Alphabet = PHONES if units == "tokens" else LETTERS
    lexicon = Lexicon.from_words(WORDS, LETTERS) if "words" in units else None
    symbols = {
        "words": WORDS,
        "some words": WORDS[:5],  # the others are <unk>
        "characters": ["|", *"ABCDEFGHIKLMNOPRSTU"],
        "tokens": [*PHONES.symbols],
    }[units]
    lm = language_model(symbols, units.split()[-1], lexicon)
    said = ["sil k ae t sil", "k ae k ae"] if units == "tokens" else SENTENCES
    emissions = [emission(t, i, spelling, Noise(strength=7)) for i, t in enumerate(said)]
    decoder = TransformerBeam(spelling, lm, CPU)
    assert bool(decoder.notes) == (units == "some words")
    for found in decoder.decode(emissions, BEAM, 5):
        assert len(found) > 1
        texts = [spelling.decode(h.path) for h in found]
        scores = transformer_scores(lm, texts, spelling)
        assert [h.lm_score for h in found] == pytest.approx(scores, abs=1e-3)
        for h in found:
            words = len(h.words) if lexicon else 0
            assert h.score == pytest.approx(h.am_score + 1.2 * h.lm_score + 0.4 * words, abs=1e-3)
            assert not lexicon or " ".join(h.words) == spelling.decode(h.path)


def test_the_batch_does_not_matter() -> None:
    lm = language_model(WORDS, "words", Lexicon.from_words(WORDS, LETTERS))
    emissions = [emission(t, i, LETTERS, Noise(strength=5)) for i, t in enumerate(SENTENCES * 3)]
    together = [*TransformerBeam(LETTERS, lm, CPU).decode(emissions, BEAM, 3)]
    alone = [
        next(iter(TransformerBeam(LETTERS, lm, CPU).decode([values], BEAM, 3)))
        for values in emissions
    ]
    for a, b in zip(together, alone, strict=True):
        assert [h.path for h in a] == [h.path for h in b]
        assert [h.score for h in a] == pytest.approx([h.score for h in b], abs=1e-4)


def test_a_transformer_reads_the_best_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = language_model(WORDS, "words", Lexicon.from_words(WORDS, LETTERS))
    arpa = write_arpa(tmp_path / "words.arpa", SENTENCES)
    real = open_lm

    def opened(name: str | None, *rest: object, **more: object) -> LanguageModel:
        return lm if name == "lm" else real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("w2v2dist.decode.decoders.open_lm", opened)
    how = DecodingConfig(decoder="rescore", lm=str(arpa), rescore_lm="lm", beam=BEAM, num_workers=1)
    decoder = make_decoder(how, LETTERS, CPU)
    assert decoder.kind == "transformer"
    emissions = [emission(t, i, LETTERS, Noise(strength=5)) for i, t in enumerate(SENTENCES)]
    beam = dataclasses.replace(BEAM, rescore_weight=0.7)
    for found in decoder.decode(emissions, beam, 4):
        texts = [LETTERS.decode(h.path) for h in found]
        assert [h.rescored for h in found] == pytest.approx(
            transformer_scores(lm, texts, LETTERS), abs=1e-4
        )
        assert [h.score for h in found] == pytest.approx(
            sorted(
                (
                    h.am_score + 1.2 * h.lm_score + 0.7 * h.rescored + 0.4 * len(h.words)
                    for h in found
                ),
                reverse=True,
            ),
            abs=1e-3,
        )


def test_a_language_model_of_another_language_is_refused() -> None:
    lm = language_model(["hello", "world"], "words", Lexicon.from_words(WORDS, LETTERS))
    with pytest.raises(ConfigError, match="has none of the words of the lexicon"):
        TransformerBeam(LETTERS, lm, CPU)
    lm = language_model([*"xyz"], "characters", None)
    with pytest.raises(ConfigError, match="has none of the symbols of the alphabet"):
        TransformerBeam(LETTERS, lm, CPU)
