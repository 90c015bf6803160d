"""The page of benchmarks/gpu.py's results, as Markdown on the standard output.

    python benchmarks/gpu_page.py RESULTS > benchmarks/results/DATE-gpu.md

Every table names the machine and the commit it was measured on; what is missing or has failed is
listed with the command that brings it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import loader_page, step_page
from benchmarks.gpu_stages import STAGES
from benchmarks.machine import table

Record = dict[str, Any]


def read(folder: Path) -> dict[str, Record]:
    """The records of all stages that have one, in the order of STAGES. Raises ValueError where a
    file is none."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give the folder that make gpu wrote")
    out = {}
    for stage in STAGES:
        path = folder / f"{stage}.json"
        remedy = f"run the stage again: python benchmarks/gpu.py {stage} --output {folder} --again"
        try:
            out[stage] = json.loads(path.read_text(encoding="utf-8"))
            check(out[stage])
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error}): {remedy}") from None
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): {remedy}") from None
        except (LookupError, TypeError) as error:
            raise ValueError(f"{path} is no stage's record ({error!r}): {remedy}") from None
    return out


def check(record: Record) -> None:
    """Raises LookupError or TypeError where a record lacks what the page shows of all stages."""
    own = ("notes", "result") if record["status"] == "done" else ("reason",)
    for key in ("seconds", "tiny", "command", *own):
        record[key]
    where(record)
    for key in ("date", "commit"):
        record["machine"][key]


def page(folder: Path) -> str:
    """All of it. Raises ValueError where there is no result."""
    records = read(folder)
    if not records:
        raise ValueError(f"{folder} holds no result: run make gpu OUTPUT={folder} first")
    return "\n".join([*heading(records), *missing(folder, records), *bodies(folder, records)])


def where(record: Record) -> str:
    """The machine of a record, in a line."""
    m = record["machine"]
    gpu = ""
    if m["gpu"]:
        gpu = f"{m['gpu']}, {m['gpu_memory_gib']:g} GiB, driver {m['driver']}, CUDA {m['cuda']}; "
    cpu = f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']:g} GiB"
    return f"{gpu}{cpu}; torch {m['torch']}, Python {m['python']}"


def heading(records: dict[str, Record]) -> Iterator[str]:
    """Title, date, machine, commit; more than one of them where stages differ."""
    tiny = any(r["tiny"] for r in records.values())
    yield "# A rehearsal of the GPU kit at tiny sizes" if tiny else "# First day on a GPU"
    yield ""
    if tiny:
        yield "Nothing here is a measurement: sizes are tiny, and a CPU stands in for the GPU.\n"
    dates = sorted({r["machine"]["date"] for r in records.values()})
    yield f"- Date: {', '.join(dates)}."
    yield from (f"- Machine: {m}." for m in dict.fromkeys(map(where, records.values())))
    commits = dict.fromkeys(r["machine"]["commit"] for r in records.values())
    yield f"- Commit: {', '.join(commits)}."
    minutes = sum(r["seconds"] for r in records.values()) / 60
    yield f"- Command: `make gpu`, {minutes:.0f} minutes in all; each stage's own is below.\n"


def missing(folder: Path, records: dict[str, Record]) -> Iterator[str]:
    """What has no result, or failed, and how to get it."""
    rows = []
    for stage in STAGES:
        command = f"`python benchmarks/gpu.py {stage} --output {folder.name}`"
        if stage not in records:
            rows.append([stage, "not run", command])
        elif records[stage]["status"] != "done":
            rows.append([stage, f"failed: {records[stage]['reason']}", command])
    if rows:
        yield "## Missing\n"
        yield table(["stage", "why", "what brings it"], rows) + "\n"


