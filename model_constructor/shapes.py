"""Shapes: what every value of a graph will look like, found with no data and no memory; and the sizes that `_` needs.

The members of each block are built on the meta device, where a tensor has a shape and nothing else, and its expressions
are walked with probes for inputs (see `probe`). Where this decides nothing it says nothing: a model that runs is never
refused.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import einops
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from .block import Block, Input, Statement, Value, bind_params, expressions
from .construct import Construction, Deferred, Graphs, Opaque, Sizes
from .errors import MAX_PROBLEMS, ConfigError, Place, Problem
from .expressions import BINARY, COMPARE, UNARY, Expression, binary, call_plain, evaluate, unary
from .graph import Graph, outcome
from .model import Member, add_members
from .names import CONSTANTS, DTYPES, METHODS, OPS, PLAIN_FUNCTIONS, is_known_code, torch_ops
from .probe import UNKNOWN, Failure, Maybe, Probed, Undecided, apply, dims, joined, leaves, tensor
from .sizes import PROBES, ROUNDED, SMALL, STEPS, Probes, Symbols

MAX_DESCRIBED = 160  # characters of a module in a message
MAX_LEARNT = 100  # of the tensors that one call gives
MAX_PARTS = 10_000  # tensors that one call may give
MAX_NESTED = 50  # lists in lists
MAX_ELEMENTS = 2**56  # of an input: torch cannot count the bytes of many more
LEADS = (0, 2, 3, 4, 5, 6, 7, 8)  # dimensions that `...` may stand for, besides one
MAX_CALLS = 1_000  # of blocks that are followed: few lines can ask for exponentially many
# Ops and methods that give as many tensors as their argument is long.
_TAKES_APART = {"unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit", "combinations"}
# Where a module that is given `_` looks for the size: a dimension of its argument. All others look at the last.
_CHANNELS = ("Conv", "LazyConv", "BatchNorm", "InstanceNorm", "FrozenBatchNorm", "SyncBatchNorm", "GroupNorm", "PReLU")

# The arguments of a module that speak of what it is given; and the first, of a type that is not torch's.
_INFERRED = frozenset(
    (
        "in_features in_channels num_features normalized_shape num_channels input_size embed_dim d_model dim "
        "num_parameters in1_features in2_features"
    ).split()
)

_MT = operator.attrgetter("mT")
_FILLS = {Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_, Tensor.bernoulli_}


class Skeleton(nn.Module):
    """A block whose members stand on the meta device, before it has a forward."""

    def __init__(self, graph: Graph, members: dict[str, nn.Module | Member], path: str) -> None:
        super().__init__()
        self._graph, self._path = graph, path
        add_members(self, members)
        self._is_open = any(isinstance(module, Deferred) for module in self.modules())  # waits for sizes

    def __deepcopy__(self, memo: dict[int, Any]) -> Skeleton:
        return self  # it has no data: a type that is handed a block may copy it


@dataclass(frozen=True, slots=True)
class Row:
    """One value of one block: its shape in symbols, as `[B, T, 512]`."""

    path: str  # of the module, "" for the model itself
    name: str
    shape: str
    place: Place


@dataclass(frozen=True, slots=True)
class Shapes:
    """What the pass found. `rows` are in the order of the run, each distinct use of a block once."""

    sizes: Sizes  # what `_` stands for
    rows: tuple[Row, ...]
    bytes: int  # of all parameters and buffers
    graphs: Graphs  # of the blocks, for the params they are used with
    notes: tuple[Problem, ...]  # on calls that run for some sizes only, and not for those that were tried


def infer_shapes(block: Block, params: dict[str, Any]) -> Shapes:
    """Lay a model out on the meta device and run it in probes. Raises ConfigError with all that cannot fit."""
    random_state = torch.get_rng_state()
    leads = LEADS if any(None in (declared.shape or ()) for declared in block.inputs.values()) else ()
    runs: list[_Pass] = []
    graphs: Graphs = {}
    try:
        with torch.device("meta"), torch.no_grad(), _NoFilling():
            for table in STEPS:  # other sizes, as long as something stays open
                runs.append(_Pass(block, params, Symbols(table), 1, graphs))
                if not runs[-1].open:
                    break
            others = [(STEPS[0] if lead < 4 else STEPS[-1], lead) for lead in leads]
            for table, lead in [*((table, 1) for table in (*STEPS[-2:], SMALL)), *others]:
                if not all(run.problems or run.cut for run in runs):  # it is enough that something runs
                    break
                runs.append(_Pass(block, params, Symbols(table), lead, graphs))
    finally:
        torch.set_rng_state(random_state)  # as if nothing had been built
    best = min([r for r in runs if not r.cut] or runs, key=lambda run: (bool(run.problems), run.open))
    if best.problems:
        raise ConfigError(best.problems)
    return Shapes(best.construction.sizes, tuple(_told(best, runs)), best.bytes, graphs, tuple(best.notes))


def _told(best: _Pass, runs: list[_Pass]) -> Iterator[Row]:
    """The rows of a run, each as the run tells it that knows most: a formula must hold for sizes that no stride divides
    evenly, where these run."""
    uses = [(row.path, row.name) for row in best.rows]
    alike = [run for run in runs if run.leads == best.leads and [(row.path, row.name) for row in run.rows] == uses]
    rounds = [run.symbols.table in ROUNDED for run in alike]
    for rows in zip(*(run.rows for run in alike), strict=True):
        known = [("?" in row.shape, not r, "~" in row.shape) for r, row in zip(rounds, rows, strict=True)]
        yield rows[known.index(min(known))]


class _NoFilling(TorchFunctionMode):
    """Parameters without data need no values: drawing them takes most of the time of building a module."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in _FILLS else func(*args, **(kwargs or {}))


