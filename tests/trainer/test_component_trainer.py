"""What a step is: modes, freezing, accumulation, clipping, the non-finite check; each against a few lines of torch."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer.build import build_run
from trainer.config import load_run_config
from trainer.data.prefetch import build_loader
from trainer.modeling.factories import freeze, initialise
from trainer.templates import ComponentTrainer, NonFiniteGradient, StepOutput


class Regression(ComponentTrainer):
    """The least a method is: y from x through `body` and `head`."""

    def compute_loss(self, batch: dict) -> StepOutput:
        prediction = self.models["head"](self.models["body"](batch["x"]))
        return StepOutput(self.loss(prediction, batch["y"]), {"largest": batch["x"].abs().max()}, batch.get("weight"))


def make(frozen: str | None = None, **step: object) -> Regression:
    torch.manual_seed(0)
    models = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), "head": nn.Linear(5, 1)})
    if frozen is not None:
        freeze(models[frozen])
    trained = [name for name in models if name != frozen]
    optimizers = {name: torch.optim.SGD(models[name].parameters(), lr=0.1) for name in trained}
    trainer = Regression(models, optimizers, nn.MSELoss(), "cpu")
    trainer.configure_step(**step)
    return trainer


def batch(size: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(size, 3, generator=generator), "y": torch.randn(size, 1, generator=generator)}


def test_a_step_is_what_a_few_lines_of_torch_do() -> None:
    trainer = make(clip_grad_norm=None)
    oracle = copy.deepcopy(trainer.models)
    data = batch()
    metrics = trainer.train_step(data)

    loss = nn.functional.mse_loss(oracle["head"](oracle["body"](data["x"])), data["y"])
    loss.backward()
    parameters = list(oracle.parameters())
    norm = torch.sqrt(sum(parameter.grad.square().sum() for parameter in parameters))
    torch.optim.SGD(parameters, lr=0.1).step()
    for ours, theirs in zip(trainer.models.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(metrics["loss"], loss.detach())
    torch.testing.assert_close(metrics["grad_norm"], norm)
    assert metrics["largest"] == data["x"].abs().max()
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulation_equals_one_big_batch(weighted: bool) -> None:
    """Also where micro-batches weigh differently: the oracle is the weighted mean of their losses."""
    data = batch(8)
    weights = torch.tensor([1.0, 1.0, 5.0, 5.0]) if weighted else torch.ones(4)
    trainer, oracle = make(accumulate=4, clip_grad_norm=0.5), make()
    for one in (trainer, oracle):
        freeze(one.models["body"][1])  # batch statistics are the one thing that micro-batches cannot share
    if weighted:
        data["weight"] = weights.repeat_interleave(2)
        trainer.compute_loss = lambda micro: StepOutput(
            nn.functional.mse_loss(trainer.models["head"](trainer.models["body"](micro["x"])), micro["y"]),
            weight=micro["weight"].mean(),
        )
    metrics = trainer.train_step(data)

    prediction = oracle.models["head"](oracle.models["body"](data["x"]))
    losses = (prediction - data["y"]).square().reshape(4, 2).mean(dim=1)
    loss = (losses * weights).sum() / weights.sum()
    loss.backward()
    trainable = [parameter for parameter in oracle.models.parameters() if parameter.requires_grad]
    nn.utils.clip_grad_norm_(trainable, 0.5)
    torch.optim.SGD(trainable, lr=0.1).step()
    torch.testing.assert_close(metrics["loss"], loss.detach())
    for ours, theirs in zip(trainer.models.parameters(), oracle.models.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_clipping_is_one_norm_over_all_components() -> None:
    trainer = make(clip_grad_norm=0.01)
    before = [parameter.detach().clone() for parameter in trainer.models.parameters()]
    norm = trainer.train_step(batch())["grad_norm"]
    steps = [(new - old) / 0.1 for new, old in zip(trainer.models.parameters(), before, strict=True)]
    assert norm > 0.01
    assert torch.sqrt(sum(step.square().sum() for step in steps)).item() == pytest.approx(0.01, rel=1e-3)


def test_a_frozen_component_has_no_gradient_stays_in_eval_mode_and_does_not_change() -> None:
    trainer = make(frozen="body")
    before = copy.deepcopy(trainer.models["body"].state_dict())
    head = trainer.models["head"].weight.detach().clone()
    trainer.models.train()
    trainer.train_step(batch())
    assert trainer.models["head"].training
    assert not any(module.training for module in trainer.models["body"].modules())
    assert all(parameter.grad is None for parameter in trainer.models["body"].parameters())
    for name, value in trainer.models["body"].state_dict().items():  # batch statistics among them
        assert torch.equal(value, before[name]), name
    assert not torch.equal(trainer.models["head"].weight, head)


def test_a_copy_of_a_frozen_component_is_frozen_itself() -> None:
    body = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    freeze(body)
    copied = copy.deepcopy(body)
    assert copied.train() is copied
    assert not copied[1].training


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    trainer = make()
    before = copy.deepcopy(dict(trainer.models.named_parameters()))
    data = batch(2)
    data["y"][1] = torch.nan
    data["episode_index"], data["frame_index"] = torch.tensor([4, 9]), torch.tensor([17, 3])
    with pytest.raises(NonFiniteGradient, match=r"body, head is not finite(.|\n)*4:17 9:3"):
        trainer.train_step(data)
    for name, parameter in trainer.models.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_only_the_component_with_the_bad_gradient_is_named() -> None:
    trainer = make()
    trainer.models["head"].weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteGradient, match=r"gradient of head is"):
        trainer.train_step(batch())


def test_bf16_is_the_precision_of_the_forward_pass_and_not_of_the_weights() -> None:
    trainer = make(precision="bf16")
    seen: list[torch.dtype] = []
    trainer.models["head"].register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    trainer.train_step(batch())
    assert seen == [torch.bfloat16]
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in trainer.models.parameters())


def test_a_validation_step_changes_nothing() -> None:
    trainer = make()
    before = copy.deepcopy(trainer.models.state_dict())
    loss, weight = trainer.validation_step(batch(6))
    assert weight == 6
    assert not loss.requires_grad
    for name, value in trainer.models.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_initialise_sets_what_its_name_says() -> None:
    torch.manual_seed(0)
    modules = nn.ModuleDict(
        {
            "linear": nn.Linear(200, 100),
            "attention": nn.MultiheadAttention(64, 4),
            "convolution": nn.Conv2d(16, 32, 3),
            "norm": nn.LayerNorm(4),
        }
    )
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter.fill_(7.0)
    initialise(modules)
    assert modules["linear"].weight.abs().max() <= (6 / 300) ** 0.5  # Xavier's uniform bound
    assert modules["attention"].in_proj_weight.abs().max() <= (6 / (64 + 192)) ** 0.5
    assert modules["convolution"].weight.std().item() == pytest.approx(
        (2 / (16 * 9)) ** 0.5, rel=0.1
    )  # Kaiming, fan in
    assert modules["norm"].weight.tolist() == [1.0] * 4
    for name, parameter in modules.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


def test_build_args_and_params_reach_the_components(config: Path) -> None:
    run = build_run(
        load_run_config(
            config,
            [
                "model.component_params.encoder.dim=6",
                "model.component_params.head.dim=6",
                "model.component_build_args.encoder={freeze: true, init: true}",
            ],
        )
    )
    assert run.models["head"].out.in_features == 6
    assert not any(parameter.requires_grad for parameter in run.models["encoder"].parameters())
    assert not run.models["encoder"].net[0].bias.any()
    assert set(run.optimizers) == {"head"}  # the encoder's entry is skipped


def test_the_seed_decides_the_weights_and_not_the_order_of_samples(config: Path) -> None:
    def first(*overrides: str) -> tuple[Tensor, list[int]]:
        run = build_run(load_run_config(config, ["train.seed=5", *overrides]))
        return run.models["head"].out.weight, next(iter(run.data.updates))

    weight, order = first()
    same_weight, same_order = first()
    other_weight, order_of_other = first("seed=4")
    assert torch.equal(weight, same_weight)
    assert order == same_order == order_of_other
    assert not torch.equal(weight, other_weight)
    assert first("train.seed=6")[1] != order


def test_the_loader_is_built_as_configured(config: Path) -> None:
    overrides = [
        "data.num_workers=1",
        "data.prefetch_factor=3",
        "data.persistent_workers=false",
        "data.pin_memory=true",
    ]
    run = build_run(load_run_config(config, overrides))
    data = run.config.experiment.data
    loader = build_loader(run.data.dataset, run.data.updates, data, torch.device("cpu"), 0)
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (1, 3, False)
    assert not loader.pin_memory  # nothing to pin for on a CPU
    assert build_loader(run.data.dataset, run.data.updates, data, torch.device("cuda"), 0).pin_memory
