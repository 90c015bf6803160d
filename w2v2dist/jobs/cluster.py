"""A training as a submitit job: on a signal it saves and requeues itself; it resumes from disk."""

import contextlib
import dataclasses
import hashlib
import os
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import Checkpointable

from w2v2dist.jobs.devices import Device, check_name, named
from w2v2dist.runtime.preemption import EXIT_PREEMPTED, PreemptionFlag
from w2v2dist.tasks.train import read_config, train

EXIT_CONFIG = 2  # a mistake in the configuration: running again cannot help
WAIT_FOR_SLURM_S = 600  # for Slurm to end a job that has saved: longer than a usual GraceTime


# Options that the job itself depends on, and what to use instead
OURS = {
    "nodes": "use --nodes",
    "signal": "use signal_delay_s",
    "ntasks": "use tasks_per_node",
    "ntasks-per-node": "use tasks_per_node",
    "array": "a run is one job, and --sweep makes an array of several",
    "requeue": "the job requeues itself",
    "no-requeue": "the job requeues itself",
    "no-kill": "use no_kill",
    "output": "logs go to the run folder",
    "error": "logs go to the run folder",
    "open-mode": "logs are appended",
    "wrap": "the job is w2v2dist's",
}
# Options of one kind: of each the script has one
KINDS = (
    ("mem", "mem-per-gpu", "mem-per-cpu"),
    ("gpus-per-node", "gpus", "gpus-per-task", "gpus-per-socket", "gres"),
    ("exclusive", "oversubscribe"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """How jobs are started on one cluster: a YAML file under launch/clusters/. Times in seconds."""

    account: str | None = None
    qos: str | None = None
    partition: str | None = None
    constraint: str | None = None
    gpus_per_node: int = 8  # 0: a cluster without GPUs
    tasks_per_node: int | None = None  # processes per node; null: one per GPU
    time: str = "24:00:00"  # HH:MM:SS, D-HH:MM:SS or minutes
    exclusive: bool = True
    mem: str | None = "0"  # per node; "0": all of it; null: the cluster's default
    # Any other sbatch option: its value, true for one without. It takes the place of ours of its
    # kind (memory, GPUs, time, …)
    sbatch: dict[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()  # shell lines before srun, for example to activate an environment
    srun_args: tuple[str, ...] = ()  # for example pyxis's --container-image=...
    python: str | None = None  # of the job, for example inside a container; null: this one
    signal_delay_s: int = 120  # USR2 so long before the time limit: for a step and a checkpoint
    max_failures: int = 3  # without a new checkpoint between them: then the job ends
    max_node_failures: int = 2  # of one node in one job: then it is left out
    # When a node dies, go on with the others in the same allocation (sbatch --no-kill) instead of
    # queueing again. A process that dies never gives the allocation back.
    no_kill: bool = False
    gpu: str = "a100"  # for the plan: a100, a100-40gb, h100 or h200; cpu: this machine's
    # Of a GPU that is none of these: its peak at 16 bits (the rest in proportion) and its memory
    peak_tflops: float | None = None
    gpu_memory_gib: float | None = None

    def __post_init__(self) -> None:
        check_name(self.gpu)
        for name in ("peak_tflops", "gpu_memory_gib"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is {value} but must be positive, or null for gpu's own")
        if self.gpus_per_node < 0 or self.num_tasks_per_node < 1:
            raise ValueError(
                f"gpus_per_node is {self.gpus_per_node}, tasks_per_node is {self.tasks_per_node}: "
                "at least 0 and 1 are needed (tasks_per_node null: one per GPU)"
            )
        for name in self.sbatch:
            if name.replace("_", "-") in OURS or len(name) == 1:
                remedy = OURS.get(name.replace("_", "-"), "write the long name of the option")
                raise ValueError(f"sbatch has {name!r}, which cannot be given there: {remedy}")

    def device(self) -> Device:
        """What the plan is for: without GPUs the CPU here."""
        return named(self.gpu if self.gpus_per_node else "cpu").like(
            self.peak_tflops, self.gpu_memory_gib
        )

    @property
    def num_tasks_per_node(self) -> int:
        """Processes on every node."""
        return max(1, self.gpus_per_node) if self.tasks_per_node is None else self.tasks_per_node


def of_one_process(cluster: ClusterConfig) -> ClusterConfig:
    """The profile for a run of one process: one GPU where nodes have any, and a node that others
    use, too. Memory is then the cluster's default, unless the profile says an amount."""
    mem = None if cluster.mem == "0" else cluster.mem
    gpus = min(1, cluster.gpus_per_node)
    return dataclasses.replace(
        cluster, gpus_per_node=gpus, tasks_per_node=1, exclusive=False, mem=mem
    )


@dataclass(frozen=True)  # no slots: submitit's Checkpointable is a plain class
class TrainJob(Checkpointable):
    """What each rank runs: a path and no state, because a restart resumes from the run folder."""

    config_path: str
    overrides: tuple[str, ...] = ()

    def __call__(self) -> str:
        """Train and return "finished"; a preempted job is requeued and does not return."""
        environment = submitit.JobEnvironment()
        # The job's script has set MASTER_ADDR and MASTER_PORT
        os.environ["RANK"] = str(environment.global_rank)
        os.environ["WORLD_SIZE"] = str(environment.num_tasks)
        os.environ["LOCAL_RANK"] = str(environment.local_rank)
        # submitit's own handler, which writes this job's pickle anew and calls scontrol requeue
        requeue: Any = signal.getsignal(signal.SIGUSR2)
        try:
            # On every rank: stock submitit acts on rank 0 alone, and at once
            with PreemptionFlag().installed() as flag:
                outcome = train(self.config_path, list(self.overrides), flag)
        except (ValueError, FileNotFoundError) as error:  # a mistake of the user
            print(f"error: {error}", file=sys.stderr)
            record = environment.paths.folder / f"{environment.job_id}.error"
            record.write_text(f"{error}\n", encoding="utf-8")
            raise SystemExit(EXIT_CONFIG) from None
        from w2v2dist.training.loop import Preempted  # late, as in `train`

        if isinstance(outcome, Preempted):
            _hand_over(environment, outcome.signal_number, requeue)
        return "finished"


def _hand_over(environment: submitit.JobEnvironment, signal_number: int, requeue: Any) -> None:
    """All ranks have saved: have the job requeued once. Raises SystemExit(EXIT_PREEMPTED)."""
    if environment.cluster == "slurm":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the next TERM is Slurm ending the job
        # TERM: Slurm itself preempts and requeues; USR1 or USR2: it is ours to do, once
        if signal_number != signal.SIGTERM and environment.global_rank == 0:
            # Leaving now would make srun report a failure while Slurm is requeueing
            with contextlib.suppress(SystemExit):
                requeue(signal.SIGUSR2, None)
        time.sleep(WAIT_FOR_SLURM_S)
    raise SystemExit(EXIT_PREEMPTED)


class Executor(submitit.SlurmExecutor):
    """submitit's Slurm executor, which also renders its script where Slurm is not installed."""

    @classmethod
    def affinity(cls) -> int:
        """Available everywhere; `submit` fails without sbatch."""
        return 2

    def script(self) -> str:
        """The sbatch script that `submit` hands to Slurm."""
        return str(self._make_submission_file_text(self._submitit_command_str, ""))


def make_executor(cluster: ClusterConfig, run_dir: Path, nodes: str, minutes: int) -> Executor:
    """What submits `TrainJob`s of `run_dir` on `nodes` ("8" or "8-16"); logs go to RUN/logs."""
    run_dir = run_dir.absolute()
    # Counted signals must never end a long training: see submitit's SignalHandler.has_timed_out
    executor = Executor(folder=run_dir / "logs", max_num_timeout=1_000_000, python=cluster.python)
    given = sbatch_options(cluster)
    kinds = {name for name in given if name != "gres" or "gpu" in str(given[name])}
    kinds |= {name for kind in KINDS if kinds & {*kind} for name in kind}
    no_kill: dict[str, Any] = {"no-kill": True} if cluster.no_kill else {}
    functions = job_functions(run_dir, nodes.split("-")[0], cluster)
    executor.update_parameters(
        job_name=f"{run_dir.name}-{hashlib.sha256(str(run_dir).encode()).hexdigest()[:6]}",
        signal_delay_s=cluster.signal_delay_s,
        stderr_to_stdout=True,
        srun_args=[
            "--kill-on-bad-exit=1",
            # As an option of srun: as the job's, the job would wait for a lost node to come back
            f"--ntasks-per-node={cluster.num_tasks_per_node}",
            "--cpu-bind=none",  # the data workers of a rank need more than the rank's one core
            *cluster.srun_args,
        ],
        setup=[*environment_lines(cluster), functions],
        additional_parameters={"nodes": nodes, "requeue": True, **no_kill, **given},
        **_defaults(cluster, minutes, kinds),
    )
    return executor


def check_sbatch() -> None:
    """Raise ValueError where no job can be submitted."""
    if shutil.which("sbatch") is None:
        raise ValueError(
            "sbatch is not on the PATH, so this is no Slurm login node: run here with --local, or "
            "print the plan and the sbatch script with --dry-run"
        )


def refusal(error: object) -> str:
    """Why sbatch took no job: what it, or submitit's exception around it, said; with the remedy
    where Slurm is not there to answer."""
    said = " ".join(str(error).split())
    if re.search("contact slurm controller|Connection refused|load configuration", said, re.I):
        said += (
            ": Slurm's controller does not answer: this may be no login node of the cluster; "
            "--local runs here, --dry-run prints the script"
        )
    return said


def minutes_of(text: str) -> int:
    """Minutes of "90", "HH:MM:SS" or "D-HH:MM:SS", rounded up. Raises ValueError."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d{1,2}):(\d{1,2})", text.strip())
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        total = days * 1440 + hours * 60 + minutes + (seconds > 0)
    else:
        total = int(text) if text.strip().isdigit() else 0
    if total < 1:
        raise ValueError(
            f"--time is {text!r} but must be HH:MM:SS, D-HH:MM:SS or minutes, at least 1 minute"
        )
    return total


def environment_lines(cluster: ClusterConfig) -> list[str]:
    """Shell: what the profile does before the job's command."""
    modules = [f"module load {shlex.quote(name)}" for name in cluster.modules]
    exports = [f"export {key}={_quoted(value)}" for key, value in cluster.environment.items()]
    return [*modules, *exports, *cluster.setup]


def _defaults(cluster: ClusterConfig, minutes: int, kinds: set[str]) -> dict[str, Any]:
    """What the profile's own keys say, but for options of `kinds` that it gives itself."""
    values = {name: getattr(cluster, name) for name in "account qos partition constraint".split()}
    values |= {name: getattr(cluster, name) for name in ("gpus_per_node", "exclusive", "mem")}
    # singleton: two jobs of one run folder never write it at the same time
    values |= {"time": minutes, "dependency": "singleton"}
    return {k: v for k, v in values.items() if v and k.replace("_", "-") not in kinds}


def sbatch_options(cluster: ClusterConfig) -> dict[str, Any]:
    """The profile's other options as submitit takes them: True for one without a value."""
    named = {name.replace("_", "-"): value for name, value in cluster.sbatch.items()}
    given = {k: True if v in (None, "") else v for k, v in named.items() if v is not False}
    return {k: getattr(v, "text", v) for k, v in given.items()}


def _quoted(value: str) -> str:
    """A value in which the job's shell replaces $VARIABLES, and runs nothing."""
    for special in ("\\", '"', "`"):
        value = value.replace(special, f"\\{special}")
    return '"' + value.replace("$(", "\\$(") + '"'


def job_functions(run_dir: Path, min_nodes: str, cluster: ClusterConfig) -> str:
    """Shell: an `srun` that survives failed processes and nodes (job.sh says how)."""
    values = {"run": shlex.quote(str(run_dir.absolute())), "min_nodes": min_nodes}
    for name in ("no_kill", "max_failures", "max_node_failures", "signal_delay_s"):
        values[name] = str(getattr(cluster, name)).lower()
    functions = resources.files("w2v2dist.jobs").joinpath("job.sh").read_text(encoding="utf-8")
    return "\n".join([*(f"{key}={value}" for key, value in values.items()), functions])


def _print_functions(min_nodes: str, no_kill: str, config: str, *overrides: str) -> None:
    """`job_functions` for launch/train.sbatch, which knows no more of the run than its command."""
    try:
        run_dir = Path(read_config(config, list(overrides)).run_dir)
    except ValueError as error:
        sys.exit(f"w2v2dist: {error}")
    print(job_functions(run_dir, min_nodes, ClusterConfig(no_kill=no_kill == "true")))


if __name__ == "__main__":
    if sys.argv[1] == "--functions":  # launch/train.sbatch
        _print_functions(*sys.argv[2:])
    else:  # one rank of w2v2dist.jobs.local: CONFIG [key=value ...]
        TrainJob(sys.argv[1], tuple(sys.argv[2:]))()
