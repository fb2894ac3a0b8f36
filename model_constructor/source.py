"""Source: YAML text -> a tree of `Node`s that remember file, line and column.

The traps of YAML are refused here, so that no later stage meets them: duplicate keys, tabs, tags, merge keys,
octal and sexagesimal numbers, calls cut at a comma or a colon, and documents that expand without bound.
"""

from __future__ import annotations

import ast
import bisect
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent
from yaml.nodes import MappingNode, ScalarNode, SequenceNode

from .errors import ConfigError, Place, Problem
from .names import PLAIN_FUNCTIONS

Scalar = str | int | float | bool | None

MAX_BYTES = 256_000
MAX_NODES = 20_000  # after aliases are expanded
MAX_DEPTH = 60
MAX_DIGITS = 300

_DIGITS = "[0-9]+(_[0-9]+)*"
_INTEGER = re.compile(rf"[-+]?({_DIGITS}|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(rf"[-+]?({_DIGITS}(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$")
_OCTAL = re.compile(r"[-+]?0[0-9_]+$|[-+]?0o[0-7]+$")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?$")
_INTERPOLATED = re.compile(r"(?<!\$)\$\{[^{}]*\}")
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what YAML 1.1 takes for one
_ESCAPE_LENGTHS = {"x": 4, "u": 6, "U": 10}  # of \\x20 and the like in double quotes; others have 2
_WORDS: dict[str, Scalar] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    **{f"{sign}.{word}": float(f"{sign}inf") for sign in ("", "+", "-") for word in ("inf", "Inf", "INF")},
    **{spelling: float("nan") for spelling in (".nan", ".NaN", ".NAN")},
}  # fmt: skip


class SourceFile:
    """The text of one file as it was when it was read; `name` is what messages call it."""

    def __init__(self, name: str, text: str, shown: str | None = None, folder: Path = Path()) -> None:
        """`shown` is what messages quote in place of `text`: a single line; paths in it are relative to `folder`."""
        self.name = name
        self.text = text
        self.folder = folder
        ends = [match.end() for match in _LINE_END.finditer(text)]
        self.starts = [0, *ends]  # offsets in the text
        bounds = zip(self.starts, [*ends, len(text)], strict=True)
        lines = [_LINE_END.sub("", text[start:end]) for start, end in bounds]
        self.lines = [shown] if shown and len(lines) == 1 else lines

    def position(self, offset: int) -> tuple[int, int]:
        """The line and column of a character, counted from 0."""
        line = bisect.bisect_right(self.starts, offset) - 1
        return line, offset - self.starts[line]

    def place(self, line: int, column: int, length: int = 1) -> Place:
        """`line` and `column` count from 0, as YAML marks do."""
        text = self.lines[line] if line < len(self.lines) else ""
        return Place(self.name, line + 1, column + 1, max(length, 1), text)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One YAML value. `value` is a scalar, a list of nodes, or a dict of nodes; `text` a scalar as it was written.

    What set the value before is in `earlier`, the oldest first; entries that were taken out of a mapping in `removed`.
    """

    value: Scalar | list[Node] | dict[str, Node]
    place: Place
    source: SourceFile
    text: str = ""
    key_places: dict[str, Place] = field(default_factory=dict)
    span: tuple[int, int] = (0, 0)  # offsets of a scalar in `source.text`
    style: str = ""  # of a scalar: "" (plain), ', ", | or >
    how: str = ""  # it came about, if not by being written: "removed", "computed", "environment NAME"
    earlier: tuple[Node, ...] = ()
    removed: dict[str, Node] = field(default_factory=dict)

    @property
    def plain(self) -> object:
        """The value without its places: str, int, float, bool, None, list or dict."""
        if isinstance(self.value, list):
            return [entry.plain for entry in self.value]
        if isinstance(self.value, dict):
            return {key: entry.plain for key, entry in self.value.items()}
        return self.value

    def key_place(self, key: str) -> Place:
        return self.key_places.get(key, self.place)

    def entries(self) -> list[tuple[str | int, Node]]:
        """The keys of a mapping or the positions of a list, each with the value there; of a scalar, nothing."""
        if isinstance(self.value, dict):
            return list(self.value.items())
        return list(enumerate(self.value)) if isinstance(self.value, list) else []

    def after(self, below: Node | None) -> Node:
        """This value, set where `below` was."""
        if below is None:
            return self
        return replace(self, earlier=(*below.earlier, replace(below, earlier=()), *self.earlier))

    def part(self, start: int, stop: int) -> Node:
        """The scalar that `text[start:stop]` is, with its own place."""
        offsets = self._offsets()
        begin, end = offsets[start], offsets[stop]
        line, column = self.source.position(begin)
        place = self.source.place(line, column, min(end - begin, len(self.source.lines[line]) - column))
        text = self.text[start:stop]
        return Node(text, place, self.source, text, span=(begin, end), how=self.how)

    def positions(self) -> list[tuple[int, int]]:
        """For each character of `text` (and its end): its line and column in the file, counted from 0."""
        return [self.source.position(offset) for offset in self._offsets()]

    def _offsets(self) -> list[int]:
        """For each character of `text` (and its end): its offset in `source.text`."""
        start, end = self.span
        if self.how:  # the text stands in no file
            return [start] * (len(self.text) + 1)
        raw, at = self.source.text, start
        while raw.startswith("&", at):  # behind an anchor
            at += len(raw[at:end].split(None, 1)[0])
            at += len(raw[at:end]) - len(raw[at:end].lstrip())
        if self.style in ("|", ">"):  # the header line holds no content
            at = raw.find("\n", at) + 1
        elif self.style:
            at += 1
        offsets: list[int] = []
        for character in self.text:
            while self.style == '"' and raw.startswith("\\\n", at):  # an escaped line end stands for nothing
                at += 2 + len(raw[at + 2 : end]) - len(raw[at + 2 : end].lstrip(" \t"))
            escaped = self.style == '"' and raw.startswith("\\", at)
            while not escaped and at < end and raw[at] != character and not (character.isspace() and raw[at].isspace()):
                at += 1
            offsets.append(at)
            at += _ESCAPE_LENGTHS.get(raw[at + 1], 2) if escaped else 1
        return [*offsets, at]


def read_file(path: str | Path) -> Node:
    """The tree of a YAML file. A file that is missing, too large, or not UTF-8 is a ConfigError."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(Problem(f"{path}: the file cannot be read: it is a folder or a device."))
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = f"files there: {', '.join(sorted(beside)[:10])}" if beside else "its folder holds no YAML file"
        raise ConfigError(Problem(f"{path}: there is no such file.", hint=hint)) from None
    except OSError as error:
        raise ConfigError(Problem(f"{path}: the file cannot be read: {error.strerror}.")) from error
    except ValueError:
        raise ConfigError(Problem(f"{str(path)!r} is not the name of a file.")) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(Problem(f"{path}: the file is larger than {MAX_BYTES} bytes."))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = SourceFile(str(path), raw[: error.start].decode("utf-8"))
        place = before.place(*before.position(len(before.text)))
        raise ConfigError(Problem(f"byte {error.start} is not UTF-8 text.", place)) from error
    return read_text(text, str(path), folder=path.parent)


def read_text(text: str, name: str, shown: str | None = None, folder: Path = Path()) -> Node:
    """The tree of a YAML text; `name` stands for the file in messages, `shown` for what they quote if not `text`.

    Paths in the text are relative to `folder`.
    """
    source = SourceFile(name, text, shown, folder)
    if not text.strip():
        raise ConfigError(Problem("the file is empty.", Place(name, 1, 1)))
    try:
        _check_depth(text, source)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_problem(error, source)) from None
    except yaml.reader.ReaderError as error:  # a character that YAML does not allow
        place = source.place(*source.position(error.position))
        raise ConfigError(Problem(f"the character U+{ord(text[error.position]):04X} is not allowed.", place)) from None
    if root is None or (isinstance(root, ScalarNode) and not root.value and not root.style):
        raise ConfigError(Problem("the file holds no values.", Place(name, 1, 1)))
    reader = _Reader(source)
    tree = reader.convert(root, depth=0, in_flow=False)
    if reader.problems:
        raise ConfigError(reader.problems)
    return tree


def dump(document: object, *, flow: bool = False) -> str:
    """The YAML text of plain values, such that reading it gives exactly these values; `flow`: on a single line."""
    width = float("inf") if flow else 110
    return yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width, default_flow_style=flow
    )


