"""wav2vec 2.0 as plain `nn.Module`s: both models, their configuration, masks and losses."""

from w2v2dist.model.config import Wav2Vec2Config
from w2v2dist.model.ctc import CTCOutput, Wav2Vec2ForCTC, ctc_loss
from w2v2dist.model.language_model import LanguageModelConfig, TransformerLanguageModel
from w2v2dist.model.masking import channel_mask, distractor_positions, span_mask
from w2v2dist.model.wav2vec2 import PretrainingOutput, Wav2Vec2ForPretraining, Wav2Vec2Model
