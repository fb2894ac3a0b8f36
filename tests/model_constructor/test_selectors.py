"""Selectors: one syntax for naming modules and parameters, against a regular expression over all qualified names."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from model_constructor import ConfigError, Place, build_model, register, select, select_parameters
from model_constructor.blocks import Attention


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model(
        {
            "schema_version": 2,
            "params": {"depth": 2},
            "inputs": {"x": ["B", "T", 8]},
            "blocks": {
                "layer": {
                    "inputs": {"h": ["B", "T", 8]},
                    "modules": {
                        "attn": "Attention(8, heads=2)",
                        "mlp": "Linear(8, 8) >> GELU() >> Linear(8, 8, bias=False)",
                        "norm": "LayerNorm(8)",
                        "scale": "Param(8)",
                        "cache": "Buffer(8)",
                    },
                    "outputs": "h + mlp(norm(attn(h))) * scale + cache",
                }
            },
            "modules": {
                "layers": "layer() * depth",
                "heads": {"left": "Linear(8, 3)", "right": ["Linear(8, 3)", "Conv1d(8, 3, 1)"]},
                "position": "Param(1, 4, 8)",
            },
            "graph": {"h": "layers(x + position)"},
            "outputs": ["heads.left(h)", "heads.right[0](h)", "heads.right[1](h.mT)"],
        },
        params={"depth": 12},
    )


def by_regular_expression(selector: str, model: nn.Module) -> set[str]:
    """The names that a selector matches: each segment of a name is written with its classes, as in /left<Linear Module>."""
    everything = dict(model.named_modules()) | dict(model.named_parameters()) | dict(model.named_buffers())
    written = {"": ""}
    for name, value in sorted(everything.items()):
        parent, _, last = name.rpartition(".")
        classes = type(value).__mro__ if isinstance(value, nn.Module) else ()
        if name:
            written[name] = f"{written[parent]}/{last}<{' '.join(kind.__name__ for kind in classes)}>"
    pattern = ""
    for step in re.sub(r"\[(.+?)\]", r".[\1]", selector).removeprefix(".").split("."):
        step = re.sub(r"\[([0-9]+)\]", r"\1", step)
        pattern += {"**": "(/[^/]+)*", "*": "/[^/]+", "[*]": r"/\d+<[^/]*>"}.get(step) or (
            rf"(/[^/]+)*/[^/<]+<[^/]*\b{step[5:]}\b[^/]*>" if step.startswith("type:") else rf"/{step}<[^/]*>"
        )
    return {name for name, text in written.items() if re.fullmatch(pattern, text)}


def select_or_nothing(selector: str, model: nn.Module) -> dict:
    try:
        return select(selector, model)
    except ConfigError:
        return {}


@pytest.mark.parametrize(
    ("selector", "count"),
    [
        ("layers[0].attn.q", 1),
        ("layers.0.attn.q", 1),
        ("layers[0].attn.q.weight", 1),
        ("layers[*].norm", 12),
        ("layers[11].*", 5),
        ("layers[*].mlp[0]", 12),
        ("layers[*].mlp[*].weight", 24),
        ("*", 3),
        ("**", None),
        ("**.bias", None),
        ("layers.**", None),
        ("layers.**.weight", None),
        ("layers.*.mlp.**.weight", 24),
        ("**.attn.**", None),
        ("type:Linear", None),
        ("type:layer", 12),
        ("type:Attention.q", 12),
        ("type:layer.scale", 12),
        ("layers[*].type:Linear", None),
        ("layers[*].mlp.type:Linear", 24),
        ("heads.type:Linear", 2),
        ("heads.**.type:Linear.bias", 2),
        ("type:layer.type:Linear.weight", None),
        ("type:_ConvNd", 1),
        ("heads.right[1]", 1),
        ("heads[*]", 0),
    ],
)
def test_a_selector_names_what_the_regular_expression_does(model: nn.Module, selector: str, count: int | None):
    found = select_or_nothing(selector, model)
    assert found.keys() == by_regular_expression(selector, model)
    assert len(found) == count if count is not None else found


def test_any_selector_names_what_the_regular_expression_does(model: nn.Module):
    chance = random.Random(0)
    names = [*dict(model.named_modules()), *dict(model.named_parameters())]
    matched = 0
    for _ in range(400):
        steps = chance.choice(names).split(".")
        for position, step in enumerate(steps):
            other = ["*", "**", "type:Linear", "type:layer", step + "x"] + ["[*]", f"[{step}]"] * step.isdecimal()
            if chance.random() < 0.4:
                steps[position] = chance.choice(other)
        selector = re.sub(r"\.\[", "[", ".".join(step for step in steps if step)) or "**"
        found = select_or_nothing(selector, model)
        assert found.keys() == by_regular_expression(selector, model), selector
        matched += bool(found)
    assert matched > 100


def test_what_is_named_comes_in_the_order_of_the_model_parents_first(model: nn.Module):
    found = select("**", model)
    assert [name for name, value in found.items() if isinstance(value, nn.Module)] == [
        n for n, _ in model.named_modules()
    ]
    assert [n for n, value in found.items() if isinstance(value, nn.Parameter)] == [
        n for n, _ in model.named_parameters()
    ]
    assert all(value is dict(model.named_modules()).get(name, value) for name, value in found.items())
    assert found["layers.3.cache"] is model.get_buffer("layers.3.cache") and found[""] is model


def test_a_type_is_a_class_or_one_derived_from_it_by_its_name_or_the_name_it_is_registered_by():
    @register("NameOfTestSelectors")
    class Written(nn.Linear): ...

    module = nn.Sequential(Written(2, 2), nn.Linear(2, 2))
    assert list(select("type:NameOfTestSelectors", module)) == list(select("type:Written", module)) == ["0"]
    assert list(select("type:Linear", module)) == ["0", "1"]


def test_what_stands_under_two_names_is_found_under_both_and_its_parameters_once():
    shared = nn.Linear(2, 2)
    module = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(2, 2)})
    module["c"].weight = shared.weight
    assert select("b", module)["b"] is shared and list(select("type:Linear", module)) == ["a", "b", "c"]
    assert list(select_parameters("type:Linear", module)) == ["a.weight", "a.bias", "c.bias"]
    assert list(select_parameters("c", module)) == ["c.weight", "c.bias"]


def test_it_selects_in_any_module():
    module = nn.Sequential(Attention(4, heads=2), nn.Sequential(nn.Linear(4, 4)))
    assert list(select("[1][0]", module)) == list(select("1.0", module)) == ["1.0"]
    assert list(select("[*].q", module)) == ["0.q"]


def test_parameters_are_those_named_and_those_of_the_modules_named(model: nn.Module):
    found = select_parameters("layers[*].attn", model)
    expected = {name: p for name, p in model.named_parameters() if ".attn." in name}
    assert list(found) == list(expected) and all(found[name] is p for name, p in expected.items())
    assert list(select_parameters("**", model)) == [name for name, _ in model.named_parameters()]
    assert list(select_parameters("layers[0].*", model)) == [
        n for n, _ in model.named_parameters() if n[:9] == "layers.0."
    ]


@pytest.mark.parametrize(
    ("selector", "what"), [("layers[*].mlp[1]", "module without any"), ("layers[0].cache", "buffer")]
)
def test_what_holds_no_parameter_is_an_error_where_parameters_are_wanted(model: nn.Module, selector: str, what: str):
    with pytest.raises(ConfigError, match=f"(?s)'{re.escape(selector)}' selects no parameter.*{what}"):
        select_parameters(selector, model)


@pytest.mark.parametrize(
    ("selector", "meant"),
    [
        ("layers[*].atn", "layers[*].attn"),
        ("layers[0].atn.q", "layers[0].attn.q"),
        ("layers.12.norm", "layers[2].norm"),
        ("postion", "position"),
        ("type:Liner", "type:Linear"),
        ("layers[*].type:Attenton", "type:Attention"),
    ],
)
def test_one_that_names_nothing_is_an_error_with_the_nearest_that_names_something(
    model: nn.Module, selector: str, meant: str
):
    place = Place("model.yaml", 3, 5)
    with pytest.raises(ConfigError) as caught:
        select(selector, model, place)
    (problem,) = caught.value.problems
    assert problem.message == f"'{selector}' selects nothing." and problem.place == place
    assert f"did you mean '{meant}'?" in problem.hint


@pytest.mark.parametrize(
    "selector",
    ["", ".", "a..b", ".a", "a.", "a[", "a[]", "a[-1]", "a[x]", "a[0", "a]", "norm*", "***", "type:", "a b", "a[0]b"],
)
def test_what_is_no_selector_is_an_error_that_shows_the_forms(selector: str):
    with pytest.raises(ConfigError, match=r"(?s)is no selector.*layers\[0\]\.q"):
        select(selector, nn.Linear(2, 2))


def test_an_entry_of_an_empty_list_names_nothing_and_is_no_error():
    module = nn.ModuleDict({"layers": nn.ModuleList(), "head": nn.Linear(2, 2)})
    assert select("layers[*].q", module) == select_parameters("**.q", module) == {}
    assert select("type:Conv2d", module) == {}
    for selector in ("layers[0].q", "haed[*]", "layrs[*].q", "head[*]", "type:Cnov2d", "layers[*].type:Cnov2d"):
        with pytest.raises(ConfigError, match="selects nothing"):
            select(selector, module)


def test_many_wildcards_take_no_longer_than_the_model_is_large():
    module: nn.Module = nn.Linear(2, 2)
    for _ in range(60):
        module = nn.Sequential(module)
    assert len(select(".".join(["**"] * 60 + ["weight"]), module)) == 1
    with pytest.raises(ConfigError, match="at most 100 steps"):
        select(".".join(["*"] * 101), module)
    assert torch.is_tensor(next(iter(select("**.**.bias", module).values())))


def test_two_stars_excuse_in_an_empty_list_only_names_that_the_file_has(build: Callable):
    text = """\
        params: {{depth: 0}}
        inputs: {{x: [B, 4]}}
        blocks: {{layer: {{inputs: {{x: any}}, modules: {{norm: LayerNorm(4)}}, outputs: norm(x)}}}}
        modules: {{layers: layer() * depth, head: "Linear(4, 4, bias=False)"}}
        outputs: head(layers(x))
        init: {{"{selector}": zeros}}
        """
    for selector in ("**.norm", "**.norm.weight", "**.bias", "layers[*].nrom", "type:layer"):
        build(text.format(selector=selector))
    with pytest.raises(ConfigError, match=r"(?s)'\*\*.haed' selects nothing.*known here: head"):
        build(text.format(selector="**.haed"))
