"""Messages: what pydantic finds wrong with values -> problems in this project's words, each at its key or value."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from model_constructor.errors import Problem, nearest

Key = tuple[str | int, ...]

# pydantic's names of errors -> what the value should have been
KINDS = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text",
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "a mapping"),
    "none_required": "null",
    "finite_number": "a finite number",
}
BOUNDS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}
SWITCHES = {**dict.fromkeys(("1", "yes", "on", "true"), "true"), **dict.fromkeys(("0", "no", "off", "false"), "false")}


def problems_of(error: ValidationError, schema: Any, source: Any, below: Key = ()) -> list[Problem]:
    """`schema` describes what stands at the key `below` of the config `source`; one problem for each key or value."""
    data = _at(source.data, below)
    placed = [(_key(detail, data), detail) for detail in error.errors()]
    return [
        _problem(key, [detail for _, detail in details], schema, source, below)
        for key, details in ((key, list(group)) for key, group in groupby(placed, key=lambda one: one[0]))
        if not _is_other_branch(key, details, placed)
    ]


def known_keys(schema: Any, key: Sequence[str | int]) -> list[str]:
    """The keys that a schema knows at a place."""
    kinds = [schema]
    for part in key:
        kinds = [inner for kind in kinds for inner in _inside(kind, part)]
    return [name for kind in kinds for one in _branches(kind) if _is_section(one) for name in one.model_fields]


def dotted(key: Sequence[str | int]) -> str:
    """`train.loggers[0]`"""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return "".join(parts).removeprefix(".") or "the config"


def _key(detail: ErrorDetails, data: Any) -> Key:
    """Where an error stands; pydantic's own names of a union's branches are left out."""
    key: Key = ()
    for position, part in enumerate(detail["loc"]):
        is_missing = detail["type"] == "missing" and position == len(detail["loc"]) - 1
        if is_missing or (isinstance(data, Mapping) and part in data):
            key, data = (*key, part), None if is_missing else data[part]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            key, data = (*key, part), data[part]
    return key


def _is_other_branch(
    key: Key, details: Sequence[tuple[Key, ErrorDetails]], placed: Sequence[tuple[Key, ErrorDetails]]
) -> bool:
    """Of a union, `a text` says nothing to who wrote a mapping in which a key is wrong."""
    deeper = any(len(other) > len(key) and other[: len(key)] == key for other, _ in placed)
    return deeper and all(detail["type"] in KINDS for _, detail in details)


def _problem(key: Key, details: list[ErrorDetails], schema: Any, source: Any, below: Key) -> Problem:
    detail, at, name = details[0], (*below, *key), dotted((*below, *key))
    match detail["type"]:
        case "extra_forbidden":
            return Problem(
                f"unknown key '{name}'", source.key_place(at), nearest(key[-1], known_keys(schema, key[:-1]))
            )
        case "missing" if isinstance(key[-1], int):  # of a tuple's entries
            message = f"{dotted(at[:-1])} has {key[-1]} entries; it should have at least {key[-1] + 1}"
            return Problem(message, source.place(at[:-1]))
        case "missing":
            return Problem(f"'{name}' is missing", source.place(at), f"add `{key[-1]}:` here")
        case "value_error":
            is_key = detail["loc"][-1:] == ("[key]",)
            place = source.key_place(at) if is_key else source.place(at)
            return Problem(f"{name}: {detail.get('ctx', {})['error']}", place)
        case "too_short" | "too_long":
            few, ctx = detail["type"] == "too_short", detail.get("ctx", {})
            bound = f"at least {ctx.get('min_length')}" if few else f"at most {ctx.get('max_length')}"
            return Problem(f"{name} has {ctx['actual_length']} entries; it should have {bound}", source.place(at))
    wanted = list(dict.fromkeys(_wanted(one) for one in details))
    given = detail["input"]
    but = f"not {_shown(given)}" if detail["type"] == "literal_error" and given is not None else _but(given)
    message = f"{name} should be {', or '.join(wanted)}, {but}"
    hints = [_hint(one, given, schema, key) for one in details if len(wanted) == 1 or _wanted(one) == "a mapping"]
    hint = "\n".join(dict.fromkeys(filter(None, hints)))
    return Problem(message, source.place(at), hint)


def _wanted(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind in BOUNDS:
        return BOUNDS[kind].format(**{name: _plain(value) for name, value in detail.get("ctx", {}).items()})
    return KINDS.get(kind) or detail["msg"].removeprefix("Input should be ")


def _but(given: Any) -> str:
    if given is None:
        return "and nothing is written (null)"
    if isinstance(given, Mapping | list):
        return f"not {'a mapping' if isinstance(given, Mapping) else 'the list ' + _shown(given)}"
    return f"not {'the text ' if isinstance(given, str) else ''}{_shown(given)}"


def _plain(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(detail: ErrorDetails, given: Any, schema: Any, key: Key) -> str:
    """What would have been right, where it can be guessed."""
    wanted = _wanted(detail)
    if wanted == "a whole number" and isinstance(given, float) and given.is_integer():
        return f"write {int(given)}"
    if wanted in ("a number", "a whole number") and isinstance(given, str) and _is_number(given):
        return f"a number is written without quotes: {given.strip()}"
    if wanted == "true or false" and (switch := SWITCHES.get(str(given).lower())):
        return f"write {switch}"
    if wanted == "a list" and isinstance(given, str | int | float) and not isinstance(given, bool):
        return f"write [{given}]"
    if wanted == "a list" and isinstance(given, Mapping) and given:
        return "begin each of its entries with '- '"
    if detail["type"] == "literal_error":
        choices = [one.strip().strip("'") for one in wanted.replace(" or ", ",").split(",")]
        return nearest(given, choices) if isinstance(given, str) and len(choices) > 2 else ""
    if wanted == "a mapping" and (names := known_keys(schema, key)):
        if isinstance(given, str) and "type" in names:
            return f"write {{type: {given}}}"
        return f"its keys are {', '.join(names)}"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _at(data: Any, key: Key) -> Any:
    for part in key:
        data = data[part]
    return data


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _branches(kind: Any) -> Iterator[Any]:
    """`Section | None` -> Section; anything else is its only branch."""
    if isinstance(kind, type) or get_origin(kind) in (dict, list):
        yield kind
        return
    for argument in get_args(kind):
        yield from _branches(argument)


def _inside(kind: Any, part: str | int) -> Iterator[Any]:
    """What a type says of its entry `part`."""
    for one in _branches(kind):
        if get_origin(one) in (dict, list):
            yield get_args(one)[-1]
        elif _is_section(one) and part in one.model_fields:
            yield one.model_fields[part].annotation
