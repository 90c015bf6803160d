"""What a generator reads in features when it is told the phones: the ceiling of one that is told
nothing. B utterances of a batch, T frames, C channels, O outputs, V symbols."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from w2v2dist.decode.scoring import errors
from w2v2dist.runtime.keyed import keyed_rng, keyed_seed
from w2v2dist.unsupervised.feature_store import Frames, Targets
from w2v2dist.unsupervised.generator import Generator, GeneratorConfig

NUM_STEPS, BATCH_SIZE, PEAK_LR = 600, 64, 1e-2
MOST = 200  # utterances of the training that are read
Utterance = tuple[Frames, Targets]  # (T, C), the phones that are said, silences not among them


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Phone errors, over phones that are said."""

    of_training: float  # of utterances that it was trained on
    of_others: float


def read_linearly(
    train: Sequence[Utterance],
    valid: Sequence[Utterance],
    config: GeneratorConfig,
    num_phones: int,
    seed: int,
) -> Reading:
    """Train a linear generator (one convolution) with CTC, whose blank is silence, on `train`, and
    read `valid`. The phones have the numbers 0 … `num_phones` - 1, silence the next one."""
    with torch.random.fork_rng():  # the dropout of all steps, too
        torch.manual_seed(keyed_seed(seed, "linear reading") % (1 << 63))
        generator = Generator(config, train[0][0].shape[1], num_phones + 1)
        optimizer = torch.optim.Adam(generator.parameters(), PEAK_LR, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, NUM_STEPS)
        rng = keyed_rng(seed, "linear reading")
        for _ in range(NUM_STEPS):
            drawn = [train[i] for i in rng.integers(len(train), size=BATCH_SIZE)]
            scores, sizes = _scores(generator, drawn)
            said = torch.from_numpy(np.concatenate([phones for _, phones in drawn]))
            lengths = torch.tensor([len(phones) for _, phones in drawn])
            # infinite where a sentence has fewer outputs than phones
            loss = torch.nn.functional.ctc_loss(
                scores.transpose(0, 1), said, sizes, lengths, num_phones, "sum", zero_infinity=True
            )
            optimizer.zero_grad()
            (loss / lengths.sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    generator.eval()
    of_training, of_others = (_per(generator, rows, num_phones) for rows in (train[:MOST], valid))
    return Reading(of_training=of_training, of_others=of_others)


def _scores(generator: Generator, rows: Sequence[Utterance]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, O, V), and how many outputs of each row are valid (B,)."""
    frames = [torch.from_numpy(frames) for frames, _ in rows]
    padding = torch.nn.utils.rnn.pad_sequence(
        [torch.zeros(len(row), dtype=torch.bool) for row in frames], True, True
    )
    out = generator(torch.nn.utils.rnn.pad_sequence(frames, True), padding)
    return out.logits.log_softmax(-1), (~out.padding).sum(1)


@torch.no_grad()
def _per(generator: Generator, rows: Sequence[Utterance], silence: int) -> float:
    """Phone errors of the most likely outputs, repeats joined."""
    read = []
    for row in rows:
        scores, sizes = _scores(generator, [row])
        joined = torch.unique_consecutive(scores[0, : int(sizes)].argmax(-1))
        read.append(_line(joined[joined != silence].tolist()))
    counted = errors([_line(phones.tolist()) for _, phones in rows], read, "word")
    return sum(one.total for one in counted) / sum(one.num_units for one in counted)


def _line(phones: Sequence[int]) -> str:
    return " ".join(map(str, phones))
