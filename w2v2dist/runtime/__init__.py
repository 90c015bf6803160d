"""The ground under every process: the job's processes, signals, hangs, logs, keyed randomness."""
