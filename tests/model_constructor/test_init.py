"""Section 6 of the dialect: the values a file gives to parameters, against torch.nn.init called by hand."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model_constructor import GraphModel, build_model
from model_constructor.init import given_parameters
from model_constructor.names import initialisers

LAYERS = """\
params: {depth: 3}
inputs: {x: [B, 4]}
blocks:
  layer:
    inputs: {h: [B, 4]}
    modules: {fc: "Linear(4, 4)", modulation: "Linear(4, 8)", norm: LayerNorm(4), scale: "Param(4, init=ones)"}
    graph: {"shift, gain": "modulation(h).chunk(2, -1)"}
    outputs: norm(fc(h)) * (gain + scale) + shift
modules:
  layers: layer() * depth
  head: Linear(4, 2)
  position: Param(4)
outputs: head(layers(x) + position)
init:
"""


def filled(tensor: torch.Tensor, value: float) -> bool:
    return bool((tensor == value).all())


def std(*tensors: torch.Tensor) -> float:
    return torch.cat([tensor.flatten() for tensor in tensors]).std().item()


# what is filled, by what


def test_a_module_is_filled_whole_and_what_no_selector_names_keeps_its_own_values(build: Callable):
    torch.manual_seed(7)
    model = build(LAYERS + "  head: zeros\n  layers[*].modulation: constant(0.5)\n")
    torch.manual_seed(7)
    without = build(LAYERS)
    for name, parameter in model.named_parameters():
        if name.startswith("head"):
            assert filled(parameter, 0)
        elif "modulation" in name:
            assert filled(parameter, 0.5)
        else:
            torch.testing.assert_close(parameter, without.get_parameter(name), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(initialisers()))
def test_every_initialiser_of_torch_is_called_by_its_name_without_the_underscore(build: Callable, name: str):
    arguments = {"constant": "(0.25)", "sparse": "(sparsity=0.5)"}.get(name, "")
    text = f"inputs: {{x: any}}\nmodules: {{c: 'Conv1d(6, 6, 3)', l: 'Linear(6, 6)'}}\noutputs: l(c(x))\ninit: {{%s: '{name}{arguments}'}}\n"
    kind = "c" if name == "dirac" else "l"
    torch.manual_seed(3)
    model = build(text % f"{kind}.weight")
    torch.manual_seed(3)
    by_hand = nn.ModuleDict({"c": nn.Conv1d(6, 6, 3), "l": nn.Linear(6, 6)})
    getattr(nn.init, f"{name}_")(by_hand[kind].weight, *{"constant": [0.25], "sparse": [0.5]}.get(name, []))
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "xavier_normal",
        "xavier_uniform",
        "kaiming_normal",
        "kaiming_uniform",
        "orthogonal",
        "eye",
        "dirac",
        "sparse(0.5)",
    ],
)
def test_one_that_needs_dimensions_leaves_a_modules_smaller_parameters_alone(build: Callable, name: str):
    text = "inputs: {x: any}\nmodules: {m: 'Conv1d(4, 4, 3)' }\noutputs: m(x)\ninit: {m.bias: constant(7.0), m: %s}\n"
    text = text if name == "dirac" else text.replace("'Conv1d(4, 4, 3)'", "'Linear(4, 4)'")
    model, before = build(text % name), build(text % "constant(7.0)")
    assert filled(model.m.bias, 7)
    assert not torch.equal(model.m.weight, before.m.weight)


def test_arguments_are_expressions_over_the_params_of_the_block(build: Callable):
    text = "params: {n: 200, depth: 8}\ninputs: {x: any}\nmodules: {l: 'Linear(n, n)'}\noutputs: l(x)\ninit: {l: %s}\n"
    model = build(text % "normal(std=0.02 / sqrt(2 * depth))")
    assert std(model.l.weight) == pytest.approx(0.02 / math.sqrt(16), rel=0.02)
    model = build(text % "'uniform(-depth, b=0 if depth > 4 else 1)'")
    assert -8 <= model.l.weight.min() < -7.9 and -0.1 < model.l.weight.max() <= 0


def test_a_mapping_gives_each_parameter_its_own_by_name(build: Callable):
    model = build(LAYERS + "  type:Linear: {weight: normal(std=3.0), bias: constant(2.0)}\n")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert filled(module.bias, 2) and module.weight.std() > 1.5, name
    assert filled(model.layers[0].norm.weight, 1) and filled(model.layers[2].norm.bias, 0)


def test_a_mapping_passes_over_modules_without_that_parameter(build: Callable):
    text = """\
        inputs: {x: any}
        modules: {a: "Linear(2, 2, bias=False)", b: "Linear(2, 2)", act: ReLU()}
        outputs: b(act(a(x)))
        init: {"*": {weight: ones, bias: zeros}}
        """
    model = build(text)
    assert filled(model.a.weight, 1) and filled(model.b.weight, 1) and filled(model.b.bias, 0)


def test_a_selector_may_name_parameters_also_those_of_a_namespace_and_frozen_ones(build: Callable):
    model = build("""\
        inputs: {x: [B, 3]}
        modules:
          n: {p: Param(3), inner: {q: "Param(3, requires_grad=False)"}}
          head: Linear(3, 3)
        outputs: head(x) * n.p + n.inner.q
        init: {n.p: ones, n.inner.q: constant(4.0), head.bias: constant(-2.0)}
        """)
    assert filled(model.n.p, 1) and filled(model.n.inner.q, 4) and filled(model.head.bias, -2)
    assert not model.n.inner.q.requires_grad and model.n.p.requires_grad and model.n.p.is_leaf


def test_buffers_in_a_module_are_not_touched(build: Callable):
    model = build("inputs: {x: any}\nmodules: {n: BatchNorm1d(3)}\noutputs: n(x)\ninit: {n: constant(5.0)}\n")
    assert filled(model.n.weight, 5) and filled(model.n.running_mean, 0) and filled(model.n.running_var, 1)


# order


def test_later_entries_win(build: Callable):
    model = build(LAYERS + "  '**': ones\n  layers: constant(2.0)\n  layers[1].type:Linear: constant(3.0)\n")
    assert filled(model.head.weight, 1) and filled(model.position, 1)
    assert filled(model.layers[0].fc.weight, 2) and filled(model.layers[1].norm.weight, 2)
    assert filled(model.layers[1].fc.weight, 3) and filled(model.layers[2].fc.bias, 2)


def test_a_blocks_own_init_comes_before_its_callers_and_after_init_of_param(build: Callable, write: Callable):
    write("""\
        inputs: {h: [B, 4]}
        modules: {fc: "Linear(4, 4)", p: "Param(4, init=ones)", q: "Param(4, init=ones)"}
        outputs: fc(h) * p + q
        init: {fc: constant(2.0), p: constant(3.0)}
        """, "inner.yaml")  # fmt: skip
    text = """\
        inputs: {x: [B, 4]}
        blocks: {inner: inner.yaml}
        modules: {a: inner(), b: inner()}
        outputs: b(a(x))
        init: {a.fc.bias: constant(9.0)}
        """
    model = build(text)
    assert filled(model.a.fc.weight, 2) and filled(model.a.fc.bias, 9) and filled(model.b.fc.bias, 2)
    assert filled(model.b.p, 3) and filled(model.b.q, 1)


def test_the_same_seed_gives_the_same_weights_in_order_of_construction_and_then_of_init(build: Callable):
    text = """\
        inputs: {x: [B, 4]}
        modules: {a: "Linear(4, 4)", b: "Linear(4, 4)"}
        outputs: b(a(x))
        init: {b.weight: normal, a.bias: uniform}
        """
    torch.manual_seed(5)
    model = build(text)
    torch.manual_seed(5)
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    nn.init.normal_(b.weight)
    nn.init.uniform_(a.bias)
    for ours, theirs in zip(model.parameters(), [*a.parameters(), *b.parameters()], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "entry", ["'*': normal", "type:TiedOfTestInit: normal", "'t.*': normal", "type:Rows: {a: normal}"]
)
def test_a_parameter_under_two_names_is_filled_once(build: Callable, entry: str):
    text = f"inputs: {{x: any}}\nmodules: {{t: TiedOfTestInit()}}\noutputs: t(x)\ninit:\n  {entry}\n"
    torch.manual_seed(1)
    model = build(text)
    torch.manual_seed(1)
    assert torch.equal(model.t.left.a, torch.randn(50)) and model.t.left.a is model.t.right.b


# where it is


def test_no_grad_is_recorded_and_grad_mode_does_not_matter(build: Callable):
    with torch.no_grad():
        inside = build(LAYERS + "  head: ones\n")
    outside = build(LAYERS + "  head: ones\n")
    for model in (inside, outside):
        assert all(p.requires_grad and p.is_leaf for p in model.parameters()) and filled(model.head.weight, 1)


def test_on_the_meta_device_init_is_checked_and_takes_no_memory(build: Callable, problems: Callable):
    text = "inputs: {x: any}\nmodules: {l: 'Linear(200_000, 200_000)'}\noutputs: l(x)\ninit: {l: %s}\n"
    with torch.device("meta"):
        for name in ("orthogonal", "trunc_normal(std=0.02)", "kaiming_normal", "zeros"):
            assert build(text % name).l.weight.is_meta
        assert "has no argument 'sdt'" in problems(text % "normal(sdt=0.02)")[0].message


def test_the_specification_and_a_pickle_keep_init_and_a_pickle_keeps_its_weights(build: Callable):
    model = build(LAYERS + "  head: {weight: constant(1.5), bias: zeros}\n  layers[*].scale: zeros\n")
    spec = json.loads(json.dumps(model.spec))
    assert list(spec["init"]) == ["head", "layers[*].scale"]
    twin = build_model(spec)
    assert filled(twin.head.weight, 1.5) and filled(twin.layers[2].scale, 0)
    nn.init.constant_(model.head.weight, 8.0)
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert filled(copied.head.weight, 8) and copied.spec == model.spec


def test_what_is_not_built_need_not_be_filled(build: Callable):
    text = """\
        params: {side: left, depth: 0}
        inputs: {x: [B, 2]}
        modules: {left: "Linear(2, 2)", right: "Linear(2, 2)", layers: "Linear(2, 2) * depth"}
        graph: {h: left(x) if side == "left" else right(x)}
        outputs: layers(h)
        init: {left: ones, right: ones, "layers[*].weight": eye, "layers[*]": {bias: zeros}}
        """
    assert filled(build(text).left.weight, 1)
    other = build(text, params={"side": "right", "depth": 2})
    assert filled(other.right.weight, 1) and torch.equal(other.layers[1].weight, torch.eye(2))


# what is wrong


@pytest.mark.parametrize(
    ("entry", "at", "message", "hint"),
    [
        ("haed: zeros", "haed", "'haed' selects nothing", "did you mean 'head'?"),
        ("'layers[*].modulatoin': zeros", "'layers[*].modulatoin'", "selects nothing", "did you mean 'layers[*].modulation'?"),
        ("type:Liner: zeros", "type:Liner", "selects nothing", "did you mean 'type:Linear'?"),
        ("'layers[-1]': zeros", "'layers[-1]'", "is no selector", "layers[0].q"),
        ("head: zeroes", "zeroes", "no initialiser is called 'zeroes'", "did you mean 'zeros'?"),
        ("head: nn.zeros", "nn.zeros", "no initialiser is called 'nn.zeros'", "known here"),
        ("head: 0.02", "0.02", "no initialiser is called '0.02'", "known here"),
        ("head: normal(0, sdt=0.02)", "sdt=0.02", "'normal' has no argument 'sdt'", "did you mean 'std'?"),
        ("head: constant", "constant", "missing a required argument: 'val'", "constant(val)"),
        ("head: zeros(1, 2)", "zeros(1, 2)", "too many positional arguments", "zeros()"),
        ("head: normal(std=dpth)", "dpth", "no param is called 'dpth'", "depth"),
        ("head: normal(std='a')", "normal(std='a')", "normal cannot fill this", ""),
        ("head: {wieght: zeros}", "wieght", "'head' has no parameter 'wieght'", "did you mean 'weight'?"),
        ("layers: {fc: zeros}", "fc", "'layers' has no parameter 'fc'", "it has no parameters of its own"),
        ("head: {weight: {bias: zeros}}", "head", "an initialiser is needed here", "weight: normal(std=0.02)"),
        ("head: [zeros]", "head", "an initialiser is needed here", "such as zeros"),
        ("head: {}", "head", "an initialiser is needed here", "such as zeros"),
        ("position: xavier_normal", "xavier_normal", "xavier_normal needs 2 dimensions", ""),
        ("'layers[*].norm': orthogonal()", "orthogonal()", "orthogonal needs 2 dimensions", ""),
        ("steps: zeros", "steps", "'steps' selects no parameter", "'steps' is a buffer"),
        ("act: zeros", "act", "'act' selects no parameter", "'act' is a module without any"),
    ],
)  # fmt: skip
def test_an_error_shows_its_place_and_what_would_have_been_right(
    problems: Callable, entry: str, at: str, message: str, hint: str
):
    text = LAYERS.replace("head: Linear(4, 2)", "head: Linear(4, 2)\n  steps: Buffer(4)\n  act: ReLU()")
    text = text.replace("+ position", "+ act(position) + steps")
    (problem,) = problems(text + f"  {entry}\n")
    assert message in problem.message
    assert hint in problem.hint
    place = problem.place
    assert place.text.strip() == entry and place.text[place.column - 1 :][: place.length] == at


def test_all_that_is_wrong_is_told_together_on_every_level_even_where_nothing_is_built(problems: Callable):
    text = """\
        inputs: {x: [B, 2]}
        blocks:
          unused: {inputs: {x: any}, modules: {l: "Linear(2, 2)"}, outputs: l(x), init: {l: zeroes}}
          function: {inputs: {x: any}, outputs: x + 1, init: {l: zeros}}
        modules: {l: "Linear(2, 2)"}
        outputs: function(l(x))
        init: {"l.[": zeros, l: nermal}
        """
    assert [problem.message.split(":")[0] for problem in problems(text)] == [
        "no initialiser is called 'zeroes'.",
        "'init' fills parameters; this block has no modules.",
        "'l.[' is no selector.",
        "no initialiser is called 'nermal'.",
    ]


# leaving the meta device

VALUES = """\
params: {n: 6}
inputs: {x: [B, n]}
blocks:
  inner:
    params: {n: int}
    inputs: {h: any}
    modules: {table: "Param(eye(n, 2 * n))", fc: "Linear(2 * n, n)"}
    outputs: fc(h @ table)
    init: {fc.bias: constant(2.0)}
