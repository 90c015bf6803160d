"""`w2v2dist alphabet`: the symbols of shards' texts, and the alphabet that they need."""

import argparse
import dataclasses
from pathlib import Path
from typing import get_args

from rich.markup import escape
from rich.progress import track
from rich.table import Table

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Units
from w2v2dist.data.alphabet_file import write_alphabet
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.text import TextConfig
from w2v2dist.data.texts import SymbolCounts, count_symbols, read_labels
from w2v2dist.runtime.logging import console

MOST_PHONES = 1_000  # more are words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist alphabet` takes."""
    add, default = parser.add_argument, TextConfig()
    add("shards", nargs="+", help="folders of shards (shards/build.py)")
    units = "phones: symbols separated by blanks, of the shards' phones (else text)"
    add("--units", choices=get_args(Units), default="characters", help=units)
    add("--output", type=Path, metavar="FILE", help="write the alphabet, for data.tokens=FILE: one "
        "symbol a line, or as the name says vocab.json (*.json) or fairseq's (dict.*)")  # fmt: skip
    for key in ("form", "case", "punctuation"):
        hint = TextConfig.__annotations__[key]
        text = f"as data.text.{key} (default: {getattr(default, key)})"
        add(f"--{key}", choices=get_args(hint), default=getattr(default, key), help=text)
    add("--keep", default=default.keep, metavar="CHARACTERS", help="as data.text.keep")


def run(args: argparse.Namespace) -> None:
    """Show the symbols of the texts of shards with their counts and an example each, name those
    that are rare or look like mistakes, and write the alphabet. What is chosen here has to be
    chosen in the training's data.text too.

    example:
      w2v2dist alphabet data/mine --output mine.txt
      w2v2dist train configs/finetune/own_language.yaml data.train=data/mine data.tokens=mine.txt
    """
    if args.output and args.output.exists():
        raise ConfigError(f"{args.output} exists: remove it or choose another --output")
    index = ShardIndex.load_many(",".join(args.shards))
    text = TextConfig(form=args.form, case=args.case, punctuation=args.punctuation, keep=args.keep)
    labels = read_labels(index, args.units)
    shown = track(labels, "reading texts", len(index), console=console, transient=True)
    counts = count_symbols(shown, args.units, text)
    found = counts.alphabet()
    if args.units == "phones" and found.num_tokens > MOST_PHONES:
        raise ConfigError(
            f"the labels have {found.num_tokens} different symbols, too many for phones: do the "
            "shards hold words? (--units characters)"
        )
    _show(counts)
    words = "words are separated by |" if found.has_words else "texts are not cut into words"
    console.print(
        f"{counts.num_labels} of {len(index)} utterances have a text; {found.num_tokens} outputs "
        f"({len(found.special)} special ones), {found.text.case} case"
        + (f"; {words}" if args.units == "characters" else "")
    )
    if args.output:
        write_alphabet(args.output, dataclasses.replace(found))
        console.print(f"wrote {args.output}: train with data.tokens={args.output}")


def _show(counts: SymbolCounts) -> None:
    table = Table("symbol", "code", "count", "texts", "example", "remark")
    for symbol in counts.by_frequency():
        codes = " ".join(f"{ord(c):04X}" for c in symbol)
        example = counts.example[symbol]
        example = example if len(example) <= 40 else _around(example, symbol)
        numbers = f"{counts.occurrences[symbol]:,}", f"{counts.labels[symbol]:,}"
        table.add_row(escape(symbol), codes, *numbers, escape(example), counts.doubts(symbol))
    console.print(table)
    doubtful = [s for s in counts.by_frequency() if counts.doubts(s)]
    if doubtful:
        console.print(
            f"{len(doubtful)} may be mistakes or are rare: {escape(' '.join(doubtful))}. Correct "
            "the texts, let data.text.replace do so, or remove the symbol from the file: an "
            "utterance with what has no symbol is counted and skipped in training"
        )


def _around(text: str, symbol: str) -> str:
    """Some 40 characters of a text, with the symbol in them."""
    at = max(text.find(symbol), 0)
    start = max(0, at - 20)
    return ("…" if start else "") + text[start : at + 20] + ("…" if at + 20 < len(text) else "")
