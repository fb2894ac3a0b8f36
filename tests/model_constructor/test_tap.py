"""Taps: the values inside a running model by the names of the file, against the same model written by hand."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import traceback
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from model_constructor import ConfigError, GraphModel

MODEL = """\
params: {depth: 3, extra: false}
inputs:
  x: [B, T, 4]
  clock: [B, 4]
  mask: {shape: [B, T], optional: true}
blocks:
  gate: {inputs: {h: any, by: any}, graph: {g: sigmoid(by)}, outputs: h * g}
  layer:
    inputs: {h: [B, T, 4], clock: [B, 4]}
    modules: {norm: LayerNorm(4), modulation: "Linear(4, 8)", fc: "Linear(4, 4)"}
    graph:
      shift, scale: modulation(clock)[:, None].chunk(2, -1)
      a: norm(h) * (1 + scale) + shift
    outputs: "h + gate(fc(a), clock[:, None])"
modules:
  layers: layer() * depth
  shared: layer()
  experts: layer() * 2
  head: Linear(4, 2)
graph:
  h: layers(x, clock)
  twice: shared(shared(h, clock), clock)
  hs: experts.scan(twice, clock)
  masked: twice if mask is None else twice * mask[..., None]
  unused: head(twice) if extra else 0
outputs: {y: "head(masked + hs[-1])", zero: unused}
"""


def by_hand(model: nn.Module, x: torch.Tensor, clock: torch.Tensor) -> dict:
    values: dict = {}

    def layer(path: str, h: torch.Tensor) -> torch.Tensor:
        module = model.get_submodule(path)
        shift, scale = module.modulation(clock)[:, None].chunk(2, -1)
        a = module.norm(h) * (1 + scale) + shift
        out = h + module.fc(a) * torch.sigmoid(clock[:, None])
        inside = {"modulation": module.modulation(clock), "shift": shift, "scale": scale, "a": a, "fc": module.fc(a)}
        for name, value in inside.items():
            values.setdefault(f"{path}.{name}", []).append(value)
        values.setdefault(path, []).append(out)
        return out

    h = x
    for i in range(3):
        h = layer(f"layers.{i}", h)
    values["h"] = [h]
    values["twice"] = [layer("shared", layer("shared", h))]
    first = layer("experts.0", values["twice"][0])
    values["hs"] = [[first, layer("experts.1", first)]]
    values["masked"] = values["twice"]
    values["head"] = [model.head(values["masked"][0] + values["hs"][0][1])]
    return {name: value[0] if len(value) == 1 else value for name, value in values.items()}


@pytest.fixture
def model(build: Callable) -> GraphModel:
    return build(MODEL)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 5, 4), torch.randn(2, 4)


@pytest.mark.parametrize(
    ("selectors", "names"),
    [
        (["h"], ["h"]),
        (["h", "masked", "hs"], ["h", "masked", "hs"]),
        (["layers[*].a"], ["layers.0.a", "layers.1.a", "layers.2.a"]),
        (["layers[1].shift", "layers.1.scale"], ["layers.1.shift", "layers.1.scale"]),
        (["shared.a", "shared"], ["shared.a", "shared"]),
        (["head"], ["head"]),
        (["layers[*]"], ["layers.0", "layers.1", "layers.2"]),
        (["layers[2].fc", "experts[1]"], ["layers.2.fc", "experts.1"]),
        (["layers[*].type:Linear"], [f"layers.{i}.{m}" for i in range(3) for m in ("modulation", "fc")]),
        (
            ["type:layer.a"],
            [f"{m}.a" for m in ("layers.0", "layers.1", "layers.2", "shared", "experts.0", "experts.1")],
        ),
        (["experts.**.a"], ["experts.0.a", "experts.1.a"]),
    ],
)
def test_what_is_tapped_is_what_the_model_computes(model: GraphModel, inputs: tuple, selectors: list, names: list):
    expected = by_hand(model, *inputs)
    plain = model(*inputs)
    with model.tap(*selectors) as taps:
        result = model(*inputs)
    torch.testing.assert_close(result, plain)
    assert taps.keys() == set(names)
    torch.testing.assert_close(dict(taps), {name: expected[name] for name in names})


def test_everything_can_be_tapped_at_once(model: GraphModel, inputs: tuple):
    with model.tap("**") as taps:
        result = model(*inputs)
    expected = by_hand(model, *inputs)
    assert expected.keys() <= taps.keys() and len(taps["shared.a"]) == len(taps["shared.fc"]) == 2
    torch.testing.assert_close({name: taps[name] for name in expected}, expected)
    assert taps[""] is result and taps["unused"] == 0


def test_tapped_values_carry_gradients(model: GraphModel, inputs: tuple):
    with model.tap("layers[0].a") as taps:
        result = model(*inputs)
    (gradient,) = torch.autograd.grad(result["y"].sum(), taps["layers.0.a"])
    assert gradient.shape == (2, 5, 4) and gradient.abs().sum() > 0


def test_a_name_computed_in_several_calls_has_all_its_values_in_order(model: GraphModel, inputs: tuple):
    with model.tap("h", "shared.a") as taps:
        model(*inputs)
        model(2 * inputs[0], inputs[1])
    first, second = (by_hand(model, scale * inputs[0], inputs[1]) for scale in (1, 2))
    torch.testing.assert_close(taps["h"], [first["h"], second["h"]])
    torch.testing.assert_close(taps["shared.a"], first["shared.a"] + second["shared.a"])


def test_a_module_under_two_names_is_tapped_under_both(build: Callable, inputs: tuple):
    model = build(MODEL)
    model.layers[1] = model.layers[0]
    with model.tap("layers[*].a", "layers[*].fc") as taps:
        model(*inputs)
    torch.testing.assert_close(taps["layers.0.a"], taps["layers.1.a"])
    assert len(taps["layers.0.a"]) == len(taps["layers.1.fc"]) == 2 and taps["layers.2.a"].shape == (2, 5, 4)


def test_an_untapped_branch_and_a_list_without_members_are_absent(build: Callable, inputs: tuple):
    model = build(MODEL, params={"depth": 0})
    with model.tap("layers[*].a", "h") as taps:
        model(*inputs)
    assert list(taps) == ["h"] and taps["h"] is inputs[0]


# nothing is left behind, and nothing is there before


def state(model: nn.Module) -> list:
    return [
        (name, type(module), sorted(module.__dict__), len(module._forward_hooks), module.forward.__func__)
        for name, module in model.named_modules()
    ]


def test_a_model_is_untouched_before_and_after_and_untapped_blocks_during(model: GraphModel, inputs: tuple):
    before = state(model)
    with model.tap("layers[1].a", "head"):
        changed = [name for name, module in model.named_modules() if "forward" in module.__dict__]
        hooked = [name for name, module in model.named_modules() if module._forward_hooks]
        model(*inputs)
    assert (changed, hooked) == (["layers.1"], ["head"])
    assert state(model) == before


def test_it_is_untouched_after_an_exception_too(model: GraphModel, inputs: tuple):
    before = state(model)
    with pytest.raises(RuntimeError, match="normalized_shape"), model.tap("**"):
        model(torch.zeros(2, 5, 3), inputs[1])
    with pytest.raises(ConfigError), model.tap("head", "layers[1].a", "haed"):
        raise AssertionError("the tap was not to open")
    assert state(model) == before


def test_a_failure_inside_a_tapped_block_still_shows_the_line_of_the_file(model: GraphModel, inputs: tuple):
    with model.tap("layers[1].a"):
        try:
            model.layers[1](torch.zeros(2, 5, 3), inputs[1])
        except RuntimeError as error:
            lines = [frame.line for frame in traceback.extract_tb(error.__traceback__)]
    assert "a: norm(h) * (1 + scale) + shift" in lines


def test_taps_nest_and_close_in_any_order(model: GraphModel, inputs: tuple):
    before, expected = state(model), by_hand(model, *inputs)
    outer, inner = model.tap("layers[0].a", "head"), model.layers[0].tap("a", "shift")
    first = outer.__enter__()
    model(*inputs)
    second = inner.__enter__()
    model(*inputs)
    outer.__exit__(None, None, None)
    model(*inputs)
    inner.__exit__(None, None, None)
    model(*inputs)
    assert state(model) == before
    torch.testing.assert_close(first["layers.0.a"], [expected["layers.0.a"]] * 2)
    torch.testing.assert_close(second["a"], [expected["layers.0.a"]] * 2)
    torch.testing.assert_close(second["shift"], [expected["layers.0.shift"]] * 2)


def test_a_forward_that_was_set_on_the_instance_is_there_again_afterwards(model: GraphModel, inputs: tuple):
    own = model.forward
    model.forward = lambda *arguments: own(*arguments)
    kept = model.forward
    with model.tap("h") as taps:
        model(*inputs)
    assert "h" in taps and model.forward is kept


def test_calls_from_other_threads_are_recorded(model: GraphModel, inputs: tuple):
    with model.tap("h", "layers[*].a") as taps:
        threads = [threading.Thread(target=model, args=inputs) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    torch.testing.assert_close(taps["h"], [by_hand(model, *inputs)["h"]] * 4)


def test_a_tap_keeps_no_model_alive(build: Callable, inputs: tuple):
    model = build(MODEL)
    with model.tap("h", "layers[*].a"):
        model(*inputs)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_a_copy_or_pickle_made_while_a_tap_is_open_is_not_tapped(model: GraphModel, inputs: tuple):
    with model.tap("h", "layers[*].a") as taps:
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(*inputs), model(*inputs))
            assert "forward" not in twin.__dict__
    assert len(taps["h"]) == 2


@pytest.mark.parametrize("how", [pytest.param("compiled before", marks=pytest.mark.slow), "compiled inside"])
def test_it_works_under_torch_compile(model: GraphModel, inputs: tuple, how: str):
    torch._dynamo.reset()
    expected = by_hand(model, *inputs)
    compiled = torch.compile(model, backend="aot_eager")
    if how == "compiled before":
        compiled(*inputs)
    with model.tap("h", "layers[*].a") as taps:
        result = compiled(*inputs)
    torch.testing.assert_close(result["y"], expected["head"])
    torch.testing.assert_close({name: taps[name] for name in taps}, {name: expected[name] for name in taps})
    assert set(taps) == {"h", "layers.0.a", "layers.1.a", "layers.2.a"}
    torch.testing.assert_close(compiled(*inputs)["y"], expected["head"])
    assert not isinstance(taps["h"], list)


# what is wrong


@pytest.mark.parametrize(
    ("selector", "message", "hint"),
    [
        ("hh", "'hh' selects nothing", "did you mean 'h'?"),
        ("layers[*].aa", "'layers[*].aa' selects nothing", "did you mean 'layers[*].a'?"),
        ("layers[3].a", "'layers[3].a' selects nothing", "layers[2].a"),
        ("layers[0].h", "'layers[0].h' selects nothing", "layers[0].a"),
        ("x", "'x' selects nothing", "known here"),
        ("head.weight", "'head.weight' selects nothing", "head, "),
        ("layers", "'layers' only holds modules", "layers[*]"),
        ("a b", "'a b' is no selector", "layers[0].q"),
    ],
)
def test_a_selector_of_nothing_that_is_computed_is_an_error_with_the_nearest(
    model: GraphModel, selector: str, message: str, hint: str
):
    with pytest.raises(ConfigError) as caught, model.tap("h", selector):
        pass
    (problem,) = caught.value.problems
    assert message in problem.message and hint in problem.hint


def test_a_dead_node_is_not_there_to_be_tapped(build: Callable):
    text = "params: {on: false}\ninputs: {x: any}\ngraph: {a: x + 1, b: x + 2}\noutputs: a if on else b\n"
    with pytest.raises(ConfigError, match="'a' selects nothing"), build(text).tap("a"):
        pass
    with build(text, params={"on": True}).tap("a"):
        pass


def test_reading_what_is_not_there_says_why(model: GraphModel, inputs: tuple):
    with model.tap("h", "layers[0].a") as taps:
        with pytest.raises(KeyError, match="'h' has not been computed"):
            taps["h"]
        model(*inputs)
        with pytest.raises(KeyError, match=r"'layers.0.b' is not tapped.*did you mean 'layers.0.a'"):
            taps["layers.0.b"]
    assert "h" in taps and "x" not in taps and len(taps) == 2
