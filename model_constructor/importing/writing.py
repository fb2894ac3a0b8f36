"""Writing: blocks -> the text of a model file, as a person would lay it out."""

from __future__ import annotations

import ast
import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ..names import CONSTANTS, DTYPES, TAKEN, TAKEN_BY_MODELS
from ..source import dump
from .calls import ByMode, refs_of
from .entries import Entry, PerMember, by_index, constants, defaults_of, named_calls
from .forms import MISSING, BlockForm, has_name
from .layout import entry_lines, path_tree, text_of, value_lines
from .steps import Computed, Node, Ref, Sized, SizeOf

INLINED = 60  # characters of an expression that stands where it is used
INLINED_NAMED = 32  # the same, where its author has a name for it alone
BY_POSITION = 3  # arguments of a block; others are named
COMMENT_COLUMN = 44
_LETTERS = {1: ["N"], 2: ["B", "C"], 3: ["B", "N", "C"], 4: ["B", "C", "H", "W"], 5: ["B", "C", "T", "H", "W"]}
_BINARY = {
    "+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div, "//": ast.FloorDiv, "%": ast.Mod, "**": ast.Pow,
    "@": ast.MatMult, "&": ast.BitAnd, "|": ast.BitOr,
}  # fmt: skip
_COMPARED = {">": ast.Gt, ">=": ast.GtE, "<": ast.Lt, "<=": ast.LtE, "==": ast.Eq, "!=": ast.NotEq}


def write(
    forms: Sequence[BlockForm], declared: Mapping[str, Any], sizes: Sequence[Mapping[str, int]], head: str
) -> str:
    """The text of a file. The last of the blocks is the model, whose inputs are declared.

    sizes: what the symbols of the inputs were in each run. head: comment lines.
    """
    of_path = {instance.path: form for form in forms for instance in form.instances}
    *inner, model = (_BlockWriter(form, of_path, sizes) for form in forms)
    lines = [*(f"# {line}".rstrip() for line in head.splitlines()), "schema_version: 2"]
    body = model.lines(declared)
    written: list[str] = []
    for block in inner:
        kind = type(block.form.first.module)
        title = f"  {block.form.name}:"
        written += [f"{title:<{COMMENT_COLUMN - 1}} # {kind.__module__}.{kind.__qualname__}"]
        written += [f"    {line}".rstrip() for line in block.lines(None)]
    start = body.index("modules:") if "modules:" in body else next(
        i for i, line in enumerate(body) if line.startswith(("graph:", "outputs:"))
    )  # fmt: skip
    sections = [body[:start], ["blocks:", *written] if written else [], body[start:]]
    for section in sections:
        lines += _spaced(section)
    return "\n".join(lines) + "\n"


def _spaced(section: list[str]) -> list[str]:
    spaced: list[str] = []
    for line in section:
        spaced += ["", line] if not line.startswith(" ") else [line]
    return spaced


