"""What a user sees when a model fails: the line of the YAML file with a caret, and notes on nodes and shapes."""

from __future__ import annotations

import gc
import linecache
import pickle
import re
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import symbolic_convert
from torch.utils.checkpoint import checkpoint

from model_constructor import build_model, failure, register

BROKEN = """\
inputs: {x: any}
modules: {l: "Linear(4, 3)"}
graph:
  h: x + 1
  y: >-
    h * 2 +
    l(h) * 3
outputs: y
"""
X = torch.zeros(2, 3)
SAME = RuntimeError("always the same one")


def failing(call: Callable, *inputs: object, **named: object) -> Exception:
    """What the call raises."""
    try:
        call(*inputs, **named)
    except Exception as error:
        return error
    raise AssertionError("the call was to fail")


def seen(error: Exception) -> str:
    """The text that Python prints of an exception nobody catches."""
    return "".join(traceback.format_exception(error))


def notes(error: Exception) -> list[str]:
    """The notes, with the files by their names alone."""
    return [re.sub(r"^\S*/", "", note) for note in getattr(error, "__notes__", [])]


# the line and the caret


def test_a_failure_shows_the_line_of_the_file_with_a_caret_and_keeps_its_type(build: Callable, tmp_path: Path):
    error = failing(build(BROKEN), X)
    assert type(error) is RuntimeError and "shapes cannot be multiplied" in str(error)
    text = seen(error)
    assert f'  File "{tmp_path}/model.yaml", line 8, in forward\n    l(h) * 3\n    ^^^^\n' in text
    assert text.endswith(f"\n{tmp_path}/model.yaml:8:5  in node 'y' of 'model', calling l: h [2, 3] float32\n")


def test_a_failure_in_an_inner_block_shows_the_call_of_the_block_too(build: Callable):
    model = build("""\
        inputs: {x: any}
        blocks:
          inner:
            inputs: {h: any}
            modules: {é: "Linear(4, 3)"}
            outputs: "h + é(h) * 2"
        modules: {layers: inner() * 2}
        outputs: relu(x) + layers(x)
        """)
    text = seen(failing(model, X))
    outer, inner = "    outputs: relu(x) + layers(x)\n", '    outputs: "h + é(h) * 2"\n'
    assert outer + " " * 23 + "^^^^^^^^^\n" in text and inner + " " * 18 + "^^^^\n" in text
    assert text.index(outer) < text.index(inner)


SCALARS = [  # (how the expression `relu(x) + l(x) * 2` is written, the line shown, what the carets mark in it)
    ("outputs: relu(x) + l(x) * 2", "outputs: relu(x) + l(x) * 2", "l(x)"),
    ("outputs: 'relu(x) + l(x) * 2'", "outputs: 'relu(x) + l(x) * 2'", "l(x)"),
    ('outputs: "relu(x) + l(x) * 2"', 'outputs: "relu(x) + l(x) * 2"', "l(x)"),
    (r'outputs: "\x72elu(x) +\x20l(x) * 2"', r'outputs: "\x72elu(x) +\x20l(x) * 2"', "l(x)"),
    ("outputs: {'größe → 日本': relu(x) + l(x) * 2}", "outputs: {'größe → 日本': relu(x) + l(x) * 2}", "l(x)"),
    ("outputs:\n  relu(x) +\n  l(x) * 2", "l(x) * 2", "l(x)"),
    ("outputs: >-\n  relu(x) +\n  l(x) * 2", "l(x) * 2", "l(x)"),
    ("outputs: |\n  relu(x) +\n\n  l(x) * 2", "l(x) * 2", "l(x)"),
    ("outputs: |-\n    relu(x) + l(\n    x)", "relu(x) + l(", "l("),
    ("graph:\n  a: &e relu(x) + l(x) * 2\noutputs: a + 1", "a: &e relu(x) + l(x) * 2", "l(x)"),
]


