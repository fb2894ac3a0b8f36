"""Picture: a model -> what there is to draw: the nodes of each block, what they call, and what flows between them."""

from __future__ import annotations

import ast
import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..block import Block, Statement, Value, bind_params, expressions
from ..errors import Place
from ..expressions import Expression, evaluate
from ..graph import build_graph, remaining
from ..model import GraphModel, Namespace
from ..shapes import Row, Shapes
from .check import call_text, uses, value_text, written_at
from .measure import Measured
from .summary import multiply_adds

LINKS_TOLD = 5  # types of a chain that are written out


@dataclass(slots=True, eq=False)
class Member:
    """What a node calls or reads: a module, a list of modules, a parameter, or a block without modules."""

    path: str  # in the model
    name: str
    kind: str  # "Linear", "layer x 30", "Param [1, 512]"
    detail: str
    parameters: int
    multiply_adds: int
    place: Place | None
    inside: Frame | None = None


@dataclass(slots=True, eq=False)
class Node:
    """`role`: "input", "node", "outputs", or "member" of a list. `expression` is without the branches not taken."""

    key: str
    role: str
    expression: str
    written: str
    shape: str
    place: Place | None
    members: list[Member] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(member.parameters for member in self.members)


class Edge(NamedTuple):
    """Positions of the nodes that give and read, the names of the values, and their shapes."""

    source: int
    target: int
    names: tuple[str, ...]
    shape: str


@dataclass(slots=True, eq=False)
class Frame:
    """What one use of a block, a list or a chain holds."""

    path: str
    nodes: list[Node]
    edges: list[Edge]

    def frames(self) -> Iterator[Frame]:
        """This and all inside."""
        yield self
        for node in self.nodes:
            for member in node.members:
                if member.inside is not None:
                    yield from member.inside.frames()


def picture(model: GraphModel, shapes: Shapes, measured: Measured) -> Frame:
    """All that is drawn of a model. Shapes are those of the shape pass; where it did not follow, there are none."""
    return _Reader(model, shapes, measured).frame(model._block, model.params, model, "", "", 0, 1)


