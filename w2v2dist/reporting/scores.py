"""The evaluations of runs on a page: a table of error rates, and what each one got wrong."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jiwer

from w2v2dist.config import read_paper
from w2v2dist.reporting import logs
from w2v2dist.reporting.clips import Clips
from w2v2dist.reporting.evaluations import (
    Evaluation,
    Rate,
    decoder_kind,
    p_values,
    paper_rates,
    read_evaluations,
)
from w2v2dist.reporting.page import Html, cut, fold, join, table, tag
from w2v2dist.reporting.runs import ERRORS, Run

CALLED = {"wer": "WER", "cer": "letter errors", "per": "PER"}
LONGEST = 3_000  # characters of a text that is shown and compared


def section(runs: list[Run], clips: Clips | None) -> Html | None:
    """The evaluations of some runs; None where there are none. No `clips`: no audio."""
    found: list[Evaluation] = []
    problems: list[str] = []
    for run in runs:
        evaluations, unreadable = read_evaluations(run)
        found += evaluations
        problems += [f"{run.name}, {problem}" for problem in unreadable]
    if not found and not problems:
        return None
    parts: list[Html] = [tag("p", problem, class_="problem", dir="auto") for problem in problems]
    if found:
        parts.append(_rates(found, several=len(runs) > 1))
        share = clips.budget // len(found) if clips else 0
        best = min(found, key=lambda e: next(iter(e.rates.values())).value)
        for evaluation in found:
            name = f"{evaluation.run.name}: {evaluation.name}" if len(runs) > 1 else evaluation.name
            title = [
                tag("b", name, dir="auto"),
                f" {_shown(next(iter(evaluation.rates.values())))}",
            ]
            parts.append(
                fold(join(title), *_details(evaluation, clips, share), opened=evaluation is best)
            )
    return tag("section", tag("h3", "Evaluation"), *parts, class_="evaluation")


def _rates(found: list[Evaluation], *, several: bool) -> Html:
    """All evaluations side by side."""
    rates = [rate for rate in ERRORS if any(rate in e.rates for e in found)]
    chance = p_values(found)
    ends = [r for e in found for r in e.rates.values()]
    most = max(1e-9, *(r.value if math.isnan(r.high) else r.high for r in ends))
    papers = {e.folder: paper_rates(e) for e in found}
    head = ["run"] * several + ["evaluation"]
    head += [f"{CALLED[rate]} (95 %)" for rate in rates] + ["sub / del / ins", "utterances"]
    head += ["p against the best"] * bool(chance) + ["paper"] * any(papers.values())
    head += ["decoder", "data"]
    rows = []
    for e in found:
        counts = (
            e.number(f"{e.unit}_{kind}s") for kind in ("substitution", "deletion", "insertion")
        )
        row: list[Any] = [e.run.name] * several + [e.name]
        row += [_cell(e.rates.get(rate), most) for rate in rates]
        row += [" / ".join(_count(n) for n in counts), _count(e.number("num_utterances"))]
        if chance:
            row.append(_p_value(e, chance))
        if any(papers.values()):
            row.append(_paper(papers[e.folder]))
        data = ", ".join(Path(part).name for part in e.data.split(","))
        row += [tag("td", e.decoder, class_="long", dir="auto"), tag("td", data, title=e.data)]
        rows.append(row)
    return table(head, rows, class_="rates")


def _cell(rate: Rate | None, most: float) -> Html:
    """A rate, and its interval as a bar on the scale of all."""
    if rate is None:
        return tag("td")
    parts: list[Any] = [tag("b", f"{100 * rate.value:.1f} %")]
    if not math.isnan(rate.low + rate.high):
        parts.append(tag("small", f" {100 * rate.low:.1f} to {100 * rate.high:.1f}"))
        left, width = 100 * max(0.0, rate.low) / most, 100 * (rate.high - rate.low) / most
        inner = tag("i", style=f"left:{left:.1f}%;width:{max(1.0, width):.1f}%")
        parts.append(tag("div", inner, class_="interval"))
    return tag("td", *parts)


def _shown(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} %"


def _count(number: float) -> str:
    return "?" if math.isnan(number) else f"{number:,.0f}"


def _p_value(evaluation: Evaluation, found: dict[Any, float | None]) -> str:
    if evaluation.folder not in found:
        return ""
    p = found[evaluation.folder]
    return "the best" if p is None else f"{p:.4f}" + (" (may be equally good)" if p >= 0.05 else "")


def _paper(rates: dict[str, float]) -> Html:
    """One number with what it is of, or the range of several, each of which is named below."""
    if len(rates) > 1:
        text = f"{min(rates.values())} to {max(rates.values())} %"
        return tag("td", text, title="\n".join(f"{name}: {rate} %" for name, rate in rates.items()))
    return tag("td", *(join([tag("b", f"{r} %"), tag("small", f" {n}")]) for n, r in rates.items()))


def _details(evaluation: Evaluation, clips: Clips | None, share: int) -> Iterable[Html]:
    """What stands below the name of an evaluation."""
    left_out = evaluation.number("num_skipped")
    if left_out > 0:
        why = evaluation.about.get("why_skipped", "")
        yield tag("p", f"{left_out:,.0f} utterances were left out: {why}", dir="auto")
    if papers := paper_rates(evaluation):
        rows = [(name, f"{rate} %") for name, rate in papers.items()]
        yield fold(
            "The paper's, of this split and kind of decoder", table(("labels, model", "rate"), rows)
        )
    if evaluation.about.get("asked.tune"):
        yield _weights(evaluation)
    if confusions := evaluation.confusions():
        yield tag("h4", "Most frequent errors")
        yield _confusions(confusions)
    try:
        worst = evaluation.worst()
    except OSError as error:
        yield tag("p", f"hypotheses.jsonl cannot be read: {error}", class_="problem", dir="auto")
        return
    if worst:
        numbers = clips.add(evaluation, worst, share) if clips else {}
        yield tag("h4", f"Utterances with the most errors ({len(worst)})")
        items = (_utterance(row, evaluation, numbers.get(row["key"])) for row in worst)
        yield tag("ol", *items, class_="worst")
    elif not (evaluation.folder / "hypotheses.jsonl").exists():
        yield tag("p", "hypotheses.jsonl is missing: no utterances to show.", class_="problem")


def _weights(evaluation: Evaluation) -> Html:
    """The weights that were found, beside the paper's."""
    kind = decoder_kind(evaluation) or "ngram"
    found = [evaluation.number(f"beam.{name}") for name in ("lm_weight", "word_score")]
    rows = [("here", *(f"{value:.2f}" for value in found))]
    for labels, models in read_paper("weights").items():
        rows += [(f"{labels}, {m}", *(f"{v:.2f}" for v in of[kind])) for m, of in models.items()]
    title = f"Weights: LM {found[0]:.2f}, word score {found[1]:.2f}; the paper's"
    return fold(title, table(("labels, pre-training", "LM weight", "word score"), rows))


