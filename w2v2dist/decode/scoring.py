"""Word, letter and phone errors, counted by jiwer."""

from collections.abc import Mapping

import jiwer

# The counts that a rate is made of
RATES = {
    "wer": ("word_errors", "num_words"),
    "per": ("word_errors", "num_words"),  # phones are separated as words are
    "cer": ("letter_errors", "num_letters"),
}


def error_rates(counts: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
    """The rates of these names (an alphabet's `error_rates`)."""
    return {name: counts[RATES[name][0]] / max(counts[RATES[name][1]], 1) for name in names}


def error_counts(references: list[str], hypotheses: list[str]) -> dict[str, int]:
    """Errors (substitutions, deletions, insertions) and reference lengths, in words and in letters:
    counts, which add up over batches. Nothing is normalised. An empty reference counts nothing."""
    pairs = [pair for pair in zip(references, hypotheses, strict=True) if pair[0]]
    if not pairs:
        return {"word_errors": 0, "num_words": 0, "letter_errors": 0, "num_letters": 0}
    truth, guess = map(list, zip(*pairs, strict=True))
    out: dict[str, int] = {}
    for unit, compare in (("word", jiwer.process_words), ("letter", jiwer.process_characters)):
        found = compare(truth, guess)
        missed = found.substitutions + found.deletions
        out |= {f"{unit}_errors": missed + found.insertions, f"num_{unit}s": missed + found.hits}
    return out
