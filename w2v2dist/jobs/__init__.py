"""How ranks are started: on a Slurm cluster, on this machine, and what they would need."""
