"""Init: the initial values that a file gives to parameters, by the functions of `torch.nn.init`.

A module is first filled by its own constructor; the `init` of a block is applied when that block is built, so that the
blocks inside it come before, and those around it after. What no selector names keeps what its constructor did.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import ConfigError, Place, Problem, nearest
from .expressions import Expression, evaluate
from .names import initialisers
from .selectors import parse_selector, select, select_parameters

if TYPE_CHECKING:
    from .block import Block, Value
    from .model import GraphModel

# How many dimensions an initialiser asks for. Applied to a module, it leaves parameters with fewer alone.
_DIMENSIONS = {
    **dict.fromkeys(("eye", "kaiming_normal", "kaiming_uniform", "orthogonal", "sparse"), 2),
    **dict.fromkeys(("xavier_normal", "xavier_uniform"), 2),
    "dirac": 3,
}


def check_init(block: Block) -> Iterator[Problem]:
    """What is wrong with the `init` of a block, whatever it is applied to."""
    if block.init and not block.modules:
        yield Problem("'init' fills parameters; this block has no modules.", block.node.key_place("init"), "remove it")
    for selector, value in block.init.items():
        try:
            parse_selector(selector, _place(block, selector))
            for expression in value.values() if isinstance(value, dict) else [value]:
                if isinstance(expression, Expression):  # and not what could not be parsed
                    _check_form(expression, expression.tree)
        except ConfigError as error:
            yield from error.problems


def initialise(model: GraphModel, only: Collection[str] | None = None) -> None:
    """Fill what the `init` of the model's own block selects, entry by entry, so that later ones win.

    only: fill no parameters but these, by qualified name. Raises ConfigError with all problems of the section.
    """
    problems = []
    for selector, value in model._block.init.items():
        try:
            for expression, parameters in _selected(model, selector, value):
                wanted = {id(p): p for name, p in parameters.items() if only is None or name in only}  # each once
                if wanted:
                    fill(expression, [*wanted.values()], expression.tree, model.params)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def restore(model: GraphModel, names: Collection[str]) -> None:
    """Give tensors without values what the file says: the Params and Buffers of the model's own block, then its `init`.

    names: of the tensors, qualified. Those of a module's constructor, and not in `init`, stay as they are.
    """
    _compute(model, names)
    initialise(model, only=names)


def compute_buffers(model: nn.Module, device: torch.device) -> None:
    """Give each Buffer of a block in `model` that no state dict holds, and that is on the meta device, its value."""
    from .model import GraphModel  # which reads this file

    for inner in model.modules():
        if isinstance(inner, GraphModel):
            waiting = set()
            for name in own_tensors(inner):
                owner, _, key = name.rpartition(".")
                held = inner.get_submodule(owner)
                buffer = held._buffers.get(key)
                if key in held._non_persistent_buffers_set and buffer is not None and buffer.is_meta:
                    held._buffers[key] = torch.empty_like(buffer, device=device)
                    waiting.add(name)
            _compute(inner, waiting)


def _compute(model: GraphModel, names: Collection[str]) -> None:
    """Give the Params and Buffers of the model's own block that are among `names` the value of their constructor."""
    from .construct import Construction, Constructor  # which reads this file

    constructor = Constructor(Construction(_no_block), model._block, model.params, ())
    for name, expression in own_tensors(model).items():
        if name in names:
            tensor = _tensor(model, name)
            with tensor.device:
                member = constructor.member(expression, name)
            assert not isinstance(member, nn.Module)
            _set(tensor, member.tensor)


def given_parameters(module: nn.Module) -> set[nn.Parameter]:
    """The parameters in `module` whose values a model file gives, by `Param` or `init`, or a type loaded: a module says
    so by the attribute `pretrained`. The others hold what their constructors filled in."""
    from .model import GraphModel  # which reads this file

    given: set[nn.Parameter] = set()
    for inner in module.modules():
        if getattr(inner, "pretrained", False) is True:
            given |= {*inner.parameters()}
        if isinstance(inner, GraphModel):
            own = {_tensor(inner, name) for name in own_tensors(inner)}
            given |= {tensor for tensor in own if isinstance(tensor, nn.Parameter)}
            for selector, value in inner._block.init.items():
                for _, parameters in _selected(inner, selector, value):
                    given |= {*parameters.values()}
    return given


def own_tensors(model: GraphModel) -> dict[str, Expression]:
    """The constructors of the Params and Buffers of the model's own block, by qualified name."""
    return dict(_own_tensors(model, model._block.modules, ""))


def _own_tensors(module: nn.Module, entries: Mapping[str, Value], prefix: str) -> Iterator[tuple[str, Expression]]:
    for name, value in entries.items():
        if isinstance(value, list):
            value = {str(position): entry for position, entry in enumerate(value)}
        if isinstance(value, dict) and name in module._modules:
            yield from _own_tensors(module.get_submodule(name), value, f"{prefix}{name}.")
        elif isinstance(value, Expression) and (name in module._parameters or name in module._buffers):
            yield f"{prefix}{name}", value


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, key = name.rpartition(".")
    held = module.get_submodule(owner)
    tensor = held._parameters.get(key, held._buffers.get(key))
    assert tensor is not None
    return tensor