class _BlockWriter:
    def __init__(self, form: BlockForm, of_path: Mapping[str, BlockForm], sizes: Sequence[Mapping[str, int]]) -> None:
        self.form, self.of_path, self.sizes = form, of_path, sizes
        self.instance = form.first
        self.call = form.first.calls[0]
        self.nodes = self.call.nodes
        self.taken = {*form.params, *form.first.entries, *TAKEN, *CONSTANTS, *DTYPES}
        self.taken |= {node.target for node in self.nodes if node.kind == "op"}
        self.inputs = input_names(form)
        self.taken |= set(self.inputs.values())
        self.shapes: dict[str, list[str]] = {}
        self.symbols: dict[str, list[int]] = {}  # what each was in all calls
        self.names: dict[int, str] = {}  # of statements, and of inputs
        self.unpacked: dict[int, list[str]] = {}

    def lines(self, declared: Mapping[str, Any] | None) -> list[str]:
        """The sections of the block; `declared` are the inputs of the model."""
        self._declare_inputs(declared)
        statements = self._statements()
        lines: list[str] = []
        if self.form.params:
            entries = (f"{name}: {_param(values)}" for name, values in self.form.params.items())
            lines.append(f"params: {{{', '.join(entries)}}}")
        lines += ["inputs:", *(f"  {self.inputs[name]}: {self._input(name, declared)}" for name in self.call.inputs)]
        entries = self.instance.entries
        if entries:
            lines.append("modules:")
            for name, entry in entries.items():
                lines += entry_lines(name, self._entry(name, entry), "  ")
        if statements:
            lines.append("graph:")
            lines += [line for names, tree in statements for line in value_lines("  ", ", ".join(names), tree)]
        outputs = self.call.outputs
        if outputs is None or isinstance(outputs, Ref | list):
            lines += value_lines("", "outputs", self._argument(outputs, _Counter("outputs", 0)))
        else:
            lines.append("outputs:")
            count = _Counter("outputs", 0)
            items = outputs.items() if isinstance(outputs, dict) else enumerate(outputs)
            for name, value in items:
                tree = self._argument(value, count)
                lines += value_lines("  ", str(name), tree) if isinstance(outputs, dict) else [f"  - {text_of(tree)}"]
        return lines

    # inputs

    def _declare_inputs(self, declared: Mapping[str, Any] | None) -> None:
        for name in self.call.inputs:
            if declared is not None:
                shape = _shape_of(declared[name])
                self.shapes[name] = [str(entry) for entry in shape] if isinstance(shape, list) else []
                self.taken |= {entry for entry in self.shapes[name] if entry.isidentifier()}
        for name, first in self.call.inputs.items():
            if declared is None and first is not None:
                seen = [call.inputs[name][0] for one in self.form.instances for call in one.calls]
                self.shapes[name] = [
                    self._dimension(name, d, [shape[d] for shape in seen], len(seen[0])) for d in range(len(seen[0]))
                ]
        for name, shape in self.shapes.items():
            for d, entry in enumerate(shape):
                if entry.isidentifier() and entry not in self.form.params:
                    seen = [call.inputs[name][0][d] for one in self.form.instances for call in one.calls]
                    self.symbols.setdefault(entry, seen)
        for i, node in enumerate(self.nodes):
            if node.kind == "input":
                self.names[i] = self.inputs[node.target]

    def _dimension(self, name: str, d: int, seen: list[int], rank: int) -> str:
        """A size that is the same in all calls as a number, one that a param gives as that, any other as a symbol."""
        if len(set(seen)) == 1:
            return str(seen[0])
        runs = [size for one in self.form.instances for size in _per_call(self.sizes, len(one.calls))]
        for symbol in self.sizes[0]:
            if seen == [sizes[symbol] for sizes in runs] and symbol not in self.form.params:
                self.taken.add(symbol)
                return symbol
        per_instance = [value for i, one in enumerate(self.form.instances) for value in [i] * len(one.calls)]
        for param, values in self.form.params.items():
            if seen == [values[i] for i in per_instance] and all(type(value) is int for value in values):
                return param
        letters = _LETTERS.get(rank) or [f"N{i}" for i in range(rank)]
        symbol = _free(letters[d], self.taken)
        self.taken.add(symbol)
        return symbol

    def _input(self, name: str, declared: Mapping[str, Any] | None) -> str:
        if declared is not None:
            return dump(declared[name], flow=True).strip()
        first = self.call.inputs[name]
        if first is None:
            return "any"
        dtype = str(first[1]).removeprefix("torch.")
        shape = f"[{', '.join(self.shapes[name])}]"
        return shape if dtype == "float32" else f"{{shape: {shape}, dtype: {dtype}}}"

    # modules

    def _entry(self, name: str, entry: Entry) -> Entry:
        """An entry with its params in place, and without arguments that are as by default."""
        entry = copy.deepcopy(entry)
        for k, constant in enumerate(constants(entry)):
            tree = self.form.written.get(("entry", name, k))
            if tree is None and isinstance(constant.value, PerMember):
                tree = by_index(constant.value.values)
            if tree is not None:
                constant.value = _Placed(tree)  # pyrefly: ignore
        return self._finished(entry)

    def _finished(self, entry: Entry) -> Entry:
        if isinstance(entry, list):
            return [self._finished(one) for one in entry]
        if isinstance(entry, dict):
            return {name: self._finished(one) for name, one in entry.items()}
        forms = {form.name: form for form in self.of_path.values()}
        for kind, call in named_calls(entry):
            form = forms.get(kind)
            of_block = {name: _default(values) for name, values in form.params.items()} if form is not None else None
            defaults = defaults_of(kind) if of_block is None else of_block
            call.keywords = [
                one for one in call.keywords if not _is_constant(one.value, defaults.get(str(one.arg), MISSING))
            ]
        return _Placing().visit(entry)

    # the graph

    def _statements(self) -> list[tuple[list[str], ast.expr]]:
        live = self._live()
        refs = [ref for i in live for ref in self._read(self.nodes[i], i)] + refs_of(self.call.outputs)
        uses = Counter(ref.node for ref in refs)
        parts: dict[int, set[Any]] = {}
        for ref in refs:
            parts.setdefault(ref.node, set()).add(ref.path[:1])
        named = Counter(self.nodes[i].name for i in live if self.nodes[i].name)
        statements: list[tuple[list[str], ast.expr]] = []
        for i in live:
            node = self.nodes[i]
            if node.kind in ("input", "tensor"):
                continue
            tree = self.tree(i)
            heads = parts.get(i, set())
            longest = INLINED_NAMED if named[node.name] == 1 else INLINED
            unpacks = node.arity and () not in heads and (len(heads) > 1 or uses[i] > 1)
            if unpacks and node.arity <= 12 and not node.target.endswith(".scan"):
                names = [self._part_name(i, k) if (k,) in heads else "_" for k in range(node.arity)]
                self.unpacked[i] = names
                statements.append((names, tree))
            elif uses[i] > 1 or node.optional or len(text_of(tree)) > longest:
                self.names[i] = self._free_name(node.name or "h")
                statements.append(([self.names[i]], tree))
        last = refs_of(self.call.outputs)
        if statements and isinstance(self.call.outputs, Ref) and len(last) == 1 and not last[0].path:
            names, tree = statements[-1]
            if names == [self.names.get(last[0].node)] and uses[last[0].node] == 1:  # the output itself
                statements.pop()
                del self.names[last[0].node]
        return statements

    def _live(self) -> list[int]:
        live: set[int] = set()
        waiting = [ref.node for ref in refs_of(self.call.outputs)]
        while waiting:
            number = waiting.pop()
            if number not in live:
                live.add(number)
                waiting += [ref.node for ref in self._read(self.nodes[number], number)]
        return sorted(live)

    def _read(self, node: Node, number: int) -> list[Ref]:
        """The values that a step reads, once its sizes are known to be numbers or not."""
        refs: list[Ref] = []
        count = _Counter("node", number)

        def visit(value: Any) -> None:
            if isinstance(value, Ref):
                refs.append(value)
            elif isinstance(value, Sized):
                if self._number(count.next(), value) is None:
                    refs.extend(self._sources(value.origin))
            elif isinstance(value, bool | int | float):
                count.next()
            elif isinstance(value, list | tuple):
                for entry in value:
                    visit(entry)
            elif isinstance(value, dict):
                for entry in value.values():
                    visit(entry)
            elif isinstance(value, slice):
                visit([value.start, value.stop, value.step])

        visit([node.args, node.kwargs])
        return refs

    def _sources(self, origin: Any) -> Iterator[Ref]:
        """The values that a size is read from, but for inputs, whose sizes have names."""
        if isinstance(origin, SizeOf) and self.nodes[origin.value.node].kind != "input":
            yield origin.value
        elif isinstance(origin, Computed):
            yield from self._sources(origin.left)
            yield from self._sources(origin.right)

    def _number(self, key: tuple, value: Any) -> ast.expr | None:
        """What is written for a number; None for a size that has to be computed."""
        if key in self.form.written:
            return self.form.written[key]
        if not isinstance(value, Sized):
            return by_mode(self.instance.numbers.get(key, value))
        seen = [n for one in self.form.instances for n in one.numbers[key]] if self._everywhere(key) else []
        if len(set(seen)) == 1:
            return ast.Constant(seen[0])
        same = (name for name, sizes in self.symbols.items() if sizes == seen)
        return next((ast.Name(name, ast.Load()) for name in same), None)

    def _everywhere(self, key: tuple) -> bool:
        return all(one.numbers[key] is not MISSING for one in self.form.instances)

    def tree(self, number: int) -> ast.expr:
        """A step as an expression, with the steps inside of it that have no name."""
        node = self.nodes[number]
        count = _Counter("node", number)
        args = [self._argument(value, count) for value in node.args]
        keywords = {name: self._argument(value, count) for name, value in node.kwargs.items()}
        named = [
            ast.keyword(k, tree) for k, tree in keywords.items() if k != "dropout_p" or not _is_constant(tree, 0.0)
        ]
        match node.kind:
            case "operator" if len(args) == 1:
                return ast.UnaryOp({"-": ast.USub(), "~": ast.Invert()}[node.target], args[0])
            case "operator" if node.target in _COMPARED:
                return ast.Compare(args[0], [_COMPARED[node.target]()], [args[1]])
            case "operator":
                return ast.BinOp(args[0], _BINARY[node.target](), args[1])
            case "item":
                return ast.Subscript(args[0], args[1], ast.Load())
            case "attribute":
                return ast.Attribute(args[0], node.target, ast.Load())
            case "method":
                return ast.Call(ast.Attribute(args[0], node.target, ast.Load()), args[1:], named)
            case "op":
                return ast.Call(ast.Name(node.target, ast.Load()), args, named)
            case "tensor":
                return path_tree(node.target)
        assert node.kind == "call"
        call = self._module_call(node, args, keywords)
        if node.optional:
            name = has_name(node.target.partition(".")[0])
            (given,) = [*args, *keywords.values()]
            return ast.IfExp(ast.Name(name, ast.Load()), call, given)
        return call

    def _module_call(self, node: Node, args: list[ast.expr], keywords: dict[str, ast.expr]) -> ast.expr:
        path = f"{self.instance.path}." if self.instance.path else ""
        target = f"{path}{node.target.removesuffix('.scan')}"
        form = self.of_path.get(target) or self.of_path.get(f"{target}.0")
        if form is not None and keywords:
            names = input_names(form)
            given = list(keywords.items())
            named = [ast.keyword(names[name], value) for name, value in given[BY_POSITION:]]
            return ast.Call(path_tree(node.target), [value for _, value in given[:BY_POSITION]], named)
        named = [ast.keyword(name, value) for name, value in keywords.items()]
        return ast.Call(path_tree(node.target), args, named)

    def _argument(self, value: Any, count: _Counter) -> ast.expr:
        if isinstance(value, Ref):
            return self._value(value)
        if isinstance(value, Sized):
            return self._number(count.next(), value) or self._size(value.origin)
        if isinstance(value, bool | int | float):
            tree = self._number(count.next(), value)
            assert tree is not None
            return _number(tree.value) if isinstance(tree, ast.Constant) and isinstance(tree.value, float) else tree
        if isinstance(value, list | tuple):
            entries = [self._argument(entry, count) for entry in value]
            return ast.List(entries, ast.Load()) if isinstance(value, list) else ast.Tuple(entries, ast.Load())
        if isinstance(value, dict):
            return ast.Dict([ast.Constant(name) for name in value], [self._argument(v, count) for v in value.values()])
        if isinstance(value, slice):
            parts = (
                None if part is None else self._argument(part, count) for part in (value.start, value.stop, value.step)
            )
            return ast.Slice(*parts)
        if value is None or isinstance(value, str | type(...)):
            return ast.Constant(value)
        return ast.Name(str(value).removeprefix("torch."), ast.Load())  # a dtype

    def _value(self, ref: Ref) -> ast.expr:
        path = ref.path
        if ref.node in self.unpacked:
            tree: ast.expr = ast.Name(self.unpacked[ref.node][int(path[0])], ast.Load())
            path = path[1:]
        elif ref.node in self.names:
            tree = ast.Name(self.names[ref.node], ast.Load())
        else:
            tree = self.tree(ref.node)
        for step in path:
            tree = ast.Subscript(tree, ast.Constant(step), ast.Load())
        return tree

    def _size(self, origin: Any) -> ast.expr:
        if isinstance(origin, Computed):
            return ast.BinOp(self._size(origin.left), _BINARY[origin.op](), self._size(origin.right))
        if not isinstance(origin, SizeOf):
            return ast.Constant(origin)
        node = self.nodes[origin.value.node]
        if node.kind == "input" and not origin.value.path and self.shapes.get(node.target):
            return ast.parse(self.shapes[node.target][origin.dim], mode="eval").body
        shape = ast.Attribute(self._value(origin.value), "shape", ast.Load())
        return ast.Subscript(shape, ast.Constant(origin.dim), ast.Load())

    # names

    def _free_name(self, wanted: str) -> str:
        name = _free(wanted, self.taken)
        self.taken.add(name)
        return name

    def _part_name(self, number: int, k: int) -> str:
        known = (name for name, ref in self.call.variables.items() if ref == Ref(number, (k,)))
        return self._free_name(next(known, f"{self.nodes[number].name or 'part'}{k}"))


