"""`model-constructor schema`: a JSON Schema of model files, for editors: keys, names, every type with its arguments.

It sees the structure of a file. What stands in an expression it sees at its beginning: the type of a constructor, which
is shown with its arguments and its docstring. `check` sees the rest.
"""

from __future__ import annotations

import argparse
import importlib
import json
import keyword
from typing import Any

from torch import nn

from ..block import BLOCK_KEYS, FILE_KEYS
from ..config import NAMED, PARAM_TYPES
from ..errors import ConfigError, Place, Problem
from ..names import DTYPES, TAKEN, TAKEN_BY_MODELS, initialisers
from ..version1 import register_from
from .arguments import add_output, look_beside_the_user, refuse_output
from .constructors import constructors

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"  # what editors know
_NAME = r"[A-Za-z\u0080-\uffff][\w\u0080-\uffff]*"
_NAMES = "A name is letters, digits and _: no word of Python or the dialect, nothing that every module has."
_ABOUT = {
    "schema_version": "The version of the dialect.",
    "defaults": "Files to start from, in this order; this file is laid over them.",
    "imports": "Python modules that register types or ops. The caller has to allow them.",
    "params": "Names with default values; a bare type (int, float, bool, str, list) is a value that the caller gives.",
    "inputs": "The arguments of the model, in order: name -> shape, as in [B, T, dim]; or any.",
    "blocks": "Blocks by name, inline or as the path of a model file.",
    "modules": "Modules by name, as in Linear(dim, 4), layer(dim=dim) * depth, or Linear(4, 8) >> ReLU().",
    "graph": "Node -> expression, in any order; `k, v` unpacks.",
    "outputs": "An expression; or a list (a tuple) or mapping (a dict) of expressions.",
    "init": "Selector -> initialiser, as in {head: zeros, 'type:Linear': {weight: normal(std=0.02), bias: zeros}}.",
}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "schema",
        help="print the JSON Schema of model files, for editors",
        description="Print the JSON Schema of model files, with every type, its arguments and its docstring.",
    )
    add_output(parser, "OUT.json", "write it here")
    parser.add_argument(
        "--import",
        nargs="+",
        action="extend",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="Python modules that register types, as in a file's `imports`; they run code",
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    if given.output is not None:
        refuse_output(given.output, given.force)
    look_beside_the_user(given.imports)
    for name in given.imports:
        try:
            register_from(importlib.import_module(name), "", Place("--import", 1, 1))
        except ImportError as error:
            raise ConfigError(Problem(f"'{name}' cannot be imported: {error}.")) from error
    text = json.dumps(file_schema(), indent=1) + "\n"
    if given.output is None:
        print(text, end="")
    else:
        given.output.write_text(text, encoding="utf-8")
    return 0


def file_schema() -> Schema:
    """The schema of a model file of version 2, with the types that are registered now."""
    sections = _sections()
    block = {key: sections[key] for key in BLOCK_KEYS}
    file = {key: sections[key] for key in ("defaults", *FILE_KEYS)}
    whole = {
        "type": "object",
        "properties": file,
        "additionalProperties": False,
        "if": {"not": {"required": ["defaults"]}},  # which may hold what this file lacks
        "then": {"required": ["schema_version"], "allOf": [_ref("complete")]},
    }
    return {
        "$schema": DRAFT,
        "title": "Model file",
        **whole,
        "definitions": {
            "block": {"type": "object", "properties": block, "additionalProperties": False},
            "file": {"description": "A whole model file, with a scope of its own.", **whole},
            "complete": {
                "required": ["outputs"],
                "properties": {
                    name: {"additionalProperties": _ref("complete_entry" if name == "blocks" else "entry")}
                    for name in NAMED
                },
            },
            "complete_entry": {"allOf": [_ref("entry")], "if": {"type": "object"}, "then": _ref("complete")},
            "entry": {  # null removes an entry of a file in `defaults`
                "type": ["string", "number", "boolean", "array", "object"],
                "errorMessage": "Write what it is, or leave the line out.",
            },
            "merge": _merge(),
            "module": _one_of(
                _ref("constructor"),
                {"type": "array", "items": _ref("module"), "description": "An nn.ModuleList."},
                {
                    "type": "object",
                    "propertyNames": _names("_merge_"),
                    "additionalProperties": _ref("module"),
                    "minProperties": 1,
                    "description": "A namespace: an nn.Module that only holds its entries.",
                },
            ),
            "constructor": constructors(),
            "value": _one_of(
                {"type": ["string", "number", "boolean"], "description": "An expression."},
                {"type": "array", "items": _ref("value"), "description": "A list of expressions."},
                {"type": "object", "additionalProperties": _ref("value"), "description": "A dict of expressions."},
            ),
            "initialiser": _initialiser(),
        },
    }


# the sections


def _sections() -> dict[str, Schema]:
    sections: dict[str, Schema] = {
        "schema_version": {"const": 2},
        "defaults": {
            "type": "array",
            "items": _one_of({"type": "string"}, {"type": "object", "minProperties": 1, "maxProperties": 1}),
        },
        "imports": _list_of({"type": "string"}),
        "params": _mapping(_names(), _param()),
        "inputs": _mapping(_names(), _one_of(_shape(), _full_input(), {"type": "null"})),
        "blocks": _mapping(
            _pattern(rf"(?!({'|'.join(['Param', 'Buffer', *keyword.kwlist])})\b){_NAME}", _NAMES),
            _one_of(
                {
                    "type": "string",
                    "pattern": r"\.ya?ml$",
                    "description": "The path of a model file.",
                    "errorMessage": "A block is a mapping, or the path of a model file.",
                },
                _ref("block"),
                _ref("file"),
                {"type": "null"},
            ),
        ),
        "modules": _mapping(_names(*TAKEN_BY_MODELS), _one_of(_ref("module"), _ref("merge"), {"type": "null"})),
        "graph": _mapping(_targets(), _one_of(_ref("value"), _ref("merge"), {"type": "null"})),
        "outputs": _one_of(
            {"type": ["string", "number", "boolean"]},
            {"type": "array", "items": _ref("value"), "minItems": 1},
            {"type": "object", "additionalProperties": _ref("value"), "minProperties": 1},
        ),
        "init": _mapping(
            {},
            _one_of(
                _ref("initialiser"),
                {"type": "object", "additionalProperties": _ref("initialiser"), "minProperties": 1},
                {"type": "null"},
            ),
        ),
    }
    return {key: {"description": _ABOUT[key], **section} for key, section in sections.items()}


def _param() -> Schema:
    types = {"enum": list(PARAM_TYPES), "description": "A value of this type, that the caller has to give."}
    plain = {"type": ["string", "number", "boolean", "null"]}
    items = {"type": ["string", "number", "boolean", "null", "array"]}
    return _one_of(types, plain, {"type": "array", "items": items}, _ref("merge"))


def _shape() -> Schema:
    size = _one_of(
        {"type": "integer", "minimum": 0},
        {"type": "string", "not": {"const": "..."}, "description": "A symbol, or an expression over params."},
    )
    first = _one_of(size, {"const": "...", "description": "Any number of dimensions."})
    return _one_of(
        {"type": "array", "items": [first], "additionalItems": size, "description": "Its dimensions: [B, T, dim]."},
        {"const": "any", "description": "A value without a shape, such as a dict."},
        _ref("merge"),
    )


def _full_input() -> Schema:
    variable = {"type": "string", "pattern": r"\$\{env:"}
    return {
        "type": "object",
        "properties": {
            "shape": _shape(),
            "dtype": _one_of({"enum": list(DTYPES)}, variable),
            "optional": _one_of({"type": "boolean"}, variable),
        },
        "required": ["shape"],
        "additionalProperties": False,
    }


def _merge() -> Schema:
    return {
        "type": "object",
        "description": "How this list is laid over the one of the files in `defaults`.",
        "properties": {
            "_merge_": {"enum": ["append", "prepend", "keyed", "replace"]},
            "_value_": {},
            "key": {"type": "string", "description": "What entries are told apart by; of `keyed`."},
        },
        "required": ["_merge_", "_value_"],
        "additionalProperties": False,
    }


# names


def _names(*more: str) -> Schema:
    """Names that a value or module can have."""
    return _pattern(f"{_free(*more)}{_NAME}", _NAMES)


def _targets() -> Schema:
    """One name, or several with commas between them, of which `_` discards."""
    one = f"({_free()}{_NAME}|_)"
    return _pattern(rf"{one}(\s*,\s*{one})*", _NAMES)


def _free(*more: str) -> str:
    """What stands before a name that is not taken."""
    of_modules = (name for name in dir(nn.Module) if not name.startswith("_"))
    taken = sorted({*TAKEN, *keyword.kwlist, *of_modules, *more})
    return rf"(?!({'|'.join(taken)})\b)"


def _pattern(pattern: str, message: str) -> Schema:
    return {"pattern": f"^{pattern}$", "errorMessage": message}


def _initialiser() -> Schema:
    known = initialisers()
    names = "|".join(sorted(known))
    return {
        "type": "string",
        "pattern": rf"^\s*({names})\s*(\(|$)|\bif\b",
        "examples": sorted(known),
        "errorMessage": f"An initialiser is one of {', '.join(sorted(known))}, with its arguments.",
        "description": "An initialiser of torch.nn.init: zeros, normal(std=0.02), kaiming_normal(mode='fan_out').",
    }


# of JSON Schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _one_of(*choices: Schema) -> Schema:
    return {"anyOf": list(choices)}


def _list_of(items: Schema) -> Schema:
    return _one_of({"type": "array", "items": items}, _ref("merge"))


def _mapping(names: Schema, values: Schema) -> Schema:
    return {"type": ["object", "null"], "propertyNames": names, "additionalProperties": values}
