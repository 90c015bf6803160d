"""`w2v2dist unsupervised text`: written text as a text of phones."""

import argparse
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.markup import escape

from w2v2dist.config import ConfigError, diff
from w2v2dist.data.index_writer import atomic, made
from w2v2dist.data.sentences import fingerprint_of
from w2v2dist.decode.forked import ForkedPool
from w2v2dist.interop.save import replacing
from w2v2dist.lm.lines import progress, text_files
from w2v2dist.lm.ngram import Settings
from w2v2dist.lm.sentences import LONGEST, sentences
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.runtime.logging import console
from w2v2dist.unsupervised.phone_lm import ORDERS, write_phone_lms
from w2v2dist.unsupervised.phone_text import META, SPECIAL, PhoneText, write_phone_text
from w2v2dist.unsupervised.pronunciation import (
    Pronunciations,
    check_phones,
    phonemized,
    read_pronunciations,
)
from w2v2dist.unsupervised.text_language import OnlyLanguage
from w2v2dist.unsupervised.text_words import (
    EMPTY,
    FOREIGN,
    PRUNED,
    RARE,
    UNSPOKEN,
    Counted,
    Reading,
    Spoken,
    check_alphabet,
    count_words,
    prune,
    worth_speaking,
)

CHUNK = 2_000  # sentences that a process gets at a time
LEXICON, WORDS = "lexicon.txt", "dict.words.txt"
MOSTLY = 0.5  # of the sentences that are dropped: something is wrong with the text
Out = TypeVar("Out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Silences:
    """Where `<SIL>` stands: at both ends of a line, and between two words with a probability that
    is drawn by (seed, line)."""

    probability: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"--silence is {self.probability} but must be from 0 to 1")


@dataclass(slots=True)
class Part:
    """Some lines as ids, one behind the other; `reasons`: of the lines that were left out."""

    ids: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    reasons: Counter[str] = field(default_factory=Counter)

    def rows(self) -> Iterator["array[int]"]:
        """Each line."""
        start = 0
        for size in self.sizes:
            yield self.ids[start : start + size]
            start += size


