"""Failure: an exception on its way out of a model -> notes that say in which node it arose, and what that node read.

Nothing here runs unless something fails, and nothing of what failed is kept but text. While `torch.compile` or a
strict `torch.export` traces, no handler of a model runs: PyTorch is asked to call `_trace_ended` when it is through.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .block import Block, expressions
from .compiler import Compiled
from .errors import Place
from .expressions import Expression
from .frames import Frame, frames

if TYPE_CHECKING:
    from .model import GraphModel

SHOWN = 4  # entries of a list or dict
_CALLS = vars(torch.nn.modules.module)  # the globals of the functions that call a forward
_READ = (ast.Name, ast.Attribute, ast.Subscript)


def explain(error: Exception, model: GraphModel) -> None:
    """Add a note to `error` for each compiled function of `model` that it came through, the innermost first.

    Called by the handler in `GraphModel.__call__`; the models around this one add their own notes after these.
    """
    if type(error).__module__ == "torch.utils.checkpoint":
        return  # no failure: checkpointing ends each recomputation with an exception
    first = error.__traceback__
    assert first is not None  # the call of this model
    with _own_fault_told(error):
        *_, root = [model, *_callers(first.tb_frame.f_back, first.tb_frame.f_code)]
        _add_notes(error, _notes(list(frames(first.tb_next)), model, root, isinstance(error, TypeError)))


def trace_begins() -> bool:
    """PyTorch calls this while it traces a call of a model: a failure of the trace will be explained.

    Whether the model shall do without a handler: where the trace must become one graph, PyTorch names the line of a
    handler that it passes instead of those of the failure; elsewhere what runs between two graphs needs one.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        trace = InstructionTranslator.current_tx()
        hooks, is_one_graph = trace.output.cleanup_hooks, trace.one_graph
    except AttributeError:
        return False  # it is private and may change: then PyTorch alone tells of failures while tracing
    if not any(getattr(hook, "func", None) is _trace_ended for hook in hooks):
        hooks.append(partial(_trace_ended, sys.exc_info()[1]))
    return bool(is_one_graph)


# As `torch.compiler.assume_constant_result` does, which imports the compiler: called while tracing, part of no graph
trace_begins._dynamo_marked_constant = True  # pyrefly: ignore[missing-attribute]


def _trace_ended(handled: BaseException | None) -> None:
    """Explain what ended a trace, if it failed. handled: the error within whose handler all this may happen."""
    error = sys.exc_info()[1]
    if error is handled or not isinstance(error, Exception):
        return
    with _own_fault_told(error):
        from torch._dynamo.exc import ObservedException, ObservedTypeError, RestartAnalysis, SkipFrame

        if isinstance(error, RestartAnalysis | SkipFrame):
            return  # PyTorch begins anew, or lets Python run the model
        raised = error.__cause__ if isinstance(error.__cause__, ObservedException) else error  # by a `raise` it traced
        steps, call = list(frames(raised.__traceback__)), _call()
        models = [step.names["self"] for step in steps if step.code is call]  # none: it arose behind them
        if models and not any(_callers(sys._getframe(), call)):  # else a handler there will explain it
            _add_notes(error, _notes(steps, models[0], models[0], isinstance(raised, TypeError | ObservedTypeError)))


@contextmanager
def _own_fault_told(error: Exception) -> Iterator[None]:
    """A fault of ours must not take the place of the user's error."""
    try:
        yield
    except Exception as fault:
        error.add_note(f"(where in the model file this was cannot be told: {type(fault).__name__}: {fault})")


def _add_notes(error: Exception, notes: Iterator[str]) -> None:
    for note in reversed(list(notes)):
        if note not in getattr(error, "__notes__", ()):  # one error may be raised by several calls
            error.add_note(note)


def _notes(steps: list[Frame], model: GraphModel, root: GraphModel, may_not_bind: bool) -> Iterator[str]:
    """What there is to say of each step, the outermost first. may_not_bind: the error is one of wrong arguments."""
    call = _call()
    last = max((place for place, step in enumerate(steps) if step.is_traced), default=len(steps) - 1)
    path, functions = _path(model, root), _functions(model)
    for place, step in enumerate(steps):
        compiled = functions.get(_key(step.code))
        if step.code is call:
            if not step.is_traced:
                return  # which begins an inner model: its notes are there
            model = step.names["self"]
            path, functions = _path(model, root), _functions(model)
        elif compiled is not None:
            yield _note(step, steps[place + 1 :], compiled, model, path)
            path = ""  # what this function calls are blocks without modules
        elif may_not_bind and place == last and step.scope is _CALLS:
            yield _signature(model._block)  # its forward was not entered: the arguments do not bind


def _note(step: Frame, inner: list[Frame], compiled: Compiled, model: GraphModel, path: str) -> str:
    """Where in the file a function failed, and what the expression there reads."""
    block = compiled.block
    if None in step.position and _keeps_columns():
        return f"{block.node.place}  in '{block.name}'{f' ({path})' if path else ''}, in code that PyTorch has compiled"
    where, names, place = _locate(step, compiled)
    calling = next((called for called in (_part(further, model) for further in inner) if called), "")
    tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    known = {_dotted(name): tensor for name, tensor in tensors} | dict(step.names)
    read = {name: known[name] for name in names if name in known}
    return "".join(
        (
            f"{place}  in {where} of '{block.name}'",
            f" ({path})" if path else "",
            f", calling {calling}" if calling else "",
            ": " if read else "",
            ", ".join(f"{name} {_describe(value)}" for name, value in read.items()),
            f"\n{place.excerpt()}" if step.is_traced else "",  # what did not run has no caret in the traceback
        )
    )


