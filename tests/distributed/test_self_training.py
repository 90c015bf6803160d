"""Two rounds of self-training: `finetune` takes what was read as its labels, and what it reads then
becomes the labels of the second round."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.processes import losses, train, write_config
from w2v2dist.cli import main
from w2v2dist.data.index import ShardIndex
from w2v2dist.decode.results import Line, write
from w2v2dist.interop import open_model

PHONES = ("w", "ah", "n", "t", "uw")


def test_finetune_takes_pseudo_labels(shards: Path, tmp_path: Path) -> None:
    index = ShardIndex.load(shards)
    read = [
        Line(index.key(i), "", " ".join(PHONES[: 1 + i % 5]) if i else "")
        for i in range(len(index))
    ]
    write(tmp_path / "read", read, [], {"asked": {}}, "word")
    label = ["unsupervised", "label", "--shards", str(shards)]
    first = tmp_path / "round_1"
    assert main([*label, str(tmp_path / "read"), "--output", str(first)]) == 0
    data = {"tokens": "auto", "units": "phones", "train": str(first), "valid": str(first)}
    loop = {"max_steps": 4, "validate_every": 4}
    (tmp_path / "one").mkdir()
    config = write_config(tmp_path / "one", "finetune", first, data=data, loop=loop)
    train(config, 1)
    run = tmp_path / "one/run"
    assert len(losses(run)) == 4
    alphabet = open_model(run).alphabet
    assert alphabet is not None
    assert {*alphabet.symbols} == {*PHONES}
    # Second round: what the model reads in them now, where it reads anything
    evaluated = tmp_path / "evaluated"
    assert main(["evaluate", str(run), "--data", str(first), "--output", str(evaluated)]) == 0
    second = tmp_path / "round_2"
    status = main([*label, str(evaluated), "--output", str(second)])
    if status:  # four steps may have taught it silence alone, which is refused
        assert not (second / "index.json").exists()
    else:
        assert 0 < len(ShardIndex.load(second)) <= 64
