"""w2v2dist: wav2vec 2.0 pre-training and fine-tuning on GPU clusters."""

__version__ = "0.1.0"
