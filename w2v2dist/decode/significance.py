"""How sure an error rate is, and whether two differ: the bootstrap over utterances (Bisani and Ney,
2004)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from w2v2dist.runtime.keyed import keyed_rng

NUM_DRAWS = 10_000
LEVEL = 0.95
AT_ONCE = 4_000_000  # utterances drawn


def interval(errors: Sequence[int], num_units: Sequence[int]) -> tuple[float, float]:
    """The interval of an error rate that holds LEVEL of the draws; `errors` and `num_units` of
    each utterance."""
    rates = _drawn(np.array(errors), np.array(num_units))
    low, high = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def seeds_interval(rates: Sequence[float]) -> tuple[float, float]:
    """The interval at LEVEL of the mean of two or more seeds' error rates, by Student's t: what
    other seeds would change, not what other utterances would."""
    half = t_quantile(len(rates) - 1) * statistics.stdev(rates) / math.sqrt(len(rates))
    mean = statistics.fmean(rates)
    return max(0.0, mean - half), mean + half


def t_quantile(freedom: int) -> float:
    """The t that |T| stays below with probability LEVEL; `freedom`: degrees of it, 1 or more."""
    low, high = 0.0, math.pi / 2  # of the angle with t = sqrt(freedom) tan(angle)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < LEVEL else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _t_below(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd, sine, square = freedom % 2, math.sin(angle), math.cos(angle) ** 2
    term, total = 1.0, 0.0
    for i in range((freedom - odd) // 2):
        total += term
        term *= square * (2 * i + 1 + odd) / (2 * i + 2 + odd)
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + sine * math.cos(angle) * total)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of two systems on the same utterances: `difference` is the error rate of the first less that
    of the second, with its interval; `p_value`, two-sided, how likely so large a one is by chance
    where they are equally good."""

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether they differ at LEVEL."""
        return self.p_value < 1 - LEVEL


def compare(first: Sequence[int], second: Sequence[int], num_units: Sequence[int]) -> Comparison:
    """Compare the errors of two systems, utterance by utterance (the paired bootstrap)."""
    lost, units = np.array(first) - np.array(second), np.array(num_units)
    drawn = _drawn(lost, units)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    beyond = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p_value = min(1.0, 2 * (beyond + 1) / (NUM_DRAWS + 1))
    return Comparison(float(lost.sum() / max(units.sum(), 1)), float(low), float(high), p_value)


def _drawn(errors: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.float64]:
    """The rate of each draw of as many utterances, with replacement."""
    rng, number = keyed_rng("bootstrap"), len(errors)
    step = max(1, AT_ONCE // max(number, 1))
    rates = []
    for first in range(0, NUM_DRAWS, step):
        rows = rng.integers(number, size=(min(step, NUM_DRAWS - first), number))
        rates.append(errors[rows].sum(1) / np.maximum(units[rows].sum(1), 1))
    return np.concatenate(rates)
