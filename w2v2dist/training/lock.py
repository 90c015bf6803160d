"""Who trains in a run folder: one process at a time holds its lock."""

import contextlib
import fcntl
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from w2v2dist.config import ConfigError
from w2v2dist.runtime.files import in_the_way


class InUseError(RuntimeError):
    """Another process trains in the run folder."""


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run folder for this process, until it ends in whatever way (a POSIX record lock, which
    workers do not inherit, where there are locks). Raises InUseError where another has it,
    ConfigError where a file is in its place."""
    if why := in_the_way(run_dir, "run_dir"):
        raise ConfigError(why)
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("a+", encoding="utf-8") as file:
        started = time.monotonic()
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                file.seek(0)
                owner = file.read().strip()
                # A dead process of this host has let go; of a dead host the file server must notice
                wait_s = 5 if f"on {platform.node()}," in owner else 150
                if time.monotonic() - started > wait_s:
                    raise InUseError(
                        f"{run_dir} is in use by {owner}: wait for it or end it, or use another "
                        f"run_dir"
                    ) from None
                time.sleep(0.5)
            except OSError:  # no lock service
                break
        file.seek(0)
        file.truncate()
        job = os.environ.get("SLURM_JOB_ID", "none")
        file.write(f"process {os.getpid()} on {platform.node()}, Slurm job {job}\n")
        file.flush()
        yield


@dataclass(frozen=True, slots=True)
class Holder:
    """The last process that held a run folder."""

    text: str  # as it wrote itself; "" where there was none
    alive: bool | None  # None: this host cannot tell

    @property
    def host(self) -> str:
        """Where it runs or ran; "" where it is not known."""
        found = re.search(r" on (.+), Slurm job ", self.text)
        return found[1] if found else ""


def last_holder(run_dir: Path) -> Holder:
    """Who held a run folder last. Not for the holder itself: closing the file would let go."""
    locks = True
    try:
        with (run_dir / "lock").open(encoding="utf-8", errors="replace") as file:
            text = file.read().strip()
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return Holder(text, True)
            except OSError:  # no lock service
                locks = False
    except OSError:
        return Holder("", None)
    holder = Holder(text, None)
    # Another host's lock may not be shown here, but this host's is
    if holder.host == platform.node() and (locks or not _exists(text)):
        return Holder(text, False)
    return holder


def _exists(text: str) -> bool:
    """Whether this host has a process of that number; it may be another one by now."""
    found = re.match(r"process (\d+) ", text)
    return found is None or Path("/proc", found[1]).exists()