def _keeps_columns() -> bool:
    """Python does, unless it was told otherwise."""
    return any(column is not None for _, _, column, _ in _note.__code__.co_positions())


def _signature(block: Block) -> str:
    """What a call of the block takes."""
    place = next((declared.place for declared in block.inputs.values()), block.node.place)
    inputs = []
    for name, declared in block.inputs.items():
        shape = "any"
        if declared.shape is not None:
            sizes = ("..." if s is None else s.text if isinstance(s, Expression) else str(s) for s in declared.shape)
            shape = f"[{', '.join(sizes)}]"
        inputs.append(f"{name} {shape}{' (optional)' if declared.optional else ''}")
    return f"{place}  the inputs of '{block.name}' are {', '.join(inputs) or 'none'}"


def _describe(value: Any) -> str:
    """A value in a few words: shape, dtype and device of a tensor (the CPU goes without saying)."""
    if isinstance(value, torch.Tensor):
        device = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}{device}"
    if isinstance(value, dict):
        return "{" + _several([f"{key}: {_describe(entry)}" for key, entry in islice(value.items(), SHOWN + 1)]) + "}"
    if isinstance(value, list | tuple):
        entries = _several([_describe(entry) for entry in value[: SHOWN + 1]])
        return f"[{entries}]" if isinstance(value, list) else f"({entries})"
    if value is None or isinstance(value, bool | int | float | torch.dtype | torch.device | torch.SymInt):
        return str(value)
    return type(value).__name__


def _several(entries: list[str]) -> str:
    return ", ".join([*entries[:SHOWN], "..."] if len(entries) > SHOWN else entries)


def _part(step: Frame, model: GraphModel) -> str:
    """The path of the member of the model that runs in a frame; "" if none does."""
    owner = step.names.get("self")
    return _path(owner, model) if isinstance(owner, nn.Module) else ""


def _functions(model: GraphModel) -> dict[tuple[str, str, int], Compiled]:
    """The compiled functions of a model, inner ones that have modules left out."""
    return {(one.file, one.tree.name, one.tree.lineno): one for one in _with_helpers(type(model)._compiled)}


def _with_helpers(compiled: Compiled) -> Iterator[Compiled]:
    yield compiled
    for helper in compiled.helpers:
        yield from _with_helpers(helper)


def _key(code: CodeType) -> tuple[str, str, int]:
    """What code objects of a function have in common: with a tap open there is a second one."""
    return code.co_filename, code.co_name, code.co_firstlineno


def _locate(step: Frame, compiled: Compiled) -> tuple[str, list[str], Place]:
    """What failed, the values it reads by their names, and its place."""
    line, end_line, column, end_column = step.position
    if line is None or end_line is None or column is None or end_column is None:
        raise LookupError("Python was told to keep no columns (-X no_debug_ranges)")
    for where, expression, names in _expressions(compiled.block):
        before = compiled.listing.lines_before.get(expression.node.source)
        if before is None:
            continue  # not in this function, since its params left it out
        part = ast.expr(
            lineno=line - before, col_offset=column, end_lineno=end_line - before, end_col_offset=end_column
        )
        if _begin(expression.tree) <= _begin(part) and _end(part) <= _end(expression.tree):
            return where, names, expression.place(part)
    raise LookupError(f"no expression stands at {compiled.file}:{line}")


def _expressions(block: Block) -> Iterator[tuple[str, Expression, list[str]]]:
    """Each expression of a block that runs, what it belongs to, and the values it reads by their names."""
    values = [(f"node '{statement.key}'", statement.value) for statement in block.graph.values()]
    for where, value in [*values, ("the outputs", block.outputs or [])]:
        for expression in expressions(value):
            parts = [part for part in ast.walk(expression.tree) if isinstance(part, _READ)]
            yield where, expression, [ast.unparse(part) for part in sorted(parts, key=_begin)]
    for name, declared in block.inputs.items():
        for size in declared.shape or ():
            if isinstance(size, Expression):
                yield f"the input '{name}'", size, [name]


def _begin(tree: ast.expr) -> tuple[int, int]:
    return tree.lineno, tree.col_offset


def _end(tree: ast.expr) -> tuple[int | None, int | None]:
    return tree.end_lineno, tree.end_col_offset


def _call() -> CodeType:
    """What each call of a model runs."""
    from .model import GraphModel

    return GraphModel.__call__.__code__


def _callers(frame: FrameType | None, call: CodeType) -> Iterator[GraphModel]:
    """The models whose calls are on the stack, the innermost first."""
    while frame is not None:
        if frame.f_code is call:
            yield frame.f_locals["self"]
        frame = frame.f_back


def _path(module: nn.Module, root: nn.Module) -> str:
    """`layers[3].attn`; "" for the root itself and for what is no part of it."""
    return next((_dotted(name) for name, part in root.named_modules() if part is module), "")


def _dotted(name: str) -> str:
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in name.split(".")).removeprefix(".")
