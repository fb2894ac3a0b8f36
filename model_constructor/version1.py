"""Version 1: the tree of a file of the older dialect -> the tree of the same file in version 2 (DIALECT.md, 10).

A node `{name: h, call: module:stem, args: [$x]}` becomes the entry `h: stem(x)` of `graph`, a spec `{_type_: nn.Linear,
out_features: 4}` the constructor `Linear(out_features=4)`. The syntax tree of each expression is made from the older
values, and every part of it stands where its value stands: all later stages and the tracebacks speak of the older file.
"""

from __future__ import annotations

import ast
import inspect
import keyword
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from torch import nn

from .config import Config, check_keys, load_config, merge
from .errors import ConfigError, Place, Problem, nearest
from .interpolation import interpolate
from .names import TAKEN, TYPES, find_type, identifier, torch_types
from .source import MAX_DEPTH, MAX_NODES, Node

SETTINGS = ("strict", "allow_imports", "allowed_import_prefixes", "allow_target")
SEQUENTIAL_KEYS = ("inputs", "layers", "outputs", "return")
GRAPH_KEYS = ("inputs", "modules", "nodes", "steps", "order", "outputs", "return")
CALL_KEYS = ("name", "call", "args", "kwargs", "out")
SPEC_KEYS = ("_type_", "_target_", "_args_", "_kwargs_", "_name_")
RETURNS = ("single", "tuple", "dict")
OPERATORS: dict[str, ast.operator] = {"add": ast.Add(), "mul": ast.Mult()}

Tree = TypeVar("Tree", bound=ast.expr | ast.keyword)
Entries = TypeVar("Entries", list[Node], dict[str, Node])
Reader = Callable[[Node, Node], ast.expr]  # of a value, in an expression that begins at the second node


@dataclass(frozen=True, slots=True, eq=False)
class Translated(Node):
    """An expression that was made from values of version 1; its `text` is how version 2 writes it."""

    tree: ast.expr = field(default_factory=lambda: ast.Constant(None))


def is_version_1(tree: Node) -> bool:
    version = _get(tree, "schema_version").value
    return version == 1 and not isinstance(version, bool)


def translate(tree: Node) -> Node:
    """The tree of a version-1 file, its `defaults` merged, as that of a version-2 file.

    What the model does not use is left out, and what the dialect does not know is not read, each with a warning.
    Raises ConfigError with everything that is wrong with the form of the file.
    """
    translation = Translation(resolve(tree))
    document = translation.document()
    if translation.problems:
        raise ConfigError(translation.problems)
    for warning in translation.warnings:
        assert warning.place is not None
        warnings.warn_explicit(str(warning), UserWarning, warning.place.file, warning.place.line)
    return document


def resolve(tree: Node) -> Node:
    """A version-1 file with its templates and its `${...}` filled in."""
    return interpolate(_with_templates(tree))


def resolve_config(source: str | Path | Mapping[str, Any]) -> Config:
    """A model file or document on top of its `defaults`; of version 1 also with its templates and `${...}` filled in.

    Raises ConfigError for anything that the files get wrong.
    """
    config = load_config(source, model=True)
    return replace(config, tree=resolve(config.tree)) if is_version_1(config.tree) else config


def register_from(module: ModuleType, class_name: str, place: Place) -> None:
    """Let an imported module register: by its function `register(registry)`, if it has one; and its class, if named."""
    function = getattr(module, "register", None)
    if inspect.isfunction(function) and len(inspect.signature(function).parameters) == 1:
        function(TYPES)
    if class_name:
        known = {
            name: kind for name, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, nn.Module)
        }
        if class_name not in known:
            message = f"'{module.__name__}' has no module class '{class_name}'."
            raise ConfigError(Problem(message, place, nearest(class_name, known)))
        TYPES.register_module(f"{module.__name__}.{class_name}", known[class_name])


