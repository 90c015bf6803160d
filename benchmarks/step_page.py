"""What benchmarks/step.py found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.machine import spread, table


def markdown(found: dict[str, Any]) -> str:
    """The result in words and tables."""
    args = found["arguments"]
    where = found["machine"]["gpu"] or f"{found['machine']['cpu']}, {args['threads']} threads"
    rate = found["matrix_gflops"]
    limit = f"{found['gflop'] / rate:.3g} s at {rate:,.0f} GFLOP/s" if rate else "unknown"
    lines = [
        f"{args['model']}, {args['rows']} × {args['samples']:,} samples, {args['precision']}"
        f"{', with Adam' * args['optimizer']}"
        f"{', activation checkpointing' * args['activation_checkpointing']}, {where}, "
        f"malloc {args['malloc']}, "
        f"{'taking turns' if found['together'] else 'one at a time'}. {found['gflop']:,.0f} GFLOP; "
        f"the measured matrix rate is the limit: {limit}.",
        "",
    ]
    first = found["engines"][0]["engine"]
    columns = f"engine|step s|{first} / it|audio s/s|GFLOP/s|of matrix rate|MFU|kernels|peak GiB"
    rows = []
    for e in found["engines"]:
        if "seconds" not in e:
            rows.append([e["engine"], e["error"], *["–"] * 7])
            continue
        kernels = e.get("profile", {}).get("kernels", "–") if found["machine"]["gpu"] else "–"
        numbers = (e["first_over_this"], e["share_of_matrix_rate"], e["mfu"])
        ratio, share, mfu = ("–" if n is None else n for n in numbers)
        rows.append(
            [
                e["engine"] + (f" ({e['error']})" if e["error"] else ""),
                spread(e["seconds"]),
                ratio if ratio == "–" else f"{ratio:.2f}",
                f"{e['audio_seconds_per_second']:,.1f}",
                f"{e['flops_per_second'] / 1e9:,.0f}",
                share if share == "–" else f"{share:.0%}",
                mfu if mfu == "–" else f"{mfu:.0%}",
                kernels,
                f"{e['peak_gib']:.2f}",
            ]
        )
    lines.append(table(columns.split("|"), rows))
    return "\n".join([*lines, *part_tables(found["engines"])])


def part_tables(engines: list[dict[str, Any]]) -> Iterator[str]:
    """Where the time goes, of every engine that said so."""
    for e in engines:
        parts = e.get("parts", {}).get("parts")
        if parts:
            total = sum(sum(times.values()) for times in parts.values())
            rows = [
                [name, *(f"{t.get(w, 0):.4f}" for w in ("forward", "backward")),
                 f"{sum(t.values()) / total:.0%}"]
                for name, t in parts.items()
            ]  # fmt: skip
            yield f"\n{e['engine']}, by part (with hooks)\n"
            yield table(["part", "forward s", "backward s", "share"], rows)
        if "costliest" in e.get("profile", {}):
            rows = [
                [k["name"], k["calls"], f"{k['seconds']:.4f}"] for k in e["profile"]["costliest"]
            ]
            yield f"\n{e['engine']}, the costliest of a step (torch.profiler)\n"
            yield table(["kernel or operator", "calls", "s"], rows)
