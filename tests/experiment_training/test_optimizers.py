"""Optimizers: schedules equal torch's own, step by step; a state dict is all it takes to go on."""

import copy
import inspect
import math
import re

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR

from model_constructor import ConfigError
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY

WARMUP_COSINE = {"peak_lr": 1e-2, "start_lr": 1e-3, "end_lr": 1e-4, "warmup_steps": 5, "total_steps": 20}
ONE_CYCLE = {"peak_lr": 1e-2, "total_steps": 20}
SHIPPED = [
    ("adamw_warmup_cosine_decay", WARMUP_COSINE),
    ("adamw_cosine_schedule", ONE_CYCLE),
    ("schedule_free_radam", {}),
]


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name, params, model):
    return OPTIMIZER_BUILDER_REGISTRY.get(name)(**params).build(model.parameters())


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def update(model, optimizer, number):
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad(set_to_none=True)
    (model(inputs) - inputs[:, :2]).square().mean().backward()
    optimizer.step()


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def torch_warmup_cosine(optimizer):
    warmup = LinearLR(optimizer, start_factor=0.1, total_iters=5)
    return SequentialLR(optimizer, [warmup, CosineAnnealingLR(optimizer, T_max=15, eta_min=1e-4)], milestones=[5])


@pytest.mark.parametrize(
    ("name", "params", "adamw", "scheduler"),
    [
        (*SHIPPED[0], {"lr": 1e-2}, torch_warmup_cosine),
        (*SHIPPED[1], {}, lambda optimizer: OneCycleLR(optimizer, max_lr=1e-2, total_steps=20)),
        (
            "adamw_cosine_schedule",
            {
                **ONE_CYCLE,
                "pct_start": 0.04,
                "div_factor": 5,
                "final_div_factor": 10,
                "beta1": [0.9, 0.9],
                "beta2": 0.99,
            },
            {"betas": (0.9, 0.99)},
            lambda optimizer: OneCycleLR(
                optimizer, 1e-2, 20, pct_start=0.04, div_factor=5, final_div_factor=10, cycle_momentum=False
            ),
        ),
    ],
)
def test_rates_betas_and_weights_follow_torchs_scheduler(name, params, adamw, scheduler):
    ours, theirs = make_model(), make_model()
    optimizer = build(name, {**params, "weight_decay": 0.1}, ours)
    reference = AdamW(theirs.parameters(), weight_decay=0.1, **adamw)
    schedule = scheduler(reference)
    for number in range(20):
        for key in ("lr", "betas"):
            assert optimizer.param_groups[0][key] == pytest.approx(reference.param_groups[0][key], rel=1e-9, abs=1e-12)
        update(ours, optimizer, number)
        update(theirs, reference, number)
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-5, atol=1e-6)
        if number < 19:
            schedule.step()


def test_without_warmup_the_first_update_has_the_peak_rate_and_after_the_last_the_rate_stays():
    model = make_model()
    optimizer = build("adamw_warmup_cosine_decay", {"peak_lr": 1e-2, "end_lr": 1e-3, "total_steps": 4}, model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)
    rates = []
    for number in range(7):
        update(model, optimizer, number)
        rates.append(optimizer.param_groups[0]["lr"])
    middle = 1e-3 + 9e-3 * (1 + math.cos(math.pi / 2)) / 2
    assert rates[1] == pytest.approx(middle)
    assert rates[3:] == pytest.approx([1e-3] * 4)


def test_the_warmup_climbs_in_equal_steps_from_start_to_peak():
    model = make_model()
    optimizer = build("adamw_warmup_cosine_decay", {"peak_lr": 1e-2, "warmup_steps": 4, "total_steps": 8}, model)
    rates = []
    for number in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        update(model, optimizer, number)
    assert rates == pytest.approx([0, 0.25e-2, 0.5e-2, 0.75e-2, 1e-2])


@pytest.mark.parametrize(("name", "params"), SHIPPED)
def test_a_state_dict_that_went_through_a_file_continues_to_the_bit(tmp_path, name, params):
    whole = make_model()
    optimizer = build(name, params, whole)
    for number in range(7):
        update(whole, optimizer, number)
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    for number in range(7, 15):
        update(whole, optimizer, number)

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = make_model()
    continued = build(name, params, resumed)
    resumed.load_state_dict(saved["model"])
    continued.load_state_dict(saved["optimizer"])
    for number in range(7, 15):
        update(resumed, continued, number)
    assert torch.equal(weights(whole), weights(resumed))
    assert continued.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize(("name", "params"), SHIPPED[:2])
