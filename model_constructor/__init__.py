"""YAML graphs -> ordinary, fast `nn.Module`s. `build_model` is the whole interface; the rest is for extending it."""

from .build import build_model
from .config import Config, load_config
from .errors import ConfigError, Place, Problem
from .model import GraphModel
from .names import Registry, register

__all__ = [
    "Config",
    "ConfigError",
    "GraphModel",
    "Place",
    "Problem",
    "Registry",
    "build_model",
    "load_config",
    "register",
]