def _confusions(rows: list[tuple[int, str, str, str]]) -> Html:
    largest = max(count for count, *_ in rows)
    items = []
    for count, kind, *texts in rows:
        said, read = (cut(text, LONGEST) for text in texts)
        text = {"insertion": [tag("ins", read)], "deletion": [tag("del", said)]}.get(
            kind, [tag("del", said), " → ", tag("ins", read)]
        )
        bar = tag("i", style=f"width:{100 * count / max(1, largest):.1f}%")
        items.append(tag("li", tag("b", count), tag("bdi", *text), tag("div", bar), title=kind))
    return tag("ul", *items, class_="confusions")


def _utterance(row: logs.Record, evaluation: Evaluation, clip: int | None) -> Html:
    """What was said and what was read, their differences marked, and a player."""
    of = row.get("num_words", row.get("num_letters", "?"))
    seconds = logs.number(row.get("seconds"))
    said = f"{row['errors']} of {of} {evaluation.unit}s"
    said += "" if math.isnan(seconds) else f" · {seconds:.1f} s"
    player = None
    if clip is not None:
        player = tag(
            "audio",
            controls=True,
            preload="none",
            data_clip=clip,
            aria_label=cut(row["key"], LONGEST),
        )
    reference, hypothesis = differences(row["reference"], row["hypothesis"], evaluation.unit)
    return tag(
        "li",
        tag("p", tag("code", cut(row["key"], LONGEST), dir="auto"), tag("small", said)),
        player,
        tag("p", reference, class_="said", dir="auto", title="reference"),
        tag("p", hypothesis, class_="read", dir="auto", title="hypothesis"),
    )


def differences(reference: str, hypothesis: str, unit: str) -> tuple[Html, Html]:
    """Both texts, with what is wrong or missing in <del>, and what was read instead in <ins>; of
    very long ones the beginnings."""
    reference, hypothesis = cut(reference, LONGEST), cut(hypothesis, LONGEST)
    space = " " if unit == "word" else ""
    compare = jiwer.process_words if unit == "word" else jiwer.process_characters
    if not reference.strip():
        return join([reference]), join([hypothesis])
    found = compare(reference, hypothesis)
    truth, guess = found.references[0], found.hypotheses[0]
    said, read = [], []
    for part in found.alignments[0]:
        a = space.join(truth[part.ref_start_idx : part.ref_end_idx])
        b = space.join(guess[part.hyp_start_idx : part.hyp_end_idx])
        equal = part.type == "equal"
        said += [a if equal else tag("del", a)] * bool(a)
        read += [b if equal else tag("ins", b)] * bool(b)
    return _spaced(said, space), _spaced(read, space)


def _spaced(parts: list[Any], space: str) -> Html:
    return join(item for part in parts for item in (part, space))
