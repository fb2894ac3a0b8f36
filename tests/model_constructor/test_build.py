"""build_model: constructors, registered types, blocks from files, what a file may import, and hostile files."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model_constructor import ConfigError, Registry, build_model, register


def built(build: Callable, constructor: str, params: str = "{}", **arguments) -> nn.Module:
    """The module of one constructor expression."""
    text = f"params: {params}\ninputs: {{x: any}}\nmodules:\n  m: {constructor}\noutputs: m(x)\n"
    return build(text, **arguments).m


CONSTRUCTORS = [
    ("Linear(3, 4, bias=False)", nn.Linear(3, 4, bias=False)),
    ("Linear(2 * dim, dim // 2)", nn.Linear(16, 4)),
    ("Conv2d(3, 8, (3, 5), padding=(1, 2), stride=2)", nn.Conv2d(3, 8, (3, 5), padding=(1, 2), stride=2)),
    ("LayerNorm([dim, 4], elementwise_affine=False)", nn.LayerNorm([8, 4], elementwise_affine=False)),
    (
        "Linear(3, 4) >> GELU(approximate='tanh') >> Linear(4, 2)",
        nn.Sequential(nn.Linear(3, 4), nn.GELU("tanh"), nn.Linear(4, 2)),
    ),
    ("Linear(3, 3) * 3", nn.ModuleList(nn.Linear(3, 3) for _ in range(3))),
    ("Linear(index + 1, index + 2) * 3", nn.ModuleList(nn.Linear(i + 1, i + 2) for i in range(3))),
    ("(Linear(3, 3) >> ReLU()) * 2", nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(2))),
    ("Linear(3, 3) * 0", nn.ModuleList()),
    ('"[Linear(3, 3), ReLU()]"', nn.ModuleList([nn.Linear(3, 3), nn.ReLU()])),
    (
        "\n    - Linear(3, 3)\n    - ReLU() >> Tanh()",
        nn.ModuleList([nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.Tanh())]),
    ),
    ("Linear(3, 3) if dim > 4 else ReLU()", nn.Linear(3, 3)),
    ("Linear(3, 3) if dim < 4 else ReLU()", nn.ReLU()),
    ("(Linear(3, 3) if index % 2 == 0 else ReLU()) * 3", nn.ModuleList([nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)])),
    ("Sequential(Linear(3, 4), ReLU())", nn.Sequential(nn.Linear(3, 4), nn.ReLU())),
    ("Linear(hidden or 5, 2)", nn.Linear(5, 2)),
    ("Linear(3, 3, dtype=float64)", nn.Linear(3, 3, dtype=torch.float64)),
    ("Dropout(0.25)", nn.Dropout(0.25)),
]


@pytest.mark.parametrize(("text", "expected"), CONSTRUCTORS, ids=[text for text, _ in CONSTRUCTORS])
def test_a_constructor_builds_what_python_builds(build: Callable, text: str, expected: nn.Module):
    module = built(build, text, "{dim: 8, hidden: null}")
    assert repr(module) == repr(expected)
    shapes = {name: (value.shape, value.dtype) for name, value in expected.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in module.state_dict().items()} == shapes


def test_a_list_of_lists_counts_its_innermost_repeat(build: Callable):
    model = build("""\
        inputs: {x: any}
        modules:
          grid: (Linear(index + 1, 4) * 2) * 3
        outputs: grid[2][1](x)
        """)
    expected = nn.ModuleList(nn.ModuleList([nn.Linear(1, 4), nn.Linear(2, 4)]) for _ in range(3))
    assert repr(model.grid) == repr(expected)
    x = torch.randn(5, 2)
    assert torch.equal(model(x), model.grid[2][1](x))


def test_members_of_a_repeat_are_modules_of_their_own(build: Callable):
    first, second = built(build, "Linear(3, 3) * 2")
    assert first.weight is not second.weight and not torch.equal(first.weight, second.weight)


def test_a_constructor_may_hold_constructors(build: Callable):
    module = built(build, "MLP(4, activation=SiLU())")
    assert isinstance(module.activation, nn.SiLU)


def test_a_namespace_only_holds_its_entries(build: Callable):
    model = build("""\
        inputs: {x: [B, 3]}
        modules:
          text_model:
            encoder:
              layers: Linear(3, 3) * 2
              scale: Param(3, init=ones)
        outputs: text_model.encoder.layers(x) * text_model.encoder.scale
        """)
    names = [
        "text_model.encoder.scale",
        *(f"text_model.encoder.layers.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")),
    ]
    assert set(model.state_dict()) == set(names)
    x = torch.randn(2, 3)
    torch.testing.assert_close(model(x), model.text_model.encoder.layers[1](model.text_model.encoder.layers[0](x)))


# Param and Buffer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Param(2, 3)", torch.zeros(2, 3)),
        ("Param()", torch.zeros(())),
        ("Param(dim, init=ones)", torch.ones(8)),
        ("Param(2, init=constant(0.5))", torch.full((2,), 0.5)),
        ("Param([1.0, 2.5])", torch.tensor([1.0, 2.5])),
        ("Param([[1.0, 2.0], [3.0, 4.0]])", torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
        ("Param([1, 2, 3])", torch.tensor([1.0, 2.0, 3.0])),
        ("Param(2.5)", torch.tensor(2.5)),
        ("Param(ones(2, 2) * 3)", torch.full((2, 2), 3.0)),
        ("Buffer(3)", torch.zeros(3)),
        ("Buffer(ones(dim, dim, dtype=bool).tril(), persistent=False)", torch.ones(8, 8).tril().bool()),
        ("Buffer(arange(0, dim, 2))", torch.arange(0, 8, 2)),
        ("Buffer(exp(-arange(4) / dim))", torch.exp(-torch.arange(4) / 8)),
        ("Param(2) if dim > 4 else Buffer(3)", torch.zeros(2)),
    ],
)
def test_a_param_or_buffer_is_sizes_or_a_value(build: Callable, text: str, expected: torch.Tensor):
    model = build(f"params: {{dim: 8}}\ninputs: {{x: any}}\nmodules:\n  m: {text}\noutputs: m\n")
    result = model(0)
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)
    assert isinstance(result, nn.Parameter) == text.startswith("Param")


def test_gradient_and_persistence_are_as_asked(build: Callable):
    model = build("""\
        inputs: {x: any}
        modules:
          free: Param(2)
          frozen: Param(2, requires_grad=False)
          kept: Buffer(2)
          left: Buffer(2, persistent=False)
        outputs: free + frozen + kept + left
        """)
    assert model.free.requires_grad and not model.frozen.requires_grad
    assert set(model.state_dict()) == {"free", "frozen", "kept"}


def test_an_initialiser_draws_as_torchs_does(build: Callable):
    model = build("inputs: {x: any}\nmodules: {p: 'Param(50, 50, init=normal(mean=3.0, std=0.1))'}\noutputs: p\n")
    assert abs(model.p.mean() - 3) < 0.05 and abs(model.p.std() - 0.1) < 0.02


CONSTRUCTOR_SLIPS = [  # (constructor, what the caret is under, part of what is said)
    ("Linear(3, 3, bais=False)", "bais=False", "did you mean 'bias'?"),
    ("Linear(3)", "Linear(3)", "out_features"),
    ("Linear(3, 3, True, None, None, 6)", "Linear(3, 3, True, None, None, 6)", "too many"),
    ("Linear(3, -3)", "Linear(3, -3)", "cannot be built"),
    ("Linear('a', 3)", "Linear('a', 3)", "cannot be built"),
    ("Attention(8, heads=3)", "Attention(8, heads=3)", "not a multiple"),
    ("Linear(3, 3) * -1", "-1", "repeat count"),
    ("Linear(3, 3) * 2.0", "2.0", "repeat count"),
    ("3 * Linear(3, 3)", "3 * Linear(3, 3)", "Type(...) * n"),
    ("Linear(3, 3) >> Bilinear(3, 3, 3)", "Bilinear(3, 3, 3)", "one value"),
    ("both() >> Linear(3, 3)", "both()", "one value"),
    ("Identity() >> (both() if dim else ReLU())", "both() if dim else ReLU()", "one value"),
    ("Linear(3, 3) * True", "True", "repeat count"),
    ("Linear(3, 3) * 10 ** 6", "10 ** 6", "repeat count"),
    ("Linear(3, 1 / 0)", "1 / 0", "ZeroDivisionError"),
    ("Linear(3, dimm)", "dimm", "'dim'"),
    ("Linear(index, 3)", "index", "index"),
    ("3 + 4", "3 + 4", "constructor"),
    ("dim", "dim", "constructor"),
    ("Linear(3, 3) + ReLU()", "Linear(3, 3) + ReLU()", "constructor"),
    ("relu(3)", "relu(3)", "no module"),
    ("ones(3)", "ones(3)", "no module"),
    ("Linear(3, 3) >> 3", "3", "constructor"),
    ("Linear(3, 3) >> ReLU() * 2", "ReLU() * 2", "chain"),
    ("Linear(**params)", "params", "block"),
    ("inner(3)", "inner(3)", "keyword"),
    ("inner(dim=3, width=2)", "2", "no param 'width'"),
    ("inner()", "inner()", "needs the param 'dim'"),
    ("inner(dim='a')", "'a'", "integer"),
    ("inner(**dim)", "dim", "**params"),
    ("ModuleList(Linear(3, 3))", "ModuleList", "ModuleList"),
    ("Modul()", "Modul", "Modul"),
    ("Param(-3)", "Param(-3)", "cannot be built"),
    ("Param(10 ** 30)", "Param(10 ** 30)", "cannot be built"),
    ("Param([[1.0], 2.0])", "Param([[1.0], 2.0])", "cannot be built"),
    ("Param('a')", "Param('a')", "sizes"),
    ("Param(2, 2.5)", "Param(2, 2.5)", "sizes"),
    ("Param(2, init=onse)", "onse", "did you mean 'ones'?"),
    ("Param(2, init=xavier_uniform)", "xavier_uniform", "cannot fill"),
    ("Param(2, init=constant(v=1))", "v=1", "known here: val"),
    ("Param(2, init=constant('a'))", "constant('a')", "cannot fill"),
    ("Param([1.0], init=ones)", "ones", "already"),
    ("Param(2, persistent=False)", "False", "no argument 'persistent'"),
    ("Buffer(2, requires_grad=False)", "False", "no argument 'requires_grad'"),
    ("Param(2) * 2", "Param(2)", "not a module"),
    ("Param(2) >> ReLU()", "Param(2)", "not a module"),
    ("NumberOfTestBuild() * 2", "NumberOfTestBuild()", "no module"),
    ("NumberOfTestBuild()", "NumberOfTestBuild()", "no module"),
    ("FailsOfTestBuild()", "FailsOfTestBuild()", "out of luck"),
]


ONE_TENSOR = [
    text
    for text, *_ in CONSTRUCTOR_SLIPS
    if text.startswith(("Param(", "Buffer(")) and text[-1] == ")" and ">>" not in text
]


@register("NumberOfTestBuild")
def number() -> int:
    return 3


@register("FailsOfTestBuild")
class Fails(nn.Module):
    def __init__(self) -> None:
        raise OSError("out of luck")


@pytest.mark.parametrize(("text", "marked", "said"), CONSTRUCTOR_SLIPS, ids=[text for text, *_ in CONSTRUCTOR_SLIPS])
def test_a_slip_in_a_constructor_is_told_under_a_caret(problems: Callable, text: str, marked: str, said: str):
    file = f"""\
        params: {{dim: 8}}
        inputs: {{x: any}}
        blocks:
          inner: {{params: {{dim: int}}, inputs: {{x: any}}, modules: {{l: "Linear(dim, dim)"}}, outputs: l(x)}}
          both: {{inputs: {{a: any, b: any}}, modules: {{l: "Linear(3, 3)"}}, outputs: l(a) + b}}
        modules:
          m: >-
            {text}
        outputs: {"m" if text in ONE_TENSOR else "m(x)"}
        """
    found = problems(file)
    problem = next((p for p in found if said in f"{p.message} {p.hint}"), found[0])
    assert said in f"{problem.message} {problem.hint}"
    place = problem.place
    assert (place.line, place.text[place.column - 1 : place.column - 1 + place.length]) == (9, marked)


WRONG_PARTS = [
    "[Linear(3), ReLU(), Linear(4)]",
    "Linear(3) >> ReLU() >> Linear(4)",
    "Sequential(Linear(3), ReLU(), Linear(4))",
    "{a: Linear(3), b: ReLU(), c: Linear(4)}",
    "TransformerEncoder(Linear(3), 2, norm=Linear(4))",
]


@pytest.mark.parametrize("parts", WRONG_PARTS)
def test_all_wrong_entries_of_a_list_chain_namespace_or_call_are_told(problems: Callable, parts: str):
    found = problems(
        f"inputs: {{x: any}}\nmodules:\n  m: {parts}\noutputs: m.map(m)\n".replace(
            "m.map(m)", "[m.a(x), m.b(x), m.c(x)]" if "a:" in parts else "m(x)"
        )
    )
    place = [one.place for one in found]
    assert [p.text[p.column - 1 : p.column - 1 + p.length] for p in place] == ["Linear(3)", "Linear(4)"]


@pytest.mark.parametrize(("flag", "kind"), [(True, nn.LayerNorm), (False, type(None))])
def test_an_argument_may_be_a_module_or_none(build: Callable, flag: bool, kind: type):
    model = build(
        """\
        params: {flag: true}
        inputs: {x: [B, T, 8]}
        modules:
          e: "TransformerEncoder(TransformerEncoderLayer(8, 2, batch_first=True), 1, norm=LayerNorm(8) if flag else None)"
        outputs: e(x)
        """,
        params={"flag": flag},
    )
    assert type(model.e.norm) is kind
    assert len(model.architecture_hash) == 64


def test_all_slips_of_all_constructors_are_told_together(problems: Callable):
    found = problems("""\
        inputs: {x: any}
        modules:
          a: Linear(3, 3, bais=False)
          b: LayerNorm(3, epps=1)
          c: {d: "Linear(3)", e: ["Linear(4)"]}
        outputs: b(a(x)) + c.d(x) + c.e(x)
        """)
    assert {problem.place.line for problem in found} == {4, 5, 6}
    assert [problem.place.line for problem in found] == sorted(problem.place.line for problem in found)


# blocks


def test_params_reach_a_block_by_keyword_or_all_together_and_what_is_written_out_wins(build: Callable):
    model = build("""\
        params: {dim: 3, heads: 4, other: 5}
        inputs: {x: any}
        blocks:
          inner:
            params: {dim: int, heads: 1, bias: true}
            inputs: {x: any}
            modules: {l: "Linear(dim, heads, bias=bias)"}
            outputs: l(x)
        modules:
          a: inner(dim=7)
          b: inner(**params)
          c: inner(**params, heads=9)
          d: inner(heads=9, **params)
        outputs: [a(x), b(x), c(x), d(x)]
        """)
    sizes = [(m.l.in_features, m.l.out_features) for m in (model.a, model.b, model.c, model.d)]
    assert sizes == [(7, 1), (3, 4), (3, 9), (3, 9)]


def test_a_block_uses_the_blocks_of_the_levels_around_it_and_its_own_first(build: Callable):
    model = build("""\
        inputs: {x: any}
        blocks:
          leaf: {inputs: {x: any}, outputs: x + 1}
          outer:
            inputs: {x: any}
            blocks:
              own: {inputs: {x: any}, outputs: leaf(x) * 10}
            outputs: own(x)
          other:
            inputs: {x: any}
            blocks:
              leaf: {inputs: {x: any}, outputs: x + 100}
            outputs: leaf(x)
        outputs: [outer(x), other(x), leaf(x)]
        """)
    assert model(1) == (20, 101, 2)


def test_a_block_comes_from_a_file_beside_it_with_a_scope_of_its_own(write: Callable, tmp_path: Path):
    (tmp_path / "parts").mkdir()
    write("inputs: {x: any}\nparams: {by: 2}\noutputs: x * by\n", "parts/leaf.yaml")
    write("inputs: {x: any}\nblocks: {leaf: leaf.yaml}\noutputs: leaf(x, by=5) + 1\n", "parts/middle.yaml")
    model = build_model(
        write("inputs: {x: any}\nblocks: {middle: parts/middle.yaml}\nmodules: {m: middle()}\noutputs: m(x)\n")
    )
    assert model(1) == 6
    text = "inputs: {x: any}\nblocks: {leaf: parts/leaf.yaml, middle: {inputs: {x: any}, outputs: leaf(x)}}\noutputs: middle(x)\n"
    assert build_model(write(text))(1) == 2


def test_what_is_wrong_in_a_blocks_file_is_told_with_that_file(write: Callable, tmp_path: Path):
    write("inputs: {x: any}\noutputs: y\n", "inner.yaml")
    with pytest.raises(ConfigError) as caught:
        build_model(write("inputs: {x: any}\nblocks: {inner: inner.yaml}\noutputs: inner(x) + z\n"))
    assert [(Path(p.place.file).name, p.place.line) for p in caught.value.problems] == [
        ("inner.yaml", 3),
        ("model.yaml", 4),
    ]


@pytest.mark.parametrize(
    "path", ["inner.yml", "no/such/file.yaml", "", ".", "../", "x" * 5000, '"a\\0.yaml"', "/dev/null"]
)
def test_a_blocks_file_that_is_not_there_is_told(problems: Callable, path: str):
    assert problems(f"inputs: {{x: any}}\nblocks:\n  inner: {path}\noutputs: inner(x)\n")


def test_files_that_contain_each_other_are_told(write: Callable):
    write("inputs: {x: any}\nblocks: {b: b.yaml}\nmodules: {m: b()}\noutputs: m(x)\n", "a.yaml")
    write("inputs: {x: any}\nblocks: {a: a.yaml}\nmodules: {m: a()}\noutputs: m(x)\n", "b.yaml")
    with pytest.raises(ConfigError, match="contains itself"):
        build_model(write("inputs: {x: any}\nblocks: {a: a.yaml}\nmodules: {m: a()}\noutputs: m(x)\n"))


def test_a_file_that_contains_itself_is_told(write: Callable):
    with pytest.raises(ConfigError, match="contains itself"):
        build_model(write("inputs: {x: any}\nblocks: {a: model.yaml}\nmodules: {m: a()}\noutputs: m(x)\n"))


def test_the_models_class_has_the_files_name(write: Callable):
    text = "inputs: {x: any}\noutputs: x\n"
    assert type(build_model(write(text, "decoder.yaml"))).__name__ == "decoder"
    assert type(build_model(write(text, "2-layer net.yaml"))).__name__.isidentifier()


def test_a_path_may_be_text_and_a_document_plain_values(write: Callable):
    path = write("inputs: {x: any}\noutputs: x + 1\n")
    assert (
        build_model(str(path))(1)
        == build_model({"schema_version": 2, "inputs": {"x": "any"}, "outputs": "x + 1"})(1)
        == 2
    )


# types and ops of the user, and the files that bring them


def test_a_registered_type_and_op_are_used_by_name(build: Callable):
    @register("TimesOfTestBuild")
    class Times(nn.Module):
        def __init__(self, by: float = 2.0) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.by

    @register.op("plus_of_test_build")
    def plus(x: torch.Tensor, by: float) -> torch.Tensor:
        return x + by

    model = build("inputs: {x: any}\nmodules: {t: TimesOfTestBuild(by=3)}\noutputs: plus_of_test_build(t(x), by=1)\n")
    assert model(2) == 7
    assert "plus_of_test_build(self.t(x), by=1)" in model.code


def test_a_registry_gives_what_was_entered_and_names_what_it_has():
    registry = Registry("loss")

    @registry.register("mse")
    def mse() -> None: ...

    assert registry.get("mse") is mse and registry.has("mse") and not registry.has("mae")
    registry.register("huber")(dict)
    assert registry.keys() == ["huber", "mse"]
    with pytest.raises(ConfigError, match="no loss is called 'mes'") as caught:
        registry.get("mes")
    assert "did you mean 'mse'?" in caught.value.problems[0].hint


def test_a_name_registered_twice_names_both_places():
    registry = Registry("loss")

    @registry.register("mse")
    def first() -> None: ...

    with pytest.raises(ConfigError) as caught:

        @registry.register("mse")
        def second() -> None: ...

    hint = caught.value.problems[0].hint
    lines = [line for line in hint.splitlines() if "test_build.py:" in line]
    assert len(lines) == 2 and "first" in lines[0] and "second" in lines[1]
    assert registry.get("mse") is first


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package on the path that registers a type and leaves a trace when it is imported."""
    name = f"package_{tmp_path.name}".replace("-", "_")
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "parts.py").write_text(
        "from torch import nn\nfrom model_constructor import register\n"
        f"@register('{name}_Part')\nclass Part(nn.Module):\n    def forward(self, x):\n        return -x\n"
    )
    (tmp_path / name / "broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def importing(name: str, module: str = "parts") -> str:
    return f"imports: [{name}.{module}]\ninputs: {{x: any}}\nmodules: {{p: {name}_Part()}}\noutputs: p(x)\n"


def test_a_file_imports_what_the_caller_allows(write: Callable, package: str):
    model = build_model(write(importing(package)), allow_imports=(package,))
    assert model(2) == -2
    assert build_model(model.spec, allow_imports=(package,))(2) == -2


def test_a_file_imports_nothing_else(problems: Callable, package: str):
    for allowed in [(), ("other",), (package[:-1],), (f"{package}.other",)]:
        found = problems(importing(package), allow_imports=allowed)
        assert "not allowed" in found[0].message and found[0].place.line == 2
        assert f"{package}.parts" not in sys.modules
    with pytest.raises(ConfigError, match="not allowed"):
        build_model({"schema_version": 2, "imports": ["os"], "outputs": "1"})


def test_the_file_of_a_block_imports_nothing_else_either(write: Callable, package: str):
    write(importing(package), "inner.yaml")
    outer = write("inputs: {x: any}\nblocks: {inner: inner.yaml}\nmodules: {i: inner()}\noutputs: i(x)\n")
    with pytest.raises(ConfigError, match="not allowed"):
        build_model(outer)
    model = build_model(outer, allow_imports=(package,))
    assert model(2) == -2
    assert build_model(model.spec, allow_imports=(package,))(2) == -2


def test_a_model_with_imports_pickles_where_they_are_already_made(write: Callable, package: str):
    import copy
    import pickle

    model = build_model(write(importing(package)), allow_imports=(package,))
    assert copy.deepcopy(model)(2) == -2
    assert pickle.loads(pickle.dumps(model))(2) == -2


def test_an_import_that_fails_is_told_where_it_stands(problems: Callable, package: str):
    assert "no_such_module_at_all" in problems(importing(package, "broken"), allow_imports=(package,))[0].message
    assert "cannot be imported" in problems(importing(package, "absent"), allow_imports=(package,))[0].message
    for text in ["imports: os\n", "imports: [[a]]\n", "imports: {a: b}\n", "imports: ['']\n", "imports: [..os]\n"]:
        assert problems(text + "inputs: {x: any}\noutputs: x\n", allow_imports=(package, ""))


# hostile files


ATTACKS = [
    "x.__class__",
    "x.__class__.__bases__[0].__subclasses__()",
    "().__class__",
    "''.__class__.__mro__",
    "x.numpy()",
    "x.register_hook(x)",
    "x.apply_(x)",
    "x.map_(x, x)",
    "x.data",
    "x.grad_fn",
    "x.storage()",
    "m.weight.data",
    "m.forward(x)",
    "m.register_forward_hook(x)",
    "m.weight.register_hook(x)",
    "m.__class__",
    "m.weight.__class__",
    "m._parameters",
    "torch.load('f')",
    "load('f')",
    "save(x, 'f')",
    "open('f')",
    "eval('1')",
    "exec('1')",
    "compile('1', '', 'eval')",
    "F.relu(x)",
    "self.m(x)",
    "globals()",
    "vars()",
    "getattr(x, 'data')",
    "setattr(x, 'data', x)",
    "type(x)",
    "super()",
    "input()",
    "breakpoint()",
    "exit()",
    "quit()",
    "help()",
    "print(x)",
    "__builtins__",
    "__import__('os').system('true')",
    "from_file('f')",
    "from_numpy(x)",
    "from_dlpack(x)",
    "set_default_dtype(float64)",
    "manual_seed(0)",
    "set_num_threads(1)",
    "use_deterministic_algorithms(True)",
    "vmap(x)",
    "jit(x)",
    "has_torch_function(x)",
    "handle_torch_function(x, x)",
    "boolean_dispatch(x)",
    "x.share_memory_()",
    "x.tolist()",
    "x.item()",
    "'{0.__class__}'.format(x)",
    "'a'.join(['b'])",
    "einops.rearrange(x)",
    "math.pi",
    "zip(x, x)",
    "map(relu, x)",
    "sorted(x)",
    "isinstance(x, x)",
    "Linear(3, 3)(x)",
    "Linear(3, 3)",
    "inspect(x)",
    "x if print(x) else x",
    "assert_int_or_pair(x, x, x)",
    "relu_(x)",
    "x.zero_()",
    "x.requires_grad_()",
    "zeros_(x)",
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("where", ["outputs", "modules", "shape"])
def test_nothing_outside_the_lists_is_called_or_read(problems: Callable, attack: str, where: str):
    quoted = attack.replace('"', "'")
    text = {
        "outputs": f'inputs: {{x: [B, 3]}}\nmodules: {{m: "Linear(3, 3)"}}\ngraph: {{y: m(x)}}\noutputs: [y, "{quoted}"]\n',
        "modules": f'inputs: {{x: [B, 3]}}\nmodules: {{m: "LayerNorm({quoted})"}}\noutputs: m(x)\n',
        "shape": f'inputs: {{x: [B, 3], z: [B, "{quoted}"]}}\nmodules: {{m: "Linear(3, 3)"}}\noutputs: "m(x) + q"\n',
    }[where]
    assert problems(text)


def limited(code: str) -> subprocess.CompletedProcess:
    """Run a script that may take 1.5 GB more than Python and torch have taken, and 60 seconds."""
    head = """\
        import resource, sys
        import torch
        from model_constructor import ConfigError, build_model
        used = 4096 * int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (used + 1_500_000_000,) * 2)
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        def refused(document):
            try:
                build_model({"schema_version": 2, "inputs": {"x": "any"}, **document})
            except ConfigError as error:
                print("refused", str(error).replace("\\n", " ")[:300])
        """
    script = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_absurd_sizes_are_refused_before_memory_is_touched():
    values = ["Param(10 ** 6, 10 ** 6)", "Buffer(zeros(10 ** 6, 10 ** 6))"]
    modules = ["Linear(200000, 200000)", "Embedding(10 ** 12, 2)", "LSTM(4, 10 ** 6)", "Conv1d(10 ** 6, 10 ** 6, 3)"]
    code = "".join(f"refused({{'modules': {{'m': {text!r}}}, 'outputs': 'm'}})\n" for text in values)
    code += "".join(f"refused({{'modules': {{'m': {text!r}}}, 'outputs': 'm(x)'}})\n" for text in modules)
    done = limited(f"before = peak()\n{code}print('grew by', peak() - before, 'kB')\n")
    assert done.stdout.count("refused") == 6, done.stdout + done.stderr[-500:]
    assert "allocate" not in done.stdout, "memory was asked for: " + done.stdout
    assert int(done.stdout.split("grew by ")[1].split()[0]) < 500_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["((ReLU() * 10000) * 10000)", "Linear(10000, 10000) * 1000", "Linear(2000, 2000) * 10000"]
)
def test_absurd_counts_are_refused(build: Callable, text: str):
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        build(f"inputs: {{x: any}}\nmodules: {{m: '{text}'}}\noutputs: m(x)\n")
    assert "allocate" not in str(caught.value)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_blocks_that_multiply_are_refused():
    blocks: dict = {"b0": {"inputs": {"x": "any"}, "modules": {"m": "ReLU()"}, "outputs": "m(x)"}}
    for level in range(1, 12):
        modules = {"m": f"b{level - 1}() * 10"}
        blocks[f"b{level}"] = {"inputs": {"x": "any"}, "modules": modules, "outputs": "m(x)"}
    document = {
        "schema_version": 2,
        "inputs": {"x": "any"},
        "blocks": blocks,
        "modules": {"m": "b11()"},
        "outputs": "m(x)",
    }
    began = time.monotonic()
    with pytest.raises(ConfigError, match="more than"):
        build_model(document)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("activation", "kind"), [("relu", nn.ReLU), ("silu", nn.SiLU)])
