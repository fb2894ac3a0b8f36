"""Layout: syntax trees -> lines of YAML."""

from __future__ import annotations

import ast
import re

from ..source import dump
from .entries import Entry

LONGEST = 110  # characters of a line


def path_tree(dotted: str) -> ast.expr:
    first, *rest = dotted.split(".")
    tree: ast.expr = ast.Name(first, ast.Load())
    for step in rest:
        tree = (
            ast.Subscript(tree, ast.Constant(int(step)), ast.Load())
            if step.isdecimal()
            else ast.Attribute(tree, step, ast.Load())
        )
    return tree


def text_of(tree: ast.AST) -> str:
    text = ast.unparse(ast.fix_missing_locations(tree))
    return re.sub(r"(?<=\de)([+-]?)0*(?=\d)", lambda found: found[1].removeprefix("+"), text)


def _scalar(text: str) -> str:
    """A text as a value of YAML, in quotes if it needs them."""
    return dump(text, flow=True).removesuffix("\n").removesuffix("\n...").strip()


def value_lines(indent: str, name: str, tree: ast.expr) -> list[str]:
    return [f"{indent}{name}: {_scalar(text_of(tree))}"]


def entry_lines(name: str, entry: Entry, indent: str) -> list[str]:
    head = f"{indent}{name}:"
    if isinstance(entry, list):
        return [head, *(line for one in entry for line in _member_lines(one, f"{indent}  "))]
    if isinstance(entry, dict):
        return [head, *(line for key, one in entry.items() for line in entry_lines(key, one, f"{indent}  "))]
    return _constructor_lines(head, text_of(entry), indent)


def _constructor_lines(head: str, text: str, indent: str) -> list[str]:
    """A long chain has a line for each link."""
    if len(head) + 1 + len(text) <= LONGEST or " >> " not in text:
        return [f"{head} {_scalar(text)}"]
    links = text.split(" >> ")
    return [f"{head} >-", *(f"{indent}  {'>> ' if i else ''}{link}" for i, link in enumerate(links))]


def _member_lines(entry: Entry, indent: str) -> list[str]:
    if isinstance(entry, ast.expr):
        return _constructor_lines(f"{indent}-", text_of(entry), indent)
    lines = (
        [line for one in entry for line in _member_lines(one, f"{indent}  ")]
        if isinstance(entry, list)
        else [line for name, one in entry.items() for line in entry_lines(name, one, f"{indent}  ")]
    )
    return [f"{indent}- {lines[0].lstrip()}", *lines[1:]]
