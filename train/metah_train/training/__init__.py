"""Training: the loop, its schedule and sampling, checkpoints, several processes."""
