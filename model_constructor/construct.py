"""Construct: the constructor expressions of a block, over the values of its params -> modules and parameters."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from .block import Block, Value, bind_params
from .compiler import Held
from .errors import MAX_PROBLEMS, ConfigError, Place, Problem, nearest
from .expressions import Expression, decide, evaluate, links
from .graph import Graph, build_graph
from .init import fill
from .limits import LOADS, limits
from .model import Member, Namespace, add_members
from .names import ANY_DIM, WRITE_DIM, find_type, is_known_code

MAX_LAYERS = 200  # that one constructor makes by itself
ANY_SIZE = 2**10 * 45_045  # for a size that does not matter: most numbers of heads and groups divide it
NEEDS_DIM = (nn.Softmax, nn.LogSoftmax, nn.Softmin)  # they choose one by the rank: of [B, T, D] the batch
_PLACED = "whoever builds a model places it: model.to(device), or build it under torch.device(...)"

T = TypeVar("T")
Graphs = dict[tuple[Block, str], Graph]  # of each block and its params
Sizes = dict[tuple[str, ast.AST], int]  # of each `_`: the path of the module it is written in, and where


class Deferred(nn.Module):
    """Stands for a module until the size that `_` asks for is known."""

    def __init__(
        self, constructor: Constructor, expression: Expression, tree: ast.Call, values: Mapping[str, Any], path: str
    ) -> None:
        super().__init__()
        self.expression, self.path = expression, path
        self._constructor, self._tree, self._values = constructor, tree, values
        self.built: nn.Module | None = None

    @property
    def callee(self) -> Block | Callable[..., Any]:
        """The block or type that is waiting to be built."""
        assert isinstance(self._tree.func, ast.Name)
        name = self._tree.func.id
        callee = self._constructor.block.find_block(name) or find_type(name)
        assert callee is not None
        return callee

    def blanks(self) -> list[tuple[ast.expr, str]]:
        """Each `_`, and the name of the argument that it stands for."""
        callee = self.callee
        names = list(callee.params if isinstance(callee, Block) else inspect.signature(callee).parameters)
        given = [*zip(self._tree.args, names, strict=False), *((k.value, str(k.arg)) for k in self._tree.keywords)]
        return [(value, name) for value, name in given if is_blank(value)]

    def problems(self) -> Iterator[Problem]:
        """What to say when nothing has told the sizes."""
        hint = "nothing is known of the shape that reaches this module: write the size"
        for blank, name in self.blanks():
            yield Problem(f"the '{name}' of '_' cannot be inferred.", self.expression.place(blank), hint)

    def build(self, sizes: Mapping[ast.AST, int]) -> nn.Module:
        """The module, with a size for each blank."""
        construction = self._constructor.construction
        construction.sizes.update({(self.path, blank): size for blank, size in sizes.items()})
        return self._constructor.module(self.expression, self._tree, self._values, self.path)


class Opaque(nn.Module):
    """Stands for a module that cannot be built without data; what it gives is not known."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem  # perhaps with data too

    def forward(self, *values: Any, **named: Any) -> Any:
        raise AssertionError("a module that could not be built is not called")


@dataclass(slots=True)
class Construction:
    """One walk over all the blocks of a model. `finish` makes a module of a block whose members are built."""

    finish: Callable[[Graph, dict[str, nn.Module | Member], str], nn.Module]
    sizes: Sizes = field(default_factory=dict)
    defers: bool = False  # whether what waits for a size is Deferred, or an error
    assumed: int | None = None  # the size for each `_` that nobody told
    modules: int = 0
    graphs: Graphs = field(default_factory=dict)

    def block(self, block: Block, params: dict[str, Any], path: str = "", inside: tuple[Block, ...] = ()) -> nn.Module:
        """The module of one use of a block. Raises ConfigError with all that is wrong with its constructors."""
        key = (block, repr(params))
        if key not in self.graphs:
            self.graphs[key] = build_graph(block, params)
        graph = self.graphs[key]
        constructor = Constructor(self, block, params, (*inside, block))
        modules = {name: value for name, value in block.modules.items() if name in graph.modules}
        prefix = f"{path}." if path else ""
        members = self.all_of(partial(constructor.member, value, f"{prefix}{name}") for name, value in modules.items())
        return self.finish(graph, dict(zip(modules, members, strict=True)), path)

    def all_of(self, builds: Iterable[Callable[[], T]]) -> list[T]:
        """What each gives. Raises one ConfigError with all that is wrong with them."""
        built: list[T] = []
        problems: list[Problem] = []
        for build in builds:
            try:
                built.append(build())
            except ConfigError as error:
                problems += error.problems
            if len(problems) >= MAX_PROBLEMS or (problems and self.modules > limits().modules):
                break
        if problems:
            raise ConfigError(problems)
        return built

    def count(self, place: Place, modules: int = 1) -> None:
        """A small file cannot ask for unbounded work."""
        self.modules += modules
        if self.modules > limits().modules:
            raise ConfigError(Problem(f"the model has more than {limits().modules} modules.", place))


