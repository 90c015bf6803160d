"""The papers' tables with a recipe's own results beside them, before they take a form."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from w2v2dist.config import ConfigError
from w2v2dist.recipes.recipe import Recipe, command_of
from w2v2dist.reporting.paper_tables import (
    ANY,
    Figure,
    PaperRow,
    PaperTable,
    result_tables,
    same_row,
    setting_tables,
)
from w2v2dist.reporting.seeds import Place, places_of

DECODED = {"greedy": "no LM", "ngram": "n-gram", "transformer": "Transf.", ANY: "", "": ""}
OWN = "own"  # the table of what no paper has


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A row with one decoder: the paper's figures and ours, by column; `paper` is None of a row
    that no paper has."""

    name: str
    decoder: str
    paper: PaperRow | None
    ours: Mapping[str, Place]

    def figure(self, column: str) -> Figure | None:
        """The paper's, in a column."""
        return self.paper.figures.get(column) if self.paper else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """A table with both."""

    table: PaperTable
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What is shown: tables, and of a recipe the places that are not whole, and the command for
    what they lack."""

    tables: tuple[Beside, ...]
    recipe: str = ""  # its name
    missing: tuple[Place, ...] = ()
    command: str = ""
    num_places: int = 0


def tables_of(
    recipe: Recipe | None,
    *,
    everything: bool = False,
    number: str | None = None,
) -> Tables:
    """The paper's tables, all of them without a recipe; with one those that it has rows of, and
    with `everything` the others, too. `number`: this one alone. Raises ConfigError."""
    number = _known(number)
    places = places_of(recipe) if recipe is not None else []
    placed: set[tuple[str, str, str]] = set()
    whole = [Beside(table=t, lines=tuple(_lines(t, places, placed))) for t in result_tables()]
    if rest := [p for p in places if (p.row, p.column, p.decoder) not in placed]:
        whole.append(_own(rest))
    ours = (Beside(table=b.table, lines=tuple(x for x in b.lines if x.ours)) for b in whole)
    shown = [beside for beside in ours if beside.lines]
    whole += [Beside(table=t, lines=tuple(_lines(t, [], set()))) for t in setting_tables()]
    if recipe is None or everything:
        shown = whole
    if number is not None:
        named = [[b for b in of if b.table.number == number] for of in (shown, whole)]
        shown = named[0] or named[1]
    if not shown:
        raise ConfigError(_nothing(recipe, number))
    there = {id(place) for b in shown for line in b.lines for place in line.ours.values()}
    return Tables(
        tables=tuple(shown),
        recipe=recipe.name if recipe is not None else "",
        missing=tuple(place for place in places if place.missing and id(place) in there),
        command=command_of(recipe) if recipe is not None else "",
        num_places=len(there),
    )


def _known(number: str | None) -> str | None:
    """The table that is meant. Raises ConfigError."""
    known = [table.number for table in (*result_tables(), *setting_tables())] + [OWN]
    found = [name for name in known if number and name.casefold() == number.casefold()]
    if number is not None and not found:
        raise ConfigError(f"--table is {number!r} but must be one of {', '.join(known)}")
    return found[0] if found else None


def _nothing(recipe: Recipe | None, number: str | None) -> str:
    """Why there is nothing to show."""
    if recipe is None or any(stage.cell is not None for stage in recipe.stages.values()):
        of = recipe.name if recipe is not None else "the papers"
        return f"--table is {number} but {of} has no rows that no paper has: leave it out"
    return (
        f"{recipe.path}: no stage of {recipe.name} has a cell, its place in the tables: add one, "
        "such as cell: {row: 10 min BASE LS-960, split: test_clean, decoder: greedy, seed: 1}, or "
        "see the papers' with --all"
    )


def _lines(
    table: PaperTable, places: list[Place], placed: set[tuple[str, str, str]]
) -> Iterator[Line]:
    """The lines of a table, with ours where there are any; what was used is added to `placed`. Of a
    figure whose decoder is not said every decoder of ours stands beside it; other rates do not."""
    for row in table.rows:
        found: dict[str, dict[str, Place]] = {}
        for place in places:
            here = same_row(place.row) == same_row(row.name) and place.column in table.columns
            same_rate = all(r.rate_name.upper() in table.rate for r in place.found.values())
            if here and same_rate and row.decoder in (ANY, place.decoder):
                found.setdefault(place.decoder, {})[place.column] = place
                placed.add((place.row, place.column, place.decoder))
        for decoder, ours in found.items() or [(row.decoder, {})]:
            yield Line(name=row.name, decoder=decoder, paper=row, ours=ours)


def _own(places: list[Place]) -> Beside:
    """A table of what no paper has."""
    rates = dict.fromkeys(r.rate_name.upper() for p in places for r in p.found.values())
    table = PaperTable(
        number=OWN,
        title="Rows of the recipe that no paper has",
        rate=", ".join(rates) or "error rate",
        columns=tuple(dict.fromkeys(place.column for place in places)),
        rows=(),
    )
    lines: dict[tuple[str, str], dict[str, Place]] = {}
    for place in places:
        lines.setdefault((place.row, place.decoder), {})[place.column] = place
    return Beside(
        table=table,
        lines=tuple(
            Line(name=name, decoder=decoder, paper=None, ours=ours)
            for (name, decoder), ours in lines.items()
        ),
    )
