"""Train configs: YAML -> validated sections."""

from trainer.config.loader import RunConfig, load_run_config, written_overrides
from trainer.config.schemas import ExperimentConfig

__all__ = ["ExperimentConfig", "RunConfig", "load_run_config", "written_overrides"]