class Constructor:
    """Builds the members of one use of a block. `path` is where a module will stand in the whole model."""

    def __init__(
        self, construction: Construction, block: Block, params: Mapping[str, Any], inside: tuple[Block, ...]
    ) -> None:
        self.construction = construction
        self.block = block
        self.params = params
        self.inside = inside
        self._all_of = construction.all_of

    def member(self, value: Value, path: str) -> nn.Module | Member:
        """An entry of `modules`: of a constructor, a list or a namespace."""
        if isinstance(value, Expression):
            built = self.build(value, value.tree, self.params, path)
            return built if isinstance(built, Member) else self._checked(value, value.tree, built)
        if isinstance(value, list):
            entries = enumerate(value)
            return nn.ModuleList(self._all_of(partial(self._list_entry, entry, f"{path}.{i}") for i, entry in entries))
        members = self._all_of(partial(self.member, entry, f"{path}.{name}") for name, entry in value.items())
        namespace = Namespace()
        add_members(namespace, dict(zip(value, members, strict=True)))
        return namespace

    def _list_entry(self, value: Value, path: str) -> nn.Module:
        if isinstance(value, Expression):
            return self.module(value, value.tree, self.params, path)
        entry = self.member(value, path)
        assert isinstance(entry, nn.Module)
        return entry

    def module(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any], path: str) -> nn.Module:
        """What a constructor expression builds, where it has to be a module."""
        return self._checked(expression, tree, self.build(expression, tree, values, path))

    def _checked(self, expression: Expression, tree: ast.expr, built: Any) -> nn.Module:
        if isinstance(built, Member):
            hint = "a Param or Buffer is an entry of 'modules' or of a namespace, with a name of its own"
            raise ConfigError(Problem("a parameter is not a module.", expression.place(tree), hint))
        if not isinstance(built, nn.Module):
            message = f"this builds no module but {type(built).__name__}."
            raise ConfigError(Problem(message, expression.place(tree)))
        return built

    def build(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any], path: str) -> Any:
        """The module (or parameter, buffer) that a constructor expression describes."""
        tree = chosen(expression, tree, values)
        match tree:
            case ast.BinOp(op=ast.RShift()):
                parts = enumerate(links(tree))
                made = self._all_of(partial(self._link, expression, link, values, f"{path}.{i}") for i, link in parts)
                return nn.Sequential(*made)
            case ast.BinOp(op=ast.Mult()):
                return self._repeat(expression, tree, values, path)
            case ast.List():
                entries = enumerate(tree.elts)
                made = self._all_of(partial(self.module, expression, e, values, f"{path}.{i}") for i, e in entries)
                return nn.ModuleList(made)
            case ast.Call(func=ast.Name()):
                return self._construct(expression, tree, values, path)
        hint = "write Type(...), a chain A() >> B(), or a list Type(...) * n"
        raise ConfigError(Problem("a module is built by a constructor.", expression.place(tree), hint))

    def _link(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any], path: str) -> nn.Module:
        module = self.module(expression, tree, values, path)
        if isinstance(module, nn.ModuleList):
            hint = "name the list on its own under 'modules' and call it in the graph"
            raise ConfigError(Problem("a list cannot be a link of a chain.", expression.place(tree), hint))
        try:
            inspect.signature(module.forward).bind(None)
        except TypeError as error:
            message = f"a chain gives each link one value, and nothing else; here that fails: {error}."
            hint = "name the module on its own under 'modules' and call it in the graph"
            raise ConfigError(Problem(message, expression.place(tree), hint)) from None
        except ValueError:  # of code that has no signature
            pass
        return module

    def _repeat(self, expression: Expression, tree: ast.BinOp, values: Mapping[str, Any], path: str) -> nn.ModuleList:
        if is_constructor(tree.right, self.block):
            raise ConfigError(Problem("a list is written Type(...) * n, the count last.", expression.place(tree)))
        count = evaluate(expression, values, tree.right)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= limits().repeats:
            message = f"a repeat count is an integer from 0 to {limits().repeats}; this is {count!r}."
            raise ConfigError(Problem(message, expression.place(tree.right)))
        members = ({**values, "index": i} for i in range(count))
        made = nn.ModuleList([self.module(expression, tree.left, m, f"{path}.{i}") for i, m in enumerate(members)])
        if not count:
            made._returns = self._returned(expression, tree.left, {**values, "index": 0})  # pyrefly: ignore
        return made

    def _returned(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any]) -> Held | None:
        """The tuple that the members of an empty list would return: one is laid out, and dropped."""
        whole = self.construction
        construction = Construction(whole.finish, assumed=ANY_SIZE, modules=whole.modules, graphs=whole.graphs)
        constructor = Constructor(construction, self.block, self.params, self.inside)
        member = None
        with torch.device("meta"), suppress(ConfigError):  # what is wrong with none is no error
            member = constructor.module(expression, tree, values, "")
        whole.modules = construction.modules
        held = returned_by(member)
        return held if held is not None and held[0] == "tuple" else None

    def _construct(self, expression: Expression, tree: ast.Call, values: Mapping[str, Any], path: str) -> Any:
        assert isinstance(tree.func, ast.Name)
        blanks = [blank for blank in _blanks(tree) if (path, blank) not in self.construction.sizes]
        assumed = self.construction.assumed
        if assumed is not None:
            for blank in blanks:
                self.construction.sizes[path, blank] = assumed
            blanks = []
        if blanks and self.construction.defers:
            return Deferred(self, expression, tree, values, path)
        if blanks:
            hint = "it is called where the shape of its argument is not known: write the size"
            raise ConfigError([Problem("'_' cannot be inferred.", expression.place(b), hint) for b in blanks])
        name = tree.func.id
        if name in ("Param", "Buffer"):
            return self._tensor(expression, tree, values, is_buffer=name == "Buffer")
        inner = self.block.find_block(name)
        if inner is not None:
            self.construction.count(expression.place(tree))
            return self._block(expression, tree, inner, values, path)
        kind = find_type(name)
        if kind is None:
            hint = "write Type(...), a chain A() >> B(), or a list Type(...) * n"
            raise ConfigError(Problem(f"'{name}' builds no module.", expression.place(tree), hint))
        for keyword in tree.keywords:
            if keyword.arg is None:
                hint = "'**params' passes params to a block; to a type, write each argument out"
                raise ConfigError(Problem(f"'{name}' is not a block.", expression.place(keyword.value), hint))
            if keyword.arg == "device":
                raise ConfigError(Problem("a file names no device.", expression.place(keyword), _PLACED))
        written = [*tree.args, *(keyword.value for keyword in tree.keywords)]
        given = self._all_of(partial(self._argument, expression, part, values, path) for part in written)
        arguments, named = given[: len(tree.args)], given[len(tree.args) :]
        keywords = {str(keyword.arg): value for keyword, value in zip(tree.keywords, named, strict=True)}
        _check_signature(expression, tree, name, kind, arguments, keywords)
        try:
            built = kind(*arguments, **keywords)
        except Exception as error:
            problem = Problem(f"{name} cannot be built: {type(error).__name__}: {error}", expression.place(tree))
            incomplete = self.construction.defers or self.construction.assumed is not None
            if incomplete and not _is_transparent(kind, (*arguments, *keywords.values())):
                return Opaque(problem)
            raise ConfigError(problem) from error
        modules = sum(1 for _ in built.modules()) if isinstance(built, nn.Module) else 1
        self.construction.count(expression.place(tree), modules)
        return built

    def _argument(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any], path: str) -> Any:
        if is_blank(tree):
            return self.construction.sizes[path, tree]
        if is_constructor(tree, self.block):
            taken = chosen(expression, tree, values)
            if taken is not tree:  # `A() if cond else None` may be no constructor after all
                return self._argument(expression, taken, values, path)
            return self.build(expression, tree, values, f"{path}.{tree.lineno}.{tree.col_offset}")
        return evaluate(expression, values, tree)

    def _block(
        self, expression: Expression, tree: ast.Call, inner: Block, values: Mapping[str, Any], path: str
    ) -> nn.Module:
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
                given[keyword.arg] = self._argument(expression, keyword.value, values, path)
                places[keyword.arg] = expression.place(keyword.value)
            elif not isinstance(keyword.value, ast.Name) or keyword.value.id != "params":
                hint = "'**params' passes every param of this block that the other declares too"
                raise ConfigError(Problem("only '**params' can follow '**'.", expression.place(keyword.value), hint))
        for star in (keyword.value for keyword in tree.keywords if keyword.arg is None):
            passed = {name: self.params[name] for name in self.params if name in inner.params}
            given = {**passed, **given}
            places = {**dict.fromkeys(passed, expression.place(star)), **places}
        return self.construction.block(inner, bind_params(inner, given, places), path, self.inside)

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
        arguments = [_data_of(expression, values, argument) for argument in tree.args]
        flag = decide(expression, values, options[known[1]]) if known[1] in options else True
        self.construction.count(expression.place(tree))
        try:
            tensor, is_value = _tensor_of(arguments)
            if is_value and _may_be_size(tree.args[0], arguments[0], values):
                message = f"'{name}' of the number {arguments[0]} is one value."
                hint = f"sizes are whole, as from '//'; for the value write {name}(float({ast.unparse(tree.args[0])}))"
                raise ConfigError(Problem(message, expression.place(tree.args[0]), hint))
            if is_value and not is_buffer and _lists_sizes(tree.args[0], arguments[0]):
                message = f"'Param' of a list has the values {arguments[0]}, and not these sizes."
                hint = f"for sizes write Param({ast.unparse(tree.args[0])[1:-1]}); for a value float(...) in the list"
                raise ConfigError(Problem(message, expression.place(tree.args[0]), hint))
            if "init" in options and is_value:
                message = f"'{name}' has a value already; 'init' fills sizes."
                raise ConfigError(Problem(message, expression.place(options["init"])))
            if "init" in options:
                fill(expression, [tensor], options["init"], values)
            if is_buffer:
                return Member(tensor, is_buffer=True, persistent=flag)
            if is_value and not tensor.is_floating_point() and isinstance(arguments[0], list):
                tensor = tensor.float()  # a list of whole numbers is as good as one of 1.0, 2.0
            return Member(nn.Parameter(tensor, requires_grad=flag))
        except (RuntimeError, TypeError, ValueError) as error:
            hint = f"{name}(2, 3) has a shape, {name}(zeros(2, 3)) or {name}([1.0, 2.0]) a value"
            raise ConfigError(
                Problem(f"{name} cannot be built: {str(error).rstrip('.')}.", expression.place(tree), hint)
            ) from error


