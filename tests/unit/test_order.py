"""The order of the data is a pure function, every sample is used once an epoch, and any world size
sees the same."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v2dist.config import ConfigError, from_dict
from w2v2dist.data.audio import resample
from w2v2dist.data.batching import MicroBatch, batch_by_size, num_batches, validation_batches
from w2v2dist.data.config import DataConfig
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.index_writer import ShardEntry, write_index
from w2v2dist.data.line import Line
from w2v2dist.data.loader import MicroBatches
from w2v2dist.data.order import DataOrder
from w2v2dist.data.reader import ShardReader
from w2v2dist.runtime.distributed import VirtualRanks
from w2v2dist.runtime.keyed import keyed_rng
from w2v2dist.tasks.train import read_config

CONFIGS = Path(__file__).parents[2] / "configs"


def make_index(folder: Path, lengths: list[list[int]]) -> ShardIndex:
    """An index of shards with utterances of the given lengths; no audio is ever needed."""
    entries = []
    for k, shard in enumerate(lengths):
        n = len(shard)
        entry = ShardEntry(path=f"x-{k:06d}.tar", bytes=1, sha256="")
        entry.keys = [f"{k}-{i}" for i in range(n)]
        entry.speakers = [None] * n
        entry.num_samples = shard
        entry.offset = entry.size = entry.label_offset = entry.label_size = [0] * n
        entries.append(entry)
    write_index(folder, "x", entries, {})
    return ShardIndex.load(folder)


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    rng = np.random.default_rng(0)
    return make_index(
        tmp_path, [rng.integers(10_000, 200_000, n).tolist() for n in (50, 3, 120, 0, 77)]
    )


CONFIG = DataConfig(
    virtual_world_size=6,
    max_samples_per_slot=300_000,
    max_crop=100_000,
    min_samples=32_000,
    shuffle_window=20,
)


def stream(order: DataOrder, slot: int, num_epochs: int) -> list[MicroBatch]:
    out = []
    step = 1
    while (micro := order.micro_batch(step, slot)).epoch < num_epochs:
        out.append(micro)
        step += 1
    return out


def test_every_eligible_utterance_is_used_exactly_once_an_epoch(index: ShardIndex) -> None:
    order = DataOrder(index, CONFIG, seed=3, crop=True)
    for epoch in range(3):
        used = Counter(
            int(i)
            for slot in range(6)
            for m in stream(order, slot, 3)
            if m.epoch == epoch
            for i in m.ids
        )
        assert used == Counter(np.flatnonzero(index.num_samples >= 32_000).tolist())


def walk(index: ShardIndex, config: DataConfig, slot: int, num_epochs: int) -> list[Any]:
    """(epoch, ids, percents) of a slot's pre-training micro-batches: every plan, utterance by
    utterance, as the design states it."""
    percents = [round(100 * speed) for speed in config.speed_perturbation]
    out = []
    for epoch in range(num_epochs):
        draws = keyed_rng(1, "speed", epoch).integers(len(percents), size=len(index))
        size = {i: int(n) * 100 // percents[draws[i]] for i, n in enumerate(index.num_samples)}
        shards = keyed_rng(1, "shards", epoch).permutation(len(index.shard_paths))
        line = [
            i
            for k in shards
            for i in range(index.shard_first[k], index.shard_first[k + 1])
            if int(index.num_samples[i]) * 100 // max(percents) >= config.min_samples
        ]
        low, high = (len(line) * s // config.virtual_world_size for s in (slot, slot + 1))
        for first in range(0, high - low, config.shuffle_window):
            rng = keyed_rng(1, "window", epoch, slot, first)
            window = rng.permutation(line[low:high][first : first + config.shuffle_window])
            rest = sorted(window.tolist(), key=lambda i: -min(size[i], config.max_crop))
            batches = []
            while rest:
                longest = min(size[rest[0]], config.max_crop)
                count = max(1, config.max_samples_per_slot // longest)
                batches.append(rest[:count])
                rest = rest[count:]
            for k in rng.permutation(len(batches)):
                out.append((epoch, batches[k], [percents[draws[i]] for i in batches[k]]))
    return out


@pytest.mark.parametrize("speeds", [(1.0,), (0.9, 1.0, 1.1)])
@pytest.mark.parametrize("window", [1, 20, 1_000])
def test_any_jump_lands_where_planning_every_epoch_does(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch, speeds: tuple[float, ...], window: int
) -> None:
    monkeypatch.setattr("w2v2dist.data.line.DRAWN_AT_ONCE", 97)
    config = replace(CONFIG, shuffle_window=window, speed_perturbation=speeds)
    plans = {slot: walk(index, config, slot, 3) for slot in (0, 2, 5)}
    order, rng = DataOrder(index, config, seed=1, crop=True), np.random.default_rng(0)
    for _ in range(200):  # forwards and backwards, between slots
        slot = int(rng.choice(list(plans)))
        step = int(rng.integers(len(plans[slot]))) + 1
        micro = order.micro_batch(step, slot)
        expected = plans[slot][step - 1]
        assert (micro.epoch, micro.ids.tolist(), micro.percent.tolist()) == expected


def test_the_order_is_that_of_the_first_release(index: ShardIndex) -> None:
    digest = hashlib.sha256()
    for crop in (True, False):
        order = DataOrder(index, replace(CONFIG, speed_perturbation=SPEEDS), seed=7, crop=crop)
        for micro in (order.micro_batch(step, slot) for step in (1, 9, 50) for slot in range(6)):
            for values in (micro.ids, micro.starts, micro.num_samples, micro.percent):
                digest.update(values.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "98d4788e6cdbb6be"


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 90), max_size=60), limit=st.integers(90, 400))
def test_micro_batches_are_counted_without_making_them(sizes: list[int], limit: int) -> None:
    array = np.array(sizes, np.int64)
    assert num_batches(array, limit) == len(batch_by_size(array, array, limit))


def test_no_process_keeps_anything_of_the_length_of_the_index(tmp_path: Path) -> None:
    index = make_index(tmp_path, [[40_000 + i for i in range(2_000)]] * 10)
    config = replace(CONFIG, speed_perturbation=SPEEDS)
    order = DataOrder(index, config, seed=1, crop=True)
    for slot in range(6):
        order.micro_batch(3_000, slot)
    # The index itself is mapped again by whoever unpickles it
    assert len(pickle.dumps(order)) < len(index)


def test_a_step_costs_the_same_at_any_step_epoch_and_size_of_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: utterances of the index that are looked at for 300 steps in a row."""
    seen = [0]
    eligible = Line._eligible

    def counting(self: Line, first: int, last: int) -> Any:
        seen[0] += last - first
        return eligible(self, first, last)

    monkeypatch.setattr(Line, "_eligible", counting)
    costs = []
    for num_shards in (8, 80):
        (folder := tmp_path / str(num_shards)).mkdir()
        index = make_index(folder, [[60_000] * 50] * num_shards)
        order = DataOrder(index, CONFIG, seed=1, crop=True)
        for first in (1, 6_001):
            begin = order.micro_batch(first, 0)  # what lies before is counted once, at the start
            seen[0] = 0
            for step in range(first + 1, first + 301):
                end = order.micro_batch(step, 0)
            costs.append(seen[0])
            assert end.epoch > begin.epoch or num_shards > 8
    assert max(costs) < 1.5 * min(costs)


