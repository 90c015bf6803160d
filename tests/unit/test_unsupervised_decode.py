"""`w2v2dist unsupervised decode` and `label`: a generator that knows the phones reads them,
alone as in company; what it read as transcripts of shards; other phones are refused."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.gan_data import DIM, PHONES, sentences, write_features, write_gan_config, write_language
from tests.training_parts import world as world  # a fixture
from w2v2dist.checkpoint import find
from w2v2dist.cli import main
from w2v2dist.config import ConfigError
from w2v2dist.data.index import ShardIndex
from w2v2dist.data.reader import ShardReader
from w2v2dist.decode.beam_config import BeamConfig
from w2v2dist.decode.decoders import DecodingConfig
from w2v2dist.decode.results import Line, write
from w2v2dist.interop.open import open_model
from w2v2dist.runtime.distributed import World
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.runtime.preemption import PreemptionFlag
from w2v2dist.tasks.train import read_config
from w2v2dist.tasks.unsupervised import UnsupervisedTask, unsupervised_source
from w2v2dist.training.loop import fit
from w2v2dist.unsupervised.config import UnsupervisedConfig
from w2v2dist.unsupervised.decode import Decoding, Read, alphabet_of, decode, emissions
from w2v2dist.unsupervised.feature_store import FeatureStore, FeatureStoreWriter
from w2v2dist.unsupervised.gan_source import ValidationBatches
from w2v2dist.unsupervised.generator import Generator, GeneratorConfig
from w2v2dist.unsupervised.phone_text import SPECIAL, PhoneText, write_phone_text
from w2v2dist.unsupervised.trained import Trained, open_trained

SYMBOLS = [*SPECIAL, *PHONES, "<SIL>"]
GREEDY = DecodingConfig(num_workers=1)


def knowing(config: GeneratorConfig, codes: np.ndarray, made_by: dict[str, Any]) -> Trained:
    """A generator whose logits are the phones' codes times the frames."""
    generator = Generator(config, DIM, len(SYMBOLS)).eval()
    with torch.no_grad():
        generator.convolution.weight.zero_()
        middle = config.kernel_size // 2
        rows = torch.from_numpy(codes).float()
        generator.convolution.weight[len(SPECIAL) : -1, :, middle] = 4 * rows
        if generator.linear is not None:
            generator.linear.weight.zero_()
            generator.linear.bias.zero_()
    features = {"dim": DIM, **made_by}
    return Trained(Path("run"), generator, SYMBOLS, features, UnsupervisedConfig(run_dir="run"))


def store_of(
    folder: Path, lines: list[list[int]], codes: np.ndarray, frames: int, **made_by: str
) -> FeatureStore:
    rng = np.random.default_rng(3)
    meta = {"made_by": {"model": "made", **made_by}}
    with FeatureStoreWriter(folder, DIM, "float32", meta) as writer:
        for i, line in enumerate(lines):
            values = np.repeat(codes[line], frames, 0)
            values = values + 0.05 * rng.standard_normal(values.shape)
            writer.add(f"u{i}", values, None, {"phones": " ".join(PHONES[j] for j in line)})
    return FeatureStore(folder)


@pytest.fixture
def codes() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0][: len(PHONES)]


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    "config", [GeneratorConfig(kernel_size=1), GeneratorConfig(kernel_size=3, residual=True)]
)
def test_a_generator_that_knows_the_phones(
    tmp_path: Path, codes: np.ndarray, config: GeneratorConfig, frames: int
) -> None:
    lines = sentences(1, 12)
    store = store_of(tmp_path / "store", lines, codes, frames)
    read = decode(
        knowing(config, codes, {"model": "made"}), store, Decoding(search=GREEDY, stride=1)
    )
    # A phone after itself is joined to one: CTC's repeats
    expected = [" ".join(PHONES[i] for i, _ in itertools.groupby(line)) for line in lines]
    assert [line.hypothesis for line in read] == expected
    assert read[0].reference == " ".join(PHONES[i] for i in lines[0])
    assert [line.key for line in read] == store.keys


