"""Every training: its loop, what acts at a step, and the run folder."""
