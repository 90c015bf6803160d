"""TIMIT's sets and phones: the lists hold together, and what a tree has or lacks is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from shards import timit
from shards.recordings import Recording
from tests import speech
from tests.unit.test_shards import labels, run
from w2v2dist.data.alphabet import FOLD, PHONES, alphabet
from w2v2dist.data.timit import SIZES, fold, speakers, splits

# As TIMIT's documentation lists them (PHONCODE.DOC): closures and stops, fricatives, …, others
SYMBOLS = """b d g p t k dx q jh ch s sh z zh f th v dh m n ng em en eng nx l r w y hh hv el
iy ih eh ey ae aa aw ay ah ao oy ow uh uw ux er ax ix axr ax-h pau epi h# bcl dcl gcl pcl tcl kcl"""


def recordings(names: tuple[str, ...], sentences: str) -> list[Recording]:
    return [
        Recording(key=f"0/dr1-{s}-{x}", path=x, source=x, num_bytes=1, speaker=s, phones="h#")
        for s in names
        for x in sentences.split()
    ]


ALL = "sa1 sa2 si1 si2 si3 sx1 sx2 sx3 sx4 sx5"


def test_the_lists_of_speakers() -> None:
    sets = {name: speakers(name) for name in splits()}
    assert {name: len(of) for name, of in sets.items()} == {"train": 462, "dev": 50, "test": 24}
    everybody = [s for of in sets.values() for s in of]
    assert len({*everybody}) == 462 + 50 + 24
    assert all(s[0] in "mf" and s[1:4].isalpha() and s[4].isdecimal() for s in everybody)
    sexes = "".join(s[0] for s in sets["test"])
    assert sexes == "mmf" * 8  # two men and a woman of each region
    assert sum(s[0] == "f" for s in sets["train"]) == 136


def test_the_phones_fold_in_two_steps() -> None:
    whole = fold(61)
    assert {*whole} == {*SYMBOLS.split()}
    assert all(a == b for a, b in whole.items())
    for size in SIZES[1:]:
        smaller = fold(size)
        assert len({*smaller.values()} - {None}) == size
        assert [p for p, to in smaller.items() if to is None] == ["q"]
        assert all(smaller[to] == to for to in smaller.values() if to is not None)
    for phone in whole:
        step = fold(48)[phone]
        assert fold(39)[phone] == (None if step is None else fold(39)[step])
    assert {p: to for p, to in fold(39).items() if to is not None} == FOLD
    assert {*FOLD.values()} == {*PHONES}


def test_training_and_scoring_see_39_classes_and_no_q() -> None:
    spelled = alphabet("phones")
    said = spelled.normalized("h# q aa BCL b ax-h kcl k q ix n eng zh ux tcl q")
    assert said == "sil aa sil b ah sil k ih n ng sh uw sil"
    assert spelled.error_rates == ("per",)


@pytest.mark.parametrize(("name", "count"), [("train", 3696), ("dev", 400), ("test", 192)])
def test_a_whole_set(name: str, count: int) -> None:
    found = timit.select(recordings(tuple(s for n in splits() for s in speakers(n)), ALL), name)
    assert len(found.recordings) == count == found.expected["utterances"]
    assert found.complete()
    assert not found.complete(count - 1)
    assert found.left_out["SA sentences, which all speakers read"] == 2 * len(speakers(name))
    assert {r.speaker for r in found.recordings} == {*speakers(name)}


def test_what_is_missing_is_listed() -> None:
    dev = speakers("dev")
    here = recordings(dev[1:], ALL)
    here = [r for r in here if not (r.speaker == dev[1] and r.key.endswith("si2"))]
    here[5] = replace(here[5], phones=None)
    here += [replace(here[5], source="again"), *recordings(dev[2:3], "si9 take_2")]
    found = timit.select(here, "dev")
    assert found.found == {"speakers": 49, "utterances": 49 * 8}
    assert not found.complete()
    assert found.missing == [
        f"1 of 50 speakers are missing: {dev[0]}",
        f"1 speakers have fewer than 8 sentences: {dev[1]} (7)",
        f"1 speakers have more than 8 sentences: {dev[2]} (9)",
        f"1 utterances have no phones (.PHN): {dev[1]}-sx2",
    ]
    assert found.left_out["that are there twice"] == 1
    assert found.left_out["whose names are no sentences of TIMIT (si…, sx…)"] == 1


