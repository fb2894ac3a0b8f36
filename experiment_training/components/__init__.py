"""Components: importing this package registers all that ships; heavy libraries are imported where they are used."""

from experiment_training.components import dataloader, evaluation, loss, optimizer, trainer

__all__ = ["dataloader", "evaluation", "loss", "optimizer", "trainer"]
