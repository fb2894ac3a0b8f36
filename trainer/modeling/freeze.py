"""Freeze: parts of a component that training leaves as they are.

A frozen parameter has no gradient, so no optimizer takes it and DistributedDataParallel puts it in no bucket. A frozen
module stays in eval mode, so that a batch norm in it keeps its statistics and a dropout drops nothing.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from model_constructor import select
from model_constructor.errors import Problem
from trainer.modeling.problems import PlaceOf, collected, refuse


def freeze(component: nn.Module, selectors: Sequence[str] | None, place: PlaceOf) -> None:
    """Freeze what `selectors` name, or everything. Raises ConfigError where one names nothing or a buffer."""
    problems: list[Problem] = []
    parts: dict[str, nn.Module | Tensor] = {} if selectors is not None else {"": component}
    for position, selector in enumerate(selectors or ()):
        where = place("freeze", str(position))
        with collected(problems):
            found = select(selector, component, where)
            parts |= found
            for name, part in found.items():
                if not isinstance(part, nn.Module | nn.Parameter):
                    hint = "it has no gradient; to keep what a module does to its buffers, freeze the module"
                    problems.append(Problem(f"'{name}' is a buffer", where, hint))
    refuse(problems)
    for part in parts.values():
        part.requires_grad_(False)
        if isinstance(part, nn.Module):
            part.eval()
            for module in part.modules():
                module.train = StaysInEval(module)


class StaysInEval:
    """Stands for a module's `train`. An object, not a closure: a copy of the module gets one of its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return self.module
