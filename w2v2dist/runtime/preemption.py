"""Signals set a flag; ranks agree on it at a step boundary and save together, in no handler."""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved, run the same command again to continue


class PreemptionFlag:
    """The number of the last signal of SIGNALS that this process received, 0 for none, and the
    time.monotonic() of the first."""

    def __init__(self) -> None:
        self.signal_number = 0
        self.arrived: float | None = None

    def set(self, number: int, frame: FrameType | None = None) -> None:
        """Signal handler: remember the signal and when it came, do nothing else."""
        self.signal_number = max(self.signal_number, int(number))
        self.arrived = self.arrived or time.monotonic()

    def seconds_since(self) -> float:
        """Since the first signal; 0 where none came."""
        return time.monotonic() - self.arrived if self.arrived else 0.0

    @contextlib.contextmanager
    def installed(self) -> Iterator["PreemptionFlag"]:
        """Handle SIGNALS by setting this flag for the duration of the block."""
        previous = {number: signal.signal(number, self.set) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
