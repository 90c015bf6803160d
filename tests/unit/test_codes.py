"""What codes stand for: those of transformers, counts of a slow reference, labels of all forms."""

from __future__ import annotations

import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import report_runs, speech
from tests.conftest import build_shards
from tests.unit.test_interop import GROUP, LAYER, make
from tests.unit.test_model_huggingface import pair
from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.data.alphabet import alphabet
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.timit import fold
from w2v2dist.decode.code_counts import (
    DELETED,
    NOTHING,
    CodeCounts,
    agreement,
    by_likeliest,
    frame_labels,
    permuted,
)
from w2v2dist.decode.phone_times import BadTimesError, Timed, checked, labeller, num_overlapping
from w2v2dist.interop import open_model, save_huggingface
from w2v2dist.model import Wav2Vec2Config, Wav2Vec2ForPretraining
from w2v2dist.reporting.code_picture import MOST_DRAWN, picture
from w2v2dist.reporting.report import write_report

SMALL = Wav2Vec2Config(conv_kernels=(5, 2), conv_strides=(2, 2))  # a field of 7 samples, 4 apart


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_codes_are_those_of_transformers(layer_norm: bool) -> None:
    theirs, ours = pair(layer_norm)
    waves = torch.randn(2, 6_000)
    with torch.no_grad():
        features = theirs.wav2vec2.feature_extractor(waves).mT  # type: ignore[union-attr, operator]
        normalised = theirs.wav2vec2.feature_projection(features)[1]  # type: ignore[union-attr, operator]
        codewords, _ = theirs.quantizer(normalised)  # type: ignore[operator]
    codes = ours.codes(waves)
    assert ours.quantizer is not None
    assert len(codes.unique()) > 2
    for g in range(2):
        mine = ours.quantizer.codebooks[g][codes[..., g]]
        width = mine.shape[-1]
        torch.testing.assert_close(mine, codewords[..., g * width : (g + 1) * width])


def test_codes_draw_nothing() -> None:
    model = make(GROUP, ctc=False)
    assert isinstance(model, Wav2Vec2ForPretraining)
    waves = torch.randn(1, 4_000)
    assert torch.equal(model.train().codes(waves), model.codes(waves))
    assert torch.equal(model.codes(waves), model.eval().codes(waves))


def slow_labels(phones: list[Timed], ids: list[int], num_frames: int) -> list[set[int]]:
    """Sample by sample: those that a frame may have."""
    out = []
    for t in range(num_frames):
        field = range(4 * t, 4 * t + 7)
        votes: Counter[int] = Counter()
        for n in field:
            votes.update(i for p, i in zip(phones, ids, strict=True) if p.start <= n < p.end)
        votes[NOTHING] = 7 - sum(votes.values())
        best = [i for i, n in votes.items() if n == max(votes.values())]
        centre = [i for p, i in zip(phones, ids, strict=True) if p.start <= 4 * t + 3 < p.end]
        said = [i for i in best if i != NOTHING] or best
        out.append({*centre} & {*best} or {*said})
    return out


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12), st.integers(-1, 3)), max_size=9))
@settings(max_examples=100, deadline=None)
def test_frames_have_the_phone_of_most_of_their_field(rows: list[tuple[int, int, int]]) -> None:
    phones, ids, at = [], [], 0
    for gap, length, number in rows:
        gap = gap if gap > 5 else 0  # most phones follow each other at once
        phones.append(Timed(at + gap, at + gap + length, str(number)))
        ids.append(number)
        at += gap + length
    num_frames = SMALL.num_frames(60)
    found = frame_labels(phones, ids, num_frames, SMALL).tolist()
    allowed = slow_labels(phones, ids, num_frames)
    assert all(label in of for label, of in zip(found, allowed, strict=True))


def test_a_frame_of_the_real_model_and_its_borders() -> None:
    config = Wav2Vec2Config()
    phones = [Timed(0, 520, "a"), Timed(520, 1_000, "b"), Timed(1_000, 1_300, "q")]
    found = frame_labels(phones, [0, 1, DELETED], 5, config)
    # fields 0-400, 320-720 (both 200: the one at the centre, 520), 640-1040, 960-1360, 1280-1680
    assert found.tolist() == [0, 1, 1, DELETED, NOTHING]
    assert frame_labels([], [], 3, config).tolist() == [NOTHING] * 3