class _Stop(Exception):
    """This expression cannot be followed; a later stage says why, or nobody needs to."""


class _Pass:
    """One run of a model over one choice of sizes."""

    def __init__(self, block: Block, params: dict[str, Any], symbols: Symbols, leads: int, graphs: Graphs) -> None:
        self.symbols = symbols
        self.leads = leads  # how many dimensions the `...` of an input stands for
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []  # on calls that run for some sizes only
        self.rows: list[Row] = []
        self.open = 0  # calls that run for some sizes but not for these, and sizes that are no formula of the symbols
        self.cut = False  # something is too large to be followed, and might not run
        self.inside: list[Block] = []  # the blocks that are being run
        self.known: dict[Any, Any] = {}  # what functions and modules gave, by their arguments
        self._results: dict[tuple, Any] = {}
        self.calls = 0  # of blocks, each with other shapes or params
        self.construction = Construction(Skeleton, defers=True, graphs=graphs)
        root = self.construction.block(block, params).eval()
        assert isinstance(root, Skeleton)
        self._start(root)
        waiting = [m for m in root.modules() if isinstance(m, Deferred) and m.built is None]
        if not self.problems and waiting:
            self.problems += [module.problem for module in root.modules() if isinstance(module, Opaque)]
            self.problems += [problem for module in waiting for problem in module.problems()]
        self.bytes = sum(t.numel() * t.element_size() for t in (*root.parameters(), *root.buffers()) if not is_lazy(t))

    def _start(self, root: Skeleton) -> None:
        graph = root._graph
        sizes: dict[str, Any] = {symbol: Probed(self.symbols.take(symbol)) for symbol in graph.block.symbols}
        values: dict[str, Any] = {}
        for name, declared in graph.block.inputs.items():
            value = UNKNOWN if declared.shape is None else self._declared(declared, graph, sizes)
            values[name] = Maybe(value) if declared.optional else value
        self.run(root, values, sizes)

    def _declared(self, declared: Input, graph: Graph, sizes: Mapping[str, Any]) -> Any:
        assert declared.shape is not None
        entries: list[Probes] = []
        for entry in declared.shape:
            if entry is None:
                entries += [self.symbols.take("..." if i == 0 else f"...{i}") for i in range(self.leads)]
                continue
            size = _size(entry, graph.params, sizes)
            if size is None:
                return UNKNOWN
            entries.append(size)
        if max([math.prod(sizes) for sizes in zip(*entries, strict=True)], default=0) > MAX_ELEMENTS:
            self.open += 1
            self.cut = True
            return UNKNOWN
        dtype = getattr(torch, declared.dtype) if declared.dtype else torch.get_default_dtype()
        # A model of another floating dtype may run under autocast, or once it is moved to that dtype.
        is_sure = declared.dtype is not None and (not dtype.is_floating_point or dtype == torch.get_default_dtype())
        value = tensor(entries, dtype, sure=is_sure)
        self.open += isinstance(value, Undecided)
        return UNKNOWN if isinstance(value, Undecided) else value

    def run(self, skeleton: Skeleton, values: dict[str, Any], sizes: dict[str, Any]) -> Any:
        """The outputs of a block for the values of its inputs."""
        frame = _Frame(self, skeleton, {**values, **sizes})
        graph = skeleton._graph
        self.inside.append(graph.block)
        for name, declared in graph.block.inputs.items():
            self._row(skeleton, name, values[name], declared.place)
        for statement in graph.order:
            value = frame.value(statement.value, f"node '{statement.key}'")
            value = UNKNOWN if _is_large(value) else value
            for target, part in zip(statement.targets, frame.unpacked(statement, value), strict=True):
                if target != "_":
                    frame.values[target] = part
                    self._row(skeleton, target, part, statement.place)
        assert graph.block.outputs is not None
        outputs = frame.value(graph.block.outputs, "outputs")
        if isinstance(graph.block.outputs, list):
            outputs = tuple(outputs)
        first = next(expressions(graph.block.outputs), None)
        self._row(skeleton, "outputs", outputs, first.place() if first else graph.block.node.place)
        self.inside.pop()
        return outputs

    def _row(self, skeleton: Skeleton, name: str, value: Any, place: Place) -> None:
        self.rows.append(Row(skeleton._path, name, self.text(value), place))

    def call(self, skeleton: Skeleton, arguments: dict[str, Any], where: _Where) -> Any:
        """A call of a block: its arguments against what it declares, and then its graph."""
        key = (skeleton._graph, *((name, _signature(value)) for name, value in sorted(arguments.items())))
        if not skeleton._is_open and key in self._results:
            return self._results[key]
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise _Stop
        graph = skeleton._graph
        sizes: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for name, declared in graph.block.inputs.items():
            value = arguments.get(name)
            if isinstance(value, Maybe) and not declared.optional:
                value = value.value
            values[name] = value
            if value is None and not declared.optional:
                raise _Stop
        told = len(self.problems)
        for name, declared in graph.block.inputs.items():
            self._bind(name, declared, values[name], graph, sizes, where)
        for name, declared in graph.block.inputs.items():
            self._compare(name, declared, values[name], graph, sizes, where)
        if len(self.problems) > told:
            raise _Stop  # what follows from it is not told again
        for symbol in graph.block.symbols:
            sizes.setdefault(symbol, UNKNOWN)
        self._results[key] = result = self.run(skeleton, values, sizes)
        return result

    def _bind(self, name: str, declared: Input, value: Any, graph: Graph, sizes: dict[str, Any], where: _Where) -> None:
        """The symbols of a declared shape take the sizes of the argument; another rank is refused."""
        given = _dims(value)
        if declared.shape is None or given is None:
            return
        entries = [entry for entry in declared.shape if entry is not None]
        leads = len(entries) < len(declared.shape)
        if len(given) < len(entries) or (len(given) > len(entries) and not leads):
            self._mismatch(name, declared, value, where)
            return
        for entry, size in zip(entries, given[len(given) - len(entries) :], strict=True):
            if isinstance(entry, Expression) and isinstance(entry.tree, ast.Name):
                symbol = entry.tree.id
                if symbol in graph.block.symbols and symbol not in sizes:
                    sizes[symbol] = joined(size, sure=True)

    def _compare(
        self, name: str, declared: Input, value: Any, graph: Graph, sizes: dict[str, Any], where: _Where
    ) -> None:
        """Refuse what can never be the declared shape: numbers that differ. What depends on a symbol may be equal."""
        given = _dims(value)
        if declared.shape is None or given is None:
            return
        entries = [entry for entry in declared.shape if entry is not None]
        if len(given) < len(entries):
            return
        for entry, size in zip(entries, given[len(given) - len(entries) :], strict=True):
            wanted = _size(entry, graph.params, sizes)
            if wanted is not None and len({*wanted}) == len({*size}) == 1 and wanted != size:
                self._mismatch(name, declared, value, where)
                return
        inner = value.value if isinstance(value, Maybe) else value
        if declared.dtype and isinstance(inner, Probed) and inner.sure:
            dtype = inner.values[0].dtype
            if dtype != getattr(torch, declared.dtype):
                message = f"the input '{name}' of {where.callee} is {declared.dtype}; this is {_dtype(dtype)}."
                self.problems.append(Problem(f"{where.name}: {message}", where.place, f"declared at {declared.place}"))

    def _mismatch(self, name: str, declared: Input, value: Any, where: _Where) -> None:
        wanted = ", ".join("..." if entry is None else _entry_text(entry) for entry in declared.shape or ())
        message = f"the input '{name}' of {where.callee} is declared [{wanted}]; it is given {self.text(value)}."
        self.problems.append(Problem(f"{where.name}: {message}", where.place, f"declared at {declared.place}"))

    def text(self, value: Any) -> str:
        """A value as messages and tables show it: the shape of a tensor in symbols, a number as it is."""
        match value:
            case Maybe():
                return f"{self.text(value.value)} or None"
            case Probed() if not value.is_tensor:
                whole = all(isinstance(v, int) for v in value.values)
                return self.symbols.text(value.values) if whole else "~"
            case Probed() | Tensor():
                sizes = dims(value)
                texts = [self.symbols.text(size) for size in sizes or ()]
                self.open += sizes is None or "~" in texts
                shown = "?" if sizes is None else ", ".join(texts)
                dtype = (value.values[0] if isinstance(value, Probed) else value).dtype
                return f"[{shown}]" + ("" if dtype.is_floating_point else f" {_dtype(dtype)}")
            case list() | tuple():
                inner = ", ".join(self.text(entry) for entry in value[:8]) + (", ..." if len(value) > 8 else "")
                return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
            case dict():
                return "{" + ", ".join(f"{key}: {self.text(entry)}" for key, entry in value.items()) + "}"
            case slice():
                parts = [value.start, value.stop, *([value.step] if value.step is not None else [])]
                return ":".join("" if part is None else self.text(part) for part in parts)
            case torch.dtype():
                return _dtype(value)
        return "?" if value is UNKNOWN else "..." if value is ... else repr(value)


