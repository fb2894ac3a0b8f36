"""YAML graphs -> ordinary, fast `nn.Module`s. `build_model` is the whole interface; the rest is for extending it."""

from .build import build_model, compile_ir
from .config import Config, load_config
from .errors import ConfigError, Place, Problem
from .model import GraphModel
from .names import Registry, register
from .selectors import select, select_parameters
from .source import dump
from .version1 import resolve_config
from .weights import load_weights

__all__ = [
    "Config",
    "ConfigError",
    "GraphModel",
    "Place",
    "Problem",
    "Registry",
    "build_model",
    "compile_ir",
    "dump",
    "load_config",
    "load_weights",
    "register",
    "resolve_config",
    "select",
    "select_parameters",
]
