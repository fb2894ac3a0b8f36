"""Facts: what may not change within a run, and what may: a run and the checkpoint it goes on from are compared."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model_constructor import ConfigError, dump, load_config
from model_constructor.errors import Place, Problem
from trainer.build import Run
from trainer.checkpoint import Checkpoint
from trainer.config import RunConfig


def facts(run: Run) -> dict[str, int | str | bool | None]:
    """What may not change within a run: the data, the order and units of its samples, the kinds of optimizers."""
    updates, optims = run.data.updates, run.config.experiment.model.component_optims
    return {
        "frames": updates.size,
        "frames per update": updates.update_size,
        "seed": updates.seed,
        "train.overfit_batches": run.config.experiment.train.overfit_batches or None,
        "data of fingerprint": run.data.fingerprint,
        **{f"the normalization of {key}": str(how) for key, how in run.data.prepare.normalizer.modes.items()},
        **{f"the optimizer of {name}": optims[name].type for name in run.optimizers},
        **{f"the groups of the optimizer of {name}": ", ".join(optims[name].groups) for name in run.optimizers},
        **{f"trained tensors in the component {name}": _trained(run, name) for name in run.models},
        **{f"averaged weights of the component {name}": name in run.averages.components for name in run.models},
    }


def _trained(run: Run, component: str) -> str:
    """How many, and which, in the order and the groups in which the optimizer's state counts them."""
    names = {one: f"{name} {list(one.shape)}" for name, one in run.models[component].named_parameters()}
    groups = run.optimizers[component].param_groups if component in run.optimizers else []
    order = [[names[parameter] for parameter in group["params"]] for group in groups]
    return f"{sum(map(len, order))} ({hashlib.sha256(repr(order).encode()).hexdigest()[:8]} by name, shape and group)"


def _factors(run: Run) -> str:
    updates = run.data.updates
    return f"{updates.batch_size} x {updates.processes} x {updates.accumulate}"


def _fact_place(config: RunConfig, fact: str) -> Place | None:
    """Where the config decides a fact."""
    keys = {
        "frames per update": ("data", "batch_size"),
        "seed": ("seed",),
        "train.overfit_batches": ("train", "overfit_batches"),
    }
    if fact == "seed" and config.experiment.train.seed is not None:
        return config.place("train", "seed")
    of = fact.rpartition(" of ")[2]
    if fact.startswith("trained tensors"):
        return config.place("model", "component_build_args", fact.rpartition(" ")[2])
    if fact.startswith("averaged weights"):
        return config.place("train", "ema")
    if fact.startswith(("the optimizer", "the groups")):
        return config.place("model", "component_optims", of)
    if fact.startswith("the normalization"):
        return config.place("data", "normalization", of)
    return config.place(*keys.get(fact, ("data", "datamodule")))


def fact_problems(run: Run, saved: Mapping[str, int | str]) -> Iterator[Problem]:
    given = facts(run)
    for name in sorted(saved.keys() | given.keys()):
        if saved.get(name) != given.get(name):
            message = f"the run was trained with {name} {saved.get(name)}, and is to continue with {given.get(name)}"
            hint = "restore it in the config, or start another train.save_dir"
            if name == "frames per update":
                hint = (
                    f"batch_size x processes x accumulate is {_factors(run)} now: the product has to stay {saved[name]}"
                )
            yield Problem(message, _fact_place(run.config, name), hint)


def model_problems(run: Run, checkpoint: Checkpoint) -> Iterator[Problem]:
    if set(run.models) != set(checkpoint.components):
        message = (
            f"the run has the components {', '.join(checkpoint.components)}; the config has {', '.join(run.models)}"
        )
        yield Problem(message, run.config.place("model", "component_config_paths"), "start another save_dir")
    for name in checkpoint.components:
        if name in run.models and checkpoint.text(f"{name}.yaml") != spec_text(run.models[name]):
            message = f"component '{name}' is not the model that {checkpoint.path} was saved from"
            place = run.config.place("model", "component_config_paths", name)
            yield Problem(message, place, f"compare {checkpoint.path / name}.yaml, or start another save_dir")


def spec_text(component: Any) -> str:
    return dump(component.spec)


def config_differences(config: RunConfig, run_dir: Path) -> Iterator[str]:
    """For people; a saved config that cannot be read keeps nobody from going on with the one given now."""
    path = run_dir / "config.yaml"
    try:
        saved = _flat(load_config(path).data) if path.exists() else {}
    except (ConfigError, ValueError) as error:
        yield f"config: what {path} was cannot be told: {' '.join(str(error).split())[:200]}"
        return
    given = _flat(config.data)
    for key in sorted(saved.keys() | given.keys() if saved else ()):
        was, now = (repr(one[key]) if key in one else "not set" for one in (saved, given))
        if was != now:
            yield f"config: {key} was {was}, is now {now}"


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        name: value
        for key, inner in data.items()
        for name, value in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }
