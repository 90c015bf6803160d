"""P(phone | code) as the paper's figure 3 draws it, and the panel of a report about codes."""

import base64
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from w2v2dist.reporting import logs
from w2v2dist.reporting.page import Html, fold, join, table, tag
from w2v2dist.reporting.runs import Run

MOST_DRAWN = 4_096  # codes, the most frequent: more are finer than a screen
ROW, LEFT, TOP, BOTTOM, WIDTH = 15, 48, 26, 40, 1_000  # in the picture's units
# P from 0 to 1, light to dark: the ends and middle of matplotlib's "Blues" and a ground of white
COLOURS = np.array(
    [(255, 255, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107)]
)
MOST_RESULTS = 12  # of a run
# What files raise that are cut short, of another kind, or changed by hand
UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, EOFError,
    zipfile.BadZipFile,
)  # fmt: skip


def picture(counts: NDArray[np.int64], phones: Sequence[str]) -> str:
    """An SVG that needs nothing else, of counts (N codes, P phones) in the order that they are
    drawn in: phones from the top, codes from the left."""
    drawn = counts
    if len(counts) > MOST_DRAWN:
        keep = np.sort(np.argsort(-counts.sum(1), kind="stable")[:MOST_DRAWN])
        drawn = counts[keep]
    share = (drawn / np.maximum(1, drawn.sum(1, keepdims=True))).T  # (P, N)
    height = ROW * len(phones)
    size = {"width": LEFT + WIDTH + 10, "height": TOP + height + BOTTOM}
    said = f"{len(drawn):,} codes, sorted by their likeliest phone"
    if len(drawn) < len(counts):
        part = 100 * drawn.sum() / max(1, counts.sum())
        said += f": the most frequent of {len(counts):,}, with {part:.1f} % of the frames"
    if once := int((drawn.sum(1) == 1).sum()):
        said += f"; {once:,} of them are of one frame, and sure by that alone"
    labels = [
        _text(LEFT - 5, TOP + ROW * k + ROW - 4, name, anchor="end")
        for k, name in enumerate(phones)
    ]
    parts = [
        _text(LEFT, 16, "P(phone | code)"),
        *labels,
        tag(
            "image",
            href=_png(share),
            x=LEFT,
            y=TOP,
            width=WIDTH,
            height=height,
            preserveAspectRatio="none",
            # more codes than units are made smaller: then by their mean, not by leaving some out
            style="image-rendering:pixelated" if len(drawn) <= WIDTH else None,
        ),
        tag("rect", x=LEFT, y=TOP, width=WIDTH, height=height, fill="none", stroke="#888"),
        _text(LEFT, TOP + height + 16, said),
        *_scale(TOP + height + 6),
    ]
    about = {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria_label": "P(phone | code)"}
    return tag(
        "svg",
        tag("rect", width="100%", height="100%", fill="white"),
        *parts,
        viewBox=f"0 0 {size['width']} {size['height']}",
        font_family="system-ui, sans-serif",
        font_size=11,
        fill="#222",
        **about,
    )


def _text(x: float, y: float, text: str, anchor: str | None = None) -> Html:
    return tag("text", text, x=x, y=y, text_anchor=anchor)


def _scale(top: float) -> list[Html]:
    """What the colours mean."""
    left, width = LEFT + WIDTH - 190, 150
    ramp = _png(np.linspace(0, 1, 101)[None])
    box = {"x": left, "y": top, "width": width, "height": 10}
    return [
        tag("image", href=ramp, preserveAspectRatio="none", **box),
        tag("rect", fill="none", stroke="#888", **box),
        _text(left - 5, top + 10, "0", anchor="end"),
        _text(left + width + 5, top + 10, "1"),
    ]


def _png(share: NDArray[np.float64]) -> str:
    """Values (rows, columns) from 0 to 1 as colours, in a data URI."""
    at = np.linspace(0, 1, len(COLOURS))
    pixels = np.stack([np.interp(share, at, COLOURS[:, c]) for c in range(3)], -1)
    file = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def section(runs: list[Run]) -> Html | None:
    """What `w2v2dist codes` found of some runs; None where there is nothing."""
    parts: list[Html] = []
    for run in runs:
        paths = sorted(run.folder.glob("codes/*/codes.json"), key=lambda p: p.stat().st_mtime)
        for path in paths[-MOST_RESULTS:]:
            name = f"{run.name}: {path.parent.name}" if len(runs) > 1 else path.parent.name
            try:
                about = json.loads(path.read_bytes())
                parts.append(_result(name, about, path.parent, opened=not parts))
            except UNREADABLE as error:
                said = f"{name}: codes.json or counts.npz cannot be read ({error})"
                parts.append(tag("p", said, class_="problem", dir="auto"))
    return tag("section", tag("h3", "Codes"), *parts, class_="codes") if parts else None


def _result(name: str, about: dict[str, Any], folder: Path, *, opened: bool) -> Html:
    """The numbers of a result and its picture, which is drawn anew of its counts."""
    found = about["with_phones"]["combinations"]
    title = [tag("b", name, dir="auto"), f" phone purity {_percent(found['purity'])}"]
    title.append(f" (by chance {_percent(found['chance']['purity'])})")
    rows = []
    for what in ("phones", "speakers"):
        for of, a in about[f"with_{what}"].items():
            information = [f"{logs.number(b['normalized']):.3f}" for b in (a, a["chance"])]
            purities = [_percent(a["purity"]), _percent(a["chance"]["purity"])]
            purities += [_percent(a["most_frequent"]), _percent(a["cluster_purity"])]
            rows.append((f"{of}, {what}", f"{a['num_codes']:,}", *information, *purities))
    head = ["codes with", "in use", "normalised MI", "by chance", "purity", "by chance"]
    head += ["of one code", "cluster purity"]
    entries = " + ".join(str(n) for n in about["entries_in_use"])
    said = (
        f"{about['num_frames']:,} frames of {about['data']}; entries in use {entries} of "
        f"{about['num_codebook_entries']} each, {about['combinations_in_use']:,} combinations; "
        f"code perplexity {logs.number(about['code_perplexity']):.1f}; entropy of combinations "
        f"{logs.number(about['entropy_of_combinations']):.2f} bits"
    )
    with np.load(folder / "counts.npz") as kept:
        svg = picture(kept["counts"], [str(p) for p in kept["phones"]])
    image = base64.b64encode(svg.encode()).decode()
    shown = tag(
        "img", src=f"data:image/svg+xml;base64,{image}", alt="P(phone | code)", class_="codes"
    )
    parts = [tag("p", said, dir="auto"), table(head, rows, class_="numbers"), shown]
    return fold(join(title), *parts, opened=opened)


def _percent(value: Any) -> str:
    return f"{100 * logs.number(value):.1f} %"
