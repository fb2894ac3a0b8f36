"""Factories: `model` of the config -> an nn.ModuleDict of named components, initialised and frozen as configured."""

import types
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from model_constructor import build_model
from trainer.config import RunConfig

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
CONVOLUTIONS = nn.modules.conv._ConvNd


def build_components(config: RunConfig) -> nn.ModuleDict:
    """Every component, on the CPU, from `seed` alone: equal on every process and machine."""
    torch.manual_seed(config.experiment.seed)
    model = config.experiment.model
    components = nn.ModuleDict()
    for name, text in model.component_config_paths.items():
        path = config.folders.find(text)
        assert path is not None, "the config's checks found every component file"
        params = model.component_params.get(name, {})
        component = build_model(path, params=params, allow_imports=config.experiment.plugins)
        if model.build_args(name).init:
            initialise(component)
        if model.build_args(name).freeze:
            freeze(component)
        components[name] = component
    return components


@torch.no_grad()
def initialise(component: nn.Module) -> None:
    """Xavier for linear maps and attention, Kaiming for convolutions, ones and zeros for norms, zero biases."""
    for module in component.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.MultiheadAttention):
            for weight in (module.in_proj_weight, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight):
                if weight is not None:  # one packed projection, or three of different widths
                    nn.init.xavier_uniform_(weight)
            if module.in_proj_bias is not None:
                nn.init.zeros_(module.in_proj_bias)
        elif isinstance(module, CONVOLUTIONS):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, NORMS) and module.weight is not None:
            nn.init.ones_(module.weight)
        else:
            continue
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)


def freeze(component: nn.Module) -> None:
    """No gradient, and eval mode even after `.train()` of whatever holds it."""
    component.requires_grad_(False)
    component.eval()
    component.train = types.MethodType(_stay_in_eval, component)  # bound, so that a deep copy freezes itself


def _stay_in_eval(component: nn.Module, mode: bool = True) -> nn.Module:
    return component


@dataclass(frozen=True)
class Component:
    """One row of the component table."""

    name: str
    parameters: int
    trainable: int
    mode: str
    dtype: str
    optimizer: str
    peak_lr: str


def describe_components(
    config: RunConfig, models: nn.ModuleDict, optimizers: Mapping[str, Optimizer]
) -> list[Component]:
    rows = []
    for name, component in models.items():
        parameters = list(component.parameters())
        entry = config.experiment.model.component_optims.get(name)
        optimizer, peak_lr = "none", "-"
        if name in optimizers and entry is not None:
            optimizer = entry.type
            group = optimizers[name].param_groups[0]
            peak_lr = f"{group.get('peak_lr', entry.params.get('peak_lr', group['lr'])):.3g}"
        elif entry is not None:
            optimizer = f"none ({entry.type} skipped)"
        rows.append(
            Component(
                name=name,
                parameters=sum(parameter.numel() for parameter in parameters),
                trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
                mode="frozen" if config.experiment.model.build_args(name).freeze else "train",
                dtype=" ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}))
                or "-",
                optimizer=optimizer,
                peak_lr=peak_lr,
            )
        )
    return rows