def test_epochs_and_seeds_differ(index: ShardIndex) -> None:
    def first(seed: int, epoch: int) -> list[list[int]]:
        order = DataOrder(index, CONFIG, seed=seed, crop=True)
        return [m.ids.tolist() for m in stream(order, 0, epoch + 1) if m.epoch == epoch]

    assert first(1, 0) == first(1, 0)
    assert first(1, 0) != first(1, 1)
    assert first(1, 0) != first(2, 0)


def test_a_jump_to_a_step_gives_what_a_walk_gives(index: ShardIndex) -> None:
    walked = DataOrder(index, CONFIG, seed=1, crop=True)
    for step in range(1, 60):
        expected = walked.micro_batch(step, 2)
    jumped = DataOrder(index, CONFIG, seed=1, crop=True).micro_batch(59, 2)
    assert jumped.epoch == expected.epoch >= 2
    for name in ("ids", "starts", "num_samples"):
        assert getattr(jumped, name).tolist() == getattr(expected, name).tolist()


def test_crops_have_one_length_fit_the_audio_and_respect_the_limits(index: ShardIndex) -> None:
    order = DataOrder(index, CONFIG, seed=1, crop=True)
    starts = []
    for micro in stream(order, 1, 2):
        assert len(set(micro.num_samples.tolist())) == 1
        assert (micro.starts >= 0).all()
        assert (micro.starts + micro.num_samples <= index.num_samples[micro.ids]).all()
        assert micro.num_samples[0] <= CONFIG.max_crop
        assert micro.num_samples.sum() <= CONFIG.max_samples_per_slot
        assert (index.num_samples[micro.ids] >= CONFIG.min_samples).all()
        starts += micro.starts.tolist()
    assert len(set(starts)) > 10