def slow_agreement(pairs: list[tuple[int, int]]) -> dict[str, float]:
    """HuBERT's definitions, by loops."""
    total, joint = len(pairs), Counter(pairs)
    codes, classes = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    mutual = sum(
        n / total * math.log2(n * total / (codes[a] * classes[b])) for (a, b), n in joint.items()
    )
    entropy = -sum(n / total * math.log2(n / total) for n in classes.values())
    return {
        "purity": sum(max(joint[a, b] for b in classes) for a in codes) / total,
        "cluster_purity": sum(max(joint[a, b] for a in codes) for b in classes) / total,
        "mutual_information": mutual,
        "entropy": entropy,
        "normalized": mutual / entropy if entropy else 0.0,
        "most_frequent": max(classes.values()) / total,
    }


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_purities_and_information(pairs: list[tuple[int, int]]) -> None:
    rows = sorted(Counter(pairs).items())
    code, other, count = (np.array(x) for x in zip(*((a, b, n) for (a, b), n in rows), strict=True))
    found = dataclasses.asdict(agreement(code, other, count))
    for name, value in slow_agreement(pairs).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert 0 <= found["normalized"] <= 1 + 1e-9


def test_counts_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    counts = CodeCounts(num_codebooks=2, num_entries=5)
    numbers = [counts.number(p) for p in ("a", "b", None, "a")]
    assert numbers == [0, 1, DELETED, 0]
    seen: Counter[tuple[int, int, int]] = Counter()
    spoken: list[tuple[int, int]] = []
    single: list[tuple[int, int]] = []
    for n in range(4):
        codes, labels = rng.integers(0, 5, (40, 2)), rng.integers(-2, 2, 40)
        counts.add(codes, labels if n else None, None if n == 2 else f"s{n % 2}")
        for (a, b), label in zip(codes.tolist(), labels.tolist(), strict=True):
            spoken += [(a + 5 * b, n % 2)] if n != 2 else []
            if n and label >= 0:
                seen[a, b, label] += 1
                single.append((b, label))
    ids, table = counts.table()
    found = {
        (int(a), int(b), p): int(table[row, p])
        for row, (a, b) in enumerate(counts.split(ids))
        for p in range(2)
        if table[row, p]
    }
    assert found == dict(seen)
    assert counts.num_frames_without == 40
    assert sum(counts.frames.values()) == 160
    labelled = sum(seen.values())
    assert labelled + counts.num_deleted + counts.num_unlabelled == 120
    assert sum(use.sum() for use in counts.usage()) == 320
    assert counts.agreements(counts.with_speaker)[0][0].purity == pytest.approx(
        slow_agreement(spoken)["purity"]
    )
    assert counts.agreements(counts.with_phone)[2][0].mutual_information == pytest.approx(
        slow_agreement(single)["mutual_information"], abs=1e-9
    )
    with pytest.raises(ValueError, match="more combinations than 64 bits"):
        CodeCounts(num_codebooks=8, num_entries=320)


def test_chance_keeps_the_frames_and_loses_what_codes_tell() -> None:
    rng = np.random.default_rng(0)
    code = np.arange(400)
    count = np.full(400, 30)
    pure, blind = code % 20, rng.integers(0, 20, 400)
    rows = permuted(code, pure, count)
    assert [np.bincount(r, rows[2]).tolist() for r in rows[:2]] == [[30] * 400, [600] * 20]
    assert len({*zip(*(r.tolist() for r in rows[:2]), strict=True)}) == len(rows[0])
    assert agreement(code, pure, count).purity == 1
    assert 0.1 < agreement(*rows).purity < 0.2  # of 30 frames 1.5 are expected, the most are 4.5
    assert agreement(*permuted(code, blind, count)).purity < 0.2
    # Codes of one frame are pure whatever they are of: chance says so, too
    once = np.ones(400, np.int64)
    assert agreement(*permuted(code, blind, once)).purity == 1
    assert all(np.array_equal(a, b) for a, b in zip(rows, permuted(code, pure, count), strict=True))


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([(0, 5, "a"), (5, 9, "b"), (9, 9, "c")], 0),
        ([(0, 5, "a"), (4, 9, "b"), (9, 12, "c")], 1),
        ([(0, 20, "a"), (1, 2, "b"), (3, 4, "c"), (3, 3, "d"), (20, 30, "e")], 2),
        ([], 0),
    ],
)
def test_overlapping_phones_are_counted(rows: list[tuple[int, int, str]], wanted: int) -> None:
    assert num_overlapping(checked([Timed(*row) for row in rows], 30)) == wanted


