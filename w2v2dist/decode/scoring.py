"""Word and letter errors, counted by jiwer."""

from __future__ import annotations

import jiwer


def error_counts(references: list[str], hypotheses: list[str]) -> dict[str, int]:
    """Errors (substitutions, deletions, insertions) and reference lengths, in words and in letters.

    Counts, not rates, so that they add up over batches. Nothing is normalised. An empty reference
    counts nothing.
    """
    pairs = [(r, h) for r, h in zip(references, hypotheses, strict=True) if r]
    if not pairs:
        return {"word_errors": 0, "num_words": 0, "letter_errors": 0, "num_letters": 0}
    truth, guess = [p[0] for p in pairs], [p[1] for p in pairs]
    words, letters = jiwer.process_words(truth, guess), jiwer.process_characters(truth, guess)
    return {
        "word_errors": words.substitutions + words.deletions + words.insertions,
        "num_words": words.substitutions + words.deletions + words.hits,
        "letter_errors": letters.substitutions + letters.deletions + letters.insertions,
        "num_letters": letters.substitutions + letters.deletions + letters.hits,
    }
