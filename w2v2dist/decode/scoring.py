"""Word, letter and phone errors, counted by jiwer."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jiwer

# The counts that a rate is made of
RATES = {
    "wer": ("word_errors", "num_words"),
    "per": ("word_errors", "num_words"),  # phones are separated as words are
    "cer": ("letter_errors", "num_letters"),
}
Unit = Literal["word", "letter"]
Confusion = tuple[str, str]  # reference, hypothesis; "" is nothing


def error_rates(counts: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
    """The rates of these names (an alphabet's `error_rates`)."""
    return {name: counts[RATES[name][0]] / max(counts[RATES[name][1]], 1) for name in names}


def error_counts(references: list[str], hypotheses: list[str]) -> dict[str, int]:
    """Errors (substitutions, deletions, insertions) and reference lengths, in words and in letters:
    counts, which add up over batches. Nothing is normalised. An empty reference counts nothing."""
    out: dict[str, int] = {}
    units: tuple[Unit, ...] = ("word", "letter")
    for unit in units:
        found = errors(references, hypotheses, unit)
        out[f"{unit}_errors"] = sum(e.total for e in found)
        out[f"num_{unit}s"] = sum(e.num_units for e in found)
    return out


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one utterance; `num_units` is the length of its reference in words or letters."""

    substitutions: int
    deletions: int
    insertions: int
    num_units: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.substitutions + self.deletions + self.insertions


def errors(references: list[str], hypotheses: list[str], unit: Unit) -> list[Errors]:
    """The errors of each utterance; none, of nothing, where the reference is empty."""
    return [_count(found) for found in _aligned(references, hypotheses, unit)]


def confusions(references: list[str], hypotheses: list[str], unit: Unit) -> Counter[Confusion]:
    """How often what was read as what; ("", x) is an insertion and (x, "") a deletion."""
    out: Counter[Confusion] = Counter()
    for found in _aligned(references, hypotheses, unit):
        if found is None:
            continue
        truth, guess = found.references[0], found.hypotheses[0]
        for part in found.alignments[0]:
            said = truth[part.ref_start_idx : part.ref_end_idx]
            read = guess[part.hyp_start_idx : part.hyp_end_idx]
            if part.type == "substitute":
                out.update(zip(said, read, strict=True))
            elif part.type == "delete":
                out.update((symbol, "") for symbol in said)
            elif part.type == "insert":
                out.update(("", symbol) for symbol in read)
    return out


def _count(found: "jiwer.WordOutput | jiwer.CharacterOutput | None") -> Errors:
    if found is None:
        return Errors(0, 0, 0, 0)
    missed = found.substitutions + found.deletions
    return Errors(found.substitutions, found.deletions, found.insertions, missed + found.hits)


def _aligned(
    references: list[str], hypotheses: list[str], unit: Unit
) -> "list[jiwer.WordOutput | jiwer.CharacterOutput | None]":
    compare = jiwer.process_words if unit == "word" else jiwer.process_characters
    pairs = zip(references, hypotheses, strict=True)
    return [compare(truth, guess) if truth else None for truth, guess in pairs]
