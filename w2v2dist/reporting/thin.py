"""Curves of hundreds of thousands of points as a page can hold them, with every extreme kept."""

import numpy as np

from w2v2dist.reporting.logs import Floats, Integers

MOST_POINTS = 1_500  # of a curve
TREND_FROM, TREND_POINTS = 400, 200  # records from which on a curve has a trend, and its points


def thin(values: Floats, most: int = MOST_POINTS) -> Integers:
    """The places, ascending, of at most `most` (4 or more) of finite values (N,): the first, the
    last, and the smallest and the largest of each of equally many in a row."""
    if len(values) <= most:
        return np.arange(len(values))
    num_buckets = (most - 2) // 2
    width = -(-len(values) // num_buckets)
    # The last bucket is filled with the last value, whose places are cut to the last one
    padded = np.full(-(-len(values) // width) * width, values[-1])
    padded[: len(values)] = values
    buckets = padded.reshape(-1, width)
    first = np.arange(len(buckets)) * width
    places = [first + buckets.argmin(1), first + buckets.argmax(1), [0, len(values) - 1]]
    return np.unique(np.minimum(np.concatenate(places), len(values) - 1))


def trend(
    steps: Integers, values: Floats, num_points: int = TREND_POINTS
) -> tuple[Integers, Floats]:
    """The means of steps and values (N,) over `num_points` parts of equally many in a row; nothing
    where there are fewer than TREND_FROM."""
    if len(values) < TREND_FROM:
        return steps[:0], values[:0]
    edges = np.linspace(0, len(values), num_points + 1).astype(np.int64)
    counts = np.diff(edges)
    means = np.add.reduceat(values, edges[:-1]) / counts
    middle = np.add.reduceat(steps, edges[:-1]) // counts
    return middle, means
