"""The beam with a language model in it: against flashlight with an n-gram and with a Transformer,
alone and in batches, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flashlight.lib.text.dictionary import create_word_dict, load_words
from torchaudio.models.decoder import ctc_decoder

from benchmarks.decoding_lm import NaiveLM
from w2v2dist.data.alphabet import Alphabet
from w2v2dist.data.vocabulary import END, SPECIAL, UNKNOWN, Vocabulary
from w2v2dist.decode import scorer as scorer_module
from w2v2dist.decode.beam_config import BeamConfig
from w2v2dist.decode.pool import Pool
from w2v2dist.decode.scorer import (
    START,
    TransformerScorer,
    start_scores,
    token_names,
    unit_ids,
)
from w2v2dist.decode.search import Hypothesis, search
from w2v2dist.decode.trie import Trie
from w2v2dist.model.language_model import LanguageModelConfig, TransformerLanguageModel

LETTERS = "abcde"


def alphabet_of(tokens: str, blank: str = "-") -> Alphabet:
    """One character a token; "|" is the delimiter where it is there."""
    delimiter = tokens.index("|") if "|" in tokens else None
    place = tokens.index(blank)
    return Alphabet(
        tokens=tuple(tokens), blank=place, special=frozenset({place}), delimiter=delimiter
    )


ALPHABETS = {
    "blank first": alphabet_of("-|abcde"),
    "blank last": alphabet_of("abcde|-"),
    "blank amid, no delimiter": alphabet_of("ab-cde"),
}


def some_words(rng: np.random.Generator, num: int = 40) -> list[tuple[str, str]]:
    """(word, its letters): prefixes of each other, doubled letters, and words that sound alike."""
    out = [("a", "a"), ("ab", "ab"), ("abb", "abb"), ("abc", "abc"), ("b", "b"), ("B", "b")]
    while len(out) < num:
        letters = "".join(rng.choice([*LETTERS], rng.integers(1, 6)))
        if letters not in (spelled for _, spelled in out):
            out.append((letters, letters))
    return [*out, ("abc", "cba")]  # a second spelling


def write_arpa(path: Path, words: list[str], rng: np.random.Generator) -> str:
    """A trigram of random numbers that are logarithms of probabilities, if of no distribution."""
    unigrams = [(w,) for w in ("<s>", "</s>", "<unk>", *words)]
    first, last = ["<s>", *words], ["</s>", *words]
    bigrams = sorted({(str(rng.choice(first)), str(rng.choice(last))) for _ in range(150)})
    follow = {a: [c for b, c in bigrams if b == a] for _, a in bigrams}
    trigrams = [(a, b, c) for a, b in bigrams for c in follow[b][:2]]
    lines = ["\\data\\"]
    orders = [unigrams, bigrams, trigrams]
    lines += [f"ngram {n}={len(grams)}" for n, grams in enumerate(orders, 1)]
    for n, grams in enumerate(orders, 1):
        lines += ["", f"\\{n}-grams:"]
        for gram in grams:
            backoff = f"\t{-rng.random():.4f}" if n < 3 and gram[-1] != "</s>" else ""
            lines.append(f"{-0.1 - 2.5 * rng.random():.4f}\t{' '.join(gram)}{backoff}")
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return str(path)


def emissions_of(alphabet: Alphabet, frames: int, sharpness: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(frames, alphabet.num_tokens, generator=generator) * sharpness
    logits[:, alphabet.blank] += sharpness / 2
    return logits.log_softmax(-1)


class NgramScorer:
    """A scorer of flashlight's own KenLM, one call a score."""

    def __init__(self, lm: Any, num_units: int) -> None:
        self.lm, self.num_units = lm, num_units
        self.states = [lm.start(False)]
        self.known: dict[tuple[int, int], int] = {}

    def scores(self, states: np.ndarray, units: np.ndarray) -> np.ndarray:
        pairs = zip(states.tolist(), units.tolist(), strict=True)
        return np.array([self.lm.score(self.states[s], u)[1] for s, u in pairs], float)

    def finish(self, states: np.ndarray) -> np.ndarray:
        return np.array([self.lm.finish(self.states[s])[1] for s in states.tolist()], float)

    def children(self, states: np.ndarray, units: np.ndarray) -> np.ndarray:
        out = []
        for s, u in zip(states.tolist(), units.tolist(), strict=True):
            if (s, u) not in self.known:
                self.known[s, u] = len(self.states)
                self.states.append(self.lm.score(self.states[s], u)[0])
            out.append(self.known[s, u])
        return np.array(out, np.int64)

    def keep(self, states: np.ndarray) -> None:
        pass