@dataclass(frozen=True, slots=True)
class _Where:
    """What a message says of a call."""

    name: str  # "node 'h'" or "outputs"
    callee: str
    place: Place


class _Frame:
    """The expressions of one use of a block."""

    def __init__(self, run: _Pass, skeleton: Skeleton, values: dict[str, Any]) -> None:
        self.run = run
        self.skeleton = skeleton
        self.block = skeleton._graph.block
        self.params = skeleton._graph.params
        self.values = values
        self.expression: Expression | None = None
        self.where = ""

    def value(self, value: Value, where: str) -> Any:
        if isinstance(value, list):
            return [self.value(entry, where) for entry in value]
        if isinstance(value, dict):
            return {key: self.value(entry, where) for key, entry in value.items()}
        self.expression, self.where = value, where
        return self.visit(value.tree)

    def unpacked(self, statement: Statement, value: Any) -> list[Any]:
        count = len(statement.targets)
        if count == 1:
            return [value]
        parts = self._parts(value)
        if parts is None:
            return [UNKNOWN] * count
        if len(parts) != count:
            first = next(expressions(statement.value), None)
            place = first.place() if first else statement.place
            message = f"node '{statement.key}': {len(parts)} values are given to {count} names."
            self.run.problems.append(Problem(message, place))
            return [UNKNOWN] * count
        return parts

    def _parts(self, value: Any) -> list[Any] | None:
        """What a value unpacks to; None when that is not known."""
        if isinstance(value, list | tuple):
            return list(value)
        sizes = _dims(value)
        if sizes and len(set(sizes[0])) == 1 and sizes[0][0] <= MAX_PARTS:
            return list(self._apply(torch.unbind, [value], {}, None))
        return None

    def visit(self, tree: ast.expr) -> Any:
        try:
            return self._visit(tree)
        except (_Stop, ConfigError):
            return UNKNOWN  # what is wrong with a name or a param is told by the stage that needs it

    def _visit(self, tree: ast.expr) -> Any:
        match tree:
            case ast.Constant():
                return tree.value
            case ast.Name():
                return self._name(tree.id)
            case ast.Call():
                return self._call(tree)
            case ast.IfExp():
                return self._conditional(tree)
            case ast.Attribute() | ast.Subscript() if self._root(tree) is not None:
                found, rest = self._member(tree)
                if isinstance(found, nn.Module):
                    raise _Stop
                for step in rest:
                    found = self._step(found, step)
                return found
            case ast.Attribute() | ast.Subscript():
                return self._step(self.visit(tree.value), tree)
            case ast.Slice():
                parts = (tree.lower, tree.upper, tree.step)
                return slice(*(None if part is None else self.visit(part) for part in parts))
            case ast.BinOp():
                left, right = self.visit(tree.left), self.visit(tree.right)
                if not any(_is_tensor(value) for value in (left, right)):
                    return self._apply(partial(binary, tree.op), [left, right], {}, tree, known=False)
                return self._apply(BINARY[type(tree.op)], [left, right], {}, tree)
            case ast.UnaryOp():
                value = self.visit(tree.operand)
                if not _is_tensor(value):
                    return self._apply(partial(unary, tree.op), [value], {}, tree, known=False)
                return self._apply(UNARY[type(tree.op)], [value], {}, tree)
            case ast.Compare(ops=[op], comparators=[right]):
                return self._apply(COMPARE[type(op)], [self.visit(tree.left), self.visit(right)], {}, tree)
            case ast.Tuple():
                return tuple(self.visit(entry) for entry in tree.elts)
            case ast.List():
                return [self.visit(entry) for entry in tree.elts]
            case ast.Dict():
                keys = [self.visit(key) for key in tree.keys if key is not None]
                if not all(isinstance(key, str | int | float | None) for key in keys):
                    raise _Stop
                return dict(zip(keys, map(self.visit, tree.values), strict=True))
        raise _Stop

    def _name(self, name: str) -> Any:
        if name in self.params:
            return self.params[name]
        if name in self.values:
            return self.values[name]
        if name == "training":
            return False  # as an argument: no op gives another shape in training
        if name in CONSTANTS:
            return CONSTANTS[name][1]
        members = {**self.skeleton._parameters, **self.skeleton._buffers}
        if name in members:
            return members[name]
        if name in DTYPES:
            return getattr(torch, name)
        raise _Stop

    def _step(self, value: Any, step: ast.Attribute | ast.Subscript) -> Any:
        """An attribute or an index of a value."""
        if isinstance(value, Maybe):
            value = value.value
        if value is UNKNOWN:
            return UNKNOWN
        if isinstance(step, ast.Subscript):
            index = self.visit(step.slice)
            if isinstance(value, list | tuple | dict | str) and not isinstance(index, Probed):
                return self._taken(value, index, step)
            return self._apply(operator.getitem, [value, index], {}, step)
        sizes = _dims(value)
        match step.attr:
            case "shape" if sizes is not None:
                return tuple(joined(size, sure=True) for size in sizes)
            case "ndim" if sizes is not None:
                return len(sizes)
            case "dtype" if isinstance(value, Probed) and not value.sure:
                return UNKNOWN
            case "dtype" | "device":
                return getattr(value.values[0] if isinstance(value, Probed) else value, step.attr)
            case "mT":
                return self._apply(_MT, [value], {}, step)
        raise _Stop

    def _taken(self, value: Any, index: Any, step: ast.Subscript) -> Any:
        if any(leaf is UNKNOWN or isinstance(leaf, Probed) for leaf in leaves(index)):
            return UNKNOWN
        try:
            return value[index]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            self._refuse(step, Failure(reason), [value, index], {})
            return UNKNOWN

    # conditionals

    def _conditional(self, tree: ast.IfExp) -> Any:
        assert self.expression is not None
        decided = outcome(self.expression, self.params, tree.test, self.block, self._is_none)
        if decided is not None:
            return self.visit(tree.body if decided else tree.orelse)
        with self._assuming(tree.test, True):
            body = self.visit(tree.body)
        with self._assuming(tree.test, False):
            orelse = self.visit(tree.orelse)
        return _either(body, orelse)

    def _is_none(self, test: ast.expr) -> bool | None:
        """The outcome of `x is None`; None where it depends on the run."""
        match test:
            case ast.Compare(ops=[ast.Is() | ast.IsNot() as op], comparators=[ast.Constant(value=None)]):
                value = self.visit(test.left)
                if value is not UNKNOWN and not isinstance(value, Maybe):
                    return (value is None) == isinstance(op, ast.Is)
        return None

    @contextmanager
    def _assuming(self, test: ast.expr, outcome: bool) -> Iterator[None]:
        """Inside a branch, what the test says of optional values."""
        saved = dict(self.values)
        for name, is_none in _facts(test, outcome):
            value = self.values.get(name)
            if isinstance(value, Maybe):
                self.values[name] = None if is_none else value.value
        try:
            yield
        finally:
            self.values = saved

    # calls

    def _call(self, tree: ast.Call) -> Any:
        callee = tree.func
        if self._root(callee) is not None:
            return self._module_call(tree)
        if isinstance(callee, ast.Attribute):
            owner = self.visit(callee.value)
            return self._method(tree, owner, callee.attr)
        assert isinstance(callee, ast.Name)
        name = callee.id
        block = self.block.find_block(name)
        if block is not None:
            return self._block_call(tree, block)
        args, kwargs = self._arguments(tree)
        if name in PLAIN_FUNCTIONS and not any(_is_tensor(leaf) for leaf in leaves((args, kwargs))):
            return self._apply(partial(call_plain, name), args, kwargs, tree, known=False)
        if OPS.has(name):
            return self._apply(OPS.get(name), args, kwargs, tree, trusted=False, known=False)
        if name not in torch_ops():
            raise _Stop  # a function of plain numbers, given a tensor
        function = torch_ops()[name][1]
        if name == "einsum" and not isinstance(next(iter(args), None), str):
            function = einops.einsum
        return self._takes_apart(name, args) or self._apply(function, args, kwargs, tree)

    def _takes_apart(self, name: str, args: list[Any]) -> Any:
        """UNKNOWN for a call that would give more tensors than anyone writes."""
        large = name in _TAKES_APART and any(max(s, default=0) > MAX_PARTS for s in _dims(next(iter(args), None)) or ())
        self.run.cut |= large
        return UNKNOWN if large else None

    def _method(self, tree: ast.Call, owner: Any, name: str) -> Any:
        args, kwargs = self._arguments(tree)
        if isinstance(owner, Maybe):
            owner = owner.value
        if owner is UNKNOWN or name not in METHODS:
            return UNKNOWN
        if not _is_tensor(owner):
            raise _Stop
        if name == "to" and any(isinstance(leaf, torch.device) for leaf in leaves((args, kwargs))):
            return owner
        found = self._takes_apart(name, [owner])
        return found or self._apply(getattr(Tensor, name), [owner, *args], kwargs, tree)

    def _arguments(self, tree: ast.Call) -> tuple[list[Any], dict[str, Any]]:
        args = [self.visit(argument) for argument in tree.args]
        return args, {str(keyword.arg): self.visit(keyword.value) for keyword in tree.keywords}

    def _apply(
        self,
        function: Any,
        args: list[Any],
        kwargs: Any,
        tree: ast.expr | None,
        trusted: bool = True,
        known: bool = True,
        hint: str = "",
    ) -> Any:
        """What a function gives. `known`: for equal arguments the same, so that it is asked once."""
        if "device" in kwargs:  # nothing here takes memory
            kwargs = {**kwargs, "device": torch.device("meta")}
        if len(self.run.problems) > MAX_PROBLEMS or _is_large((args, kwargs)):
            return UNKNOWN
        key = (_identity(function), _signature(args), _signature(kwargs)) if known else None
        result = self.run.known.get(key) if known else None
        if result is None:
            result = apply(function, args, kwargs, self.run.symbols, trusted)
            if known:
                self.run.known[key] = result
            for leaf in itertools.islice(leaves(result), MAX_LEARNT):
                for size in _dims(leaf) or ():
                    self.run.symbols.formula(size)  # what the next stride divides
        if isinstance(result, Failure | Undecided) and tree is not None:
            self._refuse(tree, result, args, kwargs, hint)
        self.run.open += isinstance(result, Undecided)
        return UNKNOWN if isinstance(result, Failure | Undecided) else result

    def _refuse(
        self, tree: ast.expr, result: Failure | Undecided, args: list[Any], kwargs: Any, hint: str = ""
    ) -> None:
        assert self.expression is not None
        shown = self._shown(tree, [self.run.text(argument) for argument in args], kwargs)
        if isinstance(result, Failure):
            message = f"{self.where}: {shown} does not fit: {result.reason}."
            self.run.problems.append(Problem(message, self.expression.place(tree), hint))
        else:
            sizes = ", ".join(f"{symbol} = {size}" for symbol, size in result.sizes.items())
            message = f"{self.where}: {shown} runs for some sizes only{sizes and f', such as {sizes}'}."
            self.run.notes.append(Problem(message, self.expression.place(tree)))

    def _shown(self, tree: ast.expr, texts: list[str], kwargs: Mapping[str, Any]) -> str:
        """The expression with shapes in the place of its arguments."""
        match tree:
            case ast.BinOp():
                sign = ast.unparse(ast.BinOp(ast.Name("a"), tree.op, ast.Name("b")))
                return sign.replace("a", texts[0], 1).replace("b", texts[-1]) if len(texts) == 2 else sign
            case ast.Call():
                words = [f"{name}={self.run.text(value)}" for name, value in kwargs.items()]
                if isinstance(tree.func, ast.Attribute) and self._root(tree.func) is None:
                    return f"{texts[0]}.{tree.func.attr}({', '.join([*texts[1:], *words])})"
                return f"{ast.unparse(tree.func)}({', '.join([*texts, *words])})"
            case ast.Subscript():
                return f"{texts[0]}[{texts[1].strip('()')}]"
            case ast.Compare(ops=[op]):
                sign = ast.unparse(ast.Compare(ast.Name("a"), [op], [ast.Name("b")]))[2:-2]
                return f"{texts[0]} {sign} {texts[1]}"
        return f"{ast.unparse(tree)} of {', '.join(texts)}"

    def _block_call(self, tree: ast.Call, block: Block) -> Any:
        """A block without modules: its params are given by keyword."""
        inputs = [keyword for keyword in tree.keywords if keyword.arg in block.inputs]
        given = {k.arg: self.visit(k.value) for k in tree.keywords if k not in inputs and k.arg is not None}
        if block.modules or block in self.run.inside:
            raise _Stop
        construction = self.run.construction
        skeleton = construction.block(block, bind_params(block, given, {}), self.skeleton._path)
        assert isinstance(skeleton, Skeleton)
        args = [self.visit(argument) for argument in tree.args]
        return self._called(skeleton, args, {str(k.arg): self.visit(k.value) for k in inputs}, tree, block.name)

    def _called(self, skeleton: Skeleton, args: list[Any], kwargs: dict[str, Any], tree: ast.expr, name: str) -> Any:
        assert self.expression is not None
        names = list(skeleton._graph.block.inputs)
        if len(args) > len(names) or not kwargs.keys() <= {*names}:
            raise _Stop
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        return self.run.call(skeleton, arguments, _Where(self.where, f"'{name}'", self.expression.place(tree)))

    # modules

    def _root(self, tree: ast.expr) -> str | None:
        """The name of the module that a path begins with."""
        while isinstance(tree, ast.Attribute | ast.Subscript):
            tree = tree.value
        named = isinstance(tree, ast.Name) and tree.id in self.block.modules
        return tree.id if named else None  # pyrefly: ignore

    def _member(self, tree: ast.expr) -> tuple[Any, list[ast.Attribute | ast.Subscript]]:
        """What a path into modules leads to, and the steps that follow a tensor."""
        steps: list[ast.Attribute | ast.Subscript] = []
        while isinstance(tree, ast.Attribute | ast.Subscript):
            steps.insert(0, tree)
            tree = tree.value
        assert isinstance(tree, ast.Name)
        found: Any = _entry(self.skeleton, tree.id)
        for position, step in enumerate(steps):
            if not isinstance(found, nn.Module):
                return found, steps[position:]
            key = step.attr if isinstance(step, ast.Attribute) else self.visit(step.slice)
            if isinstance(key, int) and key < 0 and isinstance(found, nn.ModuleList | nn.Sequential):
                key += len(found)
            found = _entry(found, str(key))
        return found, []

    def _module_call(self, tree: ast.Call) -> Any:
        callee = tree.func
        how = callee.attr if isinstance(callee, ast.Attribute) and callee.attr in ("scan", "map") else ""
        if isinstance(callee, ast.Attribute):
            owner, rest = self._member(callee.value)
            if how and isinstance(owner, nn.ModuleList):
                return self._list(tree, owner, how)
            if callee.attr in METHODS and not isinstance(owner, nn.Module):
                for step in rest:
                    owner = self._step(owner, step)
                return self._method(tree, owner, callee.attr)
        module, _ = self._member(callee)
        if isinstance(module, nn.ModuleList):
            return self._list(tree, module, "")
        args, kwargs = self._arguments(tree)
        return self._module(module, args, kwargs, tree, ast.unparse(callee))

    def _module(self, module: Any, args: list[Any], kwargs: dict[str, Any], tree: ast.expr, name: str) -> Any:
        """What a module gives. A Deferred one is built first, from what it is called with."""
        if isinstance(module, Deferred):
            module = self._built(module, args, kwargs)
        if isinstance(module, Skeleton):
            return self._called(module, args, kwargs, tree, name)
        if isinstance(module, nn.Sequential):
            if len(args) != 1 or kwargs:
                raise _Stop
            value = args[0]
            for key in list(module._modules):
                value = self._module(_entry(module, key), [value], {}, tree, f"{name}[{key}]")
            return value
        if not isinstance(module, nn.Module) or isinstance(module, Opaque) or _is_lazy(module):
            return UNKNOWN
        special = _recurrent(module, args) if isinstance(module, nn.RNNBase) else None
        if special is not None:
            return special
        home = type(module).__module__
        described = " ".join(str(module).split())
        described = described if len(described) <= MAX_DESCRIBED else f"{described[:MAX_DESCRIBED]} ..."
        return self._apply(
            module,
            args,
            kwargs,
            tree,
            trusted=is_known_code(type(module)),
            known=home.startswith("torch.nn") and not module._modules,
            hint=f"{name} is {described}",
        )

    def _list(self, tree: ast.Call, members: nn.ModuleList, how: str) -> Any:
        """Threading, scan and map over a list of modules."""
        each: list[list[Any]] = []

        def argument(part: ast.expr) -> Any:
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "each":
                entries = self._parts(self.visit(part.args[0]))
                each.append(entries if entries is not None else [UNKNOWN] * len(members))
                if len(each[-1]) != len(members):
                    assert self.expression is not None
                    message = f"{self.where}: each() is given {len(each[-1])} values for {len(members)} modules."
                    self.run.problems.append(Problem(message, self.expression.place(part)))
                    raise _Stop
                return _Each(each[-1])
            return self.visit(part)

        args = [argument(part) for part in tree.args]
        kwargs = {str(keyword.arg): argument(keyword.value) for keyword in tree.keywords}
        name = ast.unparse(tree.func).removesuffix(f".{how}")
        results = []
        count = 1
        for position, key in enumerate(list(members._modules)):
            module = _entry(members, key)
            given = [_at(value, position) for value in args]
            words = {name: _at(value, position) for name, value in kwargs.items()}
            result = self._module(module, given, words, tree, f"{name}[{key}]")
            results.append(result)
            if isinstance(module, Skeleton) and isinstance(result, tuple):
                count = len(result)
            if how != "map":
                parts = [result] if count == 1 and not isinstance(result, tuple) else self._parts(result)
                args[:count] = parts if parts is not None and len(parts) == count else [UNKNOWN] * count
        if how:
            return results
        if not len(members) and len(args) > 1:
            return UNKNOWN  # how many values pass through is not to be seen in an empty list
        return args[0] if count == 1 else tuple(args[:count])

    def _built(self, deferred: Deferred, args: list[Any], kwargs: dict[str, Any]) -> nn.Module:
        """Give a module the sizes that its blanks ask for."""
        sizes: dict[ast.AST, int] = {}
        for blank, parameter in deferred.blanks():
            size = self._asked(deferred, parameter, args, kwargs)
            if size is None:
                raise _Stop
            if len(set(size)) > 1:
                message = f"'_' would be {self.run.symbols.text(size)}; the size of a module is a number."
                self.run.problems.append(Problem(message, deferred.expression.place(blank), "write the size"))
                raise _Stop
            sizes[blank] = size[0]
        deferred.built = deferred.build(sizes).eval()
        return deferred.built

    def _asked(self, deferred: Deferred, parameter: str, args: list[Any], kwargs: dict[str, Any]) -> Probes | None:
        """What a blank stands for: of a block, where its inputs declare that param; of a type, its features."""
        callee = deferred.callee
        if isinstance(callee, Block):
            arguments = {**dict(zip(callee.inputs, args, strict=False)), **kwargs}
            for name, declared in callee.inputs.items():
                given = _dims(arguments.get(name))
                for back, entry in enumerate(reversed(declared.shape or ()), 1):
                    named = isinstance(entry, Expression) and isinstance(entry.tree, ast.Name)
                    if named and entry.tree.id == parameter and given and back <= len(given):  # pyrefly: ignore
                        return given[-back]
            return None
        forward = getattr(callee, "forward", None)
        names = list(inspect.signature(forward).parameters)[1:] if forward is not None else []
        of = parameter.removesuffix("_dim")  # `context_dim` is the width of the argument `context`
        first = next(iter(inspect.signature(callee).parameters))
        of_torch = getattr(callee, "__module__", "").startswith("torch.nn") and first != "args"  # as an LSTM has
        if parameter not in (*_INFERRED, f"{of}_dim" if of in names else "", "" if of_torch else first):
            return None
        position = names.index(of) if of in names else 1 if parameter == "in2_features" else 0
        argument = kwargs.get(names[position]) if position < len(names) else None
        given = _dims(args[position] if position < len(args) else argument)
        if not given:
            return None
        name = getattr(callee, "__name__", "")
        if not name.startswith(_CHANNELS):
            return given[-1]
        unbatched = name.startswith(("Conv", "InstanceNorm")) and name[-2:] == f"{len(given) - 1}d"
        return given[0] if unbatched or len(given) == 1 else given[1]


