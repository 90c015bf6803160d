"""How well a training spreads over more GPUs, on paper: the exchange of its gradients and weights
against its computation. What one GPU alone does is 100 %."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from w2v2dist.jobs.devices import LINKS, Device, Link
from w2v2dist.jobs.roofline import Prediction, predict
from w2v2dist.jobs.work import Config

NUM_GPUS = (8, 64, 128, 512)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaled:
    """A training on so many GPUs."""

    num_gpus: int
    link: Link
    num_slots: int  # of its batch: where GPUs are more than the batch has slots, that is larger
    prediction: Prediction
    efficiency: float  # audio a second and GPU, as a share of what one GPU alone does


def scaled(
    config: Config,
    device: Device,
    gpus_per_node: int = 8,
    numbers: Sequence[int] = NUM_GPUS,
    links: Sequence[Link] = tuple(LINKS.values()),
) -> Iterator[Scaled]:
    """`config` on each number of GPUs and each kind of link, its batch enlarged where it must be.
    What is computed per slot does not change, so neither does its time on one GPU."""
    for link in links:
        for number in numbers:
            num_slots = max(config.data.virtual_world_size, number)
            larger = _with_slots(config, num_slots)
            alone = predict(larger, device)
            many = predict(larger, device, number, -(-number // gpus_per_node), link)
            yield Scaled(
                num_gpus=number,
                link=link,
                num_slots=num_slots,
                prediction=many,
                efficiency=alone.step_seconds / number / many.step_seconds,
            )


def _with_slots(config: Config, num_slots: int) -> Config:
    data: Any = dataclasses.replace(config.data, virtual_world_size=num_slots)
    return dataclasses.replace(config, data=data)
