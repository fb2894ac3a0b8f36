"""Recompute: gradient checkpointing (Chen et al. 2016, section 4.1), less memory for one more forward pass.

Of each instance of a repeated block only the inputs are kept; the rest is computed again when the backward pass needs
it, with the same dropout, and on the buffers as they were, so that a batch norm counts a batch once.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from model_constructor import ConfigError
from model_constructor.errors import Problem
from trainer.modeling.problems import PlaceOf


def recompute_repeated_blocks(component: nn.Module, place: PlaceOf) -> None:
    """Raises ConfigError for a component that repeats nothing."""
    blocks = list(repeated_blocks(component))
    if not blocks:
        hint = "it recomputes the members of a list (Block() * n), and equal links of a chain, that hold modules"
        raise ConfigError(Problem("gradient_checkpointing: no block repeats", place("gradient_checkpointing"), hint))
    for block in blocks:
        block.forward = Recomputed(block)


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of lists, and the links of chains that have a sibling of their class."""
    members = list(module.children())
    kinds = Counter(type(member) for member in members)
    for member in members:
        repeats = isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and kinds[type(member)] > 1)
        is_called = type(member).forward is not nn.Module.forward  # and not only a list
        if repeats and is_called and any(True for _ in member.children()):
            yield member
        else:
            yield from repeated_blocks(member)


class Recomputed:
    """Stands for a block's `forward`. An object, not a closure: a copy of the block gets one of its own."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return checkpoint(self.run, args, kwargs, use_reentrant=False)  # the compiler updates a buffer once
        contexts = self.contexts if any(True for _ in self.block.buffers()) else noop_context_fn
        computed = Computed(self.run)
        result = checkpoint(computed, args, kwargs, use_reentrant=False, context_fn=contexts)
        if computed.error is not None:
            raise computed.error
        return result

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return type(self.block).forward(self.block, *args, **kwargs)

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """What surrounds the forward pass, and the computation of it again."""
        return nullcontext(), BuffersAsTheyAreNow(self.block)


class Computed:
    """A call that keeps the error of its first pass: one that went through torch's checkpoint would leave its hooks in
    place, and the next backward pass, whosever, would run into them. Of the second pass torch needs the errors."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run, self._is_first = run, True
        self.error: Exception | None = None

    def __call__(self, *args: Any) -> Any:
        if not self._is_first:
            return self._run(*args)
        self._is_first = False
        try:
            return self._run(*args)
        except Exception as error:
            self.error = error
            return None


class BuffersAsTheyAreNow(AbstractContextManager):
    """Inside, a block has copies of the buffers that it had when this was made; what is done to them is forgotten."""

    def __init__(self, block: nn.Module) -> None:
        self.modules = [module for module in block.modules() if module._buffers]
        self.kept = [_copies(module._buffers) for module in self.modules]

    def __enter__(self) -> None:
        self.outside = [module._buffers for module in self.modules]
        for module, buffers in zip(self.modules, self.kept, strict=True):
            module._buffers = _copies(buffers)

    def __exit__(self, *_: object) -> None:
        for module, buffers in zip(self.modules, self.outside, strict=True):
            module._buffers = buffers


def _copies(buffers: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()}
