"""Contrastive and diversity losses (section 3.2), summed as the reference implementation does.
B batch, M masked frames of a row, K distractors, F compared width, G codebooks, V entries."""

import torch
import torch.nn.functional as F
from torch import Tensor


def perplexity(probabilities: Tensor) -> Tensor:
    """exp(entropy) of every codebook's distribution (G, V), summed: 0-d, from G to G * V."""
    return (-(probabilities * (probabilities + 1e-7).log()).sum(-1)).exp().sum()


def contrastive_logits(
    context: Tensor, targets: Tensor, target_ids: Tensor, distractors: Tensor, temperature: float
) -> Tensor:
    """Cosine similarities / `temperature` in fp32, (B, M, 1 + K), positive first (equation 3).
    context, targets (B, M, F); distractors (B, M, K) positions among the row's masked frames;
    target_ids (B, M) int64, equal where targets are: a distractor that equals the positive gets
    -inf. All similarities of a row come from one product, so nothing of size (M, K, F) exists."""
    context = F.normalize(context.float(), dim=-1, eps=1e-8)
    targets = F.normalize(targets.float(), dim=-1, eps=1e-8)
    similarities = (context @ targets.transpose(1, 2)) / temperature  # (B, M, M)
    positives = similarities.diagonal(dim1=1, dim2=2).unsqueeze(2)
    drawn_ids = target_ids.unsqueeze(1).expand_as(similarities).gather(2, distractors)
    negatives = similarities.gather(2, distractors)
    negatives = negatives.masked_fill(drawn_ids == target_ids.unsqueeze(2), float("-inf"))
    return torch.cat([positives, negatives], dim=2)


def contrastive_loss(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the positive summed over frames, and how many frames chose it (both 0-d); a
    frame whose logits are all equal chose nothing."""
    flat = logits.flatten(0, 1).float()
    loss = F.cross_entropy(flat, flat.new_zeros(len(flat), dtype=torch.int64), reduction="sum")
    correct = (flat.argmax(-1) == 0) & (flat.argmin(-1) != 0)
    return loss, correct.sum()


def diversity_loss(prob_perplexity: Tensor, num_entries: int) -> Tensor:
    """(G * V - perplexity) / (G * V), 0 where all `num_entries` = G * V are used equally."""
    return (num_entries - prob_perplexity) / num_entries


def code_ids(codes: Tensor, num_codebook_entries: int) -> Tensor:
    """One number for each combination of codes: (B, M, G) int64 -> (B, M) int64."""
    powers = num_codebook_entries ** torch.arange(codes.shape[-1], device=codes.device)
    return (codes * powers).sum(-1)


def vector_ids(vectors: Tensor) -> Tensor:
    """Numbers that are equal where vectors are equal to the bit: (B, M, C) float -> (B, M) int64. A
    hash in integers modulo 2**64: unlike a sum of floats it does not depend on the order."""
    vectors = vectors.detach().float() + 0.0  # makes -0.0 the same as 0.0
    bits = vectors.contiguous().view(torch.int32).long()
    index = torch.arange(1, vectors.shape[-1] + 1, device=vectors.device)
    weights = (index * 0x9E3779B97F4A7C1 + 0x632BE59BD9B4E019) * index | 1
    return ((bits ^ (bits << 29)) * weights).sum(-1)
