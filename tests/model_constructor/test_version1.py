"""Version 1 of the dialect: files of the older system build the same model, and say as well what is wrong with them."""

from __future__ import annotations

import copy
import importlib
import itertools
import pickle
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import model_constructor
from model_constructor import ConfigError, GraphModel, Problem, Registry, build_model, compile_ir, resolve_config
from model_constructor.names import OPS, TYPES

NODE = "{name: h, call: module:m, args: [$x]}"
FILES = Path(__file__).parent / "version1"
INPUTS = {"base": [(2, 3, 8, 8), (2, 5)], "narrow": [(2, 3, 8, 8), (2, 5)], "steps": [(2, 3, 6)]}

# The older system ran a file by looking up each value as it went. This is that, over a resolved document.

OLD_OPS = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "getitem": lambda a, i: a[i],
    "identity": lambda x: x,
    "rearrange": lambda x, pattern: x.T if pattern == "b d -> d b" else None,
    **{name: getattr(torch, name) for name in ("cat", "stack", "chunk", "max", "aminmax")},
}


def interpreted(graph: dict[str, Any], modules: nn.Module, *inputs: Tensor) -> Any:
    """What the `model.graph` of a resolved version-1 document gives."""
    values: dict[str, Any] = dict(zip(graph["inputs"], inputs, strict=True))

    def read(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("$"):
            return value[1:] if value.startswith("$$") else values[value[1:]]
        if isinstance(value, list):
            return [read(entry) for entry in value]
        return {key: read(entry) for key, entry in value.items()} if isinstance(value, dict) else value

    calls = graph.get("nodes") or graph["steps"]
    if isinstance(calls, dict):
        calls = [{"name": name, **calls[name]} for name in graph.get("order") or reversed(calls)]
    for call in calls:
        kind, _, name = call["call"].partition(":")
        function = getattr(modules, name) if kind == "module" else OLD_OPS[name]
        result = function(*read(call.get("args", [])), **read(call.get("kwargs", {})))
        out = call.get("out") or call["name"]
        if isinstance(out, str):
            values[out] = result
        elif isinstance(out, list):
            values |= dict(zip(out, result, strict=True))
        else:
            values |= {name: result[key] for key, name in out.items()}
    outputs = graph["outputs"]
    if isinstance(outputs, dict):
        return {key: values[name.removeprefix("$")] for key, name in outputs.items()}
    results = tuple(values[name.removeprefix("$")] for name in outputs)
    single = graph.get("return", "single" if len(results) == 1 else "tuple") == "single"
    return results[0] if single else results


def unrolled(sequential: dict[str, Any]) -> dict[str, Any]:
    """A `model.sequential` as the older system ran it."""
    names = [*sequential.get("inputs", ["x"]), *(f"h{i}" for i in range(len(sequential["layers"])))]
    calls = [
        {"name": name, "call": f"module:layer{i}", "args": [f"${before}"]}
        for i, (before, name) in enumerate(itertools.pairwise(names))
    ]
    return {"outputs": [names[-1]], **sequential, "inputs": names[:1], "nodes": calls}


def assert_same(result: Any, expected: Any) -> None:
    assert type(result) is type(expected)
    if isinstance(expected, Tensor):
        assert torch.equal(result, expected)
    else:
        pairs = [(result[k], expected[k]) for k in expected] if isinstance(expected, dict) else zip(result, expected)  # noqa: B905
        assert len(result) == len(expected)
        for one, other in pairs:
            assert_same(one, other)


@pytest.fixture
def write1(tmp_path: Path) -> Callable[..., Path]:
    """Write a file whose line 1 says version 1, so the text itself begins on line 2."""

    def write1(text: str, name: str = "old.yaml") -> Path:
        path = tmp_path / name
        path.write_text("schema_version: 1\n" + textwrap.dedent(text), encoding="utf-8")
        return path

    return write1


@pytest.fixture
def problems1(write1: Callable) -> Callable[..., list[Problem]]:
    """The problems of a version-1 file that has to be refused."""

    def problems1(text: str, **arguments: Any) -> list[Problem]:
        with pytest.raises(ConfigError) as caught:
            build_model(write1(text), **arguments)
        return list(caught.value.problems)

    return problems1


def graph(nodes: str = f"- {NODE}", modules: str = "", outputs: str = "[$h]", top: str = "") -> str:
    """A version-1 file around some nodes, of which the first stands on line 7; `top` comes before them all."""
    modules = modules or ("{m: {_type_: nn.Identity}}" if "module:m" in nodes else "{}")
    nodes = textwrap.indent(textwrap.dedent(nodes), " " * 6)
    return f"{top}model:\n  graph:\n    inputs: [x]\n    modules: {modules}\n    nodes:\n{nodes.rstrip()}\n    outputs: {outputs}\n"


@pytest.mark.parametrize("name", [path.stem for path in sorted(FILES.glob("*.yaml"))])
def test_a_file_computes_what_the_older_system_did(name: str):
    path = FILES / f"{name}.yaml"
    model = build_model(path).eval()
    form = resolve_config(path).data["model"]
    document = form.get("graph") or unrolled(form["sequential"])
    inputs = [torch.randn(shape) for shape in INPUTS.get(name, [(2, 6)])]
    assert_same(model(*inputs), interpreted(document, model, *inputs))
    assert_same(model(**dict(zip(document["inputs"], inputs, strict=True))), model(*inputs))


@pytest.mark.parametrize("name", [path.stem for path in sorted(FILES.glob("*.yaml"))])
def test_it_is_an_ordinary_model_whose_specification_is_of_version_2(name: str):
    model = build_model(FILES / f"{name}.yaml").eval()
    twin = build_model(model.spec)
    assert model.spec["schema_version"] == 2 and twin.spec == model.spec
    assert twin.code.replace("model(", f"{name}(") == model.code
    twin.load_state_dict(model.state_dict())
    inputs = [torch.randn(shape) for shape in INPUTS.get(name, [(2, 6)])]
    for other in (twin.eval(), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert_same(other(*inputs), model(*inputs))


def test_it_reads_as_if_it_had_been_written_in_version_2(build: Callable):
    model = build("""\
        inputs: {x: any}
        modules:
          proj: Linear(6, 6, bias=False)
        graph:
          h1: proj(x)
          h3: stack([h1, x], dim=0)
          h4: h3[1]
        outputs:
          - h4
        """)
    old = build_model(FILES / "order.yaml")
    assert old.code.replace("class order", "class model") == model.code
    assert old.architecture_hash == model.architecture_hash


CALLS = [  # a node of version 1 -> entries of `graph` in version 2
    ("{name: h, call: module:m, args: [$x]}", {"h": "m(x)"}),
    ("{name: h, call: module:m, kwargs: {input: $x}}", {"h": "m(input=x)"}),
    ("{name: h, call: op:relu, args: [$x], kwargs: null}", {"h": "relu(x)"}),
    ("{name: h, call: op:add, args: [$x, 1.5]}", {"h": "x + 1.5"}),
    ("{name: h, call: op:mul, args: [-2, $x]}", {"h": "-2 * x"}),
    ("{name: h, call: op:add, args: [$x, $x], kwargs: {alpha: 2}}", {"h": "add(x, x, alpha=2)"}),
    ("{name: h, call: op:getitem, args: [$x, [0, 1]]}", {"h": "x[[0, 1]]"}),
    ("{name: h, call: op:identity, args: [$x]}", {"h": "x"}),
    ("{name: h, call: op:cat, args: [[$x, $x], -1]}", {"h": "cat([x, x], -1)"}),
    ("{name: h, call: op:squeeze, args: [$x], kwargs: {dim: 0}}", {"h": "squeeze(x, dim=0)"}),
    ("{name: n, call: module:m, args: [$x], out: h}", {"h": "m(x)"}),
    ("{name: n, call: module:m, args: [$x], out: [h, _]}", {"h, _": "m(x)"}),
    ("{name: n, call: module:m, args: [$x], out: [h]}", {"h": "m(x)[0]"}),
    ("{name: n, call: module:m, args: [$x], out: {key: h}}", {"h": "m(x)['key']"}),
    (
        "{name: n, call: module:m, args: [{a: $x}], out: {a: h, b: g}}",
        {"m_result": "m({'a': x})", "h": "m_result['a']"},
    ),
    ("{name: n, call: module:m, args: [$x, '$$x', text, true, null], out: h}", {"h": "m(x, '$x', 'text', True, None)"}),
]


@pytest.mark.parametrize(("node", "expected"), CALLS, ids=[node for node, _ in CALLS])
def test_a_node_is_an_entry_of_the_graph(write1: Callable, node: str, expected: dict[str, str]):
    assert build_model(write1(graph(f"- {node}"))).spec["graph"] == expected


SPECS = [  # a spec of version 1 -> a constructor of version 2
    ("{_type_: nn.Linear, in_features: 3, out_features: 4}", "Linear(in_features=3, out_features=4)"),
    ("{_type_: nn.Linear, _args_: [3, 4], _kwargs_: {bias: false}}", "Linear(3, 4, bias=False)"),
    ("{_type_: nn.Linear, _args_: [3], out_features: 4, _name_: free}", "Linear(3, out_features=4)"),
    ("{_type_: nn.GELU, approximate: tanh}", "GELU(approximate='tanh')"),
    ("{_type_: nn.Sequential, _args_: [{_type_: nn.ReLU}, {_type_: nn.Tanh}]}", "Sequential(ReLU(), Tanh())"),
    ("{_type_: mlp, dims: [3, 4], activation: {_type_: nn.SiLU}}", "mlp(dims=[3, 4], activation=SiLU())"),
    ("{_type_: nn.Unflatten, dim: 1, unflattened_size: [2, 3]}", "Unflatten(dim=1, unflattened_size=[2, 3])"),
    ("{_type_: Attention, dim: 8, context_dim: null}", "Attention(dim=8, context_dim=None)"),
]


@pytest.mark.parametrize(("spec", "expected"), SPECS, ids=[spec for spec, _ in SPECS])
def test_a_spec_is_a_constructor(write1: Callable, spec: str, expected: str):
    assert build_model(write1(graph(modules=f"{{m: {spec}}}"))).spec["modules"] == {"m": expected}


INFERRED = [  # a null for a size, and what the module is once it has been called with [2, 3, 8, 8]
    ("{_type_: nn.Conv2d, in_channels: null, out_channels: 4, kernel_size: 3}", "LazyConv2d(out_channels=4, kernel_size=3)", nn.Conv2d(3, 4, 3)),
    ("{_type_: nn.Linear, _args_: [null, 4]}", "LazyLinear(4)", nn.Linear(8, 4)),
    ("{_type_: nn.BatchNorm2d, num_features: null}", "LazyBatchNorm2d()", nn.BatchNorm2d(3)),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "text", "expected"), INFERRED, ids=[text for _, text, _ in INFERRED])
def test_a_null_size_is_found_at_the_first_call(write1: Callable, spec: str, text: str, expected: nn.Module):
    model = build_model(write1(graph(modules=f"{{m: {spec}}}")))
    assert model.spec["modules"] == {"m": text}
    model(torch.randn(2, 3, 8, 8))
    assert repr(model.m) == repr(expected)


def test_the_blocks_of_version_1_find_sizes_too(write1: Callable):
    model = build_model(
        write1("""\
        model:
          sequential:
            layers:
              - {_type_: conv_bn_act, in_channels: null, out_channels: 4}
              - {_type_: nn.Flatten}
              - {_type_: mlp, dims: [null, 5]}
        """)
    )
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert model.layer0.conv.in_channels == 3 and model.layer2.net[0].in_features == 4 * 6 * 6


# the blocks, against the same arithmetic in functions of torch


def conv_bn_act(
    weights: dict[str, Tensor], x: Tensor, prefix: str = "", act: Callable = F.relu, **options: Any
) -> Tensor:
    w = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    y = F.conv2d(x, w["conv.weight"], w.get("conv.bias"), **options)
    norm = (w["norm.running_mean"], w["norm.running_var"], w["norm.weight"], w["norm.bias"])
    return act(F.batch_norm(y, *norm))


def residual(w: dict[str, Tensor], x: Tensor, stride: int) -> Tensor:
    y = conv_bn_act(w, x, "main1.", stride=stride, padding=1)
    y = conv_bn_act(w, y, "main2.", act=lambda y: y, padding=1)
    return F.relu(y + (conv_bn_act(w, x, "skip.", act=lambda y: y, stride=stride) if "skip.conv.weight" in w else x))


def mlp(w: dict[str, Tensor], x: Tensor, act: Callable, places: list[int], last: Callable) -> Tensor:
    for place in places:
        x = F.linear(x, w[f"net.{place}.weight"], w.get(f"net.{place}.bias"))
        x = act(x) if place != places[-1] else last(x)
    return x


def same(x: Tensor) -> Tensor:
    return x


BLOCKS = [
    ("{_type_: conv_bn_act, in_channels: 3, out_channels: 4}", (2, 3, 8, 8), conv_bn_act),
    (
        "{_type_: conv_bn_act, in_channels: 4, out_channels: 6, kernel_size: 1, stride: 2, dilation: 2, groups: 2, "
        "bias: false, act: {_type_: nn.Tanh}}",
        (2, 4, 8, 8),
        lambda w, x: conv_bn_act(w, x, act=torch.tanh, stride=2, dilation=2, groups=2),
    ),
    ("{_type_: residual_block, in_channels: 3}", (2, 3, 8, 8), lambda w, x: residual(w, x, stride=1)),
    ("{_type_: residual_block, in_channels: 3, out_channels: 5, stride: 2}", (2, 3, 8, 8), lambda w, x: residual(w, x, 2)),
    ("{_type_: mlp, dims: [3, 4, 5]}", (2, 7, 3), lambda w, x: mlp(w, x, F.relu, [0, 2], same)),
    ("{_type_: mlp, dims: [3, 4, 4, 5], dropout: 0.5, bias: false}", (2, 3), lambda w, x: mlp(w, x, F.relu, [0, 3, 6], same)),
    (
        "{_type_: mlp, dims: [3, 4, 5], activation: {_type_: nn.SiLU}, final_activation: {_type_: nn.Tanh}}",
        (2, 3),
        lambda w, x: mlp(w, x, F.silu, [0, 2], torch.tanh),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "shape", "oracle"), BLOCKS, ids=[spec for spec, _, _ in BLOCKS])
def test_a_block_of_version_1_computes_as_it_did(write1: Callable, spec: str, shape: tuple[int, ...], oracle: Callable):
    module = build_model(write1(graph(modules=f"{{m: {spec}}}"))).eval().m
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    x = torch.randn(shape)
    torch.testing.assert_close(module(x), oracle(module.state_dict(), x))


@pytest.mark.parametrize("dims", ["[3]", "[3, null]"])
def test_an_mlp_without_widths_is_refused(problems1: Callable, dims: str):
    assert (
        "mlp cannot be built: ValueError"
        in problems1(graph(modules=f"{{m: {{_type_: mlp, dims: {dims}}}}}"))[0].message
    )


def test_an_activation_with_weights_is_shared_in_an_mlp(write1: Callable):
    spec = "{_type_: mlp, dims: [3, 4, 4, 2], activation: {_type_: nn.PReLU}}"
    module = build_model(write1(graph(modules=f"{{m: {spec}}}"))).m
    assert module.net[1] is module.net[3] and "net.3.weight" in module.state_dict()


RETURNS = [
    ("[$h]", "", "h"),
    ("[h]", "single", "h"),
    ("[$h]", "tuple", ["h"]),
    ("[$h, x]", "", ["h", "x"]),
    ("{a: $h, b: x}", "", {"a": "h", "b": "x"}),
    ("{a: $h}", "dict", {"a": "h"}),
]


@pytest.mark.parametrize(("outputs", "returns", "expected"), RETURNS)
def test_return_says_what_the_outputs_come_as(write1: Callable, outputs: str, returns: str, expected: Any):
    written = f"{outputs}\n    return: {returns}" if returns else outputs
    assert build_model(write1(graph(outputs=written))).spec["outputs"] == expected


TAKEN_NAMES = ["m", "relu", "type", "training", "lambda", "_hidden", "__", "_1", "index"]


@pytest.mark.parametrize("name", TAKEN_NAMES)
def test_a_node_gives_way_to_what_else_has_its_name(write1: Callable, name: str):
    nodes = f"- {{name: {name}, call: module:m, args: [$x]}}\n- {{name: h, call: op:relu, args: [${name}]}}\n"
    model = build_model(write1(graph(nodes)))
    x = torch.randn(3)
    assert torch.equal(model(x), x.relu())


def test_a_node_that_gives_way_takes_no_other_name(write1: Callable):
    nodes = "- {name: m_, call: op:neg, args: [$x]}\n- {name: m, call: module:m, args: [$m_]}\n"
    model = build_model(write1(graph(nodes, outputs="[$m, $x]")))
    assert model(torch.tensor(2.0)) == (-2, 2)


# order


def test_nodes_of_a_mapping_are_sorted_unless_order_says_how_they_run(write1: Callable, problems1: Callable):
    nodes = "g: {call: op:relu, args: [$h]}\nh: {call: module:m, args: [$x]}\n"
    assert list(build_model(write1(graph(nodes, outputs="[$g]"))).spec["graph"]) == ["g", "h"]
    ordered = build_model(write1(graph(nodes, outputs="[$g]\n    order: [h, g]")))
    assert list(ordered.spec["graph"]) == ["h", "g"]
    (problem,) = problems1(graph(nodes, outputs="[$g]\n    order: [g, h]"))
    assert problem.message == "'h' is read before the call that makes it." and problem.place.line == 7


def test_a_list_of_nodes_runs_in_its_order(problems1: Callable):
    (problem,) = problems1(graph("- {name: h, call: module:m, args: [$g]}\n- {name: g, call: module:m, args: [$x]}\n"))
    assert (problem.message, problem.place.line) == ("'g' is read before the call that makes it.", 7)
    assert problem.place.excerpt().splitlines()[1].strip() == "^^"


def test_nodes_of_a_mapping_may_not_form_a_cycle(problems1: Callable):
    (problem,) = problems1(graph("h: {call: module:m, args: [$g]}\ng: {call: module:m, args: [$h]}\n"))
    assert problem.message == "the nodes form a cycle: h -> g -> h." or "g -> h -> g" in problem.message


# what is wrong

WRONG = [  # text, message, line, hint
    ("modle: {}", "a version-1 file has the key 'model', and in it 'graph' or 'sequential'.", 1, ""),
    ("model: {sequential: {}, graph: {}}", "a version-1 file has the key 'model', and in it 'graph' or 'sequential'.", 2, ""),
    ("model: {}", "a version-1 file has the key 'model', and in it 'graph' or 'sequential'.", 2, ""),
    ("model: {sequential: {layers: {}}}", "'layers' has to be a list.", 2, ""),
    ("model: {sequential: {inputs: [a, b], layers: [{_type_: nn.ReLU}]}}", "'sequential' has exactly one input.", 2, ""),
    ("model: {sequential: {layers: [nn.ReLU]}}", "a module is a mapping such as {_type_: nn.Linear, ...}.", 2, ""),
    (graph(outputs=f"[$h]\n    steps: [{NODE}]"), "the graph needs 'nodes' or 'steps', one of them.", 4, ""),
    (graph(outputs="[$g]"), "no value is called 'g'.", 8, "known here: h, x"),
    (graph(outputs="$h"), "'outputs' has to be a list or mapping of values.", 8, "outputs: [$h]"),
    (graph(outputs="[$h, $x]\n    return: single"), "'return' cannot be 'single'.", 9, "it can be tuple here"),
    (graph(outputs="[$h]\n    return: tupel"), "'return' cannot be 'tupel'.", 9, "did you mean 'tuple'?"),
    (graph(outputs="[$h]\n    order: [h]").replace("- {name: h,", "h: {").replace("[h]", "[g]"), "no node is called 'g'.", 9, "known here: h"),
    (graph("- {name: h, call: module:n, args: [$x]}", "{m: {_type_: nn.ReLU}}"), "no module is called 'n'.", 7, "known here: m"),
    (graph("- {name: h, call: op:rellu, args: [$x]}"), "h: no value, module or op is called 'rellu'.", 7, "did you mean 'relu'?"),
    (graph("- {name: h, call: m, args: [$x]}"), "'call' is module:NAME or op:NAME.", 7, ""),
    (graph("- {name: h, args: [$x]}"), "'call' is module:NAME or op:NAME.", 7, ""),
    (graph("- {name: h, call: module:m, args: $x}"), "'args' has to be a list.", 7, ""),
    (graph("- {name: h, call: module:m, kwargs: [$x]}"), "'kwargs' has to be a mapping.", 7, ""),
    (graph("- {name: h, call: module:m, args: [$xx]}"), "no value is called 'xx'.", 7, "did you mean 'x'?"),
    (graph("- {name: h, call: module:m, args: [$m]}"), "no value is called 'm'.", 7, "known here: h, x"),
    (graph("- {name: h, call: module:m, args: [$x], kwargs: {a-b: 1}}"), "'a-b' is not the name of an argument.", 7, ""),
    (graph("- {call: module:m, args: [$x]}", outputs="[$x]"), "the call binds nothing.", 7, "for a node a name"),
    (graph("- {name: h, call: module:m, out: [1]}", outputs="[$x]"), "the call binds nothing.", 7, ""),
    (graph("- h", outputs="[$x]"), "a node is a mapping such as {name: h, call: module:stem, args: [$x]}.", 7, ""),
    (graph(f"- {NODE}\n- {NODE}"), "the value 'h' is made twice.", 8, "old.yaml:7:16"),
    (graph("- {name: x, call: module:m, args: [$x]}", outputs="[$x]"), "the value 'x' is made twice.", 7, ""),
    (graph(f"- {NODE}\n- {{name: g, call: op:m, args: [$h]}}"), "'m' is also a module here.", 8, "rename the module"),
    (graph("- {name: h-1, call: module:m, args: [$x]}", outputs="[$h-1]"), "'h-1' is not a name: letters, digits and _ only, no keyword of Python.", 7, ""),
    (graph(modules="{m: {_type_: nn.Linaer}}"), "torch has no module type 'nn.Linaer'.", 5, "did you mean 'nn.Linear'?"),
    (graph(modules="{m: {_type_: conv_bn}}"), "no module type or block is called 'conv_bn'.", 5, "did you mean 'conv_bn_act'?"),
    (graph(modules="{m: {_type_: nn.ReLU, in_place: true}}"), "'ReLU' has no argument 'in_place'.", 5, "did you mean 'inplace'?"),
    (graph(modules="{m: {_type_: nn.ReLU, _arg_: []}}"), "a spec has no key '_arg_'.", 5, "did you mean '_args_'?"),
    (graph(modules="{m: {_type_: nn.ReLU, inplace: true, _kwargs_: {inplace: true}}}"), "the argument 'inplace' is given twice.", 5, ""),
    (graph(modules="{m: {_type_: nn.ReLU, _target_: torch.nn.ReLU}}"), "a spec has '_type_' or '_target_', not both.", 5, ""),
    (graph(modules="{m: {_type_: mlp, dims: {a: {_type_: nn.ReLU}}}}"), "modules cannot be given in a mapping.", 5, "in a list"),
    (graph(modules="{x: {_type_: nn.ReLU}}").replace("module:m", "module:x"), "the name 'x' stands here twice.", 5, ""),
    (graph("- {name: h, call: op:relu, args: [$relu]}").replace("[x]", "[relu]"), "h: 'relu' is a value and cannot be called.", 7, ""),
    (graph(top="settings: {strict: 1}\n"), "'strict' is true or false.", 2, ""),
    (graph(top="templates: []\n"), "'templates' has to be a mapping of names.", 2, ""),
    (graph(modules="{m: {_template_: hd}}", top="templates: {head: {}}\n"), "no template is called 'hd'.", 6, "did you mean 'head'?"),
    (graph(modules="{m: {_template_: a}}", top="templates: {a: {_template_: b}, b: {_template_: a}}\n"), "the template 'a' contains itself: a -> b -> a.", 2, ""),
    (graph(top="a: ${b}\nb: ${a}\n"), "these values use each other in a circle: a -> b -> a.", 2, ""),
    (graph(modules='{m: {_type_: nn.Dropout, p: "${params.rate}"}}', top="params: {rat: 0.5}\n"), "no value is called 'params.rate'.", 6, "did you mean 'params.rat'?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "line", "hint"), WRONG, ids=[message for _, message, _, _ in WRONG])
def test_what_is_wrong_is_said_with_its_place(problems1: Callable, text: str, message: str, line: int, hint: str):
    found = {problem.message: problem for problem in problems1(text)}
    assert message in found
    assert found[message].place.line == line
    assert hint in found[message].hint


def test_all_that_is_wrong_is_said_together(problems1: Callable):
    nodes = "- {name: a, call: module:n, args: [$y]}\n- {name: h, call: module:m, args: [$a, $b]}\n"
    found = problems1(graph(nodes, modules="{m: {_type_: nn.Foo}}", outputs="[$h]\n    return: list"))
    assert [problem.place.line for problem in found] == [5, 7, 7, 8, 10]


def test_what_is_unused_or_unknown_is_a_warning_with_its_place(write1: Callable):
    nodes = f"- {NODE}\n- {{name: g, call: op:relu, args: [$x], arguments: []}}\n"
    path = write1(graph(nodes, modules="{m: {_type_: nn.ReLU}, n: {_type_: nn.Linear, _args_: [1, 1]}}"))
    with pytest.warns(UserWarning) as caught:
        model = build_model(path)
    said = [str(warning.message).splitlines()[0].removeprefix(str(path)) for warning in caught]
    assert said == [
        ":8:46  a node has no key 'arguments'.",
        ":8:16  nothing uses the node 'g': it is left out.",
        ":5:37  nothing uses the module 'n': it is left out.",
    ]
    assert {(warning.filename, warning.lineno) for warning in caught} == {(str(path), 5), (str(path), 8)}
    assert list(model.spec["graph"]) == ["h"] and not list(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(build_model(model.spec)(torch.ones(2)), torch.ones(2))


def test_a_node_that_order_does_not_hold_is_left_out_with_a_warning(write1: Callable):
    nodes = "h: {call: module:m, args: [$x]}\ng: {call: module:m, args: [$x]}\n"
    with pytest.warns(UserWarning, match="'order' does not hold the node 'g'"):
        build_model(write1(graph(nodes, outputs="[$h]\n    order: [h]")))


def test_order_is_not_read_beside_a_list(write1: Callable):
    with pytest.warns(UserWarning, match="'order' is not read"):
        build_model(write1(graph(outputs="[$h]\n    order: [g]")))


def test_a_failure_at_run_time_shows_the_older_file(write1: Callable):
    model = build_model(write1(graph("- {name: h, call: op:cat, args: [[$x, $x]],\n   kwargs: {dim: 7}}\n")))
    with pytest.raises(IndexError) as caught:
        model(torch.ones(2))
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (Path(frame.filename).name, frame.lineno) == ("old.yaml", 7)
    assert frame.line[frame.colno - frame._original_line.index(frame.line[0]) :].startswith("op:cat")


def test_a_failure_in_what_a_base_file_says_shows_the_base_file():
    model = build_model(FILES / "narrow.yaml")
    with pytest.raises(RuntimeError) as caught:
        model(torch.randn(1, 3, 8, 8), torch.randn(1, 4))
    assert "base.yaml:23:32  in node 'embedded'" in caught.value.__notes__[0]


# what is filled in before a file is read


def test_a_template_is_laid_under_what_uses_it(write1: Callable):
    top = """\
        templates:
          plain: {_type_: nn.Linear, in_features: 4, out_features: 4}
          narrow: {_template_: plain, out_features: 2, _kwargs_: {bias: true}}
        """
    path = write1(graph(modules="{m: {_template_: narrow, _kwargs_: {bias: false}}}", top=textwrap.dedent(top)))
    assert build_model(path).spec["modules"] == {"m": "Linear(bias=False, in_features=4, out_features=2)"}
    assert "templates" not in resolve_config(path).data


def test_templates_cannot_ask_for_unbounded_work(problems1: Callable):
    chain = "".join(f"  t{i}: [{{_template_: t{i + 1}}}, {{_template_: t{i + 1}}}]\n" for i in range(20))
    (problem,) = problems1(graph(modules="{m: {_template_: t0}}", top=f"templates:\n{chain}  t20: 1\n"))
    assert "expand to more than" in problem.message
    chain = "".join(f"  t{i}: {{_template_: t{i + 1}}}\n" for i in range(3000))
    (problem,) = problems1(graph(modules="{m: {_template_: t0}}", top=f"templates:\n{chain}  t3000: {{}}\n"))
    assert "nested more than 60 deep" in problem.message


def test_a_whole_scalar_keeps_its_type_and_a_part_is_text(write1: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OLD_WIDTH", " 7 ")
    top = """\
        params: {width: 32, list: [3, {deep: 4}], none: null}
        found:
          a: ${params.width}
          b: "w_${params.width}"
          c: ${params.list[1].deep}
          d: ${params.list}
          e: ${env:int:OLD_WIDTH}
          f: ${env:OLD_ABSENT,x}
          g: ${params.none}
          h: ${found.a}
        """
    data = resolve_config(write1(graph(top=textwrap.dedent(top)))).data
    expected = {"a": 32, "b": "w_32", "c": 4, "d": [3, {"deep": 4}], "e": 7, "f": "x", "g": None, "h": 32}
    assert data["found"] == expected


def test_defaults_are_merged_and_overrides_set_before_anything_is_filled_in():
    assert resolve_config(FILES / "narrow.yaml").data["model"]["graph"]["modules"]["mean"]["in_features"] == 4
    model = build_model(FILES / "narrow.yaml", overrides=["params.width=6"])
    assert model.stem.conv.out_channels == model.mean.in_features == 6


def test_an_expression_of_two_files_is_shown_in_one_of_them(write1: Callable, problems1: Callable):
    spec = "{_type_: nn.Linear, in_features: 3, out_featurs: 4}"
    write1("#\n" * 50 + graph(modules=f"{{m: {spec}}}"), "base.yaml")
    text = "defaults: [base.yaml]\nmodel: {graph: {modules: {m: {bias: false}}}}\n"
    (problem,) = problems1(text)
    assert problem.message == "'Linear' has no argument 'out_featurs'."
    assert problem.place.text == Path(problem.place.file).read_text().splitlines()[problem.place.line - 1]


def test_resolve_config_takes_documents_and_files_of_version_2(write: Callable):
    document = {"schema_version": 1, "a": "${b}", "b": 2, "model": {"sequential": {"layers": [{"_type_": "nn.ReLU"}]}}}
    assert resolve_config(document).data == {**document, "a": 2}
    assert resolve_config(write("inputs: {x: any}\noutputs: x\n")).data["outputs"] == "x"


def test_compile_ir_checks_a_file_and_builds_nothing(write1: Callable):
    spec = "{_type_: nn.Linear, in_features: 100000000, out_features: 100000000}"
    ir = compile_ir(write1(graph(modules=f"{{m: {spec}}}")))
    assert [statement.key for statement in ir.order] == ["h"] and ir.modules == {"m"}
    with pytest.raises(model_constructor.errors.ConfigError, match="no value is called 'y'"):
        compile_ir(write1(graph(outputs="[$y]")))


def test_a_file_of_version_1_is_a_block_of_a_file_of_version_2(write: Callable, write1: Callable):
    write1(graph("- {name: h, call: op:relu, args: [$x]}", modules="{}"), "relu.yaml")
    write1(graph(modules="{m: {_type_: nn.Linear, _args_: [3, 3]}}"), "linear.yaml")
    model = build_model(
        write("""\
        inputs: {x: [B, 3]}
        blocks: {old_relu: relu.yaml, old_linear: linear.yaml}
        modules: {part: old_linear()}
        outputs: old_relu(part(x))
        """)
    )
    x = torch.randn(2, 3)
    assert torch.equal(model(x), model.part.m(x).relu())
    assert build_model(model.spec).spec == model.spec


# what is registered, and what is imported


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of the user's own, whose module `blocks` registers a type and an op as version 1 did."""
    name = f"old_package_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "blocks.py").write_text(
        textwrap.dedent(f"""\
        from torch import nn

        class Scale(nn.Module):
            def __init__(self, by=1):
                super().__init__()
                self.by = by

            def forward(self, x):
                return {{"scaled": self.by * x, "plain": x}}

        def factory(by):
            return Scale(by)

        def register(registry):
            registry.register_module("{name}.scale", Scale, signature_policy="strict", tags=("own",))
            registry.register_op("{name}.negate", lambda x: -x)
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    known = {registry: dict(registry._entries) for registry in (TYPES, OPS)}
    yield name
    for registry, entries in known.items():
        registry._entries = entries
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def importing(package: str, top: str = "") -> str:
    nodes = f"""\
        - {{name: r, call: module:m, args: [$x], out: {{scaled: s, plain: p}}}}
        - {{name: n, call: 'op:{package}.negate', args: [$s]}}
        - {{name: h, call: op:add, args: [$n, $p]}}
        """
    return graph(nodes, modules=f"{{m: {{_type_: {package}.scale, by: 3}}}}", top=f"{top}imports: [{package}.blocks]\n")


def test_an_imported_module_registers_with_names_that_have_dots(write1: Callable, package: str):
    model = build_model(write1(importing(package)), allow_imports=(package,))
    assert model(torch.tensor(2.0)) == -6 + 2
    assert build_model(model.spec, allow_imports=(package,))(torch.tensor(2.0)) == -4
    assert pickle.loads(pickle.dumps(model))(torch.tensor(2.0)) == -4
    assert build_model(write1(importing(package)), allow_imports=(package,)).m.by == 3  # registered a second time


REFUSED = [  # settings of the file, what the caller allows, message
    ("", (), "the import of '{}.blocks' is not allowed."),
    ("settings: {allow_imports: true, allowed_import_prefixes: [old_package_]}\n", (), "the import of '{}.blocks' is not allowed."),
    ("settings: {allow_imports: false}\n", ("{}",), "the imports are switched off by 'allow_imports'."),
    ("settings: {allowed_import_prefixes: [other.]}\n", ("{}",), "'{}.blocks' begins with none of 'allowed_import_prefixes'."),
    ("settings: {allowed_import_prefixes: []}\n", ("{}",), "'{}.blocks' begins with none of 'allowed_import_prefixes'."),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "allowed", "message"), REFUSED)
def test_a_file_imports_what_the_caller_and_the_file_both_allow(
    problems1: Callable, package: str, settings: str, allowed: tuple[str, ...], message: str
):
    found = problems1(importing(package, settings), allow_imports=tuple(name.format(package) for name in allowed))
    assert message.format(package) in [problem.message for problem in found]
    assert f"{package}.blocks" not in sys.modules


def targeting(path: str, settings: str = "settings: {allow_target: true}\n") -> str:
    nodes = "- {name: r, call: module:m, args: [$x], out: {scaled: h}}\n"
    return graph(nodes, modules=f"{{m: {{_target_: {path}, by: 3}}}}", top=settings)


def test_a_target_is_a_class_of_a_package_that_the_caller_allows(write1: Callable, package: str):
    model = build_model(write1(targeting(f"{package}.blocks.Scale")), allow_imports=(package,))
    assert model(torch.tensor(2.0)) == 6
    assert model.spec["imports"] == [f"{package}.blocks:Scale"]
    assert build_model(model.spec, allow_imports=(package,))(torch.tensor(2.0)) == 6
    with pytest.raises(ConfigError, match="is not allowed"):
        build_model(model.spec)


TARGETS = [
    ("{}.blocks.Scale", "settings: {allow_target: true}\n", (), "the import of '{}.blocks' is not allowed."),
    ("{}.blocks.Scale", "", ("{}",), "'_target_' is switched off by 'allow_target'."),
    ("{}.blocks.Scale", "settings: {allow_target: true, allowed_import_prefixes: [torch.]}\n", ("{}",), "'{}.blocks.Scale' begins with none of 'allowed_import_prefixes'."),
    ("{}.blocks.factory", "settings: {allow_target: true}\n", ("{}",), "'{}.blocks' has no module class 'factory'."),
    ("{}.blocks.Scael", "settings: {allow_target: true}\n", ("{}",), "'{}.blocks' has no module class 'Scael'."),
    ("Scale", "settings: {allow_target: true}\n", ("{}",), "'_target_' is the import path of a class."),
    ("{}.absent.Scale", "settings: {allow_target: true}\n", ("{}",), "'{}.absent' cannot be imported: No module named '{}.absent'."),
]  # fmt: skip


@pytest.mark.parametrize(("path", "settings", "allowed", "message"), TARGETS)
def test_any_other_target_is_refused(
    problems1: Callable, package: str, path: str, settings: str, allowed: tuple[str, ...], message: str
):
    text = targeting(path.format(package), settings)
    found = problems1(text, allow_imports=tuple(name.format(package) for name in allowed))
    assert [problem.message for problem in found] == [message.replace("{}", package)]


def test_without_strict_a_key_with_an_underscore_is_an_argument(write1: Callable, package: str):
    importlib.import_module(f"{package}.blocks").register(Registry())
    spec = f"{{m: {{_type_: {package}.scale, _by: 3}}}}"
    with pytest.raises(ConfigError, match=r"scale' has no argument '_by'"):
        build_model(write1(graph(modules=spec, top="settings: {strict: false}\n")))


@pytest.mark.parametrize("register", [Registry().register_module, Registry().register_op])
def test_a_signature_policy_is_one_of_three(register: Callable):
    with pytest.raises(ConfigError, match="did you mean 'strict'"):
        register("part", nn.Identity, signature_policy="strickt")
    assert not TYPES.has("part") and not OPS.has("part")


def test_true_is_no_version(write: Callable):
    path = write("inputs: {x: any}\noutputs: x\n")
    path.write_text(path.read_text().replace("2", "true"))
    with pytest.raises(ConfigError, match="schema_version is true; it has to be the number 2"):
        build_model(path)


def test_a_registered_type_that_hides_one_of_torch_is_not_taken_for_it(problems1: Callable, package: str):
    Registry().register_module("ReLU", nn.Tanh)
    (problem,) = problems1(graph(modules="{m: {_type_: nn.ReLU}}"))
    assert problem.message == "'ReLU' is registered, which hides torch's."


# checkpoints


def old_weights(model: GraphModel, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of the older system: all modules under `graph_modules`."""
    return {f"{prefix}graph_modules.{key}": torch.randn(value.shape) for key, value in model.state_dict().items()}


def test_a_checkpoint_of_version_1_loads(write1: Callable):
    model = build_model(write1(graph(modules="{m: {_type_: nn.Linear, _args_: [3, 3]}}")))
    weights = old_weights(model)
    given = dict(weights)
    assert not any(model.load_state_dict(weights))
    assert torch.equal(model.m.weight, given["graph_modules.m.weight"]) and weights == given
    for twin in (build_model(model.spec), pickle.loads(pickle.dumps(model))):
        twin.load_state_dict(weights)
        assert torch.equal(twin.m.bias, given["graph_modules.m.bias"])


def test_a_checkpoint_of_version_1_loads_into_a_policy_of_several_models(write1: Callable):
    spec = "{m: {_type_: nn.Linear, _args_: [3, 3]}}"
    policy = nn.ModuleDict({"head": build_model(write1(graph(modules=spec))), "other": nn.Linear(2, 2)})
    weights = old_weights(policy["head"], "head.") | {f"other.{k}": v for k, v in policy["other"].state_dict().items()}
    policy.load_state_dict(weights)
    assert torch.equal(policy["head"].m.weight, weights["head.graph_modules.m.weight"])


def test_a_checkpoint_of_version_1_has_to_be_complete(write1: Callable):
    model = build_model(write1(graph(modules="{m: {_type_: nn.Linear, _args_: [3, 3]}}")))
    weights = old_weights(model)
    with pytest.warns(UserWarning, match="modules that the model does not have: unused"):
        model.load_state_dict({**weights, "graph_modules.unused.weight": torch.zeros(1)})
    del weights["graph_modules.m.bias"]
    with pytest.raises(RuntimeError, match=re.escape('Missing key(s) in state_dict: "m.bias"')):
        model.load_state_dict(weights)


def test_a_module_that_is_called_graph_modules_keeps_its_weights(build: Callable):
    model = build("inputs: {x: any}\nmodules: {graph_modules: {m: 'Linear(3, 3)'}}\noutputs: graph_modules.m(x)\n")
    weights = {key: torch.randn(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    assert torch.equal(model.graph_modules.m.weight, weights["graph_modules.m.weight"])