class Bench:
    """flashlight's decoder, and ours with the same lexicon and language model: an n-gram, or with
    `model` a Transformer that flashlight calls for every request, or once a context (`cached`)."""

    def __init__(
        self,
        folder: Path,
        alphabet: Alphabet,
        lexicon: bool,
        config: BeamConfig,
        model: TransformerLanguageModel | None = None,
        cached: bool = False,
    ) -> None:
        rng = np.random.default_rng(0)
        words = some_words(rng)
        self.alphabet, self.config = alphabet, config
        end = "" if alphabet.delimiter is None else " |"
        (folder / "lexicon").write_text(
            "".join(f"{word} {' '.join(letters)}{end}\n" for word, letters in words)
        )
        (folder / "tokens").write_text("\n".join(alphabet.tokens) + "\n")
        names = sorted({w for w, _ in words}) if lexicon else list(alphabet.tokens)
        if model is None:
            lm: Any = write_arpa(folder / "lm.arpa", names, rng)
        else:
            if lexicon:
                known = create_word_dict(load_words(str(folder / "lexicon")))
                names = [known.get_entry(i) for i in range(known.index_size())]
            # With fewer words than the lexicon's the model knows the last ones as its <unk>
            symbols = [n for n in names if n not in SPECIAL][: model.num_words - 4]
            vocabulary = Vocabulary(symbols=tuple(symbols), counts=(1,) * len(symbols))
            self.ids, self.num_unknown = unit_ids(names, vocabulary)
            lm = NaiveLM(model, self.ids, cached)
        blank = alphabet.tokens[alphabet.blank]
        silence = blank if alphabet.delimiter is None else "|"
        self.reference = ctc_decoder(
            lexicon=str(folder / "lexicon") if lexicon else None,
            tokens=list(alphabet.tokens),
            lm=lm,
            lm_dict=None if lexicon else str(folder / "tokens"),
            nbest=config.beam_size,
            blank_token=blank,
            sil_token=silence,
            **({} if lexicon else {"unk_word": blank}),
            **{k: v for k, v in dataclasses.asdict(config).items() if k != "rescore_weight"},
        )
        self.words = self.reference.word_dict
        units = self.words.index_size() if lexicon else alphabet.num_tokens
        self.scorer: Any = NgramScorer(self.reference.lm, units)
        if model is not None:
            self.scorer = TransformerScorer(model, self.ids)
        self.trie = None
        if lexicon:
            ends = [] if alphabet.delimiter is None else [alphabet.delimiter]
            spelled = [
                (self.words.get_index(word), [*map(alphabet.tokens.index, letters), *ends])
                for word, letters in words
            ]
            scores = start_scores(self.scorer)
            self.trie = Trie.build(spelled, scores, alphabet.num_tokens, alphabet.blank)

    def ours(self, emissions: list[torch.Tensor], num_best: int) -> list[list[Hypothesis]]:
        return search(
            emissions, self.trie, self.scorer, self.alphabet, self.config, num_best=num_best
        )

    def theirs(self, emissions: torch.Tensor) -> list[tuple[tuple[str, ...], list[int], float]]:
        found = self.reference(emissions[None].contiguous())[0]
        return [(tuple(h.words), h.tokens.tolist(), h.score) for h in found]

    def shown(self, hypothesis: Hypothesis) -> tuple[tuple[str, ...], list[int], float]:
        blank, silence = self.alphabet.blank, self.alphabet.delimiter
        # flashlight's path begins and ends with a silence of its own
        around = [] if silence is None else [silence]
        runs = itertools.groupby([*around, *hypothesis.tokens, *around])
        path = [i for i, _ in runs if i != blank]
        words = tuple(self.words.get_entry(i) for i in hypothesis.words)
        return words, path, hypothesis.score


SETTINGS = [
    BeamConfig(beam_size=50, lm_weight=2.0, word_score=0.0),
    BeamConfig(beam_size=8, beam_size_token=3, lm_weight=1.3, word_score=-1.0),
    BeamConfig(beam_size=200, beam_threshold=6.0, lm_weight=0.7, word_score=1.5),
    BeamConfig(beam_size=20, beam_size_token=5, beam_threshold=12.0, lm_weight=0.05),
]


