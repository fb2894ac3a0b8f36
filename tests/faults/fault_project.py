"""A project of two small components and a data set of 48 frames; its run takes a fraction of a second."""

from collections.abc import Callable
from pathlib import Path

from fault_runs import Started, start

from trainer.offline_trainer import main

ENCODER = """\
schema_version: 2
params: {state_dim: 3, dim: 4}
inputs: {state: [B, T, state_dim]}
modules: {net: "Linear(state_dim, dim) >> GELU() >> Dropout(0.1)"}
outputs: net(state)
"""
HEAD = """\
schema_version: 2
params: {dim: 4, action_dim: 2}
inputs: {h: [B, T, dim]}
modules: {out: "Linear(dim, action_dim)"}
outputs: out(h)
"""
CONFIG = """\
plugins: [fault_plugin]
seed: 3
model:
  component_config_paths:
    encoder: encoder.yaml
    head: head.yaml
  component_optims:
    encoder: {type: adamw_warmup_cosine_decay, params: {peak_lr: 0.01, warmup_steps: 2}}
    head: {type: adamw_warmup_cosine_decay, params: {peak_lr: 0.02}}
data:
  datamodule: {type: drifts}
  batch_size: 8
  validation: {episodes: [5]}
train:
  trainer: {type: follower}
  loss: {type: l2_loss}
  ema: {decay: 0.9}
  max_steps: 6
  log_every: 1
  validate_every: 2
  save_every_steps: 2
  keep_last: 2
  keep_best: true
  save_dir: runs/run
"""


class Project:
    """A folder with a config, and its run in `runs/run`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config, self.run_dir = folder, folder / "config.yaml", folder / "runs/run"
        (folder / "pyproject.toml").touch()
        (folder / "encoder.yaml").write_text(ENCODER)
        (folder / "head.yaml").write_text(HEAD)
        self.config.write_text(CONFIG)

    def start(self, *overrides: str, resume: str = "none", inject: Callable | None = None) -> Started:
        """In a process of its own."""
        return start(self.config, overrides, resume, inject)

    def run(self, *overrides: str, resume: str = "none") -> int:
        """In this process, as the command line does it: the exit code."""
        given = ["--set", *overrides] if overrides else []
        return main(["--train_config", str(self.config), "--resume", resume, *given])