def test_torchs_state_dict_tools_keep_the_schedule_and_touch_no_weight(name, params):
    model = make_model()
    factory = OPTIMIZER_BUILDER_REGISTRY.get(name)(**params, weight_decay=0.5)
    optimizer = factory.build(in_groups(model, peak_lr=1e-3))
    for number in range(7):
        update(model, optimizer, number)
    state = get_optimizer_state_dict(model, optimizer)
    expected = copy.deepcopy(optimizer.state_dict()["param_groups"])

    fresh = factory.build(in_groups(model, peak_lr=1e-3))
    before = weights(model).clone()
    set_optimizer_state_dict(model, fresh, state)  # fills the state by a step at rate 0
    assert torch.equal(weights(model), before)
    assert fresh.state_dict()["param_groups"] == expected
    assert [group["updates"] for group in fresh.param_groups] == [7, 7]


def in_groups(model, **override):
    return [{"params": model[0].parameters()}, {"params": list(model[2].parameters()), **override}]


@pytest.mark.parametrize(
    ("name", "params", "override"),
    [
        (*SHIPPED[0], {"peak_lr": 1e-3, "warmup_steps": 2, "weight_decay": 0.0, "betas": [0.5, 0.9], "eps": 1e-4}),
        (*SHIPPED[1], {"peak_lr": 1e-3, "pct_start": 0.5, "beta1": [0.7, 0.8], "beta2": 0.9, "total_steps": 12}),
        (*SHIPPED[2], {"lr": 0.05, "weight_decay": 0.1, "betas": [0.8, 0.9], "r": 1.0}),
    ],
)
def test_a_group_is_trained_as_by_an_optimizer_of_its_own_with_those_values(name, params, override):
    grouped, alone = make_model(), make_model()
    factory = OPTIMIZER_BUILDER_REGISTRY.get(name)
    optimizer = factory(**params).build(in_groups(grouped, **override))
    first = factory(**params).build(alone[0].parameters())
    second = factory(**{**params, **override}).build(alone[2].parameters())
    for number in range(12):
        update(grouped, optimizer, number)
        inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
        alone.zero_grad()
        (alone(inputs) - inputs[:, :2]).square().mean().backward()
        first.step(), second.step()
    assert torch.equal(weights(grouped), weights(alone))
    assert optimizer.param_groups[1]["lr"] == second.param_groups[0]["lr"]


@pytest.mark.parametrize(("name", "params"), SHIPPED)
def test_groups_of_optimizers_built_apart_can_be_joined_in_one(name, params):
    joined, alone = make_model(), make_model()
    override = {"weight_decay": 0.3, "eps": 1e-5}
    factory = OPTIMIZER_BUILDER_REGISTRY.get(name)
    optimizer = factory(**params).build(joined[0].parameters())
    optimizer.add_param_group(factory(**{**params, **override}).build(joined[2].parameters()).param_groups[0])
    at_once = factory(**params).build(in_groups(alone, **override))
    for number in range(8):
        update(joined, optimizer, number)
        update(alone, at_once, number)
    assert torch.equal(weights(joined), weights(alone))


@pytest.mark.parametrize(("name", "params"), SHIPPED)
def test_every_keyword_stands_in_every_group(name, params):
    """What saves, resumes and draws tables finds the numbers of a schedule there, by the names of the config."""
    model = make_model()
    factory = OPTIMIZER_BUILDER_REGISTRY.get(name)
    for group in factory(**params).build(in_groups(model)).param_groups:
        assert set(inspect.signature(factory).parameters) <= set(group)
        assert {key: group[key] for key in params} == params


