"""The short form of `make chaos`: one attack of each of four kinds on one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.chaos import SLURMD_TIMEOUT_S, run_chaos
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900, func_only=True)]


def test_an_attacked_run_ends_as_the_uninterrupted_one(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    cluster.configure(user_signal=True, slurmd_timeout=SLURMD_TIMEOUT_S)
    cluster.command("scontrol", "reconfigure")
    kinds = ["kill in a save", "damage the checkpoint", "lose a node", "change the nodes"]
    findings = run_chaos(cluster, tmp_path, shards, kinds, seed=1)
    assert all(ok for ok, _ in findings), (tmp_path / "report.md").read_text()