@pytest.mark.parametrize(("written", "line", "marked"), SCALARS, ids=[written for written, _, _ in SCALARS])
def test_the_caret_marks_the_part_that_failed_however_it_is_written(
    build: Callable, written: str, line: str, marked: str
):
    text = seen(failing(build(f"inputs: {{x: any}}\nmodules: {{l: 'Linear(4, 3)'}}\n{written}\n"), X))
    shown, carets = re.search(rf"    ({re.escape(line)})\n    ([ ^]+)\n", text).groups()
    wide = sum(character in "日本" for character in line)  # each takes two columns, and so do its blanks
    start = len(carets) - len(carets.lstrip()) - wide
    assert shown[start:].startswith(marked) and carets.count("^") == len(marked)


def test_an_aliased_expression_shows_the_line_it_was_written_on(build: Callable):
    model = build("""\
        inputs: {x: any}
        blocks:
          right: {inputs: {x: any}, modules: {l: "Linear(3, 3)"}, outputs: &call l(x) + 1}
          wrong:
            inputs: {x: any}
            modules: {l: "Linear(4, 3)"}
            outputs: *call
        modules: {a: right(), b: wrong()}
        outputs: b(a(x))
        """)
    error = failing(model, X)
    assert ", outputs: &call l(x) + 1}\n" in seen(error)
    assert notes(error)[0] == "model.yaml:4:74  in the outputs of 'wrong' (b), calling l: x [2, 3] float32"


def test_an_override_shows_the_text_it_was_given_as(write: Callable, tmp_path: Path):
    model = build_model(write(BROKEN), overrides=["graph.h=relu(x) @ x"])
    error = failing(model, X)
    assert f'  File "{tmp_path}/model.yaml with --set", line 11, in forward\n' in seen(error)
    assert "    graph.h=relu(x) @ x\n            ~~~~~~~~^~~\n" in seen(error)
    assert notes(error) == ["--set:1:9  in node 'h' of 'model': x [2, 3] float32"]
    other = failing(build_model(write(BROKEN), overrides=["graph.h=relu(x)"]), X)
    assert "model.yaml with --set@" in seen(other) and ", line 8, in forward\n    l(h) * 3\n    ^^^^\n" in seen(other)
    assert notes(other) == ["model.yaml:8:5  in node 'y' of 'model', calling l: h [2, 3] float32"]


def test_a_node_of_a_base_file_shows_its_line_there(write: Callable, tmp_path: Path):
    write(BROKEN, "base.yaml")
    model = build_model(write("defaults: [base.yaml]\ngraph: {h: x - 1}\n"))
    error = failing(model, X)
    assert "    l(h) * 3\n    ^^^^\n" in seen(error)
    assert notes(error) == ["base.yaml:8:5  in node 'y' of 'model', calling l: h [2, 3] float32"]


def test_the_text_shown_is_that_of_the_time_of_building(write: Callable):
    path = write(BROKEN)
    model = build_model(path)
    path.write_text("# rewritten\n" * 30)
    linecache.checkcache()
    assert "    l(h) * 3\n" in seen(failing(model, X))


def test_a_file_built_again_after_an_edit_shows_its_new_text_and_the_old_model_its_old(write: Callable):
    old = build_model(write(BROKEN))
    new = build_model(write(BROKEN.replace("l(h) * 3", "l(h) * 4")))
    assert "    l(h) * 3\n" in seen(failing(old, X))
    assert "    l(h) * 4\n" in seen(failing(new, X))


def test_a_file_that_was_shown_before_it_was_built_keeps_its_name(write: Callable):
    path = write(BROKEN)
    assert linecache.getline(str(path), 8) == "    l(h) * 3\n"  # as a debugger does to set a breakpoint
    assert build_model(path).forward.__code__.co_filename == str(path)


def test_a_model_from_a_pickle_shows_the_expression_and_the_note(build: Callable):
    error = failing(pickle.loads(pickle.dumps(build(BROKEN))), X)
    assert "h * 2 + l(h) * 3" in seen(error)
    assert notes(error)[0].endswith("in node 'y' of 'model', calling l: h [2, 3] float32")


