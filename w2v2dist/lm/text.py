"""`w2v2dist lm text`: texts for a language model, its vocabulary and lexicon."""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.progress import track

from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import Alphabet, alphabet
from w2v2dist.data.alphabet_file import read_alphabet
from w2v2dist.data.index_writer import atomic, made
from w2v2dist.data.source import open_index
from w2v2dist.data.text import describe
from w2v2dist.data.texts import read_labels
from w2v2dist.lm.lexicon import Lexicon, lexicon_lines, token_names
from w2v2dist.lm.lines import progress, text_files
from w2v2dist.lm.sentences import LONGEST, RESERVED, Reader, sentences
from w2v2dist.runtime.logging import console

NAMED = ("letters", "phones")
SHOWN = 20  # strangers in the summary
TEXT, DICTIONARY, LEXICON, SUMMARY = "text.txt", "dict.txt", "lexicon.txt", "summary.json"
EMPTY, LONG, MARKED, STRANGE = (
    "nothing to read",
    f"longer than {LONGEST:,} characters",
    f"a mark of language models ({' '.join(sorted(RESERVED))})",
    "symbols outside the alphabet",
)


@dataclass(slots=True)
class Found:
    """What was written of texts, and what was left out."""

    sentences: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # of words, or of tokens
    left_out: Counter[str] = field(default_factory=Counter)  # sentences by reason
    strangers: Counter[str] = field(default_factory=Counter)  # symbols outside the alphabet


