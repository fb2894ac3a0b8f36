"""Schedule-free RAdam: its averages are the package's own, and asking for them changes nothing."""

import copy

import pytest
import torch
from schedulefree import RAdamScheduleFree
from torch import nn

from trainer.registry import OPTIMIZER_BUILDER_REGISTRY


def build(params, **values):
    return OPTIMIZER_BUILDER_REGISTRY.get("schedule_free_radam")(**values).build(params)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def groups(model):
    return [{"params": model[0].parameters()}, {"params": model[2].parameters(), "betas": [0.7, 0.95], "lr": 0.02}]


def update(model, optimizer, number):
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad(set_to_none=True)
    (model(inputs) - inputs[:, :2]).square().mean().backward()
    optimizer.step()


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def averages(model, optimizer):
    averaged = optimizer.averaged_parameters()
    return torch.cat([averaged[parameter].flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0.05},
        {"lr": 0.05, "weight_decay": 0.1, "r": 2.0, "weight_lr_power": 0.0, "betas": [0.8, 0.99]},
        {"lr": 0.01, "silent_sgd_phase": False, "eps": 1e-3},
    ],
)
def test_live_weights_and_averages_are_the_packages_own_at_every_update(values):
    ours, theirs = make_model(), make_model()
    optimizer, package = build(ours.parameters(), **values), RAdamScheduleFree(theirs.parameters(), **values)
    package.train()
    for number in range(12):
        update(ours, optimizer, number)
        update(theirs, package, number)
        live = weights(ours).clone()
        assert torch.equal(live, weights(theirs))
        twin, switched = copy.deepcopy((theirs, package))
        switched.eval()  # the package's own way: in place
        torch.testing.assert_close(averages(ours, optimizer), weights(twin))
        assert torch.equal(weights(ours), live)
    assert not torch.allclose(averages(ours, optimizer), live, atol=1e-4)


@pytest.mark.parametrize("by_group", [False, True])
def test_averages_go_through_a_file_and_on_to_the_bit(tmp_path, by_group):
    def parts(model):
        return groups(model) if by_group else model.parameters()

    whole = make_model()
    optimizer = build(parts(whole), lr=0.05)
    for number in range(9):
        update(whole, optimizer, number)
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = make_model()
    continued = build(parts(resumed), lr=0.05)
    resumed.load_state_dict(saved["model"])
    continued.load_state_dict(saved["optimizer"])
    assert torch.equal(averages(resumed, continued), averages(whole, optimizer))
    for number in range(9, 15):
        update(whole, optimizer, number)
        update(resumed, continued, number)
    assert torch.equal(averages(resumed, continued), averages(whole, optimizer))


def test_asking_for_averages_changes_no_weight_no_state_and_no_mode():
    model = make_model()
    spare = nn.Parameter(torch.ones(3))  # has no gradient in any step, so the package keeps nothing of it
    optimizer = build([*model.parameters(), spare], lr=0.05)
    for number in range(7):
        update(model, optimizer, number)
    before = copy.deepcopy(optimizer.state_dict())
    averaged = optimizer.averaged_parameters()
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"] and after["param_groups"][0]["train_mode"] is True
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    assert torch.equal(averaged[spare], spare)
    assert all(average.data_ptr() != parameter.data_ptr() for parameter, average in averaged.items())
    assert not any(average.requires_grad for average in averaged.values())


def test_averages_before_any_update_are_the_weights():
    model = make_model()
    assert torch.equal(averages(model, build(groups(model))), weights(model))


def test_averages_follow_each_groups_own_beta():
    model = make_model()
    optimizer = build(groups(model), lr=0.05)
    for number in range(9):
        update(model, optimizer, number)
    averaged = optimizer.averaged_parameters()
    for parameter, beta1 in ((model[0].weight, 0.9), (model[2].weight, 0.7)):
        z = optimizer.state[parameter]["z"]
        torch.testing.assert_close(beta1 * averaged[parameter] + (1 - beta1) * z, parameter.detach())


@pytest.mark.parametrize(("silent", "moved"), [(True, [False] * 4 + [True]), (False, [True] * 5)])
def test_the_silent_phase_changes_no_weight(silent, moved):
    model = make_model()
    optimizer = build(model.parameters(), silent_sgd_phase=silent)
    for number, expected in enumerate(moved):
        before = weights(model).clone()
        update(model, optimizer, number)
        assert torch.equal(before, weights(model)) is not expected
