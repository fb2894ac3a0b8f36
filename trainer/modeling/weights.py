"""Weights: a file of named tensors -> the parameters and buffers of a component."""

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from model_constructor import ConfigError
from model_constructor.errors import Place, Problem, nearest
from model_constructor.weights import WeightReport, fit_weights, read_state_dict
from trainer.modeling.problems import listed

HOW_TO_FIT = "`weights: {path: ..., strict: false}` loads what fits and leaves the rest as it was initialised"


def load_weights(component: nn.Module, path: Path, place: Place | None, name: str, *, strict: bool = True) -> None:
    """Load a state dict, `.safetensors` or a `.pt` that holds tensors alone; each in the component's own dtype.

    strict: every tensor of the file has one of the same name and shape in the component, and the other way round;
    otherwise what fits is loaded and the rest is told in one line. Raises ConfigError, also where nothing fits.
    """
    given = read_state_dict(path, place)
    report = fit_weights(component, given)
    if report.is_empty:
        hint = nearest(min(component.state_dict()), given)
        raise ConfigError(Problem(f"component '{name}': {path} holds none of its tensors", place, hint))
    problems = list(_differences(report))
    if problems and strict:
        raise ConfigError([Problem(f"component '{name}': {path} {one}", place, _hint(report)) for one in problems])
    if problems and not any(one.is_meta for one in component.state_dict().values()):
        print(f"component '{name}': {path} " + "; it ".join(problems), flush=True)


def _differences(report: WeightReport) -> Iterator[str]:
    if missing := [one.ours for one in report.of("missing")]:
        yield f"lacks {listed(missing)}"
    if unexpected := [one.theirs for one in report.of("unexpected")]:
        yield f"has besides {listed(unexpected)}"
    if other := report.of("shape differs"):
        shapes = [f"{one.ours} {list(one.their_shape or ())} for {list(one.shape or ())}" for one in other]
        yield f"has other shapes: {listed(sorted(shapes))}"


def _hint(report: WeightReport) -> str:
    missing, unexpected = report.of("missing"), [one.theirs for one in report.of("unexpected")]
    if any(key.endswith(".lora_A") for key in unexpected):
        return "the file holds LoRA matrices: continue from it by train.load_dir, or merge them before saving"
    if missing and unexpected:
        return nearest(missing[0].ours, unexpected)
    return HOW_TO_FIT