def test_everything_wrong_in_any_group_is_reported_at_once_with_the_group_it_stands_in():
    model = make_model()
    factory = OPTIMIZER_BUILDER_REGISTRY.get("adamw_warmup_cosine_decay")(**WARMUP_COSINE)
    groups = [
        {"params": model[0].parameters(), "peak_lr": -1, "eps": 0},
        {"params": [model[2].weight], "warmup_steps": 30},
        {"params": [model[2].bias], "peek_lr": 1e-3},
    ]
    with pytest.raises(ConfigError) as error:
        factory.build(groups)
    problems = {problem.message: problem.hint for problem in error.value.problems}
    assert list(problems) == [
        "peak_lr is -1 (group 0)",
        "eps is 0 (group 0)",
        "warmup_steps is 30, total_steps is 20 (group 1)",
        "peek_lr is no parameter of this optimizer (group 2)",
    ]
    assert "did you mean 'peak_lr'?" in problems["peek_lr is no parameter of this optimizer (group 2)"]


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("adamw_warmup_cosine_decay", WARMUP_COSINE, {**WARMUP_COSINE, "peak_lr": 3e-3, "total_steps": 40}),
        ("adamw_cosine_schedule", ONE_CYCLE, {**ONE_CYCLE, "div_factor": 5.0, "total_steps": 40}),
        ("schedule_free_radam", {}, {"lr": 0.01, "betas": [0.8, 0.99]}),
    ],
)
def test_a_state_taken_up_under_other_numbers_follows_those_from_its_first_update(name, before, now):
    model = make_model()
    optimizer = build(name, before, model)
    for number in range(7):
        update(model, optimizer, number)
    continued = build(name, now, make_model())
    continued.load_state_dict(optimizer.state_dict())
    group, steady = continued.param_groups[0], make_model()
    assert {key: group[key] for key in now} == now
    if name == "schedule_free_radam":
        assert group["k"] == 7 and group["weight_sum"] == optimizer.param_groups[0]["weight_sum"]
        return
    from_the_start = build(name, now, steady)
    for number in range(7):
        update(steady, from_the_start, number)
    for key in ("updates", "lr", "betas"):
        assert group[key] == from_the_start.param_groups[0][key]


@pytest.mark.parametrize(("name", "params"), SHIPPED)
def test_a_deep_copy_goes_on_as_the_original_does(name, params):
    model = make_model()
    optimizer = build(name, params, model)
    update(model, optimizer, 0)
    twin, copied = copy.deepcopy((model, optimizer))
    for number in range(1, 8):
        update(model, optimizer, number)
        update(twin, copied, number)
    assert torch.equal(weights(model), weights(twin))


@pytest.mark.parametrize("name", ["adamw_warmup_cosine_decay", "adamw_cosine_schedule"])
def test_adamw_is_fused_where_that_is_supported_and_follows_torchs_plain_one_to_rounding(name):
    params = {"peak_lr": 1e-2, "total_steps": 10}
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)):
        ours, theirs = make_model().to(dtype), make_model().to(dtype)
        optimizer = build(name, params, ours)
        plain = AdamW(theirs.parameters(), foreach=False, fused=False)
        assert optimizer.param_groups[0]["fused"] is True
        for number in range(5):
            plain.param_groups[0].update({key: optimizer.param_groups[0][key] for key in ("lr", "betas")})
            inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(number)).to(dtype)
            for model in (ours, theirs):
                model.zero_grad()
                (model(inputs) - inputs[:, :2]).square().mean().backward()
            optimizer.step(), plain.step()
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=tolerance, atol=tolerance)
    elsewhere = build(name, params, nn.Linear(2, 2, device="meta"))
    assert not elsewhere.param_groups[0]["fused"]


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_divided_step_is_the_step_by_divided_gradients(dtype, is_fused):
    bounds = {"rtol": 2e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-7}
    ours, theirs = make_model().to(dtype), make_model().to(dtype)
    optimizers = [build("adamw_warmup_cosine_decay", {"peak_lr": 0.1, "total_steps": 9}, one) for one in (ours, theirs)]
    optimizers[0].param_groups[0]["fused"] = is_fused
    for divisor in (1.0, 1000.0):
        for number, parameter in enumerate(ours.parameters()):
            parameter.grad = torch.full_like(parameter, 1e-3 * (number + 1))
        for parameter, same in zip(theirs.parameters(), ours.parameters(), strict=True):
            parameter.grad = same.grad / divisor
        optimizers[0].divided_step(torch.tensor(divisor))
        optimizers[1].step()
        torch.testing.assert_close(weights(ours), weights(theirs), **bounds)
    assert optimizers[0].param_groups[0]["updates"] == 2
    assert not hasattr(optimizers[0], "grad_scale")


