"""The weights of a search, found on kept emissions of a development set: LM weight in [0, 5] and
word score in [-5, 5] in 128 trials (appendix of the paper), by optuna."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from rich.progress import track
from rich.table import Table

from w2v2dist.config import ConfigError, from_dict, read_paper, read_yaml
from w2v2dist.data.index_writer import atomic
from w2v2dist.decode.beam_config import WEIGHTS, BeamConfig, Hypothesis
from w2v2dist.decode.decoders import Decoder, Rescorer, reordered
from w2v2dist.decode.emissions import Emissions
from w2v2dist.decode.scoring import error_counts, error_rates
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import append_jsonl, console, read_jsonl

NUM_TRIALS = 128
Errors = Callable[[BeamConfig], float]  # the error rate with these weights


def tune(
    decoder: Decoder,
    emissions: Emissions,
    beam: BeamConfig,
    about: dict[str, Any],
    folder: Path,
    world: World,
    num_trials: int = NUM_TRIALS,
) -> dict[str, float]:
    """The weights with the fewest errors of `num_trials`, and their error rate; collective. Trials
    of an interrupted run, in trials.jsonl of `folder`, count where they are of the same search
    (`about`). Writes weights.json there, which --weights takes."""
    if not len(emissions):
        raise ConfigError(f"{emissions.meta['shards']} has no utterance that can be scored")
    names = [n for n in WEIGHTS if n != "rescore_weight" or isinstance(decoder, Rescorer)]
    study, problem = None, ""
    if world.is_main:
        try:
            study = _study(emissions, beam, names, about, folder)
        except ConfigError as error:
            problem = str(error)
    if problem := world.gather(problem)[0]:
        raise ConfigError(problem)
    done = world.gather(study.num_done if study else 0)[0]
    errors = _errors(decoder, emissions, beam, world)
    trials = range(done, num_trials)
    quiet = not world.is_main
    for _ in track(trials, "tuning", console=console, transient=True, disable=quiet):
        weights = world.gather(study.ask() if study else {})[0]
        value = errors(dataclasses.replace(beam, **weights))
        if study:
            study.tell(value)
    found: dict[str, float] = world.gather(study.best() if study else {})[0]
    return found


def _study(
    emissions: Emissions, beam: BeamConfig, names: list[str], about: dict[str, Any], folder: Path
) -> "Study":
    rate = emissions.alphabet.error_rates[0]
    settings = {k: v for k, v in asdict(beam).items() if k not in names}
    return Study(
        space={name: WEIGHTS[name] for name in names},
        start={name: getattr(beam, name) for name in names},
        measure=rate,
        about={"emissions": emissions.folder.name, "rate": rate, **about, **settings},
        folder=folder,
    )


class Study:
    """The trials so far and the next one; each is a line of trials.jsonl once it is known. `space`
    has the bounds of each weight, `start` where the search begins, `measure` is the name of what is
    made small, `about` what tells these trials from others. Raises ConfigError where the folder
    has trials of other settings, or the search would begin out of bounds."""

    def __init__(
        self,
        *,
        space: dict[str, tuple[float, float]],
        start: dict[str, float],
        measure: str,
        about: dict[str, Any],
        folder: Path,
    ) -> None:
        for name, (least, most) in space.items():
            if not least <= start[name] <= most:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {start[name]:g}, but --tune searches from "
                    f"{least:g} to {most:g}: begin there, or leave it out"
                )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._measure, self._about = folder, measure, about
        self._space = {
            name: optuna.distributions.FloatDistribution(*bounds, step=0.01)
            for name, bounds in space.items()
        }
        known = self._known()
        self.num_done = len(known)
        # Another seed than that of the trials before
        sampler = optuna.samplers.TPESampler(seed=1 + self.num_done)
        self._study = optuna.create_study(sampler=sampler)
        for record in known:
            self._study.add_trial(
                optuna.trial.create_trial(
                    params={name: record[name] for name in space},
                    distributions=dict(self._space),
                    value=record[self._measure],
                )
            )
        if not known:  # where the search begins
            self._study.enqueue_trial(start)

    def _known(self) -> list[dict[str, Any]]:
        """Trials that were made before. Raises ConfigError where they are of other settings."""
        log = self._folder / "trials.jsonl"
        found = read_jsonl(log)
        for record in found:
            if changed := [k for k, v in self._about.items() if record.get(k) != v]:
                raise ConfigError(
                    f"{log} holds trials with another {', '.join(changed)}: use another --output, "
                    "or remove it to begin anew"
                )
        return found

    def ask(self) -> dict[str, float]:
        """The weights to try next."""
        self._trial = self._study.ask(dict(self._space))
        return {name: round(value, 2) for name, value in self._trial.params.items()}

    def tell(self, value: float) -> None:
        """What is measured with them."""
        weights = {name: round(value, 2) for name, value in self._trial.params.items()}
        self._study.tell(self._trial, value)
        append_jsonl(
            self._folder / "trials.jsonl", {**self._about, **weights, self._measure: value}
        )

    def best(self) -> dict[str, float]:
        """The best weights with what was measured; writes weights.json."""
        best, number = self._study.best_trial, len(self._study.trials)
        found = {name: round(value, 2) for name, value in best.params.items()}
        found[self._measure] = float(best.value or 0.0)
        with atomic(self._folder / "weights.json") as file:
            values = {**found, "num_trials": number, **self._about}
            file.write(json.dumps(values, indent=1, ensure_ascii=False).encode())
        return found


def _errors(decoder: Decoder, emissions: Emissions, beam: BeamConfig, world: World) -> Errors:
    """A search for each trial; where the best of one are read again, one search for all."""
    alphabet, rate = emissions.alphabet, emissions.alphabet.error_rates[0]
    own = range(world.rank, len(emissions), world.size)
    references = [emissions.utterances[i].reference for i in own]

    def of(found: Iterable[Hypothesis]) -> float:
        counts = error_counts(references, [alphabet.decode(h.path) for h in found])
        total = dict(zip(counts, world.sum([*counts.values()]), strict=True))
        return error_rates(total, (rate,))[rate]

    def search(weights: BeamConfig, num_best: int) -> Iterator[list[Hypothesis]]:
        yield from decoder.decode((emissions[i] for i in own), weights, num_best)

    if isinstance(decoder, Rescorer):
        lists = [*search(beam, beam.beam_size)]
        return lambda weights: of(reordered(found, weights)[0] for found in lists)
    return lambda weights: of(found[0] for found in search(weights, 1))


def read_weights(path: Path, beam: BeamConfig) -> BeamConfig:
    """A beam with the weights of a file of `tune`, or of one that has them as JSON or YAML."""
    values = {k: v for k, v in read_yaml(path).items() if k in WEIGHTS}
    if not values:
        raise ConfigError(
            f"{path} has none of {', '.join(WEIGHTS)}: give the weights.json that --tune wrote"
        )
    return from_dict(BeamConfig, {**asdict(beam), **values})


def beside_the_paper(found: dict[str, float], kind: str) -> Table:
    """The weights that were found beside the paper's; `kind` is ngram or transformer."""
    table = Table("labels", "pre-training", "LM weight", "word score")
    table.add_row("here", "", f"{found['lm_weight']:.2f}", f"{found['word_score']:.2f}")
    for labels, models in read_paper("weights").items():
        for model, of_lm in models.items():
            table.add_row(labels, model, *(f"{value:.2f}" for value in of_lm[kind]))
    return table
