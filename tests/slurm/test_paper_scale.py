"""The paper's cluster, 16 nodes of 8 GPUs: what a real controller says to the script that
launch/submit.py prints. No node has to run for that: they are declared as a cloud's, which Slurm
would start."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.submit import main
from tests.slurm.cluster import CONFIGURATION, REPOSITORY, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400, func_only=True)]
NODES = """
GresTypes=gpu
ResumeProgram=/bin/true
SuspendProgram=/bin/true
PrivateData=cloud
NodeName=n[1-16] CPUs=96 RealMemory=1000000 Gres=gpu:8 State=CLOUD
"""


@pytest.fixture(scope="module")
def sixteen_nodes() -> Iterator[Cluster]:
    """A controller that knows 16 nodes of 8 GPUs; skips as the cluster of the other tests does."""
    if shutil.which("slurmctld", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("slurmctld is not installed: run tests/slurm/install.sh")
    root = Path(tempfile.mkdtemp(prefix="w2v2-slurm-"))
    root.chmod(0o755)  # munge runs as its own user
    cluster = Cluster(root)
    text = CONFIGURATION.replace("n[1-4]", "n[1-16]")
    host = cluster.command("hostname", "-s")
    values = {"nodes": NODES, "parameters": "", "slurmd_timeout": 60}
    text = text.format(host=host, port=cluster.ports[0], root=root, **values)
    (root / "slurm.conf").write_text(text)
    try:
        cluster.start_controller()
        states = ("sinfo", "-h", "-N", "-p", "train", "-o", "%T")
        idle = ["idle~"] * 16  # ~: it would be powered up
        cluster.wait(lambda: cluster.command(*states).split() == idle, "16 nodes to be known", 60)
        yield cluster
    finally:
        cluster.stop()
    shutil.rmtree(root)


def sbatch_test_only(cluster: Cluster, script: str) -> subprocess.CompletedProcess[str]:
    """What `sbatch --test-only` says to a script."""
    return subprocess.run(
        ["sbatch", "--test-only"],
        input=script,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("nodes", ["16", "12-16"])
def test_the_job_of_the_paper_fits(
    sixteen_nodes: Cluster, nodes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--nodes", nodes, str(REPOSITORY / "configs/large_lv60k.yaml"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    script = printed[printed.index("#!/bin/bash") :]
    tested = sbatch_test_only(sixteen_nodes, script)
    assert tested.returncode == 0, tested.stderr
    assert "on nodes n[1-16] in partition train" in tested.stderr
    # The controller does tell a job that fits from one that does not
    for fits, too_much in ((f"--nodes={nodes}", "--nodes=17"), ("node=8\n", "node=9\n")):
        assert fits in script
        refused = sbatch_test_only(sixteen_nodes, script.replace(fits, too_much))
        assert refused.returncode == 1
        assert "Requested node configuration is not available" in refused.stderr
