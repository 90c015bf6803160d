"""Processes of ours: signals reach them through the one that started them, and they end with it."""

import ctypes
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

PR_SET_PDEATHSIG = 1
# What a process that has children catches, to pass it on
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def start_child(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Popen of `command`; the terminal's Ctrl-C does not reach it, and TERM does when this process
    dies."""
    return subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        **options,
    )