def test_every_instruction_stands_in_an_expression_of_the_file(build: Callable):
    """So that a debugger that steps through a forward never leaves the lines that say something."""
    model = build("""\
        inputs: {x: any, y: [A, B], z: {shape: [C, 2], optional: true}}
        modules: {ls: "Linear(3, 3) * 2", p: "Param(3)"}
        graph:
          a, _: ls.scan(x)
          b: [a, x]
          c: {a: ls(x) if z is None else x * C, b: "ls.map(each([x, x]))"}
        outputs: [b, {c: c, d: p + A + B}]
        """)
    lines = {position[0] for position in model.forward.__code__.co_positions()}
    assert lines == {1, 2, 5, 6, 7, 8}  # 1: the function begins
    assert [event for event in lines_run(model, X, torch.zeros(1, 1)) if event == 1] == [1]


def lines_run(model: nn.Module, *inputs: Tensor) -> list[int]:
    ran = []

    def trace(frame, event, _):
        if frame.f_code is type(model).forward.__code__:
            ran.append(frame.f_lineno)
            return trace

    sys.settrace(trace)
    try:
        model(*inputs)
    finally:
        sys.settrace(None)
    return ran


# the note


NESTED = """\
inputs: {noisy: any, clock: {shape: any, optional: true}}
blocks:
  turn:
    params: {by: 1}
    inputs: {q: any, position: any}
    graph: {angle: position * by}
    outputs: q * angle
  attend:
    inputs: {h: any}
    modules: {position: "Param(1, 5, 1)"}
    graph: {turned: "turn(h, position, by=3)"}
    outputs: turned + 1
  layer:
    inputs: {h: any, clock: {shape: any, optional: true}}
    modules: {attn: attend()}
    graph: {a: attn(h) if clock is None else attn(h + clock)}
    outputs: a
modules:
  tower: {layers: layer() * 3}
outputs:
  result: tower.layers(noisy, clock)
"""


def test_nested_blocks_show_their_chain_from_the_innermost_on(build: Callable):
    model = build(NESTED)
    model.tower.layers[1].attn.position = nn.Parameter(torch.ones(1, 4, 1))
    assert notes(failing(model, torch.zeros(2, 5, 3))) == [
        "model.yaml:8:14  in the outputs of 'turn': q [2, 5, 3] float32, angle [1, 4, 1] float32",
        "model.yaml:12:22  in node 'turned' of 'attend' (tower.layers[1].attn): "
        "h [2, 5, 3] float32, position [1, 4, 1] float32",
        "model.yaml:17:16  in node 'a' of 'layer' (tower.layers[1]), calling attn: h [2, 5, 3] float32, clock None",
        "model.yaml:22:11  in the outputs of 'model', calling tower.layers[1]: noisy [2, 5, 3] float32, clock None",
    ]


def test_a_block_called_on_its_own_is_named_from_there(build: Callable):
    layer = build(NESTED).tower.layers[2]
    found = notes(failing(layer, torch.zeros(2, 4, 3)))
    assert [re.search(r"of '(.*?)'( \(.*\))?", note).groups() for note in found] == [
        ("turn", None),
        ("attend", " (attn)"),
        ("layer", None),
    ]


VALUES = [  # (expression that fails, what its note says after the name of the node and block)
    ("x + ids", "x [2, 3] float32, ids [4] int64"),
    ("(x + n) * T + mask", "x [2, 3] float32, n 3, T 3, mask None"),
    ("x + many", "x [2, 3] float32, many [[2, 3] float32, [4] int64, None, 1, ...]"),
    ("x + named", "x [2, 3] float32, named {a: [2, 3] float32, b: ([4] int64, 2.5)}"),
    (
        "x + wte.weight + heads[1].l.weight",
        "x [2, 3] float32, wte.weight [7, 4] float32, heads[1].l.weight [2, 2] float32",
    ),
    ("ids + table[:3]", "ids [4] int64, table [5] bool"),
    ("x + other", "x [2, 3] float32, other str"),
    ("x + far", "x [2, 3] float32, far [9] float32 on meta"),
    ("x + params_go_without_saying + ids", "x [2, 3] float32, ids [4] int64"),
]


