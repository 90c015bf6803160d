"""What the papers print, as tables: results, and the settings, computing and weights behind them.
All of it stands in paper.yaml."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from w2v2dist.config import read_paper
from w2v2dist.reporting.references import references, show

ANY = "any"  # decoder of a figure whose decoder is not said
TASKS = {
    "pretrain": "Pre-training",
    "finetune": "Fine-tuning",
    "language_model": "Language model",
    "unsupervised": "Without labels",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What stands in one place: as text, and where it is a number its value, with the deviation
    over seeds where that is printed, too."""

    text: str
    value: float | None = None
    deviation: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """A row with one decoder ("" where there is nothing to decode); what is not printed is left out
    of `figures`, which are by column."""

    name: str
    decoder: str
    source: str  # P, Q, R, U, as paper.yaml says
    figures: Mapping[str, Figure]


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperTable:
    """A table; `number` is its name for `--table`, `rate` what its figures are ("" of settings)."""

    number: str
    title: str
    rate: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    note: str = ""

    @property
    def heading(self) -> str:
        """One line above it."""
        named = f"Table {self.number}" if self.rate else self.number
        rate = f" ({self.rate}, %)" if self.rate else ""
        return f"{named}: {self.title}{rate}" + (f"; {self.note}" if self.note else "")


def result_tables() -> list[PaperTable]:
    """The tables of results, in the order of the papers."""
    return [_results(str(number), about) for number, about in read_paper("tables").items()]


def setting_tables() -> list[PaperTable]:
    """What leads to the results: settings and where their sources differ, computing, decoding and
    the weights of language models."""
    decoding = {(name, name): values for name, values in read_paper("decoding").items()}
    weights = {
        (f"{labels} {model}", lm): dict(zip(("LM weight", "word score"), found, strict=True))
        for labels, models in read_paper("weights").items()
        for model, of_lm in models.items()
        for lm, found in of_lm.items()
    }
    computing = {(name, ""): values for name, values in read_paper("computing").items()}
    differences = {
        (f"{name} {key}", ""): values
        for name, keys in read_paper("differences").items()
        for key, values in keys.items()
    }
    return [
        *(_settings(task, title) for task, title in TASKS.items()),
        _listed("differences", "Where paper and released file differ", differences),
        _listed("computing", "Pre-training on V100", computing),
        _listed("decoding", "Beams, and where the weights are searched", decoding),
        _listed("weights", "Weights found on dev-other", weights),
    ]


def same_row(name: str) -> str:
    """What two spellings of a row have in common: letters and digits, whatever stands between."""
    return " ".join(re.findall(r"[a-z0-9]+", name.casefold()))


def paper_errors(split: str, decoder: str) -> dict[str, float]:
    """The error rates (%) of wav2vec 2.0 for a split and a decoder, by labels, model,
    pre-training; {}: the paper has none."""
    return {
        row.name: figure.value
        for number, about in read_paper("tables").items()
        if about["paper"] == "wav2vec 2.0"
        for row in _results(str(number), about).rows
        if row.decoder == decoder
        and (figure := row.figures.get(split)) is not None
        and figure.value is not None
    }


def _results(number: str, about: dict[str, Any]) -> PaperTable:
    columns = tuple(str(name) for name in about["columns"])

    def rows() -> Iterator[PaperRow]:
        for name, written in about["rows"].items():
            of = dict(written)
            source = of.pop("source", about["source"])
            for decoder, values in of.items():
                pairs = zip(columns, values, strict=True)
                figures = {c: _figure(v) for c, v in pairs if v is not None}
                yield PaperRow(name=str(name), decoder=decoder, source=source, figures=figures)

    return PaperTable(
        number=number,
        title=f"{about['paper']}: {about['title']}",
        rate=about["rate"],
        columns=columns,
        rows=tuple(rows()),
        note=about.get("note", ""),
    )


def _figure(value: Any) -> Figure:
    if isinstance(value, list):
        mean, deviation = map(float, value)
        return Figure(text=f"{mean!r} ({deviation!r})", value=mean, deviation=deviation)
    if isinstance(value, str):
        return Figure(text=value)
    return Figure(text=repr(float(value)), value=float(value))


def _setting(value: Any) -> Figure:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Figure(text=show(value), value=float(value) if number else None)


def _listed(
    number: str, title: str, rows: Mapping[tuple[str, str], Mapping[str, Any]]
) -> PaperTable:
    """A table of rows (name, decoder) with their values by column."""
    columns = dict.fromkeys(name for values in rows.values() for name in values)
    return PaperTable(
        number=number,
        title=title,
        rate="",
        columns=tuple(columns),
        rows=tuple(
            PaperRow(
                name=name,
                decoder=decoder,
                source="",
                figures={key: _setting(value) for key, value in values.items()},
            )
            for (name, decoder), values in rows.items()
        ),
    )


def _settings(task: str, title: str) -> PaperTable:
    """Every key of the references of a task, a row for each of its values, with whose it is."""
    known = references(task)
    whose: dict[tuple[str, str], list[str]] = {}
    figures: dict[tuple[str, str], Figure] = {}
    for name, reference in known.items():
        for key, value in reference.values.items():
            place = (key, show(value))
            whose.setdefault(place, []).append(name)
            figures[place] = _setting(value)
    order = list(dict.fromkeys(key for key, _ in whose))
    rows = [
        PaperRow(
            name=key,
            decoder="",
            source="",
            figures={
                "value": figures[key, text],
                "of": Figure(text="all" if len(names) == len(known) else ", ".join(names)),
            },
        )
        for key, text in sorted(whose, key=lambda place: order.index(place[0]))
        for names in [whose[key, text]]
    ]
    of = ", ".join(known) if len(known) < 4 else f"{len(known)} configurations"
    title = f"{title} ({of})"
    return PaperTable(number=task, title=title, rate="", columns=("value", "of"), rows=tuple(rows))
