"""`launch/submit.py --autotune`: the settings that give the most audio a second here, within
memory. The roofline says what is worth measuring; steps of the real engine decide."""

import json
import math
import os
import re
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from w2v2dist.config import ConfigError, flatten, layers, merge, parse_overrides, to_dict
from w2v2dist.data.audio import SAMPLE_RATE
from w2v2dist.jobs.candidates import REMEDY, Candidate, Predicted, all_candidates, present, prune
from w2v2dist.jobs.devices import GIB
from w2v2dist.jobs.local import EXIT_TIMEOUT, last_line, run_local
from w2v2dist.jobs.measure import EXIT_OUT_OF_MEMORY, available_memory, shape
from w2v2dist.runtime.distributed import VirtualRanks, own_device
from w2v2dist.runtime.files import unwritable
from w2v2dist.runtime.logging import console
from w2v2dist.tasks.train import read_config
from w2v2dist.training.run_folder import has_saved

MOST = 8  # candidates that are measured
FIRST_STEPS = 3  # of each; twice as many of each half that is left
NOISE = 1.03  # so much faster is faster
SHARE = 0.92  # of memory: the rest is the context's, the libraries' and fragmentation's
EXIT_INTERRUPTED = 128 + 2
WIDTH = 160  # of the table in a file
NO_TIME, NOT_READY = "no time was left", "not ready in"
KILLED, TERMINATED = 128 + 9, 128 + 15  # exit statuses of processes


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What is tuned, on how many processes of this machine, and within which time."""

    config_path: str
    overrides: tuple[str, ...] = ()
    num_processes: int | None = None  # None: one per GPU, one on the CPU
    minutes: float = 10.0
    output: Path | None = None  # None: autotune.yaml in the run folder


@dataclass(slots=True)
class Result:
    """What is known of a candidate: its measured steps, or why there are none."""

    predicted: Predicted
    step_seconds: list[float] = field(default_factory=list)
    memory_bytes: float = 0.0
    problem: str = ""

    @property
    def seconds(self) -> float:
        """The median step; infinite where none was measured."""
        return statistics.median(self.step_seconds) if self.step_seconds else math.inf


def autotune(tuning: Tuning) -> int:
    """Print what was found, and write it. Returns the exit status: 0, 1 where nothing could be
    measured, EXIT_INTERRUPTED. Raises ConfigError, ValueError where nothing can fit."""
    try:
        search = _Search(tuning)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    search.introduce()
    try:
        interrupted = not search.run()
    except KeyboardInterrupt:  # between two measurements
        interrupted = True
    # What is no terminal counts as 80 columns
    shown = console if console.is_terminal else Console(file=console.file, width=WIDTH)
    shown.print(search.table())
    return search.conclude(interrupted)


class _Search:
    """Candidates of one configuration, pruned when it is made, and their measurements."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.config = self._read(())
        if self.config.task in ("language_model", "unsupervised"):
            raise ConfigError(
                f"task is {self.config.task}, but --autotune measures trainings on audio: try "
                "engine.compile, engine.zero_stage and model.activation_checkpointing in runs of "
                "some steps each"
            )
        if not 0 < tuning.minutes < math.inf:
            raise ConfigError(
                f"--autotune-minutes is {tuning.minutes:g} but must be above 0, and finite"
            )
        self.run_dir = Path(self.config.run_dir).absolute()
        self.output = tuning.output or self.run_dir / "autotune.yaml"
        if why := unwritable(self.output):
            raise ConfigError(f"--output: {why}")
        if self.output.resolve() in (place for place, _ in layers(tuning.config_path)):
            raise ConfigError(
                f"what is found would be written over {self.output}, which the configuration is "
                "read from: give another file with --output"
            )
        self.on_gpu = own_device(0).type == "cuda"
        default = torch.cuda.device_count() if self.on_gpu else 1
        self.num_processes = default if tuning.num_processes is None else tuning.num_processes
        self._check_processes()
        self.logs = self.run_dir / "logs" / "autotune"
        self.memory_bytes = SHARE * available_memory(self.on_gpu, self.num_processes)
        # Once there is a config.yaml, a batch of another cut is another run
        new = not (self.run_dir / "config.yaml").exists() and not has_saved(self.run_dir)
        self.new_run = new
        found = all_candidates(self.config, self.num_processes, new_run=new)
        predicted = self._predict(found)
        self.kept, self.pruned = prune(self.config, predicted, self.memory_bytes, MOST)
        self.results = {c: Result(p) for c, p in predicted.items()}
        self.now = present(self.config)
        self.deadline = time.monotonic() + 60 * tuning.minutes
        self.longest = {False: 0.0, True: 0.0}  # seconds of a measurement, compiled or not

    def _check_processes(self) -> None:
        most = torch.cuda.device_count() if self.on_gpu else os.cpu_count() or 1
        if not 1 <= self.num_processes <= most:
            what = "GPUs" if self.on_gpu else "cores"
            raise ConfigError(
                f"--processes is {self.num_processes} but this machine has {most} {what}: give 1 "
                f"to {most}"
            )
        VirtualRanks(self.config.data.virtual_world_size).check(self.num_processes)

    def _read(self, more: tuple[str, ...]) -> Any:
        return read_config(self.tuning.config_path, [*self.tuning.overrides, *more])

    def _predict(self, candidates: list[Candidate]) -> dict[Candidate, Predicted]:
        from w2v2dist.jobs.devices import this_device
        from w2v2dist.jobs.roofline import predict

        out = {}
        try:
            device = this_device()
        except ValueError as error:  # a GPU whose rates it does not know
            console.print(f"nothing is predicted, all is measured: {error}", markup=False)
            return {candidate: Predicted(math.nan, 0.0) for candidate in candidates}
        shown = track(candidates, "predicting", console=console, transient=True)
        for candidate in shown:
            config = self._read(words(candidate.overrides(self.config)))
            p = predict(config, device, world_size=self.num_processes)
            out[candidate] = Predicted(float(p.step_seconds), float(p.memory_bytes))
        return out

    def introduce(self) -> None:
        """Say what will be done."""
        where = torch.cuda.get_device_name() if self.on_gpu else "this CPU"
        lines = [
            f"{self.num_processes} x {where}, {self.memory_bytes / GIB:.1f} GiB each: "
            f"{len(self.kept)} of {len(self.results)} candidates are measured on random audio, for "
            f"{self.tuning.minutes:g} minutes at most (Ctrl-C ends it)"
        ]
        if not self.on_gpu:
            lines.append("there is no GPU: what is found holds for this CPU, and for no GPU")
        if not self.new_run:
            lines.append(
                "the run has begun: its micro-batches stay as they are (another cut is another run)"
            )
        for line in lines:
            console.print(line, markup=False)

    def run(self) -> bool:
        """Successive halving: all, then the better half with twice as many steps, until one is
        left or the time is over. Returns False where it was interrupted."""
        shown = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        # Compiling takes minutes: what needs none comes first
        alive, steps = sorted(self.kept, key=lambda c: (c != self.now, c.compile)), FIRST_STEPS
        with Progress(*shown, console=console, transient=True) as bar:
            line = bar.add_task("")
            while alive:
                for i, candidate in enumerate(alive, 1):
                    if time.monotonic() + self.longest[candidate.compile] > self.deadline:
                        if not self.results[candidate].step_seconds:
                            self.results[candidate].problem = NO_TIME
                        continue
                    what = f"{i}/{len(alive)}, {steps} steps: {candidate.named(self.now)}"
                    bar.update(line, description=what)
                    if not self._measure(candidate, steps):
                        return False
                    bar.console.print(f"{what}: {self._said(candidate)}", markup=False)
                fit = sorted((c for c in alive if not self.results[c].problem), key=self.cost)
                if len(fit) < 2 or len(alive) == 2:
                    break
                alive, steps = fit[: max(2, len(fit) // 2)], 2 * steps
        return True

    def _measure(self, candidate: Candidate, steps: int) -> bool:
        """Run it in processes of its own; whatever becomes of them is a result. Returns False where
        a signal ended them."""
        begin, result = time.monotonic(), self.results[candidate]
        folder = self.logs / "-".join(re.findall(r"\w+", candidate.named(self.now)))
        output = folder / "measured.json"
        for old in (output, output.with_suffix(".oom")):
            old.unlink(missing_ok=True)
        arguments = [self.tuning.config_path, *self.tuning.overrides]
        arguments += words(candidate.overrides(self.config))
        arguments += ["--steps", str(steps), "--output", str(output)]
        if not self.on_gpu:
            arguments += ["--memory", str(int(self.memory_bytes))]
        code = run_local(
            arguments, folder, self.num_processes, module="w2v2dist.jobs.measure", quiet=True,
            timeout_s=max(1.0, (self.deadline - begin) / (1 if candidate == self.now else 2)),
        )  # fmt: skip
        took = time.monotonic() - begin
        self.longest[candidate.compile] = max(self.longest[candidate.compile], took)
        if output.exists():
            measured = json.loads(output.read_text(encoding="utf-8"))
            result.step_seconds += measured["step_seconds"]
            result.memory_bytes = max(result.memory_bytes, measured["memory_bytes"])
            if candidate.compile and measured["notes"]:
                result.problem = measured["notes"][0]
        elif code == TERMINATED:
            return False
        elif output.with_suffix(".oom").exists() or code in (EXIT_OUT_OF_MEMORY, KILLED):
            result.problem = "out of memory"
        elif code == EXIT_TIMEOUT:
            if not result.step_seconds:
                result.problem = f"{NOT_READY} {took:.0f} s: give more --autotune-minutes"
        else:
            result.problem = f"failed: {last_line(folder)} (logs in {folder})"
        return True

    def audio(self, candidate: Candidate) -> float:
        """Seconds of audio in a step."""
        data = self._read(words(candidate.overrides(self.config))).data
        num_rows, num_samples = shape(data)
        return float(num_rows * num_samples * data.virtual_world_size / SAMPLE_RATE)

    def cost(self, candidate: Candidate) -> float:
        """Measured seconds for a second of audio."""
        return self.results[candidate].seconds / self.audio(candidate)

    def _said(self, candidate: Candidate) -> str:
        result = self.results[candidate]
        if result.problem:
            return result.problem
        return f"{result.seconds:.3g} s a step, {1 / self.cost(candidate):.1f} s of audio a second"

    def table(self) -> Table:
        """All candidates: what was measured, the fastest first, and why others were not."""
        table = Table(title="candidates", box=None, title_justify="left")
        table.add_column("settings", no_wrap=True)
        heads = ("predicted s", "measured s", "audio s/s", "GiB predicted", "measured")
        for head in heads:
            table.add_column(head, justify="right")
        table.add_column("remark")
        for c in sorted(self.results, key=lambda c: (self.cost(c), c in self.pruned)):
            r = self.results[c]
            done, unknown = bool(r.step_seconds), math.isnan(r.predicted.step_seconds)
            table.add_row(
                c.named(self.now),
                "" if unknown else f"{r.predicted.step_seconds:.3g}",
                f"{r.seconds:.3g}" if done else "",
                f"{1 / self.cost(c):.1f}" if done else "",
                "" if unknown else f"{r.predicted.memory_bytes / GIB:.2f}",
                f"{r.memory_bytes / GIB:.2f}" if done else "",
                self.pruned.get(c) or r.problem,
            )
        return table

    def conclude(self, interrupted: bool) -> int:
        """Say which settings are best, and write them where all was measured that should be."""
        fit = [c for c in self.kept if self.results[c].step_seconds and not self.results[c].problem]
        if not fit:
            text = "interrupted before anything was measured" if interrupted else self._nothing()
            console.print(text, markup=False)
            return EXIT_INTERRUPTED if interrupted else 1
        known = self.now in fit
        best = max(fit, key=self._gain) if known else min(fit, key=self.cost)
        gain = self._gain(best) if known else math.inf
        end = "interrupted; so far " if interrupted else ""
        if late := sum(self._late(c) for c in self.kept):
            remedy = "" if interrupted else ": give more --autotune-minutes"
            text = f"{late} of {len(self.kept)} candidates were not measured{remedy}"
            console.print(text, markup=False)
        if best == self.now or gain < NOISE:
            text = f"nothing surely beats the present settings by more than {NOISE - 1:.0%}"
            console.print(f"{end}{text}, by its median and its fastest step", markup=False)
            return EXIT_INTERRUPTED if interrupted else 0
        found = best.overrides(self.config)
        faster = f"{gain:.2f} x as fast as" if gain < math.inf else "unlike"
        console.print(f"{end}{faster} the present settings:", " ".join(words(found)), markup=False)
        if interrupted:
            console.print("nothing was written: the search was not over", markup=False)
            return EXIT_INTERRUPTED
        self._write(self.output, found, faster)
        console.print(
            f"{self.output} has them: give it to submit.py in place of CONFIG", markup=False
        )
        return 0

    def _gain(self, best: Candidate) -> float:
        """How many times as fast as the present settings: by the median and by the fastest step,
        whichever is less, because a pause of the machine is no merit of the other."""
        now, other = self.results[self.now], self.results[best]
        fastest = min(now.step_seconds) / min(other.step_seconds)
        gain = min(now.seconds / other.seconds, fastest)
        return gain * self.audio(best) / self.audio(self.now)

    def _late(self, candidate: Candidate) -> bool:
        """Whether time was all that a measurement of it lacked."""
        result = self.results[candidate]
        waited = not result.problem or result.problem.startswith((NO_TIME, NOT_READY))
        return waited and not result.step_seconds

    def _nothing(self) -> str:
        problems = {self.results[c].problem for c in self.kept}
        if problems == {"out of memory"}:
            return f"nothing fits: {REMEDY}"
        if all(p.startswith((NO_TIME, NOT_READY)) for p in problems):
            return "no time was left for one measurement: give more --autotune-minutes"
        return "nothing could be measured: the table says why"

    def _write(self, path: Path, found: dict[str, Any], faster: str) -> None:
        given = parse_overrides([*self.tuning.overrides], type(self.config))
        resolved = flatten(to_dict(self._read(words(found))))
        content: dict[str, Any] = {"base": str(Path(self.tuning.config_path).absolute())}
        for key in {**flatten(given), **found}:
            node: Any = resolved[key]
            for part in reversed(key.split(".")):
                node = {part: node}
            content = merge(content, node)
        where = torch.cuda.get_device_name() if self.on_gpu else f"a CPU of {os.uname().nodename}"
        said = f"# --autotune, {time.strftime('%Y-%m-%d')}, {self.num_processes} x {where}: "
        said += f"{faster} without\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(said + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        temporary.replace(path)


def words(overrides: dict[str, Any]) -> tuple[str, ...]:
    """`key=value`, as they are pasted into a command."""
    return tuple(f"{key}={json.dumps(value)}" for key, value in overrides.items())