def test_another_stride_has_the_same_weights(tmp_path: Path, codes: np.ndarray) -> None:
    store = store_of(tmp_path / "store", sentences(1, 3), codes, 4)
    trained = knowing(GeneratorConfig(kernel_size=1, stride=4), codes, {"model": "made"})
    by_stride = {s: [*emissions(trained, store, s)] for s in (1, 2, 4)}
    for i in range(len(store)):
        assert np.allclose(by_stride[1][i][::4], by_stride[4][i])
        assert np.allclose(by_stride[1][i][::2], by_stride[2][i])
        assert len(by_stride[4][i]) == -(-len(by_stride[1][i]) // 4)
    read = [
        [line.hypothesis for line in decode(trained, store, Decoding(search=GREEDY, stride=s))]
        for s in (1, 2, 4)
    ]
    assert read[0] == read[1] == read[2]


def test_segments_are_read_by_what_was_trained_on_pairs(tmp_path: Path, codes: np.ndarray) -> None:
    """Version 1 searches segments before they are paired; nothing else but their stage differs."""
    lines, config = sentences(1, 3), GeneratorConfig(kernel_size=1)
    pairs = store_of(tmp_path / "pairs", lines, codes, 1, stage="pairs")
    segments = store_of(tmp_path / "segments", lines, codes, 2, stage="segments")
    trained = knowing(config, codes, pairs.made_by)
    decoding = Decoding(search=GREEDY, stride=1)
    read = [[x.hypothesis for x in decode(trained, s, decoding)] for s in (pairs, segments)]
    assert read[0] == read[1]
    with pytest.raises(ConfigError, match=r"features with stage segments, but .* have pairs"):
        decode(knowing(config, codes, segments.made_by), pairs, decoding)
    other = store_of(tmp_path / "other", lines, codes, 2, stage="segments", fitted="f")
    with pytest.raises(ConfigError, match="features with fitted"):
        decode(trained, other, decoding)
    frames = store_of(tmp_path / "frames", lines, codes, 2, stage="frames")
    with pytest.raises(ConfigError, match=r"with stage pairs, but .* have frames"):
        decode(trained, frames, decoding)
    names = {Read(trained, store, decoding, []).name for store in (pairs, segments)}
    assert names == {"pairs-greedy-stride1", "segments-segments-greedy-stride1"}


def test_silence_is_a_blank_and_special_symbols_are_never_read(
    tmp_path: Path, codes: np.ndarray
) -> None:
    lines = [[0, 1, 1, 2]]
    store = store_of(tmp_path / "store", lines, codes, 1)
    trained = knowing(GeneratorConfig(kernel_size=1), codes, {"model": "made"})
    convolution = trained.generator.convolution
    with torch.no_grad():  # the third frame is silence's, the last one's best is <s>
        convolution.weight[-1, :, 0] = 10 * torch.from_numpy(
            store.frames(0)[2] - store.frames(0)[1]
        )
        convolution.weight[0, :, 0] = 9 * convolution.weight[len(SPECIAL) + 2, :, 0]
    heard = next(emissions(trained, store, 1))
    assert heard[3].argmax() == 0
    greedy = decode(trained, store, Decoding(search=GREEDY, stride=1))[0].hypothesis
    assert "<" not in greedy
    beam = DecodingConfig(decoder="beam", beam=BeamConfig(lm_weight=0), num_workers=1)
    searched = decode(trained, store, Decoding(search=beam, stride=1))[0].hypothesis
    assert "<" not in searched
    assert searched.split()[-1] == PHONES[2], "what cannot be is not in the search"
    quiet = decode(trained, store, Decoding(search=GREEDY, stride=1, silence_weight=1e4))
    assert quiet[0].hypothesis == ""


def test_alone_as_in_a_batch(tmp_path: Path, codes: np.ndarray) -> None:
    """Without a bias, padding changes nothing: what is heard alone is what a batch has."""
    store = store_of(tmp_path / "store", sentences(1, 12), codes, 2)
    trained = knowing(GeneratorConfig(kernel_size=4), codes, {"model": "made"})
    batch = ValidationBatches(store)[range(len(store))]
    with torch.no_grad():
        together = trained.generator(batch.features, batch.padding)
    for i, heard in enumerate(emissions(trained, store, 1)):
        own = together.logits[i][~together.padding[i]].log_softmax(-1)
        assert len(own) == len(heard) == store.num_frames[i] + 1
        assert torch.allclose(own[1:], torch.from_numpy(heard)[1:], atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, which has learned nothing yet."""
    root = tmp_path_factory.mktemp("run")
    data = write_language(root)
    settings = read_config(str(write_gan_config(root, data)), [])
    process = World.from_environment()
    fit(
        settings,
        UnsupervisedTask(settings, unsupervised_source(settings)),
        process,
        PreemptionFlag(),
    )
    process.close()
    return root


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["unsupervised", *arguments])
    found = capsys.readouterr()
    return status, " ".join((found.out + found.err).split())


def test_decode_writes_an_evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unsupervised", "decode", f"{run}/run"]) == 0
    (folder,) = (run / "run/decoded").glob("valid-greedy-stride1")
    about = json.loads((folder / "evaluation.json").read_text())
    rows = read_jsonl(folder / "hypotheses.jsonl")
    assert len(rows) == 10
    assert about["per"] == pytest.approx(
        sum(r["errors"] for r in rows) / sum(r["num_words"] for r in rows)
    )
    assert "PER" in capsys.readouterr().out
    text = PhoneText(run / "text")
    beam = ["--lm", str(text.lm_path(False)), "--workers", "1", "--beam-size", "20"]
    assert main(["unsupervised", "decode", f"{run}/run", *beam, "--output", f"{run}/beam"]) == 0
    searched = json.loads((run / "beam/evaluation.json").read_text())
    assert searched["asked"]["beam"]["beam_size"] == 20


def test_other_readings_stay(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["decode", f"{run}/run", "--stride", "2"]
    first, second = (run / f"run/decoded/valid-greedy-stride2{end}" for end in ("", "-2"))
    assert said(capsys, *command)[0] == 0
    before = (first / "hypotheses.jsonl").read_bytes()
    assert f"(see {second})" in said(capsys, *command, "--silence-weight", "1000")[1]
    assert (first / "hypotheses.jsonl").read_bytes() == before
    assert f"(see {first})" in said(capsys, *command)[1], "the same again is the same"
    assert not (run / "run/decoded/valid-greedy-stride2-3").exists()


def test_what_cannot_be_is_said_before_anything_is_read(
    run: Path, shards: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("w2v2dist.decode.decoders.NgramBeam", None)
    monkeypatch.setattr("w2v2dist.unsupervised.decode.emissions", None)
    (tmp_path / "file").touch()
    for output in ("file", "file/below"):
        status, out = said(capsys, "decode", f"{run}/run", "--output", f"{tmp_path}/{output}")
        assert status == 2
        assert "--output: " in out
        assert "is no folder: name another place" in out
    label = ["label", f"{run}/run", "--shards", str(shards), "--output", f"{tmp_path}/out"]
    status, out = said(capsys, *label)
    assert status == 2
    assert "give the shards that the features were made of" in out
    status, out = said(capsys, *label, "--units", "words")
    assert status == 2
    assert "without --lm and --lexicon are no words of a lexicon" in out
    assert not (tmp_path / "out").exists()
    status, out = said(capsys, "decode", f"{run}/run", "--lm", f"{run}/text")
    assert f"is a text of phones: give its n-gram, {run}/text/4gram.arpa" in out


def test_damaged_readings_are_named(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("hypotheses.jsonl", "{}\n"), ("evaluation.json", "[]")):
        folder = readings(tmp_path / name, ShardIndex.load(shards))
        (folder / name).write_text(text)
        given = ["label", str(folder), "--shards", str(shards), "--output", f"{tmp_path}/out"]
        status, out = said(capsys, *given)
        assert (status, f"what was read in {folder} is damaged" in out) == (2, True), out


def test_weights_are_found_without_labels(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_features(run / "development", 7, 6, labels=False)
    lm = ["--lm", str(PhoneText(run / "text").lm_path(False)), "--workers", "1"]
    beam = [*lm, "--beam-size", "10"]
    given = ["decode", f"{run}/run", *beam]
    tuning = ["--tune", f"{run}/development", "--trials", "3"]
    status, out = said(capsys, *given, *tuning, "--output", f"{run}/tuned")
    assert status == 0, out
    (path,) = (run / "run/decoded").glob("tuned-development-beam-*/weights.json")
    found = json.loads(path.read_text())
    assert f"weights: --lm-weight {found['lm_weight']:g} " in out
    assert "per" not in found
    asked = json.loads((run / "tuned/evaluation.json").read_text())["asked"]
    assert asked["silence_weight"] == found["silence_weight"]
    assert asked["beam"]["lm_weight"] == found["lm_weight"]
    # the file says the same to the next one; what is given wins
    weights = ["--weights", str(path), "--output", f"{run}/again"]
    assert said(capsys, *given, *weights)[0] == 0
    assert json.loads((run / "again/evaluation.json").read_text())["asked"] == asked
    assert said(capsys, *given, *weights, "--silence-weight", "0.5")[0] == 0
    again = json.loads((run / "again/evaluation.json").read_text())["asked"]
    assert again == asked | {"silence_weight": 0.5}
    status, out = said(capsys, "decode", f"{run}/run", *tuning)
    assert (status, "name one with --lm" in out) == (2, True)
    status, out = said(capsys, *given, "--trials", "3")
    assert (status, "--trials 3 is of --tune, which is not there" in out) == (2, True)
    path.write_text(json.dumps({**found, "silence_weight": "loud"}))
    assert "silence_weight of" in said(capsys, *given, *weights)[1]


def test_without_labels_there_is_no_error_rate(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_features(run / "unlabelled", 5, 4, labels=False)
    status, out = said(capsys, "decode", f"{run}/run", "--data", f"{run}/unlabelled")
    assert (status, "PER" in out) == (0, False)
    assert "4 utterances" in out


def test_words_by_a_lexicon(run: Path, tmp_path: Path) -> None:
    (tmp_path / "words.arpa").write_text(
        "\\data\\\nngram 1=5\nngram 2=1\n\n\\1-grams:\n-99\t<s>\t0\n-1\t</s>\n-2\t<unk>\n"
        "-0.5\tone\t0\n"
        "-0.5\ttwo\t0\n\n\\2-grams:\n-0.3\tone two\n\n\\end\\\n"
    )
    (tmp_path / "lexicon.txt").write_text("one\ta b\ntwo\td e f\n")
    words = ["--lm", f"{tmp_path}/words.arpa", "--lexicon", f"{tmp_path}/lexicon.txt"]
    given = ["unsupervised", "decode", f"{run}/run", *words, "--workers", "1"]
    assert main([*given, "--output", f"{tmp_path}/out"]) == 0
    rows = read_jsonl(tmp_path / "out/hypotheses.jsonl")
    found = {word for row in rows for word in row.get("lexicon_words", "").split()}
    assert found <= {"one", "two"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stride", "0"], "--stride is 0 but must be at least 1"),
        (["--silence-weight", "inf"], "--silence-weight is inf but must be finite"),
        (["--lm", "{run}/text/4gram_sil.arpa"], "which a search has as a blank between phones"),
        (["--lm", "{run}/other.arpa"], "has 2 symbols that the run has not (ö ü)"),
        (["--lexicon", "{run}/other.txt"], "is spelled with 'ö'"),
        (["--text", "{run}/changed"], "was trained with"),
        (["--data", "{run}/wide"], "was trained on features with dim 8"),
        (["--data", "{run}/another"], "was trained on features with model made"),
        (["--data", "{run}/text"], "holds no features"),
        (["--data", "{run}/valid,{run}/train"], "is several folders, but features are one"),
        (["--data", "{run}/other.txt"], "other.txt is a file, but features are a folder"),
        (["--text", "{run}/other.txt"], "other.txt is a file, but a text of phones is a folder"),
    ],
)
def test_what_does_not_fit(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    arpa = PhoneText(run / "text").lm_path(False).read_text()
    (run / "other.arpa").write_text(arpa.replace("\ta", "\tö").replace("\tb", "\tü"))
    (run / "other.txt").write_text("x\ta ö\n")
    if not (run / "changed").exists():
        write_phone_text(run / "changed", {p: 1 for p in reversed(PHONES)}, [[4]], {})
        write_features(run / "wide", 5, 4, dim=9)
        write_features(run / "another", 5, 4, model="foreign")
    status, out = said(capsys, "decode", f"{run}/run", *(o.format(run=run) for o in options))
    assert status == 2
    assert message in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phones": None}, "'NoneType' object"),
        ({"phones": {}}, "'symbols' is missing"),
        ({"features": [3]}, "list"),
        ({"features": {}}, "'dim' is missing"),
        ({"config": [3]}, "'list' object"),
        ({}, "'phones' is missing"),
    ],
)
def test_a_checkpoint_that_lacks_what_it_must_say(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    step = tmp_path / "step"
    shutil.copytree(find(run / "run", None), step)
    (step / "SHA256SUMS").unlink(missing_ok=True)
    meta = {**json.loads((step / "meta.json").read_text()), **change}
    if not change:
        del meta["phones"]
    (step / "meta.json").write_text(json.dumps(meta))
    given = ["--data", f"{run}/valid"]
    status, out = said(capsys, "decode", str(step), *given)
    assert status == 2
    assert re.search(rf"step/meta.json is damaged \(.*{message}.*\): give another checkpoint", out)


def test_a_text_made_anew_with_other_phones(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text of a run is looked at where it still is: its ids may mean something else now."""
    config = (run / "run/config.yaml").read_text()
    kept = PhoneText(run / "text").symbols
    assert open_trained(run / "run", kept).symbols == kept
    content = (run / "text/dict.phn.txt").read_text()
    lines = content.splitlines()
    try:
        (run / "text/dict.phn.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
        status, out = said(capsys, "decode", f"{run}/run")
    finally:
        (run / "text/dict.phn.txt").write_text(content)
    assert status == 2
    assert "their order differs" in out
    assert (run / "run/config.yaml").read_text() == config


def readings(folder: Path, index: ShardIndex, *, empty: int = 2, left_out: int = 3) -> Path:
    """What was read in shards, in phones: nothing in the first, the last not at all."""
    lines = [
        Line(index.key(i), "", "" if i < empty else f"a b d{' e' * (i % 3)}")
        for i in range(len(index) - left_out)
    ]
    write(folder, lines, [], {"asked": {}}, "word")
    return folder


def test_pseudo_labels_are_shards(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = ShardIndex.load(shards)
    folder = readings(tmp_path / "read", index)
    given = ["label", str(folder), "--shards", str(shards), "--output", f"{tmp_path}/pseudo"]
    status, out = said(capsys, *given, "--kaldi", f"{tmp_path}/kaldi")
    assert status == 0
    assert "60 of 65 utterances" in out
    assert "2 left out: nothing was read in them" in out
    assert "3 left out: they were not among what was read" in out
    made = ShardIndex.load(tmp_path / "pseudo")
    before, after = ShardReader(index), ShardReader(made)
    numbers = {index.key(i): i for i in range(len(index))}
    for i in range(len(made)):
        of = numbers[made.key(i)]
        assert after.flac(i) == before.flac(of)
        labels = after.labels(i)
        assert labels["phones"] == f"a b d{' e' * (of % 3)}"
        assert labels["pseudo_label"] is True
        assert "text" not in labels
    for name in ("text", "wav.scp", "utt2spk"):
        rows = (tmp_path / "kaldi" / name).read_text().splitlines()
        assert len(rows) == 60
        assert rows == sorted(rows)
    command = (tmp_path / "kaldi/wav.scp").read_text().splitlines()[0].split(" ", 1)[1]
    cut = subprocess.run(
        command.partition(" | flac")[0], shell=True, capture_output=True, check=True
    )
    assert cut.stdout[:4] == b"fLaC"
    assert cut.stdout in {after.flac(i) for i in range(len(made))}
    lexicon = (tmp_path / "kaldi/local/dict/lexicon.txt").read_text()
    assert lexicon == "SIL SIL\na a\nb b\nd d\ne e\n"
    assert said(capsys, *given)[0] == 2, "there are shards already"


def test_words_as_labels(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = ShardIndex.load(shards)
    lines = [Line(index.key(i), "", "a b", {"lexicon_words": "one two"}) for i in range(len(index))]
    write(tmp_path / "read", lines, [], {"asked": {}}, "word")
    given = ["label", f"{tmp_path}/read", "--shards", str(shards)]
    assert said(capsys, *given, "--output", f"{tmp_path}/words")[0] == 0
    made = ShardIndex.load(tmp_path / "words")
    labels = ShardReader(made).labels(0)
    assert labels["text"] == "one two"
    assert "phones" not in labels
    # A model of letters has read: its text is the label
    lines = [Line(index.key(i), "TEN", "a word") for i in range(len(index))]
    write(tmp_path / "letters", lines, [], {"wer": 0.5}, "word")
    given = ["label", f"{tmp_path}/letters", "--shards", str(shards)]
    assert said(capsys, *given, "--output", f"{tmp_path}/second")[0] == 0
    assert ShardReader(ShardIndex.load(tmp_path / "second")).labels(3)["text"] == "a word"


@pytest.mark.parametrize(
    ("which", "options", "message"),
    [
        ("empty", [], "hypotheses are empty: nothing can be learned from them"),
        ("others", [], "give the shards that the features were made of"),
        ("phones", ["--units", "words"], "are no words of a lexicon"),
        ("phones", ["--data", "x"], "has been read already: leave out --data, or give"),
        (
            "phones",
            ["--tune", "x", "--silence-weight", "0", "--lm-weight", "1"],
            "has been read already: leave out --silence-weight, --tune, --lm-weight, or give",
        ),
        ("letters", ["--units", "phones"], "was read in letters, not in phones"),
    ],
)
def test_labels_that_cannot_be(
    shards: Path, tmp_path: Path, capsys, which: str, options: list[str], message: str
) -> None:
    index = ShardIndex.load(shards)
    folder = tmp_path / "read"
    if which == "others":
        write(folder, [Line("nobody", "", "a b")], [], {"asked": {}}, "word")
    elif which == "letters":
        write(folder, [Line(index.key(0), "", "a b")], [], {"wer": 0.1}, "word")
    else:
        readings(folder, index, empty=100 if which == "empty" else 0)
    given = ["label", str(folder), "--shards", str(shards), "--output", f"{tmp_path}/out"]
    status, out = said(capsys, *given, *options)
    assert status == 2
    assert message in out
    assert not (tmp_path / "out/index.json").exists()


def test_a_folder_that_cannot_be_written_to_is_said_first(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    given = ["label", f"{readings(tmp_path / 'read', ShardIndex.load(shards))}"]
    given += ["--shards", str(shards), "--output", f"{tmp_path}/out", "--kaldi"]
    status, out = said(capsys, *given, f"{tmp_path}/file")
    assert status == 2
    assert "--kaldi" in out
    assert said(capsys, *given, f"{tmp_path}/kaldi")[0] == 0, "nothing was written the first time"


def test_what_hears_audio_does_not_take_a_generator(run: Path) -> None:
    with pytest.raises(ConfigError, match="is a generator of wav2vec-U: it hears features"):
        open_model(str(run / "run"))


def test_the_alphabet_of_symbols() -> None:
    letters = alphabet_of(SYMBOLS)
    assert letters.symbols == PHONES
    silence = len(SYMBOLS) - 1
    assert letters.decode([0, 4, 4, silence, 4, 5, 1]) == "a a b"


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("label", "nowhere", "nowhere does not exist: give a run of task unsupervised, or a folder "
         "of what was read"),
        ("label", "sweep", "holds 2 runs (one, …): give one of them; `w2v2dist unsupervised"),
        ("label", "decoded", "has several folders of what was read: give one of them (a, b)"),
        ("label", "shards", "shards is something else: give a run of task unsupervised, or"),
        ("label", "sweep/two", "two has not saved a checkpoint yet"),
        ("decode", "nowhere", "nowhere does not exist: give a run of task unsupervised"),
        ("decode", "sweep", "holds 2 runs (one, …)"),
        ("decode", "shards", "is something else: give a run of task unsupervised"),
    ],
)  # fmt: skip
def test_what_is_no_run(
    shards: Path, tmp_path: Path, capsys, command: str, name: str, message: str
) -> None:
    for cell in ("one", "two"):
        (tmp_path / "sweep" / cell).mkdir(parents=True)
        (tmp_path / "sweep" / cell / "config.yaml").write_text("task: unsupervised\n")
    for reading in ("b", "a"):
        readings(tmp_path / "decoded" / reading, ShardIndex.load(shards))
    (tmp_path / "shards").symlink_to(shards)
    given = ["--shards", str(shards), "--output", f"{tmp_path}/out"] * (command == "label")
    status, out = said(capsys, command, f"{tmp_path}/{name}", *given)
    assert status == 2
    assert message in out
    assert not (tmp_path / "out").exists()
