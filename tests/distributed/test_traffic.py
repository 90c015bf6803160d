"""What real processes exchange at each ZeRO stage, against the plan's formula."""

from __future__ import annotations

import pytest

from benchmarks import scaling


def check(cases: list[tuple[str, int]], num_processes: int) -> None:
    for (precision, stage), counted in zip(cases, scaling.run(cases, num_processes), strict=True):
        plan = scaling.expected(counted, precision, stage)
        planned: dict[str, float] = {}
        for one in plan:
            planned[one.kind] = planned.get(one.kind, 0.0) + one.num_bytes * one.times
        assert counted["collectives"] == pytest.approx(planned, rel=0.005), (precision, stage)
        # On the wire, with gloo's own messages
        sends = scaling.gloo_sends(plan, num_processes)
        assert counted["sent"] == pytest.approx(sends, rel=0.02), (precision, stage)


def test_the_formula_is_what_processes_exchange() -> None:
    check([("bf16", 1), ("bf16", 3)], 2)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_at_every_stage(num_processes: int) -> None:
    check(scaling.CASES, num_processes)