modules:
  inners: inner(n=n) * 2
  mask: Buffer(ones(n, n, dtype=bool).tril(), persistent=False)
  named: {scale: "Param([1, 2, 3, 4, 5, 6], requires_grad=False)", steps: Buffer(arange(n))}
  position: Param(n, n, init=constant(3.0))
  head: Linear(n, n)
outputs: head(inners(x + position[0])) * named.scale * mask[1] + named.steps
init: {head.weight: eye, "inners[1].fc.bias": constant(4.0)}
"""


def test_what_the_file_gives_a_value_has_it_again_when_the_model_leaves_the_meta_device(build: Callable):
    expected = build(VALUES)
    with torch.device("meta"):
        model: GraphModel = build(VALUES)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model.to_empty(device="cpu")
    ours = [
        "mask", "named.scale", "named.steps", "position", "head.weight", "inners.0.table", "inners.1.table",
        "inners.0.fc.bias", "inners.1.fc.bias",
    ]  # fmt: skip
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name in ours:
        known = expected.get_submodule(name.rpartition(".")[0])._parameters.get(name.rpartition(".")[2])
        known = expected.get_buffer(name) if known is None else known
        assert torch.equal(tensors[name], known) and tensors[name].dtype == known.dtype, name
        assert tensors[name].requires_grad == known.requires_grad
    for module in model.modules():  # those of torch are initialised as torch has it
        if isinstance(module, nn.Linear):
            assert not module.weight.is_meta
    model.load_state_dict(expected.state_dict())
    x = torch.randn(2, 6)
    torch.testing.assert_close(model(x), expected(x))


COMPUTED = """\
inputs: {x: [B, 3]}
blocks:
  outer:
    inputs: {h: any}
    modules: {inner: inner(), fc: "Linear(3, 3)", mask: "Buffer(ones(3, 3).tril(), persistent=False)"}
    outputs: inner(fc(h) @ mask)
  inner: {inputs: {h: any}, modules: {some: {steps: "Buffer(arange(3), persistent=False)"}}, outputs: h * some.steps}
