"""Tables as text for a terminal, as Markdown, as CSV to the last digit, and as HTML."""

import csv
import io
import math
import shutil
import textwrap
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v2dist.config import ConfigError
from w2v2dist.recipes.recipe import Recipe
from w2v2dist.reporting.beside import DECODED, Beside, Line, Tables, tables_of
from w2v2dist.reporting.page import Html, tag
from w2v2dist.reporting.page import table as html_table
from w2v2dist.reporting.seeds import Place

WIDTH = 100
NONE = "—"
PAPER = (
    "Papers: the deviation over seeds in brackets; —: not printed. Source: P the paper, Q quoted "
    "by others, R recalled and unchecked, U a user's report."
)
OURS = (
    "Ours: mean ± deviation over the seeds (n − 1), the 95 % interval, and how many seeds of those "
    "planned it is of. The interval is that of the mean over the seeds (Student's t); of a single "
    "seed it is over its utterances (bootstrap)."
)
HEAD = """table row split decoder rate paper paper_deviation source mean deviation low high interval
num_seeds num_planned seeds missing""".split()


def screen_width() -> int:
    """Columns to write to: those of the terminal, at most WIDTH."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def text(found: Tables, width: int | None = None) -> str:
    """Aligned, in `width` columns (default: WIDTH)."""
    width = width or WIDTH
    parts = [_text_table(beside, width) for beside in found.tables]
    parts += [_wrapped(line, width) for line in _legend(found)]
    if found.missing:
        parts.append("\n".join(_missing(found, width)))
    return "\n\n".join(parts) + "\n"


def _text_table(beside: Beside, width: int) -> str:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for name in _head(beside):
        shown.add_column(Text(name), overflow="fold")
    for row in _rows(beside, "\n"):
        shown.add_row(*(Text(cell) for cell in row))
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(shown)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([_wrapped(beside.table.heading, width), *lines])


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


def markdown(found: Tables, width: int | None = None) -> str:
    """Tables of GitHub's Markdown, a heading above each."""
    parts = []
    for beside in found.tables:
        head = [_escaped(name) for name in _head(beside)]
        rows = [[_escaped(cell) for cell in row] for row in _rows(beside, ", ")]
        lines = [head, ["-"] * len(head), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {_escaped(beside.table.heading)}\n\n{table}")
    parts += [_escaped(line) for line in _legend(found)]
    if found.missing:
        first, *places, last = _missing(found, None)
        items = "\n".join(f"- {_escaped(place.strip())}" for place in places)
        parts += [_escaped(first), items, f"```\n{last.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _escaped(cell: str) -> str:
    """Text that means nothing in a table of Markdown but itself."""
    for mark in "\\|`*_<[":
        cell = cell.replace(mark, "\\" + mark)
    return " ".join(cell.split())


def comma_separated(found: Tables, width: int | None = None) -> str:
    """CSV: a row for each place with all digits, rates in %, in the order of the tables."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEAD)
    for beside in found.tables:
        for line in beside.lines:
            for column in beside.table.columns:
                if line.figure(column) is not None or column in line.ours:
                    writer.writerow(_record(beside, line, column))
    return out.getvalue()


def _record(beside: Beside, line: Line, column: str) -> list[str]:
    figure, place = line.figure(column), line.ours.get(column)
    value = deviation = ""
    if figure is not None:
        value = figure.text if figure.value is None else repr(figure.value)
        deviation = "" if figure.deviation is None else repr(figure.deviation)
    about = [beside.table.number, line.name, column, line.decoder, beside.table.rate]
    paper = [value, deviation, line.paper.source if line.paper else ""]
    return [*about, *paper, *(_ours(place) if place else [""] * 9)]


def _ours(place: Place) -> list[str]:
    over, low, high = place.interval
    seeds = [f"{seed}={_digits(reading.rate)}" for seed, reading in place.found.items()]
    missing = [f"seed {m.seed} ({m.stage}): {m.why}" for m in place.missing]
    numbers = [_digits(value) for value in (place.mean, place.deviation, low, high)]
    counts = [str(len(place.found)), str(place.num_planned)]
    return [*numbers, over, *counts, " ".join(seeds), "; ".join(missing)]


def _digits(rate: float) -> str:
    """A rate in % with all its digits; "" of NaN."""
    return "" if math.isnan(rate) else repr(100 * rate)


def html_tables(recipe: Recipe) -> Iterator[Html]:
    """A recipe's tables on a page; why there are none."""
    try:
        found = tables_of(recipe)
    except ConfigError as error:
        yield tag("p", str(error), class_="problem", dir="auto")
        return
    for beside in found.tables:
        yield tag("h3", beside.table.heading)
        yield html_table(_head(beside), _rows(beside, ", "))
    for line in _legend(found):
        yield tag("p", line)
    if found.missing:
        first, *lines, last = _missing(found, None)
        yield tag("p", first)
        yield tag("ul", *(tag("li", line.strip(), dir="auto") for line in lines))
        yield tag("pre", last.strip())


def _head(beside: Beside) -> list[str]:
    decoder, who = _wanted(beside)
    columns = [name.replace("_", " ") for name in beside.table.columns]  # they may be broken there
    head = ["", *["decoder"] * decoder, *[""] * who, *columns]
    return [*head, *["source"] * _sourced(beside)]


def _wanted(beside: Beside) -> tuple[bool, bool]:
    """Whether the table has a column of decoders, and one that says whose a line is."""
    ours = any(line.ours for line in beside.lines)
    return any(DECODED[line.decoder] for line in beside.lines), ours


def _sourced(beside: Beside) -> bool:
    return any(line.paper is not None and line.paper.source for line in beside.lines)


def _rows(beside: Beside, between: str) -> Iterator[list[str]]:
    """A row for the paper's figures, and one for ours, whose parts stand `between` each other."""
    decoder, who = _wanted(beside)
    for line in beside.lines:
        start = [line.name, *[DECODED[line.decoder]] * decoder]
        if line.paper is not None:
            figures = (line.figure(column) for column in beside.table.columns)
            cells = [NONE if figure is None else figure.text for figure in figures]
            source = [line.paper.source] * _sourced(beside)
            yield [*start, *["paper"] * who, *cells, *source]
            start = [""] * len(start)
        if line.ours:
            places = (line.ours.get(column) for column in beside.table.columns)
            cells = [_cell(place, between) if place else "" for place in places]
            yield [*start, "ours", *cells, *[""] * _sourced(beside)]


def _cell(place: Place, between: str) -> str:
    over, low, high = place.interval
    parts = [NONE] if not place.found else [f"{100 * place.mean:.2f}"]
    if not math.isnan(place.deviation):
        parts[0] += f" ± {100 * place.deviation:.2f}"
    if over:
        parts.append(f"{100 * low:.2f}–{100 * high:.2f}")
    return between.join([*parts, f"{len(place.found)}/{place.num_planned} seeds"])


def _legend(found: Tables) -> list[str]:
    papers = any(_sourced(beside) for beside in found.tables)
    return [*[PAPER] * papers, *[OURS] * any(x.ours for b in found.tables for x in b.lines)]


def _missing(found: Tables, width: int | None) -> list[str]:
    """What is missing, a line for each reason in each row, and the command that brings it, the
    last."""
    lines = [f"Missing in {len(found.missing)} of {found.num_places} places of {found.recipe}:"]
    reasons: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for place in found.missing:
        for m in place.missing:
            columns = reasons.setdefault((place.row, DECODED[place.decoder], m.why), {})
            columns.setdefault(place.column, []).append(str(m.seed))
    for (row, decoder, why), columns in reasons.items():
        which = "; ".join(
            f"{column} seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
            for column, seeds in columns.items()
        )
        line = f"  {row}, {decoder}, {which}: {why}"
        if width:
            line = textwrap.fill(
                line,
                width,
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        lines.append(line)
    return [*lines, f"  {found.command}"]


FORMS: dict[str, Callable[[Tables, int | None], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": comma_separated,
}