@pytest.mark.parametrize(("expression", "said"), VALUES, ids=[expression for expression, _ in VALUES])
def test_the_note_describes_each_value_that_the_node_reads(build: Callable, expression: str, said: str):
    model = build(f"""\
        params: {{params_go_without_saying: 1}}
        inputs:
          x: [B, T]
          mask: {{shape: any, optional: true}}
          ids: {{shape: any, optional: true}}
          other: {{shape: any, optional: true}}
        modules:
          wte: Embedding(7, 4)
          heads: [ReLU(), {{l: "Linear(2, 2)"}}]
          table: Buffer(ones(5, dtype=bool))
        graph:
          n: 3 if training else 4
          many: [x, ids, mask, 1, 2]
          named: {{a: x, b: "(ids, 2.5)"}}
          far: zeros(9, device='meta')
          used: "[n, many, named, far, other, wte(ids), heads[0](x), heads[1].l.bias, table, x.new_zeros(T, B)]"
          failing: >-
            {expression}
        outputs: [used, failing]
        """)
    error = failing(model, X, None, torch.arange(4), "text")
    assert notes(error) == [notes(error)[0].split(" of ")[0] + f" of 'model': {said}"]
    assert notes(error)[0].startswith("model.yaml:19:")


def test_values_that_are_read_of_inputs_tell_which_input_does_not_fit(build: Callable):
    model = build("""\
        inputs:
          x: [B, T, 3]
          y: {shape: [..., S], optional: true}
        outputs: x.sum() * B * T if y is None else y * S
        """)
    error = failing(model, X)
    assert type(error) is ValueError and "    x: [B, T, 3]\n        ^\n" in seen(error)
    assert notes(error) == ["model.yaml:3:7  in the input 'x' of 'model': x [2, 3] float32"]
    assert notes(failing(model, torch.zeros(1, 2, 3), torch.zeros(()))) == [
        "model.yaml:4:20  in the input 'y' of 'model': y [] float32"
    ]


def test_a_member_of_a_list_is_named_in_each_way_to_call_a_list(build: Callable):
    for call in ("ls(x)", "ls.scan(x)", "ls.map(x)", "ls.map(each([x, x]))"):
        model = build(f'inputs: {{x: any}}\nmodules: {{ls: ["Linear(3, 3)", "Linear(4, 4)"]}}\noutputs: "{call}"\n')
        assert notes(failing(model, X)) == [
            "model.yaml:4:11  in the outputs of 'model', calling ls[1]: x [2, 3] float32"
        ]


def test_lists_of_different_lengths_are_both_described(build: Callable):
    model = build('inputs: {x: any, cs: any}\nmodules: {ls: "Linear(3, 3) * 2"}\noutputs: ls.map(each(cs))\n')
    error = failing(model, X, [X, X, X])
    assert type(error) is ValueError
    assert "cs [[2, 3] float32, [2, 3] float32, [2, 3] float32]" in notes(error)[0]


@register("RaisesOfTestTracebacks")
class Raises(nn.Module):
    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 7:
            raise KeyError("seven")
        try:
            return self.inner(x)
        except ValueError as error:
            error.add_note("the author's own note")
            raise LookupError("another") from error


def test_a_registered_module_shows_its_python_and_then_the_line_of_the_file(build: Callable):
    error = failing(build("inputs: {x: any}\nmodules: {m: RaisesOfTestTracebacks()}\noutputs: m(x)\n"), torch.zeros(7))
    text = seen(error)
    assert type(error) is KeyError and error.args == ("seven",)
    assert text.index("    outputs: m(x)\n             ^^^^\n") < text.index('    raise KeyError("seven")\n')
    assert notes(error) == ["model.yaml:4:10  in the outputs of 'model', calling m: x [7] float32"]


