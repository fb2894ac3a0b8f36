"""Modeling: component model files -> the modules that train."""

from trainer.modeling.factories import Component, build_components, describe_components

__all__ = ["Component", "build_components", "describe_components"]
