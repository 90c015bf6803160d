"""A named set of a known corpus (--split): which recordings are of it, and what a whole one has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from shards.recordings import Recording


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The recordings of a set, and how they compare with what was published of it: `expected` and
    `found` have the same keys, such as "speakers" and "utterances"."""

    corpus: str
    name: str
    recordings: list[Recording]
    expected: dict[str, int]
    found: dict[str, int]
    left_out: dict[str, int]  # of what there was, by reason
    missing: list[str]  # what a whole one has and this one lacks

    def complete(self, num_utterances: int | None = None) -> bool:
        """Whether it is the set that others have; `num_utterances`: those that could be used."""
        usable = num_utterances in (None, self.expected.get("utterances"))
        return not self.missing and self.expected == self.found and usable

    def say(self, console: Console, built: int | None = None) -> None:
        """Print what there is of it and what is missing; `built`: the utterances in the shards."""

        def line(text: str, style: str | None = None) -> None:
            console.print(text, style=style, markup=False)

        counts = ", ".join(f"{self.found[k]:,} of {n:,} {k}" for k, n in self.expected.items())
        line(f"{self.corpus} {self.name}: {counts}")
        for reason, count in self.left_out.items():
            line(f"left out: {count:,} {reason}")
        if self.complete(built):
            return
        line(
            f"warning: {self.corpus} {self.name} is incomplete here: what is measured with it is "
            "not what others measure",
            "yellow",
        )
        for text in self.missing:
            line(f"  {text}", "yellow")
        if built is not None and built < self.found.get("utterances", 0):
            line(f"  {built:,} utterances could be used: see skipped.jsonl", "yellow")

    def summary(self, num_utterances: int) -> dict[str, Any]:
        """What index.json says of it, with the utterances that are in the shards."""
        return {
            "corpus": self.corpus,
            "name": self.name,
            "complete": self.complete(num_utterances),
            "found": self.found,
            "expected": self.expected,
            "left_out": self.left_out,
            "missing": self.missing,
        }
