"""Frames: the traceback of an exception -> the frames it came through, the outermost first.

While `torch.compile` traces, the frames of a model do not run: PyTorch interprets them. What it was tracing when it
failed stands in the traceback here as if it had run, its tensors without data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import CodeType, TracebackType
from typing import Any

Position = tuple[int | None, int | None, int | None, int | None]  # first and last line, first and last column


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    code: CodeType
    position: Position  # of what failed
    scope: Mapping[str, Any]  # globals
    names: Mapping[str, Any]  # local variables
    is_traced: bool


def frames(step: TracebackType | None) -> Iterator[Frame]:
    interpreter = None
    while step is not None:
        frame = step.tb_frame
        if frame.f_globals.get("__name__") == "torch._dynamo.symbolic_convert" and frame.f_code.co_name == "step":
            before, interpreter = interpreter, frame.f_locals["self"]
            if interpreter is not before:  # what a traced `raise` raises comes through each frame twice
                yield _traced(interpreter, frame.f_locals["inst"])
        else:
            position = next(islice(frame.f_code.co_positions(), step.tb_lasti // 2, None))
            yield Frame(frame.f_code, position, frame.f_globals, frame.f_locals, False)
        step = step.tb_next


def _traced(interpreter: Any, instruction: Any) -> Frame:
    """A frame that PyTorch interprets, and the instruction it was at."""
    at = instruction.positions
    position = (None,) * 4 if at is None else (at.lineno, at.end_lineno, at.col_offset, at.end_col_offset)
    names = {name: _value(variable) for name, variable in interpreter.symbolic_locals.items()}
    return Frame(interpreter.f_code, position, interpreter.f_globals, names, True)


def _value(variable: Any) -> Any:
    """What a variable of the interpreter stands for; the variable itself where nothing else is known."""
    from torch._dynamo import variables

    if type(variable) is variables.LazyVariableTracker:
        if not variable.is_realized():
            return variable.peek_value()
        variable = variable.unwrap()
    if isinstance(variable, variables.TensorVariable):
        return variable.proxy.node.meta.get("example_value", variable)
    if isinstance(variable, variables.BaseListVariable):
        entries = [_value(entry) for entry in variable.items]
        return tuple(entries) if variable.python_type() is tuple else entries
    if isinstance(variable, variables.ConstDictVariable):
        return {_value(key.vt): _value(entry) for key, entry in variable.items.items()}
    if isinstance(variable, variables.ConstantVariable):
        return variable.value
    return getattr(variable, "value", variable)  # of a module: the module
