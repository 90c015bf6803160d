"""A private Slurm: munge, a controller and four nodes, each a child of this process."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from w2v2dist.runtime.distributed import free_port

REPOSITORY = Path(__file__).parents[2]
NODES = ("n1", "n2", "n3", "n4")
CONFIGURATION = """
ClusterName=w2v2test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmctldPidFile={root}/slurmctld.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmctldTimeout=30
StateSaveLocation={root}/state
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=10
CryptoType=crypto/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdPidFile={root}/slurmd.%n.pid
SlurmdLogFile={root}/slurmd.%n.log
SlurmdSpoolDir={root}/spool/%n
SlurmdParameters=config_overrides
SlurmdTimeout={slurmd_timeout}
MessageTimeout=60
KillWait=10
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{parameters}
{nodes}
PartitionName=train Nodes=n[1-4] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=n[1-4] PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """Four nodes under one controller; `root` holds everything, `environment` is that of a user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.slurmds: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = [free_port() for _ in range(len(NODES) + 1)]
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(root / "slurm.conf"),
            # The jobs run the interpreter and the sources of this test
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
            # DeepSpeed compiles at its first run; one that was killed elsewhere leaves a lock
            "TORCH_EXTENSIONS_DIR": str(root / "extensions"),
            "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}",
        }

    def configure(self, user_signal: bool, slurmd_timeout: int = 60) -> None:
        """Write slurm.conf; preemption warns with USR2 if `user_signal`, else with TERM. A node is
        down when it has been silent for `slurmd_timeout` seconds."""
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 "
            f"Port={port} CPUs=8 RealMemory=4000"
            for name, port in zip(NODES, self.ports[1:], strict=True)
        )
        text = CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            port=self.ports[0],
            root=self.root,
            slurmd_timeout=slurmd_timeout,
            nodes=nodes,
            parameters="SlurmctldParameters=preempt_send_user_signal" if user_signal else "",
        )
        (self.root / "slurm.conf").write_text(text)

    def start(self) -> None:
        """Start all daemons as children of this process and wait until the nodes are idle."""
        self.start_controller()
        for name in NODES:
            self.start_node(name)
        states = ("sinfo", "-h", "-N", "-p", "train", "-o", "%t")
        idle = ["idle"] * len(NODES)
        self.wait(lambda: self.command(*states).split() == idle, "four idle nodes", 60)

    def start_controller(self) -> None:
        """Start munge and slurmctld."""
        munge = self.root / "munge"
        for folder in (munge, self.root / "state", *(self.root / "spool" / n for n in NODES)):
            folder.mkdir(parents=True)
        (munge / "key").write_bytes(os.urandom(128))
        shutil.chown(munge, "munge", "munge")
        shutil.chown(munge / "key", "munge", "munge")
        munge.chmod(0o755)
        (munge / "key").chmod(0o400)
        files = [f"--{name}-file={munge}/{name}" for name in ("key", "pid", "log", "seed")]
        files.append(f"--socket={munge}/socket")
        self._daemon("runuser", "-u", "munge", "--", "munged", "--foreground", *files)
        self.wait(lambda: (munge / "socket").exists(), "munge's socket", 20)
        self._daemon("slurmctld", "-D", "-f", str(self.root / "slurm.conf"))

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node."""
        conf = str(self.root / "slurm.conf")
        self.slurmds[name] = self._daemon("slurmd", "-D", "-N", name, "-f", conf)

    def kill_slurmd(self, name: str) -> None:
        """kill -9 of a node's slurmd; what runs on the node goes on without it."""
        process = self.slurmds.pop(name)
        self.daemons.remove(process)
        process.kill()
        process.wait()

    def kill_node(self, name: str) -> None:
        """A node's sudden death: its daemon and its jobs are gone, and the controller knows it at
        once instead of after SlurmdTimeout. `start_node` brings it back."""
        self.kill_slurmd(name)
        self.kill_processes(name)

    def kill_processes(self, name: str, down: bool = True) -> None:
        """kill -9 of what jobs run on a node; then tell the controller that it is `down`."""
        doomed = []
        for folder in self.processes(name):
            with contextlib.suppress(psutil.Error):  # it has just ended
                process = psutil.Process(int(folder.name))
                parent = process.parent()
                doomed += [parent] if parent and parent.name().startswith("slurmstepd") else []
                doomed.append(process)
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if down:
            self.command("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed")

    def processes(self, node: str, word: str = "") -> list[Path]:
        """Folders under /proc of what jobs run on a node, with `word` in their command."""
        wanted = {f"SLURM_CONF={self.root / 'slurm.conf'}", f"SLURMD_NODENAME={node}"}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                variables = (folder / "environ").read_text(errors="replace").split("\0")
                command = (folder / "cmdline").read_text(errors="replace")
                if wanted <= set(variables) and word in command:
                    found.append(folder)
        return found

    def _daemon(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.root / "daemons.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.daemons.append(process)
        return process

    def stop(self) -> None:
        """Cancel all jobs, then stop exactly the daemons that `start` started."""
        try:
            if self.command("squeue", "-h", "-o", "%i"):
                self.command("scancel", "--user=root")
                self.wait(
                    lambda: not self.command("squeue", "-h", "-o", "%i"), "an empty queue", 30
                )
        finally:
            for process in reversed(self.daemons):
                process.terminate()
            for process in self.daemons:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()

    def command(self, *command: str, timeout: float = 60) -> str:
        """Run a client command and return what it prints ("" where it fails)."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        shown = self.command("scontrol", "show", "job", "--oneliner", job_id)
        return dict(item.split("=", 1) for item in shown.split() if "=" in item)

    def submit(self, *command: str) -> str:
        """Run sbatch or launch/submit.py in the repository; returns the job's number."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )
        match = re.search(r"job (\d+)", done.stdout)
        assert match is not None, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
        return match[1]

    def wait(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        """Poll until `condition` holds; fails naming `what`, with the daemons' and jobs' logs."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or any(p.poll() is not None for p in self.daemons):
                pytest.fail(f"waited {timeout:.0f} s for {what}\n{self.logs()}")
            time.sleep(0.2)

    def finish(self, job_id: str, timeout: float) -> None:
        """Wait until the job is over; fails unless it completed."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(
            lambda: self.job(job_id).get("JobState") in over, f"the end of job {job_id}", timeout
        )
        state = self.job(job_id)["JobState"]
        if state != "COMPLETED":
            pytest.fail(f"job {job_id} is {state}\n{self.logs()}")

    def logs(self, num_lines: int = 60) -> str:
        """The queue and the ends of all logs, for a failing test."""
        parts = [
            self.command("sinfo", "-N"),
            self.command("squeue"),
            self.command("scontrol", "show", "job"),
        ]
        for path in sorted(
            [
                *self.root.glob("*.log"),
                *self.root.glob("runs/**/*.out"),
                *self.root.glob("runs/*.jsonl"),
            ]
        ):
            lines = path.read_text(errors="replace").splitlines()[-num_lines:]
            parts.append("\n".join([f"--- {path}", *lines]))
        return "\n".join(parts)