def rename_weights(model: nn.Module, weights: dict[str, Any], prefix: str) -> None:
    """Give the weights of a version-1 model, which begin with `graph_modules.` behind `prefix`, their names in `model`.

    Those of modules that nothing used, and that are no part of `model`, go with a warning.
    """
    old = f"{prefix}graph_modules."
    unused = set()
    for key in [key for key in weights if key.startswith(old) and "graph_modules" not in model._modules]:
        name, tensor = key.removeprefix(old), weights.pop(key)
        if name.split(".")[0] in model._modules:
            weights[prefix + name] = tensor
        else:
            unused.add(name.split(".")[0])
    if unused:
        message = f"the checkpoint holds weights of modules that the model does not have: {', '.join(sorted(unused))}."
        warnings.warn(message, stacklevel=2)


def _with_templates(tree: Node) -> Node:
    """Lay each `{_template_: name, ...}` over the entry of that name in `templates`, which then goes."""
    assert isinstance(tree.value, dict)
    section = _get(tree, "templates")
    templates = {} if section.value is None else section.value
    if not isinstance(templates, dict):
        raise ConfigError(Problem("'templates' has to be a mapping of names.", section.place))
    problems: list[Problem] = []
    count = 0

    def filled(node: Node, inside: tuple[str, ...], depth: int) -> Node:
        nonlocal count
        count += 1
        if count > MAX_NODES:
            raise ConfigError(Problem(f"the templates expand to more than {MAX_NODES} values.", section.place))
        if depth > MAX_DEPTH:
            raise ConfigError(Problem(f"the templates are nested more than {MAX_DEPTH} deep.", node.place))
        if isinstance(node.value, list):
            return replace(node, value=[filled(entry, inside, depth + 1) for entry in node.value])
        if not isinstance(node.value, dict):
            return node
        own = {key: filled(entry, inside, depth + 1) for key, entry in node.value.items() if key != "_template_"}
        used = node.value.get("_template_")
        if used is None:
            return replace(node, value=own)
        if used.text in inside:
            chain = " -> ".join((*inside, used.text))
            problems.append(Problem(f"the template '{used.text}' contains itself: {chain}.", used.place))
        elif used.text not in templates:
            message = f"no template is called '{used.text}'."
            problems.append(Problem(message, used.place, nearest(used.text, templates)))
        else:
            below = filled(templates[used.text], (*inside, used.text), depth + 1)
            return merge(below, replace(node, value=own))
        return node

    rest = {key: entry for key, entry in tree.value.items() if key != "templates"}
    result = filled(replace(tree, value=rest), (), depth=0)
    if problems:
        raise ConfigError(problems)
    return result


@dataclass(slots=True, eq=False)
class _Step:
    """One call of the graph. `out` says what it binds: a name, a list to unpack, or a mapping of keys to names."""

    call: Node
    kind: str  # "module" or "op"
    callee: str
    args: list[Node]
    kwargs: Node
    out: Node
    tree: ast.expr
    reads: set[str]  # of the values

    def targets(self) -> list[Node]:
        """The names that it binds."""
        out = self.out.value
        return list(out.values()) if isinstance(out, dict) else out if isinstance(out, list) else [self.out]