class _Dumper(yaml.SafeDumper):
    """Quotes each string that would be read as something else, or, as a param that is an expression, be refused."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        for key, section in node.value:
            if key.value == "params" and isinstance(section, MappingNode):
                names = {name.value for name, _ in section.value}
                waiting = [entry for _, entry in section.value]
                for entry in waiting:
                    if isinstance(entry, SequenceNode):
                        waiting += entry.value
                    elif entry.tag.endswith(":str"):
                        entry.style = '"' if is_expression(entry.value, names) else entry.style
        return node


def is_expression(text: str, params: set[str]) -> bool:
    """Whether a text would be None, or a calculation or tuple over numbers and params, so that its author may have
    meant its value."""
    text = _INTERPOLATED.sub("0", text).strip()  # beside an operator, `${dim}` stands for a number
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    names = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
    written = text == "None" or isinstance(tree, ast.BinOp | ast.Call | ast.Tuple)
    return written and names <= params | PLAIN_FUNCTIONS.keys()


def _represent_text(dumper: _Dumper, text: str) -> ScalarNode:
    safe = not _OCTAL.match(text) and not _SEXAGESIMAL.match(text) and _plain_value(text) == text != "None"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if safe else '"')


_Dumper.add_representer(str, _represent_text)


def _check_depth(text: str, source: SourceFile) -> None:
    """Refuse deep nesting before nodes are composed, which libyaml does by recursion."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            mark = event.start_mark
            place = source.place(mark.line, mark.column) if mark else None
            raise ConfigError(Problem(f"values are nested more than {MAX_DEPTH} deep.", place))


