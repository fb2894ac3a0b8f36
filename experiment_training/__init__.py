"""Experiments: the components that ship with the trainer, and the configs that put them together."""
