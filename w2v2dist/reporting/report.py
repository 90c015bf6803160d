"""report.html: the curves, events and settings of one or more runs on one self-contained page."""

import argparse
import base64
import datetime
import html
import io
import math
from collections.abc import Iterable
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
MARKED = {"preempted": "#dc2626", "resumed": "#059669"}
MARKED |= dict.fromkeys(("alarm", "checkpoint_damaged"), "#b45309")
HIGHLIGHTS = """
pretrained freeze_steps model.num_layers model.embed_dim model.conv_channels model.norm_first
model.num_codebook_entries model.mask_prob model.cutoffs data.virtual_world_size
data.max_samples_per_slot data.max_crop data.max_tokens_per_slot loop.max_steps schedule.name
schedule.peak_lr engine.precision engine.zero_stage seed
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
        return self.kind == "pre-training"

    @property
    def kind(self) -> str:
        """What its training is called."""
        kinds = {"finetune": "fine-tuning", "language_model": "language model"}
        return kinds.get(str(self.config.get("task")), "pre-training")

    @property
    def error_rates(self) -> list[str]:
        """Those that its validation has."""
        return [rate for rate in ERRORS if self.series(f"valid/{rate}")[1]]

    @property
    def chance_bits(self) -> float:
        """Contrastive loss of a model that guesses: log2(1 + distractors), 6.658 bits for 100."""
        return math.log2(1 + int(self.config.get("model.num_distractors", 100)))

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was logged as a finite number."""
        known = [r for r in self.records if isinstance(r.get(key), (int, float))]
        return [int(r["step"]) for r in known], [float(r[key]) for r in known]

    def last(self, key: str) -> float | None:
        """The last logged value of a metric."""
        values = self.series(key)[1]
        return values[-1] if values else None


# Panels: title -> the label of each metric's curve
PRETRAIN = {
    "contrastive loss (bits)": {"contrastive_loss": "train", "valid/contrastive_loss": "valid"},
    "other losses (bits)": {"diversity_loss": "diversity", "feature_penalty": "feature penalty"},
    "perplexity (codes in use)": {"code_perplexity": "code", "prob_perplexity": "prob"},
    "accuracy (%)": {"accuracy": "train", "valid/accuracy": "valid"},
    "learning rate": {"lr": ""},
    "Gumbel temperature": {"temperature": ""},
    "gradient norm": {"grad_norm": ""},
    "speed (× real time)": {"speed": ""},
}
ERRORS = {"wer": "word", "cer": "letter", "per": "phone"}  # rates, and what they count
FINETUNE = {
    "CTC loss (nats per utterance)": {"loss": "train", "valid/loss": "valid"},
    "validation errors (%)": {f"valid/{rate}": f"{unit}s" for rate, unit in ERRORS.items()},
    "learning rate": {"lr": ""},
    "gradient norm": {"grad_norm": ""},
}
LANGUAGE_MODEL = {
    "perplexity": {"perplexity": "train", "valid/perplexity": "valid"},
    "loss (nats a token)": {"loss": "train", "valid/loss": "valid"},
    "learning rate": {"lr": ""},
    "gradient norm": {"grad_norm": ""},
    "speed (tokens a second)": {"speed": ""},
}
PANELS = {"pre-training": PRETRAIN, "fine-tuning": FINETUNE, "language model": LANGUAGE_MODEL}


def write_report(run_dirs: list[Path], output: Path, notes: dict[str, str] | None = None) -> Path:
    """Write the page for `run_dirs` to `output`, return it; `notes` (name: text) stand at its top.
    Raises ValueError where a folder is not a run."""
    runs = [read_run(Path(folder)) for folder in run_dirs]
    finetunings = [run for run in runs if not run.is_pretraining and run.error_rates]
    parts = [f"<h1>{html.escape(' · '.join(run.name for run in runs))}</h1>"]
    for note in (notes or {}).items():
        parts.append("<p><b>{}</b> {}</p>".format(*map(html.escape, note)))
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
        elif record.get("seconds") and record.get("tokens") is not None:
            record["speed"] = record["tokens"] / record["seconds"]
        merged[int(record["step"]), validation] = record
    records = [merged[key] for key in sorted(merged)]
    config = flatten(read_yaml(folder / "config.yaml"))
    return Run(folder.name, config, records, read_jsonl(folder / "events.jsonl"))


def _section(run: Run) -> str:
    cards = "".join(
        f'<div class="card"><b>{value}</b><span>{html.escape(label)}</span></div>'
        for label, value in _numbers(run).items()
    )
    image = "<p>No metrics were logged yet.</p>"
    if figure := _curves(run):
        image = _image(figure, f"curves of {run.name}")
    events = _table(("time", "event", "step", "details"), _events(run))
    settings = [(key, run.config[key]) for key in HIGHLIGHTS if key in run.config]
    return (
        f'<h2>{html.escape(run.name)} ({run.kind})</h2><div class="cards">{cards}</div>{image}'
        f'<div class="tables"><div><h3>Settings</h3>{_table(("key", "value"), settings)}</div>'
        f"<div><h3>Events</h3>{events}</div></div>"
    )


