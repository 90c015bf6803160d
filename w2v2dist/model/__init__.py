"""wav2vec 2.0 as plain `nn.Module`s: both models, their configuration, masks and losses."""

from w2v2dist.model.config import Wav2Vec2Config as Wav2Vec2Config
from w2v2dist.model.ctc import CTCOutput as CTCOutput
from w2v2dist.model.ctc import Wav2Vec2ForCTC as Wav2Vec2ForCTC
from w2v2dist.model.ctc import ctc_loss as ctc_loss
from w2v2dist.model.masking import channel_mask as channel_mask
from w2v2dist.model.masking import distractor_positions as distractor_positions
from w2v2dist.model.masking import span_mask as span_mask
from w2v2dist.model.wav2vec2 import PretrainingOutput as PretrainingOutput
from w2v2dist.model.wav2vec2 import Wav2Vec2ForPretraining as Wav2Vec2ForPretraining
from w2v2dist.model.wav2vec2 import Wav2Vec2Model as Wav2Vec2Model
