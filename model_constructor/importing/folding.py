"""Folding: what each module of a network did -> the blocks of a model file, each distinct one once.

Modules of one class that do the same with other numbers are one block; one that does without a module that the others
have is the same block, too.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..errors import ConfigError, Problem
from .calls import ByMode, Key, arguments, form_of, mapped, numbers_of_nodes, pruned, threaded
from .constructors import buffer_call, constructor_call, param_call
from .entries import Entry, as_list, blank, defaults_of, entry_numbers, named_calls
from .forms import MISSING, BlockForm, Instance
from .params import find_params
from .recording import CONTAINERS, has_tensors, is_chain
from .steps import Recorded, Ref, Sized


def fold(root: nn.Module, runs: list[list[Recorded]], training: list[Recorded]) -> tuple[list[BlockForm], list[str]]:
    """The blocks of a network, each after those that it uses; the last is the network itself. Raises ConfigError.

    Also the names of the classes that take other steps in training than in eval mode.
    runs: what `record` gave in eval mode, for inputs of different sizes. training: what it gave in training mode.
    """
    folder = _Folder(root, runs, training)
    return folder.blocks(), sorted(folder.differing)


class _Folder:
    def __init__(self, root: nn.Module, runs: list[list[Recorded]], training: list[Recorded]) -> None:
        self.root = root
        self.calls: dict[str, list[Recorded]] = {}
        for run in runs:
            for call in run:
                self.calls.setdefault(call.path, []).append(threaded(pruned(call)))
        self.training = {call.path: threaded(pruned(call)) for call in training}
        self.differing: set[str] = set()
        self.problems: list[Problem] = []
        self.uses: dict[str, ast.Call] = {}  # path -> the constructor of the block that it is
        self.names: set[str] = set()

    def blocks(self) -> list[BlockForm]:
        forms: list[BlockForm] = []
        self._refuse_ties()
        for paths in self._levels():
            instances = [self._instance(path) for path in paths]
            if self.problems:
                raise ConfigError(self.problems)
            for group in _merged(_alike(instances)):
                form = BlockForm(self._name(group[0]), group)
                find_params(form)
                for i, instance in enumerate(group):
                    given = [ast.keyword(name, ast.Constant(values[i])) for name, values in form.params.items()]
                    self.uses[instance.path] = ast.Call(ast.Name(form.name, ast.Load()), [], given)
                forms.append(form)
        return forms

    def _refuse_ties(self) -> None:
        """A tensor with two names in the state dict would be two."""
        first: dict[int, str] = {}
        state = self.root.state_dict(keep_vars=True)
        for name, tensor in state.items():
            known = first.setdefault(id(tensor), name)
            if known != name:
                hint = f"keep one of them, and read it by its path where the other was: linear(h, {known})"
                self.problems.append(Problem(f"'{known}' and '{name}' are one tensor.", hint=hint))
        if self.problems:
            raise ConfigError(self.problems)

    def _levels(self) -> Iterator[list[str]]:
        """The paths of modules that are blocks, those that hold none first."""
        height: dict[str, int] = {}
        for path in sorted(self.calls, key=lambda path: -path.count(".") - bool(path)):
            below = [h for other, h in height.items() if other.startswith(f"{path}." if path else "") and other != path]
            height[path] = 1 + max(below, default=0)
        order = {path: i for i, (path, _) in enumerate(self.root.named_modules())}
        for level in sorted(set(height.values())):
            yield sorted((path for path, h in height.items() if h == level), key=order.__getitem__)

    def _name(self, instance: Instance) -> str:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(instance.module).__name__).lower()
        unique = next(one for one in (name, *(f"{name}_{i}" for i in range(2, 1000))) if one not in self.names)
        self.names.add(unique)
        return unique

    # what a module holds

    def _instance(self, path: str) -> Instance:
        calls, module = self.calls[path], self.root.get_submodule(path)
        for call in calls[1:]:
            if form_of(call) != form_of(calls[0]):
                message = f"{path or 'the module'} does different things in different calls."
                hint = "a block is one graph for all sizes of its inputs: give those that it depends on as numbers"
                self.problems.append(Problem(message, hint=hint))
        used = {node.target.removesuffix(".scan") for node in calls[0].nodes if node.kind in ("call", "tensor")}
        entries = self._entries(module, path, "", used)
        instance = Instance(path, module, calls, entries)
        instance.numbers = {**entry_numbers(entries), **self._call_numbers(instance)}
        return instance

    def _entries(self, module: nn.Module, path: str, below: str, used: set[str]) -> dict[str, Entry]:
        """The parameters, buffers and modules in a module; `below` is its path inside of the block."""
        entries: dict[str, Entry] = {}
        prefix = f"{below}." if below else ""
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            persistent = name not in module._non_persistent_buffers_set
            if f"{prefix}{name}" not in used:
                if isinstance(tensor, nn.Parameter) or persistent:
                    self._unused(_joined(path, name), tensor.numel())
                continue
            call = param_call(tensor) if isinstance(tensor, nn.Parameter) else buffer_call(tensor, persistent)
            if call is None:
                message = f"the values of the buffer '{_joined(path, name)}', which is in no state dict, are too many."
                hint = "register it as persistent, or compute it in the forward"
                self.problems.append(Problem(message, hint=hint))
            else:
                entries[name] = call
        for name, child in module._modules.items():
            if child is not None and has_tensors(child):
                entry = self._entry(child, _joined(path, name), f"{prefix}{name}", used)
                if entry is not None:
                    entries[name] = entry
        return entries

    def _entry(self, module: nn.Module, path: str, below: str, used: set[str]) -> Entry | None:
        """The constructor of a module, or the list or namespace that holds its entries; None if nothing is used."""
        if path in self.uses:
            return copy.deepcopy(self.uses[path])
        reads = {one for one in used if one == below or one.startswith(f"{below}.")}
        if not isinstance(module, CONTAINERS):
            call = constructor_call(module)
            if call is not None:
                if not reads:
                    self._unused(path, sum(p.numel() for p in module.parameters()))
                return call
        numbered = list(module._modules) == [str(i) for i in range(len(module._modules))] and not (
            any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
        )
        if isinstance(module, nn.Sequential) and below in used and is_chain(module):
            links = [self._link(link, f"{path}.{i}") for i, link in enumerate(module)]
            return as_list(links, in_chain=True)
        if numbered and isinstance(module, CONTAINERS):
            members = [
                self._entry(m, f"{path}.{i}", f"{below}.{i}", used | ({f"{below}.{i}"} if below in used else set()))
                if has_tensors(m) else constructor_call(m) or ast.parse("Identity()", mode="eval").body
                for i, m in enumerate(module._modules.values())
            ]  # fmt: skip
            return as_list([one for one in members if one is not None], in_chain=False)
        return self._entries(module, path, below, used) or None

    def _link(self, module: nn.Module, path: str) -> ast.expr:
        if path in self.uses:
            return copy.deepcopy(self.uses[path])
        call = constructor_call(module)
        assert call is not None, "is_chain lets no other module through"
        return call

    def _unused(self, path: str, count: int) -> None:
        message = f"nothing in the forward uses '{path}' ({count:,} numbers)."
        self.problems.append(Problem(message, hint="a model file holds what it uses: remove it from the module first"))

    # what it does

    def _call_numbers(self, instance: Instance) -> dict[Key, Any]:
        """The constants of the calls, by their place; of sizes, those of each call."""
        numbers: dict[Key, Any] = {}
        rows = [list(numbers_of_nodes(call)) for call in instance.calls]
        in_training = self._in_training(instance)
        for column in zip(*rows, strict=True) if len({len(row) for row in rows}) == 1 else ():
            key, first = column[0]
            values = [value for _, value in column]
            if isinstance(first, Sized):
                numbers[key] = tuple(value.number for value in values)
                continue
            if any(value != first for value in values):
                node = instance.calls[0].nodes[key[1]]
                role = f"{node.target}(...) is given" if key[0] == "node" else "is returned"
                message = (
                    f"{instance.path or 'the module'}: a number that {role} was "
                    f"{' and '.join(dict.fromkeys(map(str, values)))} for inputs of different sizes."
                )
                hint = "give the size that it depends on as a number, or compute it from x.shape with + - * // alone"
                self.problems.append(Problem(message, hint=hint))
            numbers[key] = first
            if in_training.get(key, first) != first:
                numbers[key] = ByMode(first, in_training[key])
        return numbers

    def _in_training(self, instance: Instance) -> dict[Key, Any]:
        """The numbers of a call in training mode, if it takes the same steps there."""
        call = self.training.get(instance.path)
        if call is None:
            return {}
        if form_of(call) != form_of(instance.calls[0]):
            self.differing.add(type(instance.module).__name__)
            return {}
        return {key: value for key, value in numbers_of_nodes(call) if not isinstance(value, Sized)}


def _alike(instances: list[Instance]) -> list[list[Instance]]:
    groups: dict[Any, list[Instance]] = {}
    _write_out(instances)
    for instance in instances:
        entries = {name: blank(entry) for name, entry in instance.entries.items()}
        key = (type(instance.module), form_of(instance.calls[0]), repr(entries))
        groups.setdefault(key, []).append(instance)
    return list(groups.values())


def _write_out(instances: list[Instance]) -> None:
    """Give each constructor the arguments that the same one has in another module of the class, as by default."""
    same: dict[Any, list[ast.Call]] = {}
    for instance in instances:
        for name, entry in instance.entries.items():
            for i, (kind, call) in enumerate(named_calls(entry)):
                same.setdefault((type(instance.module), name, i, len(call.args), kind), []).append(call)
    for (*_, kind), calls in same.items():
        defaults = defaults_of(kind)
        given = dict.fromkeys(str(one.arg) for call in calls for one in call.keywords)
        keywords = [*(name for name in defaults if name in given), *(name for name in given if name not in defaults)]
        for call in calls:
            known = {str(one.arg): one for one in call.keywords}
            if all(name in known or isinstance(defaults.get(name), bool | int | float) for name in keywords):
                call.keywords = [known.get(n) or ast.keyword(n, ast.Constant(defaults[n])) for n in keywords]
    for instance in instances:
        instance.numbers = {
            **entry_numbers(instance.entries),
            **{k: v for k, v in instance.numbers.items() if k[0] != "entry"},
        }


def _merged(groups: list[list[Instance]]) -> list[list[Instance]]:
    """Groups of which one does as the other does without some of its modules become one."""
    merged: list[list[Instance]] = []
    for group in sorted(groups, key=lambda group: -len(group[0].entries)):  # the one with all modules first
        for larger in merged:
            if type(larger[0].module) is type(group[0].module) and _absorb(larger, group):
                break
        else:
            merged.append(group)
    return merged


def _absorb(larger: list[Instance], smaller: list[Instance]) -> bool:
    """Make the instances of `smaller` ones of `larger`; False if they are not, but for modules that they lack."""
    full, part = larger[0], smaller[0]
    missing = full.entries.keys() - part.entries.keys()
    same = all(name in full.entries and blank(full.entries[name]) == blank(e) for name, e in part.entries.items())
    if not missing or not same:
        return False
    counterpart: dict[int, Ref] = {}
    of_node: dict[int, int] = {}
    position = 0
    nodes, others = full.calls[0].nodes, part.calls[0].nodes
    for i, node in enumerate(nodes):
        if node.target.partition(".")[0] in missing:
            given = list(arguments(node).values())
            if node.kind != "call" or len(given) != 1 or not isinstance(given[0], Ref):
                return False
            counterpart[i] = counterpart[given[0].node]
            continue
        if position == len(others):
            return False
        other = others[position]
        mine = mapped([node.kind, node.target, node.args, node.kwargs], lambda ref: _followed(counterpart, ref), True)
        theirs = mapped([other.kind, other.target, other.args, other.kwargs], lambda ref: ref, True)
        if mine != theirs:
            return False
        counterpart[i], of_node[i] = Ref(position), position
        position += 1
    outputs = mapped(full.calls[0].outputs, lambda ref: _followed(counterpart, ref), True)
    if position != len(others) or outputs != mapped(part.calls[0].outputs, lambda ref: ref, True):
        return False
    for node in nodes:
        node.optional = node.optional or node.target.partition(".")[0] in missing
    for instance in larger:
        for name in missing:
            instance.optional.setdefault(name, True)
    for instance in smaller:
        numbers: dict[Key, Any] = {}
        for key in full.numbers:
            kind, where, k = key
            if kind == "node":
                numbers[key] = instance.numbers[kind, of_node[where], k] if where in of_node else MISSING
            else:
                numbers[key] = instance.numbers.get(key, MISSING)
        instance.numbers = numbers
        instance.optional = {name: name not in missing for name in full.optional}
        larger.append(instance)
    return True


def _followed(counterpart: Mapping[int, Ref], ref: Ref) -> Ref:
    return Ref(counterpart[ref.node].node, ref.path)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
