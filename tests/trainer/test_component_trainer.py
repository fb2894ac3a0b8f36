"""What a step is: modes, freezing, accumulation, clipping, the non-finite check; each against a few lines of torch."""

import copy
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import trainer as trainer_package
from trainer.build import build_run
from trainer.config import load_run_config
from trainer.data.prefetch import build_loader
from trainer.distributed import World
from trainer.modeling.freeze import freeze
from trainer.templates import ComponentTrainer, NonFiniteGradient, StepOptions, StepOutput
from trainer.templates.trainer import SMALLEST_WEIGHT, samples_of


class Regression(ComponentTrainer):
    """The least a method is: y from x through `body` and `head`."""

    def compute_loss(self, batch: dict) -> StepOutput:
        prediction = self.models["head"](self.models["body"](batch["x"]))
        metrics = {"largest": batch["x"].abs().max()}
        if "valid" not in batch:
            return StepOutput(self.loss(prediction, batch["y"]), metrics)
        valid = batch["valid"]  # [B, 1]
        loss = ((prediction - batch["y"]).square() * valid).sum() / valid.sum().clamp(min=1)
        return StepOutput(loss, metrics, weight=valid.sum())


def no_place(*keys: str) -> None:
    return None


def make(frozen: str | None = None, **step: object) -> Regression:
    torch.manual_seed(0)
    models = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), "head": nn.Linear(5, 1)})
    if frozen is not None:
        freeze(models[frozen], None, no_place)
    trained = [name for name in models if name != frozen]
    optimizers = {name: torch.optim.SGD(models[name].parameters(), lr=0.1) for name in trained}
    trainer = Regression(models, optimizers, nn.MSELoss(), "cpu")
    trainer.configure_step(StepOptions(**step))
    return trainer


def batch(size: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(size, 3, generator=generator), "y": torch.randn(size, 1, generator=generator)}


class Noticed(torch.autograd.Function):
    """The identity; `end` is called when its node of the graph is gone."""

    @staticmethod
    def forward(ctx, value: Tensor, end: Callable[[], None]) -> Tensor:
        weakref.finalize(ctx, end)
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def test_to_take_the_graph_apart_is_part_of_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    within, ended = ["loop"], []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        within.append(name)
        yield
        within.pop()

    trainer = make(phase=phase)
    mean_squares = trainer.loss.forward
    monkeypatch.setattr(
        trainer.loss, "forward", lambda *given: Noticed.apply(mean_squares(*given), lambda: ended.append(within[-1]))
    )
    trainer.train_step(batch())
    assert ended == ["backward"]


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


MASKS = {
    "all valid": [1, 1, 1, 1, 1, 1, 1, 1],
    "unevenly valid": [1, 1, 1, 0, 0, 0, 0, 1],
    "a micro-batch without any": [1, 0, 0, 0, 1, 1, 0, 1],
}