class Translation:
    def __init__(self, tree: Node) -> None:
        self.tree = tree
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.names: dict[str, str] = {}  # of each value: its name in version 2
        self.taken: set[str] = set()  # names of version 2 that no value can have
        self.bound: set[str] = set()  # the values that can be read at this point
        self.read: set[str] = set()  # the values that are read
        self.imports: list[Node] = []

    def complain(self, message: str, place: Place, hint: str = "") -> None:
        self.problems.append(Problem(message, place, hint))

    def warn(self, message: str, place: Place) -> None:
        self.warnings.append(Problem(message, place))

    def document(self) -> Node:
        """The file in version 2; of no use if there are problems."""
        self._settings()
        graph = self._graph()
        if graph is None:
            return self.tree
        inputs = self._entries(graph, "inputs", [], needed=True)
        modules = self._entries(graph, "modules", {})
        specs = {name: _expression(self._spec(entry, entry), entry) for name, entry in modules.items()}
        steps = list(self._steps(graph))
        self._name_values(inputs, modules, steps)
        self.bound = {entry.text for entry in inputs}
        if isinstance(_get(graph, "nodes").value, dict) and _get(graph, "order").value is None:
            self.bound = set(self.names)  # they will be sorted
        for step in steps:
            step.tree = self._call(step, modules)
            step.reads, self.read = self.read, set()
            self.bound |= {target.text for target in step.targets()}
        outputs = self._outputs(graph)
        live = self._live(steps)
        called = {step.callee for step in live if step.kind == "module"}
        places = {name: _get(graph, "modules").key_place(name) for name in modules}
        for name in modules:
            if name not in called:
                self.warn(f"nothing uses the module '{name}': it is left out.", places[name])
        entries = {
            "schema_version": replace(_get(self.tree, "schema_version"), value=2, text="2"),
            "imports": _like(self.tree, self.imports),
            "inputs": _mapping(graph, ((entry.text, entry.place, _like(entry, "any")) for entry in inputs)),
            "modules": _mapping(graph, ((name, places[name], specs[name]) for name in modules if name in called)),
            "graph": _mapping(graph, (node for step in live for node in self._statements(step))),
            "outputs": outputs,
        }
        return replace(self.tree, value={key: entry for key, entry in entries.items() if entry.value not in ([], {})})

    # the parts of the file

    def _entries(self, node: Node, key: str, absent: Entries, needed: bool = False) -> Entries:
        """The list or mapping under a key; `absent` where there is none."""
        entry = _get(node, key)
        if isinstance(entry.value, type(absent)):
            return entry.value
        if entry.value is not None:
            kind = "list" if isinstance(absent, list) else "mapping"
            self.complain(f"'{key}' has to be a {kind}.", entry.place)
        elif needed:
            self.complain(f"the key '{key}' is missing.", node.place)
        return absent

    def _settings(self) -> None:
        """What the file allows. It can only say less than the caller does, who is asked when the file is built."""
        settings = self._entries(self.tree, "settings", {})
        self.warnings += check_keys(_like(_get(self.tree, "settings"), settings), SETTINGS, "'settings'")
        for name in ("strict", "allow_imports", "allow_target"):
            if name in settings and not isinstance(settings[name].value, bool):
                self.complain(f"'{name}' is true or false.", settings[name].place)
        imports = self._entries(self.tree, "imports", [])
        if imports and not self._allows("allow_imports", default=True):
            self.complain("the imports are switched off by 'allow_imports'.", _get(self.tree, "imports").place)
        self.imports = [entry for entry in imports if self._may_import(entry)]

    def _allows(self, setting: str, default: bool) -> bool:
        entry = _get(_get(self.tree, "settings"), setting)
        return default if entry.value is None else entry.value is True

    def _may_import(self, entry: Node) -> bool:
        settings = _get(self.tree, "settings")
        prefixes = [prefix.text for prefix in self._entries(settings, "allowed_import_prefixes", [])]
        if _get(settings, "allowed_import_prefixes").value is None or entry.text.startswith(tuple(prefixes)):
            return True
        hint = f"they are {', '.join(prefixes) or 'none'}"
        self.complain(f"'{entry.text}' begins with none of 'allowed_import_prefixes'.", entry.place, hint)
        return False

    def _graph(self) -> Node | None:
        """The mapping under `model.graph`; a `model.sequential` written as one."""
        model = _get(self.tree, "model")
        forms = [key for key in ("graph", "sequential") if _get(model, key).value is not None]
        if len(forms) != 1:
            self.complain("a version-1 file has the key 'model', and in it 'graph' or 'sequential'.", model.place)
            return None
        self.warnings += check_keys(model, ("graph", "sequential"), "'model'")
        form = _get(model, forms[0])
        if not isinstance(form.value, dict):
            self.complain(f"'{forms[0]}' has to be a mapping.", form.place)
            return None
        self.warnings += check_keys(form, GRAPH_KEYS if forms == ["graph"] else SEQUENTIAL_KEYS, f"'{forms[0]}'")
        return form if forms == ["graph"] else self._unrolled(form)

    def _unrolled(self, node: Node) -> Node:
        """A sequence as a graph: layer i is the module `layer{i}`, and what it gives is `h{i}`."""
        inputs = self._entries(node, "inputs", [_like(node, "x")])
        if len(inputs) != 1:
            self.complain("'sequential' has exactly one input.", _get(node, "inputs").place)
        modules, nodes, value = [], [], inputs[0].text if inputs else ""
        for i, layer in enumerate(self._entries(node, "layers", [], needed=True)):
            modules.append((f"layer{i}", layer.place, layer))
            args = _like(layer, [_like(layer, f"${value}")])
            call = {"name": _like(layer, f"h{i}"), "call": _like(layer, f"module:layer{i}"), "args": args}
            nodes.append(_like(layer, call))
            value = f"h{i}"
        outputs = _get(node, "outputs")
        if outputs.value is None:
            outputs = _like(node, [_like(node, value)])
        parts = {"inputs": _like(node, inputs), "modules": _mapping(node, modules), "nodes": _like(node, nodes)}
        return _like(node, {**parts, "outputs": outputs, "return": _get(node, "return")})

    def _steps(self, graph: Node) -> Iterator[_Step]:
        """The calls in the order in which they stand."""
        forms = [key for key in ("nodes", "steps") if _get(graph, key).value is not None]
        if len(forms) != 1:
            self.complain("the graph needs 'nodes' or 'steps', one of them.", graph.place)
        elif isinstance(_get(graph, "nodes").value, dict):
            nodes = self._entries(graph, "nodes", {})
            place = _get(graph, "nodes").key_place
            ordered = self._entries(graph, "order", [_like(graph, name) for name in nodes])
            for name in ordered:
                if name.text not in nodes:
                    self.complain(f"no node is called '{name.text}'.", name.place, nearest(name.text, nodes))
                else:
                    yield from self._step(nodes[name.text], replace(_like(name, name.text), place=place(name.text)))
            for name in nodes:
                if name not in [entry.text for entry in ordered]:
                    self.warn(f"'order' does not hold the node '{name}': it is left out.", place(name))
        else:
            if _get(graph, "order").value is not None:
                self.warn("'order' is not read: it is of nodes in a mapping.", _get(graph, "order").place)
            for entry in self._entries(graph, forms[0], []):
                yield from self._step(entry, _get(entry, "name") if forms == ["nodes"] else None)

    def _step(self, node: Node, name: Node | None) -> Iterator[_Step]:
        """One call. A node binds its name unless it has an `out`; a step needs one."""
        if not isinstance(node.value, dict):
            self.complain("a node is a mapping such as {name: h, call: module:stem, args: [$x]}.", node.place)
            return
        self.warnings += check_keys(node, CALL_KEYS, "a node")
        call, out = _get(node, "call"), _get(node, "out")
        kind, _, callee = call.text.partition(":")
        if kind not in ("module", "op") or not callee:
            self.complain("'call' is module:NAME or op:NAME.", call.place)
        out = name if name is not None and out.value is None else out
        args, kwargs = self._entries(node, "args", []), _like(_get(node, "kwargs"), self._entries(node, "kwargs", {}))
        step = _Step(call, kind, callee, args, kwargs, out, ast.Constant(None), set())
        if out.value and all(isinstance(target.value, str) for target in step.targets()):
            yield step
        else:
            hint = "out: h, out: [a, b], out: {key: a}, or for a node a name"
            self.complain("the call binds nothing.", out.place, hint)

    # values

    def _name_values(self, inputs: list[Node], modules: dict[str, Node], steps: list[_Step]) -> None:
        """Give each value its name in version 2, where values, modules and ops share one scope: a node gives way."""
        places: dict[str, Place] = {}
        for entry in (*inputs, *(target for step in steps for target in step.targets())):
            if entry.text in places:
                self.complain(f"the value '{entry.text}' is made twice.", entry.place, f"first at {places[entry.text]}")
            places.setdefault(entry.text, entry.place)
        self.taken = {*modules, *(identifier(step.callee) for step in steps if step.kind == "op")}
        self.names = {name: name for name in places}
        for name in [*places][len(inputs) :]:
            if name != "_" and (name in self.taken or is_reserved(name)):
                self.names[name] = self._free_name(name)

    def _free_name(self, name: str) -> str:
        bare = name.strip("_")
        name = bare if bare.isidentifier() else f"value{bare}"
        while name in self.taken or name in self.names or is_reserved(name):
            name += "_"
        self.taken.add(name)
        return name

    def _reference(self, name: str, node: Node, anchor: Node) -> ast.expr:
        if name in self.names and name not in self.bound:
            hint = "the calls of a list, or of 'order', run as they stand"
            self.complain(f"'{name}' is read before the call that makes it.", node.place, hint)
        elif name not in self.names:
            self.complain(f"no value is called '{name}'.", node.place, nearest(name, self.names))
        self.read.add(name)
        return located(ast.Name(self.names.get(name, name), ast.Load()), node.place, anchor)

    def _outputs(self, graph: Node) -> Node:
        """The outputs in the form that `return` asks for."""
        outputs, returns = _get(graph, "outputs"), _get(graph, "return")
        entries = outputs.value
        if not isinstance(entries, list | dict) or not entries:
            self.complain("'outputs' has to be a list or mapping of values.", outputs.place, "outputs: [$h]")
            return outputs
        fitting = ("dict",) if isinstance(entries, dict) else ("single", "tuple") if len(entries) == 1 else ("tuple",)
        form = fitting[0] if returns.value is None else returns.text
        if form not in fitting:
            hint = nearest(form, RETURNS) if form not in RETURNS else f"it can be {' or '.join(fitting)} here"
            self.complain(f"'return' cannot be '{form}'.", returns.place, hint)
        if isinstance(entries, dict):
            return replace(outputs, value={key: self._output(entry) for key, entry in entries.items()})
        values = [self._output(entry) for entry in entries]
        return values[0] if form == "single" else replace(outputs, value=values)

    def _output(self, entry: Node) -> Node:
        return _expression(self._reference(entry.text.removeprefix("$"), entry, entry), entry)

    def _live(self, steps: list[_Step]) -> list[_Step]:
        """The calls that the outputs need, in their order; afterwards `read` holds all that these read."""
        makers = {target.text: step for step in steps for target in step.targets()}
        waiting, live = list(self.read), set()
        while waiting:
            step = makers.get(waiting.pop())
            if step is not None and step not in live:
                live.add(step)
                self.read |= step.reads
                waiting += step.reads
        for step in steps:
            if step not in live:
                names = ", ".join(target.text for target in step.targets())
                self.warn(f"nothing uses the node '{names}': it is left out.", step.out.place)
        return [step for step in steps if step in live]

    def _statements(self, step: _Step) -> Iterator[tuple[str, Place, Node]]:
        """The entries of `graph` for one call: what they bind, where that stands, and the expression."""
        out, place, tree = step.out.value, step.out.place, step.tree
        if not isinstance(out, list | dict):
            yield self.names[step.out.text], place, _expression(tree, step.call)
        elif isinstance(out, list) and len(out) > 1:
            names = (self.names[target.text] if target.text in self.read else "_" for target in out)
            yield ", ".join(names), place, _expression(tree, step.call)
        else:  # entries of a mapping, or the one of a sequence
            if len(out) > 1:
                name = self._free_name(f"{identifier(step.callee)}_result")
                yield name, place, _expression(tree, step.call)
                tree = located(ast.Name(name, ast.Load()), step.call.place, step.call)
            for key, target in out.items() if isinstance(out, dict) else enumerate(out):
                if target.text in self.read:
                    index = located(ast.Constant(key), target.place, step.call)
                    entry = located(ast.Subscript(tree, index, ast.Load()), target.place, step.call)
                    yield self.names[target.text], target.place, _expression(entry, step.call)

    # calls

    def _call(self, step: _Step, modules: dict[str, Node]) -> ast.expr:
        anchor = step.call
        args: list[ast.expr] = [self._argument(entry, anchor) for entry in step.args]
        keywords = self._keywords(step.kwargs, anchor, self._argument)
        if step.kind == "module" and step.callee not in modules:
            self.complain(f"no module is called '{step.callee}'.", anchor.place, nearest(step.callee, modules))
        if step.kind == "op" and identifier(step.callee) in modules:
            hint = "it would be called in place of the op: rename the module"
            self.complain(f"'{step.callee}' is also a module here.", anchor.place, hint)
        tree: ast.expr
        match (step.kind, step.callee, args, keywords):
            case ("op", "identity", [same], []):
                return same
            case ("op", "add" | "mul" as name, [left, right], []):
                tree = ast.BinOp(left, OPERATORS[name], right)
            case ("op", "getitem", [owner, key], []):
                tree = ast.Subscript(owner, key, ast.Load())
            case _:
                name = located(ast.Name(identifier(step.callee), ast.Load()), anchor.place, anchor)
                tree = ast.Call(name, args, keywords)
        return located(tree, anchor.place, anchor)

    def _argument(self, node: Node, anchor: Node) -> ast.expr:
        """An argument of a call: `$x` is the value x, `$$x` the text "$x"."""
        text = node.value if isinstance(node.value, str) else ""
        if text.startswith("$$"):
            return located(ast.Constant(text[1:]), node.place, anchor)
        if text.startswith("$"):
            return self._reference(text[1:], node, anchor)
        return self._literal(node, anchor, self._argument)

    def _literal(self, node: Node, anchor: Node, read: Reader) -> ast.expr:
        if isinstance(node.value, list):
            tree: ast.expr = ast.List([read(entry, anchor) for entry in node.value], ast.Load())
        elif isinstance(node.value, dict):
            keys = [located(ast.Constant(key), node.key_place(key), anchor) for key in node.value]
            tree = ast.Dict([*keys], [read(entry, anchor) for entry in node.value.values()])
        else:
            tree = ast.Constant(node.value)
        return located(tree, node.place, anchor)

    def _keywords(self, node: Node, anchor: Node, read: Reader) -> list[ast.keyword]:
        assert isinstance(node.value, dict)
        for key in node.value:
            if not key.isidentifier() or keyword.iskeyword(key):
                self.complain(f"'{key}' is not the name of an argument.", node.key_place(key))
        keywords = [(key, ast.keyword(key, read(entry, anchor))) for key, entry in node.value.items()]
        return [located(tree, node.key_place(key), anchor) for key, tree in keywords]

    # modules

    def _spec(self, node: Node, anchor: Node) -> ast.expr:
        """A constructor. The keys of its spec that do not begin with an underscore are arguments."""
        if not _is_spec(node):
            self.complain("a module is a mapping such as {_type_: nn.Linear, ...}.", node.place)
            return ast.Constant(None)
        assert isinstance(node.value, dict)
        strict = self._allows("strict", default=True)
        known = [*SPEC_KEYS, *(key for key in node.value if not (strict and key.startswith("_")))]
        self.problems += check_keys(node, known, "a spec")
        args, extra = self._entries(node, "_args_", []), self._entries(node, "_kwargs_", {})
        own = {key: entry for key, entry in node.value.items() if key not in SPEC_KEYS}
        for key in own.keys() & extra.keys():
            self.complain(f"the argument '{key}' is given twice.", node.key_place(key), "beside '_kwargs_', and in it")
        kwargs = {**extra, **own}
        if "_target_" not in node.value:
            written = node.value["_type_"]
            name = self._type(written)
            size = _inferred_size(name) if written.text.startswith("nn.") else ""
            if size and args and args[0].value is None:
                name, args = f"Lazy{name}", args[1:]
            elif size in kwargs and kwargs[size].value is None:
                name, kwargs = f"Lazy{name}", {key: entry for key, entry in kwargs.items() if key != size}
        else:
            written = node.value["_target_"]
            name = self._target(written)
            if "_type_" in node.value:
                self.complain("a spec has '_type_' or '_target_', not both.", node.key_place("_target_"))
        places = {**_get(node, "_kwargs_").key_places, **node.key_places}
        keywords = self._keywords(replace(node, value=kwargs, key_places=places), anchor, self._constructed)
        callee = located(ast.Name(name, ast.Load()), written.place, anchor)
        tree = ast.Call(callee, [self._constructed(entry, anchor) for entry in args], keywords)
        return located(tree, node.place, anchor)

    def _constructed(self, node: Node, anchor: Node) -> ast.expr:
        """An argument of a constructor: a value, or a module."""
        if _is_spec(node):
            return self._spec(node, anchor)
        if isinstance(node.value, dict) and any(map(_is_spec, node.value.values())):
            self.complain("modules cannot be given in a mapping.", node.place, "give them in a list")
        return self._literal(node, anchor, self._constructed)

    def _type(self, written: Node) -> str:
        """The name of a type in version 2. What is registered is known only after the imports, so it is not sought."""
        name = written.text.removeprefix("nn.")
        if name == written.text:
            return identifier(name)
        if name not in torch_types():
            hint = nearest(written.text, [f"nn.{known}" for known in torch_types()])
            self.complain(f"torch has no module type '{written.text}'.", written.place, hint)
        elif find_type(name) is not torch_types()[name]:
            self.complain(f"'{name}' is registered, which hides torch's.", written.place, "register it by another name")
        return name

    def _target(self, written: Node) -> str:
        """A class by its import path: an entry of `imports`, so that the caller has to allow it."""
        module, _, name = written.text.rpartition(".")
        if not self._allows("allow_target", default=False):
            hint = "the file has to say 'settings: {allow_target: true}', and the caller to allow the import"
            self.complain("'_target_' is switched off by 'allow_target'.", written.place, hint)
        elif not module:
            self.complain("'_target_' is the import path of a class.", written.place, "such as my_package.blocks.Mixer")
        elif self._may_import(written):
            entry = replace(written, value=f"{module}:{name}", text=f"{module}:{name}")
            if entry.text not in [known.text for known in self.imports]:
                self.imports.append(entry)
        return identifier(written.text)


