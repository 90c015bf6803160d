"""What benchmarks/loader.py found, as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.machine import spread, table

OURS = "ours"


def markdown(found: dict[str, Any]) -> str:
    """The result as tables."""
    columns = "way|processes|h of audio a second and core|of bare|h a CPU second|of bare"
    lines = [f"{found['data']}; {found['machine']['cpu']}, {found['machine']['cores']} cores"]
    for store, rows in found["stores"].items():
        shown = []
        for r in rows:
            if r.get("of_bare") is None:
                shown.append([r["name"], r["workers"] or "in one", r["error"], *["–"] * 3])
                continue
            shown.append(
                [
                    r["name"],
                    r["workers"] or "in one",
                    spread(r["hours_per_second_core"]),
                    f"{r['of_bare']:.2f}",
                    spread(r["hours_per_cpu_second"]),
                    f"{r['of_bare_cpu']:.2f}",
                ]
            )
        lines += [f"\n{store}\n", table(columns.split("|"), shown)]
    crops = [[f"{w:g} s", f"{c:g} s", f"{part:.0%}"] for w, c, part in found["crops"]]
    heads = ["FLAC of", "crop from its middle", "decoding time, of the whole"]
    lines += ["", table(heads, crops)]
    rows = next(iter(found["stores"].values()))
    own = next((r for r in rows if r["name"] == OURS and r.get("of_bare")), None)
    rate = statistics.median(own["hours_per_second_core"]) if own else None
    shown = [
        [n, v["gpus"], f"{v['step_seconds']:.3g}", f"{v['hours_per_second']:.3g}",
         f"{v['hours_per_second'] / rate:.2g}" if rate else "–"]
        for n, v in found["needs"].items()
    ]  # fmt: skip
    heads = ["layout", "GPUs", "step s (planned)", "h of audio a second, a node of 8", "cores"]
    return "\n".join([*lines, "", table(heads, shown)])
