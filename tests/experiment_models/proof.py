"""The proof that a model of the zoo equals its reference, shared by the tests of the zoo."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from key_map import KeyMap, KeySource, load_foreign, translate
from torch import Tensor, nn

ZOO = Path(__file__).parents[2] / "experiment_models" / "zoo"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # in double, an epsilon of 1e-6 for 1e-5 is seen too

Call = Callable[[nn.Module], Tensor | tuple[Tensor, ...]]


def prove_equal(
    ours: nn.Module, theirs: nn.Module, key_map: KeyMap, call: Call, call_theirs: Call | None = None
) -> None:
    """From the same random weights the same outputs, gradients of all parameters and batch statistics, in eval and train.

    `call` gives a model its inputs; `call_theirs` does so for a reference whose arguments are other ones. Both models
    are of one dtype, which decides how closely they have to agree.
    """
    randomise(theirs, key_map)
    load_foreign(ours, theirs.state_dict(), key_map)
    assert count(ours) == count(theirs)
    for training in (False, True):
        ours.train(training).zero_grad()
        theirs.train(training).zero_grad()
        result, expected = as_tuple(call(ours)), as_tuple((call_theirs or call)(theirs))
        assert_close(result, expected)
        weights = [torch.randn_like(output) for output in expected]  # of a loss that is symmetric in nothing
        for outputs in (result, expected):
            torch.stack(
                [(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]
            ).sum().backward()
        gradients = translate(trained(ours), trained(theirs), key_map)
        assert_close(trained(ours).values(), (gradients[key] for key in trained(ours)))
        state = translate(ours.state_dict(), theirs.state_dict(), key_map)
        assert_close(ours.state_dict().values(), (state[key] for key in ours.state_dict()))


def prove_initial(ours: nn.Module, theirs: nn.Module, key_map: KeyMap) -> None:
    """Freshly built, each parameter has its initial values from the same distribution, as far as two moments tell."""
    expected = translate(ours.state_dict(), theirs.state_dict(), key_map)
    for name, parameter in ours.named_parameters():
        for power in (2, 4):
            one, other = parameter.pow(power).mean(), expected[name].pow(power).mean()
            assert abs(one - other) <= 25 / parameter.numel() ** 0.5 * other, name  # of normal values: five sigma


def randomise(model: nn.Module, keys: KeySource = None) -> None:
    """Move every weight and every batch statistic off its initial value, so that none is zero or one by chance.

    What a key map says is no weight, such as a table of positions, stays as it is.
    """
    key_map = KeyMap.read(keys)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not key_map.leaves_out(name):
                tensor += 0.1 * torch.randn_like(tensor) * (tensor.std() if tensor.ndim > 1 else 1)


def assert_close(result: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for one, other in zip(result, expected, strict=True):
        tolerance = TOLERANCE.get(other.dtype, 0)
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * max(1.0, other.abs().max().item()))


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of a model, which each of its parameters has to have."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not (without := [name for name, gradient in gradients.items() if gradient is None]), without
    return gradients


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
