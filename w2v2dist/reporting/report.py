"""report.html: what a team looks at of one or more runs, on one page that needs nothing else."""

import argparse
import datetime
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from w2v2dist import __version__
from w2v2dist.recipes.recipe import Recipe, is_recipe, read_started
from w2v2dist.reporting import code_picture, logs, scores, settings, timeline
from w2v2dist.reporting.clips import Clips
from w2v2dist.reporting.page import Html, cards, cut, document, fold, join, table, tag
from w2v2dist.reporting.panels import MARKED, Charts, Panel, marks, panels_of
from w2v2dist.reporting.runs import ERRORS, MOST_RUNS, Run, find_runs, read_run
from w2v2dist.reporting.table_forms import html_tables
from w2v2dist.reporting.tail import COUNTED
from w2v2dist.runtime.files import write_whole
from w2v2dist.runtime.logging import console

MOST_EVENTS = 300
LONGEST_DETAILS = 500  # characters of an event
ORDER = ("pretrain", "finetune", "language_model")
UNSEEN = ("saved",)  # events that are counted, not listed


def write_report(
    run_dirs: Sequence[Path],
    output: Path,
    notes: dict[str, str] | None = None,
    *,
    audio: bool = True,
    recipes: Sequence[Recipe] = (),
) -> Path:
    """Write the page for `run_dirs` to `output`, whole or not at all, and return it; `notes` (name:
    text) and the tables of `recipes` stand at its top. Raises ValueError where a folder is not a
    run."""
    runs = [read_run(Path(folder)) for folder in run_dirs]
    if not runs and not recipes:
        raise ValueError("no run is named: give the folder of one")
    groups = _groups(runs)
    charts, clips = Charts.for_runs(groups), Clips() if audio else None
    sections = [_section(group, charts, clips, number) for number, group in enumerate(groups)]
    title = " · ".join([*(recipe.name for recipe in recipes), *(run.name for run in runs)])
    head = [
        tag("h1", title, dir="auto"),
        *(
            tag("p", tag("b", name), f" {text}", class_="note")
            for name, text in (notes or {}).items()
        ),
    ]
    made = f"w2v2dist {__version__}, {datetime.datetime.now():%Y-%m-%d %H:%M}"
    help_ = "drag over a curve to zoom, double click to see all; a name in a legend hides its curve"
    foot = tag("footer", f"{made} · {help_}")
    body = join(
        [
            tag("header", *head, _contents(groups)),
            tag("noscript", tag("p", "The curves need JavaScript.", class_="problem")),
            tag("main", *map(_tables, recipes), *sections),
            foot,
        ]
    )
    found = {"panels": charts.panels, "marks": charts.marks}
    data = {**found, "clips": clips.uris if clips else []}
    write_whole(Path(output), document(f"{title}: run report", body, data))
    return Path(output)


def _tables(recipe: Recipe) -> Html:
    """The papers' tables with a recipe's results beside them."""
    return tag("section", tag("h2", f"Tables of {recipe.name}", dir="auto"), *html_tables(recipe))


def _groups(runs: list[Run]) -> list[list[Run]]:
    """The runs of each kind, in the order of the work."""

    def place(run: Run) -> tuple[int, str]:
        return (ORDER.index(run.task) if run.task in ORDER else len(ORDER)), run.task

    ordered = sorted(runs, key=place)
    return [list(group) for _, group in itertools.groupby(ordered, key=place)]


def _contents(groups: list[list[Run]]) -> Html | None:
    """Links to the kinds of training, where there are several."""
    if len(groups) < 2:
        return None
    links = (tag("a", _title(group), href=f"#group{i}") for i, group in enumerate(groups))
    return tag("nav", *links)


def _title(group: list[Run]) -> str:
    kind = group[0].kind
    return kind[:1].upper() + kind[1:] + ("s" if len(group) > 1 else "")


def _section(group: list[Run], charts: Charts, clips: Clips | None, number: int) -> Html:
    """All about the runs of one kind: numbers, curves, evaluations, then each run's own."""
    several = len(group) > 1
    numbers = _comparison(group) if several else _numbers(group[0])
    panels = panels_of(group)
    found = [_panel(panel, charts.add(panel, group, f"g{number}")) for panel in panels]
    curves = tag("div", *found, class_="panels") if found else None
    return tag(
        "section",
        tag("h2", _title(group)),
        numbers,
        *(_alarms(run, several=several) for run in group),
        curves,
        _key(group) if found else None,
        scores.section(group, clips),
        code_picture.section(group),
        *(_run(run, several=several) for run in group),
        id=f"group{number}",
    )