def test_a_block_inside_a_module_of_python_is_named_by_its_whole_path(build: Callable):
    model = build("""\
        inputs: {x: any}
        blocks:
          inner: {inputs: {x: [A, B, C]}, modules: {r: ReLU()}, outputs: r(x) * A * C}
        modules: {m: RaisesOfTestTracebacks(inner())}
        outputs: m(x)
        """)
    error = failing(model, X)
    assert type(error) is LookupError
    assert notes(error) == ["model.yaml:6:10  in the outputs of 'model', calling m: x [2, 3] float32"]
    cause = error.__cause__
    assert type(cause) is ValueError
    assert notes(cause) == [
        "model.yaml:4:24  in the input 'x' of 'inner' (m.inner): x [2, 3] float32",
        "the author's own note",
    ]


WRONG_CALLS = [  # (arguments, by name, what Python says)
    ((), {}, "missing 1 required positional argument: 'x'"),
    ((X, X, X, X), {}, "takes from 2 to 4 positional arguments but 5 were given"),
    ((X,), {"maks": X}, "got an unexpected keyword argument 'maks'"),
    ((X,), {"x": X}, "got multiple values for argument 'x'"),
]


@pytest.mark.parametrize(("given", "named", "said"), WRONG_CALLS)
def test_a_call_that_does_not_bind_tells_the_inputs(build: Callable, given: tuple, named: dict, said: str):
    model = build("""\
        params: {dim: 3}
        inputs: {x: [..., T + 1, dim], mask: {shape: [2, T], optional: true}, ids: {shape: any, optional: true}}
        outputs: [x, mask, ids]
        """)
    error = failing(model, *given, **named)
    assert type(error) is TypeError and said in str(error)
    assert notes(error) == [
        "model.yaml:3:10  the inputs of 'model' are x [..., T + 1, dim], mask [2, T] (optional), ids any (optional)"
    ]


def test_a_hook_that_fails_adds_nothing_but_what_is_around_it(build: Callable):
    def hook(*_: object) -> None:
        raise TypeError("of the hook")

    model = build("inputs: {x: any}\nmodules: {m: ReLU()}\noutputs: m(x)\n")
    handle = model.register_forward_hook(hook)
    assert notes(failing(model, X)) == []
    handle.remove()
    model.m.register_forward_hook(hook)
    assert notes(failing(model, X)) == ["model.yaml:4:10  in the outputs of 'model', calling m: x [2, 3] float32"]


def test_what_is_no_exception_passes_untouched(build: Callable):
    @register.op("interrupt_of_test_tracebacks")
    def interrupt(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        build("inputs: {x: any}\noutputs: interrupt_of_test_tracebacks(x)\n")(X)
    assert not hasattr(caught.value, "__notes__")


def test_the_end_of_a_recomputation_is_no_failure(build: Callable, monkeypatch: pytest.MonkeyPatch):
    """Checkpointing stops each recomputation by an exception: to explain that would cost time in every step."""
    explained = []
    monkeypatch.setattr(failure, "_add_notes", lambda error, _: explained.append(error))
    model = build('inputs: {x: any}\nmodules: {a: "Linear(3, 3)"}\ngraph: {h: sigmoid(a(x))}\noutputs: h * 2 + 1\n')
    checkpoint(model, X.clone().requires_grad_(), use_reentrant=False).sum().backward()
    assert explained == []
    assert failing(model, torch.zeros(4)) in explained


def test_a_model_with_an_open_tap_fails_as_without(build: Callable):
    model = build(NESTED)
    without = notes(failing(model, torch.zeros(2, 4, 3)))
    with model.tap("tower.layers[*].attn.turned", "tower.layers[0].a"):
        assert notes(failing(model, torch.zeros(2, 4, 3))) == without
    assert len(without) == 4


def test_nothing_of_a_failure_is_kept(build: Callable):
    model, x = build(NESTED), torch.zeros(2, 4, 3)
    text = seen(failing(model, x))
    assert "tower.layers[0].attn" in text
    held = weakref.ref(x)
    gc.disable()  # not even in a cycle
    try:
        del x
        assert held() is None
    finally:
        gc.enable()


def test_a_fault_of_the_note_does_not_hide_the_failure(build: Callable):
    class Strange:
        @property
        def __class__(self) -> type:
            raise OSError("strange")

    model = build("inputs: {x: any}\noutputs: x + 1\n")
    error = failing(model, Strange())
    assert type(error) is TypeError and "unsupported operand" in str(error)
    assert notes(error) == ["(where in the model file this was cannot be told: OSError: strange)"]


# the same under tools


COMPILED = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "fullgraph": lambda model: torch.compile(model, backend="eager", fullgraph=True),
    "Module.compile": lambda model: (model.compile(backend="eager"), model)[1],
    "within another module": lambda model: torch.compile(nn.Sequential(model), backend="eager"),
}
compiled = pytest.mark.parametrize("compiled", COMPILED.values(), ids=COMPILED)


