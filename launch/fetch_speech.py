"""Bring real human speech for the demo, and split it: a little with its text to learn from, much
without, and what no training has for validation and test.

python launch/fetch_speech.py demo/speech           # speech that this machine can fetch
python launch/fetch_speech.py demo/own --audio DIR  # your recordings, where they are

Writes labelled/manifest.tsv, also for valid, test and unlabelled (audio alone), texts.txt for a
language model, and SOURCE.txt with what it is.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import re
import shutil
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from launch.speech_sources import UnavailableError, Utterance, fetch
from w2v2dist.data.text import READ_ALOUD, TextConfig, normalize

SPLITS = ("labelled", "unlabelled", "valid", "test")
LABELLED_S = 600  # the paper's smallest split: 10 minutes
MAX_LABELLED_S = 8  # of an utterance (data.max_crop of configs/tiny_finetune.yaml)
UNLABELLED_S = 5 * 3600  # more would not be used in the demo's minutes
HELD_OUT_S = {"test": 180, "valid": 90}  # and at most a sixth and a twelfth of what has a text
MIN_TRANSCRIBED = 20  # fewer say nothing about error rates: then only pre-training is shown
MIN_TEST_WORDS = 3  # of a held-out sentence, where there are enough such sentences


def main(argv: list[str] | None = None) -> int:
    """Fetch or find the speech and write the manifests; exit status 1 where there is none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder for the manifests (and what is fetched)")
    parser.add_argument("--audio", type=Path, help="use the recordings in this folder")
    args = parser.parse_args(argv)
    try:
        prepare(args.output, args.audio)
    except (UnavailableError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(output: Path, audio: Path | None = None) -> None:
    """Write the manifests and SOURCE.txt, or find them. Raises ValueError, UnavailableError."""
    statement = output / "SOURCE.txt"
    # An older version's speech has other splits, and no texts.txt
    if audio is None and statement.exists() and (output / "texts.txt").exists():
        print(f"speech is already in {output}: {statement.read_text().splitlines()[0]}")
        return
    output.mkdir(parents=True, exist_ok=True)
    if audio is not None:
        utterances, source = own_recordings(audio), f"Your recordings in {audio.resolve()}."
    else:
        utterances, source = fetch(output)
    splits, how = split(utterances)
    for name in SPLITS:
        shutil.rmtree(output / name, ignore_errors=True)
        if splits[name]:
            write_manifest(output / name, splits[name], with_text=name != "unlabelled")
    known = {u.text for name in ("labelled", "unlabelled") for u in splits[name] if u.text}
    (output / "texts.txt").write_text("".join(f"{t}\n" for t in sorted(known)), encoding="utf-8")
    counts = (f"{name} {minutes(splits[name]):.1f} min" for name in SPLITS if splits[name])
    statement.write_text(f"{source}\n{', '.join(counts)}. {how}\n", encoding="utf-8")
    print(statement.read_text(), end="")


def own_recordings(folder: Path) -> list[Utterance]:
    """All audio under `folder`, each recording once, with the texts of KEY.txt or of lines
    `KEY TEXT` in *.trans.txt.

    The speaker is the first folder on the way to a recording. Raises ValueError without audio, for
    texts that are not UTF-8, and for names that cannot stand in a manifest.
    """
    if not folder.is_dir():
        raise ValueError(
            f"AUDIO is {folder}, which is not a folder: name one that holds recordings"
        )
    kinds = {f".{kind.lower()}" for kind in soundfile.available_formats()}
    kinds |= {".opus", ".aif", ".nist", ".sph"}
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    found = [p for p in files if p.suffix.lower() in kinds]
    if not found:
        raise ValueError(
            f"AUDIO is {folder}, which holds no recordings (FLAC, WAV, MP3, OGG, Opus …)"
        )
    texts = _texts(files, {p.with_suffix("") for p in found})
    utterances = []
    for path in found:
        if not str(path).isprintable():
            raise ValueError(f"the name {str(path)!r} cannot stand in a manifest: rename it")
        above = path.relative_to(folder).parent.parts
        corpus = re.fullmatch(r"(\d+)-\d+-\d+", path.stem)  # LibriSpeech's names tell the speaker
        speaker = corpus[1] if corpus else (above[0] if above else "")
        text = " ".join(texts.get(path.with_suffix(""), "").split())
        utterances.append(Utterance(path.resolve(), text if _spelled(text) else None, speaker))
    return _each_once(utterances)


def _texts(files: list[Path], recordings: set[Path]) -> dict[Path, str]:
    """The text of each recording (without its suffix) that has one. Raises ValueError."""
    out: dict[Path, str] = {}
    for path in (p for p in files if p.suffix.lower() == ".txt"):
        table = path.name.lower().endswith(".trans.txt")
        if not table and path.with_suffix("") not in recordings:
            continue
        try:
            content = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8: iconv -f ITS_ENCODING -t UTF-8") from None
        if table:
            lines = (line.partition(" ") for line in content.split("\n"))
            out |= {path.parent / key: text for key, _, text in lines if key}
        else:
            out[path.with_suffix("")] = content
    return out


def _each_once(utterances: list[Utterance]) -> list[Utterance]:
    """Without links to, and copies of, a recording that is there; the one with a text stays."""
    sizes: dict[int, list[Utterance]] = defaultdict(list)
    for utterance in sorted(utterances, key=lambda u: not u.text):
        sizes[utterance.path.stat().st_size].append(utterance)
    kept = set[Utterance]()
    for alike in sizes.values():
        contents = set[object]()
        for utterance in alike:
            one = len(alike) == 1
            content = None if one else hashlib.sha256(utterance.path.read_bytes()).digest()
            if content not in contents:
                kept.add(utterance)
            contents.add(content)
    return [u for u in dict.fromkeys(utterances) if u in kept]


def _spelled(text: str) -> bool:
    """Whether a text has letters, and nothing of which only a person can tell how it is read."""
    letters = any(unicodedata.category(c)[0] == "L" for c in text)
    return letters and not any(c in READ_ALOUD or unicodedata.category(c)[0] == "N" for c in text)


def sentence(text: str | None) -> str:
    """A text without case and punctuation, by which a sentence is the same as another."""
    return normalize(text or "", TextConfig(form="NFKC", case="lower", keep=""))


# What no training may have of the test, in the order of preference
APART: dict[str, Callable[[Utterance], str]] = {
    "speakers": lambda u: u.speaker,
    "sentences": lambda u: sentence(u.text),
}
PLANS = (("speakers", "sentences"), ("speakers",), ("sentences",))


def split(utterances: list[Utterance]) -> tuple[dict[str, list[Utterance]], str]:
    """Cut into SPLITS, and say how: no training, pre-training included, has a recording of the test
    or the validation. Whole speakers are held out where there are five or more, and the sentences
    that they say, unless that leaves less than half to train on; else sentences are."""
    ordered = sorted(utterances, key=lambda u: _hash(f"{u.path.name} {u.text}"))
    usable = [u for u in ordered if u.text and seconds(u.path) <= MAX_LABELLED_S]
    if len(usable) < MIN_TRANSCRIBED or len({sentence(u.text) for u in usable}) < 5:
        return _split_untranscribed(ordered, len(usable))
    for plan in PLANS if len({u.speaker for u in usable}) >= 5 else PLANS[-1:]:
        out = _held_out(usable, plan)
        left = _apart(ordered, [u for split in out.values() for u in split], plan)
        known = {*usable} & {*left}
        if out["valid"] and minutes(known) >= minutes(usable) / 2:
            break
    # Sentences first: a single word is mostly the silence around it
    learnable = sorted((u for u in left if u in known), key=lambda u: " " not in str(u.text))
    out["labelled"] = _up_to(LABELLED_S, learnable)
    taken = {*out["labelled"]}
    out["unlabelled"] = _up_to(UNLABELLED_S, (u for u in left if u not in taken))
    return out, f"Validation and test hold {' and '.join(plan)} that no training has."


def _apart(
    ordered: list[Utterance], held: list[Utterance], plan: tuple[str, ...]
) -> list[Utterance]:
    """What shares nothing of the plan with what is held out."""
    paths = {u.path for u in held}
    out = [u for u in ordered if u.path not in paths]
    for name in plan:
        taken = {APART[name](u) for u in held}
        out = [
            u for u in out if (name == "sentences" and not u.text) or APART[name](u) not in taken
        ]
    return out


def _held_out(usable: list[Utterance], plan: tuple[str, ...]) -> dict[str, list[Utterance]]:
    """Utterances of HELD_OUT_S's splits: of one speaker after another, or one sentence after
    another."""
    what = plan[0]
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in usable:
        groups[APART[what](utterance)].append(utterance)
    names = sorted(
        groups, key=lambda name: _hash(name if what == "speakers" else str(groups[name][0].text))
    )
    if what == "sentences":
        long = [name for name in names if len(name.split()) >= MIN_TEST_WORDS]
        names = long if len(long) >= MIN_TRANSCRIBED else names
    total_s, said = sum(seconds(u.path) for u in usable), set[str]()
    out: dict[str, list[Utterance]] = {}
    for split, most_s in HELD_OUT_S.items():
        share_s = min(most_s, total_s * most_s / (6 * HELD_OUT_S["test"]))
        out[split] = _up_to(
            share_s, (u for n in names for u in groups[n] if sentence(u.text) not in said)
        )
        said |= {sentence(u.text) for u in out[split]} if "sentences" in plan else set()
        used = {APART[what](u) for u in out[split]}
        names = [name for name in names if name not in used]
    return out


def _up_to(limit_s: float, utterances: Iterable[Utterance]) -> list[Utterance]:
    """The first ones, until so many seconds are reached."""
    out, total_s = [], 0.0
    for utterance in utterances:
        if total_s >= limit_s:
            break
        out.append(utterance)
        total_s += seconds(utterance.path)
    return out


def _split_untranscribed(
    ordered: list[Utterance], num_transcribed: int
) -> tuple[dict[str, list[Utterance]], str]:
    limit_s = min(HELD_OUT_S["valid"], minutes(ordered) * 6)
    valid = _up_to(limit_s, (u for u in ordered if seconds(u.path) <= limit_s))
    held = {*valid}
    rest = [u for u in ordered if u not in held]
    out = {"unlabelled": _up_to(UNLABELLED_S, rest), "valid": valid, "labelled": [], "test": []}
    return out, (
        f"{num_transcribed} recordings have a usable transcript (KEY.txt beside KEY.wav, without "
        f"digits, of at most {MAX_LABELLED_S} s); {MIN_TRANSCRIBED} are needed, of 5 sentences: "
        "pre-training only."
    )


@functools.cache
def seconds(path: Path) -> float:
    """The length of a recording; 0 where it cannot be read, which building shards reports."""
    try:
        return float(soundfile.info(path).duration)
    except (OSError, soundfile.LibsndfileError):
        return 0.0


def minutes(utterances: Iterable[Utterance]) -> float:
    """Their length together."""
    return sum(seconds(u.path) for u in utterances) / 60


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, utterances: list[Utterance], *, with_text: bool) -> None:
    """manifest.tsv for shards/build.py, with paths relative to it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{os.path.relpath(u.path, folder.resolve())}\t{u.text if with_text and u.text else ''}"
        f"\t{u.speaker}\n"
        for u in utterances
    ]
    (folder / "manifest.tsv").write_text("path\ttext\tspeaker\n" + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