@pytest.mark.parametrize("lexicon", [True, False])
@pytest.mark.parametrize("config", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("name", ALPHABETS)
def test_finds_what_flashlight_finds(
    tmp_path: Path, name: str, config: BeamConfig, lexicon: bool
) -> None:
    alphabet = ALPHABETS[name]
    bench = Bench(tmp_path, alphabet, lexicon, config)
    emissions = [
        emissions_of(alphabet, frames, sharpness, seed)
        for seed, (frames, sharpness) in enumerate(
            itertools.product((1, 2, 7, 30, 60), (0.3, 1.0, 3.0, 8.0))
        )
    ]
    for one, ours in zip(emissions, bench.ours(emissions, 5), strict=True):
        theirs = bench.theirs(one)
        words, tokens, score = bench.shown(ours[0])
        assert words == theirs[0][0]
        if lexicon:
            assert tokens == theirs[0][1]
        assert score == pytest.approx(theirs[0][2], abs=1e-3)
        assert [h.score for h in ours] == pytest.approx([s for _, _, s in theirs[:5]], abs=1e-3)
        h = ours[0]
        total = h.am_score + config.lm_weight * h.lm_score + config.word_score * len(h.words)
        assert h.score == pytest.approx(total, abs=1e-6)
        assert len(h.tokens) == len(one)
        at = one[torch.arange(len(one)), torch.tensor(h.tokens)].sum()
        assert h.am_score == pytest.approx(float(at), abs=1e-3)


CONFIG = LanguageModelConfig(
    num_layers=2, embed_dim=24, ffn_dim=32, num_heads=2, cutoffs=(14, 30), adaptive_factor=2
)


def make_model(num_words: int = 40) -> Any:
    config = CONFIG if num_words > 30 else dataclasses.replace(CONFIG, cutoffs=())
    torch.manual_seed(0)
    model = TransformerLanguageModel(config, num_words).eval()
    for p in model.parameters():  # a decided model: contexts matter
        torch.nn.init.normal_(p, std=0.4)
    return model


def counted(model: Any) -> list[int]:
    """The numbers of contexts of the calls of `step` from now on."""
    sizes: list[int] = []
    step = model.step

    def counting(tokens: torch.Tensor, *rest: torch.Tensor) -> Any:
        sizes.append(len(tokens))
        return step(tokens, *rest)

    model.step = counting
    return sizes


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("lexicon", [True, False])
@pytest.mark.parametrize("name", ["blank last", "blank amid, no delimiter"])
def test_transformer_as_flashlight_calls_it(
    tmp_path: Path, name: str, lexicon: bool, cached: bool
) -> None:
    """The same words and scores as with a call of the model for each request."""
    alphabet = ALPHABETS[name]
    config = BeamConfig(beam_size=12, beam_size_token=4, lm_weight=1.1, word_score=0.5)
    model = make_model(40 if lexicon else 4 + alphabet.num_tokens)
    bench = Bench(tmp_path, alphabet, lexicon, config, model, cached)
    assert (bench.num_unknown > 3) is lexicon
    emissions = [emissions_of(alphabet, 18, sharpness, 3) for sharpness in (1.0, 4.0, 4.0)]
    sizes = counted(model)
    found = bench.ours(emissions, 3)
    assert len(sizes) <= 18 + 1  # one call a frame and one for the ends
    for one, ours in zip(emissions[:2], found, strict=False):
        theirs = bench.theirs(one)
        assert bench.shown(ours[0])[0] == theirs[0][0]
        assert [h.score for h in ours] == pytest.approx([s for _, _, s in theirs[:3]], abs=1e-3)


@pytest.mark.parametrize("lexicon", [True, False])
def test_alone_as_in_a_batch(tmp_path: Path, lexicon: bool) -> None:
    """Whatever is decoded beside it, an utterance has the same hypotheses."""
    alphabet = ALPHABETS["blank first"]
    config = BeamConfig(beam_size=20, lm_weight=0.8, word_score=0.3)
    model = make_model(60 if lexicon else 4 + alphabet.num_tokens)
    bench = Bench(tmp_path, alphabet, lexicon, config, model)
    emissions = [emissions_of(alphabet, 3 + 7 * i, 0.5 + i, i) for i in range(8)]
    together = bench.ours(emissions, 4)
    backwards = bench.ours(emissions[::-1], 4)[::-1]
    for i, one in enumerate(emissions):
        bench.scorer = TransformerScorer(model, bench.ids)
        alone = bench.ours([one], 4)[0]
        assert alone
        for other in (together[i], backwards[i]):
            assert [(h.tokens, h.words) for h in alone] == [(h.tokens, h.words) for h in other]
            for a, b in zip(alone, other, strict=True):
                assert (a.score, a.lm_score) == pytest.approx((b.score, b.lm_score), abs=1e-4)


@pytest.mark.parametrize("max_numbers", [2**28, 400])
def test_scorer_is_the_model(monkeypatch: pytest.MonkeyPatch, max_numbers: int) -> None:
    """Scores of contexts that were asked for in any order are those of whole sentences; what is
    not kept is forgotten, and computed again."""
    monkeypatch.setattr(scorer_module, "MAX_NUMBERS", max_numbers)
    model = make_model()
    ids = [7, 3, 39, 20, 4]
    scorer = TransformerScorer(model, ids, max_idle=8)
    rng = np.random.default_rng(0)
    texts: dict[int, list[int]] = {START: []}
    for turn in range(30):
        states = rng.choice([*texts], 6)
        units = rng.integers(0, len(ids), 6)
        rows = []
        for s in states:
            tokens = torch.tensor([[END, *(ids[u] for u in texts[int(s)])]])
            with torch.inference_mode():
                rows.append(model.log_probs(model(tokens)[:, -1])[0].double().numpy())
        expected = [row[ids[u]] for row, u in zip(rows, units, strict=True)]
        assert scorer.scores(states, units) == pytest.approx(expected, abs=1e-4)
        ends = [row[END] for row in rows]
        assert scorer.finish(states) == pytest.approx(ends, abs=1e-4)
        new = scorer.children(states, units)
        again = scorer.children(states, units)
        assert new.tolist() == again.tolist()
        for s, u, child in zip(states.tolist(), units.tolist(), new.tolist(), strict=True):
            assert texts.setdefault(child, [*texts[s], u]) == [*texts[s], u]
        if turn % 10 == 9:
            kept = rng.choice([*texts], 3)
            scorer.keep(kept)
            texts = {START: [], **{int(s): texts[int(s)] for s in kept}}
            prefixes = {tuple(t[:n]) for t in texts.values() for n in range(len(t) + 1)}
            assert scorer.num_states == len(prefixes)


def test_units_of_a_model() -> None:
    vocabulary = Vocabulary(symbols=("b", "|", "a"), counts=(1, 1, 1))
    alphabet = Alphabet(tokens=("<pad>", " ", "a", "b", "c"), special=frozenset({0}), delimiter=1)
    assert token_names(alphabet) == ["<pad>", "|", "a", "b", "c"]
    ids, num_unknown = unit_ids(token_names(alphabet), vocabulary)
    assert (ids, num_unknown) == ([UNKNOWN, 5, 6, 4, UNKNOWN], 1)
    assert TransformerScorer(make_model().train(), ids).model.training is False


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Contexts of utterances that are over make room for others."""
    alphabet = ALPHABETS["blank first"]
    config = BeamConfig(beam_size=10, lm_weight=0.05)
    bench = Bench(tmp_path, alphabet, False, config, make_model(4 + alphabet.num_tokens))
    bench.scorer = scorer = TransformerScorer(bench.scorer.model, bench.ids, max_idle=50)
    most = []
    for turn in range(6):
        bench.ours([emissions_of(alphabet, 40, 4.0, 10 * turn + i) for i in range(3)], 1)
        most.append(scorer.num_states)
    assert scorer.num_computed > 3000
    assert max(most) < 600
    assert scorer._caches.num_used == len(scorer._path) <= max(most)
    assert scorer._rows.num_used == len(scorer._row) <= max(most)


def test_broken_language_model(tmp_path: Path) -> None:
    alphabet = ALPHABETS["blank first"]
    model = make_model(4 + alphabet.num_tokens)
    bench = Bench(tmp_path, alphabet, False, BeamConfig(), model)
    model.layers[1].ffn_out.bias.data[3] = float("nan")
    with pytest.raises(ValueError, match=r"gave a score that is no number \(nan\)"):
        bench.ours([emissions_of(alphabet, 9, 2.0, 0)], 1)


def test_no_whole_word(tmp_path: Path) -> None:
    """As flashlight does: the unfinished word is left out of the words."""
    alphabet = ALPHABETS["blank last"]
    config = BeamConfig(beam_size=1, lm_weight=0.1, word_score=1.0)
    bench = Bench(tmp_path, alphabet, True, config)
    emissions = torch.full((3, 7), -9.0)
    emissions[0, 0] = emissions[1, 1] = emissions[2, 2] = -0.1  # a b c, and no delimiter
    hypothesis = bench.ours([emissions], 1)[0][0]
    words, tokens, score = bench.theirs(emissions)[0]
    assert words == () == tuple(hypothesis.words)
    assert hypothesis.tokens == [0, 1, 2]
    assert bench.shown(hypothesis)[1] == tokens
    assert hypothesis.score == pytest.approx(score, abs=1e-3)


def test_defined_results(tmp_path: Path) -> None:
    alphabet = ALPHABETS["blank first"]
    config = BeamConfig(beam_size=5, lm_weight=2.0)
    bench = Bench(tmp_path, alphabet, True, config)
    assert bench.ours([], 1) == []
    good = emissions_of(alphabet, 9, 2.0, 0)
    empty, other = bench.ours([torch.zeros(0, 7), good], 3)
    end = bench.scorer.finish(np.array([START]))[0]
    assert empty == [
        Hypothesis(tokens=[], words=[], num_whole=0, score=2 * end, am_score=0.0, lm_score=end)
    ]
    assert other == bench.ours([good], 3)[0]
    for value in (float("nan"), float("-inf"), float("inf")):
        broken = good.clone()
        broken[4, 2] = value
        with pytest.raises(ValueError, match=r"utterance 1 have -?(nan|inf) at frame 4, token 2"):
            bench.ours([good, broken], 1)
    with pytest.raises(ValueError, match="num_best is 6 but must be from 1 to beam_size = 5"):
        bench.ours([good], 6)
    with pytest.raises(ValueError, match=r"utterance 0 have shape \(9, 6\)"):
        bench.ours([good[:, 1:]], 1)
    with pytest.raises(ValueError, match="scores 9 units, the alphabet has 7"):
        search([good], None, NgramScorer(bench.reference.lm, 9), alphabet, config)


def test_trie() -> None:
    """All prefixes, each word at the end of its own, the best score below each."""
    rng = np.random.default_rng(1)
    spelled = [(u, tuple(rng.integers(1, 5, rng.integers(1, 6)).tolist())) for u in range(80)]
    scores = -rng.random(80) * 9
    trie = Trie.build(spelled, scores, 5, 0)
    prefixes = {s[:n] for _, s in spelled for n in range(len(s) + 1)}
    assert trie.num_nodes == len(prefixes)
    for prefix in prefixes:
        node = 0
        for token in prefix:
            first, last = trie.first_child[node : node + 2]
            node = first + trie.token[first:last].tolist().index(token)
        words = trie.words[trie.first_word[node] : trie.first_word[node + 1]].tolist()
        assert sorted(words) == [u for u, s in spelled if s == prefix]
        below = {s for _, s in spelled if s[: len(prefix)] == prefix}
        each = [np.logaddexp.reduce([scores[u] for u, s in spelled if s == b]) for b in below]
        assert trie.best[node] == pytest.approx(max(each), abs=1e-5)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ([], "the lexicon is empty"),
        ([(3, [1])], "has word 3 but the language model 3"),
        ([(0, [])], "word 0 of the lexicon has no token"),
        ([(0, [1, 5])], "is spelled"),
        ([(0, [1, 2])], "without the blank, 2"),
        ([(0, [-1])], "is spelled"),
    ],
)
def test_lexicon_that_cannot_be_said(spelled: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trie.build(spelled, np.zeros(3), 5, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0"),
        ({"beam_size_token": 0}, "beam_size_token is 0"),
        ({"beam_threshold": -1.0}, "beam_threshold is -1"),
        ({"lm_weight": -0.1}, "lm_weight is -0.1"),
        ({"word_score": float("nan")}, "word_score is nan"),
        ({"lm_weight": float("inf")}, "lm_weight is inf"),
    ],
)
def test_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BeamConfig(**values)


def test_pool() -> None:
    """Parts are found again after growth, and freed places are used again."""
    pool = Pool((2,), (3,), torch.zeros(0))
    parts = torch.randn(2, 50, 3)
    places = pool.put(parts)
    assert torch.equal(pool.data[:, places], parts)
    pool.free(places[:20])
    more = torch.randn(2, 20, 3)
    assert sorted(pool.put(more)) == sorted(places[:20])
    assert torch.equal(pool.data[:, places[20:]], parts[:, 20:])
    assert pool.num_used == 50
