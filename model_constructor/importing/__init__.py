"""Importing: a plain nn.Module -> a model file that does the same, proven before it is handed over.

    text = import_module(timm.create_model("resnet18"), {"x": ["B", 3, 224, 224]}).text

The walk: `examples` are made of the inputs, `recording` runs the module on them and notes what it does, `folding` finds
the blocks in that, `writing` lays them out, `proof` builds the file and compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .examples import Examples
from .folding import fold
from .proof import Imported, prove
from .recording import record
from .writing import write


def import_module(
    module: nn.Module,
    inputs: Mapping[str, Any],
    sizes: Mapping[str, int] | None = None,
    *,
    title: str = "",
) -> Imported:
    """The model file of a module that was written in Python; the module is left as it is.

    inputs: of its forward, by name, as a file declares them: {"x": ["B", 3, 224, 224]}, or the full form with a dtype.
    sizes: of the symbols in them; one that leads a shape is 2 if absent.
    title: what the first comment calls the module; its class if absent.

    The module runs in eval mode, for two choices of its sizes. The file is then built and compared with it: the names
    and shapes of all tensors, the outputs for equal weights and random inputs, and what an update in training mode
    sees. Raises ConfigError with what a model file cannot say, or where the two differ.
    """
    examples = Examples(module, inputs, sizes or {})
    runs = [record(examples.module, examples.values(one))[0] for one in examples.sizes]
    forms, differing = fold(examples.module, runs, examples.training())
    kind = type(module)
    head = f"{title or f'{kind.__module__}.{kind.__qualname__}'}{examples.note}"
    head += "\nWeights: the state dict of the module. Without it they begin as torch makes them, and a Param as zeros."
    if differing:
        head += f"\nThis is what it does in eval mode; in training other steps are taken in {', '.join(differing)}."
    text = write(forms, examples.declared, examples.sizes, head)
    return prove(text, examples)
