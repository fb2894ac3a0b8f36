"""Printer: definitions of a model -> the text of a module, with its imports, its comments, and lines that fit."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..block import Block, Value, expressions
from ..errors import ConfigError, Place, Problem
from ..expressions import Expression
from ..version1 import Translated

if TYPE_CHECKING:
    from .standalone import Definition, Standalone

WIDTH = 120
PACKAGE = __name__.partition(".")[0]

_SIMPLE_POWER = re.compile(r"(?<![\w.)\]\"])([\w.]+) \*\* (-?[\w.]+)(?![\w.(\[])")


# what the author of a file remarks


def remark(block: Block, first: ast.AST, last: ast.AST, place: Place, value: Value | None) -> None:
    """Let the comments of an entry stand beside the code that it became."""
    if place.text[: place.column - 1].strip(" -"):  # not alone in its line
        return
    written = [part for part in expressions(value) if not isinstance(part.node, Translated)] if value else []
    own = written[0].node.source if written else block.node.source
    lines = own.lines if own.name == place.file else []
    above = []
    for line in reversed(lines[: place.line - 1]):
        if not line.strip().startswith("#") or len(line) - len(line.lstrip()) != place.column - 1:
            break
        above.insert(0, line.strip())
    if len(above) < place.line - 1:  # and not the head of the file
        first.above = above  # pyrefly: ignore
    last.comment = trailing_comment(place, written[-1] if written else None)  # pyrefly: ignore


def trailing_comment(place: Place, value: Expression | None) -> str:
    """The comment behind an entry: behind its key, or behind the end of its value."""
    key = re.match(r"[^#'\"]*?:(?:\s+[|>][-+0-9]*)?\s+#\s*(.*)$", place.text[place.column - 1 :])
    if key is not None:
        return key[1].strip()
    if value is None:
        rest = re.match(r"(?:[^'\"]|'[^']*'|\"[^\"]*\")*?\s#\s*(.*)$", place.text)  # behind what is quoted
        return rest[1].strip() if rest else ""
    if value.node.how or isinstance(value.node, Translated):
        return ""
    rest = re.match(r"\s+#\s*(.*)", value.node.source.text[value.node.span[1] :].partition("\n")[0])
    return rest[1].strip() if rest else ""


def about(block: Block) -> str:
    """What is said of a block: at the head of its file, or behind its name."""
    if block.parent is not None:
        assert isinstance(block.parent.node.value, dict)
        text = trailing_comment(block.parent.node.value["blocks"].key_place(block.name), None)
    else:
        head = []
        for line in block.node.source.lines:
            if line.startswith("#"):
                head.append(line.removeprefix("#").strip())
            elif head or not re.match(r"(schema_version:.*)?\s*$", line):
                break
        text = " ".join(line for line in head if not line.startswith("yaml-language-server"))
    text = text.strip()
    if re.match("[a-z]+[ ,:]", text):
        text = text[0].upper() + text[1:]
    return text and text + "." * (text[-1] not in ".!?")


def docstring(text: str) -> list[ast.stmt]:
    return [ast.Expr(ast.Constant(text))] if text else []


# the module


def module_text(sheet: Standalone, file: str) -> str:
    """The text of a module; `file` is what it calls the model file."""
    imports = _Imports()
    travelled = _Travelled(imports)
    names = _names(sheet, imports, travelled)
    printer = _Printer(names)
    definitions = ["\n".join(printer.statement(definition.tree, 0)) for definition in sheet.definitions.values()]
    written_in = f" with {sheet.written_in} written in" if sheet.written_in else ""
    text = f"The model of {file} as plain PyTorch{written_in}, by `model-constructor eject`."
    text += f"\n\n`{sheet.name}` has the weights of that model by the same names, its first values from the same seed, "
    text += "its outputs."
    copied = [
        name for module, name in travelled.pieces if inspect.isclass(getattr(sys.modules.get(module), name, None))
    ]
    if copied:
        text += (
            f" {', '.join(copied)} {'is' if len(copied) == 1 else 'are'} copied from model-constructor (Apache-2.0)."
        )
    head = "\n".join(_Printer([]).docstring(text, 0))
    return "\n\n\n".join([f"{head}\n\n{imports.text()}", *travelled.pieces.values(), *definitions]) + "\n"


def _names(sheet: Standalone, imports: _Imports, travelled: _Travelled) -> list[str]:
    """What each global is called, so that no local name hides it."""
    local = {name for definition in sheet.definitions.values() for name in _locals(definition.tree)}
    names: dict[int, str] = {}
    for number, known in enumerate(sheet.globals):
        if not _is_definition(known.value) and _package(known.value) == PACKAGE:
            names[number] = travelled.bring(known.value.__module__, known.value.__name__)
            if names[number] in local:
                names[number] = travelled.alias(names[number])
    taken = {name for _, name in travelled.pieces} | imports.bound()

    def free(name: str) -> str:
        while name in local or name in taken:
            name = f"_{name}"
        taken.add(name)
        return name

    for number, known in enumerate(sheet.globals):
        if isinstance(known.value, ModuleType):
            names[number] = known.wanted if known.wanted not in local else free(known.wanted)
            imports.add_module(known.value, names[number])
        elif _package(known.value) == "builtins":
            names[number] = free(known.wanted)
            if names[number] != known.wanted:
                imports.add_from("builtins", known.wanted, names[number])
        elif known.value is Tensor:
            names[number] = "Tensor" if "Tensor" not in local else free("Tensor")
            imports.add_from("torch", "Tensor", names[number])
        elif number not in names and not _is_definition(known.value):
            home = _home(known.value)
            names[number] = free(known.value.__name__)
            imports.add_from(home, known.value.__name__, names[number])
            imports.registered.add(home)
    taken |= imports.bound()
    definitions = {id(known.value): number for number, known in enumerate(sheet.globals) if _is_definition(known.value)}
    for definition in sheet.definitions.values():
        name = _definition_name(definition, [*sheet.definitions.values()])
        while name in taken or name in local:
            number = re.search(r"\d+$", name)
            name = f"{name[: -len(number[0])]}{int(number[0]) + 1}" if number else f"{name}2"
        taken.add(name)
        definition.tree.name = name
        if id(definition) in definitions:
            names[definitions[id(definition)]] = name
    return [names.get(number, "") for number in range(len(sheet.globals))]


def _is_definition(value: Any) -> bool:
    return hasattr(value, "tree")


def _package(value: Any) -> str:
    return str(getattr(value, "__module__", "")).partition(".")[0]


def _home(value: Any) -> str:
    """The module that a registered type or op is imported from."""
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", repr(value))
    if module == "__main__" or getattr(sys.modules.get(module), name, None) is not value:
        message = f"'{name}' of {module} cannot be imported by its name, so that a file could use it."
        raise ConfigError(Problem(message, hint="define it at the top of a module"))
    return module


def _locals(tree: ast.AST) -> Iterator[str]:
    for part in ast.walk(tree):
        if isinstance(part, ast.arg):
            yield part.arg
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id


def _definition_name(definition: Definition, every: list[Definition]) -> str:
    """A class is named like its block; where others are, too, by what is around the block, and by what it decides."""
    block, alike = definition.block, [one for one in every if one.block is definition.block]
    name = block.name if isinstance(definition.tree, ast.FunctionDef) else camel(block.name)
    if block.parent is not None and any(
        camel(o.block.name) == camel(block.name) for o in every if o.block is not block
    ):
        is_function = isinstance(definition.tree, ast.FunctionDef)
        name = f"{block.parent.name}_{name}" if is_function else camel(block.parent.name) + name
    common = set.intersection(*({*one.trues} for one in alike))
    trues = [true for true in definition.trues if true not in common]
    if isinstance(definition.tree, ast.ClassDef):
        return name + "".join(map(camel, trues))
    return "_".join([name, *trues])


def camel(name: str) -> str:
    """`diffusion_unet` -> `DiffusionUnet`."""
    joined = "".join(word[0].upper() + word[1:] for word in name.split("_") if word)
    return joined if joined[:1].isalpha() else f"Model{joined}"


class _Imports:
    def __init__(self) -> None:
        self.modules: set[tuple[str, str]] = set()
        self.names: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        self.registered: set[str] = set()  # modules of types and ops that a file imports

    def add_module(self, module: ModuleType, name: str) -> None:
        parent, _, own = module.__name__.rpartition(".")
        if module is nn:
            self.add_from(parent, own, name)
        else:
            self.modules.add((module.__name__, "" if name == module.__name__ else name))

    def add_from(self, module: str, name: str, alias: str) -> None:
        self.names[module].add((name, "" if alias == name else alias))

    def add(self, statement: ast.Import | ast.ImportFrom) -> None:
        for alias in statement.names:
            if isinstance(statement, ast.Import):
                self.modules.add((alias.name, alias.asname or ""))
            else:
                self.names[str(statement.module)].add((alias.name, alias.asname or ""))

    def bound(self) -> set[str]:
        """The names that the imports give."""
        modules = {alias or name.partition(".")[0] for name, alias in self.modules}
        return modules | {alias or name for members in self.names.values() for name, alias in members}

    def text(self) -> str:
        def is_own(name: str) -> bool:
            return name.partition(".")[0] in sys.stdlib_module_names

        sections = ["from __future__ import annotations"]
        for own in (True, False):
            lines = [
                f"import {name}{f' as {alias}' if alias else ''}"
                for name, alias in sorted(self.modules)
                if is_own(name) is own
            ]
            for module, members in sorted(self.names.items()):
                if is_own(module) is own:
                    ordered = sorted(members, key=lambda member: (_rank(member[0]), member))
                    plain = ", ".join(name for name, alias in ordered if not alias)
                    written = [plain] if plain else []
                    written += [f"{name} as {alias}" for name, alias in ordered if alias]
                    remark = "  # registered for the model file" if module in self.registered else ""
                    lines += [f"from {module} import {names}{remark}" for names in written]
            sections += ["\n".join(lines)] if lines else []
        return "\n\n".join(sections)


def _rank(name: str) -> int:
    """Constants, then classes, then functions."""
    return 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2


class _Travelled:
    """The source of what this package defines, and of what that needs."""

    def __init__(self, imports: _Imports) -> None:
        self.imports = imports
        self.pieces: dict[tuple[str, str], str] = {}
        self._seen: set[tuple[str, str]] = set()

    def alias(self, name: str) -> str:
        """Another name for what travels, where a local one hides it."""
        self.pieces["", f"_{name}"] = f"_{name} = {name}"
        return f"_{name}"

    def bring(self, module: str, name: str) -> str:
        """Take along what a module of this package calls so, and what that needs."""
        if (module, name) not in self._seen:
            self._bring(module, name)
        return name

    def _bring(self, module: str, name: str) -> None:
        self._seen.add((module, name))
        lines, defined = _source(module)
        statement = defined[name]
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self._import(module, name, statement)
            return
        for part in ast.walk(statement):
            if isinstance(part, ast.Name) and part.id in defined:
                self.bring(module, part.id)
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))]) - 1
        while first and lines[first - 1].startswith("#"):
            first -= 1
        self.pieces[module, name] = "\n".join(lines[first : statement.end_lineno])

    def _import(self, module: str, name: str, statement: ast.Import | ast.ImportFrom) -> None:
        alias = next(alias for alias in statement.names if (alias.asname or alias.name) == name)
        if isinstance(statement, ast.ImportFrom) and statement.level:
            package = importlib.import_module(module).__package__
            home = importlib.util.resolve_name(f"{'.' * statement.level}{statement.module or ''}", package)
            assert alias.asname is None
            self.bring(home, name)
            return
        single = copy.copy(statement)
        single.names = [alias]
        self.imports.add(single)


@cache
def _source(module: str) -> tuple[list[str], dict[str, ast.stmt]]:
    """The lines of a module, and the statement that gives each of its names."""
    text = inspect.getsource(importlib.import_module(module))
    defined: dict[str, ast.stmt] = {}
    for statement in ast.parse(text).body:
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                defined[name] = statement
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                defined |= {alias.asname or alias.name: statement for alias in aliases}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                defined[name] = statement
    return text.splitlines(), defined


# lines


class _Flat(ast.NodeTransformer):
    """Code of which `ast.unparse` writes the text as ruff would."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.texts: list[str] = []  # that no later step touches

    def text(self, tree: ast.AST) -> str:
        text = ast.unparse(ast.fix_missing_locations(self.visit(copy.deepcopy(tree))))
        text = _SIMPLE_POWER.sub(r"\1**\2", text)
        return re.sub("§t([0-9]+)§", lambda match: self.texts[int(match[1])], text)

    def kept(self, text: str) -> ast.Name:
        self.texts.append(text)
        return ast.Name(f"§t{len(self.texts) - 1}§", ast.Load())

    def visit_Name(self, node: ast.Name) -> ast.Name:
        match = re.fullmatch("§([0-9]+)§", node.id)
        return ast.Name(self.names[int(match[1])] if match else node.id, node.ctx)

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):
            return self.kept(quoted(node.value))
        if isinstance(node.value, float):
            number = re.sub("e([-+]?)0*", r"e\1", repr(node.value)).replace("e+", "e")
            return ast.Name(number if node.value != float("inf") else 'float("inf")', ast.Load())
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if len(node.args) == 1 and isinstance(node.args[0], ast.GeneratorExp) and not node.keywords:
            inside = _Flat(self.names).text(node.args[0]).removeprefix("(").removesuffix(")")
            return ast.Call(self.visit(node.func), [self.kept(inside)], [])
        return self.generic_visit(node)  # pyrefly: ignore

    def visit_Slice(self, node: ast.Slice) -> ast.expr:
        parts = [None if p is None else _Flat(self.names).text(p) for p in (node.lower, node.upper, node.step)]
        simple = all(p is None or _is_simple(p) for p in (node.lower, node.upper, node.step))
        first, last, step = parts
        colons = [first, last] if step is None else [first, last, step]
        if simple:
            return self.kept(":".join(part or "" for part in colons))
        text = " : ".join(part or "" for part in colons).strip(" ")
        return self.kept(re.sub(r": +:", "::", text))