@compiled
def test_a_failure_while_tracing_shows_line_caret_and_note(build: Callable, tmp_path: Path, compiled: Callable):
    """The caret is in the note: the stacks that PyTorch 2.10 keeps of the code it traces hold lines, and no columns."""
    torch._dynamo.reset()
    error = failing(compiled(build(BROKEN)), X)
    assert f'  File "{tmp_path}/model.yaml", line 8, in forward\n    l(h) * 3\n' in str(error)
    note = "model.yaml:8:5  in node 'y' of 'model', calling l: h [2, 3] float32"
    assert notes(error) == [f"{note}\n    l(h) * 3\n    ^^^^"]


@compiled
def test_a_failure_while_tracing_shows_the_chain_of_blocks(build: Callable, compiled: Callable):
    """As without compilation: the notes are the same, with a caret each."""
    torch._dynamo.reset()
    model, x = build(NESTED), torch.zeros(2, 4, 3)
    plain = notes(failing(model, x))
    told = notes(failing(compiled(model), x))
    assert [note.split("\n")[0] for note in told] == plain and len(plain) == 4
    assert all(note.endswith("^") for note in told)


def test_the_note_on_a_failure_while_tracing_tells_values_of_every_kind(build: Callable):
    """Tensors without data, constants, lists, dicts, and arguments that the trace has not come to."""
    torch._dynamo.reset()
    model = build("""\
        inputs: {x: any, several: any, named: any, scale: any, unread: any}
        graph:
          both: ['several[0]', scale]
        outputs: x @ several[1] + both[1] + named['a'] + unread
        """)
    told = failing(
        torch.compile(model, backend="eager"), X, [X, torch.zeros(5)], {"a": 2}, 3, torch.zeros(1, dtype=torch.int64)
    ).__notes__[0]
    assert "x [2, 3] float32" in told and "several [[2, 3] float32, [5] float32]" in told
    assert "named {a: 2}" in told and "unread [1] int64" in told


def test_a_failure_while_tracing_arises_outside_of_the_model(build: Callable):
    """Nothing of the model file is told of it, and nothing hides it."""

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build("inputs: {x: any}\noutputs: x * 2\n")

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) @ x

    torch._dynamo.reset()
    error = failing(torch.compile(Behind(), backend="eager"), X)
    assert "a and b must have same reduction dim" in str(error) and notes(error) == []


def test_a_trace_that_succeeds_adds_nothing_to_an_error_that_is_being_handled(build: Callable):
    torch._dynamo.reset()
    try:
        torch.compile(nn.Sequential(build(BROKEN)), backend="eager")(X)
    except RuntimeError as error:
        told = notes(error)
        torch.compile(nn.Sequential(build("inputs: {x: any}\noutputs: x * 2\n")), backend="eager")(X)
        assert notes(error) == told and len(told) == 1


def test_a_fault_of_the_note_does_not_hide_the_failure_of_a_trace(build: Callable, monkeypatch: pytest.MonkeyPatch):
    def strange(*_: object) -> None:
        raise OSError("strange")

    monkeypatch.setattr(failure, "frames", strange)
    torch._dynamo.reset()
    error = failing(torch.compile(nn.Sequential(build(BROKEN)), backend="eager"), X)
    assert "a and b must have same reduction dim" in str(error)
    assert notes(error) == ["(where in the model file this was cannot be told: OSError: strange)"]