class _Reader:
    def __init__(self, model: GraphModel, shapes: Shapes, measured: Measured) -> None:
        self.measured = measured
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.ran: dict[tuple[str, Place], list[list[Row]]] = {}  # by the path, and the block that ran there
        for path, block, rows in uses(shapes.rows, written_at(model._block)):
            self.ran.setdefault((path, block.node.place), []).append(rows)

    def frame(
        self,
        block: Block,
        params: Mapping[str, Any],
        module: nn.Module | None,
        path: str,
        ran_at: str,
        nth: int,
        of: int,
    ) -> Frame:
        """One use of a block: the `nth` of so many in its caller. The shape pass knows it as `ran_at`."""
        ran_at, rows = self._rows(block, params, ran_at, nth, of)
        shape_of = {row.name: row.shape for row in rows}
        use = _Use(self, block, params, module, path, ran_at)
        assert block.outputs is not None
        outputs = Statement("outputs", ("outputs",), block.outputs, block.node.key_place("outputs"))
        nodes: list[Node] = []
        edges: list[Edge] = []
        givers: dict[str, int] = {}  # of each name: the position of its node
        for name, declared in block.inputs.items():
            if name in use.read:
                givers[name] = len(nodes)
                nodes.append(Node(name, "input", "", "input", shape_of.get(name, ""), declared.place))
        for statement in (*use.graph.order, outputs):
            flowing = [name for name in use.names(statement) if name in givers]
            for source in sorted({givers[name] for name in flowing}):
                names = tuple(name for name in flowing if givers[name] == source)
                edges.append(Edge(source, len(nodes), names, _told(names, shape_of)))
            kept = [target for target in statement.targets if target in use.read or statement is outputs]
            nodes.append(
                Node(
                    statement.key,
                    "outputs" if statement is outputs else "node",
                    use.text(statement.value),
                    value_text(statement.value),
                    _told(kept, shape_of),
                    _place(statement),
                    list(use.members(statement)),
                )
            )
            givers |= dict.fromkeys(kept, len(nodes) - 1)
        return Frame(path, nodes, edges)

    def _rows(self, block: Block, params: Mapping[str, Any], path: str, nth: int, of: int) -> tuple[str, Sequence[Row]]:
        """What the shape pass says of a use, and where: it runs the first of equal uses only."""
        here = self.ran.get((path, block.node.place), [])
        if len(here) == of:
            return path, here[nth]
        elsewhere = [
            (other, rows)
            for (other, ran), found in self.ran.items()
            for rows in found
            if ran == block.node.place and _params(self.modules.get(other), block) == repr(dict(params))
        ]
        candidates = [(path, rows) for rows in here] or elsewhere
        alike = {tuple((row.name, row.shape) for row in rows) for _, rows in candidates}
        return candidates[0] if len(alike) == 1 else (path, ())

    def member(
        self,
        module: nn.Module | Tensor,
        name: str,
        path: str,
        ran_at: str,
        place: Place | None,
        is_mapped: bool = False,
    ) -> Member:
        """A row of a node. is_mapped: of a list, that its members do not follow one another."""
        if isinstance(module, Tensor):
            kind = "Param" if isinstance(module, nn.Parameter) else "Buffer"
            count = module.numel() if kind == "Param" else 0
            return Member(path, name, f"{kind} [{', '.join(map(str, module.shape))}]", "", count, 0, place)
        inside: Frame | None = None
        if isinstance(module, GraphModel):
            inside = self.frame(module._block, module.params, module, path, ran_at, 0, 1)
        elif isinstance(module, nn.ModuleList | nn.Sequential):
            inside = self._list(module, path, ran_at, place, not is_mapped)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        made = multiply_adds(module, self.measured)
        return Member(path, name, _kind(module), _detail(module), parameters, made, place, inside)

    def _list(
        self, modules: nn.ModuleList | nn.Sequential, path: str, ran_at: str, place: Place | None, is_chain: bool
    ) -> Frame | None:
        """The groups of equal neighbours in a list, of one period if they repeat; of one group, what is inside it."""
        if not any(isinstance(module, GraphModel) for module in modules):
            return None
        likenesses = list(self._likenesses(modules, ran_at))
        count = len(modules)
        period = next(p for p in range(1, count + 1) if likenesses == (likenesses[:p] * (count // p)))
        nodes: list[Node] = []
        for _, group in itertools.groupby(range(period), likenesses.__getitem__):
            run = list(group)
            times = len(run) * (count // period)
            first = modules[run[0]]
            member = self.member(first, str(run[0]), f"{path}.{run[0]}", f"{ran_at}.{run[0]}", place)
            if times > 1:
                member.name = _positions(run, period, count)
                member.kind = f"{member.kind} x {times}"
                member.parameters *= times
                member.multiply_adds *= times
            shape = member.inside.nodes[-1].shape if member.inside else self.measured.shapes.get(first, "")
            nodes.append(Node(member.name, "member", "", member.detail, shape, place, [member]))
        if len(nodes) == 1:
            return nodes[0].members[0].inside
        chain = itertools.pairwise(range(len(nodes))) if is_chain else ()
        return Frame(path, nodes, [Edge(a, b, (nodes[a].key,), nodes[a].shape) for a, b in chain])

    def _likenesses(self, modules: nn.ModuleList | nn.Sequential, ran_at: str) -> Iterator[tuple]:
        """What is equal for members that are drawn once: how they are built, and as far as known the shapes in them."""
        known: dict[tuple, list[str]] = {}  # the shapes in the last member that was built so
        changes = 0
        for name, module in modules.named_children():
            if not isinstance(module, GraphModel):
                yield type(module), repr(module)
                continue
            built = id(module._block), repr(module.params)
            ran = self.ran.get((f"{ran_at}.{name}", module._block.node.place))
            if ran:  # else it is equal to one before
                last, known[built] = known.get(built, []), [row.shape for row in ran[0]]
                changes += any("?" not in a + b and a != b for a, b in zip(last, known[built], strict=False))
            yield *built, changes


class _Use:
    """The expressions of one use of a block: what its params leave of them, and the modules they call."""

    def __init__(
        self, reader: _Reader, block: Block, params: Mapping[str, Any], module: nn.Module | None, path: str, ran_at: str
    ) -> None:
        self.reader, self.block, self.params, self.module = reader, block, params, module
        self.prefix = f"{path}." if path else ""
        self.ran_at = ran_at
        self.graph = build_graph(block, params)
        assert block.outputs is not None
        values = [*(statement.value for statement in self.graph.order), block.outputs]
        trees = [tree for value in values for _, tree in self._decided(value)]
        self.read = {name.id for tree in trees for name in _names(tree)}
        calls = [call.func for tree in trees for call in self._calls(tree) if isinstance(call, ast.Call)]
        self.functions = Counter(map(ast.unparse, calls))  # the blocks without modules, and how often they are called
        self.called: Counter[str] = Counter()

    def names(self, statement: Statement) -> list[str]:
        """What a statement reads, each once."""
        return list(dict.fromkeys(name.id for _, tree in self._decided(statement.value) for name in _names(tree)))

    def text(self, value: Value) -> str:
        """A value as it is written, without the branches that params decide against."""
        if isinstance(value, list):
            return f"[{', '.join(map(self.text, value))}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{name}: {self.text(entry)}' for name, entry in value.items())}}}"
        ((expression, tree),) = self._decided(value)
        return value_text(value) if ast.dump(tree) == ast.dump(expression.tree) else ast.unparse(tree)

    def members(self, statement: Statement) -> Iterator[Member]:
        """What a statement calls and reads of the block, each once, in the order that it runs."""
        told: set[str] = set()
        for expression, whole in self._decided(statement.value):
            for tree in self._calls(whole):
                if isinstance(tree, ast.Call):
                    yield self._function(expression, tree)
                    continue
                path, found, is_mapped = self._found(expression, tree)
                if path not in told:
                    told.add(path)
                    place = self.block.module_places.get(path.split(".")[0])
                    ran_at = f"{self.ran_at}.{path}" if self.ran_at else path
                    yield self.reader.member(found, path, f"{self.prefix}{path}", ran_at, place, is_mapped)

    def _decided(self, value: Value) -> list[tuple[Expression, ast.expr]]:
        """Each expression with its tree, in which no test on params is left."""
        return [(e, _Decided(e, self.params, self.block).visit(copy.deepcopy(e.tree))) for e in expressions(value)]

    def _calls(self, tree: ast.AST) -> Iterator[ast.expr]:
        """The paths into modules, and the calls of blocks without modules, in the order that they run."""
        if isinstance(tree, ast.Call):
            for argument in (*tree.args, *tree.keywords):
                yield from self._calls(argument)
            if isinstance(tree.func, ast.Name) and tree.func.id not in self.block.modules:
                if self.block.find_block(tree.func.id):
                    yield tree
                return
            yield from self._calls(tree.func)
        elif isinstance(tree, ast.expr) and _root(tree) in self.block.modules:
            yield tree
        else:
            for child in ast.iter_child_nodes(tree):
                yield from self._calls(child)

    def _found(self, expression: Expression, tree: ast.expr) -> tuple[str, Any, bool]:
        """The path, the module or parameter there, and whether it is a list that is mapped."""
        steps: list[ast.Attribute | ast.Subscript] = []
        while isinstance(tree, ast.Attribute | ast.Subscript):
            steps.insert(0, tree)
            tree = tree.value
        assert isinstance(tree, ast.Name)
        path, found = tree.id, getattr(self.module, tree.id)
        for step in steps:
            if not isinstance(found, nn.Module):
                break
            if isinstance(step, ast.Attribute):
                if isinstance(found, nn.ModuleList) and step.attr in ("scan", "map"):
                    return path, found, step.attr == "map"
                key: Any = step.attr
            else:
                key = evaluate(expression, self.params, step.slice)
            if isinstance(key, int) and isinstance(found, nn.ModuleList | nn.Sequential):
                key %= len(found)
            path, found = f"{path}.{key}", getattr(found, str(key))
        return path, found, False

    def _function(self, expression: Expression, tree: ast.Call) -> Member:
        """A call of a block without modules."""
        assert isinstance(tree.func, ast.Name)
        block = self.block.find_block(tree.func.id)
        assert block is not None
        given = {
            str(keyword.arg): evaluate(expression, self.params, keyword.value)
            for keyword in tree.keywords
            if keyword.arg in block.params
        }
        params = bind_params(block, given, {})
        nth, of = self.called[tree.func.id], self.functions[tree.func.id]
        self.called[tree.func.id] += 1
        path = f"{self.prefix}{block.name}{f'.{nth}' if of > 1 else ''}"
        inside = self.reader.frame(block, params, None, path, self.ran_at, nth, of)
        return Member(path, block.name, "block", call_text(block, params), 0, 0, expression.place(tree), inside)


class _Decided(ast.NodeTransformer):
    """Leaves out the branches that params decide against."""

    def __init__(self, expression: Expression, params: Mapping[str, Any], block: Block) -> None:
        self.expression, self.params, self.block = expression, params, block

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        rest = remaining(self.expression, self.params, node.test, self.block)
        if isinstance(rest, bool):
            return self.visit(node.body if rest else node.orelse)
        return ast.copy_location(ast.IfExp(rest, self.visit(node.body), self.visit(node.orelse)), node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        match node:  # what is left of `[a] + ([b] if has_b else [])`
            case ast.BinOp(op=ast.Add(), right=ast.List(elts=[])):
                return node.left
        return node


def _kind(module: nn.Module) -> str:
    if isinstance(module, GraphModel):
        return module._block.name
    if isinstance(module, Namespace):
        return "namespace"
    if isinstance(module, nn.Sequential):
        kinds = [_kind(link) for link in module]
        return " >> ".join(kinds if len(kinds) <= LINKS_TOLD else [*kinds[: LINKS_TOLD - 1], "..."])
    if isinstance(module, nn.ModuleList):
        kinds = list(dict.fromkeys(map(_kind, module)))
        return f"{kinds[0] if len(kinds) == 1 else 'module'} x {len(module)}"
    return type(module).__name__


def _positions(run: Sequence[int], period: int, count: int) -> str:
    """Which members of a list a group stands for: `0-2`, or `0, 2, ..., 14` where groups alternate."""
    if period == 1:
        return f"0-{count - 1}"
    starts = [
        f"{run[0] + shift}" + (f"-{run[-1] + shift}" if len(run) > 1 else "") for shift in range(0, count, period)
    ]
    return ", ".join(starts if len(starts) < 4 else [*starts[:2], "...", starts[-1]])


def _detail(module: nn.Module) -> str:
    """A module as it would be written out; of a list of equal ones, one of them."""
    if isinstance(module, GraphModel):
        return call_text(module._block, module.params)
    if isinstance(module, nn.ModuleList):
        return _detail(module[0]) if len({_detail(member) for member in module}) == 1 else ""
    return " ".join(repr(module).split())


def _params(module: nn.Module | None, block: Block) -> str:
    return repr(module.params) if isinstance(module, GraphModel) and module._block is block else ""


def _names(tree: ast.AST) -> Iterator[ast.Name]:
    return (part for part in ast.walk(tree) if isinstance(part, ast.Name))


def _root(tree: ast.expr) -> str:
    while isinstance(tree, ast.Attribute | ast.Subscript):
        tree = tree.value
    return tree.id if isinstance(tree, ast.Name) else ""


def _place(statement: Statement) -> Place:
    """Where a node is written: at its name, but for one whose expression was set from elsewhere."""
    first = next((expression.place() for expression in expressions(statement.value)), statement.place)
    return statement.place if first.file == statement.place.file else first


def _told(names: Sequence[str], shape_of: Mapping[str, str]) -> str:
    """The shape of what these names stand for: one for all if it is the same."""
    shapes = {shape_of.get(name, "") for name in names}
    if len(shapes) == 1:
        return shapes.pop()
    return ", ".join(f"{name} {shape_of.get(name, '?')}" for name in names)