_Base: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """Text -> nodes with marks, by libyaml where PyYAML has it. Constructs nothing."""

    def resolve(self, kind: type, value: object, implicit: object) -> str:
        """The tag of a value says only how it was written, so that an explicit tag stands out."""
        return "map" if kind is MappingNode else "seq" if kind is SequenceNode else "scalar"

    def descend_resolver(self, current: object, index: object) -> None: ...

    def ascend_resolver(self) -> None: ...


class _Reader:
    """Turns the nodes of PyYAML into ours, and gathers what is wrong with them."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.count = 0

    def convert(self, node: yaml.Node, depth: int, in_flow: bool) -> Node:
        mark = node.start_mark
        place = self.source.place(mark.line, mark.column, self._length(node))
        self.count += 1
        if self.count > MAX_NODES:
            raise ConfigError(Problem(f"the document expands to more than {MAX_NODES} values.", place))
        if depth > MAX_DEPTH:
            raise ConfigError(Problem(f"values are nested more than {MAX_DEPTH} deep.", place))
        if node.tag not in ("map", "seq", "scalar"):
            self._complain(f"the tag {node.tag!r} is not allowed: a file holds values only.", place)
        if isinstance(node, ScalarNode):
            return self._scalar(node, place, in_flow)
        assert isinstance(node, SequenceNode | MappingNode)
        in_flow = in_flow or bool(node.flow_style)
        if isinstance(node, MappingNode):
            return self._mapping(node, place, depth, in_flow)
        return Node([self.convert(entry, depth + 1, in_flow) for entry in node.value], place, self.source)

    def _mapping(self, node: MappingNode, place: Place, depth: int, in_flow: bool) -> Node:
        values: dict[str, Node] = {}
        key_places: dict[str, Place] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            key_place = self.source.place(mark.line, mark.column, self._length(key_node))
            if not isinstance(key_node, ScalarNode):
                self._complain("a key has to be a plain name.", key_place, "was a quote or a bracket forgotten?")
                continue
            key = key_node.value
            if key == "<<":
                self._complain("the merge key '<<' is not read here.", key_place, "write the keys out")
            elif key in values:
                first = key_places[key]
                self._complain(
                    f"the key '{key}' stands here twice.", key_place, f"first at {first}; remove one of them"
                )
            elif in_flow and not key_node.style and _unbalanced(key):
                self._complain(*_cut(key, key_place))
            key_places[key] = key_place
            values[key] = self.convert(value_node, depth + 1, in_flow)
        return Node(values, place, self.source, key_places=key_places)

    def _scalar(self, node: ScalarNode, place: Place, in_flow: bool) -> Node:
        text, style = node.value, node.style or ""
        value: Scalar = text
        if not style:
            if in_flow and _unbalanced(text):
                self._complain(*_cut(text, place))
            if _OCTAL.match(text):
                self._complain(f"{text} is an octal number in some YAML readers.", place, _instead(text))
            elif _SEXAGESIMAL.match(text):
                self._complain(f"{text} is a base-60 number in some YAML readers.", place, f'write "{text}"')
            elif len(text) > MAX_DIGITS and (_INTEGER.match(text) or _FLOAT.match(text)):
                self._complain(f"a number has at most {MAX_DIGITS} digits.", place)
            else:
                value = _plain_value(text)
        span = (node.start_mark.index, node.end_mark.index)
        return Node(value, place, self.source, text, span=span, style=style)

    def _complain(self, message: str, place: Place, hint: str = "") -> None:
        self.problems.append(Problem(message, place, hint))

    def _length(self, node: yaml.Node) -> int:
        start, end = node.start_mark, node.end_mark
        return (
            end.column - start.column if end.line == start.line else len(self.source.lines[start.line]) - start.column
        )


def _plain_value(text: str) -> Scalar:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text):
        return int(text, 0)
    if _FLOAT.match(text):
        return float(text)
    return text


def _unbalanced(text: str) -> bool:
    return any(text.count(opening) != text.count(closing) for opening, closing in ("()", "[]", "{}"))


def _cut(text: str, place: Place) -> tuple[str, Place, str]:
    return (
        f"inside {{}} or [] YAML cuts at each comma, so only '{text}' is left here.",
        place,
        "put the expression in quotes, or write the mapping over several lines",
    )


def _instead(octal: str) -> str:
    value = int(octal, 8) if "o" in octal else int(octal)
    return f"write {value}, or quote it if it is text"


def _syntax_problem(error: yaml.MarkedYAMLError, source: SourceFile) -> Problem:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or "the text is not YAML"
    if mark is None:
        return Problem(f"{source.name}: {problem}.")
    place = source.place(mark.line, mark.column)
    if "\t" in place.text[: mark.column + 1]:
        return Problem("a tab stands where YAML allows only spaces.", place, "replace it by spaces")
    if "mapping values are not allowed" in problem:
        hint = "a ': ' inside an expression cuts it: put the expression in quotes, or after '>-' on a line of its own"
        return Problem("a second ': ' on one line.", place, hint)
    if "alias" in problem or "while scanning an alias" in (error.context or ""):
        return Problem(f"{problem}.", place, "an expression cannot begin with '*': put it in quotes")
    if "cannot start any token" in problem or "block scalar" in (error.context or ""):
        return Problem("this character cannot begin a value.", place, "put the expression in quotes")
    if "did not find expected key" in problem and "block mapping" in (error.context or ""):
        hint = "a value that begins with a bracket or a quote ends with it: put the whole expression in quotes"
        return Problem(f"{problem}.", place, hint)
    unquoted = re.compile(r"\$\{[^{}]*\}?").match(place.text, max(mark.column - 1, 0))
    if unquoted:
        place = source.place(mark.line, unquoted.start(), len(unquoted[0]))
        hint = f'write it in quotes, as in "{unquoted[0]}", or the mapping over several lines'
        return Problem("inside {} or [] a '${...}' has to be quoted.", place, hint)
    context = f" ({error.context})" if error.context else ""
    if "flow" in context:
        hint = "inside {} or [] YAML cuts at each comma and ': ': put the expression in quotes"
        words = (word.span() for word in re.finditer(r"[^\s{},]+", place.text))
        start, end = next((span for span in words if span[0] <= mark.column < span[1]), (mark.column, mark.column + 1))
        return Problem(f"{problem}{context}.", source.place(mark.line, start, end - start), hint)
    return Problem(f"{problem}{context}.", place)
