"""Choosing without labels: how likely hypotheses are as text, and how many phones they use.

`weighted_lm_ppl` is the reference implementation's score, and the paper's three steps are
`paper_choice` (Baevski et al. 2021, section 4.3).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from w2v2dist.lm.arpa import Arpa
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.unsupervised.phone_text import SPECIAL, PhoneText

USAGE_POWER = 2  # of the part of phones in use, in the score
MARGIN = math.log(1.2)  # of the paper's second step, nats a phone
NUM_LINES = 1_000  # of a text, by which readings are measured
PHONE = "num_phone/"  # of the sums: how often each phone was read


def phones_of(symbols: Iterable[int], silence: int) -> list[int]:
    """What was said: without special symbols and silence; repeats stay, as those on both sides of a
    silence."""
    return [symbol for symbol in symbols if symbol >= len(SPECIAL) and symbol != silence]


def sampled(text: PhoneText) -> list[list[int]]:
    """The phones of some 1,000 lines from all over a text, without silence; of a short one all."""
    places = range(0, len(text), max(1, len(text) // NUM_LINES))
    return [phones_of(text.line(i).tolist(), text.silence) for i in places]


class Scorer:
    """Sums over hypotheses of a validation set, from which `metrics` makes the scores. `code_lm` is
    of text with silence, as the reference implementation scores; `paper_lm` without."""

    def __init__(self, symbols: Sequence[str], code_lm: Arpa, paper_lm: Arpa) -> None:
        self._symbols, self._code_lm, self._paper_lm = symbols, code_lm, paper_lm
        self._silence = len(symbols) - 1
        self.num_phones = len(symbols) - len(SPECIAL)  # <SIL> is one of them
        self.text_nll = self.shuffled_nll = math.nan

    def read_text(self, text: PhoneText) -> None:
        """Score the text's own sentences as if they were hypotheses (`text_nll`: what a perfect
        reading would have), and sentences of the same phones in a random order (`shuffled_nll`:
        what one that knows nothing but their frequencies would)."""
        lines = sampled(text)
        phones = iter(
            keyed_rng(0, "shuffled text").permutation([p for line in lines for p in line])
        )
        shuffled = [[int(next(phones)) for _ in line] for line in lines]
        self.text_nll = self.metrics(self.sums(lines))["nll"]
        self.shuffled_nll = self.metrics(self.sums(shuffled))["nll"]

    def sums(self, read: Sequence[Sequence[int]]) -> dict[str, float]:
        """Of one validation batch. What the metrics take is added up over batches."""
        hypotheses = [phones_of(row, self._silence) for row in read]
        names = [[self._symbols[i] for i in row] for row in hypotheses]
        seen = {symbol for row in hypotheses for symbol in row}
        nats = [math.log(10) * sum(self._paper_lm.score(row)) for row in names]
        lengths = [len(row) + 1 for row in names]  # the end of a sentence is scored, too
        out = {
            "num_batches": 1.0,
            "num_silent_batches": float(not seen),
            "num_utterances": float(len(read)),
            "num_silent": float(sum(not row for row in hypotheses)),
            "num_scored": float(sum(lengths)),
            "log10": sum(sum(self._code_lm.score(row)) for row in names),
            "nats": sum(nats),
            "nats_a_phone": sum(n / length for n, length in zip(nats, lengths, strict=True)),
            "batch_usage": len(seen) / self.num_phones,
        }
        for symbol in seen:
            count = sum(row.count(symbol) for row in hypotheses)
            out[f"{PHONE}{symbol}"] = float(count)
        return out

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """`weighted_lm_ppl` (lower is better; infinity where a whole batch is silent, which is the
        worst there is), `lm_ppl` and `batch_usage` that it is made of; `nll` (mean over utterances
        of nats a phone), `phone_usage` (part of the phones in the set) and `log_prob` (nats of the
        set) that the paper's rule reads; `text_nll` and `shuffled_nll`, those of the text and of
        its phones in a random order; `text_likeness`, where between them `nll` stands."""
        lm_ppl = 10 ** min(300.0, -sums["log10"] / sums["num_scored"])
        usage = sums["batch_usage"] / sums["num_batches"]
        seen = sum(name.startswith(PHONE) for name in sums)
        silent = sums["num_silent_batches"] > 0
        nll = -sums["nats_a_phone"] / sums["num_utterances"]
        scale = {"text_nll": self.text_nll, "shuffled_nll": self.shuffled_nll}
        scale["text_likeness"] = text_likeness(nll, self.text_nll, self.shuffled_nll)
        return {
            "weighted_lm_ppl": math.inf if silent else lm_ppl / usage**USAGE_POWER,
            "lm_ppl": lm_ppl,
            "batch_usage": usage,
            "nll": nll,
            "phone_usage": seen / self.num_phones,
            "log_prob": sums["nats"],
            "num_silent": sums["num_silent"],
            **{name: value for name, value in scale.items() if not math.isnan(value)},
        }


def text_likeness(nll: float, text_nll: float, shuffled_nll: float) -> float:
    """1: as likely as the text itself; 0: as its phones in a random order, or less. It is of the
    same scale in every language, however predictable its phones are, but less for a text of few
    lines. NaN where their order says nothing (or one of the three is NaN)."""
    if not shuffled_nll > text_nll:
        return math.nan
    return max(0.0, (shuffled_nll - nll) / (shuffled_nll - text_nll))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A validation of a run that has a checkpoint."""

    run: str
    step: int
    weighted_lm_ppl: float
    nll: float
    phone_usage: float
    log_prob: float
    text_likeness: float = math.nan
    per: float = math.nan  # for watching: nothing is chosen by it


def code_choice(candidates: Sequence[Candidate]) -> Candidate | None:
    """The lowest `weighted_lm_ppl`; None where no one has a finite one."""
    finite = [c for c in candidates if math.isfinite(c.weighted_lm_ppl)]
    return min(finite, key=lambda c: c.weighted_lm_ppl, default=None)


def paper_choice(candidates: Sequence[Candidate]) -> Candidate | None:
    """The paper's: the anchor has the lowest NLL - ln U; of those whose NLL is at most by ln 1.2
    (and what more phones allow) above its own, the highest log probability of the whole set."""
    usable = [c for c in candidates if c.phone_usage > 0 and math.isfinite(c.nll)]
    if not usable:
        return None
    anchor = min(usable, key=lambda c: c.nll - math.log(c.phone_usage))
    kept = [
        c
        for c in usable
        if c is anchor or c.nll < anchor.nll + math.log(c.phone_usage / anchor.phone_usage) + MARGIN
    ]
    return max(kept, key=lambda c: c.log_prob)