def _no_block(*_: Any) -> nn.Module:
    raise AssertionError("a tensor holds no blocks")


def fill(expression: Expression, tensors: Sequence[Tensor], tree: ast.expr, values: Mapping[str, Any]) -> None:
    """Fill each tensor by the initialiser that `tree` calls, with arguments over `values`. Raises ConfigError."""
    _check_form(expression, tree)
    name = _called(tree)
    with torch.device("meta"):  # they are numbers; what is a tensor on the way to one takes no memory
        arguments = [evaluate(expression, values, argument) for argument in getattr(tree, "args", [])]
        keywords = {k.arg: evaluate(expression, values, k.value) for k in getattr(tree, "keywords", [])}
    try:
        for tensor in tensors:
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) if _is_split(tensor) else tensor
            initialisers()[name](whole, *arguments, **keywords)
            _set(tensor, whole)
    except Exception as error:
        message = f"{name} cannot fill this: {type(error).__name__}: {str(error).rstrip('.')}."
        raise ConfigError(Problem(message, expression.place(tree))) from error


def _selected(model: GraphModel, selector: str, value: Value) -> Iterator[tuple[Expression, dict[str, nn.Parameter]]]:
    """The initialisers of an entry, each with what it fills."""
    block = model._block
    place = _place(block, selector)
    first = parse_selector(selector, place).steps[0]
    if first in block.modules and not hasattr(model, first):
        return  # under these params nothing uses it, so it was not built
    if isinstance(value, Expression):
        parameters = select_parameters(selector, model, place)
        least = _DIMENSIONS.get(_called(value.tree), 0)
        fitting = {name: parameter for name, parameter in parameters.items() if parameter.ndim >= least}
        if parameters and not fitting:
            message = f"{_called(value.tree)} needs {least} dimensions; no parameter of '{selector}' has them."
            raise ConfigError(Problem(message, value.place()))
        yield value, fitting
        return
    assert isinstance(value, dict)
    selected = select(selector, model, place)
    modules = {name: entry for name, entry in selected.items() if isinstance(entry, nn.Module)}
    if selected and not modules:
        hint = f"such as {selector}: zeros"
        raise ConfigError(Problem(f"'{selector}' is a parameter: write the initialiser alone.", place, hint))
    known = {name for module in modules.values() for name in module._parameters}
    for name, expression in value.items():
        assert isinstance(expression, Expression)
        if modules and name not in known:
            hint = nearest(name, known) or "it has no parameters of its own"
            raise ConfigError(Problem(f"'{selector}' has no parameter '{name}'.", _place(block, selector, name), hint))
        own = {f"{path}.{name}" if path else name: module._parameters.get(name) for path, module in modules.items()}
        yield expression, {path: parameter for path, parameter in own.items() if parameter is not None}


def _check_form(expression: Expression, tree: ast.expr) -> None:
    """Whether an initialiser is one, and is given arguments that it has."""
    called = tree.func if isinstance(tree, ast.Call) else tree
    name = _called(tree)
    if name not in initialisers():
        written = ast.unparse(called)
        hint = nearest(written, initialisers())
        raise ConfigError(Problem(f"no initialiser is called '{written}'.", expression.place(called), hint))
    signature = inspect.signature(initialisers()[name])
    known = [argument for argument in signature.parameters if argument not in ("tensor", "generator")]
    positional = getattr(tree, "args", [])
    keywords = getattr(tree, "keywords", [])
    for keyword in keywords:
        if keyword.arg not in known:
            hint = nearest(keyword.arg, known) or "it has no arguments"
            raise ConfigError(Problem(f"'{name}' has no argument '{keyword.arg}'.", expression.place(keyword), hint))
    try:
        signature.bind(None, *positional, **{keyword.arg: None for keyword in keywords})
    except TypeError as error:
        hint = f"{name}({', '.join(known)})"
        raise ConfigError(Problem(f"{name}: {error}.", expression.place(tree), hint)) from None
    # The first argument is the mean, and nearly always the deviation is meant by one that stands alone.
    if name in ("normal", "trunc_normal") and len(positional) == 1 and "std" not in {k.arg for k in keywords}:
        number = ast.unparse(positional[0])
        hint = f"write std={number} (or mean={number})"
        raise ConfigError(Problem(f"{number} would be the mean of '{name}'.", expression.place(positional[0]), hint))


def _is_split(tensor: Tensor) -> bool:
    """Whether FSDP has split the tensor among processes: it is a DTensor then."""
    return hasattr(tensor, "placements")


def _set(tensor: Any, value: Tensor) -> None:
    """Give a tensor a value; of a tensor that is split, each process keeps its part of the value of the first."""
    if _is_split(tensor):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
    if value is not tensor:
        with torch.no_grad():
            tensor.copy_(value)


def _called(tree: ast.expr) -> str:
    """`zeros` of `zeros` and of `zeros()`."""
    called = tree.func if isinstance(tree, ast.Call) else tree
    return called.id if isinstance(called, ast.Name) else ""


def _place(block: Block, *path: str) -> Place:
    """Where an entry of the section stands, by its keys."""
    assert isinstance(block.node.value, dict)
    node = block.node.value["init"]
    for key in path[:-1]:
        assert isinstance(node.value, dict)
        node = node.value[key]
    return node.key_place(path[-1])