def _panel(panel: Panel, number: int) -> Html:
    """The place of a panel, which the script fills."""
    return tag(
        "figure",
        tag("figcaption", panel.title, title=panel.note or None),
        tag("div", class_="legend", aria_live="off"),
        tag("div", class_="chart", role="img", aria_label=panel.title),
        data_panel=number,
        class_="panel",
    )


def _key(group: list[Run]) -> Html | None:
    """What the vertical lines in the curves are."""
    known = {**MARKED, "freeze": "freeze_steps are over"}
    kinds = dict.fromkeys(mark["kind"] for run in group for mark in marks(run))
    if not kinds:
        return None
    items = (tag("span", tag("i", class_=f"mark {kind}"), known[kind]) for kind in kinds)
    return tag("p", *items, class_="keys")


def _numbers(run: Run) -> Html:
    """A run's final numbers, a card each, and what is missing of it."""
    problems = (tag("p", problem, class_="problem", dir="auto") for problem in run.problems)
    return join([cards(final_numbers(run)), *problems])


def _comparison(group: list[Run]) -> Html:
    """Final numbers of several runs, and where their settings differ."""
    numbers = [final_numbers(run) for run in group]
    labels = dict.fromkeys(label for of in numbers for label in of)
    rows = [
        (
            tag("td", tag("i", class_=f"dot c{i % 8}"), tag("bdi", run.name)),
            *(of.get(label, "") for label in labels),
        )
        for i, (run, of) in enumerate(zip(group, numbers, strict=True))
    ]
    differing = settings.differing(group)
    problems = [
        tag("p", f"{run.name}: {problem}", class_="problem", dir="auto")
        for run in group
        for problem in run.problems
    ]
    parts = [table(("run", *labels), rows, class_="numbers"), *problems]
    return join([*parts, fold("Settings that differ", differing) if differing else None])


def final_numbers(run: Run) -> dict[str, str]:
    """What a run ended with, or is at: label to text."""
    out = {"state": run.state}
    out["step"] = f"{run.last_step:,} of {run.number('loop.max_steps', 0):,.0f}"
    for label, key, form in _rows(run):
        values = run.series(key)[1]
        if len(values):
            value = float(values.min() if label.startswith("best") else values[-1])
            out[label] = form.format(value).replace("%", " %")
    unit = next((name for name in COUNTED if name in run.training.columns), None)
    amount = float(np.nansum(run.training.column(unit or "audio_hours")))
    out[f"{unit or 'audio'} used"] = f"{amount:,.0f}" if unit else f"{amount:,.2f} h"
    speed = run.series("speed")[1]
    if len(speed):
        what = f"{unit} a second" if unit else "× real time"
        out[f"median throughput, {what}"] = _digits(float(np.median(speed)))
    if found := timeline.spent(run):
        out["goodput"] = f"{100 * found.goodput:.1f} %"
    out["interruptions survived"] = str(sum(e["event"] == "resumed" for e in run.events))
    return out


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rows(run: Run) -> list[tuple[str, str, str]]:
    """Labels, metrics and forms of the numbers of a kind of training."""
    if run.task == "pretrain":
        return [
            (
                f"contrastive loss, bits (chance {run.chance_bits:.3f})",
                "contrastive_loss",
                "{:.3f}",
            ),
            ("best on validation, bits", "valid/contrastive_loss", "{:.3f}"),
            ("accuracy", "accuracy", "{:.1%}"),
            ("code perplexity", "code_perplexity", "{:.1f}"),
        ]
    if run.task == "language_model":
        perplexity = ("best perplexity on validation", "valid/perplexity", "{:.2f}")
        return [("perplexity", "perplexity", "{:.2f}"), perplexity]
    return [
        (f"best {unit} errors on validation", f"valid/{rate}", "{:.1%}")
        for rate, unit in ERRORS.items()
    ]


def _alarms(run: Run, *, several: bool) -> Html | None:
    """The alarms of a run; None where there were none."""
    found = [mark for mark in marks(run) if mark["kind"] == "alarm"]
    if not found:
        return None
    items = (
        tag("li", f"step {mark['step']:,}: {mark['text']}", dir="auto") for mark in found[-20:]
    )
    of = f" of {run.name}" if several else ""
    title = f"{len(found)} alarm{'s' * (len(found) != 1)}{of}"
    return tag("div", tag("b", title, dir="auto"), tag("ul", *items), class_="alarms")


