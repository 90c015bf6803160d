"""Reads that fail: tried again, given up in time, and never at another utterance's cost."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import replace_audio
from w2v2dist.data.audio import BadSample, ReadError, to_flac
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.reader import READS_AHEAD, DaemonThreads, ShardReader, wait


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards that a test may damage."""
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def seconds_to_fail(reader: ShardReader, i: int, reason: str) -> float:
    before = time.monotonic()
    with pytest.raises(ReadError, match=reason):
        reader.audio(i)
    return time.monotonic() - before


@pytest.mark.parametrize("timeout_s", [0, 20])
@pytest.mark.parametrize("damage", ["removed", "cut", "input/output error"])
def test_a_shard_that_comes_back_costs_nothing_but_time(
    folder: Path, tmp_path: Path, damage: str, timeout_s: float
) -> None:
    reader = ShardReader(ShardIndex.load(folder), retries=12, timeout_s=timeout_s)
    expected = reader.audio(0)
    path, whole = reader.index.shard_paths[0], tmp_path / "whole.tar"
    shutil.copy(path, whole)
    if damage == "cut":
        os.truncate(path, 1_000)  # through the descriptor that the reader has cached
    else:
        path.unlink()
        reader = pickle.loads(pickle.dumps(reader))  # without cached files, as in a worker
    if damage == "input/output error":
        path.symlink_to("/proc/self/mem")  # the kernel answers EIO
    timer = threading.Timer(0.5, lambda: whole.replace(path))
    before = time.monotonic()
    timer.start()
    np.testing.assert_array_equal(reader.audio(0), expected)
    assert time.monotonic() - before > 0.4
    timer.join()


def test_a_lost_shard_is_waited_for_once_and_its_whole_utterances_are_still_read(
    folder: Path,
) -> None:
    index = ShardIndex.load(folder)
    reader = ShardReader(index, retries=3)
    last = int(index.shard_first[1]) - 1
    os.truncate(index.shard_paths[0], int(index.offset[last]) + 10)
    missing = int(index.size[last]) - 10
    reason = f"the shard ends {missing} bytes before the end of the sample"
    assert seconds_to_fail(reader, last, reason) > 0.7  # 0.1 + 0.2 + 0.4
    assert len(reader.audio(0)) == index.num_samples[0]
    assert seconds_to_fail(reader, last, reason) < 0.3
    for k, reason in ((1, "No such file or directory"), (2, "Input/output error")):
        index.shard_paths[k].unlink()
        if k == 2:
            index.shard_paths[k].symlink_to("/proc/self/mem")
        first = int(index.shard_first[k])
        assert seconds_to_fail(reader, first, reason) > 0.7
        assert seconds_to_fail(reader, first + 1, reason) < 0.3


def test_a_read_without_an_answer_is_given_up_and_the_shard_left_alone_for_a_while(
    folder: Path, tmp_path: Path
) -> None:
    reader = ShardReader(ShardIndex.load(folder), retries=1, timeout_s=0.3)
    path, whole = reader.index.shard_paths[0], tmp_path / "whole.tar"
    path.rename(whole)
    os.mkfifo(path)  # opening it waits for a writer that never comes
    assert 0.7 <= seconds_to_fail(reader, 0, r"cannot be read: no answer within 0\.3 s") < 2
    assert seconds_to_fail(reader, 1, "its shard did not answer 0 s ago") < 0.2
    other = int(reader.index.shard_first[1])
    assert len(reader.audio(other)) == reader.index.num_samples[other]
    time.sleep(3.2)  # ten times the limit: then one try
    assert 0.3 <= seconds_to_fail(reader, 0, "no answer within") < 0.7
    whole.replace(path)
    time.sleep(3.2)
    assert len(reader.audio(0)) == reader.index.num_samples[0]
    assert len(reader.audio(1)) == reader.index.num_samples[1]


def test_a_timed_call_hands_on_what_the_function_does() -> None:
    def fail(number: int) -> None:
        raise OSError(number, os.strerror(number))

    threads = DaemonThreads(2)
    assert wait(threads.call(max, 2, 3), 5) == 3
    for number, kind in ((errno.ESTALE, OSError), (errno.ETIMEDOUT, TimeoutError)):
        with pytest.raises(kind, match=os.strerror(number)):
            wait(threads.call(fail, number), 5)


def test_threads_are_begun_anew_in_a_fork() -> None:
    threads = DaemonThreads(1)
    assert wait(threads.call(os.getpid), 30) == os.getpid()
    if (child := os.fork()) == 0:
        os._exit(0 if wait(threads.call(lambda: 7), 30) == 7 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_is_expected_is_read_ahead_several_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ShardIndex.load(folder)
    expected = [ShardReader(index).audio(i) for i in range(8)]
    together = threading.Barrier(READS_AHEAD)
    real = os.pread

    def pread(file: int, size: int, offset: int) -> bytes:
        together.wait(5)  # BrokenBarrierError unless so many reads are under way at once
        return real(file, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    reader = ShardReader(index, retries=0)
    reader.expect(range(8))
    for i in range(8):
        np.testing.assert_array_equal(reader.audio(i), expected[i])
    monkeypatch.undo()
    alive = threading.active_count()
    del reader
    for _ in range(100):
        if threading.active_count() < alive - READS_AHEAD:
            break
        time.sleep(0.05)
    assert threading.active_count() <= alive - READS_AHEAD


@pytest.mark.parametrize("damage", ["removed", "no answer"])
def test_a_lost_shard_costs_what_is_read_ahead_of_others_nothing(folder: Path, damage: str) -> None:
    index = ShardIndex.load(folder)
    last = int(index.shard_first[1])
    ids = [last, last + 1, *range(3), last + 2, 3, 4]
    expected = {i: ShardReader(index).audio(i) for i in ids}
    index.shard_paths[1].unlink()
    if damage == "no answer":
        os.mkfifo(index.shard_paths[1])
    reader = ShardReader(index, retries=0, timeout_s=0.3)
    reader.expect(ids)
    for i in ids:
        if i >= last:
            with pytest.raises(ReadError, match="cannot be read"):
                reader.audio(i)
        else:
            np.testing.assert_array_equal(reader.audio(i), expected[i])


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_and_nan_are_bad_and_the_faintest_sound_is_not(folder: Path, level: float) -> None:
    wave = np.full(int(ShardIndex.load(folder).num_samples[0]), level, np.float32)
    replace_audio(folder, 0, to_flac(wave))
    with pytest.raises(BadSample, match=f"is silent: all {len(wave)} samples"):
        ShardReader(ShardIndex.load(folder)).audio(0)
    wave[1_000] += 2**-15  # one step of 16 bits in one sample
    replace_audio(folder, 0, to_flac(wave))
    reader = ShardReader(ShardIndex.load(folder))
    np.testing.assert_array_equal(reader.audio(0), wave)
    with pytest.raises(BadSample, match="is silent: all 900 samples"):
        reader.audio(0, 0, 900)  # a crop of it
    wave[5] = np.nan
    wav = io.BytesIO()  # FLAC has no NaN
    soundfile.write(wav, wave, 16_000, format="WAV", subtype="FLOAT")
    replace_audio(folder, 0, wav.getvalue())
    with pytest.raises(BadSample, match="NaN"):
        ShardReader(ShardIndex.load(folder)).audio(0)
