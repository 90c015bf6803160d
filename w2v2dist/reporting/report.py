"""report.html: the curves, events and settings of one or more runs on one self-contained page."""

from __future__ import annotations

import argparse
import base64
import datetime
import html
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from w2v2dist.config import flatten, read_yaml
from w2v2dist.runtime.logging import console, read_jsonl

Record = dict[str, Any]
COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626")
# Events that change what the curves mean get a line on them
MARKED = {
    "preempted": "#dc2626",
    "resumed": "#059669",
    "alarm": "#b45309",
    "checkpoint_damaged": "#b45309",
}
HIGHLIGHTS = """
pretrained freeze_steps model.num_layers model.embed_dim model.conv_channels model.norm_first
model.num_codebook_entries model.mask_prob data.virtual_world_size data.max_samples_per_slot
data.max_crop loop.max_steps schedule.name schedule.peak_lr engine.precision engine.zero_stage seed
""".split()
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #f8fafc; margin: 0 auto;
       max-width: 1180px; padding: 24px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; }
h3 { font-size: 15px; margin: 16px 0 6px; } p { margin: 4px 0; color: #4b5563; }
.cards { display: flex; flex-wrap: wrap; gap: 10px; margin: 12px 0; }
.card { background: #fff; border: 1px solid #e2e8f0; border-radius: 8px; padding: 8px 14px; }
.card b { display: block; font-size: 20px; } .card span { font-size: 12px; color: #64748b; }
img { width: 100%; background: #fff; border: 1px solid #e2e8f0; border-radius: 8px; }
.tables { display: flex; flex-wrap: wrap; gap: 32px; }
table { border-collapse: collapse; font-size: 13px; }
td, th { text-align: left; padding: 2px 14px 2px 0; border-bottom: 1px solid #e2e8f0; }
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder says; `records` hold the last entry of every step and kind."""

    name: str
    config: dict[str, Any]
    records: list[Record]
    events: list[Record]

    @property
    def is_pretraining(self) -> bool:
        return self.config.get("task") != "finetune"

    @property
    def chance_bits(self) -> float:
        """Contrastive loss of a model that guesses: log2(1 + distractors), 6.658 bits for 100."""
        return math.log2(1 + int(self.config.get("model.num_distractors", 100)))

    def series(self, key: str, scale: float = 1.0) -> tuple[list[int], list[float]]:
        """Steps and values (times `scale`) of a metric, where it was logged as a finite number."""
        known = [r for r in self.records if isinstance(r.get(key), (int, float))]
        return [int(r["step"]) for r in known], [float(r[key]) * scale for r in known]

    def last(self, key: str) -> float | None:
        """The last logged value of a metric."""
        values = self.series(key)[1]
        return values[-1] if values else None


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: its title and (metric, label, scale) of each curve."""

    title: str
    curves: tuple[tuple[str, str, float], ...]


PRETRAIN = (
    Panel(
        "contrastive loss (bits)",
        (("contrastive_loss", "train", 1), ("valid/contrastive_loss", "valid", 1)),
    ),
    Panel(
        "other losses (bits)",
        (("diversity_loss", "diversity", 1), ("feature_penalty", "feature penalty", 1)),
    ),
    Panel(
        "perplexity (codes in use)",
        (("code_perplexity", "code", 1), ("prob_perplexity", "prob", 1)),
    ),
    Panel("accuracy (%)", (("accuracy", "train", 100), ("valid/accuracy", "valid", 100))),
    Panel("learning rate", (("lr", "", 1),)),
    Panel("Gumbel temperature", (("temperature", "", 1),)),
    Panel("gradient norm", (("grad_norm", "", 1),)),
    Panel("speed (× real time)", (("speed", "", 1),)),
)
FINETUNE = (
    Panel("CTC loss (nats per utterance)", (("loss", "train", 1), ("valid/loss", "valid", 1))),
    Panel("validation errors (%)", (("valid/wer", "words", 100), ("valid/cer", "letters", 100))),
    Panel("learning rate", (("lr", "", 1),)),
    Panel("gradient norm", (("grad_norm", "", 1),)),
)


def write_report(run_dirs: list[Path], output: Path, notes: dict[str, str] | None = None) -> Path:
    """Write the page for `run_dirs` to `output`, return it; `notes` (name: text) stand at its top.

    Raises ValueError where a folder is not a run.
    """
    runs = [read_run(Path(folder)) for folder in run_dirs]
    finetunings = [run for run in runs if not run.is_pretraining and run.series("valid/wer")[1]]
    parts = [f"<h1>{html.escape(' · '.join(run.name for run in runs))}</h1>"]
    for name, text in (notes or {}).items():
        parts.append(f"<p><b>{html.escape(name)}</b> {html.escape(str(text))}</p>")
    if len(finetunings) > 1:
        image = _image(_comparison(finetunings), "validation errors")
        parts += ["<h2>Fine-tunings compared</h2>", image]
    parts += [_section(run) for run in runs]
    title = html.escape(runs[0].name if runs else "w2v2dist")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}: run report</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    return output


def read_run(folder: Path) -> Run:
    """The logs of a run folder; a step repeated after a resumption counts once, the last time."""
    if not (folder / "config.yaml").exists():
        raise ValueError(f"{folder} is not a run folder: it has no config.yaml")
    merged: dict[tuple[int, bool], Record] = {}
    for record in read_jsonl(folder / "metrics.jsonl"):
        validation = any(key.startswith("valid/") for key in record)
        if record.get("seconds") and record.get("audio_hours") is not None:
            record["speed"] = record["audio_hours"] * 3600 / record["seconds"]
        merged[int(record["step"]), validation] = record
    records = [merged[key] for key in sorted(merged)]
    config = flatten(read_yaml(folder / "config.yaml"))
    return Run(folder.name, config, records, read_jsonl(folder / "events.jsonl"))


def _section(run: Run) -> str:
    kind = "pre-training" if run.is_pretraining else "fine-tuning"
    cards = "".join(
        f'<div class="card"><b>{value}</b><span>{html.escape(label)}</span></div>'
        for label, value in _numbers(run)
    )
    image = "<p>No metrics were logged yet.</p>"
    if (figure := _curves(run)) is not None:
        image = _image(figure, f"curves of {run.name}")
    events = _table(("time", "event", "step", "details"), _events(run))
    settings = [(key, run.config[key]) for key in HIGHLIGHTS if key in run.config]
    return (
        f'<h2>{html.escape(run.name)} ({kind})</h2><div class="cards">{cards}</div>{image}'
        f'<div class="tables"><div><h3>Settings</h3>{_table(("key", "value"), settings)}</div>'
        f"<div><h3>Events</h3>{events}</div></div>"
    )


def _numbers(run: Run) -> list[tuple[str, str]]:
    """The final numbers: (label, text)."""
    steps = [int(r["step"]) for r in run.records]
    out = [("steps of " + str(run.config.get("loop.max_steps", "?")), str(max(steps, default=0)))]

    def add(label: str, key: str, form: Callable[[float], str], best: bool = False) -> None:
        values = run.series(key)[1]
        if values:
            out.append((label, form(min(values) if best else values[-1])))

    def percent(value: float) -> str:
        return f"{100 * value:.1f} %"

    if run.is_pretraining:
        chance = f"chance {run.chance_bits:.3f}"
        add(f"contrastive loss, bits ({chance})", "contrastive_loss", "{:.3f}".format)
        add("best on validation, bits", "valid/contrastive_loss", "{:.3f}".format, best=True)
        add("accuracy", "accuracy", percent)
        add("code perplexity", "code_perplexity", "{:.1f}".format)
    else:
        add("best word errors on validation", "valid/wer", percent, best=True)
        add("best letter errors on validation", "valid/cer", percent, best=True)
    hours = sum(run.series("audio_hours")[1])
    out.append(("hours of audio used", f"{hours:.2f}"))
    resumed = sum(e.get("event") == "resumed" for e in run.events)
    out.append(("interruptions survived", str(resumed)))
    return out


def _events(run: Run) -> list[tuple[object, ...]]:
    """Rows of the table of events; savings are counted, not listed."""
    rows: list[tuple[object, ...]] = []
    for event in run.events:
        if event.get("event") == "saved":
            continue
        rest = {k: v for k, v in event.items() if k not in ("event", "time", "step")}
        time = datetime.datetime.fromtimestamp(float(event.get("time", 0)))
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        details = ", ".join(f"{k} {v}" for k, v in rest.items())
        rows.append((when, event.get("event", ""), event.get("step", ""), details))
    saved = sum(event.get("event") == "saved" for event in run.events)
    return [*rows, ("", "saved", "", f"{saved} times")]


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _curves(run: Run) -> Figure | None:
    """All panels of a run that have data."""
    panels = [
        panel
        for panel in (PRETRAIN if run.is_pretraining else FINETUNE)
        if any(run.series(key)[1] for key, _, _ in panel.curves)
    ]
    if not panels:
        return None
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), layout="constrained")
    for number, panel in enumerate(panels):
        axes = _axes(figure, rows, columns, number, panel.title)
        for colour, (key, label, scale) in zip(COLOURS, panel.curves, strict=False):
            _draw(axes, *run.series(key, scale), colour=colour, label=label)
        if panel.curves[0][0] == "contrastive_loss":
            _mark_chance(axes, run.chance_bits)
        _mark(axes, run.events, named=number == 0)
        if len(axes.get_legend_handles_labels()[1]):
            axes.legend(fontsize=7, frameon=False)
    return figure


def _comparison(runs: list[Run]) -> Figure:
    """Validation errors of several fine-tunings."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    for number, (key, name) in enumerate((("valid/wer", "word"), ("valid/cer", "letter"))):
        axes = _axes(figure, 1, 2, number, f"{name} errors on validation (%)")
        for colour, run in zip(COLOURS * len(runs), runs, strict=False):
            _draw(axes, *run.series(key, 100), colour=colour, label=run.name)
        axes.legend(fontsize=8, frameon=False)
    return figure


def _axes(figure: Figure, rows: int, columns: int, number: int, title: str) -> Axes:
    axes = figure.add_subplot(rows, columns, number + 1)
    axes.set_title(title, fontsize=9, loc="left", color="#374151")
    axes.tick_params(labelsize=7, length=2, color="#94a3b8", labelcolor="#475569")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.margins(x=0.02)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#cbd5e1")
    return axes


def _draw(axes: Axes, steps: list[int], values: list[float], *, colour: str, label: str) -> None:
    if steps:  # a few points are shown as such, a curve of thousands as a thin line
        marker = "o" if len(steps) <= 12 else ""
        axes.plot(steps, values, marker=marker, color=colour, label=label or None, lw=1.3, ms=2.5)


def _mark_chance(axes: Axes, bits: float) -> None:
    axes.axhline(bits, color="#6b7280", linestyle="--", linewidth=1)
    style = {"fontsize": "x-small", "color": "#6b7280", "ha": "right", "va": "top"}
    place = axes.get_yaxis_transform()
    axes.text(0.99, bits, f"chance {bits:.3f}", style, transform=place)


def _mark(axes: Axes, events: list[Record], *, named: bool) -> None:
    """A vertical line at each interruption and each resumption, in the legend once if `named`."""
    seen: set[str] = set()
    for event in events:
        name, step = event.get("event"), event.get("step")
        if name in MARKED and isinstance(step, (int, float)):
            label = name if named and name not in seen else None
            style = ":" if name == "preempted" else (0, (1, 3))
            axes.axvline(step, color=MARKED[name], linestyle=style, linewidth=1.2, label=label)
            seen.add(name)


def _image(figure: Figure, description: str) -> str:
    """An <img> with the figure inside: an SVG in base64, so that its ids meet no other figure's."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/svg+xml;base64,{data}">'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist report` takes."""
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument(
        "--output", type=Path, help="file (default: RUN/report.html of the first run)"
    )


def run(args: argparse.Namespace) -> None:
    """Write report.html with the curves of one or more runs.

    example:
      w2v2dist report runs/base_ls960
    """
    output = args.output or args.runs[0] / "report.html"
    console.print(f"wrote {write_report(args.runs, output)}")
