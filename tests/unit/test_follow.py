"""`w2v2dist status`: of folders, of other hosts, as JSON, and followed on a real terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.run_logs import append, make_run, training_record
from w2v2dist.cli import EXIT_BROKEN_PIPE, main
from w2v2dist.reporting.status import as_json, find_runs, read_status
from w2v2dist.reporting.view import sparkline
from w2v2dist.training import lock

pytestmark = pytest.mark.timeout(300)
ENTER, LEAVE, SHOW = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"  # alternate screen, the cursor
FINISHED = {"event": "finished", "step": 100}


@contextlib.contextmanager
def on_terminal(*arguments: str) -> Iterator[Terminal]:
    """`w2v2dist status` with a terminal of its own."""
    terminal = Terminal(arguments)
    try:
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


def _own_terminal() -> None:
    """Ctrl-C reaches it, also where the tests themselves run in the background and ignore it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _environment() -> dict[str, str]:
    """Without what would hide the terminal's own size and abilities, as rich reads them."""
    hide = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    return {name: value for name, value in os.environ.items() if name not in hide}


class Terminal:
    """A process on a pseudo-terminal of 30 lines and 120 columns."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "w2v2dist.cli", "status", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_own_terminal,
            env={**_environment(), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
        )
        os.close(slave)
        self.shown = ""

    def read(self) -> bool:
        """Read on; False at the end."""
        try:
            self.shown += os.read(self.master, 65_536).decode(errors="replace")
        except OSError:  # its last holder has closed it
            return False
        return True

    def until(self, text: str) -> None:
        """Read until a text was shown; fails where the process ends before."""
        while text not in plain(self.shown):
            assert self.read(), f"ended without {text!r}: {self.shown[-2000:]}"

    def rest(self) -> int:
        """Read to the end; the exit status."""
        while self.read():
            pass
        return self.process.wait(60)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", text)


def test_a_run_is_followed_on_a_terminal_to_its_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with on_terminal(str(run), "--follow", "--interval", "0.1") as terminal:
        terminal.until("waiting for a run")
        make_run(run, host="another")
        terminal.until("30 of 100 (30.0 %)")
        append(run, "metrics", training_record(40, time.time(), contrastive_loss=4.5))
        terminal.until("40 of 100 (40.0 %)")
        terminal.until("4.500 bits  (chance 6.658)")
        terminal.until("h of audio a second (90 × real time), 2 s a step, 5.0 % waiting")
        for text in ("running (on another, seen ", "█▁", "rank 0 on node0: 1.12 ×", "start  world"):
            terminal.until(text)
        append(run, "events", {"event": "preempted", "time": time.time(), "step": 40})
        terminal.until("preempted, waiting for it to be continued")
        append(run, "events", FINISHED | {"time": time.time()})
        assert terminal.rest() == 0
    screen, after = terminal.shown.rsplit(LEAVE, 1)
    assert screen.count(ENTER) == 1
    assert SHOW in terminal.shown
    assert "state      finished" in after  # it stays on the terminal


def test_ctrl_c_ends_the_view_and_restores_the_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", host="another")
    with on_terminal(str(run), "--follow") as terminal:
        terminal.until("30 of 100")
        os.write(terminal.master, b"\x03")
        assert terminal.rest() == 0
        assert terminal.shown.count(LEAVE) == terminal.shown.count(ENTER) == 1
        assert terminal.shown.rindex(SHOW) > terminal.shown.rindex("\x1b[?25l")
        assert "Traceback" not in terminal.shown


def test_sigterm_restores_the_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", host="another")
    with on_terminal(str(run), "--follow") as terminal:
        terminal.until("30 of 100")
        terminal.process.terminate()
        assert terminal.rest() == 143
        assert terminal.shown.count(LEAVE) == 1


def test_a_folder_of_runs_on_a_terminal(tmp_path: Path) -> None:
    make_run(tmp_path / "base", host="another")
    with on_terminal(str(tmp_path), "--follow", "--interval", "0.1") as terminal:
        terminal.until("30/100 (30.0 %)")
        append(tmp_path / "base", "events", FINISHED | {"time": time.time()})
        assert terminal.rest() == 0
    assert "finished" in terminal.shown.rsplit(LEAVE, 1)[1]


def followed(path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "w2v2dist.cli", "status", str(path), "--follow", *options]
    return subprocess.Popen(
        [*command, "--interval", "0.1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_without_a_terminal_there_is_a_line_at_each_change(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", host="another")
    process = followed(run)
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        assert first.startswith("state      running (on another, seen ")
        append(run, "metrics", training_record(40, time.time(), contrastive_loss=5.25))
        while "step 40 of 100" not in (line := process.stdout.readline()):
            assert line
        assert "5.250 bits  90 × real time" in line
        append(run, "events", FINISHED | {"time": time.time()})
        rest, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "\x1b" not in rest
    assert "finished  step 100" in rest
    assert "\nstate      finished\n" in rest


def test_json_has_a_line_at_each_change_and_no_nan(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", host="another")
    with (run / "metrics.jsonl").open("a") as file:  # an older version wrote it so
        file.write(json.dumps(training_record(40, time.time(), contrastive_loss=float("nan"))))
    process = followed(run, "--json")
    assert process.stdout is not None
    try:
        first = json.loads(process.stdout.readline(), parse_constant=pytest.fail)
        append(run, "events", FINISHED | {"time": time.time()})
        rest, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (first["state"], first["step"]) == ("running", 40)
    assert first["metrics"]["contrastive_loss"] is None
    (last,) = (json.loads(line) for line in rest.splitlines())
    assert (last["state"], last["run"]) == ("finished", str(run))


def test_who_reads_may_have_seen_enough(tmp_path: Path) -> None:
    """`status --follow | head -1` ends when it writes again, without a message."""
    run = make_run(tmp_path / "run", host="another")
    process = followed(run)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    deadline = time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < deadline:
            append(run, "metrics", training_record(40, time.time()))
            time.sleep(0.2)
        assert process.returncode == EXIT_BROKEN_PIPE
    finally:
        process.kill()


def test_a_folder_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "base", host="another")
    tuned = make_run(tmp_path / "finetune" / "base_10h", host="another", ago=20_000)
    append(tuned, "metrics", {"step": 30, "valid/wer": 0.125, "time": time.time() - 20_000})
    make_run(tmp_path / "a" / "b" / "c" / "too_deep")
    (tmp_path / "base" / "evaluations" / "x").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.yaml").write_text("not: a run\n")
    assert find_runs(tmp_path) == [tmp_path / "base", tuned]
    assert main(["status", str(tmp_path)]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "step"]
    assert re.match(r"base +running +30/100 \(30.0 %\) +6.000 bits +90 × +5.0 % +2 min", first)
    assert re.match(r"finetune/base_10h +silent +30/100 .* 12.5 % wer .* 6 h ago", second)
    assert main(["status", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["state"] for s in found] == ["running", "silent"]


def test_a_folder_without_any_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "and no run in the folders up to three levels under it" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "none")]) == 2
    assert "none is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["status", str(tmp_path), "--interval", "0"])


@pytest.mark.parametrize(
    ("host", "ago", "state"),
    [
        ("another", 12, "running"),
        ("another", 1_000, "silent"),
        ("another", 100_000, "stopped"),
        ("another", -50, "running"),  # its clock is ahead
        (platform.node(), 12, "stopped"),  # whoever held the lock is dead
        ("", 12, "running"),
        ("", 1_000, "stopped"),
    ],
)
def test_a_run_on_another_host(tmp_path: Path, host: str, ago: float, state: str) -> None:
    run = make_run(tmp_path / "run", host=host, ago=ago)
    assert read_status(run)["state"] == state


@pytest.mark.parametrize(
    ("last", "state", "ends"),
    [
        ({"event": "finished", "step": 100}, "finished", True),
        ({"event": "preempted", "step": 30}, "preempted", False),
        ({"event": "alarm", "alarm": "chance", "step": 30, "action": "stop"}, "stopped", True),
        ({"event": "alarm", "alarm": "chance", "step": 30, "action": "log"}, "running", False),
    ],
)
def test_what_was_said_last_counts_on_every_host(
    tmp_path: Path, last: dict[str, Any], state: str, ends: bool
) -> None:
    run = make_run(tmp_path / "run", host="another")
    append(run, "events", last | {"time": time.time()})
    status = read_status(run)
    assert (status["state"], status["ends"]) == (state, ends)


def test_where_there_is_no_lock_service_a_dead_process_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", host=platform.node())

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    assert read_status(run)["state"] == "running"  # this process has that number
    ended = subprocess.Popen(["true"])
    ended.wait()
    (run / "lock").write_text(f"process {ended.pid} on {platform.node()}, Slurm job none\n")
    assert read_status(run)["state"] == "stopped"


@pytest.mark.parametrize("damage", ["loop: [", "just text", "loop: {max_steps: many}", None])
def test_a_damaged_configuration_hides_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str | None
) -> None:
    run = make_run(tmp_path / "run", host="another")
    (run / "config.yaml").unlink()
    if damage is not None:
        (run / "config.yaml").write_text(damage)
    status = read_status(run)
    assert (status["step"], status["max_steps"], status["seconds_left"]) == (30, None, None)
    assert main(["status", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "step       30\n" in shown
    assert ("problem" in shown) == (damage != "loop: {max_steps: many}")


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    for path in run.glob("*.jsonl"):
        path.unlink()
    old = [{"step": s, "loss": 2.0, "seconds": 5.0, "audio_hours": 0.5} for s in (10, 20)]
    append(run, "metrics", *old)
    status = read_status(run)
    assert (status["step"], status["audio_hours"], status["slowest_rank"]) == (20, 1.0, None)
    assert (status["data_wait"], status["last_sign_of_life"]) == (0.0, None)
    assert status["seconds_silent"] < 100  # as the file says


def test_a_model_that_is_not_trained_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model" / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "model" / "config.yaml").write_text("task: finetune\nmodel: {}\n")
    assert main(["status", str(tmp_path), "--follow"]) == 0  # nothing to wait for
    assert re.search(r"model +imported", capsys.readouterr().out)


def test_a_sparkline_is_means_from_lowest_to_highest() -> None:
    assert sparkline([1.0, 2.0, None, 3.0], 8) == "▁▅█"
    assert sparkline([float(i // 10) for i in range(80)], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0], 8) == "▁▁"
    assert sparkline([1.0], 8) == ""
    assert sparkline([0.0, 9.0], 8, "_#") == "_#"


def test_json_is_what_every_reader_parses() -> None:
    assert as_json({"a": [float("nan"), float("inf"), 1.5], "b": None}) == (
        '{"a": [null, null, 1.5], "b": null}'
    )


def test_status_waits_for_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "run", host="another")
    code = "import sys; from w2v2dist.cli import main; main(sys.argv[1:])\n"
    code += "print({'torch', 'numpy'} & set(sys.modules))"
    command = [sys.executable, "-c", code, "status", str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert out.stdout.endswith("set()\n"), out.stderr