def bodies(folder: Path, records: dict[str, Record]) -> Iterator[str]:
    """A section for each stage that has a result. Raises ValueError where it is another's."""
    for stage, record in records.items():
        if record["status"] != "done":
            continue
        yield f"## {stage}\n"
        yield f"`{record['command']}`, {record['seconds']:.0f} s\n"
        yield from (f"- {note}" for note in record["notes"])
        if record["notes"]:
            yield ""
        try:
            lines = [*BODIES[stage](record["result"])]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            command = f"python benchmarks/gpu.py {stage} --output {folder} --again"
            remedy = f"run the stage again: {command}"
            path = folder / f"{stage}.json"
            raise ValueError(f"{path} lacks what the page shows ({error!r}): {remedy}") from None
        yield from [*lines, ""]
    if predicted := records.get("roofline"):
        yield from beside(predicted, records)


def machine_body(found: Record) -> Iterator[str]:
    """Versions and what is not installed."""
    names = [n for n in found if n not in ("missing", "compilers")]
    yield table(["", ""], [[n, found[n]] for n in names if found[n] is not None])


def tests_body(found: Record) -> Iterator[str]:
    """pytest's last line; that nothing ran is said."""
    if not found["counts"].get("passed"):
        yield "No test ran: each needs a GPU and was skipped.\n"
    yield f"`{found['last_line'].strip('= ')}`"


def step_body(found: Record) -> Iterator[str]:
    """The tables of benchmarks/step.py."""
    for run in found["runs"]:
        yield step_page.markdown(run) + "\n"


def train_body(found: Record) -> Iterator[str]:
    """A row for each ZeRO stage."""
    relative = f"within {found['tolerance']:g} (relative)"
    how = relative if found["tolerance"] else "to the bit"
    yield f"{found['precision']}; the resumed run's losses agree {how}.\n"
    if found.get("left_out"):
        yield f"Left out, because the stage had no time for more: ZeRO {found['left_out']}.\n"
    heads = "ZeRO|steps|step s (median)|h of audio a second|data wait|loss: first|last"
    rows = [
        [
            r["zero_stage"],
            r["steps"],
            f"{r['step_seconds']:.3g}",
            f"{r['audio_hours_per_second']:.3g}",
            f"{r['data_wait']:.1%}",
            f"{r['first_loss']:.3f}",
            f"{r['last_loss']:.3f}",
            f"{r['difference']:.1e}",
        ]
        for r in found["rows"]
    ]
    yield table([*heads.split("|"), "resumed: largest difference"], rows)


def loader_body(found: Record) -> Iterator[str]:
    """The tables of benchmarks/loader.py."""
    yield loader_page.markdown(found)


def roofline_body(found: Record) -> Iterator[str]:
    """What benchmarks/roofline.py prints."""
    yield found["output"].strip()


def decode_body(found: Record) -> Iterator[str]:
    """Utterances a second."""
    yield f"On {found['device']}; the decoders on {found['simulated']} simulated utterances.\n"
    rows = [[r["what"], f"{r['per_second']:,.1f}"] for r in found["rows"]]
    yield table(["what", "utterances a second"], rows)


def beside(predicted: Record, records: dict[str, Record]) -> Iterator[str]:
    """What was measured of ours, for the reader of the roofline."""
    rows = []
    for stage in ("step_base", "step_large"):
        for run in records.get(stage, {}).get("result", {}).get("runs", []):
            rows += [
                [f"{run['arguments']['model']}, {run['arguments']['precision']}",
                 f"{e['median']:.4g}", f"{e['peak_gib']:.2f}"]
                for e in run["engines"]
                if e["engine"] == "ours" and "median" in e
            ]  # fmt: skip
    if rows and predicted["status"] == "done":
        yield "### Measured, for comparison with the roofline\n"
        yield table(["step of ours", "s", "peak GiB"], rows)


BODIES: dict[str, Callable[[Record], Iterator[str]]] = {
    "machine": machine_body,
    "tests": tests_body,
    "step_base": step_body,
    "step_large": step_body,
    "profile": step_body,
    "train": train_body,
    "loader": loader_body,
    "roofline": roofline_body,
    "decode": decode_body,
}


def main() -> int:
    """0; 2 where there is nothing to show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the folder that make gpu wrote")
    args = parser.parse_args()
    try:
        print(page(args.results.resolve()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