# what a constructor expression says, whoever reads it


def chosen(expression: Expression, tree: ast.expr, values: Mapping[str, Any]) -> ast.expr:
    """What `A() if cond else B()` and `{'relu': ReLU(), 'gelu': GELU()}[activation]` come to; the rest is not built."""
    known: dict[Any, ast.expr]
    match tree:
        case ast.IfExp():
            taken = tree.body if decide(expression, values, tree.test) else tree.orelse
            return chosen(expression, taken, values)
        case ast.Subscript(value=ast.Dict(keys=keys, values=entries)):
            known = {
                key.value: entry for key, entry in zip(keys, entries, strict=True) if isinstance(key, ast.Constant)
            }
        case ast.Subscript(value=ast.List(elts=entries)):
            known = dict(enumerate(entries))
        case _:
            return tree
    key = evaluate(expression, values, tree.slice)
    if not isinstance(key, str | int) or key not in known:
        raise ConfigError(Problem(f"there is no entry {key!r}.", expression.place(tree.slice), nearest(key, known)))
    return chosen(expression, known[key], values)


def is_constructor(tree: ast.expr, block: Block) -> bool:
    """Whether an argument is built, not computed."""
    match tree:
        case ast.Call(func=ast.Name(id=name)):
            return bool(block.find_block(name) or find_type(name))
        case ast.BinOp(op=ast.RShift()):
            return True
        case ast.BinOp(op=ast.Mult()):
            return is_constructor(tree.left, block)
        case ast.IfExp():
            return is_constructor(tree.body, block) or is_constructor(tree.orelse, block)
        case ast.Subscript(value=ast.Dict(values=entries) | ast.List(elts=entries)) | ast.List(elts=entries):
            return any(is_constructor(entry, block) for entry in entries)
    return False