def test_where_pytorch_tells_nobody_that_a_trace_ends_nothing_is_lost(monkeypatch: pytest.MonkeyPatch):
    """It is a private part of PyTorch that may move."""
    monkeypatch.setattr(symbolic_convert.InstructionTranslator, "current_tx", lambda: object())
    assert failure.trace_begins() is False


def test_a_failure_in_export_shows_line_caret_and_note(build: Callable, tmp_path: Path):
    error = failing(lambda: torch.export.export(build(BROKEN), (X,), strict=False))
    assert f'  File "{tmp_path}/model.yaml", line 8, in forward\n    l(h) * 3\n    ^^^^\n' in seen(error)
    assert notes(error) == ["model.yaml:8:5  in node 'y' of 'model', calling l: h [2, 3] float32"]


@pytest.mark.parametrize("around", [lambda model: model, nn.Sequential], ids=["alone", "within another module"])
def test_a_failure_in_strict_export_shows_line_caret_and_note(build: Callable, around: Callable):
    error = failing(lambda: torch.export.export(around(build(BROKEN)), (X,), strict=True))
    note = "model.yaml:8:5  in node 'y' of 'model', calling l: h [2, 3] float32"
    assert notes(error) == [f"{note}\n    l(h) * 3\n    ^^^^"]


