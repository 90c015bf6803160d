"""TIMIT's sets and phones: the lists hold together, and what a tree has or lacks is said."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import soundfile

from shards import timit
from shards.recordings import Recording
from shards.splits import chosen, parts, placed
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
    whole = recordings(tuple(s for n in splits() for s in speakers(n)), ALL)
    part = parts()[name]
    assert part.leave_out is not None
    assert part.missing is not None
    why = Counter(part.leave_out(r) for r in whole)
    assert why[None] == count == part.published.utterances
    assert why["SA sentences, which all speakers read"] == 2 * len(speakers(name))
    kept = [r for r in whole if part.leave_out(r) is None]
    assert {r.speaker for r in kept} == {*speakers(name)}
    assert part.missing(kept) == []


def test_what_is_missing_is_listed() -> None:
    dev = speakers("dev")
    here = [r for r in recordings(dev[1:], ALL) if timit.leave_out("dev", r) is None]
    here = [r for r in here if not (r.speaker == dev[1] and r.key.endswith("si2"))]
    here += recordings(dev[2:3], "si9")
    assert timit.missing("dev", here) == [
        f"without 1 speaker, {dev[0]}",
        f"1 speaker with fewer than 8 sentences, {dev[1]} (7)",
        f"1 speaker with more than 8 sentences, {dev[2]} (9)",
    ]
    (strange,) = recordings(dev[:1], "take_2")
    assert "no sentences of TIMIT" in str(timit.leave_out("dev", strange))
    (other,) = recordings(("mabc9",), "si1")
    assert timit.leave_out("dev", other) == "utterances of speakers of none of the sets"


def original(folder: Path, copy: bool) -> None:
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
    original(tree / "TRAIN" / "DR1" / "FCJF0", copy)
    original(tree / "TEST" / "DR1" / "FAKS0", copy)
    original(tree / "TEST" / "DR1" / "MDAB0", copy)
    options = ["--layout", "timit", "--split"]
    assert run(tree, tmp_path / "dev", *options, "dev") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "found 2 of 400 utterances; found 1 of 50 speakers; without 49 speakers" in said
    assert "1 speaker with fewer than 8 sentences, faks0 (2)" in said
    assert run(tree, tmp_path / "dev", *options, "dev", "--allow-incomplete") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "dev: 2 utterances of 400 published (without " in said
    assert "(without 3 utterances of speakers of train)" in said
    assert "(without 1 SA sentences, which all speakers read)" in said
    found = labels(tmp_path / "dev")
    assert {*found} == {"dr1-faks0-si943", "dr1-faks0-sx43"}
    label = found["dr1-faks0-sx43"]
    phones = speech.say(["SHE", "HAD"], 2).phones
    assert label["phone_spans"] == [[a, b] for a, b, _ in phones]
    assert label["phones"].split() == [p for _, _, p in phones]
    (about,) = json.loads((tmp_path / "dev" / "index.json").read_bytes())["summary"]["split"][
        "sets"
    ]
    assert about["left_out"]["SA sentences, which all speakers read"] == 1
    assert about["lacks"]
    # its two parts as two inputs, of which one has nothing of the set
    more = ["--input", str(tree / "TEST"), *options, "dev", "--allow-incomplete"]
    assert run(tree / "TRAIN", tmp_path / "two", *more) == 0
    assert {*labels(tmp_path / "two")} == {*found}
    shutil.rmtree(tree / "TEST")
    assert run(tree, tmp_path / "test", *options, "test") == 1
    assert "3 utterances of speakers of train" in " ".join(capsys.readouterr().out.split())


def test_an_utterance_without_phones_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original(tmp_path / "TIMIT" / "train" / "dr1" / "fcjf0", copy=False)
    (tmp_path / "TIMIT" / "train" / "dr1" / "fcjf0" / "SX43.PHN").unlink()
    assert run(tmp_path / "TIMIT", tmp_path / "out", "--split", "train") == 1
    assert "1 utterances have no phones, such as train/dr1/fcjf0/SX43.WAV" in " ".join(
        capsys.readouterr().out.split()
    )


def test_times_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    speech.write_timit(tmp_path / "timit", {"dr1-fvmh0": "train"})
    file = tmp_path / "timit" / "train" / "dr1-fvmh0" / "sx20.phn"
    file.write_text("0 x h#\n100 200 sh\n")
    assert run(tmp_path / "timit", tmp_path / "out") == 0
    label = labels(tmp_path / "out")["dr1-fvmh0-sx20"]
    assert label["phones"] == "h# sh"
    assert "phone_spans" not in label


def test_a_file_in_place_of_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "TIMIT.zip").touch()
    with pytest.raises(ValueError, match=r"--split dev is of a folder, and .*TIMIT.zip is none"):
        placed(chosen(["dev"], "timit")[0], [tmp_path / "TIMIT.zip"])