def test_a_module_is_chosen_from_a_table_by_a_param(build: Callable, activation: str, kind: type):
    model = build(
        """\
        params: {activation: relu}
        inputs: {x: [B, 3]}
        modules:
          m: "Linear(3, 3) >> {'relu': ReLU(), 'silu': SiLU()}[activation]"
          n: "[Linear(3, 3), Linear(3, 4)][1]"
        outputs: n(m(x))
        """,
        params={"activation": activation},
    )
    assert type(model.m[1]) is kind and model.n.out_features == 4


def test_an_entry_that_the_table_does_not_have_is_an_error_with_the_nearest(problems: Callable):
    (problem,) = problems("""\
        params: {activation: rleu}
        inputs: {x: [B, 3]}
        modules: {m: "{'relu': ReLU(), 'silu': SiLU()}[activation]"}
        outputs: m(x)
        """)
    assert problem.message == "there is no entry 'rleu'." and "did you mean 'relu'?" in problem.hint


@pytest.mark.parametrize(
    "module",
    [
        "Linear(2, 2) * 1001",
        "TransformerEncoder(TransformerEncoderLayer(4, 1), 201)",
        pytest.param("(Linear(2, 2) >> Linear(2, 2)) * 1000 * 20", marks=pytest.mark.slow),
    ],
)
def test_more_modules_than_anyone_writes_are_refused(problems: Callable, module: str):
    (problem,) = problems(f"inputs: {{x: any}}\nmodules:\n  m: {module}\noutputs: m[0](x)\n")
    assert problem.place


@pytest.mark.parametrize(
    "text",
    [
        "modules:\n  s: [{training: 'Linear(4, 4)'}]\noutputs: s[0].training(x)\n",
        'outputs: "[x][::0]"\n',
        "modules: {l: 'Linear(2, 2, bias=b)'}\nparams: {b: no}\noutputs: l(x)\n",
    ],
)
def test_what_cannot_be_is_an_error_with_a_place(problems: Callable, text: str):
    assert all(problem.place for problem in problems(f"inputs: {{x: any}}\n{text}"))


def test_values_in_a_namespace_of_a_list_come_back_from_the_meta_device(write: Callable):
    path = write("""\
        inputs: {x: [B, 3]}
        modules:
          s: [{p: "Param(3, init=ones)", b: "Buffer(arange(3), persistent=False)"}]
        outputs: x * s[0].p + s[0].b
        """)
    with torch.device("meta"):
        model = build_model(path)
    model.to_empty(device="cpu")
    assert model(torch.ones(1, 3)).tolist() == [[1.0, 2.0, 3.0]]