def _get(node: Node, key: str) -> Node:
    """The value under a key; a null where there is none."""
    entry = node.value.get(key) if isinstance(node.value, dict) else None
    return Node(None, node.place, node.source) if entry is None else entry


def _like(node: Node, value: Any) -> Node:
    """A value that is not written in the file, and stands where `node` does."""
    return Node(value, node.place, node.source, value if isinstance(value, str) else "", node.key_places)


def _mapping(node: Node, entries: Iterable[tuple[str, Place, Node]]) -> Node:
    """A mapping that is not written in the file: keys, their places, and values."""
    entries = list(entries)
    places = {key: place for key, place, _ in entries}
    return Node({key: entry for key, _, entry in entries}, node.place, node.source, key_places=places)


def _is_spec(node: Node) -> bool:
    return isinstance(node.value, dict) and ("_type_" in node.value or "_target_" in node.value)


def _inferred_size(name: str) -> str:
    """The argument of a type of torch.nn that its lazy form finds at the first call; "" if it has no such form."""
    types = torch_types()
    return next(iter(inspect.signature(types[name]).parameters)) if name in types and f"Lazy{name}" in types else ""


def is_reserved(name: str) -> bool:
    """Whether version 2 has no value of this name."""
    return name in TAKEN or keyword.iskeyword(name) or hasattr(nn.Module, name) or name.startswith("_")


def _expression(tree: ast.expr, node: Node) -> Translated:
    text = ast.unparse(tree)
    return Translated(text, node.place, node.source, text, tree=tree)


def located(tree: Tree, place: Place, anchor: Node) -> Tree:
    """`tree` at a place; what comes from another file than its expression stands where that begins."""
    if place.file != anchor.place.file:
        place = anchor.place
    start = place.column - 1
    tree.lineno = tree.end_lineno = place.line
    tree.col_offset = len(place.text[:start].encode())
    tree.end_col_offset = len(place.text[: start + place.length].encode())
    return tree