modules: {layers: outer() * 2, chain: Identity() >> inner()}
outputs: chain(layers(x))
"""


@pytest.mark.parametrize("around", [lambda model: model, nn.Sequential], ids=["alone", "in a module of another kind"])
def test_what_no_state_dict_holds_is_computed_when_weights_are_assigned(build: Callable, around: Callable):
    expected = around(build(COMPUTED))
    with torch.device("meta"):
        model = around(build(COMPUTED))
    model.load_state_dict(expected.state_dict(), assign=True)
    found, known = dict(model.named_buffers()), dict(expected.named_buffers())
    assert len(known) == 5 and found.keys() == known.keys()
    for name in known:
        assert torch.equal(found[name], known[name]) and found[name].dtype == known[name].dtype, name
    x = torch.randn(2, 3)
    torch.testing.assert_close(model(x), expected(x))


def test_a_buffer_stays_on_the_meta_device_as_long_as_the_weights_do(build: Callable):
    expected = nn.ModuleDict({"a": build(COMPUTED), "b": build(COMPUTED)})
    with torch.device("meta"):
        models = nn.ModuleDict({"a": build(COMPUTED), "b": build(COMPUTED)})
    weights = expected.state_dict()
    models.load_state_dict({name: weight.to("meta") for name, weight in weights.items()}, assign=True)
    assert all(buffer.is_meta for buffer in models.buffers())
    models.load_state_dict({name: one for name, one in weights.items() if name[0] == "b"}, assign=True, strict=False)
    assert all(buffer.is_meta for buffer in models.a.buffers())
    assert not any(buffer.is_meta for buffer in models.b.buffers())


def test_a_buffer_that_has_a_value_keeps_it_when_weights_are_assigned(build: Callable):
    model = build(COMPUTED)
    model.layers[0].mask.fill_(7.0)
    model.load_state_dict(model.state_dict(), assign=True)
    assert filled(model.layers[0].mask, 7)


def test_values_are_cast_with_the_model_and_other_moves_leave_them_alone(build: Callable):
    with torch.device("meta"):
        model = build(VALUES).double()
    model.to_empty(device="cpu")
    assert model.position.dtype == torch.float64 and filled(model.position, 3)
    with torch.no_grad():
        model.position.fill_(7.0)
    model.float().to("cpu").half()
    assert filled(model.position, 7)


def test_only_what_leaves_the_meta_device_is_filled(build: Callable):
    with torch.device("meta"):
        model = build(VALUES)
    model.inners[0].to_empty(device="cpu")
    assert filled(model.inners[0].fc.bias, 2) and model.position.is_meta and model.inners[1].table.is_meta
    with torch.no_grad():
        model.inners[0].fc.bias.fill_(5.0)
        model.inners[0].table.fill_(5.0)
    model.inners[1].to_empty(device="cpu")
    assert filled(model.inners[0].fc.bias, 5) and filled(model.inners[0].table, 5)


@pytest.fixture(autouse=True, scope="module")
def tied_type() -> None:
    from model_constructor import register

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = nn.Parameter(torch.zeros(50))

    @register("TiedOfTestInit")
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = self.right = Rows()

        def forward(self, x):
            return x + self.left.a


SHARDED = """\
import sys, yaml, torch, torch.distributed as distributed
from torch.distributed.fsdp import fully_shard
from model_constructor import build_model

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
mesh = distributed.init_device_mesh("cpu", (2,))
with torch.device("meta"):
    model = build_model(f"{folder}/model.yaml")
