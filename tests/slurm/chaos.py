"""Random attacks on one training on a real Slurm of four nodes; it must end as if there had been
none. `python -m tests.slurm.chaos --attacks 30 --seed 1 --output DIR` writes DIR/report.md."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from tests.conftest import synthetic_shards
from tests.distributed.processes import write_config
from tests.slurm.cluster import NODES, REPOSITORY, Cluster
from tests.slurm.referee import Attack, attempts, losses, referee, report, seconds
from w2v2dist.runtime.logging import read_jsonl

KINDS = (
    *("kill a rank", "kill all ranks", "lose a node", "lose a slurmd", "requeue", "preempt"),
    *("kill in a save", "damage the checkpoint", "change the nodes"),
)
SLURMD_TIMEOUT_S = 20  # then a silent node is down
LIMIT_S = 3600  # of any wait: a busy machine starts processes slowly
SAVE_EVERY = 6
# Nodes of one process each that a submission asks for
SIZES = ((1, 2), (2, 3), (1, 3), (2, 2), (1, 1), (3, 3), (1, 4))


class Chaos:
    """The training, what attacks it, and what has been done to it."""

    def __init__(self, cluster: Cluster, output: Path, shards: Path, num_attacks: int) -> None:
        self.cluster, self.output = cluster, output
        self.reference, self.run_dir = output / "uninterrupted", output / "attacked"
        output.mkdir(parents=True, exist_ok=True)
        self.max_steps = 60 + 14 * num_attacks
        self.config = write_config(
            output,
            "pretrain",
            shards,
            model={"conv_channels": 16},
            data={"virtual_world_size": 8, "max_samples_per_slot": 32_000},
            loop={"max_steps": self.max_steps, "save_every": SAVE_EVERY, "validate_every": 10_000},
            schedule={"peak_lr": 5e-4, "warmup_steps": 30},
        )
        profile = {"gpus_per_node": 0, "tasks_per_node": 1, "partition": "train", "time": "60"}
        # Many attacks may come before a checkpoint does, and hit one node
        many = {"max_failures": 1000, "max_node_failures": 1000}
        (output / "cluster.yaml").write_text(yaml.safe_dump({**profile, **many}))
        self.sizes, self.job = (1, 3), ""
        self.attacks: list[Attack] = []
        self.attack = Attack("")
        self.drained: list[str] = []
        self.damaged: set[tuple[str, float]] = set()  # step folders: name, time of writing

    def run(self, kinds: list[str], seed: int) -> None:
        """Attack the training in all these ways in turn, then let it finish. Fails where it does
        not come back."""
        self.random = random.Random(seed)
        self.job = self.submit(self.sizes, self.run_dir)
        for number, kind in enumerate(kinds, 1):
            self.wait_for_steps(self.random.randint(1, 8))
            self.attack = Attack(kind)
            self.mark()
            self.attack.what = ATTACKS[kind](self)
            self.wait(self.is_back, f"a new step after {kind}: {self.attack.what}")
            self.attacks.append(self.attack)
            self.repair()
            a = self.attack
            print(
                f"{number}/{len(kinds)} at step {a.step}: {kind}: {a.what}; {', '.join(a.back)}; "
                f"{a.steps_redone} steps redone, {a.seconds_lost:.0f} s lost",
                flush=True,
            )
        self.finish(self.job)

    def is_back(self) -> bool:
        """Whether the run has come back from the attack and made a new step."""
        requeues = self.cluster.job(self.job).get("Restarts", "")
        if self.attack.judge(self.run_dir, self.job, requeues):
            return True
        event = read_jsonl(self.run_dir / "events.jsonl")[-1]["event"]
        assert event != "finished", f"it ended before {self.attack.what} struck: too few steps"
        return False

    def submit(self, sizes: tuple[int, int], run_dir: Path) -> str:
        """Submit the training as a user does; the same run folder goes on."""
        options = [
            "--nodes",
            "{}-{}".format(*sizes),
            "--cluster",
            str(self.output / "cluster.yaml"),
        ]
        arguments = [*options, str(self.config), f"run_dir={run_dir}"]
        return self.cluster.submit(sys.executable, "launch/submit.py", *arguments)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for the run; fails with its log, too."""
        try:
            self.cluster.wait(condition, what, LIMIT_S)
        except BaseException:
            for path in sorted(self.run_dir.glob("logs/*.out"))[-4:]:
                print(f"--- {path}", *path.read_text().splitlines()[-40:], sep="\n")
            raise

    def finish(self, job: str) -> None:
        """Wait until the job has completed."""
        self.wait(lambda: self.cluster.job(job).get("JobState") == "COMPLETED", f"end of job {job}")

    def step(self) -> int:
        """The last step logged."""
        records = losses(self.run_dir)
        return int(records[-1]["step"]) if records else 0

    def wait_for_steps(self, count: int) -> None:
        """Let the run make so many steps more than it has ever made."""
        target = max((r["step"] for r in losses(self.run_dir)), default=0) + count
        assert target < self.max_steps, f"the run is at its end, {self.max_steps}: too few steps"
        self.wait(lambda: self.step() >= target, f"step {target}")

    def mark(self) -> None:
        """The attack strikes now."""
        attack, events = self.attack, self.run_dir / "events.jsonl"
        attack.time, attack.step, attack.job = time.time(), self.step(), self.job
        attack.num_events = len(read_jsonl(events))
        attack.requeues = self.cluster.job(self.job).get("Restarts", "0")

    def repair(self) -> None:
        """Bring lost and drained nodes back."""
        for name in NODES:
            if name not in self.cluster.slurmds:
                self.cluster.start_node(name)
        for name in self.drained:
            self.cluster.command("scontrol", "update", f"NodeName={name}", "State=RESUME")
        self.drained = []

    # What is there to attack

    def processes(self, **environment: str) -> list[psutil.Process]:
        """The processes of this cluster's jobs that have these variables."""
        wanted = {"SLURM_CONF": str(self.cluster.root / "slurm.conf"), **environment}
        found = []
        for process in psutil.process_iter():
            try:
                if wanted.items() <= process.environ().items():
                    found.append(process)
            except psutil.Error:  # it has ended, or is no process of ours
                continue
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes of the newest attempt by rank, without their data workers."""
        found: dict[tuple[int, int], dict[int, psutil.Process]] = {}
        for process in self.processes(SLURM_JOB_ID=self.job):
            try:
                values, parent = process.environ(), process.parent()
                if parent is None or "SLURM_STEP_ID" not in values or not is_rank(process):
                    continue
                if not is_rank(parent):
                    attempt = (
                        int(values.get("SLURM_RESTART_COUNT", "0")),
                        int(values["SLURM_STEP_ID"]),
                    )
                    found.setdefault(attempt, {})[int(values["SLURM_PROCID"])] = process
            except psutil.Error:
                continue
        return dict(sorted(found[max(found)].items()))

    def job_nodes(self) -> list[str]:
        """The nodes on which the job runs."""
        nodes = self.cluster.job(self.job)["NodeList"]
        return self.cluster.command("scontrol", "show", "hostnames", nodes).split()

    def checkpoints(self) -> list[Path]:
        """The step folders that nobody has damaged, oldest first."""
        folders = sorted((self.run_dir / "checkpoints").glob("step_*"))
        return [f for f in folders if (f.name, f.stat().st_ctime) not in self.damaged]

    # The attacks: each returns what it has done

    def kill_a_rank(self) -> str:
        ranks = self.ranks()
        rank = self.random.choice(list(ranks))
        ranks[rank].kill()
        return f"kill -9 of rank {rank} of {len(ranks)}"

    def kill_all_ranks(self) -> str:
        ranks = self.ranks()
        for process in ranks.values():
            process.kill()
        return f"kill -9 of all {len(ranks)} ranks"

    def lose_a_node(self) -> str:
        nodes = self.job_nodes()
        name = self.random.choice(nodes)
        self.cluster.kill_slurmd(name)
        self.cluster.kill_processes(name, down=False)
        batch = " and the batch script" if name == nodes[0] else ""
        return f"kill -9 of {name} of {' '.join(nodes)}: slurmd, ranks{batch}"

    def lose_a_slurmd(self) -> str:
        nodes = self.job_nodes()
        name = self.random.choice(nodes)
        self.cluster.kill_slurmd(name)
        what = f"kill -9 of the slurmd of {name} of {' '.join(nodes)}; its ranks go on"
        count, limit = len(attempts(self.run_dir)), self.step() + 20
        self.wait(
            lambda: self.step() > limit or len(attempts(self.run_dir)) > count, f"loss of {name}"
        )
        if len(attempts(self.run_dir)) > count:
            return what + " until Slurm notices"
        # As a health check would: nobody but a power switch can end processes without a slurmd
        self.cluster.kill_processes(name)
        return what + " for 20 steps, then it is switched off and DOWN"

    def requeue(self) -> str:
        self.cluster.command("scontrol", "requeue", self.job)
        return "scontrol requeue"

    def preempt(self) -> str:
        nodes = self.job_nodes()
        taken = self.random.sample(nodes, self.random.randint(1, len(nodes)))
        options = ["--partition=urgent", "--exclusive", "--time=2", "--output=/dev/null"]
        options += [f"--nodes={len(taken)}", f"--nodelist={','.join(taken)}"]
        self.cluster.submit("sbatch", *options, "--wrap=sleep 10")
        return f"a job of higher priority takes {' '.join(sorted(taken))} of {' '.join(nodes)}"

    def kill_in_a_save(self) -> str:
        root = self.run_dir / "checkpoints"
        while True:
            ranks = self.ranks()
            rank = self.random.choice(list(ranks))
            self.wait(lambda: any(root.glob(".tmp-step_*")), "a save")
            ranks[rank].suspend()  # a save needs every rank: now it cannot end
            writing = [p.name.removeprefix(".tmp-") for p in root.glob(".tmp-step_*")]
            if writing and not (root / writing[0]).exists():
                break
            ranks[rank].resume()
        self.mark()
        ranks[rank].kill()
        return f"kill -9 of rank {rank} of {len(ranks)} while {writing[0]} is written"

    def damage_the_checkpoint(self) -> str:
        self.wait(lambda: len(self.checkpoints()) > 1, "two checkpoints")
        ranks = self.ranks()
        for process in ranks.values():
            process.suspend()
        folder = self.checkpoints()[-1]
        file = self.random.choice(sorted(f for f in folder.rglob("*") if f.is_file()))
        how = self.random.choice(("truncated", "removed"))
        if how == "truncated":
            os.truncate(file, file.stat().st_size // 2)
        else:
            file.unlink()
        self.damaged.add((folder.name, folder.stat().st_ctime))
        self.mark()
        for process in ranks.values():
            process.kill()
        return f"{folder.name}/{file.name} {how}, kill -9 of all {len(ranks)} ranks"

    def change_the_nodes(self) -> str:
        before, nodes = self.sizes, self.job_nodes()
        if len(nodes) > before[0] and self.random.random() < 0.5:
            self.drained = nodes[: self.random.randint(1, len(nodes) - before[0])]
            for name in set(NODES) - set(nodes):
                self.drained.append(name)
            for name in self.drained:
                options = (f"NodeName={name}", "State=DRAIN", "Reason=chaos")
                self.cluster.command("scontrol", "update", *options)
            self.cluster.command("scontrol", "requeue", self.job)
            return f"{' '.join(self.drained)} drained of the four, scontrol requeue"
        self.sizes = self.random.choice([s for s in SIZES if s != before])
        job = self.submit(self.sizes, self.run_dir)  # it waits for the other
        self.mark()
        self.cluster.command("scancel", self.job)
        self.job = job
        words = ["{}-{}".format(*s) for s in (before, self.sizes)]
        return f"submitted with --nodes {words[1]}, the job with {words[0]} cancelled"


ATTACKS = {kind: getattr(Chaos, kind.replace(" ", "_")) for kind in KINDS}


def is_rank(process: psutil.Process) -> bool:
    """Whether it runs a rank (or is a data worker, which has the rank's command line)."""
    return "submitit.core._submit" in process.cmdline()


def schedule(num_attacks: int, seed: int) -> list[str]:
    """Every kind equally often, in random order."""
    generator, kinds = random.Random(seed), []
    while len(kinds) < num_attacks:
        kinds += generator.sample(KINDS, len(KINDS))
    return kinds[:num_attacks]


def run_chaos(
    cluster: Cluster, output: Path, shards: Path, kinds: list[str], seed: int
) -> list[tuple[bool, str]]:
    """The uninterrupted run, the attacked one, the report; returns the referee's findings."""
    chaos = Chaos(cluster, output, shards, len(kinds))
    chaos.finish(chaos.submit((2, 2), chaos.reference))
    print(f"uninterrupted: {seconds(chaos.reference):.0f} s", flush=True)
    findings = [(False, "the run did not come back from the attack after the last one below")]
    try:
        chaos.run(kinds, seed)
        findings = referee(chaos.run_dir, chaos.reference)
    finally:
        if chaos.attacks:
            text = report(chaos.attacks, findings, chaos.run_dir, header(chaos, len(kinds), seed))
            (output / "report.md").write_text(text, encoding="utf-8")
            print(text, flush=True)
    return findings


def header(chaos: Chaos, num_attacks: int, seed: int) -> list[str]:
    """The report's first lines: when, where and what."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True
    )
    return [
        f"# Chaos: {num_attacks} random attacks on one run, on a Slurm of {len(NODES)} nodes",
        "",
        f"{datetime.date.today()} · {os.cpu_count()} CPU cores · Python {platform.python_version()}"
        f" · commit {commit.stdout.strip() or 'unknown'} · "
        f"`python -m tests.slurm.chaos --attacks {num_attacks} --seed {seed}`",
        "",
        f"The run: {chaos.max_steps} steps of 8 slots, fp32, ZeRO 1, a checkpoint every "
        f"{SAVE_EVERY} steps, one process a node; a silent node is down after {SLURMD_TIMEOUT_S} s."
        f" The uninterrupted run took {seconds(chaos.reference):.0f} s with 2 processes.",
    ]


def main() -> int:
    """Exit status: 0 if every claim holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attacks", type=int, default=30, help="how many (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the attacks (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("chaos"), help="new folder")
    args = parser.parse_args()
    output = args.output.absolute()
    if (output / "attacked").exists():
        parser.error(f"--output {output} holds an earlier run: remove it, or name a new folder")
    root = Path(tempfile.mkdtemp(prefix="w2v2-chaos-"))
    root.chmod(0o755)  # munge runs as its own user
    cluster = Cluster(root)
    cluster.configure(user_signal=True, slurmd_timeout=SLURMD_TIMEOUT_S)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemons are stopped
    try:
        cluster.start()
        shards = synthetic_shards(output / "shards")
        findings = run_chaos(cluster, output, shards, schedule(args.attacks, args.seed), args.seed)
    finally:
        cluster.stop()
    shutil.rmtree(root)
    return 0 if all(ok for ok, _ in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
