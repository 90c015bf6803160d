"""Checkpoints of a run: `{name: range}` of any world size, in step folders committed by rename."""

from w2v2dist.checkpoint.folders import SUMS, candidates, find, point, read_meta, remove, step_of
from w2v2dist.checkpoint.ranges import FlatRange, held
from w2v2dist.checkpoint.read import load, load_into, read_parameters
from w2v2dist.checkpoint.together import CheckpointError
from w2v2dist.checkpoint.write import Retention, Writer, write_parameters
