"""Transcribe shards with a fine-tuned model, with or without a language model, and score them."""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import track

from w2v2dist.config import ConfigError
from w2v2dist.decode.arguments import (
    decoding_arguments,
    decoding_from,
    num_trials,
    tuning_arguments,
)
from w2v2dist.decode.beam_config import WEIGHTS, BeamConfig, Hypothesis
from w2v2dist.decode.decoders import Decoder, identity, make_decoder
from w2v2dist.decode.emissions import Emissions, is_kept
from w2v2dist.decode.evaluated import Evaluated, Evaluation
from w2v2dist.decode.readings import reading
from w2v2dist.decode.results import (
    Line,
    compare_folders,
    is_evaluation,
    own_folder,
    score,
    write,
)
from w2v2dist.decode.scoring import Unit
from w2v2dist.decode.tune import beside_the_paper, tune
from w2v2dist.interop.open import is_run, model_arguments
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import console
from w2v2dist.training.bad_samples import most_frequent


def evaluate(settings: Evaluation, world: World | None = None) -> dict[str, Any]:
    """Error rates of a fine-tuned model (all that `open_model` opens) on shards, utterances of any
    length; collective. Writes the evaluation's folder (results.py), whose path is "folder" of what
    is returned; emissions are kept for the next time."""
    world = world or World.of_command()
    of = Evaluated.named(settings, world)
    asked = _asked(settings, of)
    folder = world.gather(_folder(settings, of, asked) if world.is_main else Path())[0]
    kept = Path(settings.emissions) if settings.emissions else folder.parent / "emissions"
    decoder = make_decoder(settings.decoding, of.alphabet, world.device)
    for note in (*of.notes, *decoder.notes) if world.is_main else ():
        console.print(f"note: {note}", markup=False)
    beam = settings.decoding.beam
    if settings.tune is not None:
        development = of.emissions(settings.tune, kept)
        beam = _tuned(decoder, development, folder, settings, world)
    emissions = of.emissions(of.data, kept)
    lines = _decoded(decoder, emissions, beam, settings.decoding.num_best, world)
    decoder.close()
    result: dict[str, Any] = {"folder": str(folder)}
    if world.is_main:
        result |= _written(folder, lines, emissions, of, beam, asked)
    return world.gather(result)[0]  # type: ignore[no-any-return]


def _asked(settings: Evaluation, of: Evaluated) -> dict[str, Any]:
    """What an evaluation is known by: not the processes, nor the weights that it finds."""
    tuned = {"tune": settings.tune, "num_trials": settings.num_trials} if settings.tune else {}
    how = {"beam": asdict(settings.decoding.beam), "num_best": settings.decoding.num_best}
    searched = how if settings.decoding.decoder != "greedy" else {}
    known = {"model": of.source, "data": of.data, **identity(settings.decoding)}
    return {**known, **searched, **tuned}


def _folder(settings: Evaluation, of: Evaluated, asked: dict[str, Any]) -> Path:
    """The folder of an evaluation: the one that was given; else the run's that has its name, and a
    number where an evaluation of something else has that already."""
    if settings.output:
        return Path(settings.output)
    run, data = Path(settings.model), of.data
    if is_kept(run):  # of RUN/evaluations/emissions/NAME
        run, data = Path(*run.resolve().parts[:-3]), Emissions(Path(data)).meta["shards"]
    if not is_run(run):
        raise ConfigError(
            f"{settings.model} is no run folder: say with --output where its results are to go"
        )
    decoding = settings.decoding
    searched = f"beam{decoding.beam.beam_size}"
    names = "+".join(Path(name).resolve().name for name in data.split(","))
    parts = [names, searched if decoding.decoder == "beam" else decoding.decoder]
    parts += [Path(lm).resolve().name for lm in (decoding.lm, decoding.rescore_lm) if lm]
    return own_folder(run / "evaluations", "-".join(parts), asked)


def _tuned(
    decoder: Decoder, emissions: Emissions, folder: Path, settings: Evaluation, world: World
) -> BeamConfig:
    """The beam with the weights that are the best on a development set."""
    beam = settings.decoding.beam
    about = identity(settings.decoding)
    found = tune(decoder, emissions, beam, about, folder, world, settings.num_trials)
    if world.is_main:
        console.print(beside_the_paper(found, decoder.kind))
        console.print(f"wrote {folder / 'weights.json'}", markup=False)
    weights: dict[str, Any] = {name: found[name] for name in WEIGHTS if name in found}
    return dataclasses.replace(beam, **weights)


def _decoded(
    decoder: Decoder,
    emissions: Emissions,
    beam: BeamConfig,
    num_best: int,
    world: World,
) -> list[Line]:
    """A line for every utterance, by key; every process decodes its share."""
    own = range(world.rank, len(emissions), world.size)

    def found() -> Iterator[list[Hypothesis]]:
        yield from decoder.decode((emissions[i] for i in own), beam, num_best)

    shown = track(
        zip(own, found(), strict=True),
        "decoding",
        len(own),
        console=console,
        transient=True,
        disable=not world.is_main,
    )
    lines = [_line(emissions, i, readings) for i, readings in shown]
    gathered = world.gather(lines)
    return sorted((line for of_rank in gathered for line in of_rank), key=lambda line: line.key)