@pytest.mark.parametrize("mask", [None, *MASKS.values()], ids=["no mask", *MASKS])
@pytest.mark.fault("F20", "accumulation equals one large batch")
def test_accumulation_equals_one_big_batch(mask: list[int] | None) -> None:
    """Also of a masked loss, whose micro-batches are means over different counts."""
    data = batch(8)
    if mask is not None:
        data["valid"] = torch.tensor(mask, dtype=torch.float32)[:, None]
    trainer, oracle = make(accumulate=4, clip_grad_norm=0.5), make(clip_grad_norm=None)
    for one in (trainer, oracle):
        freeze(one.models["body"][1], None, no_place)  # batch statistics are what micro-batches cannot share
    metrics = trainer.train_step(data)

    valid = torch.ones(8, 1) if mask is None else data["valid"]
    error = oracle.models["head"](oracle.models["body"](data["x"])) - data["y"]
    loss = (error.square() * valid).sum() / valid.sum()
    loss.backward()
    trainable = [parameter for parameter in oracle.models.parameters() if parameter.requires_grad]
    norm = nn.utils.clip_grad_norm_(trainable, 0.5)
    torch.optim.SGD(trainable, lr=0.1).step()
    torch.testing.assert_close(metrics["loss"], loss.detach())
    torch.testing.assert_close(metrics["grad_norm"], norm)
    assert trainer.step_weight == valid.sum()
    for ours, theirs in zip(trainer.models.parameters(), oracle.models.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_update_without_a_valid_sample_changes_nothing() -> None:
    trainer = make(accumulate=2)
    before = copy.deepcopy(dict(trainer.models.named_parameters()))
    metrics = trainer.train_step({**batch(8), "valid": torch.zeros(8, 1)})
    assert metrics["grad_norm"] == 0
    for name, parameter in trainer.models.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_each_component_has_its_norm_before_clipping() -> None:
    trainer = make(clip_grad_norm=1e-3)
    oracle = copy.deepcopy(trainer.models)
    data = batch()
    metrics = trainer.train_step(data)
    nn.functional.mse_loss(oracle["head"](oracle["body"](data["x"])), data["y"]).backward()
    for name, component in oracle.items():
        expected = torch.cat([parameter.grad.flatten() for parameter in component.parameters()]).norm()
        torch.testing.assert_close(metrics[f"grad_norm/{name}"], expected)
    both = torch.stack([metrics["grad_norm/body"], metrics["grad_norm/head"]]).norm()
    torch.testing.assert_close(metrics["grad_norm"], both)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_a_component_is_torchs_own_to_the_bit_whatever_its_types(dtype: torch.dtype) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.gain = nn.Linear(3, 1), nn.Parameter(torch.full((1,), 1.5, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.gain

    models = nn.ModuleDict({"body": Scaled(), "head": nn.Identity()})
    optimizer = torch.optim.SGD(models["body"].parameters(), lr=0.0)
    trainer = Regression(models, {"body": optimizer}, nn.MSELoss(), "cpu")
    trainer.configure_step(StepOptions(clip_grad_norm=None))
    norm = trainer.train_step(batch())["grad_norm/body"]
    assert torch.equal(norm, nn.utils.get_total_norm([one.grad for one in models.parameters()]))


def test_clipping_is_one_norm_over_all_components() -> None:
    trainer = make(clip_grad_norm=0.01)
    before = [parameter.detach().clone() for parameter in trainer.models.parameters()]
    norm = trainer.train_step(batch())["grad_norm"]
    steps = [(new - old) / 0.1 for new, old in zip(trainer.models.parameters(), before, strict=True)]
    assert norm > 0.01
    assert torch.sqrt(sum(step.square().sum() for step in steps)).item() == pytest.approx(0.01, rel=1e-3)


class Dividing(torch.optim.SGD):
    """Divides the gradients itself."""

    def divided_step(self, divisor: Tensor) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad /= divisor
        self.step()


class Around:
    """As wrappers are written: whatever it does not have, the optimizer inside has."""

    def __init__(self, inside: torch.optim.Optimizer) -> None:
        self.inside = inside

    def __getattr__(self, name: str) -> object:
        return getattr(self.inside, name)

    def step(self) -> None:
        self.inside.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_optimizer_that_divides_gradients_itself_gets_what_clipping_divides_by(
    wrapped: bool, dtype: torch.dtype
) -> None:
    """The first update is clipped to a thousandth, the second is short enough. Of a wrapper nobody knows what it does."""
    trainer, oracle = make(), make()
    for one in (trainer, oracle):
        one.models.to(dtype)
    inside = Dividing(trainer.models["head"].parameters(), lr=0.1)
    trainer.optimizers["head"] = Around(inside) if wrapped else inside
    data = {key: value.to(dtype) for key, value in batch().items()}
    bounds = {"rtol": 2e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-7}
    for clip in (1e-3, 1e3):
        trainer.configure_step(StepOptions(clip_grad_norm=clip))
        trainer.train_step(data)
        error = oracle.models["head"](oracle.models["body"](data["x"])) - data["y"]
        oracle.models.zero_grad()
        error.square().mean().backward()
        nn.utils.clip_grad_norm_(oracle.models.parameters(), clip)
        for optimizer in oracle.optimizers.values():
            optimizer.step()
        for ours, theirs in zip(trainer.models.parameters(), oracle.models.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, **bounds)
            torch.testing.assert_close(ours.grad, theirs.grad, **bounds)


@pytest.mark.fault("F23", "a frozen component: no gradient, eval mode, weights and statistics as they were")
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


def test_modes_are_set_where_they_are_not_as_they_should_be_beside_a_frozen_component_too(monkeypatch) -> None:
    """Walking through all modules in each step takes time."""
    trainer, asked = make(frozen="body"), []
    monkeypatch.setattr(trainer.models, "train", lambda mode=True: asked.append(mode))
    for _ in range(3):
        trainer.train_step(batch())
    assert asked == []
    trainer.models["head"].eval()
    trainer.train_step(batch())
    assert asked == [True]


def test_what_everyone_reads_stays_short() -> None:
    """TRAINER: the loop at most 200 lines, ComponentTrainer at most 200, the command line at most 60."""
    folder = Path(trainer_package.__file__).parent
    assert len((folder / "loop.py").read_text().splitlines()) <= 200
    assert len((folder / "offline_trainer.py").read_text().splitlines()) <= 60
    assert len(inspect.getsource(ComponentTrainer).splitlines()) <= 200


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


def test_skip_gives_up_where_no_update_is_good_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.templates.trainer.MOST_SKIPPED", 3)
    trainer, bad = make(on_nonfinite="skip"), batch(2)
    bad["y"][1] = torch.inf
    for data in (bad, bad, batch(2), bad, bad):  # a good one between them begins to count anew
        trainer.train_step(data)
    with pytest.raises(NonFiniteGradient, match="3 updates in a row were left out"):
        trainer.train_step(bad)


@pytest.mark.parametrize("processes", [1, 2, 4, 1024])
def test_an_update_of_which_nothing_counts_changes_nothing_on_any_number_of_processes(processes: int) -> None:
    assert torch.isfinite(processes / torch.zeros(()).clamp(min=SMALLEST_WEIGHT))


@pytest.mark.parametrize("name", ["loss", "step", "validation_loss", "lr/head", "time/data_ms", "grad_norm/head"])
def test_a_metric_does_not_take_the_place_of_the_trainers_own(name: str) -> None:
    with pytest.raises(ValueError, match=f"a metric cannot be called '{name}'"):
        StepOutput(torch.zeros(()), {name: torch.zeros(())})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"task": ["reach"]}, "unnumbered samples (the data set gives no"),
        ({"x": torch.zeros(3, 2), "episode_index": [1, 2, 3]}, "3 samples (the data set gives no"),
        ({"episode_index": torch.tensor([4]), "frame_index": torch.tensor([[7]])}, "episode:frame 4:7"),
    ],
)
def test_samples_are_named_whatever_a_batch_holds(given: dict, told: str) -> None:
    assert samples_of(given).startswith(told)


