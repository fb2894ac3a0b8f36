"""Calls: what one call of a module did, brought into the form that a block has, and taken apart into its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .steps import Computed, Node, Recorded, Ref, Sized, SizeOf

Key = tuple[Any, ...]  # where a number stands in a block


@dataclass(frozen=True, slots=True)
class ByMode:
    """A number that is another one in training."""

    otherwise: Any
    training: Any


def pruned(call: Recorded) -> Recorded:
    """A call without the steps that its outputs do not need."""
    needed: set[int] = set()
    waiting = [ref.node for ref in refs_of(call.outputs)]
    while waiting:
        number = waiting.pop()
        if number not in needed:
            needed.add(number)
            waiting += [ref.node for ref in refs_of([call.nodes[number].args, call.nodes[number].kwargs])]
    keep = [i for i, node in enumerate(call.nodes) if i in needed or node.kind == "input"]
    return _renumbered(call, {old: Ref(new) for new, old in enumerate(keep)}, [call.nodes[i] for i in keep])


def _renumbered(call: Recorded, new: Mapping[int, Ref], nodes: list[Node]) -> Recorded:
    def moved(value: Any) -> Any:
        return mapped(value, lambda ref: Ref(new[ref.node].node, (*new[ref.node].path, *ref.path)))

    result = Recorded(call.path, call.module, inputs=call.inputs)
    result.nodes = [Node(n.kind, n.target, moved(n.args), moved(n.kwargs), n.name, n.optional, n.arity) for n in nodes]
    result.outputs = moved(call.outputs)
    result.variables = {name: moved(ref) for name, ref in call.variables.items() if ref.node in new}
    return result


def threaded(call: Recorded) -> Recorded:
    """Calls of all members of a list, each with the result of the one before it, as one call of the list."""
    by_list: dict[str, list[int]] = {}
    for i, node in enumerate(call.nodes):
        owner, _, member = node.target.rpartition(".")
        if node.kind == "call" and member.isdecimal() and owner:
            by_list.setdefault(owner, []).append(i)
    for owner, calls in by_list.items():
        merged = _thread(call, owner, calls)
        if merged is not None:
            return threaded(merged)
    return call


def _thread(call: Recorded, owner: str, calls: list[int]) -> Recorded | None:
    nodes = [call.nodes[i] for i in calls]
    held = list(call.module.get_submodule(owner).children())
    members = len(held)
    if any(isinstance(one, nn.Sequential) and len({type(link) for link in one}) == 1 for one in held):
        return None  # such a member is a list itself
    if [node.target for node in nodes] != [f"{owner}.{i}" for i in range(members)] or members < 2:
        return None
    given = [arguments(node) for node in nodes]
    if any(not one or list(one) != list(given[0]) for one in given):
        return None
    first, *others = given[0]
    if any(one[first] != Ref(before) for one, before in zip(given[1:], calls, strict=False)):
        return None
    if any(one[name] != given[0][name] for one in given for name in others):
        return None
    outside = [node for i, node in enumerate(call.nodes) if i not in calls[1:]]
    inner_read = {ref.node for node in outside for ref in refs_of([node.args, node.kwargs])}
    inner_read |= {ref.node for ref in refs_of(call.outputs)}
    scans = bool(inner_read & set(calls[:-1]))
    begin, last = calls[0], calls[-1]
    keep = [i for i in range(len(call.nodes)) if i not in calls[1:]]  # where it begins: what follows may read it
    renumber = {old: Ref(new) for new, old in enumerate(keep)}
    whole = Node("call", f"{owner}.scan" if scans else owner, nodes[0].args, nodes[0].kwargs, nodes[-1].name)
    if scans:
        renumber |= {old: Ref(renumber[begin].node, (position,)) for position, old in enumerate(calls)}
        whole.name = ""
    else:
        renumber[last] = renumber.pop(begin)
    merged = [whole if i == begin else call.nodes[i] for i in keep]
    return _renumbered(call, renumber, merged)


def arguments(node: Node) -> dict[Any, Any]:
    return {**dict(enumerate(node.args)), **node.kwargs}


def form_of(call: Recorded) -> str:
    """All of a call but its numbers."""
    blank = mapped([[n.kind, n.target, n.args, n.kwargs] for n in call.nodes], lambda ref: ref, blank=True)
    return repr((blank, mapped(call.outputs, lambda ref: ref, blank=True), list(call.inputs)))


def numbers_of_nodes(call: Recorded) -> Iterator[tuple[Key, Any]]:
    for i, node in enumerate(call.nodes):
        for k, value in enumerate(_leaves([node.args, node.kwargs])):
            yield ("node", i, k), value
    for k, value in enumerate(_leaves(call.outputs)):
        yield ("outputs", 0, k), value


def _leaves(value: Any) -> Iterator[Any]:
    """The numbers in the arguments of a step, in order."""
    if isinstance(value, Sized) or (isinstance(value, bool | int | float) and not isinstance(value, Ref)):
        yield value
    elif isinstance(value, Ref | str) or value is None:
        return
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _leaves(entry)
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _leaves(entry)
    elif isinstance(value, slice):
        yield from _leaves([value.start, value.stop, value.step])


def mapped(value: Any, change: Callable[[Ref], Any], blank: bool = False) -> Any:
    """A value with other Refs; `blank`: and with nothing but the type of each number."""
    if isinstance(value, Ref):
        return change(value)
    if isinstance(value, Sized):
        origin = _mapped_origin(value.origin, change)
        return "#size" if blank else Sized(value.number, origin)
    if isinstance(value, bool | int | float):
        return f"#{type(value).__name__}" if blank else value
    if isinstance(value, list | tuple):
        entries = [mapped(entry, change, blank) for entry in value]
        return entries if isinstance(value, list) else tuple(entries)
    if isinstance(value, dict):
        return {name: mapped(entry, change, blank) for name, entry in value.items()}
    if isinstance(value, slice):
        parts = [mapped(part, change, blank) for part in (value.start, value.stop, value.step)]
        return ("slice", *parts) if blank else slice(*parts)
    return value


def _mapped_origin(origin: Any, change: Callable[[Ref], Any]) -> Any:
    if isinstance(origin, SizeOf):
        return SizeOf(change(origin.value), origin.dim)
    if isinstance(origin, Computed):
        return Computed(origin.op, _mapped_origin(origin.left, change), _mapped_origin(origin.right, change))
    return origin


def refs_of(value: Any) -> list[Ref]:
    found: list[Ref] = []

    def note(ref: Ref) -> Ref:
        found.append(ref)
        return ref

    mapped(value, note)
    return found
