"""`model.component_build_args`: each key has its effect, in an order in which none undoes another."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model_constructor import ConfigError, GraphModel, register
from trainer.config import load_run_config
from trainer.config.schemas import BuildArgs
from trainer.modeling import apply_build_args, build_components
from trainer.modeling.build_args import prepare_component
from trainer.modeling.recompute import Recomputed


@pytest.fixture
def prepare(tmp_path: Path, place: Callable) -> Callable[..., GraphModel]:
    """The component with these build args; files lie in the test's folder."""

    def prepared(component: GraphModel, **args: object) -> GraphModel:
        prepare_component(component, "tower", BuildArgs.model_validate(args), lambda text: tmp_path / text, place)
        return component

    return prepared


def test_by_default_a_component_is_what_its_file_builds(
    build_tower: Callable[..., GraphModel], prepare: Callable
) -> None:
    left, made = build_tower(), prepare(build_tower())
    assert all(torch.equal(value, left.state_dict()[name]) for name, value in made.state_dict().items())
    assert all(one.requires_grad for one in made.parameters())
    assert not any("forward" in vars(module) or "train" in vars(module) for module in made.modules())
    assert made._compiled_call_impl is None


def test_all_of_them_together(build_tower: Callable[..., GraphModel], prepare: Callable, tmp_path: Path) -> None:
    given = build_tower(seed=9).state_dict()
    del given["head.weight"], given["head.bias"]
    torch.save(given, tmp_path / "w.pt")
    tower = prepare(
        build_tower(),
        init=True,
        weights={"path": "w.pt", "strict": False},
        dtype="bfloat16",
        lora={"rank": 2, "targets": ["layers[*].q"]},
        freeze=["layers[0]"],
        gradient_checkpointing=True,
        compile=True,
    )
    assert torch.equal(tower.layers[1].q.weight, given["layers.1.q.weight"].bfloat16())  # the file after init
    assert torch.equal(tower.head.bias, torch.zeros(2, dtype=torch.bfloat16))  # init where the file has nothing
    trains = {name for name, one in tower.named_parameters() if one.requires_grad}
    assert trains == {f"layers.{n}.q.lora_{half}" for n in (1, 2) for half in "AB"}  # a frozen layer's do not
    assert not tower.train().layers[0].training
    assert isinstance(tower.layers[2].forward, Recomputed)
    assert tower._compiled_call_impl is not None
    with torch.compiler.set_stance("force_eager"):
        tower(torch.ones(4, 8)).sum().backward()
    assert tower.layers[1].q.lora_B.grad is not None


def test_what_it_saves_is_read_by_a_component_with_the_same_args(
    build_tower: Callable[..., GraphModel], prepare: Callable, x: torch.Tensor
) -> None:
    given = {"dtype": "bfloat16", "lora": {"rank": 2, "targets": ["head"]}}
    trained = prepare(build_tower(), init=True, freeze=["layers"], compile=True, gradient_checkpointing=True, **given)
    trained.head.lora_B.data.normal_()
    again = build_tower(seed=4)
    apply_build_args(again, BuildArgs.model_validate({**given, "init": True, "freeze": ["layers"]}))
    again.load_state_dict(trained.state_dict())
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(again.eval()(x), trained.eval()(x))


@pytest.mark.slow  # the compiler takes its time
def test_compiled_it_computes_the_same_to_rounding(
    build_tower: Callable[..., GraphModel], prepare: Callable, x: torch.Tensor
) -> None:
    losses = []
    args = {"gradient_checkpointing": True, "lora": {"rank": 2, "targets": ["head"]}}
    for compiled in (False, True):
        tower = prepare(build_tower(dropout=0.0), compile=compiled, **args).train()
        optimizer = torch.optim.SGD([one for one in tower.parameters() if one.requires_grad], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            loss = tower(x).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(
            torch.stack([loss.detach(), tower.head.lora_B.norm().detach(), tower.layers[1].norm.running_var.sum()])
        )
        assert set(tower.state_dict()) == {*build_tower().state_dict(), "head.lora_A", "head.lora_B"}
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)


@register("DrawnByOthers")
class DrawnByOthers(nn.Module):
    """A block that draws its values outside torch."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor([np.random.rand(), random.random()]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.offset.sum()


def test_components_depend_on_the_seed_alone(config: Path) -> None:
    encoder = config.parent / "encoder.yaml"
    encoder.write_text(encoder.read_text().replace("Dropout(0.1)", "DrawnByOthers()"))
    run_config = load_run_config(
        config, ["model.component_build_args={head: {init: true}, encoder: {lora: {rank: 2, targets: [net.0]}}}"]
    )
    first = build_components(run_config)
    torch.randn(7), np.random.rand(), random.random()
    second, other = build_components(run_config), build_components(load_run_config(config, ["seed=4"]))
    assert {"encoder.net.0.lora_A", "encoder.net.2.offset"} <= first.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first["head"].out.weight, other["head"].out.weight)


@pytest.mark.parametrize("folder", ["configs", "."])
def test_weights_are_found_beside_the_config_or_in_the_project(config: Path, project: Path, folder: str) -> None:
    weights = {"out.weight": torch.ones(8, 8), "out.bias": torch.ones(8)}
    torch.save(weights, project / folder / "w.pt")
    models = build_components(load_run_config(config, ["model.component_build_args={head: {weights: w.pt}}"]))
    assert all(torch.equal(value, weights[name]) for name, value in models["head"].state_dict().items())


def test_everything_wrong_in_every_component_is_told_at_once_where_it_is(config: Path) -> None:
    args = [
        "    encoder:",
        "      weights: nowhere.pt",
        "      freeze: [nt, net.0]",
        "      lora: {rank: 2, targets: [net.1]}",
        "      gradient_checkpointing: true",
        "    head: {freeze: [ot]}",
    ]
    config.write_text(config.read_text().replace("model:", "model:\n  component_build_args:\n" + "\n".join(args)))
    with pytest.raises(ConfigError) as raised:
        load_run_config(config)
    told = [(problem.message, problem.place.text[problem.place.column - 1 :]) for problem in raised.value.problems]
    for message, at in [
        ("component 'encoder': there is no file 'nowhere.pt'", "nowhere.pt"),
        ("'nt' selects nothing.", "nt, net.0]"),
        ("lora: 'net.1' is GELU, not a linear layer", "net.1]}"),
        ("gradient_checkpointing: no block repeats", "true"),
        ("'ot' selects nothing.", "ot]}"),
    ]:
        assert (message, at) in told
    assert len(told) == 5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("{freeze: true, lora: {rank: 2, targets: [out]}}", "freeze: true leaves nothing to lora"),
        ("{lora: {rank: 0, targets: [out]}}", r"lora.rank.* 0, not 0"),
        ("{lora: {rank: 1, targets: []}}", "lora.targets"),
        ("{lora: {rank: 1}}", "lora.targets' is missing"),
        ("{dtype: float16}", "dtype.*'float32' or 'bfloat16'"),
        ("{frezee: true}", "unknown key 'model.component_build_args.head.frezee'"),
    ],
)
def test_a_wrong_build_arg_is_explained(config: Path, args: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(config, [f"model.component_build_args={{head: {args}}}"])
