"""Audio that stands in for speech, and folders of it as the corpora have them: a voiced source of
harmonics through moving formants, noise for fricatives, silence before stops, pauses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16_000
HOP = 160  # 10 ms: formants and loudness move at this pace
Wave = NDArray[np.float32]
# Formants in Hz (Peterson and Barney's means of men, nasals and liquids roughly)
VOICED = {
    "iy": (270, 2290, 3010), "ih": (390, 1990, 2550), "eh": (530, 1840, 2480),
    "ae": (660, 1720, 2410), "aa": (730, 1090, 2440), "ao": (570, 840, 2410),
    "uw": (300, 870, 2240), "ah": (640, 1190, 2390), "er": (490, 1350, 1690),
    "m": (250, 1000, 2200), "n": (250, 1400, 2300), "l": (360, 1100, 2600),
    "r": (420, 1300, 1600), "w": (300, 700, 2200), "y": (280, 2200, 2900), "hv": (500, 1600, 2500),
}  # fmt: skip
HISS = {"s": 0.02, "sh": 0.02, "f": 0.008, "th": 0.006}  # loudness of fricatives
STOPS = ("d", "t", "k", "g", "v")
WORDS = {
    "SHE": "sh iy", "HAD": "hv ae d", "YOUR": "y ao r", "DARK": "d aa r k", "SUIT": "s uw t",
    "IN": "ih n", "GREASY": "g r iy s iy", "WASH": "w aa sh", "WATER": "w ao t er", "ALL": "ao l",
    "YEAR": "y ih er", "ONE": "w ah n", "TWO": "t uw", "THREE": "th r iy", "FOUR": "f ao r",
    "SEVEN": "s eh v eh n", "TEN": "t eh n", "MORE": "m ao r",
}  # fmt: skip
SENTENCE = "SHE HAD YOUR DARK SUIT IN GREASY WASH WATER ALL YEAR"


@dataclasses.dataclass(kw_only=True)
class Utterance:
    """What was said: samples, and (start, end, name) of phones and words in samples."""

    wave: Wave
    phones: list[tuple[int, int, str]]
    words: list[tuple[int, int, str]]

    @property
    def text(self) -> str:
        return " ".join(word for _, _, word in self.words)


def say(words: list[str], seed: int, speaker: int = 0, pauses: float = 0.15) -> Utterance:
    """These words by one of many speakers, who differ in pitch and in the length of the throat."""
    rng = np.random.default_rng([seed, speaker])
    phones: list[tuple[int, int, str]] = []
    spoken: list[tuple[int, int, str]] = []
    position = 0

    def add(name: str, low_s: float, high_s: float) -> None:
        nonlocal position
        end = position + HOP * int(rng.integers(round(low_s * 100), round(high_s * 100) + 1))
        phones.append((position, end, name))
        position = end

    add("h#", 0.1, 0.3)
    for number, word in enumerate(words):
        if number and rng.random() < pauses:
            add("pau", 0.1, 0.5)
        start = position
        for phone in WORDS[word].split():
            add(phone, 0.06, 0.18 if phone in VOICED else 0.1)
        spoken.append((start, position, word))
    add("h#", 0.1, 0.3)
    return Utterance(wave=_render(phones, rng, speaker), phones=phones, words=spoken)


def _render(phones: list[tuple[int, int, str]], rng: np.random.Generator, speaker: int) -> Wave:
    num_frames = phones[-1][1] // HOP
    formants, loud, hiss = np.full((num_frames, 3), 500.0), *np.zeros((2, num_frames))
    for start, end, name in phones:
        frames = slice(start // HOP, end // HOP)
        if name in VOICED:
            formants[frames] = VOICED[name]
            loud[frames] = rng.uniform(0.6, 1) * (0.5 if name in ("m", "n") else 1)
        elif name in STOPS:
            hiss[end // HOP - 1] = 0.02  # the burst after the closure
        else:
            hiss[frames] = HISS.get(name, 0)

    def smooth(track: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.convolve(np.pad(track, 2, "edge"), np.ones(5) / 5, "valid")

    tract = 1 + 0.05 * (speaker % 5 - 1)
    formants = tract * np.stack([smooth(f) for f in formants.T], 1)
    times = np.arange(num_frames) / 100
    pitch = (90 + 37 * (speaker % 4)) * (1.1 - 0.03 * (times % 3) + 0.03 * np.sin(5 * times))
    at, samples = np.arange(num_frames) * HOP, np.arange(num_frames * HOP)
    source = np.exp(2j * np.pi / RATE * np.cumsum(np.interp(samples, at, pitch)))
    voice, harmonic = np.zeros(len(samples)), np.ones(len(samples), np.complex128)
    loud = smooth(loud)
    for k in range(1, int(3500 / pitch.min())):
        harmonic *= source
        distance = (k * pitch[:, None] - formants) / np.array([60, 90, 150])
        gain = loud * (np.array([1, 0.4, 0.15]) / (1 + distance**2)).sum(1)
        gain /= 1 + k * pitch / 1000  # the source's spectrum falls
        voice += np.interp(samples, at, gain) * harmonic.imag
    noise = np.diff(rng.standard_normal(len(samples) + 1))  # little of it below 1 kHz
    voice = 0.25 * voice + np.repeat(smooth(hiss), HOP) * noise
    voice += 3e-4 * rng.standard_normal(len(samples))  # the room
    return np.clip(voice, -0.99, 0.99).astype(np.float32)


def talk(num_samples: int, seed: int, speaker: int = 0) -> Wave:
    """Words without end, cut to this length."""
    rng = np.random.default_rng(seed)
    words = rng.choice(list(WORDS), num_samples // 3_000 + 1).tolist()
    return say(words, seed, speaker).wave[:num_samples]


def write_librispeech(folder: Path, speakers: dict[str, int], num_words: int,
                      text: bool = True) -> Path:  # fmt: skip
    """SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac with transcripts; `speakers`: utterances each."""
    for speaker, num_utterances in speakers.items():
        chapter = folder / speaker / "1"
        chapter.mkdir(parents=True)
        lines = []
        for number in range(num_utterances):
            rng = np.random.default_rng([int(speaker), number])
            count = int(rng.integers(num_words // 2, num_words + num_words // 2))
            said = say(rng.choice(list(WORDS), count).tolist(), number, int(speaker))
            key = f"{speaker}-1-{number:04d}"
            soundfile.write(chapter / f"{key}.flac", said.wave, RATE)
            lines.append(f"{key} {said.text}\n")
        if text:
            (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return folder


def write_timit(folder: Path, speakers: dict[str, str]) -> Path:
    """SPLIT/SPEAKER/NAME.flac with .phn, .wrd and .txt, and the transcripts in one file;
    `speakers`: drN-SPEAKER -> SPLIT. Sentence sa1 is the same for all."""
    for number, (speaker, split) in enumerate(speakers.items()):
        place = folder / split / speaker
        place.mkdir(parents=True)
        lines = []
        for k in range(10):
            name = f"sa{k + 1}" if k < 2 else f"sx{10 * k + number}"
            words = np.random.default_rng([number, k]).choice(list(WORDS), 8).tolist()
            said = say(SENTENCE.split() if k == 0 else words, k, number, pauses=0)
            soundfile.write(place / f"{name}.flac", said.wave, RATE)
            for suffix, rows in (("phn", said.phones), ("wrd", said.words)):
                listed = "".join(f"{a} {b} {label.lower()}\n" for a, b, label in rows)
                (place / f"{name}.{suffix}").write_text(listed)
            sentence = f"0 {len(said.wave)} {said.text.capitalize()}.\n"
            (place / f"{name}.txt").write_text(sentence)
            lines.append(f"{speaker}-{name} {said.text}\n")
        (place / f"{speaker}.trans.txt").write_text("".join(lines))
    return folder


def write_corpora(folder: Path) -> Path:
    """The folders of real speech that the tests know, in small."""
    libri = folder / "librispeech"
    write_librispeech(libri / "valid", {"367": 10, "533": 10}, 18)
    write_librispeech(libri / "train", {"19": 12, "26": 3}, 25)
    unlabelled = {str(100 + k): 1 for k in range(12)}
    write_librispeech(libri / "unlabelled", unlabelled, 25, text=False)
    write_librispeech(folder / "kathleen" / "valid", {"92001": 10}, 8)
    speakers = {"dr1-fvmh0": "train", "dr2-marc0": "train", "dr6-mbma1": "valid"}
    write_timit(folder / "timit", speakers)
    return folder