@dataclass(frozen=True, slots=True)
class Writing:
    """How sentences become lines: of words, or of the alphabet's tokens by their `names`."""

    reader: Reader
    names: dict[int, str]
    units: Literal["words", "tokens"]
    keep_unspellable: bool = False

    def line(self, sentence: str, found: Found) -> list[str]:
        """The words or tokens of a sentence, [] where it is left out (and counted so)."""
        if len(sentence) > LONGEST:
            found.left_out[LONG] += 1
            return []
        words = self.reader.words(sentence)
        if "'" in words:  # what is left of a quotation
            words = [word for word in words if word != "'"]
        if not words:
            found.left_out[EMPTY] += 1
            return []
        if not RESERVED.isdisjoint(words):
            found.left_out[MARKED] += 1
            return []
        if not self.reader.spells(words):
            for word in words:
                if self.reader.spelling(word) is None:
                    found.strangers.update(self.reader.strangers(word) or (word,))
            if not self.keep_unspellable:
                found.left_out[STRANGE] += 1
                return []
        if self.units == "words":
            return words
        ids = [i for word in words for i in self.reader.spelling(word) or ()]
        return [self.names[i] for i in (ids[:-1] if self.reader.alphabet.has_words else ids)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist lm text` takes."""
    add = parser.add_argument
    text = "files of text (also .gz), a sentence a line; folders of such; - for standard input"
    add("text", nargs="*", metavar="TEXT", help=text)
    add("--shards", metavar="SHARDS", help="folders of shards whose texts are read, too")
    add("--output", required=True, type=Path, metavar="DIR", help="where the files go")
    which = "letters (LibriSpeech's, the default), phones, a file, or the run folder of the model "
    add("--alphabet", default="letters", help=which + "that the language model is for")
    running = "the files are running text: sentences end at . ! ? and empty lines"
    add("--running", action="store_true", help=running)
    units = "words, or the alphabet's tokens (of characters, with | between words; of phones); "
    units += "default: words where the alphabet has them"
    add("--units", choices=("words", "tokens"), help=units)
    strange = "keep sentences with words that the alphabet cannot spell; such words are not in "
    strange += "the vocabulary, so they are unknown to a language model of it"
    add("--keep-unspellable", action="store_true", help=strange)
    least = "words that are there less often are not in the vocabulary (default: 1)"
    add("--min-count", type=int, default=1, metavar="N", help=least)
    add("--max-words", type=int, metavar="N", help="the N most frequent words are the vocabulary")


def run(args: argparse.Namespace) -> int:
    """Read texts as a training reads its labels, and write them with a vocabulary and a lexicon:
    text.txt (a sentence a line), dict.txt (word and count), lexicon.txt (word and tokens),
    summary.json. Sentences with symbols outside the alphabet (digits, say) are left out and
    counted. Of any size: only the counts of words are in memory.

    example:
      w2v2dist lm text librispeech-lm-norm.txt.gz --output lm/words --min-count 10
      w2v2dist lm text books/ --running --alphabet runs/mine --output lm/mine
      w2v2dist lm text --shards data/ls100 --units tokens --output lm/letters
    """
    for name, value in (("--min-count", args.min_count), ("--max-words", args.max_words)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value} but must be at least 1")
    if not args.text and not args.shards:
        raise ConfigError("there is nothing to read: give files, folders, - or --shards SHARDS")
    if (args.output / SUMMARY).exists():
        raise ConfigError(f"{args.output} has a text already: remove it or choose another --output")
    letters = _alphabet(args.alphabet)
    writing = _writing(letters, args.units, args.keep_unspellable)
    paths = text_files(args.text)
    made(args.output, "--output")
    found = Found()
    with atomic(args.output / TEXT) as file:
        for sentence in _sentences(paths, args.running, args.shards, letters):
            if units := writing.line(sentence, found):
                file.write(" ".join(units).encode() + b"\n")
                found.sentences += 1
                found.counts.update(units)
        kept = _kept(args, writing, found)  # raises: then there is no text either
    _write_vocabulary(args.output, writing, kept)
    summary = _summary(args, writing, found, kept)
    with atomic(args.output / SUMMARY) as file:  # last: with it the folder is complete
        file.write(json.dumps(summary, ensure_ascii=False, indent=1).encode() + b"\n")
    _say(args.output, summary, found)
    return 0


def _alphabet(name: str) -> Alphabet:
    if name in NAMED:
        return alphabet(name)
    if not Path(name).exists():
        raise ConfigError(
            f"--alphabet is {name!r}, which does not exist: give letters, phones, a file or a run "
            "folder"
        )
    return read_alphabet(Path(name))


def _writing(letters: Alphabet, units: str | None, keep_unspellable: bool) -> Writing:
    if units == "words" and not letters.has_words:
        raise ConfigError("the alphabet has no words (no delimiter): --units must be tokens")
    tokens = units == "tokens" or not letters.has_words
    if tokens and keep_unspellable:
        raise ConfigError("--keep-unspellable is for words: tokens are those of the alphabet")
    kind: Literal["words", "tokens"] = "tokens" if tokens else "words"
    return Writing(Reader(letters), token_names(letters), kind, keep_unspellable)


def _sentences(
    paths: list[str], running: bool, shards: str | None, letters: Alphabet
) -> Iterator[str]:
    """The sentences of all sources, with a progress bar."""
    bar, of = progress("reading texts", paths)
    with bar:
        for path in paths:
            yield from (sentence for _, sentence in sentences(path, running, of(path)))
    if shards:
        index = open_index(shards, "--shards")
        labels = read_labels(index, letters.units)
        yield from track(labels, "reading shards", len(index), console=console, transient=True)


def _kept(args: argparse.Namespace, writing: Writing, found: Found) -> dict[str, int]:
    """The vocabulary with its counts. Raises ConfigError where there is none."""
    if not found.sentences:
        raise ConfigError(f"no sentence is left of the text: {_why(found) or 'it is empty'}")
    by_count = sorted(found.counts.items(), key=lambda item: (-item[1], item[0]))
    often = ((word, count) for word, count in by_count if count >= args.min_count)
    known = writing.units == "tokens" or not writing.keep_unspellable
    spelled = often if known else (item for item in often if writing.reader.spelling(item[0]))
    kept = dict(itertools.islice(spelled, args.max_words))
    if not kept:
        raise ConfigError(f"no word is there {args.min_count} times (--min-count)")
    return kept


def _write_vocabulary(folder: Path, writing: Writing, kept: dict[str, int]) -> None:
    """Dictionary and, of words, lexicon."""
    if writing.units == "words":
        lexicon = Lexicon.from_words(kept, writing.reader.alphabet)
        with atomic(folder / LEXICON) as file:
            file.writelines(lexicon_lines(lexicon.spellings, writing.reader.alphabet))
    with atomic(folder / DICTIONARY) as file:
        file.writelines(f"{word} {count}\n".encode() for word, count in kept.items())


def _summary(
    args: argparse.Namespace, writing: Writing, found: Found, kept: dict[str, int]
) -> dict[str, Any]:
    return {
        "units": writing.units,
        "sentences": found.sentences,
        "words": found.counts.total(),
        "distinct_words": len(found.counts),
        "kept_words": len(kept),
        "coverage": round(sum(kept.values()) / found.counts.total(), 6),
        "min_count": args.min_count,
        "max_words": args.max_words,
        "left_out": dict(found.left_out),
        "strangers": dict(found.strangers.most_common(SHOWN)),
        "sources": [*args.text, *([args.shards] if args.shards else [])],
        "alphabet": writing.reader.alphabet.to_dict(),
    }


def _say(folder: Path, summary: dict[str, Any], found: Found) -> None:
    what = summary["units"]
    console.print(
        f"{summary['sentences']:,} sentences, {summary['words']:,} {what}, "
        f"{summary['distinct_words']:,} different; the vocabulary has {summary['kept_words']:,}, "
        f"{summary['coverage']:.2%} of the running ones"
    )
    if why := _why(found):
        total = found.left_out.total()
        sentences = "1 sentence" if total == 1 else f"{total:,} sentences"
        console.print(escape(f"{sentences} left out: {why}"))
    console.print(f"wrote {folder}")


def _why(found: Found) -> str:
    said = [f"{count:,} with {reason}" for reason, count in found.left_out.most_common()]
    if found.strangers:
        shown = [f"{describe(c)} ({n:,})" for c, n in found.strangers.most_common(5)]
        said.append(f"the most frequent are {', '.join(shown)}")
    return "; ".join(said)
