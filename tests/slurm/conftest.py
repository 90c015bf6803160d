"""The private Slurm cluster of the tests, started once for all of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster; skips where Slurm is not installed or the tests do not run as root."""
    missing = [
        p
        for p in ("slurmctld", "slurmd", "munged")
        if shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: run tests/slurm/install.sh")
    if os.geteuid() != 0:
        pytest.skip("a private Slurm with several nodes on one machine needs root")
    root = Path(tempfile.mkdtemp(prefix="w2v2-slurm-"))
    root.chmod(0o755)  # munge runs as its own user
    cluster = Cluster(root)
    cluster.configure(user_signal=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
    shutil.rmtree(root)