def test_crop_multiple_leaves_few_shapes(index: ShardIndex) -> None:
    config = DataConfig(
        virtual_world_size=2,
        max_samples_per_slot=300_000,
        max_crop=100_000,
        min_samples=32_000,
        crop_multiple=16_000,
    )
    order = DataOrder(index, config, seed=1, crop=True)
    lengths = {int(m.num_samples[0]) for m in stream(order, 0, 1)}
    assert lengths <= {32_000, 48_000, 64_000, 80_000, 96_000}


@pytest.mark.parametrize("name", ["base_ls960", "large_lv60k"])
def test_the_papers_micro_batches_have_few_shapes(tmp_path: Path, name: str) -> None:
    """Lengths as LibriSpeech's: a peak at 12 to 16.5 s and a broad part. Of a process that runs one
    slot: a GPU's libraries make a plan for every shape."""
    rng = np.random.default_rng(0)
    seconds = np.concatenate([rng.normal(14.3, 1.2, 18_000), rng.uniform(2, 13, 12_000)])
    lengths = (np.clip(rng.permutation(seconds), 2, 24) * 16_000).astype(int)
    index = make_index(tmp_path, [lengths.tolist()])
    data = read_config(str(CONFIGS / f"{name}.yaml"), ["data.virtual_world_size=1"]).data
    found: dict[int, list[MicroBatch]] = {}
    for multiple in (data.crop_multiple, 1):
        order = DataOrder(index, replace(data, crop_multiple=multiple), seed=1, crop=True)
        found[multiple] = [order.micro_batch(step, 0) for step in range(1, 1_001)]
    few, many = ({(len(m.ids), int(m.num_samples[0])) for m in of} for of in found.values())
    assert len(few) < 200 < 700 < len(many)
    kept = [sum(int(m.num_samples.sum()) for m in of) for of in found.values()]
    assert 0.99 < kept[0] / kept[1] < 1


def test_fine_tuning_uses_whole_utterances_and_leaves_out_longer_ones(index: ShardIndex) -> None:
    order = DataOrder(index, CONFIG, seed=1, crop=False)
    for micro in stream(order, 0, 1):
        assert micro.num_samples.tolist() == index.num_samples[micro.ids].tolist()
        assert (micro.num_samples <= CONFIG.max_crop).all()
        assert not micro.starts.any()


