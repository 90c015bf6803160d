"""Learning rates against the reference implementation's formulas, written out step by step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v2dist.model.config import TemperatureConfig, temperature
from w2v2dist.training.schedules import LoopConfig, ScheduleConfig, learning_rate, warmup_steps


@settings(deadline=None)
@given(
    warmup=st.integers(0, 50), decay=st.integers(1, 50), peak=st.floats(1e-6, 1e-2), data=st.data()
)
def test_linear_is_polynomial_decay_of_power_1(
    warmup: int, decay: int, peak: float, data: st.DataObject
) -> None:
    max_steps = warmup + decay
    step = data.draw(st.integers(1, max_steps))
    config = ScheduleConfig(peak_lr=peak, warmup_steps=warmup)
    expected = peak * step / warmup if step <= warmup else peak * (max_steps - step) / decay
    assert learning_rate(config, step, max_steps) == pytest.approx(expected)


def test_linear_ends_of_base() -> None:
    config = ScheduleConfig(peak_lr=5e-4, warmup_steps=32_000)
    assert learning_rate(config, 1, 400_000) == pytest.approx(5e-4 / 32_000)
    assert learning_rate(config, 32_000, 400_000) == 5e-4
    assert learning_rate(config, 216_000, 400_000) == pytest.approx(2.5e-4)
    assert learning_rate(config, 400_000, 400_000) == 0


def test_cosine_is_half_a_wave() -> None:
    config = ScheduleConfig(name="cosine", peak_lr=2.0, warmup_steps=10)
    assert [learning_rate(config, step, 110) for step in (1, 5, 10)] == [0.2, 1.0, 2.0]
    for step in range(10, 111):
        expected = 1 + math.cos(math.pi * (step - 10) / 100)
        assert learning_rate(config, step, 110) == pytest.approx(expected, abs=1e-12)


def tri_stage(step: int, max_steps: int, peak: float) -> float:
    """fairseq's tri_stage_lr_scheduler with phase_ratio [0.1, 0.4, 0.5], its stages in turn."""
    warmup, hold, decay = int(max_steps * 0.1), int(max_steps * 0.4), int(max_steps * 0.5)
    initial, final = 0.01 * peak, 0.05 * peak
    if step < warmup:
        return initial + (peak - initial) / warmup * step
    step -= warmup
    if step < hold:
        return peak
    step -= hold
    if step <= decay:
        return peak * math.exp(-(-math.log(0.05) / decay) * step)
    return final


@given(max_steps=st.integers(2, 40).map(lambda n: 10 * n), peak=st.floats(1e-6, 1e-2))
def test_tri_stage(max_steps: int, peak: float) -> None:
    config = ScheduleConfig(name="tri_stage", peak_lr=peak)
    for step in range(1, max_steps + 1):
        expected = tri_stage(step, max_steps, peak)
        assert learning_rate(config, step, max_steps) == pytest.approx(expected)


def test_tri_stage_ends() -> None:
    config = ScheduleConfig(name="tri_stage", peak_lr=1.0)
    assert learning_rate(config, 1000, 10_000) == 1
    assert learning_rate(config, 5000, 10_000) == 1
    assert learning_rate(config, 10_000, 10_000) == pytest.approx(0.05)


@given(updates=st.integers(0, 2_000_000))
def test_temperature_decays_per_update_to_its_floor(updates: int) -> None:
    expected = max(0.5, 2 * math.exp(updates * math.log(0.999995)))
    assert temperature(TemperatureConfig(), updates) == pytest.approx(expected)


def test_temperature_of_base_reaches_the_floor_before_the_end() -> None:
    config = TemperatureConfig()
    assert temperature(config, 0) == 2
    assert temperature(config, 277_000) > 0.5
    assert temperature(config, 278_000) == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peak_lr": 0.0}, "peak_lr is 0.0 but must be positive"),
        ({"warmup_steps": -1}, "warmup_steps is -1 but must not be negative"),
        ({"warmup_fraction": 0.7}, "warmup_fraction is 0.7, hold_fraction 0.4 but their sum must"),
        ({"final_scale": 0.0}, "initial_scale is 0.01, final_scale 0.0 but both must be positive"),
    ],
)
def test_bad_schedules(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**values)  # type: ignore[arg-type]


def test_bad_temperature() -> None:
    with pytest.raises(ValueError, match="floor is 3"):
        TemperatureConfig(floor=3)


def test_the_watchdog_speaks_before_a_time_out() -> None:
    assert LoopConfig().stall_s == 1620  # of 1800 and 1800
    assert LoopConfig(timeout_s=3600).stall_s == 1800
    assert LoopConfig(timeout_s=1).stall_s == 1
    assert LoopConfig(stall_timeout_s=0).stall_s == 0


def test_constant_is_constant() -> None:
    config = ScheduleConfig(name="constant", peak_lr=4e-4)
    assert {learning_rate(config, step, 100) for step in (1, 50, 100)} == {4e-4}
    assert warmup_steps(config, 100) == 0
