"""YAML graphs -> ordinary, fast `nn.Module`s. `build_model` is the whole interface; the rest is for extending it."""

from .build import build_model
from .config import Config, load_config
from .errors import ConfigError, Place, Problem
from .model import GraphModel
from .names import Registry, register
from .source import dump

__all__ = [
    "Config",
    "ConfigError",
    "GraphModel",
    "Place",
    "Problem",
    "Registry",
    "build_model",
    "dump",
    "load_config",
    "register",
]
