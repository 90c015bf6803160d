"""`w2v2dist unsupervised audio` on several processes: the same bytes, killed or not."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.distributed.processes import finish, start_command
from tests.unit.test_unsupervised_audio import V1, V2, contents, write_model

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m", norm_first=True)


@pytest.mark.parametrize(
    "arguments", [pytest.param(V1, marks=pytest.mark.slow, id="v1"), pytest.param(V2, id="v2")]
)
def test_any_number_of_processes_and_a_kill(
    model: Path, shards: Path, tmp_path: Path, arguments: list[str]
) -> None:
    found = []
    for world_size in (1, 2):
        output = tmp_path / str(world_size)
        command = ["unsupervised", "audio", str(model), "--data", str(shards), *arguments]
        command += ["--output", str(output)]
        if world_size == 2:  # one dies with the first part that is there
            processes = start_command(command, world_size)
            deadline = time.monotonic() + 120
            while not [*output.rglob("*.json")] and time.monotonic() < deadline:
                time.sleep(0.02)
            processes[1].send_signal(signal.SIGKILL)
            assert any(finish(processes)[0])
        codes, said = finish(start_command(command, world_size))
        assert codes == [0] * world_size, said[-4000:]
        found.append(contents(output))
    assert found[0] == found[1]
    assert len(found[0]["train/utterances.jsonl"].splitlines()) == 65
