"""Mutations of real inputs, for the tests of what reads them: a result, or an error of ours in a
line; never a traceback, a hang, or an error of another's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# In `make test` a few, in `make test-slow` more
EXAMPLES = [pytest.param(40, id="few"), pytest.param(5_000, id="many", marks=pytest.mark.slow)]
SLOWEST_S = 30.0  # an input that takes longer hangs


@st.composite
def mutated(draw: st.DrawFn, bases: list[bytes]) -> bytes:
    """One of the inputs with some bytes changed, cut out, doubled or cut off."""
    content = bytearray(draw(st.sampled_from(bases)))
    # Headers stand at the start: most changes go there
    place = st.integers(0, min(200, len(content))) | st.integers(0, len(content))
    for _ in range(draw(st.integers(1, 6))):
        at, kind = min(draw(place), len(content)), draw(st.integers(0, 4))
        if kind == 0 and at < len(content):
            content[at] = draw(st.integers(0, 255))
        elif kind == 1:
            content[at:at] = draw(st.binary(max_size=8))
        elif kind == 2:
            del content[at : at + draw(st.integers(1, 64))]
        elif kind == 3:
            content[at:at] = content[at : at + draw(st.integers(1, 200))]
        else:
            size = draw(st.sampled_from([1, 2, 4, 8]))
            content[at : at + size] = draw(st.sampled_from([b"\x00", b"\xff", b"\x7f"])) * size
    return bytes(content)


def fuzz(
    examples: int,
    bases: list[bytes],
    read: Callable[[bytes], Any],
    ours: tuple[type[Exception], ...],
    check: Callable[[Any], None] = lambda result: None,
) -> None:
    """Read mutations of `bases`: `read` gives a result, which `check` looks at, or one of `ours`,
    in few lines and without the words of a traceback."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize="FUZZ" not in os.environ,  # FUZZ=1: other inputs each time
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(bases))
    def run(content: bytes) -> None:
        started = time.monotonic()
        message, result = "a result", None
        try:
            result = read(content)
        except ours as error:
            message = str(error)
        else:
            check(result)
        assert message.strip()
        assert "Traceback" not in message
        assert message.count("\n") <= 20, message  # mistakes of a configuration: a line each
        assert time.monotonic() - started < SLOWEST_S

    run()