class Speaker:
    """Sentences as rows of ids."""

    def __init__(self, reading: Reading, spoken: Spoken, silences: Silences | None) -> None:
        ids = {phone: i for i, phone in enumerate(spoken.counts, len(SPECIAL))}
        self._words = {
            w: array("q", [ids[p] for p in phones]) for w, phones in spoken.phones.items()
        }
        self._reading, self._reasons, self._silences = reading, spoken.reasons, silences
        self._silence = len(SPECIAL) + len(ids)

    def part(self, job: tuple[int, list[str]]) -> Part:
        """The rows of sentences, of which the first has this number."""
        first, given = job
        out = Part()
        for number, sentence in enumerate(given, first):
            words = self._reading.words(sentence)
            why = words if isinstance(words, str) else self._missing(words)
            if why is not None or isinstance(words, str):
                out.reasons[why or EMPTY] += 1
                continue
            before = len(out.ids)
            self._speak(words, number, out.ids)
            out.sizes.append(len(out.ids) - before)
        return out

    def _missing(self, words: list[str]) -> str | None:
        """Why a sentence of these words cannot be spoken; None: it can."""
        strange = next((word for word in words if word not in self._words), None)
        return None if strange is None else self._reasons.get(strange, RARE)

    def _speak(self, words: list[str], number: int, ids: "array[int]") -> None:
        rest = self._silences
        if rest is None:
            for word in words:
                ids.extend(self._words[word])
            return
        between = [False] * len(words)
        if len(words) > 1 and rest.probability:
            drawn = keyed_rng(rest.seed, "silence", number).random(len(words) - 1)
            between[1:] = (drawn < rest.probability).tolist()
        ids.append(self._silence)
        for silent, word in zip(between, words, strict=True):
            if silent:
                ids.append(self._silence)
            ids.extend(self._words[word])
        ids.append(self._silence)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist unsupervised text` takes."""
    add = parser.add_argument
    text = "files of text (also .gz), a sentence a line, of the language of the recordings; folders"
    add("text", nargs="+", metavar="TEXT", help=text)
    add("--output", required=True, type=Path, metavar="FOLDER", help="where the phones go")
    how = parser.add_mutually_exclusive_group(required=True)
    file = "a word, a tab and its phones between blanks, a line each (CMUdict, too)"
    how.add_argument("--lexicon", metavar="FILE", help=file)
    voice = "espeak-ng speaks the words in this language (en-us, de, fr-fr …); needs the extra"
    how.add_argument("--language", metavar="NAME", help=voice + " [phones]")
    phones = "the text is of phones already, between blanks; | stands between words"
    how.add_argument("--phones", action="store_true", help=phones)
    add("--running", action="store_true", help="running text: sentences end at . ! ? and gaps")
    case = "the case that words are brought to, with those of the lexicon (default: keep)"
    add("--case", choices=("keep", "lower", "upper"), default="keep", help=case)
    only = "sentences in another language are left out (en, de, fr …); needs the extra [language]"
    add("--only-language", metavar="CODE", help=only)
    add("--no-stress", action="store_true", help="leave out the digits behind the lexicon's vowels")
    least = "words that are there less often are not spoken (default: 2)"
    add("--min-count", type=int, default=2, metavar="N", help=least)
    rare = "phones that the list of words has less often are left out, with their words "
    add("--min-phones", type=int, default=1000, metavar="N", help=rare + "(default: 1000)")
    silence = "how likely <SIL> is between two words (default: 0.25; version 2 takes 0.5)"
    add("--silence", type=float, default=0.25, metavar="P", help=silence)
    add("--no-silence", action="store_true", help="no <SIL> at all: silence is one of the phones")
    add("--seed", type=int, default=0, metavar="N", help="of the places of <SIL>")
    order = "the longest n-grams of the language models of phones (default: 4; several: 4 6)"
    add("--order", type=int, nargs="+", default=[*ORDERS], metavar="N", help=order)
    add("--workers", type=int, default=0, metavar="N", help="processes (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Make the text of phones that a discriminator sees as real: words by a lexicon or by
    espeak-ng, rare phones and their words left out, <SIL> at the ends and between some words.
    Sentences with a word that cannot be spoken are left out and counted. Writes packed ids, the
    phones (dict.phn.txt), the words (lexicon.txt, dict.words.txt) and n-grams of phones, with and
    without <SIL>. Of any size: only the counts of words are in memory.

    example:
      w2v2dist unsupervised text norm.txt.gz --lexicon cmudict.txt --no-stress --output text
      w2v2dist unsupervised text books/ --running --language de --only-language de --silence 0.5 \\
        --output text
      w2v2dist unsupervised text phones.txt --phones --no-silence --min-phones 1 --output text
    """
    for name, value in (("--min-count", args.min_count), ("--min-phones", args.min_phones)):
        if value < 1:
            raise ConfigError(f"{name} is {value} but must be at least 1")
    of_words = (args.only_language, "only-language"), (args.no_stress, "no-stress")
    for given, name in (*of_words, (args.case != "keep", "case")) if args.phones else ():
        if given:
            raise ConfigError(f"--{name} is of words, but --phones has none: leave one out")
    if args.workers < 0:
        raise ConfigError(f"--workers is {args.workers} but must be at least 0 (one a core)")
    for order in args.order:
        Settings(order)  # raises
    _silences(args)  # raises
    paths = text_files(args.text)
    if "-" in paths:
        raise ConfigError("standard input cannot be read twice, as this must be: give files")
    asked = _asked(args, paths)
    if not (args.output / META).is_file():
        made(args.output.parent, "--output")
        with replacing(args.output, folder=True) as folder:
            _write(args, folder, paths, asked)
    elif changed := diff(PhoneText(args.output).meta["asked"], asked):
        named = ", ".join(f"{k} is {old} there and {new} now" for k, (old, new) in changed.items())
        remedy = "remove it or choose another --output"
        raise ConfigError(f"{args.output} has a text of phones made otherwise ({named}): {remedy}")
    for note in write_phone_lms(PhoneText(args.output), args.order):
        console.print(f"note: {note}", style="yellow", markup=False)
    console.print(f"wrote {args.output}", markup=False)
    return 0


def _silences(args: argparse.Namespace) -> Silences | None:
    return None if args.no_silence else Silences(probability=args.silence, seed=args.seed)


def _asked(args: argparse.Namespace, paths: list[str]) -> dict[str, Any]:
    """What the text is known by: not its processes, nor what the files are called."""
    names = "language phones running case no_stress min_count min_phones silence no_silence seed"
    known = {name: getattr(args, name) for name in names.split()}
    if args.only_language:
        known["only_language"] = args.only_language
    if args.lexicon and Path(args.lexicon).is_file():
        known["lexicon"] = fingerprint_of([Path(args.lexicon)])
    return {**known, "text": fingerprint_of([Path(path) for path in paths])}


def _write(args: argparse.Namespace, folder: Path, paths: list[str], asked: dict[str, Any]) -> None:
    """The text, its phones and words."""
    only = OnlyLanguage(args.only_language) if args.only_language else None
    reading = Reading(case=args.case, phones=args.phones, only=only)
    lexicon = None
    if args.lexicon:  # before the text is read: a garbled line shows at once
        lexicon = read_pronunciations(args.lexicon, args.case, not args.no_stress)
    counted = Counted()

    def count(job: tuple[int, list[str]]) -> Counted:
        return count_words(job[1], reading)

    for part in _pooled(count, paths, args, "counting words"):
        counted.add(part)
    if not counted.words:
        why = _with(counted.left_out) or "it is empty"
        raise ConfigError(f"the text has no word ({', '.join(paths)}): {why}")
    spoken, notes = _spoken(args, counted, lexicon)
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    reasons: Counter[str] = Counter()
    meta: dict[str, Any] = {"asked": asked, "num_words": len(spoken.phones)}
    meta |= {"pruned_phones": spoken.pruned, "left_out": reasons}

    def rows() -> Iterator["array[int]"]:
        speaker = Speaker(reading, spoken, _silences(args))
        for part in _pooled(speaker.part, paths, args, "speaking"):
            reasons.update(part.reasons)
            yield from part.rows()
        if reasons.total() == counted.num_lines:
            strange = [w for w in counted.words if spoken.reasons.get(w) == UNSPOKEN]
            first = sorted(strange, key=lambda w: (-counted.words[w], w))[:5]
            named = f"; the first of these words: {', '.join(map(repr, first))}" if first else ""
            raise ConfigError(f"no sentence is left: {_why(reasons, counted.num_lines)}{named}")

    text = write_phone_text(folder, spoken.counts, rows(), meta)
    _write_words(folder, spoken, counted)
    _say(text, spoken, reasons, counted.num_lines)


def _spoken(
    args: argparse.Namespace, counted: Counted, lexicon: Pronunciations | None
) -> tuple[Spoken, list[str]]:
    """The words that can be spoken; notes on them."""
    words = worth_speaking(counted.words, 1 if args.phones else args.min_count)
    if not words:
        often = sum(n >= args.min_count for n in counted.words.values())
        why = f"is there --min-count {args.min_count} times: give more text, or --min-count 1"
        if often:
            why = "can be spoken: those that are there often enough have five digits in a row"
        raise ConfigError(f"none of the {len(counted.words):,} words {why}")
    if lexicon is not None:
        check_alphabet(counted.words, lexicon, args.lexicon)
        check_phones(lexicon.phones.values(), f"the lexicon {args.lexicon}")
    elif args.phones:
        lexicon = Pronunciations({word: tuple(word.split()) for word in words})
        check_phones(lexicon.phones.values(), "the text of --phones")
    else:
        with console.status("espeak-ng speaks the words"):
            lexicon = phonemized(words, args.language)
    spoken = prune(words, lexicon.phones, args.min_phones)
    return spoken, lexicon.notes


def _pooled(
    function: Callable[[tuple[int, list[str]]], Out],
    paths: list[str],
    args: argparse.Namespace,
    doing: str,
) -> Iterator[Out]:
    """A function over all sentences in chunks, in order, in several processes."""
    pool = ForkedPool(function, args.workers or len(os.sched_getaffinity(0)))
    bar, of = progress(doing, paths)

    def found() -> Iterator[str]:
        for path in paths:
            for _, sentence in sentences(path, args.running, of(path)):
                yield sentence if len(sentence) <= LONGEST else ""

    with bar:
        try:
            yield from pool.map(_chunks(found()))
        finally:
            pool.close()


def _chunks(given: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Sentences in chunks, with the number of the first of each."""
    first, chunk = 0, list[str]()
    for sentence in given:
        chunk.append(sentence)
        if len(chunk) == CHUNK:
            yield first, chunk
            first, chunk = first + CHUNK, []
    if chunk:
        yield first, chunk


def _write_words(folder: Path, spoken: Spoken, counted: Counted) -> None:
    """The lexicon of a search over words, and the vocabulary of a language model of words."""
    with atomic(folder / LEXICON) as file:
        file.writelines(f"{w}\t{' '.join(p)}\n".encode() for w, p in spoken.phones.items())
    with atomic(folder / WORDS) as file:
        file.writelines(f"{word} {counted.words[word]}\n".encode() for word in spoken.phones)


def _say(text: PhoneText, spoken: Spoken, reasons: Counter[str], num_lines: int) -> None:
    console.print(
        f"{len(text):,} lines, {text.meta['num_ids']:,} phones of {len(spoken.counts)} kinds, "
        f"{len(spoken.phones):,} words"
    )
    if spoken.pruned:
        shown = ", ".join(f"{phone} ({n:,})" for phone, n in [*spoken.pruned.items()][:10])
        console.print(escape(f"{len(spoken.pruned)} rare phones left out (--min-phones): {shown}"))
    if reasons:
        style = "yellow" if reasons.total() > MOSTLY * num_lines else None
        console.print(escape(_why(reasons, num_lines)), style=style)


def _why(reasons: Counter[str], num_lines: int) -> str:
    """What was left out of a text, and how to have it back."""
    share, said = reasons.total() / num_lines, _with(reasons)
    return f"{reasons.total():,} of {num_lines:,} sentences left out ({share:.1%}): {said}"


def _with(reasons: Counter[str]) -> str:
    named = {FOREIGN: f"in {FOREIGN} (--only-language)", RARE: f"with {RARE} (--min-count)"}
    named[PRUNED] = f"with {PRUNED} (--min-phones)"
    return ", ".join(f"{n:,} {named.get(why, f'with {why}')}" for why, n in reasons.most_common())