def returned_by(module: Any) -> Held | None:
    """What a module returns, as far as it is a block: a chain what its last link does, a list what its members do."""
    while isinstance(module, nn.Sequential | nn.ModuleList) and len(module):
        module = module[-1]
    return getattr(module, "_returns", None)


def is_blank(tree: ast.expr) -> bool:
    """Whether an argument is `_`: a size to be inferred."""
    return isinstance(tree, ast.Name) and tree.id == "_"


def _blanks(tree: ast.Call) -> list[ast.expr]:
    return [value for value in (*tree.args, *(keyword.value for keyword in tree.keywords)) if is_blank(value)]


def _is_transparent(kind: Any, arguments: Iterable[Any]) -> bool:
    """Whether a failure on the meta device is one everywhere: of known code, given nothing unfinished."""
    unfinished = any(
        isinstance(argument, nn.Module) and "torch.nn" not in type(argument).__module__ for argument in arguments
    )
    return is_known_code(kind) and not unfinished


def _data_of(expression: Expression, values: Mapping[str, Any], tree: ast.expr) -> Any:
    """The value of an argument; of one that needs data, as `nonzero` does, on the meta device its shape."""
    try:
        return evaluate(expression, values, tree)
    except ConfigError:
        if not torch.empty(0).is_meta:
            raise
    with torch.device("cpu"):
        value = evaluate(expression, values, tree)
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _may_be_size(tree: ast.expr, value: Any, values: Mapping[str, Any]) -> bool:
    """Whether a number is a quotient or product of whole params that is whole, too: most likely it was to be a size."""
    computed = isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Div | ast.Mult)
    of_sizes = _are_sizes([values.get(part.id) for part in ast.walk(tree) if isinstance(part, ast.Name)])
    return computed and of_sizes and isinstance(value, float) and value.is_integer()