class _Each(list):
    """The values of each(xs): one for every member of a list of modules."""


def _is_lazy(module: nn.Module) -> bool:
    """Whether torch itself is to find a size at the first call, as of LazyLinear(3)."""
    return any(is_lazy(parameter) for parameter in module.parameters())


def _is_large(value: Any) -> bool:
    """Whether a nest of lists holds more than anyone writes; the same list counts as often as it stands there."""
    level, depth = [value], 0
    while level:
        entries = (entry for one in level if isinstance(one, list | tuple | dict) for entry in _inside(one))
        level, depth = list(itertools.islice(entries, MAX_PARTS + 1)), depth + 1
        if depth > MAX_NESTED or len(level) > MAX_PARTS:
            return True
    return False


def _inside(value: list | tuple | dict) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _at(value: Any, position: int) -> Any:
    return value[position] if isinstance(value, _Each) else value


def _entry(owner: nn.Module, key: str) -> Any:
    """A child, parameter or buffer of a module."""
    for entries in (owner._modules, owner._parameters, owner._buffers):
        if key in entries:
            found = entries[key]
            return found.built or found if isinstance(found, Deferred) else found
    raise _Stop


def _either(body: Any, orelse: Any) -> Any:
    """What a conditional gives whose branch the run chooses: what is known of both."""
    if isinstance(body, tuple) and isinstance(orelse, tuple) and len(body) == len(orelse):
        return tuple(map(_either, body, orelse))
    if body is None or orelse is None:
        other = orelse if body is None else body
        return other if other is None or other is UNKNOWN or isinstance(other, Maybe) else Maybe(other)
    return body if _signature(body) == _signature(orelse) else UNKNOWN


