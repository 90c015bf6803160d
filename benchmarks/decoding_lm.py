"""Utterances a second of the beam with a Transformer language model in it, beside a search that
calls the model for each hypothesis.

    python benchmarks/decoding_lm.py
    python benchmarks/decoding_lm.py --layers 12 --width 768 --words 40000 --utterances 32

A model with random weights and emissions simulated from random sentences (3 frames a letter, half
of them blank, some wrong), on the GPU where there is one. The rows: our search, utterances together
and one by one; flashlight with the same model called on the whole context for every request, and
with each context's answers kept (both on `--naive` utterances); our search alone, with a language
model that costs nothing. All must find the same words. Prints a Markdown table; seconds leave out
the building of lexica and models.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flashlight.lib.text.dictionary import create_word_dict, load_words
from torchaudio.models.decoder import CTCDecoderLM, CTCDecoderLMState, ctc_decoder

from w2v2dist.data.alphabet import LETTERS, SPECIAL, Alphabet
from w2v2dist.data.vocabulary import END, UNKNOWN
from w2v2dist.decode.beam_config import BeamConfig
from w2v2dist.decode.scorer import TransformerScorer, start_scores
from w2v2dist.decode.search import Hypothesis, search
from w2v2dist.decode.trie import Trie
from w2v2dist.model.language_model import LanguageModelConfig, TransformerLanguageModel

ALPHABET = Alphabet(tokens=(*SPECIAL, *LETTERS), delimiter=len(SPECIAL))
CONFIG = BeamConfig(beam_size=50, lm_weight=1.0, word_score=1.0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADER = "| search | utterances | s an utterance | utterances/s | times ours |\n|-|-|-|-|-|"


class NaiveLM(CTCDecoderLM):
    """flashlight's view of a language model: one call of the model on the whole context for each
    request, or with `cached` for each context. That of the empty context is always kept, since a
    lexicon asks it once for each word. `ids`: the model's, of each unit."""

    def __init__(self, model: torch.nn.Module, ids: Sequence[int], cached: bool) -> None:
        super().__init__()
        self.model, self.ids, self.cached = model, [*ids], cached
        self.contexts: dict[CTCDecoderLMState, tuple[int, ...]] = {}
        self.rows: dict[tuple[int, ...], np.ndarray] = {}
        self.num_calls = 0

    def start(self, start_with_nothing: bool) -> CTCDecoderLMState:
        state = CTCDecoderLMState()
        self.contexts = {state: (END,)}
        return state

    def score(self, state: CTCDecoderLMState, unit: int) -> tuple[CTCDecoderLMState, float]:
        child, context = state.child(unit), self.contexts[state]
        self.contexts[child] = (*context, self.ids[unit])
        return child, self._log_prob(context, self.ids[unit])

    def finish(self, state: CTCDecoderLMState) -> tuple[CTCDecoderLMState, float]:
        return state.child(-1), self._log_prob(self.contexts[state], END)

    @torch.inference_mode()
    def _log_prob(self, context: tuple[int, ...], word: int) -> float:
        row = self.rows.get(context)
        if row is None:
            self.num_calls += 1
            device = next(self.model.parameters()).device
            features = self.model(torch.tensor([context], device=device))[:, -1]
            if not self.cached and len(context) > 1:
                return -float(self.model.nll(features, torch.tensor([word], device=device)))
            row = self.rows[context] = self.model.log_probs(features)[0].cpu().numpy()
        return float(row[word])


class FreeScorer:
    """A language model that costs nothing: a score from a table for each unit."""

    def __init__(self, num_units: int) -> None:
        self.num_units = num_units
        self.table = -4 - 8 * np.random.default_rng(0).random(num_units + 1)
        self.known: dict[tuple[int, int], int] = {}

    def scores(self, states: np.ndarray, units: np.ndarray) -> np.ndarray:
        return self.table[units]

    def finish(self, states: np.ndarray) -> np.ndarray:
        return np.full(len(states), self.table[-1])

    def children(self, states: np.ndarray, units: np.ndarray) -> np.ndarray:
        pairs = zip(states.tolist(), units.tolist(), strict=True)
        return np.array([self.known.setdefault(p, len(self.known) + 1) for p in pairs], np.int64)

    def keep(self, states: np.ndarray) -> None:
        pass


def make_words(num: int) -> list[str]:
    """Random words of 2 to 10 letters, the frequent letters of English more often."""
    rng = np.random.default_rng(0)
    letters = np.array(LETTERS[1:])
    chance = 1 / np.arange(3, 3 + len(letters))
    out: dict[str, None] = {}
    while len(out) < num:
        out["".join(rng.choice(letters, rng.integers(2, 11), p=chance / chance.sum()))] = None
    return [*out]


def simulated(words: list[str], num_words: int, seed: int) -> torch.Tensor:
    """Log-probabilities (T, V) of a sentence of random words. Every fourth letter has a rival,
    another letter, delimiter or blank, that is on average 2 nats less probable."""
    rng = np.random.default_rng(seed)
    text = " ".join(rng.choice(words, num_words))
    rows: list[np.ndarray] = []
    for token in [*ALPHABET.encode(text), len(SPECIAL)]:
        rival = int(rng.choice([ALPHABET.blank, *range(len(SPECIAL), ALPHABET.num_tokens)]))
        margin = rng.normal(2, 2) if rng.random() < 0.25 else np.inf
        for letter in (False, True, rng.random() < 0.5):
            row = rng.normal(0, 1, ALPHABET.num_tokens)
            row[token if letter else ALPHABET.blank] += 9
            if letter and margin < np.inf:
                row[rival] += 9 - margin
            rows.append(row)
    logits = np.stack(rows)
    logits[:, 1 : len(SPECIAL)] -= 20
    return torch.from_numpy(logits).float().log_softmax(-1)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = work()
    return out, time.perf_counter() - start