def _line(emissions: Emissions, number: int, readings: list[Hypothesis]) -> Line:
    utterance, alphabet = emissions.utterances[number], emissions.alphabet
    best = readings[0]
    said, words = reading(best, emissions[number], alphabet, emissions.model)
    text = alphabet.decode(best.path)  # as references are written
    more: dict[str, Any] = {
        **_scores(best),
        "seconds": round(utterance.seconds, 3),
        "words": [[w.text, w.start, w.end, w.confidence] for w in words],
        **({} if said == text else {"lexicon_words": said}),
    }
    if len(readings) > 1:
        more["best"] = [{"text": alphabet.decode(h.path), **_scores(h)} for h in readings]
    return Line(utterance.key, utterance.reference, text, more)


def _scores(found: Hypothesis) -> dict[str, float]:
    named = {
        "score": found.score,
        "am_score": found.am_score,
        "lm_score": found.lm_score,
        "rescored": found.rescored,
    }
    return {name: round(value, 4) for name, value in named.items() if value or name == "score"}


def _written(
    folder: Path,
    lines: list[Line],
    emissions: Emissions,
    of: Evaluated,
    beam: BeamConfig,
    asked: dict[str, Any],
) -> dict[str, Any]:
    """Score the lines, write the folder; returns the scores."""
    alphabet, skipped = emissions.alphabet, emissions.skipped
    if not lines:
        raise ConfigError(
            f"no utterance of {emissions.meta['shards']} has a label that the model's alphabet "
            f"({alphabet}) can spell ({len(skipped)} were skipped: {most_frequent(skipped)}): "
            "nothing can be scored"
        )
    result = {
        **score(lines, alphabet),
        "num_utterances": len(lines),
        "num_skipped": len(skipped),
        **({"why_skipped": most_frequent(skipped)} if skipped else {}),
        "seconds": round(sum(u.seconds for u in emissions.utterances), 3),
    }
    about = {
        "checkpoint": of.source,
        "notes": of.notes,
        "data": emissions.meta["shards"],
        "emissions": emissions.folder.name,
        **result,
        **({"beam": asdict(beam)} if "beam" in asked else {}),
        "asked": asked,
    }
    unit: Unit = "word" if alphabet.error_rates[0] != "cer" else "letter"
    write(folder, lines, skipped, about, unit)
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `w2v2dist evaluate` takes."""
    model_arguments(parser)
    add = parser.add_argument
    add("--data", metavar="SHARDS", help="folder of shards (default: the run's data.valid)")
    add("--output", metavar="DIR", help="where the results go (default: RUN/evaluations/NAME)")
    add("--emissions", metavar="DIR", help="where log-probabilities are kept (default: beside it)")
    add("--compare", metavar="DIR", help="another evaluation: do they differ (paired bootstrap)?")
    decoding_arguments(parser)
    tuning = parser.add_argument_group("weights")
    text = "find LM weight and word score on these, then evaluate"
    tuning_arguments(tuning.add_argument, "SHARDS", text)


def run(args: argparse.Namespace) -> None:
    """Transcribe shards with a fine-tuned model and print its error rates with 95 % intervals: of
    words where its alphabet has words, of letters, of phones. A folder gets the transcripts with
    scores and times, confusions, the worst utterances, and what was left out.

    example:
      w2v2dist evaluate runs/base_10h --data data/test_clean
      w2v2dist evaluate runs/base_10h --data data/test_clean --lm 4gram.arpa --tune data/dev_other
      w2v2dist evaluate facebook/wav2vec2-base-960h --data data/test_clean --output base_960h
    """
    if args.compare and not is_evaluation(Path(args.compare)):
        raise ConfigError(f"--compare {args.compare} holds no evaluation: give a folder of one")
    if args.compare and is_evaluation(Path(args.model)):
        _compare(Path(args.model), Path(args.compare))
        return
    settings = Evaluation(
        model=args.model,
        data=args.data,
        output=args.output,
        checkpoint=args.checkpoint,
        emissions=args.emissions,
        trust_pickle=args.trust_pickle,
        decoding=decoding_from(args),
        tune=args.tune,
        num_trials=num_trials(args),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is half written goes, too
    world = World.of_command()
    try:
        result = evaluate(settings, world)
    finally:
        world.close()
    if not world.is_main:
        return
    _say(result)
    if args.compare:
        _compare(Path(result["folder"]), Path(args.compare))


def _say(result: dict[str, Any]) -> None:
    called = {"wer": "WER", "cer": "letter errors", "per": "PER"}
    rates = [
        f"{called[k]} {100 * result[k]:.2f} % "
        f"({100 * result[f'{k}_low']:.2f} to {100 * result[f'{k}_high']:.2f})"
        for k in called
        if k in result
    ]
    hours, folder = result["seconds"] / 3600, result["folder"]
    console.print(
        f"{'   '.join(rates)}   {result['num_utterances']} utterances, {hours:.2f} h   "
        f"(see {folder})",
        markup=False,
    )
    if left_out := int(result["num_skipped"]):
        total = left_out + int(result["num_utterances"])
        console.print(f"{left_out} of {total} utterances were left out: {result['why_skipped']}")


def _compare(first: Path, second: Path) -> None:
    """Say whether two evaluations differ."""
    if first.resolve() == second.resolve():
        raise ConfigError(f"{first} was written anew and cannot be compared with what it was")
    found, shared = compare_folders(first, second)
    worse = "worse" if found.difference > 0 else "better"
    verdict = "they differ" if found.significant else "they may be equally good"
    console.print(
        f"{first.name} is {100 * abs(found.difference):.2f} points {worse} than {second.name} "
        f"({100 * found.low:+.2f} to {100 * found.high:+.2f}, p = {found.p_value:.4f}, {shared} "
        f"utterances): {verdict} at 5 %",
        markup=False,
    )
