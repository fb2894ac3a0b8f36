"""Together the optimizers take every parameter that trains exactly once; a group is what it would be by itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model_constructor import ConfigError, GraphModel
from trainer.config import load_run_config
from trainer.config.schemas import Optimizer
from trainer.modeling import build_components
from trainer.modeling.optimizers import build_optimizers, parameter_groups
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY

GROUPED = """\
    encoder: {type: adamw_warmup_cosine_decay, params: {peak_lr: 0.01, warmup_steps: 2}, groups: GROUPS}
"""


def with_groups(config: Path, groups: str, **replaced: str) -> Path:
    text = config.read_text()
    text = text.replace("    encoder: {type: toy_adam, params: {lr: 0.01}}\n", GROUPED.replace("GROUPS", groups))
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    return config


def built(config: Path, planned: int | None = 10) -> dict[str, torch.optim.Optimizer]:
    run_config = load_run_config(config)
    return build_optimizers(run_config, build_components(run_config), planned)


@pytest.mark.parametrize("groups", [{}, {"layers[*].q": {}}, {"layers": {}, "head.bias": {}}, {"**": {}}])
def test_the_groups_partition_what_trains(tower: GraphModel, place: Callable, groups: dict) -> None:
    tower.layers[0].requires_grad_(False)
    found = parameter_groups(tower, "tower", Optimizer(type="any", groups=groups), place)
    ids = [id(one) for own in found.values() for one in own.values()]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(one) for one in tower.parameters() if one.requires_grad}
    assert [key for key in found if key is not None] == list(groups)
    assert all(found.values())


def test_a_group_is_stepped_as_an_optimizer_of_its_own_would(config: Path) -> None:
    grouped = built(with_groups(config, "{type:Linear.bias: {peak_lr: 0.5, warmup_steps: 5, weight_decay: 0.0}}"))[
        "encoder"
    ]
    rest, group = grouped.param_groups
    factory = OPTIMIZER_BUILDER_REGISTRY.get("adamw_warmup_cosine_decay")
    twins = [nn.Parameter(one.detach().clone()) for one in (rest["params"][0], group["params"][0])]
    alone = [
        factory(peak_lr=0.01, warmup_steps=2, total_steps=10).build([twins[0]]),
        factory(peak_lr=0.5, warmup_steps=5, weight_decay=0.0, total_steps=10).build([twins[1]]),
    ]
    for _ in range(7):
        for one in (rest["params"][0], group["params"][0], *twins):
            one.grad = torch.full_like(one, 0.3)
        grouped.step()
        for optimizer in alone:
            optimizer.step()
        assert [rest["lr"], group["lr"]] == [one.param_groups[0]["lr"] for one in alone]
    assert torch.equal(rest["params"][0], twins[0])
    assert torch.equal(group["params"][0], twins[1])


def test_the_state_of_groups_can_be_saved_and_loaded(config: Path) -> None:
    with_groups(config, "{net.0.bias: {peak_lr: 0.5}}")
    first, second = built(config)["encoder"], built(config)["encoder"]
    for group in first.param_groups:
        for one in group["params"]:
            one.grad = torch.ones_like(one)
    first.step()
    second.load_state_dict(first.state_dict())
    assert [group["updates"] for group in second.param_groups] == [1, 1]
    assert [group["peak_lr"] for group in second.param_groups] == [0.01, 0.5]


@pytest.mark.parametrize("kind", ["adamw_cosine_schedule", "schedule_free_radam"])
def test_groups_work_with_every_optimizer_that_ships(config: Path, kind: str) -> None:
    rate = "lr" if kind == "schedule_free_radam" else "peak_lr"
    with_groups(config, f"{{net.0.bias: {{{rate}: 0.5}}}}", **{"peak_lr: 0.01, warmup_steps: 2": f"{rate}: 0.01"})
    config.write_text(config.read_text().replace("adamw_warmup_cosine_decay", kind))
    rest, group = (optimizer := built(config)["encoder"]).param_groups
    assert (rest[rate], group[rate]) == (0.01, 0.5)
    for one in (*rest["params"], *group["params"]):
        one.grad = torch.ones_like(one)
    before = [one["params"][0].detach().clone() for one in (rest, group)]
    for _ in range(8):
        optimizer.step()
    moved = [(one["params"][0] - old).abs().max() for one, old in zip((rest, group), before, strict=True)]
    assert moved[1] > 10 * moved[0] > 0


@pytest.mark.parametrize(
    ("groups", "message", "at", "hint"),
    [
        ("{nt: {peak_lr: 0.5}}", "'nt' selects nothing", "nt", "did you mean 'net'?"),
        (
            "{net: {peak_lr: 0.5}, net.0: {peak_lr: 0.1}}",
            "'net.0' and 'net' both select net.0.weight, net.0.bias",
            "net.0",
            "",
        ),
        ("{net.1: {peak_lr: 0.5}}", "'net.1' selects no parameter", "net.1", ""),
        ("{net: {peek_lr: 0.5}}", "has no parameter 'peek_lr'", "peek_lr", "did you mean 'peak_lr'?"),
    ],
)
def test_a_wrong_group_is_told_where_it_is_before_anything_is_built(
    config: Path, groups: str, message: str, at: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_run_config(with_groups(config, groups))
    (problem,) = raised.value.problems
    assert message in problem.message
    assert hint in problem.hint
    marked = problem.place.text[problem.place.column - 1 :]
    assert marked.startswith((at, "{peak_lr"))


def test_a_group_of_what_is_frozen_is_refused(config: Path) -> None:
    with_groups(
        config,
        "{net.0.bias: {peak_lr: 0.5}}",
        **{"model:": "model:\n  component_build_args: {encoder: {freeze: [net.0.bias]}}"},
    )
    with pytest.raises(ConfigError, match=r"selects nothing that trains"):
        load_run_config(config)


def test_what_a_factory_finds_wrong_is_told_at_the_param(config: Path) -> None:
    with_groups(config, "{net.0.bias: {weight_decay: -2.0}}", **{"warmup_steps: 2": "warmup_steps: 2, eps: -1.0"})
    with pytest.raises(ConfigError) as raised:
        built(config)
    told = {problem.message: problem.place.text[problem.place.column - 1 :] for problem in raised.value.problems}
    assert told["eps is -1.0"].startswith("-1.0")
    assert told["weight_decay is -2.0"].startswith("-2.0")


def test_a_gap_names_the_parameters(config: Path) -> None:
    config.write_text(config.read_text().replace("    head: {type: toy_sgd, params: {lr: 0.05}}\n", ""))
    with pytest.raises(ConfigError, match=r"'head' has parameters to train and no optimizer: out.weight, out.bias"):
        load_run_config(config)


def test_an_optimizer_that_leaves_parameters_out_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = OPTIMIZER_BUILDER_REGISTRY.get("toy_sgd")
    monkeypatch.setattr(kind, "build", lambda self, params: torch.optim.SGD([p for p in params if p.ndim == 2], lr=0.1))
    with pytest.raises(ConfigError, match=r"optimizer 'toy_sgd' does not take out.bias"):
        built(config)


def test_a_param_that_cannot_differ_between_groups_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = OPTIMIZER_BUILDER_REGISTRY.get("toy_sgd")
    monkeypatch.setattr(kind, "build", lambda self, params: torch.optim.SGD(params, lr=0.1))  # whatever self.lr is
    config.write_text(config.read_text().replace("{lr: 0.05}}", "{lr: 0.05}, groups: {out.bias: {lr: 0.5}}}"))
    with pytest.raises(ConfigError, match=r"'toy_sgd' keeps lr for all its parameters alike"):
        built(config)


def test_a_parameter_of_two_components_is_refused(config: Path) -> None:
    run_config = load_run_config(config)
    models = build_components(run_config)
    models["head"].out.weight = models["encoder"].net[0].weight
    with pytest.raises(ConfigError, match=r"'encoder.net.0.weight' and 'head.out.weight' are one parameter"):
        build_optimizers(run_config, models, 10)
    models.requires_grad_(False)
    models["head"].out.bias.requires_grad_(True)
    build_optimizers(run_config, models, 10)  # what is frozen may be shared


def test_a_tied_parameter_is_stepped_once_and_cannot_be_in_two_groups(place: Callable) -> None:
    tied = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    tied["head"].weight = tied["embed"].weight
    assert [list(own) for own in parameter_groups(tied, "t", Optimizer(type="any"), place).values()] == [
        ["embed.weight"]
    ]
    both = Optimizer(type="any", groups={"embed": {}, "head": {}})
    with pytest.raises(ConfigError, match=r"'head' and 'embed' both select head.weight"):
        parameter_groups(tied, "t", both, place)


def test_the_entry_of_a_frozen_component_is_skipped(config: Path) -> None:
    config.write_text(config.read_text().replace("model:", "model:\n  component_build_args: {head: {freeze: true}}"))
    assert list(built(config)) == ["encoder"]