def test_skip_leaves_one_update_out_and_the_next_goes_on_from_where_it_was(capsys: pytest.CaptureFixture) -> None:
    """The oracle has never seen the bad batch; only batch statistics remember that it was there."""
    averaged: list[int] = []
    trainer = make(frozen="body", on_nonfinite="skip", after_update=lambda: averaged.append(1))
    oracle = make(frozen="body")
    bad = batch(2)
    bad["y"][1] = torch.inf
    bad["episode_index"], bad["frame_index"] = torch.tensor([4, 9]), torch.tensor([17, 3])
    metrics = [trainer.train_step(data) for data in (batch(8), bad, batch(4))]
    for data in (batch(8), batch(4)):
        oracle.train_step(data)
    for ours, theirs in zip(trainer.models.parameters(), oracle.models.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert [step["skipped"].item() for step in metrics] == [0, 1, 0]
    assert set(metrics[1]) == {"skipped"}  # no number of it gets into a mean
    assert averaged == [1, 1]
    assert (
        "left out: the gradient of head is not finite; the batch holds episode:frame 4:17 9:3"
        in capsys.readouterr().out
    )


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


def test_build_args_and_params_reach_the_components(config: Path) -> None:
    run = build_run(
        load_run_config(
            config,
            [
                "model.component_params.encoder.dim=6",
                "model.component_params.head.dim=6",
                "model.component_build_args.encoder={freeze: true, init: true}",
            ],
        ),
        World(),
    )
    assert run.models["head"].out.in_features == 6
    assert not any(parameter.requires_grad for parameter in run.models["encoder"].parameters())
    assert not run.models["encoder"].net[0].bias.any()
    assert set(run.optimizers) == {"head"}  # the encoder's entry is skipped


def test_the_seed_decides_the_weights_and_not_the_order_of_samples(config: Path) -> None:
    def first(*overrides: str) -> tuple[Tensor, list[int]]:
        run = build_run(load_run_config(config, ["train.seed=5", *overrides]), World())
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
    run = build_run(load_run_config(config, overrides), World())
    data = run.config.experiment.data
    loader = build_loader(run.data.dataset, run.data.updates, data, torch.device("cpu"), 0)
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (1, 3, False)
    assert not loader.pin_memory  # nothing to pin for on a CPU
    assert build_loader(run.data.dataset, run.data.updates, data, torch.device("cuda"), 0).pin_memory