def original(folder: Path, speaker: str, copy: bool) -> None:
    """A speaker as the LDC ships it: NIST files in capitals; `copy`: with .WAV.wav beside them."""
    folder.mkdir(parents=True)
    for k, name in enumerate(("SA1", "SI943", "SX43")):
        said = speech.say(["SHE", "HAD"], k)
        path = folder / f"{name}.WAV"
        soundfile.write(path, said.wave, 16_000, format="NIST", subtype="PCM_16")
        if copy:
            soundfile.write(f"{path}.wav", said.wave, 16_000)
        (folder / f"{name}.PHN").write_text("".join(f"{a} {b} {p}\n" for a, b, p in said.phones))


@pytest.mark.parametrize("copy", [False, True])
def test_the_original_tree(copy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tmp_path / "TIMIT"
    original(tree / "TRAIN" / "DR1" / "FCJF0", "FCJF0", copy)
    original(tree / "TEST" / "DR1" / "FAKS0", "FAKS0", copy)
    original(tree / "TEST" / "DR1" / "MDAB0", "MDAB0", copy)
    options = ["--layout", "timit", "--split"]
    assert run(tree, tmp_path / "dev", *options, "dev") == 0
    shown = capsys.readouterr().out
    assert "TIMIT dev: 1 of 50 speakers, 2 of 400 utterances" in shown
    assert "left out: 1 SA sentences" in shown
    assert "is incomplete here" in shown
    found = labels(tmp_path / "dev")
    assert {*found} == {"dr1-faks0-si943", "dr1-faks0-sx43"}
    label = found["dr1-faks0-sx43"]
    phones = speech.say(["SHE", "HAD"], 2).phones
    assert label["phone_spans"] == [[a, b] for a, b, _ in phones]
    assert label["phones"].split() == [p for _, _, p in phones]
    about = json.loads((tmp_path / "dev" / "index.json").read_bytes())["summary"]["split"]
    assert about["name"] == "dev"
    assert not about["complete"]
    assert about["found"] == {"speakers": 1, "utterances": 2}
    # lower case, and a set that is not the one of before
    shutil.rmtree(tree / "TEST")
    assert run(tree, tmp_path / "test", *options, "test") == 1
    assert "of the 1 speakers that are, 1 of train" in capsys.readouterr().out
    assert run(tree, tmp_path / "dev", *options, "train") == 1
    assert "split" in capsys.readouterr().out


def test_names_and_layouts_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speech.write_timit(tmp_path / "timit", {"dr1-fvmh0": "train"})
    assert run(tmp_path / "timit", tmp_path / "out", "--split", "core") == 1
    assert "TIMIT's sets are train, dev, test" in capsys.readouterr().out
    soundfile.write(tmp_path / "timit" / "a.wav", speech.talk(16_000, 0), 16_000)
    assert run(tmp_path / "timit", tmp_path / "out", "--split", "dev", "--layout", "folder") == 1
    assert "is a set of a known corpus" in capsys.readouterr().out
    assert not (tmp_path / "out" / "index.json").exists()


def test_times_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    speech.write_timit(tmp_path / "timit", {"dr1-fvmh0": "train"})
    file = tmp_path / "timit" / "train" / "dr1-fvmh0" / "sx20.phn"
    file.write_text("0 x h#\n100 200 sh\n")
    assert run(tmp_path / "timit", tmp_path / "out") == 0
    label = labels(tmp_path / "out")["dr1-fvmh0-sx20"]
    assert label["phones"] == "h# sh"
    assert "phone_spans" not in label