def test_the_order_of_the_figure() -> None:
    counts = np.array([[1, 9, 0], [0, 1, 1], [5, 0, 0], [2, 8, 0], [4, 6, 0]])
    columns, rows = by_likeliest(counts, ["x", "y", "z"])
    assert columns == [1, 0, 2]  # 24 frames of y, 12 of x, one of z
    assert rows == [0, 3, 4, 1, 2]  # y with 0.9, 0.8, 0.6, 0.5 (z has as much, and is rarer); x


def test_labels_in_all_forms(tmp_path: Path) -> None:
    said = [Timed(0, 1_600, "h#"), Timed(1_600, 4_000, "iy")]
    labels = {
        "phones": "h# iy",
        "phone_spans": [[0, 1600], [1600, 4000]],
        "source": "TRAIN/DR1/FX/SA1.WAV",
    }
    assert labeller(None)("k", labels) == said
    assert labeller(None)("k", {"phones": "h# iy"}) is None
    for wrong in ([[0, 1]], [[0, 1], 5], "ab"):
        with pytest.raises(BadTimesError):
            labeller(None)("k", labels | {"phone_spans": wrong})
    aligned = tmp_path / "aligned"
    aligned.mkdir()
    symbols = [{"text": p, "start": a / 16_000, "end": b / 16_000, "score": 1} for a, b, p in said]
    (aligned / "alignments.jsonl").write_text(json.dumps({"key": "k", "symbols": symbols}) + "\n")
    ctm = tmp_path / "symbols.ctm"
    ctm.write_text(";; comment\nk 1 0.000 0.100 h# 0.9\n\nk 1 0.100 0.150 iy\n")
    for source in (aligned, aligned / "alignments.jsonl", ctm):
        assert labeller(str(source))("k", {}) == said
        assert labeller(str(source))("other", {}) is None
    folder = tmp_path / "TIMIT" / "train" / "dr1" / "fx"
    folder.mkdir(parents=True)
    (folder / "sa1.phn").write_text("0 1600 h#\n1600 4000 iy\n")
    for root in (tmp_path / "TIMIT", folder.parent):
        assert labeller(str(root))("k", labels) == said
    assert labeller(str(tmp_path / "TIMIT"))("k", {"source": "dr1/fy/sa1.wav"}) is None
    assert labeller(str(tmp_path / "TIMIT"))("k", {}) is None
    (folder / "sa1.phn").write_text("0 x h#\n")
    with pytest.raises(BadTimesError, match=r"line 1 of sa1\.phn"):
        labeller(str(tmp_path / "TIMIT"))("k", labels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ctm", b"k 1 zero 1 a\n", "line 1 of .*a.ctm is not KEY CHANNEL"),
        ("a.ctm", b"k 1 0 inf a\n", "line 1 of .*a.ctm"),
        ("a.ctm", b"k 1 0\n", "line 1 of"),
        ("a.ctm", b"\xff\xfe\x00", "is not UTF-8"),
        ("a.jsonl", b'{"key": "k"}\n', "is no record of w2v2dist align"),
        ("a.jsonl", b"[1]\n", "is no record of w2v2dist align"),
        ("a.txt", b"hello\n", "is not KEY CHANNEL"),
    ],
)
def test_files_that_are_no_labels(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        labeller(str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"holds no alignments.jsonl and no \.phn"):
        labeller(str(tmp_path))
    with pytest.raises(ConfigError, match="does not exist"):
        labeller(str(tmp_path / "nothing"))


def test_times_are_held_to_the_audio() -> None:
    rows = [Timed(900, 1_200, "b"), Timed(0, 900, "a"), Timed(1_300, 1_400, "c")]
    assert checked(rows, 1_000) == [Timed(0, 900, "a"), Timed(900, 1_000, "b")]
    with pytest.raises(BadTimesError, match="of another recording, or of another rate"):
        checked([Timed(0, 40_000, "a")], 20_000)
    with pytest.raises(BadTimesError, match="from sample 9 to 3"):
        checked([Timed(9, 3, "a")], 20_000)


@pytest.fixture(scope="module")
def timit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timit")
    return speech.write_timit(folder / "t", {"dr1-fvmh0": "train", "dr2-marc0": "train"})


@pytest.fixture(scope="module")
def timit_shards(timit: Path) -> Path:
    return build_shards(timit, timit.parent / "shards")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "hf"
    save_huggingface(make(LAYER, ctc=False), folder, normalize=True)
    return folder


def codes(*arguments: Any) -> int:
    return main(["codes", *map(str, arguments)])


def test_the_command(
    timit_shards: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert codes(pretrained, "--data", timit_shards, "--output", out) == 0
    assert "of them of a phone" in " ".join(capsys.readouterr().out.split())
    about = json.loads((out / "codes.json").read_bytes())
    model, index = open_model(pretrained).module, ShardIndex.load(timit_shards)
    assert isinstance(model, Wav2Vec2ForPretraining)
    reader, expected = ShardReader(index), Counter[tuple[int, int, str]]()
    num_frames, speakers = 0, []
    for i in range(len(index)):
        wave = torch.from_numpy(reader.audio(i))
        found = model.codes(torch.nn.functional.layer_norm(wave, wave.shape)[None])[0].tolist()
        labels = reader.labels(i)
        num_frames += len(found)
        speakers += [
            (a + model.config.num_codebook_entries * b, labels["speaker"]) for a, b in found
        ]
        for t, (a, b) in enumerate(found):
            votes: Counter[str] = Counter()
            for (start, end), p in zip(
                labels["phone_spans"], labels["phones"].split(), strict=True
            ):
                votes[fold(39)[p] or ""] += max(0, min(end, 320 * t + 400) - max(start, 320 * t))
            top = votes.most_common(2)
            if len(top) == 2 and top[0][1] == top[1][1]:
                centre = [
                    p
                    for (start, end), p in zip(
                        labels["phone_spans"], labels["phones"].split(), strict=True
                    )
                    if start <= 320 * t + 200 < end
                ]
                expected[a, b, fold(39)[centre[0]] or ""] += 1
            else:
                expected[a, b, top[0][0]] += 1
    with np.load(out / "counts.npz") as kept:
        phones = kept["phones"].tolist()
        counted = {
            (int(a), int(b), phones[p]): int(n)
            for (a, b), row in zip(kept["codes"], kept["counts"], strict=True)
            for p, n in enumerate(row)
            if n
        }
    assert counted == dict(expected)
    assert about["num_frames"] == num_frames == about["num_frames_labelled"]
    assert about["code_perplexity"] == pytest.approx(
        sum(2**h for h in about["entropies"]), abs=0.01
    )
    assert max(about["entropies"]) <= about["entropy_of_combinations"] <= sum(about["entropies"])
    of_phones = about["with_phones"]["combinations"]
    assert of_phones["num_codes"] == len({k[:2] for k in expected})
    assert of_phones["most_frequent"] <= of_phones["chance"]["purity"] <= 1
    assert about["num_phones_overlapping"] == 0
    of_speakers = about["with_speakers"]["combinations"]
    assert of_speakers["purity"] == pytest.approx(slow_agreement(speakers)["purity"], abs=1e-6)
    assert {row["phone"] for row in about["phones"]} == {*phones}
    assert sum(row["num_codes"] for row in about["phones"]) == len({k[:2] for k in expected})
    root = ElementTree.fromstring((out / "codes.svg").read_text())
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[1 : 1 + len(phones)] == phones


def test_phones_from_an_alignment_and_utterances_without(
    timit: Path,
    timit_shards: Path,
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = (pretrained, "--data", timit_shards, "--output", tmp_path / "out")
    assert codes(*common) == 0
    whole = json.loads((tmp_path / "out" / "codes.json").read_bytes())
    assert codes(*common, "--phones", timit) == 0  # the .phn files say the same
    again = json.loads((tmp_path / "out" / "codes.json").read_bytes())
    assert again | {"phones": 0} == whole | {"phones": 0}
    capsys.readouterr()
    index = ShardIndex.load(timit_shards)
    keys = sorted(index.keys())
    ctm = tmp_path / "a.ctm"
    ctm.write_text("".join(f"{k} 1 0.1 0.3 AH0 1\n{k} 1 0.5 0.2 Q 1\n" for k in keys[1:]))
    assert codes(*common, "--phones", ctm) == 2
    assert "none of TIMIT's 39" in capsys.readouterr().err
    assert codes(*common, "--phones", ctm, "--fold", "none") == 0
    assert "1 utterances without phones" in " ".join(capsys.readouterr().out.split())
    about = json.loads((tmp_path / "out" / "codes.json").read_bytes())
    assert [row["phone"] for row in about["phones"]] == ["AH0", "Q"]
    assert about["num_frames_unlabelled"] > 0
    assert about["num_without_phones"] == 1
    ctm.write_text("".join(f"{k} 1 0.1 0.3 a 1\n{k} 1 0.2 0.3 b 1\n" for k in keys))
    assert codes(*common, "--phones", ctm, "--fold", "none") == 0
    assert f"{len(keys)} phones begin before" in " ".join(capsys.readouterr().out.split())
    ctm.write_text("".join(f"{k} 1 0.1 0.3 a 1\n" for k in keys[:5]))
    assert codes(*common, "--phones", ctm, "--fold", "none") == 2
    assert "15 of 20 utterances" in capsys.readouterr().err
    assert codes(*common, "--phones", ctm, "--fold", "none", "--max-without", "0.8") == 0
    ctm.write_text("".join(f"{k} 1 90 1 a 1\n" for k in keys))
    assert codes(*common, "--phones", ctm, "--fold", "none") == 2
    assert "of another rate" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "codes.json").read_bytes())["phones"][0]["phone"] == "a"


def test_models_without_codes(
    timit_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ctc = make(LAYER, ctc=True)
    save_huggingface(ctc, tmp_path / "ctc", normalize=True, tokens=alphabet("letters"))
    assert codes(tmp_path / "ctc", "--data", timit_shards, "--output", tmp_path / "o") == 2
    assert "whose quantizer was left behind" in capsys.readouterr().err
    continuous = Wav2Vec2ForPretraining(dataclasses.replace(LAYER, quantize_targets=False))
    with pytest.raises(ValueError, match="quantize_targets is false"):
        continuous.codes(torch.randn(1, 2_000))
    assert codes(tmp_path / "no", "--data", timit_shards) == 2
    assert not (tmp_path / "o").exists()


def test_a_model_that_is_no_run_needs_an_output_and_shards(
    timit_shards: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert codes(pretrained, "--data", timit_shards) == 2
    assert "say with --output" in capsys.readouterr().err
    assert codes(pretrained) == 2
    assert "name shards (--data)" in capsys.readouterr().err
    assert (
        codes(pretrained, "--data", timit_shards, "--max-without", "2", "--output", timit_shards)
        == 2
    )
    assert "must be a share from 0 to 1" in capsys.readouterr().err


def test_a_picture_of_many_codes_says_which_it_shows() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (MOST_DRAWN + 100, 3))
    counts[:, 0] += 1
    text = picture(counts, ["a", "<b>", "c"])
    ElementTree.fromstring(text)
    assert f"the most frequent of {MOST_DRAWN + 100:,}" in text
    assert "&lt;b&gt;" in text
    ElementTree.fromstring(picture(np.array([[3]]), ["a"]))


def test_the_report_has_a_panel(timit_shards: Path, pretrained: Path, tmp_path: Path) -> None:
    run = report_runs.pretraining(tmp_path / "run", 100, 10)
    assert "P(phone" not in write_report([run], tmp_path / "a.html").read_text()
    output = run / "codes" / "timit"
    assert codes(pretrained, "--data", timit_shards, "--output", output) == 0
    (run / "codes" / "broken").mkdir()
    (run / "codes" / "broken" / "codes.json").write_text("[]")
    page = write_report([run], tmp_path / "b.html").read_text()
    assert "phone purity" in page
    assert "by chance" in page
    assert "data:image/svg+xml;base64," in page
    assert "broken: codes.json or counts.npz cannot be read" in page
    (output / "counts.npz").write_bytes((output / "counts.npz").read_bytes()[:200])
    assert "timit: codes.json or counts" in write_report([run], tmp_path / "c.html").read_text()