def test_length_groups_waste_little(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    index = make_index(tmp_path, [rng.integers(32_000, 240_000, 2000).tolist()])
    config = DataConfig(virtual_world_size=2, max_samples_per_slot=1_400_000, max_crop=250_000)
    order = DataOrder(index, config, seed=1, crop=True)
    used = sum(int(m.num_samples.sum()) for s in (0, 1) for m in stream(order, s, 1))
    assert used / int(index.num_samples.sum()) > 0.97  # cropping to the shortest loses under 3 %


@settings(max_examples=40, deadline=None)
@given(num_slots=st.integers(1, 40), world_size=st.integers(1, 40))
def test_slots_are_partitioned_over_any_world_size(num_slots: int, world_size: int) -> None:
    virtual = VirtualRanks(num_slots)
    if world_size > num_slots:
        with pytest.raises(
            ValueError, match=rf"virtual_world_size is {num_slots} .* {world_size} processes"
        ):
            virtual.slots(0, world_size)
        return
    mine = [virtual.slots(r, world_size) for r in range(world_size)]
    assert len({len(s) for s in mine}) == 1  # collectives stay aligned
    assert sorted(s for slots in mine for s in slots if s is not None) == list(range(num_slots))


def test_validation_uses_every_utterance_once_whatever_its_length(index: ShardIndex) -> None:
    micro = validation_batches(index, CONFIG, crop=False)
    assert sorted(int(i) for m in micro for i in m.ids) == list(range(len(index)))


SPEEDS = (0.9, 1.0, 1.1)


def test_speeds_are_drawn_anew_each_epoch_and_stay_inside_the_recording(index: ShardIndex) -> None:
    config = replace(CONFIG, speed_perturbation=SPEEDS)
    for crop in (True, False):
        order = DataOrder(index, config, seed=1, crop=crop)
        drawn: list[dict[int, int]] = [{}, {}]
        for micro in (m for slot in range(6) for m in stream(order, slot, 2)):
            drawn[micro.epoch] |= dict(zip(micro.ids.tolist(), micro.percent.tolist(), strict=True))
            assert len(micro.ids) * micro.num_samples.max() <= CONFIG.max_samples_per_slot
            assert (CONFIG.min_samples <= micro.num_samples).all()
            assert (micro.num_samples <= CONFIG.max_crop).all()
            for row, i in enumerate(micro.ids):
                first, num = micro.span(row)
                assert 0 <= first <= first + num <= index.num_samples[i]
                assert num >= micro.num_samples[row] * micro.percent[row] / 100
        assert drawn[0].keys() == drawn[1].keys()
        assert set(drawn[0].values()) == {90, 100, 110}
        assert drawn[0] != drawn[1]


@pytest.mark.parametrize("crop", [True, False])
def test_perturbed_audio_is_the_resampled_recording(spoken_shards: Path, crop: bool) -> None:
    index = ShardIndex.load(spoken_shards)
    config = replace(CONFIG, virtual_world_size=1, speed_perturbation=(1.1,))
    order, reader = DataOrder(index, config, seed=1, crop=crop), ShardReader(index)
    data = MicroBatches(index, config, lambda rows: None, with_labels=False)  # type: ignore[arg-type, return-value]
    rows = data.rows(order.micro_batch(1, 0))
    assert rows.keys
    for row, wave in enumerate(rows.waveforms):
        whole = resample(reader.audio(int(rows.micro.ids[row])), 17_600)
        start, num = int(rows.micro.starts[row]), int(rows.micro.num_samples[row])
        assert len(wave) == num
        if not crop:
            assert num in (len(whole), len(whole) - 1)
        # A crop begins at a sample of the recording, up to one sample off the resampled grid
        assert np.corrcoef(wave, whole[start : start + num])[0, 1] > (0.8 if crop else 0.9999)
        # There, it is the recording's: noise, too, which such a shift makes another signal
        late = start - start * 110 // 100 / 1.1
        turned = np.fft.rfft(whole) * np.exp(-2j * np.pi * late * np.fft.rfftfreq(len(whole)))
        same = np.fft.irfft(turned, len(whole))[start : start + num]
        assert np.corrcoef(wave, same)[0, 1] > 0.999


def test_too_few_utterances_for_the_slots_is_an_error(index: ShardIndex) -> None:
    config = DataConfig(virtual_world_size=1000)
    with pytest.raises(ValueError, match=r"hold \d+ utterances .* data.virtual_world_size is 1000"):
        DataOrder(index, config, seed=1, crop=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_crop": 2_000_000}, "max_crop is 2000000 but must be at most max_samples_per_slot"),
        ({"min_samples": 300_000}, "min_samples is 300000 but must be at most max_crop"),
        ({"speed_perturbation": [1.0, 3.0]}, r"speed_perturbation is \[1.0, 3.0\] but must list"),
        ({"speed_perturbation": []}, r"speed_perturbation is \[\] but must list"),
        ({"virtual_world_size": 0}, "virtual_world_size is 0"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(DataConfig, values, "data.")
