"""Imitation learning: the trainers of the experiments, one folder per family."""