def _is_simple(tree: ast.expr) -> bool:
    return _is_simple(tree.operand) if isinstance(tree, ast.UnaryOp) else isinstance(tree, ast.Constant | ast.Name)


def quoted(text: str) -> str:
    written = repr(text)
    if written.startswith("'") and '"' not in written:
        written = f'"{written[1:-1]}"'
    return written


class _Printer:
    """Statements as lines of at most WIDTH columns, where that can be."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def flat(self, tree: ast.AST) -> str:
        return _Flat(self.names).text(tree)

    def statements(self, body: Iterable[ast.stmt], indent: int) -> Iterator[str]:
        for statement in body:
            yield from self.statement(statement, indent)

    def statement(self, node: ast.stmt, indent: int) -> list[str]:
        pad = " " * indent
        lines = self._lines(node, indent)
        before = [f"{pad}{line}" for line in getattr(node, "above", [])]
        comment = getattr(node, "comment", "")
        if comment and len(lines) == 1 and len(lines[0]) + len(comment) + 4 <= WIDTH:
            lines = [f"{lines[0]}  # {comment}"]
        elif comment:
            before.append(f"{pad}# {comment}")
        return before + lines

    def _lines(self, node: ast.stmt, indent: int) -> list[str]:
        pad = " " * indent
        match node:
            case ast.ClassDef():
                lines = [f"{pad}class {node.name}({', '.join(map(self.flat, node.bases))}):"]
                for position, entry in enumerate(node.body):
                    lines += [""] if position else []
                    lines += self.statement(entry, indent + 4)
                return lines
            case ast.FunctionDef():
                return [*self.signature(node, indent), *self.statements(node.body, indent + 4)]
            case ast.Expr(value=ast.Constant(value=str(text))):
                return self.docstring(text, indent)
            case ast.Expr():
                return self.layout(pad, node.value, "", indent)
            case ast.Assign(targets=[target]):
                left = self.flat(target)
                left = left.removeprefix("(").removesuffix(")") if isinstance(target, ast.Tuple) else left
                right = self.flat(node.value)
                if isinstance(node.value, ast.Tuple) and len(f"{pad}{left} = {right}") <= WIDTH:
                    return [f"{pad}{left} = {right.removeprefix('(').removesuffix(')')}"]
                return self.layout(f"{pad}{left} = ", node.value, "", indent)
            case ast.Return():
                assert node.value is not None
                line = f"{pad}return {self.flat(node.value)}"
                if isinstance(node.value, ast.Tuple) and len(node.value.elts) > 1:
                    line = f"{pad}return {self.flat(node.value).removeprefix('(').removesuffix(')')}"
                    if len(line) <= WIDTH and not any(getattr(entry, "comment", "") for entry in node.value.elts):
                        return [line]
                return self.layout(f"{pad}return ", node.value, "", indent)
            case ast.For():
                target = self.flat(node.target)
                target = target.removeprefix("(").removesuffix(")")
                head = self.layout(f"{pad}for {target} in ", node.iter, ":", indent)
                return [*head, *self.statements(node.body, indent + 4)]
            case ast.If():
                lines = [*self.layout(f"{pad}if ", node.test, ":", indent), *self.statements(node.body, indent + 4)]
                return [*lines, *([f"{pad}else:", *self.statements(node.orelse, indent + 4)] if node.orelse else [])]
        raise AssertionError(f"{type(node).__name__} is not written")

    def docstring(self, text: str, indent: int) -> list[str]:
        pad = " " * indent
        text = text.replace("\\", "\\\\").replace('"""', "'''")
        text += "." * text.endswith('"')  # which would be taken for the end
        lines = [line for part in text.split("\n") for line in textwrap.wrap(part, WIDTH - indent - 6) or [""]]
        if len(lines) == 1:
            return [f'{pad}"""{lines[0]}"""']
        return [f'{pad}"""{lines[0]}', *(f"{pad}{line}".rstrip() for line in lines[1:]), f'{pad}"""']

    def signature(self, node: ast.FunctionDef, indent: int) -> list[str]:
        pad = " " * indent
        given = node.args
        defaults = [None] * (len(given.args) - len(given.defaults)) + given.defaults
        entries = [self.argument(a, d) for a, d in zip(given.args, defaults, strict=True)]
        if given.kwonlyargs:
            entries.append(("*", ""))
            entries += [self.argument(a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
        end = f") -> {self.flat(node.returns)}:" if node.returns is not None else "):"
        inside = ", ".join(text for text, _ in entries)
        has_comments = any(comment for _, comment in entries)
        if not has_comments:
            if len(line := f"{pad}def {node.name}({inside}{end}") <= WIDTH:
                return [line]
            if len(line := f"{pad}    {inside}") <= WIDTH:
                return [f"{pad}def {node.name}(", line, f"{pad}{end}"]
        lines = [f"{pad}    {text},{f'  # {comment}' if comment else ''}" for text, comment in entries]
        return [f"{pad}def {node.name}(", *lines, f"{pad}{end}"]

    def argument(self, node: ast.arg, default: ast.expr | None) -> tuple[str, str]:
        text = node.arg if node.annotation is None else f"{node.arg}: {self.flat(node.annotation)}"
        if default is not None:
            text += f" = {self.flat(default)}" if node.annotation is not None else f"={self.flat(default)}"
        return text, getattr(node, "comment", "")

    def layout(self, before: str, tree: ast.expr, after: str, indent: int, bracketed: bool = False) -> list[str]:
        """An expression between two texts, broken where it is too long; `bracketed` if it stands alone in brackets."""
        line = f"{before}{self.flat(tree)}{after}"
        entries = getattr(tree, "elts", [])
        has_comments = any(getattr(entry, "comment", "") for entry in entries)
        if len(line) <= WIDTH and not has_comments:
            return [line]
        pad = " " * indent
        match tree:
            case ast.Call():
                called = f"{before}{self.flat(tree.func)}("
                arguments = [*tree.args, *tree.keywords]
                if not arguments and isinstance(tree.func, ast.Attribute):
                    return self.layout(before, tree.func.value, f".{tree.func.attr}(){after}", indent, bracketed)
                if len(called) > WIDTH and isinstance(tree.func, ast.Attribute):
                    inside = ", ".join(map(self.flat, arguments))
                    return self.layout(
                        before, tree.func.value, f".{tree.func.attr}({inside}){after}", indent, bracketed
                    )
                return self.brackets(called, arguments, f"){after}", indent)
            case ast.List() | ast.Tuple():
                ends = ("[", "]") if isinstance(tree, ast.List) else ("(", ")")
                return self.brackets(f"{before}{ends[0]}", tree.elts, f"{ends[1]}{after}", indent)
            case ast.Dict(keys=keys, values=values) if keys:
                lines = [f"{before}{{"]
                for key, value in zip(keys, values, strict=True):
                    assert key is not None
                    lines += self.layout(f"{pad}    {self.flat(key)}: ", value, ",", indent + 4)
                return [*lines, f"{pad}}}{after}"]
            case ast.Attribute():
                return self.layout(before, tree.value, f".{tree.attr}{after}", indent, bracketed)
            case ast.Subscript() if isinstance(tree.value, ast.Call | ast.Attribute):
                return self.layout(before, tree.value, f"[{self.flat(tree.slice)}]{after}", indent, bracketed)
            case ast.IfExp() | ast.BinOp() | ast.BoolOp() | ast.Compare():
                if bracketed:
                    return self.parts(before, tree, after, indent)
                if len(inside := f"{pad}    {self.flat(tree)}") <= WIDTH:
                    return [f"{before}(", inside, f"{pad}){after}"]
                return [f"{before}(", *self.parts(f"{pad}    ", tree, "", indent + 4), f"{pad}){after}"]
        return [line]

    def brackets(self, before: str, entries: list[Any], after: str, indent: int) -> list[str]:
        pad = " " * (indent + 4)
        inside = pad + ", ".join(map(self.flat, entries))
        sole = len(entries) == 1 and isinstance(entries[0], ast.GeneratorExp)
        if sole:
            inside = pad + self.flat(entries[0]).removeprefix("(").removesuffix(")")
        if len(inside) <= WIDTH and not any(getattr(entry, "comment", "") for entry in entries):
            return [before, inside, f"{' ' * indent}{after}"]
        if sole:
            made = entries[0]
            (loop,) = made.generators
            lines = self.layout(pad, made.elt, "", indent + 4, bracketed=True)
            loops = self.layout(f"{pad}for {self.flat(loop.target)} in ", loop.iter, "", indent + 4, bracketed=True)
            return [before, *lines, *loops, f"{' ' * indent}{after}"]
        lines = []
        for entry in entries:
            if isinstance(entry, ast.keyword):
                lines += self.layout(f"{pad}{entry.arg}=", entry.value, ",", indent + 4, bracketed=False)
            elif isinstance(entry, ast.Starred):
                lines += self.layout(f"{pad}*", entry.value, ",", indent + 4)
            else:
                lines += self.layout(pad, entry, ",", indent + 4, bracketed=True)
            comment = getattr(entry, "comment", "")
            lines[-1] += f"  # {comment}" if comment else ""
        return [before, *lines, f"{' ' * indent}{after}"]

    def parts(self, before: str, tree: ast.expr, after: str, indent: int) -> list[str]:
        """The operands of an expression in brackets, each in a line of its own."""
        pad = " " * indent
        match tree:
            case ast.IfExp():
                lines = self.operand(before, tree.body, "", indent)
                lines += self.operand(f"{pad}if ", tree.test, "", indent)
                if isinstance(tree.orelse, ast.IfExp):
                    return [*lines, *self.parts(f"{pad}else ", tree.orelse, after, indent)]
                return [*lines, *self.operand(f"{pad}else ", tree.orelse, after, indent)]
            case ast.BinOp():
                chain: list[tuple[str, ast.expr]] = []
                level: ast.expr = tree
                rank = _rank_of(tree.op)
                while isinstance(level, ast.BinOp) and _rank_of(level.op) == rank:
                    chain.insert(0, (self.flat(ast.BinOp(_x(), level.op, _x()))[1:-1].strip(), level.right))
                    level = level.left
                lines = self.operand(before, level, "", indent, tight=True)
                for position, (sign, operand) in enumerate(chain):
                    last = after if position == len(chain) - 1 else ""
                    lines += self.operand(f"{pad}{sign} ", operand, last, indent, tight=True)
                return lines
            case ast.BoolOp():
                word = "and" if isinstance(tree.op, ast.And) else "or"
                lines = self.operand(before, tree.values[0], "", indent)
                for value in tree.values[1:]:
                    lines += self.operand(f"{pad}{word} ", value, after if value is tree.values[-1] else "", indent)
                return lines
        return [f"{before}{self.flat(tree)}{after}"]

    def operand(self, before: str, tree: ast.expr, after: str, indent: int, tight: bool = False) -> list[str]:
        """An operand, in brackets of its own where the operator binds more tightly."""
        if isinstance(tree, ast.IfExp | ast.BoolOp | ast.Compare) or (tight and isinstance(tree, ast.BinOp)):
            text = self.flat(ast.BinOp(tree, ast.Pow(), _x())) if tight else self.flat(tree)
            if tight and not isinstance(tree, ast.BinOp):
                return [f"{before}{text.removesuffix(' ** x')}{after}"]
            return [f"{before}{self.flat(tree)}{after}"]
        return self.layout(before, tree, after, indent)


def _rank_of(op: ast.operator) -> int:
    return (
        0
        if isinstance(op, ast.Add | ast.Sub)
        else 1
        if isinstance(op, ast.Mult | ast.Div | ast.FloorDiv | ast.Mod | ast.MatMult)
        else 2
        if isinstance(op, ast.Pow)
        else 3
    )


def _x() -> ast.expr:
    return ast.Name("x", ast.Load())