def test_a_graph_break_names_the_line_of_the_file(build: Callable, tmp_path: Path):
    @register.op("break_of_test_tracebacks")
    def graph_break(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x

    torch._dynamo.reset()
    model = build("inputs: {x: any}\ngraph:\n  h: x + 1\noutputs: break_of_test_tracebacks(h) * 2\n")
    error = failing(torch.compile(model, backend="eager", fullgraph=True), X)
    line = "    outputs: break_of_test_tracebacks(h) * 2\n"
    assert f'File "{tmp_path}/model.yaml", line 5, in forward\n{line}' in str(error)
    caret = " " * 13 + "^" * 27
    assert notes(error) == [f"model.yaml:5:10  in the outputs of 'model': h [2, 3] float32\n{line}{caret}"]


def test_what_a_module_raises_under_torch_compile_comes_out_as_it_is(build: Callable):
    torch._dynamo.reset()
    model = build("inputs: {x: any}\nmodules: {m: RaisesOfTestTracebacks()}\noutputs: m(x)\n")
    error = failing(torch.compile(model, backend="eager"), torch.zeros(7))
    assert type(error) is KeyError
    assert notes(error) == ["model.yaml:4:10  in the outputs of 'model', calling m: x [7] float32"]


WHOLE = {
    "fullgraph": lambda model: torch.compile(model, backend="eager", fullgraph=True),
    "within another module": lambda model: torch.compile(nn.Sequential(model), backend="eager", fullgraph=True),
    "strict export": lambda model: partial(torch.export.export, model, strict=True),
}


@pytest.mark.parametrize("whole", WHOLE.values(), ids=WHOLE)
def test_what_a_module_raises_where_all_becomes_one_graph_is_told_with_every_line(
    build: Callable, tmp_path: Path, whole: Callable
):
    torch._dynamo.reset()
    model = build("""\
        inputs: {x: any}
        blocks: {inner: {inputs: {h: any}, modules: {m: RaisesOfTestTracebacks()}, outputs: m(h) * 2}}
        modules: {i: inner()}
        outputs: i(x) + 1
        """)
    seven = torch.zeros(7)
    error = failing(whole(model), *([(seven,)] if whole is WHOLE["strict export"] else [seven]))
    assert f'File "{tmp_path}/model.yaml", line 5, in forward\n    outputs: i(x) + 1\n' in str(error)
    assert [note.split("\n")[0] for note in notes(error)] == [
        "model.yaml:3:85  in the outputs of 'inner' (i), calling m: h [7] float32",
        "model.yaml:5:10  in the outputs of 'model', calling i: x [7] float32",
    ]


def test_wrong_arguments_where_all_becomes_one_graph_are_told_with_the_inputs(build: Callable):
    torch._dynamo.reset()
    error = failing(torch.compile(build("inputs: {x: any}\noutputs: x + 1\n"), backend="eager", fullgraph=True))
    assert notes(error) == ["model.yaml:2:10  the inputs of 'model' are x any"]


def test_a_failure_of_compiled_code_at_run_time_is_told_with_its_block(build: Callable):
    """What PyTorch has compiled keeps no places."""
    torch._dynamo.reset()
    model = build("""\
        inputs: {x: any}
        blocks: {inner: {inputs: {h: any}, modules: {m: 'Embedding(4, 2)'}, outputs: m(h) * 2}}
        modules: {i: inner()}
        outputs: i(x) + 1
        """)
    model.i.compile(backend="eager")
    model(torch.tensor([1]))
    assert notes(failing(model, torch.tensor([7]))) == [
        "model.yaml:3:17  in 'inner' (i), in code that PyTorch has compiled",
        "model.yaml:5:10  in the outputs of 'model', calling i: x [1] int64",
    ]


def test_an_error_that_several_calls_raise_has_each_note_once(build: Callable):
    @register.op("same_of_test_tracebacks")
    def same(x: Tensor) -> Tensor:
        raise SAME

    model = build("inputs: {x: any}\noutputs: same_of_test_tracebacks(x)\n")
    assert (
        notes(failing(model, X))
        == notes(failing(model, X))
        == ["model.yaml:3:10  in the outputs of 'model': x [2, 3] float32"]
    )


# in processes of their own


def run_python(arguments: list[str], folder: Path, commands: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, input=commands, capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


SCRIPT = """\
import torch
from model_constructor import build_model
model = build_model("model.yaml")
model(torch.zeros(2, 3))
"""


def test_a_script_that_fails_prints_the_line_and_the_note(write: Callable, tmp_path: Path):
    write(BROKEN)
    (tmp_path / "script.py").write_text(SCRIPT)
    text = run_python(["script.py"], tmp_path)
    assert '  File "model.yaml", line 8, in forward\n    l(h) * 3\n    ^^^^\n' in text
    assert text.endswith("model.yaml:8:5  in node 'y' of 'model', calling l: h [2, 3] float32\n")


def test_without_columns_the_line_is_shown_and_the_note_says_why_it_is_short(write: Callable, tmp_path: Path):
    write(BROKEN)
    (tmp_path / "script.py").write_text(SCRIPT)
    text = run_python(["-X", "no_debug_ranges", "script.py"], tmp_path)
    assert '  File "model.yaml", line 8, in forward\n    l(h) * 3\n' in text
    assert text.endswith("told: LookupError: Python was told to keep no columns (-X no_debug_ranges))\n")


def test_the_debugger_stops_at_lines_of_the_file_and_steps_through_them(write: Callable, tmp_path: Path):
    write(BROKEN)
    (tmp_path / "script.py").write_text(SCRIPT)
    commands = ["break model.yaml:5", "continue", "next", "p h.shape", "where", "next", "list", "quit"]
    text = run_python(["-m", "pdb", "script.py"], tmp_path, "\n".join([*commands, ""]))
    assert "model.yaml(5)forward()\n-> h: x + 1\n" in text
    assert "model.yaml(7)forward()\n-> h * 2 +\n" in text and "torch.Size([2, 3])" in text
    assert "model.yaml(8)forward()\n-> l(h) * 3\n" in text
    assert re.search(r"  8  ->\s+l\(h\) \* 3\n  9 \s+outputs: y\n", text)


def test_the_debugger_shows_the_line_after_a_failure(write: Callable, tmp_path: Path):
    write(BROKEN)
    (tmp_path / "script.py").write_text(SCRIPT)
    commands = ["up", "up", "up", "list", "p h.shape", "quit"]
    text = run_python(["-m", "pdb", "-c", "continue", "script.py"], tmp_path, "\n".join([*commands, ""]))
    assert "model.yaml(8)forward()\n-> l(h) * 3\n" in text
    assert re.search(r"  8  ->\s+l\(h\) \* 3\n", text) and "torch.Size([2, 3])" in text