for module in (*model.inners, model):
    fully_shard(module, mesh=mesh)
model.to_empty(device="cpu")
assert model.inners[0].table.to_local().shape == (3, 12)
full = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
if rank == 0:
    torch.save(full | dict(model.named_buffers()), f"{folder}/values.pt")
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_sharded_model_has_its_values_when_it_leaves_the_meta_device(build: Callable, tmp_path: Path):
    expected = build(VALUES)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", SHARDED, rank, str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    values = torch.load(tmp_path / "values.pt")
    for name in ("inners.0.table", "inners.1.fc.bias", "named.scale", "position", "head.weight", "mask", "named.steps"):
        owner, _, key = name.rpartition(".")
        assert torch.equal(values[name], getattr(expected.get_submodule(owner), key)), name


class Loaded(nn.Linear):
    pretrained = True


def test_what_the_file_gives_or_a_type_has_loaded_is_known(build: Callable):
    model = build(LAYERS + "  layers[*].modulation: zeros\n  type:Linear: {bias: zeros}\n")
    model.layers[2].loaded = Loaded(2, 2)
    known = {name for name, one in model.named_parameters() if one in given_parameters(model)}
    of_layer = ("modulation.weight", "modulation.bias", "fc.bias", "scale")
    expected = {f"layers.{n}.{name}" for n in range(3) for name in of_layer} | {"position", "head.bias"}
    assert known == expected | {"layers.2.loaded.weight", "layers.2.loaded.bias"}