class _Counter:
    """Numbers the numbers of a step, as `numbers_of_nodes` does."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number, self.count = kind, number, 0

    def next(self) -> tuple[str, int, int]:
        self.count += 1
        return self.kind, self.number, self.count - 1


class _Placed:
    """An expression on its way into the place of a constant."""

    def __init__(self, tree: ast.expr) -> None:
        self.tree = tree


class _Placing(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return node.value.tree if isinstance(node.value, _Placed) else node


def input_names(form: BlockForm) -> dict[str, str]:
    """The inputs as the file names them: some names of arguments are taken there."""
    taken = {*form.params, *form.first.entries, *TAKEN, *TAKEN_BY_MODELS}
    return {
        name: name if _may_be(name) and name not in taken else _free(f"{name}_in", taken)
        for name in form.first.calls[0].inputs
    }


def by_mode(value: Any) -> ast.expr:
    if not isinstance(value, ByMode):
        return ast.Constant(value)
    return ast.IfExp(ast.Name("training", ast.Load()), ast.Constant(value.training), ast.Constant(value.otherwise))


def _number(value: float) -> ast.expr:
    """A number as one would write it: 8 ** -0.5 where that is it."""
    text = {math.inf: "inf", -math.inf: "-inf"}.get(value, "")
    if not text and len(repr(value)) > 8 and math.isfinite(value) and 0 < abs(value) < 1e6:
        squares = ((round(value**2), "sqrt({})", math.sqrt), (round(value**-2), "{} ** -0.5", lambda n: n**-0.5))
        text = next((form.format(n) for n, form, root in squares if 0 < n < 1e6 and root(n) == value), "")
    return ast.parse(text, mode="eval").body if text else ast.Constant(value)


def _default(values: list[Any]) -> Any:
    """What a param is unless it is given: what most instances have, if that says nothing about sizes."""
    if all(type(value) is bool for value in values):
        return False
    common = max(values, key=values.count)
    plain = isinstance(common, int | float) and common in (0, 1)
    return common if plain and values.count(common) > len(values) / 2 else MISSING


def _param(values: list[Any]) -> str:
    default = _default(values)
    return dump(default, flow=True).split("\n")[0] if default is not MISSING else type(values[0]).__name__


def _is_constant(tree: ast.expr, value: Any) -> bool:
    return isinstance(tree, ast.Constant) and type(tree.value) is type(value) and tree.value == value


def _per_call(sizes: Sequence[Mapping[str, int]], calls: int) -> list[Mapping[str, int]]:
    """The sizes in each call of a module that is called equally often in each run."""
    return [one for one in sizes for _ in range(calls // len(sizes))]


def _shape_of(declared: Any) -> Any:
    return declared["shape"] if isinstance(declared, Mapping) else declared


def _may_be(name: str) -> bool:
    return not name.startswith("_") and not hasattr(nn.Module, name) and name not in TAKEN


def _free(name: str, taken: set[str]) -> str:
    if not _may_be(name):
        name = f"{name.strip('_')}_value"
    return next(one for one in (name, *(f"{name}{i}" for i in range(1, 10_000))) if one not in taken)
