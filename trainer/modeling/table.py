"""Table: what each component is and how it trains, in one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.modeling.lora import has_lora

if TYPE_CHECKING:
    from trainer.config import RunConfig

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Component:
    """One row of the component table."""

    name: str
    parameters: int
    trainable: int
    mode: str  # train, partly frozen, frozen, or lora
    dtype: str
    optimizer: str
    peak_lr: str  # of each group


def describe_components(
    config: RunConfig, models: nn.ModuleDict, optimizers: Mapping[str, Optimizer]
) -> list[Component]:
    rows = []
    for name, component in models.items():
        parameters = list(component.parameters())
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        dtypes = sorted({SHORT.get(one.dtype, str(one.dtype).removeprefix("torch.")) for one in parameters})
        entry = config.experiment.model.component_optims.get(name)
        optimizer, peak_lr = "none", "-"
        if name in optimizers and entry is not None:
            optimizer, peak_lr = entry.type, " / ".join(_peak_rates(optimizers[name]))
        elif entry is not None:
            optimizer = "none: skipped"  # nothing trains that it could step
        rows.append(
            Component(
                name=name,
                parameters=sum(parameter.numel() for parameter in parameters),
                trainable=sum(parameter.numel() for parameter in trainable),
                mode=_mode(component, len(parameters), len(trainable)),
                dtype=" ".join(dtypes) or "-",
                optimizer=optimizer,
                peak_lr=peak_lr,
            )
        )
    return rows


def _mode(component: nn.Module, parameters: int, trainable: int) -> str:
    if parameters and not trainable:
        return "frozen"
    if has_lora(component):
        return "lora"
    return "train" if trainable == parameters else "partly frozen"


def _peak_rates(optimizer: Optimizer) -> list[str]:
    """Each once, in the order of the groups."""
    rates = [group.get("peak_lr", group.get("max_lr", group["lr"])) for group in optimizer.param_groups]
    return [*dict.fromkeys(f"{float(rate):.3g}" for rate in rates)]
