"""`w2v2dist alphabet`: the symbols of shards' texts, and the alphabet that they need."""

import argparse
from pathlib import Path
from typing import get_args

from rich.markup import escape
from rich.progress import track
from rich.table import Table

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Units
from w2v2dist.data.alphabet_file import write_alphabet
from w2v2dist.data.source import open_index
from w2v2dist.data.text import TextConfig
from w2v2dist.data.texts import SymbolCounts, count_symbols, read_labels
from w2v2dist.runtime.logging import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist alphabet` takes."""
    add, default = parser.add_argument, TextConfig()
    add("shards", nargs="+", help="folders of shards (shards/build.py)")
    units = "phones: symbols separated by blanks, of the shards' phones (else text)"
    add("--units", choices=get_args(Units), default="characters", help=units)
    file = "write the alphabet, for data.tokens=FILE: a symbol a line, or as the name says "
    file += "alphabet.json (with these rules), vocab.json or dict.*"
    add("--output", type=Path, metavar="FILE", help=file)
    for key in ("form", "case", "punctuation"):
        hint = TextConfig.__annotations__[key]
        text = f"as data.text.{key} (default: {getattr(default, key)})"
        add(f"--{key}", choices=get_args(hint), default=getattr(default, key), help=text)
    add("--replace", action="append", default=[], type=_pair, metavar="OLD=NEW",
        help="as an entry of data.text.replace; may be given several times")  # fmt: skip
    add("--keep", default=default.keep, metavar="CHARACTERS", help="as data.text.keep")


def _pair(text: str) -> str:
    if not text.partition("=")[0] or "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} must have the form OLD=NEW")
    return text


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
    index = open_index(",".join(args.shards), "SHARDS")
    text = TextConfig(
        form=args.form,
        replace=dict(pair.split("=", 1) for pair in args.replace),
        case=args.case,
        punctuation=args.punctuation,
        keep=args.keep,
    )
    labels = read_labels(index, args.units)
    shown = track(labels, "reading texts", len(index), console=console, transient=True)
    counts = count_symbols(shown, args.units, text)
    _show(counts)
    found = counts.alphabet()
    said = ""
    if args.units == "characters":
        words = "words are separated by |" if found.has_words else "texts are not cut into words"
        said = f", {found.text.case} case; {words}"
    console.print(
        f"{counts.num_labels} of {len(index)} utterances have a text; {found.num_tokens} outputs "
        f"({len(found.special)} special ones){said}"
    )
    if args.output:
        write_alphabet(args.output, found)
        console.print(f"wrote {args.output}: train with data.tokens={args.output}")


def _show(counts: SymbolCounts) -> None:
    table, doubts = Table("symbol", "code", "count", "texts", "example", "remark"), counts.doubts()
    for symbol in counts.by_frequency():
        codes = " ".join(f"{ord(c):04X}" for c in symbol)
        example = _around(counts, symbol)
        numbers = f"{counts.occurrences[symbol]:,}", f"{counts.labels[symbol]:,}"
        table.add_row(escape(symbol), codes, *numbers, escape(example), doubts.get(symbol, ""))
    console.print(table)
    if doubts:
        console.print(
            f"{len(doubts)} may be mistakes or are rare: {escape(' '.join(doubts))}. Correct the "
            "texts, let data.text.replace do so, or remove the symbol from the file: an utterance "
            "with what has no symbol is counted and skipped in training"
        )
    dropped = [(c, n) for c, n in counts.dropped.most_common() if len(c) == 1]
    inside = [(c, n) for c, n in counts.dropped.most_common(10) if len(c) > 1 and n]
    if dropped:
        said = " ".join(f"{c} ({n:,})" if c.isprintable() else f"{ord(c):04X}" for c, n in dropped)
        console.print(escape(f"dropped by data.text.punctuation: {said}"))
    if inside:
        said = " ".join(f"{c} ({n:,})" for c, n in inside)
        console.print(escape(f"of these inside words (keep them with data.text.keep): {said}"))


def _around(counts: SymbolCounts, symbol: str) -> str:
    """Some 40 characters of the first text with the symbol, with it in them."""
    text = counts.example[symbol]
    if len(text) <= 40:
        return text
    places = (i for i, c in enumerate(text) if symbol in counts.reading.normalized(c))
    start = max(0, next(places, max(text.find(symbol), 0)) - 20)
    return (
        ("…" if start else "") + text[start : start + 40] + ("…" if start + 40 < len(text) else "")
    )