def _numbers(run: Run) -> dict[str, str]:
    """The final numbers: label to text."""
    steps = max((int(r["step"]) for r in run.records), default=0)
    out = {f"steps of {run.config.get('loop.max_steps', '?')}": str(steps)}
    if run.is_pretraining:
        bits, shown = f"contrastive loss, bits (chance {run.chance_bits:.3f})", "{:.3f}"
        rows = [
            (bits, "contrastive_loss", shown),
            ("best on validation, bits", "valid/contrastive_loss", shown),
            ("accuracy", "accuracy", "{:.1%}"),
            ("code perplexity", "code_perplexity", "{:.1f}"),
        ]
    elif run.kind == "language model":
        shown = "{:.2f}"
        rows = [
            ("perplexity", "perplexity", shown),
            ("best perplexity on validation", "valid/perplexity", shown),
        ]
    else:
        rows = [
            (f"best {unit} errors on validation", f"valid/{rate}", "{:.1%}")
            for rate, unit in ERRORS.items()
        ]
    for label, key, form in rows:
        if values := run.series(key)[1]:
            value = min(values) if label.startswith("best") else values[-1]
            out[label] = form.format(value).replace("%", " %")
    if run.kind == "language model":
        out["tokens used"] = f"{sum(run.series('tokens')[1]):,.0f}"
    else:
        out["hours of audio used"] = f"{sum(run.series('audio_hours')[1]):.2f}"
    out["interruptions survived"] = str(sum(e.get("event") == "resumed" for e in run.events))
    return out


def _events(run: Run) -> list[tuple[object, ...]]:
    """Rows of the table of events; savings are counted, not listed."""
    rows: list[tuple[object, ...]] = []
    for event in run.events:
        if event.get("event") != "saved":
            time = datetime.datetime.fromtimestamp(float(event.get("time", 0)))
            rest = (f"{k} {v}" for k, v in event.items() if k not in ("event", "time", "step"))
            said = event.get("event", ""), event.get("step", ""), ", ".join(rest)
            rows.append((f"{time:%Y-%m-%d %H:%M:%S}", *said))
    return [*rows, ("", "saved", "", f"{len(run.events) - len(rows)} times")]


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _curves(run: Run) -> Figure | None:
    """All panels of a run that have data."""
    panels = {
        t: keys for t, keys in PANELS[run.kind].items() if any(run.series(key)[1] for key in keys)
    }
    if not panels:
        return None
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), layout="constrained")
    for number, (title, labels) in enumerate(panels.items(), 1):
        axes = _axes(figure, rows, columns, number, title)
        for colour, (key, label) in zip(COLOURS, labels.items(), strict=False):
            _draw(axes, run, key, colour, label)
        if "contrastive_loss" in labels:
            bits, place = run.chance_bits, axes.get_yaxis_transform()
            axes.axhline(bits, color="#6b7280", linestyle="--", linewidth=1)
            style = {"fontsize": "x-small", "color": "#6b7280", "ha": "right", "va": "top"}
            axes.text(0.99, bits, f"chance {bits:.3f}", style, transform=place)
        _mark(axes, run.events, named=number == 1)
        if len(axes.get_legend_handles_labels()[1]):
            axes.legend(fontsize=7, frameon=False)
    return figure


def _comparison(runs: list[Run]) -> Figure:
    """Validation errors of several fine-tunings."""
    rates = [rate for rate in ERRORS if any(rate in run.error_rates for run in runs)]
    figure = Figure(figsize=(5 * len(rates), 3), layout="constrained")
    for number, rate in enumerate(rates, 1):
        title = f"{ERRORS[rate]} errors on validation (%)"
        axes = _axes(figure, 1, len(rates), number, title)
        for colour, run in zip(COLOURS * len(runs), runs, strict=False):
            _draw(axes, run, f"valid/{rate}", colour, run.name)
        axes.legend(fontsize=8, frameon=False)
    return figure


def _axes(figure: Figure, rows: int, columns: int, number: int, title: str) -> Axes:
    axes = figure.add_subplot(rows, columns, number)
    axes.set_title(title, fontsize=9, loc="left", color="#374151")
    axes.tick_params(labelsize=7, length=2, color="#94a3b8", labelcolor="#475569")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.margins(x=0.02)
    axes.spines[:].set_color("#cbd5e1")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _draw(axes: Axes, run: Run, key: str, colour: str, label: str) -> None:
    steps, values = run.series(key)
    if steps:  # a few points are shown as such, a curve of thousands as a thin line
        marker = "o" if len(steps) <= 12 else ""
        scale = 100 if axes.get_title("left").endswith("(%)") else 1
        values = [scale * value for value in values]
        axes.plot(steps, values, marker=marker, color=colour, label=label or None, lw=1.3, ms=2.5)


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
    add = parser.add_argument
    add("runs", nargs="+", type=Path, help="run folders")
    add("--output", type=Path, help="file (default: RUN/report.html of the first run)")


def run(args: argparse.Namespace) -> None:
    """Write report.html with the curves of one or more runs.

    example:
      w2v2dist report runs/base_ls960
    """
    output = args.output or args.runs[0] / "report.html"
    console.print(f"wrote {write_report(args.runs, output)}")
