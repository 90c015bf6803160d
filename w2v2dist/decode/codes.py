"""The codes of a pre-trained model's quantizer, of every frame of shards, beside their phones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from w2v2dist.config import ConfigError
from w2v2dist.data.audio import BadSample, Waveform
from w2v2dist.data.reader import ShardReader
from w2v2dist.data.timit import fold
from w2v2dist.decode.chunks import heard
from w2v2dist.decode.code_counts import CodeCounts, Ints, frame_labels
from w2v2dist.decode.phone_times import BadTimesError, Labeller, checked, num_overlapping
from w2v2dist.interop.foreign import CALLED
from w2v2dist.interop.open import OpenedModel
from w2v2dist.model import Wav2Vec2ForPretraining

Fold = Literal["61", "48", "39", "none"]


@dataclass(kw_only=True, slots=True)
class Listener:
    """Counts the codes of utterances, with their phones where these are known."""

    model: Wav2Vec2ForPretraining
    normalized: bool
    device: torch.device
    find: Labeller
    fold: Fold
    counts: CodeCounts
    skipped: list[dict[str, str]] = field(default_factory=list)  # audio that cannot be used
    without: list[dict[str, str]] = field(default_factory=list)  # utterances without phones
    num_heard: int = 0

    def codes(self, wave: Waveform) -> Ints:
        """(S,) -> (T, G), in parts where it is long, each of which is normalised by itself."""
        parts = [
            self.model.codes(part)[0, kept].cpu().numpy()
            for part, kept in heard(wave, self.model.config, self.normalized, self.device)
        ]
        if not parts:
            raise BadSample("is shorter than a frame")
        return np.concatenate(parts)

    def add(self, reader: ShardReader, i: int) -> None:
        """Count an utterance, or note why it cannot be."""
        key, speaker = reader.index.key(i), int(reader.index.speaker[i])
        try:
            labels, wave = reader.labels(i), reader.audio(i)
            codes = self.codes(wave)
        except BadSample as error:
            self.skipped.append({"key": key, "reason": str(error)})
            return
        self.num_heard += 1
        named = reader.index.speakers[speaker] if speaker >= 0 else None
        self.counts.add(codes, self._labels(key, labels, len(wave), len(codes)), named)

    def _labels(
        self, key: str, labels: Mapping[str, Any], num_samples: int, num_frames: int
    ) -> Ints | None:
        """The phones (T,) of the frames, None where there are none."""
        try:
            found = self.find(key, labels)
            phones = None if found is None else checked(found, num_samples)
        except BadTimesError as error:
            self.without.append({"key": key, "reason": str(error)})
            return None
        if not phones:
            self.without.append({"key": key, "reason": "no phones with times are known of it"})
            return None
        self.counts.num_overlapping += num_overlapping(phones)
        ids = [self.counts.number(self._folded(key, row.phone)) for row in phones]
        return frame_labels(phones, ids, num_frames, self.model.config)

    def _folded(self, key: str, phone: str) -> str | None:
        if self.fold == "none":
            return phone
        known = fold(int(self.fold))
        if phone.lower() not in known:
            raise ConfigError(
                f"utterance {key} has the phone {phone!r}, which is none of TIMIT's "
                f"{self.fold} or those that they are folded of: --fold none counts phones "
                "as they are"
            )
        return known[phone.lower()]


def quantized(opened: OpenedModel) -> Wav2Vec2ForPretraining:
    """The pre-trained model with its codes. Raises ConfigError of one that has none."""
    model = opened.module
    if not isinstance(model, Wav2Vec2ForPretraining):
        raise ConfigError(
            f"{opened.source} is {CALLED[opened.kind]}, whose quantizer was left behind: name the "
            "pre-trained model that it was made of"
        )
    if model.quantizer is None:
        raise ConfigError(
            f"{opened.source} has continuous targets (model.quantize_targets is false): it has "
            "no codes"
        )
    return model
