"""Weights of a search without labels: what is made small by hand, and that trials go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from w2v2dist.config import ConfigError
from w2v2dist.decode.beam_config import BeamConfig
from w2v2dist.decode.decoders import DecodingConfig, make_decoder
from w2v2dist.lm.arpa import Arpa, read_arpa
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.unsupervised.decode import alphabet_of
from w2v2dist.unsupervised.phone_text import SPECIAL, write_phone_text
from w2v2dist.unsupervised.tune import LEAST_RATE, Judge, Search, louder, perplexity, tune

START = {"lm_weight": 1.0, "silence_weight": 0.0}
# a 1/2, b 1/4, the end 1/4, whatever is before (KenLM wants a bigram)
UNIGRAMS = (
    "\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n-99\t<s>\t0\n-0.60206\t</s>\n-0.30103\ta\t0\n"
    "-0.60206\tb\t0\n\n\\2-grams:\n-0.60206\ta b\n\n\\end\\\n"
)


@pytest.fixture
def lm(tmp_path: Path) -> Arpa:
    (tmp_path / "lm.arpa").write_text(UNIGRAMS)
    return read_arpa(tmp_path / "lm.arpa")


def test_perplexity_by_hand(lm: Arpa) -> None:
    # a b end, a end: 2^-(1 + 2 + 2 + 1 + 2) over 5 symbols; nothing said is an end
    assert perplexity(lm, ["a b", "a"]) == pytest.approx(2 ** (8 / 5), rel=1e-5)
    assert perplexity(lm, ["", "a b"]) == pytest.approx(2 ** (7 / 4), rel=1e-5)


@pytest.mark.parametrize(
    ("readings", "ppl", "rate"),
    [
        (["a b", "a"], 2 ** (8 / 5), LEAST_RATE),  # as greedy: as if 3 % were wrong
        (["a a", "a"], 2 ** (7 / 5), 1 / 3),  # one of three is another
        (["b b b", "a"], 2 ** (11 / 6), 2 / 3),  # another one, and one too many
        (["a a a a a a a a", ""], 8, 8 / 3),  # likelier than the text: no better than it
    ],
)
def test_what_is_made_small_by_hand(lm: Arpa, readings: list[str], ppl: float, rate: float) -> None:
    least = 8.0 if ppl == 8 else 1.0
    score = Judge(["a b", "a"], lm, least).score(readings)
    assert score == pytest.approx(math.log(ppl) * rate, rel=1e-5)


def test_the_texts_own_perplexity(lm: Arpa, tmp_path: Path) -> None:
    text = write_phone_text(tmp_path / "text", {"a": 2, "b": 1}, [[6, 4, 6, 5, 6], [6, 4, 6]], {})
    with pytest.raises(ConfigError, match=r"4gram.arpa does not exist, by which readings"):
        Judge.of(text, ["a"])
    text.lm_path(False).write_text(UNIGRAMS)
    assert Judge.of(text, ["a"]).text_perplexity == pytest.approx(2 ** (8 / 5), rel=1e-5)
    with pytest.raises(ConfigError, match="nothing is read without a search"):
        Judge.of(text, ["", ""])


def test_a_weight_of_silence_is_that_of_its_logit() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    (found,) = louder([logits.log_softmax(-1).numpy()], 1.5)
    logits[:, -1] += 1.5
    np.testing.assert_allclose(found, logits.log_softmax(-1), atol=1e-6)


def heard_of(rows: list[list[float]]) -> np.ndarray:
    """Log-probabilities of a and b alone."""
    values = np.full((len(rows), len(SPECIAL) + 3), -20.0, np.float32)
    values[:, len(SPECIAL) : -1] = np.log(rows)
    return values


def test_trials_find_what_text_and_generator_agree_on(lm: Arpa, tmp_path: Path) -> None:
    """Of one phone the generator is not sure, and the text has another: at no cost with small
    weights, while large ones turn every phone."""
    letters = alphabet_of([*SPECIAL, "a", "b", "<SIL>"])
    rows = [[0.1, 0.9], [0.9, 0.1]] * 20
    rows[10] = [0.48, 0.52]
    search = DecodingConfig(decoder="beam", lm=str(tmp_path / "lm.arpa"), num_workers=1)
    decoder = make_decoder(search, letters, torch.device("cpu"))
    of = Search(decoder=decoder, heard=[heard_of(rows)], letters=letters, beam=BeamConfig())
    greedy = of.greedy()
    assert greedy[0].split()[10] == "b"
    judge = Judge(greedy, lm, 1.0)
    about = {"data": "made"}
    found = tune(of, judge, about, START, tmp_path / "tuned", 6)
    trials = read_jsonl(tmp_path / "tuned/trials.jsonl")
    assert {k: trials[0][k] for k in START} == START, "it begins where it was told to"
    assert len(trials) == 6
    scores = [judge.score(of.readings({k: t[k] for k in START})) for t in trials]
    assert [t["unlabelled_score"] for t in trials] == pytest.approx(scores)
    assert found["unlabelled_score"] == pytest.approx(min(scores))
    content = json.loads((tmp_path / "tuned/weights.json").read_text())
    assert {k: content[k] for k in START} == {k: found[k] for k in START}
    more = tune(of, judge, about, START, tmp_path / "tuned", 8)
    assert read_jsonl(tmp_path / "tuned/trials.jsonl")[:6] == trials
    assert more["unlabelled_score"] <= found["unlabelled_score"]
    with pytest.raises(ConfigError, match="trials with another data"):
        tune(of, judge, {"data": "other"}, START, tmp_path / "tuned", 9)
    with pytest.raises(ConfigError, match="--lm-weight is 9, but --tune searches from 0 to 8"):
        tune(of, judge, about, {**START, "lm_weight": 9.0}, tmp_path / "new", 1)
    decoder.close()
