"""All that a training imports, once: the processes of tests are forked from here."""

import importlib
import pkgutil

import deepspeed
import torch.distributed.checkpoint
import torch.utils.tensorboard
import torchaudio

import w2v2dist

__all__ = ["deepspeed", "torch", "torchaudio"]

for module in pkgutil.walk_packages(w2v2dist.__path__, "w2v2dist."):
    importlib.import_module(module.name)
