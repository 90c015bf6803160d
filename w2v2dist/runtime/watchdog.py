"""A hang is a failure: a process that makes no progress says where it stands and ends."""

import faulthandler
from pathlib import Path


class Watchdog:
    """Ends this process with status 1 when `progress` was not called for `timeout_s` seconds (0:
    never), after writing the stacks of all its threads to `path`. Works while Python is stuck in a
    collective; the time that a process is suspended counts."""

    def __init__(self, path: Path, timeout_s: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._timeout_s = path, timeout_s
        self._file = path.open("a")
        self.progress()

    def progress(self) -> None:
        """Start the time anew."""
        if self._timeout_s:
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._file)

    def close(self) -> None:
        """Stop watching; nothing is left of a watchdog that never barked."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()
