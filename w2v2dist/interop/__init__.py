"""Checkpoints to and from fairseq, Hugging Face and torchaudio. Weights are copied as they are: a
round trip returns the same bits. A model that a library cannot hold is an error."""

from w2v2dist.interop.language_model import OpenedLanguageModel, open_language_model
from w2v2dist.interop.load import load_fairseq, load_huggingface, load_torchaudio
from w2v2dist.interop.names import fairseq_name
from w2v2dist.interop.open import OpenedModel, open_model
from w2v2dist.interop.save import save_fairseq, save_huggingface, save_torchaudio
