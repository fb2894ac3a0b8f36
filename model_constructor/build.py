"""Build: a model file -> GraphModel, through the stages in their order."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .block import Block, Value, bind_params, read_block
from .compiler import compile_class
from .errors import ConfigError, Place, Problem, nearest
from .expressions import Expression, decide, evaluate
from .graph import build_graph, check_names
from .lowering import lower
from .model import GraphModel, Member, Namespace, add_members
from .names import find_type, initialisers
from .source import Node, dump, read_file, read_text

MAX_REPEAT = 10_000
MAX_MODULES = 100_000
LOOKS_LARGE_BYTES = 2**26  # by a guess; from here on the exact size is counted before memory is touched


def build_model(
    source: str | Path | Mapping[str, Any],
    *,
    params: Mapping[str, Any] | None = None,
    allow_imports: Sequence[str] = (),
) -> GraphModel:
    """Build the model that a YAML file describes.

    source: the file's path, or a document of plain values such as `GraphModel.spec`.
    params: values for the file's `params`, in place of its defaults.
    allow_imports: packages that the file's `imports` may name; no file can import what is not allowed here.

    Raises ConfigError with all problems of the first stage that finds any, each with file, line and column.
    """
    if isinstance(source, Mapping):
        return build_tree(read_text(dump(dict(source)), "<specification>"), "model", Path(), params, allow_imports)
    name = re.sub(r"\W|^(?=\d)", "_", Path(source).stem)
    return build_tree(read_file(source), name, Path(source).parent, params, allow_imports)


def build_tree(
    tree: Node,
    name: str,
    base: Path = Path(),
    params: Mapping[str, Any] | None = None,
    allow_imports: Sequence[str] = (),
) -> GraphModel:
    """As `build_model`, of a tree that has been read; `base` is the folder its paths are relative to."""
    block = read_block(tree, name, base)
    for level in block.levels():
        if level.imports is not None:
            _import(level.imports, allow_imports)
    check_names(block)
    values = bind_params(block, params or {}, {"": tree.place})
    random_state = torch.get_rng_state()
    try:
        return _instantiate(block, values, (), _Budget(LOOKS_LARGE_BYTES))
    except _LooksLarge:
        _refuse_what_does_not_fit(block, values)
        torch.set_rng_state(random_state)  # as if nothing had been tried
        return _instantiate(block, values, (), _Budget(None))


class _LooksLarge(Exception):
    """The arguments of the constructors speak of a size that had better be counted before memory is touched."""


@dataclass(slots=True)
class _Budget:
    """Counts modules and guesses at their size, so that a small file cannot ask for unbounded work or memory."""

    most_bytes: int | None  # more by a rough guess raises _LooksLarge; None: no guessing
    modules: int = 0
    guessed_bytes: int = 0

    def spend(self, place: Place, arguments: Iterable[Any]) -> None:
        self.modules += 1
        if self.modules > MAX_MODULES:
            raise ConfigError(Problem(f"the model has more than {MAX_MODULES} modules.", place))
        sizes = [size for size in arguments if type(size) is int and size > 1]
        self.guessed_bytes += 4 * max(math.prod(sizes), max(sizes, default=0) ** 2)  # float32, and LSTM(4, 10 ** 5)
        if self.most_bytes is not None and self.guessed_bytes > self.most_bytes:
            raise _LooksLarge


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _refuse_what_does_not_fit(block: Block, params: dict[str, Any]) -> None:
    """Build on the meta device, which takes no memory, and count; a model for another device is left to that device."""
    if torch.get_default_device().type != "cpu":
        return
    with torch.device("meta"):
        model = _instantiate(block, params, (), _Budget(None))
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if size > _memory_bytes():
        message = f"the model takes {size / 2**30:,.0f} GiB; this machine has {_memory_bytes() / 2**30:,.0f} GiB."
        raise ConfigError(Problem(message, block.node.place, "build it under torch.device('meta') to look at it"))


def _import(section: Node, allowed: Sequence[str]) -> None:
    """Import the modules that a file names, so that they can register their types and ops."""
    if not isinstance(section.value, list):
        raise ConfigError(Problem("'imports' is a list of Python modules.", section.place))
    problems = []
    for entry in section.value:
        name = entry.text
        if not any(name == package or name.startswith(f"{package}.") for package in allowed):
            hint = f"the caller has to allow it: build_model(..., allow_imports=({name.split('.')[0]!r},))"
            problems.append(Problem(f"the import of '{name}' is not allowed.", entry.place, hint))
    if problems:
        raise ConfigError(problems)
    for entry in section.value:
        try:
            importlib.import_module(entry.text)
        except (ImportError, ValueError, TypeError) as error:  # the last two for what is no module's name
            raise ConfigError(Problem(f"'{entry.text}' cannot be imported: {error}.", entry.place)) from error


def _instantiate(block: Block, params: dict[str, Any], inside: tuple[Block, ...], budget: _Budget) -> GraphModel:
    graph = build_graph(block, params)
    builder = _Builder(block, params, (*inside, block), budget)
    members: dict[str, nn.Module | Member] = {}
    problems: list[Problem] = []
    for name, value in block.modules.items():
        if name in graph.modules:
            try:
                members[name] = builder.member(value)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)
    objects = {name: member.tensor if isinstance(member, Member) else member for name, member in members.items()}
    return compile_class(block, lower(graph, objects), GraphModel)(block, params, members)


class _Builder:
    """Builds the modules of one use of a block: its constructor expressions over the values of its params."""

    def __init__(self, block: Block, params: Mapping[str, Any], inside: tuple[Block, ...], budget: _Budget) -> None:
        self.block = block
        self.budget = budget
        self.params = params
        self.inside = inside

    def member(self, value: Value) -> nn.Module | Member:
        """An entry of `modules`: of a constructor, a list or a namespace."""
        if isinstance(value, Expression):
            built = self.build(value, value.tree, self.params)
            return built if isinstance(built, Member) else self._checked(value, value.tree, built)
        if isinstance(value, list):
            return nn.ModuleList([self._list_entry(entry) for entry in value])
        namespace = Namespace()
        add_members(namespace, {name: self.member(entry) for name, entry in value.items()})
        return namespace

    def _list_entry(self, value: Value) -> nn.Module:
        if isinstance(value, Expression):
            return self.module(value, value.tree, self.params)
        entry = self.member(value)
        assert isinstance(entry, nn.Module)
        return entry

    def module(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any]) -> nn.Module:
        """What a constructor expression builds, where it has to be a module."""
        return self._checked(expression, tree, self.build(expression, tree, values))

    def _checked(self, expression: Expression, tree: ast.expr, built: Any) -> nn.Module:
        if isinstance(built, Member):
            hint = "a Param or Buffer is an entry of 'modules' or of a namespace, with a name of its own"
            raise ConfigError(Problem("a parameter is not a module.", expression.place(tree), hint))
        if not isinstance(built, nn.Module):
            message = f"this builds no module but {type(built).__name__}."
            raise ConfigError(Problem(message, expression.place(tree)))
        return built

    def build(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any]) -> Any:
        """The module (or parameter, buffer) that a constructor expression describes."""
        match tree:
            case ast.IfExp():
                chosen = tree.body if decide(expression, values, tree.test) else tree.orelse
                return self.build(expression, chosen, values)
            case ast.BinOp(op=ast.RShift()):
                return nn.Sequential(*self._chain(expression, tree, values))
            case ast.BinOp(op=ast.Mult()):
                return self._repeat(expression, tree, values)
            case ast.List():
                return nn.ModuleList([self.module(expression, entry, values) for entry in tree.elts])
            case ast.Call(func=ast.Name()):
                return self._construct(expression, tree, values)
        hint = "write Type(...), a chain A() >> B(), or a list Type(...) * n"
        raise ConfigError(Problem("a module is built by a constructor.", expression.place(tree), hint))

    def _chain(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any]) -> list[nn.Module]:
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.RShift):
            return [*self._chain(expression, tree.left, values), *self._chain(expression, tree.right, values)]
        module = self.module(expression, tree, values)
        if isinstance(module, nn.ModuleList):
            hint = "name the list on its own under 'modules' and call it in the graph"
            raise ConfigError(Problem("a list cannot be a link of a chain.", expression.place(tree), hint))
        return [module]

    def _repeat(self, expression: Expression, tree: ast.BinOp, values: Mapping[str, Any]) -> nn.ModuleList:
        count = evaluate(expression, values, tree.right)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_REPEAT:
            message = f"a repeat count is an integer from 0 to {MAX_REPEAT}; this is {count!r}."
            raise ConfigError(Problem(message, expression.place(tree.right)))
        return nn.ModuleList([self.module(expression, tree.left, {**values, "index": i}) for i in range(count)])

    def _construct(self, expression: Expression, tree: ast.Call, values: Mapping[str, Any]) -> Any:
        assert isinstance(tree.func, ast.Name)
        name = tree.func.id
        if name in ("Param", "Buffer"):
            return self._tensor(expression, tree, values, is_buffer=name == "Buffer")
        inner = self.block.find_block(name)
        if inner is not None:
            self.budget.spend(expression.place(tree), ())
            return self._block(expression, tree, inner, values)
        kind = find_type(name)
        if kind is None:
            hint = "write Type(...), a chain A() >> B(), or a list Type(...) * n"
            raise ConfigError(Problem(f"'{name}' builds no module.", expression.place(tree), hint))
        arguments = [self._argument(expression, argument, values) for argument in tree.args]
        keywords: dict[str, Any] = {}
        for keyword in tree.keywords:
            if keyword.arg is None:
                hint = "'**params' passes params to a block; to a type, write each argument out"
                raise ConfigError(Problem(f"'{name}' is not a block.", expression.place(keyword.value), hint))
            keywords[keyword.arg] = self._argument(expression, keyword.value, values)
        _check_signature(expression, tree, name, kind, arguments, keywords)
        self.budget.spend(expression.place(tree), (*arguments, *keywords.values()))
        try:
            return kind(*arguments, **keywords)
        except Exception as error:
            message = f"{name} cannot be built: {type(error).__name__}: {error}"
            raise ConfigError(Problem(message, expression.place(tree))) from error

    def _argument(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any]) -> Any:
        return (
            self.build(expression, tree, values) if self._is_constructor(tree) else evaluate(expression, values, tree)
        )

    def _is_constructor(self, tree: ast.expr) -> bool:
        match tree:
            case ast.Call(func=ast.Name(id=name)):
                return bool(self.block.find_block(name) or find_type(name))
            case ast.BinOp(op=ast.RShift()):
                return True
            case ast.BinOp(op=ast.Mult()):
                return self._is_constructor(tree.left)
            case ast.IfExp():
                return self._is_constructor(tree.body) or self._is_constructor(tree.orelse)
            case ast.List(elts=[first, *_]):
                return self._is_constructor(first)
        return False

    def _block(self, expression: Expression, tree: ast.Call, inner: Block, values: Mapping[str, Any]) -> GraphModel:
        place = expression.place(tree)
        if tree.args:
            hint = f"its params: {', '.join(inner.params) or 'none'}"
            raise ConfigError(Problem(f"the params of '{inner.name}' are given by keyword.", place, hint))
        if inner in self.inside:
            chain = " -> ".join(block.name for block in (*self.inside, inner))
            raise ConfigError(Problem(f"the block '{inner.name}' contains itself: {chain}.", place))
        given: dict[str, Any] = {}
        places: dict[str, Place | None] = {"": place}
        for keyword in tree.keywords:
            if keyword.arg is not None:
                given[keyword.arg] = evaluate(expression, values, keyword.value)
                places[keyword.arg] = expression.place(keyword.value)
            elif not isinstance(keyword.value, ast.Name) or keyword.value.id != "params":
                hint = "'**params' passes every param of this block that the other declares too"
                raise ConfigError(Problem("only '**params' can follow '**'.", expression.place(keyword.value), hint))
        if any(keyword.arg is None for keyword in tree.keywords):
            given = {**{name: self.params[name] for name in self.params if name in inner.params}, **given}
        return _instantiate(inner, bind_params(inner, given, places), self.inside, self.budget)

    def _tensor(self, expression: Expression, tree: ast.Call, values: Mapping[str, Any], is_buffer: bool) -> Member:
        """Param(...) or Buffer(...): sizes filled by `init`, or one value."""
        name = "Buffer" if is_buffer else "Param"
        known = ("init", "persistent") if is_buffer else ("init", "requires_grad")
        options: dict[str | None, ast.expr] = {}
        for keyword in tree.keywords:
            if keyword.arg not in known:
                place = expression.place(keyword.value)
                raise ConfigError(
                    Problem(f"'{name}' has no argument '{keyword.arg}'.", place, nearest(keyword.arg, known))
                )
            options[keyword.arg] = keyword.value
        arguments = [evaluate(expression, values, argument) for argument in tree.args]
        flag = bool(evaluate(expression, values, options[known[1]])) if known[1] in options else True
        self.budget.spend(expression.place(tree), arguments if _are_sizes(arguments) else ())
        try:
            tensor, is_value = _tensor_of(arguments)
            if "init" in options and not is_value:
                self._fill(expression, tensor, options["init"], values)
            if is_buffer:
                return Member(tensor, is_buffer=True, persistent=flag)
            if is_value and not tensor.is_floating_point() and isinstance(arguments[0], list):
                tensor = tensor.float()  # a list of whole numbers is as good as one of 1.0, 2.0
            if "init" in options and is_value:
                message = f"'{name}' has a value already; 'init' fills sizes."
                raise ConfigError(Problem(message, expression.place(options["init"])))
            return Member(nn.Parameter(tensor, requires_grad=flag))
        except (RuntimeError, TypeError, ValueError) as error:
            hint = f"{name}(2, 3) has a shape, {name}(zeros(2, 3)) or {name}([1.0, 2.0]) a value"
            raise ConfigError(
                Problem(f"{name} cannot be built: {str(error).rstrip('.')}.", expression.place(tree), hint)
            ) from error

    def _fill(self, expression: Expression, tensor: torch.Tensor, tree: ast.expr, values: Mapping[str, Any]) -> None:
        called = tree.func if isinstance(tree, ast.Call) else tree
        if not isinstance(called, ast.Name) or called.id not in initialisers():
            written = ast.unparse(called)
            hint = nearest(written, initialisers())
            raise ConfigError(Problem(f"no initialiser is called '{written}'.", expression.place(called), hint))
        arguments = [evaluate(expression, values, argument) for argument in getattr(tree, "args", [])]
        keywords = {k.arg: evaluate(expression, values, k.value) for k in getattr(tree, "keywords", []) if k.arg}
        try:
            initialisers()[called.id](tensor, *arguments, **keywords)
        except Exception as error:
            message = f"{called.id} cannot fill this: {type(error).__name__}: {error}"
            raise ConfigError(Problem(message, expression.place(tree))) from error


def _are_sizes(arguments: list[Any]) -> bool:
    return all(type(size) is int for size in arguments)


def _tensor_of(arguments: list[Any]) -> tuple[torch.Tensor, bool]:
    """Zeros of the sizes given, or the one value given; and whether it is a value."""
    if _are_sizes(arguments):
        return torch.zeros(arguments), False
    if len(arguments) == 1 and isinstance(arguments[0], torch.Tensor | list | float):
        return torch.as_tensor(arguments[0]), True
    raise TypeError("it takes sizes, or one value")


def _check_signature(
    expression: Expression, tree: ast.Call, name: str, kind: Any, arguments: list[Any], keywords: dict[str, Any]
) -> None:
    """Say which argument is wrong, before the constructor is called."""
    try:
        signature = inspect.signature(kind)
    except (TypeError, ValueError):
        return
    parameters = signature.parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for keyword in tree.keywords:
        if keyword.arg not in parameters and not takes_any:
            place = expression.place(keyword)
            hint = nearest(keyword.arg, parameters)
            raise ConfigError(Problem(f"'{name}' has no argument '{keyword.arg}'.", place, hint))
    try:
        bound = signature.bind(*arguments, **keywords)
        counts = {argument: value for argument, value in bound.arguments.items() if argument.endswith("layers")}
        if isinstance(kind, type) and issubclass(kind, nn.RNNBase):  # takes *args; the third is num_layers
            counts["num_layers"] = keywords.get("num_layers", arguments[2] if len(arguments) > 2 else 1)
        for argument, value in counts.items():
            if isinstance(value, int) and value > MAX_REPEAT:
                message = f"{argument} is {value}; at most {MAX_REPEAT} are built."
                raise ConfigError(Problem(message, expression.place(tree)))
    except TypeError as error:
        raise ConfigError(Problem(f"{name}: {error}.", expression.place(tree), f"{name}{signature}")) from None