def _run(run: Run, *, several: bool) -> Html:
    """What is of one run alone: where its time went, settings, events."""
    parts: list[Html | None] = [
        tag("h3", "Wall time") if not several else None,
        timeline.section(run),
        _slowest(run),
        _masks(run),
        settings.section(run),
        _events(run),
    ]
    if several:
        return fold(join([tag("b", run.name, dir="auto"), " time, settings, events"]), *parts)
    return tag("section", *parts)


def _slowest(run: Run) -> Html | None:
    """Which process held the others up most often."""
    (place, names), sizes = run.slowest, run.series("world_size")[1]
    ratio = run.series("slowness")[1]
    if not len(place) or not len(sizes) or sizes[-1] <= 1 or not len(ratio):
        return None
    counts = np.bincount(place)
    order = np.argsort(-counts)[:3]
    said = ", ".join(f"{names[i]} ({100 * counts[i] / len(place):.0f} %)" for i in order)
    if counts.max() < 1.5 * len(place) / sizes[-1]:
        said = "no process much more often than another"
    text = f"Slowest in most records: {said}. It takes {np.median(ratio):.2f} × the median process."
    return tag("p", text, dir="auto")


def _masks(run: Run) -> Html | None:
    """How a fine-tuning masks; its metrics do not say."""
    if run.task != "finetune" or not run.config:
        return None
    time, channel = (
        f"{100 * run.number(f'model.{kind}mask_prob', 0):.3g} % (spans of "
        f"{run.number(f'model.{length}', 0):.0f})"
        for kind, length in (("", "mask_span_length"), ("channel_", "channel_mask_length"))
    )
    freeze = run.number("freeze_steps", 0)
    frozen = f"the Transformer frozen for {freeze:,.0f} steps" if freeze else "no frozen steps"
    return tag("p", f"Masks: frames {time}, channels {channel}; {frozen}.")


def _events(run: Run) -> Html:
    """The events, newest first; savings are counted."""
    shown = [e for e in run.events if e["event"] not in UNSEEN]
    rows = [
        (
            timeline.moment(logs.number(event.get("time"))),
            cut(event["event"], LONGEST_DETAILS),
            cut(str(event.get("step", "")), LONGEST_DETAILS),
            cut(_details(event), LONGEST_DETAILS),
        )
        for event in reversed(shown[-MOST_EVENTS:])
    ]
    rest = [f"saved {len(run.events) - len(shown)} times"]
    if len(shown) > MOST_EVENTS:
        rest.append(f"{len(shown) - MOST_EVENTS:,} older events in events.jsonl")
    content = table(("time", "event", "step", "details"), rows) if rows else None
    return fold(f"Events ({len(shown):,})", content, tag("p", " · ".join(rest)))


def _details(event: logs.Record) -> str:
    """What an event says beside its name, time and step."""
    return ", ".join(f"{k} {v}" for k, v in event.items() if k not in ("event", "time", "step"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist report` takes."""
    add = parser.add_argument
    below = f"or a folder that holds runs: its newest {MOST_RUNS}, the newest last"
    recipe = "or a recipe: its tables, and its runs"
    add("runs", nargs="+", type=Path, metavar="RUN", help=f"run folder, {below}; {recipe}")
    add("--output", type=Path, help="file (default: report.html in the first RUN)")
    add("--no-audio", action="store_true", help="leave out the recordings of the worst utterances")


def run(args: argparse.Namespace) -> None:
    """Write report.html, one page without a network: curves to zoom into, goodput, alarms,
    evaluations with the worst utterances to listen to; several runs side by side.

    example:
      w2v2dist report runs/base_ls960
      w2v2dist report runs/ --output report.html
      w2v2dist report configs/recipes/timit.yaml
    """
    recipes = {path: read_started(path) for path in args.runs if _is_recipe(path)}
    places = [recipes[path].folder if path in recipes else path for path in args.runs]
    trained = [
        place
        for place, path in zip(places, args.runs, strict=True)
        if path not in recipes or _has_runs(recipes[path])
    ]
    folders, left_out = find_runs(trained)
    if left_out:
        console.print(f"{left_out} older runs are left out: name them to see them")
    output = args.output or places[0] / "report.html"
    path = write_report(folders, output, audio=not args.no_audio, recipes=[*recipes.values()])
    console.print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", markup=False)


def _is_recipe(path: Path) -> bool:
    """Whether a path is of a recipe; one that nobody lets us look into is not."""
    try:
        return is_recipe(path)
    except OSError:
        return False


def _has_runs(recipe: Recipe) -> bool:
    """Whether a training of the recipe has begun."""
    trainings = (stage for stage in recipe.stages.values() if stage.is_training)
    return any((stage.folder / "config.yaml").is_file() for stage in trainings)