def _dims(value: Any) -> list[Probes] | None:
    if isinstance(value, Maybe):
        value = value.value
    return dims(value) if isinstance(value, Tensor) or (isinstance(value, Probed) and value.is_tensor) else None


def _is_tensor(leaf: Any) -> bool:
    return leaf.is_tensor if isinstance(leaf, Probed) else isinstance(leaf, Tensor) or leaf is UNKNOWN


def _signature(value: Any) -> Any:
    """What two values have in common that the pass cannot tell apart."""
    match value:
        case slice():
            return "slice", _signature((value.start, value.stop, value.step))
        case Probed() if value.is_tensor:
            return tuple(v.shape for v in value.values), value.values[0].dtype, value.sure
        case Probed():
            return value.values
        case Tensor():
            return (value.shape,) * PROBES, value.dtype, True
        case Maybe():
            return "maybe", _signature(value.value)
        case list() | tuple():
            return type(value).__name__, *(_signature(entry) for entry in value)
        case dict():
            return tuple((key, _signature(entry)) for key, entry in value.items())
    return repr(value)


def _identity(function: Any) -> Any:
    """Functions are themselves; a module of torch is its class, its description and the shapes of its parameters."""
    if not isinstance(function, nn.Module):
        return function
    return (
        type(function),
        repr(sorted((key, value) for key, value in vars(function).items() if not key.startswith("_"))),
        *(parameter.shape for parameter in function._parameters.values() if parameter is not None),
    )


