"""Constructors: the part of the JSON Schema that holds every type, with its arguments and its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from ..names import find_type, type_names

_LEFT_OUT = ("device", "dtype")  # of torch's modules: a model moves as a whole
_TOLD = re.compile(r"__init__\(([^)]*)\)")
_OWN = {  # what is no type, with arguments that are its own
    "Param": (
        "Param(*sizes, init=zeros, requires_grad=True)",
        "A parameter of this shape; or of a value: Param([1.0, 2.0]).",
    ),
    "Buffer": ("Buffer(*sizes, init=zeros, persistent=True)", "A buffer of this shape; or of a value, as in Param."),
}


def constructors() -> dict[str, Any]:
    """A constructor: a branch for each type, so that an editor offers them and shows the one that is written."""
    names = sorted({*type_names()})
    branches = [_type(name) for name in names]
    known = "|".join(map(re.escape, names))
    other = {
        "type": "string",
        "pattern": rf"^(?!\s*({known})\()[\s\S]*[(\[]",
        "description": "A constructor: a block with its params, a list, a choice.",
        "errorMessage": "A module is a constructor, as in Linear(dim, 4).",
    }
    return {"anyOf": [other, *branches]}


def _type(name: str) -> dict[str, Any]:
    if name in _OWN:
        signature, about = _OWN[name]
        required: list[str] = []
    else:
        kind = find_type(name)
        assert kind is not None
        signature, required = _signature(name, kind)
        about = _about(kind)
    holes = ", ".join(
        f"{argument}${{{i}}}" if argument.endswith("=") else f"${{{i}:{argument}}}"
        for i, argument in enumerate(required, 1)
    )
    return {
        "type": "string",
        "pattern": rf"^\s*{re.escape(name)}\(",
        "title": signature,
        "description": about,
        "defaultSnippets": [{"label": name, "description": signature, "body": f"{name}({holes or '$1'})"}],
    }


def _signature(name: str, kind: Callable[..., Any]) -> tuple[str, list[str]]:
    """How a type is called, and its arguments without a default."""
    if told := _TOLD.match(inspect.getdoc(kind) or ""):  # of torch's recurrent modules, which take anything
        arguments = [one for one in re.split(r",\s*", told[1]) if one.split("=")[0] not in _LEFT_OUT]
        return f"{name}({', '.join(arguments)})", [one for one in arguments if "=" not in one]
    found = inspect.signature(kind)
    parameters = [one for one in found.parameters.values() if one.name not in _LEFT_OUT]
    text = str(found.replace(parameters=parameters, return_annotation=found.empty))
    text = re.sub(r": '([^']*)'", r": \1", text)  # an annotation that is a string
    text = re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", text)  # the homes of classes
    required = [
        f"{one.name}=" if one.kind is one.KEYWORD_ONLY else one.name
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    return f"{name}{text}", required


def _about(kind: Callable[..., Any]) -> str:
    """The docstring; of a type of torch its first paragraph, and where the rest is."""
    text = inspect.getdoc(kind) or ""
    home = getattr(kind, "__module__", "")
    if not home.startswith("torch."):
        return text
    first = " ".join(_TOLD.sub("", text).strip().partition("\n\n")[0].split())
    first = re.sub(r":\w+:`([^`]*)`", r"\1", first)
    return f"{first}\n\nhttps://docs.pytorch.org/docs/stable/generated/torch.nn.{kind.__name__}.html"