def same_steps(optimizer, reference, model, twin, updates, before=lambda number: None):
    """Weights, moments and counts are equal to the bit to those of torch's own fused AdamW at the same rates."""
    for number in updates:
        for mine, its in zip(optimizer.param_groups, reference.param_groups, strict=True):
            its.update({key: mine[key] for key in ("lr", "betas", "eps", "weight_decay")})
        for one in (model, twin):
            h = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
            one.zero_grad(set_to_none=True)
            for layer in one:
                h = layer(h.to(next(layer.parameters(), h).dtype))
            h.square().mean().backward()
        before(number)
        optimizer.step(), reference.step()
        assert torch.equal(weights(model), weights(twin))
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        state, expected = optimizer.state[mine], reference.state[its]
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def with_torchs_own(in_two_groups=False):
    model, twin = make_model(), make_model()
    factory = OPTIMIZER_BUILDER_REGISTRY.get("adamw_warmup_cosine_decay")(**WARMUP_COSINE, eps=1e-3)
    optimizer = factory.build(in_groups(model, weight_decay=0.3, eps=1e-2) if in_two_groups else model.parameters())
    return optimizer, AdamW(in_groups(twin) if in_two_groups else twin.parameters(), fused=True), model, twin


@pytest.fixture
def sorts(monkeypatch):
    """The times that torch sorts tensors by device and dtype: once for each group of a step that is its own."""
    sort, calls = AdamW._group_tensors_by_device_and_dtype, []
    noted = staticmethod(lambda *given: calls.append(given) or sort(*given))
    monkeypatch.setattr(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", noted)
    return calls


@pytest.mark.parametrize("groups", [1, 2])
def test_a_step_is_that_of_torchs_fused_adamw_to_the_bit_without_its_sorting(groups, sorts):
    optimizer, reference, model, twin = with_torchs_own(in_two_groups=groups == 2)
    same_steps(optimizer, reference, model, twin, range(1))
    sorts.clear()
    same_steps(optimizer, reference, model, twin, range(1, 9))
    assert len(sorts) == 8 * groups, "those of torch's own step, and no other"


def test_a_step_goes_on_where_a_parameter_has_no_gradient_for_a_while():
    optimizer, reference, model, twin = with_torchs_own()

    def drop(number):
        for one in (model, twin):
            one[0].bias.grad = None if number in (0, 3, 4) else one[0].bias.grad

    same_steps(optimizer, reference, model, twin, range(8), drop)
    assert [float(optimizer.state[one]["step"]) for one in model.parameters()] == [8, 5, 8, 8]  # of the bias: 5


@pytest.mark.parametrize("moment", [0, 1, 4])
def test_a_step_goes_on_after_a_copy_a_loaded_state_and_another_group(moment):
    optimizer, reference, model, twin = with_torchs_own()
    same_steps(optimizer, reference, model, twin, range(moment))
    optimizer, reference, model, twin = copy.deepcopy((optimizer, reference, model, twin))
    same_steps(optimizer, reference, model, twin, range(moment, 5))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    same_steps(optimizer, reference, model, twin, range(5, 8))
    for one, with_more in ((model, optimizer), (twin, reference)):
        one.append(nn.Linear(2, 2))
        one[3].load_state_dict({"weight": torch.eye(2), "bias": torch.ones(2)})
        with_more.add_param_group({**with_more.param_groups[0], "params": [*one[3].parameters()]})
    same_steps(optimizer, reference, model, twin, range(8, 12))


def change_tensors(optimizer):
    """As recipes do that move an optimizer to another device."""
    for state in optimizer.state.values():
        for value in state.values():
            value.data = value.data.clone()


def begin_one_anew(optimizer):
    del optimizer.state[optimizer.param_groups[0]["params"][1]]


def move_to_other_group(optimizer):
    first, second = optimizer.param_groups
    second["params"].append(first["params"].pop())


def empty_a_group(optimizer):
    optimizer.param_groups[0]["params"].clear()


def take_one_twice(optimizer):
    optimizer.param_groups[0]["params"].append(optimizer.param_groups[0]["params"][0])


@pytest.mark.parametrize("change", [change_tensors, begin_one_anew, move_to_other_group, empty_a_group, take_one_twice])
def test_whatever_is_done_to_an_optimizer_between_steps_does_what_it_does_to_torchs(change):
    optimizer, reference, model, twin = with_torchs_own(in_two_groups=True)
    same_steps(optimizer, reference, model, twin, range(3))
    change(optimizer), change(reference)
    same_steps(optimizer, reference, model, twin, range(3, 7))


def test_parameters_of_several_dtypes_are_left_to_torch(sorts):
    optimizer, reference, model, twin = with_torchs_own()
    model[2].bfloat16(), twin[2].bfloat16()
    same_steps(optimizer, reference, model, twin, range(4))
    assert len(sorts) == 2 * 4


@pytest.mark.parametrize(("key", "value"), [("amsgrad", True), ("capturable", True), ("decoupled_weight_decay", False)])
def test_what_the_kernel_alone_does_not_do_is_left_to_torch(key, value, sorts):
    optimizer, reference, model, twin = with_torchs_own()
    for one in (optimizer, reference):
        one.param_groups[0][key] = value
    same_steps(optimizer, reference, model, twin, range(4))
    assert len(sorts) == 2 * 4


def test_a_group_can_climb():
    optimizer, reference, model, twin = with_torchs_own()
    optimizer.param_groups[0]["maximize"] = reference.param_groups[0]["maximize"] = True
    same_steps(optimizer, reference, model, twin, range(4))


@pytest.mark.parametrize(("key", "value"), [("differentiable", True), ("fused", False)])
def test_the_kernel_is_not_called_where_a_group_wants_another_way(key, value, monkeypatch):
    optimizer, _, model, _ = with_torchs_own()
    update(model, optimizer, 0)
    optimizer.param_groups[0][key] = value
    monkeypatch.setattr(torch, "_fused_adamw_", lambda *given, **named: pytest.fail("the kernel was called"))
    if key == "differentiable":
        with pytest.raises(RuntimeError, match="does not support differentiable"):
            update(model, optimizer, 1)
    else:
        update(model, optimizer, 1)


def test_a_sparse_gradient_is_refused_before_anything_changes():
    optimizer, _, model, _ = with_torchs_own()
    update(model, optimizer, 0)
    model[0].weight.grad = model[0].weight.grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert {float(optimizer.state[one]["step"]) for one in model.parameters()} == {1.0}


def test_a_grad_scaler_that_has_found_infinity_leaves_all_as_it_was():
    optimizer, _, model, _ = with_torchs_own()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number in range(4):
        before = weights(model).clone()
        optimizer.zero_grad()
        scaler.scale(model(torch.full((1, 3), float("inf") if number == 2 else 1.0)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weights(model), before) == (number == 2)
    assert {float(optimizer.state[one]["step"]) for one in model.parameters()} == {3.0}


def test_a_step_within_the_capture_of_a_cuda_graph_is_refused_as_torchs_is(monkeypatch):
    optimizer, _, model, _ = with_torchs_own()
    update(model, optimizer, 0)
    for name in ("torch.backends.cuda.is_built", "torch.cuda.is_available", "torch.cuda.is_current_stream_capturing"):
        monkeypatch.setattr(name, lambda: True)
    with pytest.raises(RuntimeError, match="capturable is False"):
        optimizer.step()


def test_the_divisor_is_brought_to_the_gradients():
    """The kernel reads its memory wherever that is."""
    optimizer, _, model, _ = with_torchs_own()
    update(model, optimizer, 0)
    with pytest.raises(NotImplementedError, match="meta"):
        optimizer.divided_step(torch.ones((), device="meta"))


def test_a_compiled_step_is_torchs():
    optimizer, reference, model, twin = with_torchs_own()
    same_steps(optimizer, reference, model, twin, range(2))
    optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
    same_steps(optimizer, reference, model, twin, range(2, 4))


def test_a_closure_is_called_with_gradients_on():
    optimizer, _, model, _ = with_torchs_own()
    for number in range(2):
        update(model, optimizer, number)

    def closure():
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad
    assert optimizer.param_groups[0]["updates"] == 3


def test_the_step_is_wrapped_by_torch_once_whatever_other_optimizers_there_are(monkeypatch):
    """Each of torch's wrappers marks the step for the profiler."""
    model = make_model()
    AdamW(model.parameters())  # wraps its class
    optimizer = build("adamw_warmup_cosine_decay", {"peak_lr": 0.1, "total_steps": 9}, model)
    marks = []
    mark = torch.autograd.profiler.record_function
    monkeypatch.setattr(torch.autograd.profiler, "record_function", lambda name: marks.append(name) or mark(name))
    optimizer.step()
    assert len(marks) == 1


@pytest.mark.parametrize(("name", "params"), SHIPPED)
def test_it_learns(name, params):
    model = make_model()
    optimizer = build(name, {**params, "total_steps": 200} if "total_steps" in params else {"lr": 0.05}, model)
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(1000))

    @torch.no_grad()
    def loss():
        return float((model(inputs) - inputs[:, :2]).square().mean())

    before = loss()
    for number in range(200):
        update(model, optimizer, number)
    assert loss() < 0.2 * before


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("adamw_warmup_cosine_decay", {"peak_lr": -1}, "peak_lr is -1"),
        ("adamw_warmup_cosine_decay", {"peak_lr": "1e-4"}, "peak_lr is '1e-4'\n    a number, such as 1.0e-4"),
        ("adamw_warmup_cosine_decay", {"peak_lr": float("inf")}, "peak_lr is inf"),
        ("adamw_warmup_cosine_decay", {"start_lr": -1e-3}, "start_lr is -0.001"),
        ("adamw_warmup_cosine_decay", {"end_lr": -1e-3}, "end_lr is -0.001"),
        ("adamw_warmup_cosine_decay", {"warmup_steps": 21}, "warmup_steps is 21, total_steps is 20"),
        ("adamw_warmup_cosine_decay", {"warmup_steps": 2.5}, "warmup_steps is 2.5\n    a whole number, 0 or more"),
        ("adamw_warmup_cosine_decay", {"total_steps": 0, "warmup_steps": 0}, "total_steps is 0"),
        ("adamw_warmup_cosine_decay", {"betas": [0.9, 1.0]}, "betas is [0.9, 1.0]"),
        ("adamw_warmup_cosine_decay", {"betas": 0.9}, "betas is 0.9\n    2 numbers"),
        ("adamw_warmup_cosine_decay", {"betas": [0.9, "x"]}, "betas is [0.9, 'x']"),
        ("adamw_warmup_cosine_decay", {"eps": 0}, "eps is 0"),
        ("adamw_warmup_cosine_decay", {"weight_decay": -0.1}, "weight_decay is -0.1"),
        ("adamw_cosine_schedule", {"total_steps": 1}, "total_steps is 1\n    a whole number, 2 or more"),
        ("adamw_cosine_schedule", {"pct_start": 1.5}, "pct_start is 1.5"),
        ("adamw_cosine_schedule", {"beta1": [0.95, 0.85]}, "beta1 is [0.95, 0.85]\n    [lowest, highest]"),
        ("adamw_cosine_schedule", {"beta1": 0.9}, "beta1 is 0.9\n    2 numbers"),
        ("adamw_cosine_schedule", {"beta2": 1.0}, "beta2 is 1.0"),
        ("adamw_cosine_schedule", {"div_factor": 0}, "div_factor is 0"),
        ("adamw_cosine_schedule", {"final_div_factor": 0.5}, "final_div_factor is 0.5"),
        ("schedule_free_radam", {"lr": 0}, "lr is 0"),
        ("schedule_free_radam", {"betas": [0.0, 0.9]}, "betas is [0.0, 0.9]\n    the first above 0"),
        ("schedule_free_radam", {"betas": [0.9, 0.5]}, "betas is [0.9, 0.5]\n    the second above 0.6"),
        ("schedule_free_radam", {"r": -1}, "r is -1"),
        ("schedule_free_radam", {"weight_lr_power": -1}, "weight_lr_power is -1"),
        ("schedule_free_radam", {"silent_sgd_phase": 1}, "silent_sgd_phase is 1\n    true or false"),
    ],
)
def test_a_wrong_value_is_explained(name, params, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        OPTIMIZER_BUILDER_REGISTRY.get(name)(**{**dict(SHIPPED)[name], **params})


def test_all_wrong_values_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        OPTIMIZER_BUILDER_REGISTRY.get("adamw_warmup_cosine_decay")(peak_lr=0, end_lr=-1, total_steps=-5)
    assert [one.message.split()[0] for one in error.value.problems] == ["peak_lr", "end_lr", "total_steps"]