def _size(entry: Expression | int, params: Mapping[str, Any], sizes: Mapping[str, Any]) -> Probes | None:
    """A declared size in each probe; None where a symbol in it is not known."""
    if isinstance(entry, int):
        return (entry,) * PROBES
    found = []
    for probe in range(PROBES):
        known = {name: v.values[probe] if isinstance(v, Probed) else v for name, v in sizes.items() if v is not UNKNOWN}
        if any(name.id not in {*known, *params, *PLAIN_FUNCTIONS} for name in entry.names()):
            return None
        found.append(evaluate(entry, {**params, **known}))
    return tuple(found) if all(type(size) is int and size >= 0 for size in found) else None


def _entry_text(entry: Expression | int) -> str:
    return entry.text if isinstance(entry, Expression) else str(entry)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _facts(test: ast.expr, outcome: bool) -> Iterator[tuple[str, bool]]:
    """What a test says when it comes out so: pairs of a name and whether it is None."""
    match test:
        case ast.UnaryOp(op=ast.Not()):
            yield from _facts(test.operand, not outcome)
        case ast.BoolOp() if isinstance(test.op, ast.And) == outcome:
            for value in test.values:
                yield from _facts(value, outcome)
        case ast.Compare(left=ast.Name(id=name), ops=[ast.Is() | ast.IsNot() as op], comparators=[ast.Constant(None)]):
            yield name, isinstance(op, ast.Is) == outcome


def _recurrent(module: nn.RNNBase, args: list[Any]) -> Any:
    """What an RNN, LSTM or GRU gives: torch would take every time step on the meta device."""
    given = _dims(args[0]) if args else None
    if given is None or len(given) not in (2, 3) or len(set(given[-1])) > 1 or given[-1][0] != module.input_size:
        return None  # the module itself says what does not fit
    value = args[0].value if isinstance(args[0], Maybe) else args[0]
    sure, dtype = (value.sure, value.values[0].dtype) if isinstance(value, Probed) else (True, value.dtype)
    ways = 2 if module.bidirectional else 1
    width = module.proj_size or module.hidden_size
    batch = [given[0 if module.batch_first else 1]] if len(given) == 3 else []
    layers = (module.num_layers * ways,) * PROBES
    state = tensor([layers, *batch, (width,) * PROBES], dtype, sure)
    cell = tensor([layers, *batch, (module.hidden_size,) * PROBES], dtype, sure)
    output = tensor([*given[:-1], (width * ways,) * PROBES], dtype, sure)
    if any(isinstance(value, Undecided) for value in (state, cell, output)):
        return UNKNOWN
    return output, (state, cell) if isinstance(module, nn.LSTM) else state