class Lexicon:
    """Words, their numbers in flashlight's order, and their spellings."""

    def __init__(self, words: list[str], folder: str) -> None:
        self.path = Path(folder, "lexicon")
        self.path.write_text("".join(f"{word} {' '.join(word)} |\n" for word in words))
        known = create_word_dict(load_words(str(self.path)))
        self.names = [known.get_entry(i) for i in range(known.index_size())]
        place = {word: 4 + i for i, word in enumerate(words)}
        self.ids = [place.get(name, UNKNOWN) for name in self.names]
        self.spellings = [
            (i, [*ALPHABET.encode(name), len(SPECIAL)])
            for i, name in enumerate(self.names)
            if name in place
        ]

    def trie(self, scores: np.ndarray) -> Trie:
        return Trie.build(self.spellings, scores, ALPHABET.num_tokens, ALPHABET.blank)

    def words(self, found: list[list[Hypothesis]]) -> list[list[str]]:
        return [[self.names[i] for i in hypotheses[0].words] for hypotheses in found]


def ours(
    lexicon: Lexicon, model: TransformerLanguageModel, batches: list[list[torch.Tensor]]
) -> tuple[list[list[str]], float, TransformerScorer]:
    """The words of all utterances, the seconds, and the scorer with its counts."""
    scorer = TransformerScorer(model, lexicon.ids)
    trie = lexicon.trie(start_scores(scorer))
    found, seconds = timed(lambda: [search(b, trie, scorer, ALPHABET, CONFIG) for b in batches])
    return [words for batch in found for words in lexicon.words(batch)], seconds, scorer


def theirs(lexicon: Lexicon, lm: NaiveLM, emissions: list[torch.Tensor]) -> tuple[Any, float]:
    """The same of flashlight."""
    decoder = ctc_decoder(
        lexicon=str(lexicon.path),
        tokens=list(ALPHABET.tokens),
        lm=lm,
        blank_token=SPECIAL[ALPHABET.blank],
        **{k: v for k, v in dataclasses.asdict(CONFIG).items() if k != "rescore_weight"},
    )
    lm.num_calls = 0
    return timed(lambda: [decoder(e[None])[0][0].words for e in emissions])


def measure(args: argparse.Namespace, folder: str) -> tuple[list[tuple[str, int, float]], int]:
    """Rows (search, utterances, seconds), and the frames of all utterances."""
    words = make_words(args.words)
    emissions = [simulated(words, args.sentence, seed) for seed in range(args.utterances)]
    few = emissions[: args.naive]
    lexicon = Lexicon(words, folder)
    torch.manual_seed(0)
    shape = LanguageModelConfig(
        num_layers=args.layers, embed_dim=args.width, ffn_dim=4 * args.width, num_heads=8
    )
    model = TransformerLanguageModel(shape, num_words=4 + len(words)).to(DEVICE).eval()
    found, seconds, scorer = ours(lexicon, model, [emissions])
    label = f"ours, together ({scorer.num_computed:,} contexts in {scorer.num_calls:,} calls)"
    rows = [(label, len(emissions), seconds)]
    alone, seconds, scorer = ours(lexicon, model, [[e] for e in few])
    label = f"ours, one by one ({scorer.num_computed:,} in {scorer.num_calls:,})"
    rows.append((label, len(few), seconds))
    assert alone == found[: len(few)], "the batch matters"
    for label, cached in (("a call a context", True), ("a call a request", False)):
        lm = NaiveLM(model, lexicon.ids, cached)
        other, seconds = theirs(lexicon, lm, few)
        rows.append((f"flashlight, {label} ({lm.num_calls:,} calls)", len(few), seconds))
        assert other == found[: len(few)], "other words were found"
    free = FreeScorer(len(lexicon.names))
    trie = lexicon.trie(start_scores(free))
    _, seconds = timed(lambda: search(emissions, trie, free, ALPHABET, CONFIG))
    rows.append(("ours, no language model", len(emissions), seconds))
    return rows, sum(map(len, emissions))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--words", type=int, default=20_000, help="of the lexicon and the model")
    parser.add_argument("--utterances", type=int, default=16)
    parser.add_argument("--sentence", type=int, default=6, help="words an utterance")
    parser.add_argument("--naive", type=int, default=1, help="utterances of the slow searches")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, frames = measure(args, folder)
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(
        f"{args.layers} layers of {args.width}, {args.words:,} words, "
        f"{frames / args.utterances:.0f} frames an utterance, beam {CONFIG.beam_size}, {where}, "
        f"{torch.get_num_threads()} threads; the search alone {1e3 * rows[-1][2] / frames:.2f} ms "
        "a frame and utterance\n"
    )
    print(HEADER)
    first = rows[0][2] / rows[0][1]
    for label, num, seconds in rows:
        each = seconds / num
        print(f"| {label} | {num} | {each:.3g} | {1 / each:.3g} | {each / first:.2f} |")


if __name__ == "__main__":
    main()