def _lists_sizes(tree: ast.expr, value: Any) -> bool:
    """Whether a list holds nothing but params and numbers, all of them whole, as in `Param([1, dim])`."""
    entries = tree.elts if isinstance(tree, ast.List) else []
    plain = all(isinstance(entry, ast.Name | ast.Constant) for entry in entries)
    return plain and any(isinstance(entry, ast.Name) for entry in entries) and _are_sizes(value)


def _are_sizes(arguments: Iterable[Any]) -> bool:
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
        of_rnn = isinstance(kind, type) and issubclass(kind, nn.RNNBase)  # takes *args; the ninth is the device
        if "device" in bound.arguments or (of_rnn and len(arguments) > 8):
            raise ConfigError(Problem("a file names no device.", expression.place(tree), _PLACED))
        if kind in NEEDS_DIM and bound.arguments.get("dim") is None:
            raise ConfigError(Problem(ANY_DIM.format(name), expression.place(tree), WRITE_DIM))
        for argument, value in bound.arguments.items():
            if isinstance(value, str) and isinstance(parameters[argument].default, bool):
                message = f"'{argument}' of {name} is true or false; this is the string '{value}'."
                hint = "on, off, yes and no are strings here: write true or false"
                raise ConfigError(Problem(message, expression.place(tree), hint))
            loads = value and not isinstance(value, dict) and LOADS.get(getattr(kind, "__name__", name)) == argument
            if loads and not limits().reaches_out:
                message = f"{name}'s '{argument}' loads what others made; a file that is not trusted loads nothing."
                hint = "a network that it describes itself, with new weights, is built"
                raise ConfigError(Problem(message, expression.place(tree), hint))
        counts = {argument: value for argument, value in bound.arguments.items() if argument.endswith("layers")}
        if of_rnn:  # the third is num_layers
            counts["num_layers"] = keywords.get("num_layers", arguments[2] if len(arguments) > 2 else 1)
        for argument, value in counts.items():
            if isinstance(value, int) and value > MAX_LAYERS:
                message = f"{argument} is {value}; at most {MAX_LAYERS} are built."
                raise ConfigError(Problem(message, expression.place(tree)))
    except TypeError as error:
        raise ConfigError(Problem(f"{name}: {error}.", expression.place(tree), f"{name}{signature}")) from None
