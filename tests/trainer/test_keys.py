"""The table of keys: every key that a train config may have, each with an effect that a tiny run shows.

`EFFECTS` is the table. A key of the schema without an entry fails, so does an entry without a key; the README's table
of names, defaults and meanings is held to the schema.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
import torch
import toy_plugin

from model_constructor import ConfigError
from trainer import train
from trainer.build import Run, build_run
from trainer.config import load_run_config, loader
from trainer.config.loader import validated
from trainer.config.schemas import ExperimentConfig, Registered, Section
from trainer.data.prefetch import build_loader
from trainer.distributed import World
from trainer.loop import TrainResult, evaluation_is_due, is_late, save_is_due, training_batches, validation_is_due
from trainer.metrics import read_metrics
from trainer.modeling.lora import LoraUpdate
from trainer.modeling.recompute import Recomputed
from trainer.state import Progress
from trainer.templates import NonFiniteGradient

README = Path(__file__).parents[2] / "README.md"
HELD_OUT = "data.validation={episodes: [0, 1]}"
BATCH = {"observation.state": torch.zeros(2, 1, 3), "action": torch.zeros(2, 4, 2)}


class Toy:
    """The toy experiment, built or trained with other values at some keys."""

    def __init__(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self.monkeypatch = config, monkeypatch
        self.project = config.parents[1]

    def built(self, *overrides: str) -> Run:
        return build_run(load_run_config(self.config, overrides), World())

    def trained(self, **values: Any) -> TrainResult:
        return train(self.config, {f"train.{name}": value for name, value in values.items()})

    def encoder(self, build_args: str) -> torch.nn.Module:
        return self.built(f"model.component_build_args={{encoder: {{{build_args}}}}}").models["encoder"]

    def states_seen(self, run: Run, update: int = 0) -> torch.Tensor:
        """What the data set gives to one update."""
        with training_batches(run, update) as batches:
            return next(iter(batches))["observation.state"]


EFFECTS: dict[str, Callable[[Toy], None]] = {}


def shows(key: str) -> Callable[[Callable[[Toy], None]], Callable[[Toy], None]]:
    def enter(effect: Callable[[Toy], None]) -> Callable[[Toy], None]:
        assert key not in EFFECTS
        EFFECTS[key] = effect
        return effect

    return enter


def keys_of(section: type[Section], below: str = "") -> Iterator[tuple[str, Any]]:
    """Each key with the field behind it; of a registered component, `type` and `params` belong to its key."""
    for name, field in section.model_fields.items():
        key = f"{below}{name}"
        inner = list(sections_in(field.annotation))
        per_component = ".<c>" if get_origin(field.annotation) is dict and inner else ""
        is_registered = any(issubclass(one, Registered) for one in inner)
        if not inner or is_registered or not (field.is_required() or per_component):
            yield key + per_component, field
        for one in inner:
            shared = Registered.model_fields if is_registered else ()
            yield from ((k, f) for k, f in keys_of(one, f"{key}{per_component}.") if k.rpartition(".")[2] not in shared)


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)


KEYS = dict(keys_of(ExperimentConfig))


def test_every_key_is_in_the_table_and_nothing_else() -> None:
    assert EFFECTS.keys() == KEYS.keys()
    assert len(KEYS) > 50


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.fault("F15", "every key has an effect")
def test_the_key_has_its_effect(key: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EFFECTS[key](Toy(config, monkeypatch))


READ_FROM_THE_TEXT = {"plugins"}  # before there are sections
OPTIONAL = [key for key, field in KEYS.items() if not field.is_required() and key not in READ_FROM_THE_TEXT]


@pytest.mark.slow
@pytest.mark.parametrize("key", OPTIONAL)
@pytest.mark.fault("F15", "a key that is ignored is noticed")
def test_the_effect_is_missed_where_the_key_is_ignored(key: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table shows of a key is not there when every run has the key's default."""
    monkeypatch.setattr(loader, "validated", lambda source: ignoring(validated(source), key.removesuffix(".<c>")))
    with pytest.raises((AssertionError, ConfigError, StopIteration, NonFiniteGradient, pytest.fail.Exception)):
        EFFECTS[key](Toy(config, monkeypatch))


def ignoring(section: Any, key: str) -> Any:
    """The section with the default at a key, in all of its components for `<c>`."""
    name, _, below = key.partition(".")
    if isinstance(section, dict):
        return {component: ignoring(one, below) for component, one in section.items()}
    if not isinstance(section, Section):
        return section
    field = type(section).model_fields[name]
    value = ignoring(getattr(section, name), below) if below else field.get_default(call_default_factory=True)
    return section.model_copy(update={name: value})


def test_the_readme_lists_every_key_once_with_its_default_and_its_meaning() -> None:
    section = README.read_text().partition("### The train config")[2].partition("The components that ship")[0]
    rows = re.findall(r"^\| `([^|]+)` \| ([^|]+) \| (.+) \|$", section, flags=re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(KEYS)
    for name, default, meaning in rows:
        assert default == told_default(KEYS[name], otherwise=default), name
        assert len(meaning.split()) > 2, name


def told_default(field: Any, otherwise: str) -> str:
    """The default as the README has it; what none means, words have to say: each key's effect shows it."""
    if field.is_required():
        return "required"
    if field.default is None:
        assert otherwise != "required"
        return otherwise
    written = field.default if isinstance(field.default, str) else json.dumps(field.default)
    return f"`{written}`"


# --------------------------------------------------------------------------------------------------------- components


@shows("plugins")
def _(toy: Toy) -> None:
    (toy.config.parent / "plugin_of_the_key.py").write_text("")
    load_run_config(toy.config, ["plugins=[toy_plugin, plugin_of_the_key]"])
    assert "plugin_of_the_key" in sys.modules


@shows("seed")
def _(toy: Toy) -> None:
    weights = [toy.built(f"seed={seed}", "train.seed=0").models["head"].out.weight for seed in (3, 3, 4)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@shows("model.component_config_paths")
def _(toy: Toy) -> None:
    assert list(toy.built().models) == ["encoder", "head"]


@shows("model.component_params")
def _(toy: Toy) -> None:
    run = toy.built("model.component_params={encoder: {dim: 4}, head: {dim: 4}}")
    assert run.models["head"].out.in_features == 4


@shows("model.component_build_args.<c>.init")
def _(toy: Toy) -> None:
    assert toy.encoder("init: false").net[0].bias.any()
    assert not toy.encoder("init: true").net[0].bias.any()


@shows("model.component_build_args.<c>.freeze")
def _(toy: Toy) -> None:
    run = toy.built("model.component_build_args.encoder.freeze=true")
    run.models.train()
    assert not any(one.requires_grad for one in run.models["encoder"].parameters())
    assert not run.models["encoder"].training
    assert "encoder" not in run.optimizers
    partly = toy.built("model.component_build_args.encoder.freeze=['net.0.bias']").models["encoder"]
    assert [name for name, one in partly.named_parameters() if one.requires_grad] == ["net.0.weight"]


@shows("model.component_build_args.<c>.weights")
def _(toy: Toy) -> None:
    given = {"net.0.weight": torch.ones(8, 3), "net.0.bias": torch.ones(8)}
    torch.save(given, toy.config.parent / "given.pt")
    assert torch.equal(toy.encoder("weights: given.pt").net[0].weight, given["net.0.weight"])


@shows("model.component_build_args.<c>.weights.path")
def _(toy: Toy) -> None:
    EFFECTS["model.component_build_args.<c>.weights"](toy)
    assert toy.encoder("weights: {path: given.pt}").net[0].bias.eq(1).all()


@shows("model.component_build_args.<c>.weights.strict")
def _(toy: Toy) -> None:
    torch.save({"net.0.bias": torch.ones(8)}, toy.config.parent / "given.pt")
    assert toy.encoder("weights: {path: given.pt, strict: false}").net[0].bias.eq(1).all()
    with pytest.raises(ConfigError, match=r"net\.0\.weight"):
        toy.encoder("weights: {path: given.pt}")


def lora_update(toy: Toy, options: str) -> tuple[torch.nn.Module, LoraUpdate]:
    encoder = toy.encoder(f"lora: {{{options}, targets: [net.0]}}")
    return encoder, next(hook for hook in encoder.net[0]._forward_hooks.values() if isinstance(hook, LoraUpdate))


@shows("model.component_build_args.<c>.lora")
def _(toy: Toy) -> None:
    encoder, _ = lora_update(toy, "rank: 2")
    trains = [name for name, one in encoder.named_parameters() if one.requires_grad]
    assert trains == ["net.0.lora_A", "net.0.lora_B"]


@shows("model.component_build_args.<c>.lora.rank")
def _(toy: Toy) -> None:
    assert lora_update(toy, "rank: 3")[0].net[0].lora_A.shape == (3, 3)


@shows("model.component_build_args.<c>.lora.alpha")
def _(toy: Toy) -> None:
    assert lora_update(toy, "rank: 2")[1].scale == 1.0
    assert lora_update(toy, "rank: 2, alpha: 8.0")[1].scale == 4.0


@shows("model.component_build_args.<c>.lora.dropout")
def _(toy: Toy) -> None:
    assert lora_update(toy, "rank: 2")[1].dropout == 0.0
    assert lora_update(toy, "rank: 2, dropout: 0.5")[1].dropout == 0.5


@shows("model.component_build_args.<c>.lora.targets")
def _(toy: Toy) -> None:
    with pytest.raises(ConfigError, match="not a linear layer"):
        toy.encoder("lora: {rank: 2, targets: [net.1]}")


@shows("model.component_build_args.<c>.dtype")
def _(toy: Toy) -> None:
    encoder = toy.encoder("dtype: bfloat16, freeze: true")
    assert {one.dtype for one in encoder.parameters()} == {torch.bfloat16}


@shows("model.component_build_args.<c>.compile")
def _(toy: Toy) -> None:
    compiled: list[torch.nn.Module] = []
    toy.monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    assert toy.encoder("compile: true") is compiled[-1]


@shows("model.component_build_args.<c>.gradient_checkpointing")
def _(toy: Toy) -> None:
    with (toy.config.parent / "encoder.yaml").open("a") as file:
        file.write("blocks: {layer: {inputs: {h: [B, H, dim]}, modules: {f: 'Linear(8, 8)'}, outputs: f(h)}}\n")
    path = toy.config.parent / "encoder.yaml"
    text = path.read_text().replace("modules: {net:", "modules: {layers: layer() * 2, net:")
    path.write_text(text.replace("outputs: net(state)", "outputs: layers(net(state))"))
    assert isinstance(toy.encoder("gradient_checkpointing: true").layers[0].forward, Recomputed)


@shows("model.component_optims.<c>")
def _(toy: Toy) -> None:
    run = toy.built("model.component_optims.encoder={type: toy_sgd, params: {lr: 0.3}}")
    assert type(run.optimizers["encoder"]) is torch.optim.SGD
    assert run.optimizers["encoder"].param_groups[0]["lr"] == 0.3


@shows("model.component_optims.<c>.groups")
def _(toy: Toy) -> None:
    run = toy.built("model.component_optims.head.groups={out.bias: {lr: 0.5}}")
    assert [group["lr"] for group in run.optimizers["head"].param_groups] == [0.05, 0.5]


@shows("model.find_unused_parameters")
def _(toy: Toy) -> None:
    told: dict[str, Any] = {}
    wrapper = lambda module, **options: told.update(options) or module  # noqa: E731
    toy.monkeypatch.setattr("trainer.templates.trainer.DistributedDataParallel", wrapper)
    config = load_run_config(toy.config, ["model.find_unused_parameters=true"])
    build_run(config, World(0, 2))
    assert told["find_unused_parameters"] is True


# --------------------------------------------------------------------------------------------------------------- data


@shows("data.datamodule")
def _(toy: Toy) -> None:
    assert len(toy.built("data.datamodule.params={episodes: 4}").data.dataset) == 4 * 8


@shows("data.batch_size")
def _(toy: Toy) -> None:
    run = toy.built("data.batch_size=5")
    assert run.updates_per_epoch == 80 // 5
    assert len(toy.states_seen(run)) == 5


def data_loader(toy: Toy, *overrides: str) -> Any:
    """As it would be on CUDA, where memory is pinned."""
    run = toy.built(*overrides)
    return build_loader(run.data.dataset, [[0]], run.config.experiment.data, torch.device("cuda"), 0)


@shows("data.num_workers")
def _(toy: Toy) -> None:
    assert (data_loader(toy).num_workers, data_loader(toy, "data.num_workers=2").num_workers) == (0, 2)


@shows("data.pin_memory")
def _(toy: Toy) -> None:
    assert (data_loader(toy).pin_memory, data_loader(toy, "data.pin_memory=false").pin_memory) == (True, False)


@shows("data.persistent_workers")
def _(toy: Toy) -> None:
    assert data_loader(toy, "data.num_workers=1").persistent_workers
    assert not data_loader(toy, "data.num_workers=1", "data.persistent_workers=false").persistent_workers


@shows("data.prefetch_factor")
def _(toy: Toy) -> None:
    assert data_loader(toy, "data.num_workers=1").prefetch_factor == 2
    assert data_loader(toy, "data.num_workers=1", "data.prefetch_factor=7").prefetch_factor == 7


def validations(run: Run) -> list[int]:
    return [step for step in range(1, 9) if validation_is_due(run, Progress(step), False)]


@shows("data.validation")
def _(toy: Toy) -> None:
    run = toy.built(HELD_OUT)
    assert run.data.held_out == 2 * 8
    assert validations(run)[0] == run.updates_per_epoch


@shows("data.validation.fraction")
def _(toy: Toy) -> None:
    given: list[dict] = []
    build = toy_plugin.ToyData.build
    toy.monkeypatch.setattr(
        toy_plugin.ToyData,
        "build",
        lambda self, opt, params: (
            given.append(opt["validation"]) or build(self, {"validation": {"episodes": [3]}}, params)
        ),
    )
    toy.built("data.validation={fraction: 0.1}")
    assert given == [{"fraction": 0.1, "seed": 3}]


@shows("data.validation.episodes")
def _(toy: Toy) -> None:
    run = toy.built("data.validation={episodes: [2]}")
    assert set(run.data.validation_dataset.episode) == {2}
    assert 2 not in run.data.dataset.episode


@shows("data.normalization")
def _(toy: Toy) -> None:
    plain = toy.built("data.normalization={observation.state: identity}").data.prepare(BATCH)
    assert torch.equal(plain["observation.state"], BATCH["observation.state"])
    assert not torch.equal(toy.built().data.prepare(BATCH)["observation.state"], BATCH["observation.state"])


@shows("data.augmentation")
def _(toy: Toy) -> None:
    original = toy_plugin.ToyDataset.__getitem__
    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(1, 3, 8, 8)
    toy.monkeypatch.setattr(toy_plugin.ToyDataset, "__getitem__", lambda s, i: {**original(s, i), "image": image})
    prepare = toy.built("data.augmentation=[{type: random_shift, params: {pixels: 4}}]").data.prepare
    batch = {**BATCH, "image": image.expand(2, 1, 3, 8, 8)}
    assert not torch.equal(prepare(batch, (0, 1))["image"], prepare(batch)["image"])


# -------------------------------------------------------------------------------------------------------------- train


@shows("train.trainer")
def _(toy: Toy) -> None:
    run = toy.built("train.trainer.params={noise: 0.5}")
    assert (type(run.trainer), run.trainer.noise) == (toy_plugin.ToyTrainer, 0.5)


@shows("train.loss")
def _(toy: Toy) -> None:
    run = toy.built("train.loss.params={scale: 2.0}")
    assert (type(run.loss), run.loss.scale) == (toy_plugin.ScaledError, 2.0)


@shows("train.epoch")
def _(toy: Toy) -> None:
    assert toy.built("train.epoch=2", "train.max_steps=null").planned_updates == 2 * 5


@shows("train.max_steps")
def _(toy: Toy) -> None:
    assert toy.built("train.epoch=2", "train.max_steps=7").planned_updates == 7


@shows("train.max_minutes")
def _(toy: Toy) -> None:
    run = toy.built("train.max_minutes=2")
    assert is_late(run, Progress(seconds=120.0))
    assert not is_late(run, Progress(seconds=119.0))
    assert not is_late(toy.built(), Progress(seconds=1e9))


@shows("train.seed")
def _(toy: Toy) -> None:
    first, same, other = (toy.built(*one) for one in ([], ["train.seed=3"], ["train.seed=4"]))
    assert torch.equal(toy.states_seen(first), toy.states_seen(same))  # unless given, it is `seed`
    assert not torch.equal(toy.states_seen(first), toy.states_seen(other))
    assert torch.equal(first.models["head"].out.weight, other.models["head"].out.weight)


@shows("train.precision")
def _(toy: Toy) -> None:
    outputs = []
    for precision in ("fp32", "bf16"):
        run = toy.built(f"train.precision={precision}")
        head = run.models["head"]
        head.register_forward_hook(lambda module, args, output: outputs.append(output.dtype))
        run.step(dict(BATCH), 0)
    assert outputs == [torch.float32, torch.bfloat16]
    assert toy.built().precision == ("bf16" if torch.cuda.is_available() else "fp32")


@shows("train.accumulate")
def _(toy: Toy) -> None:
    run = toy.built("train.accumulate=2")
    assert len(toy.states_seen(run)) == 2 * 16
    sizes = []
    run.models["head"].register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    run.step({key: value.repeat(2, *[1] * (value.ndim - 1)) for key, value in BATCH.items()}, 0)
    assert sizes == [2, 2]


@shows("train.clip_grad_norm")
def _(toy: Toy) -> None:
    moved = {}
    for limit in ("1.0e-6", "null"):
        run = toy.built(f"train.clip_grad_norm={limit}")
        before = run.models["head"].out.bias.clone()
        run.step(dict(BATCH), 0)
        moved[limit] = (run.models["head"].out.bias - before).abs().max()
    assert moved["1.0e-6"] < 1e-6 < moved["null"]


@shows("train.on_nonfinite")
def _(toy: Toy) -> None:
    spoiled = {**BATCH, "action": BATCH["action"] * np.nan}
    with pytest.raises(NonFiniteGradient):
        toy.built().step(spoiled, 0)
    assert toy.built("train.on_nonfinite=skip").step(spoiled, 0)["skipped"] == 1


def averaged(toy: Toy, ema: str) -> dict[str, float]:
    """How far the averages of each component went in one update, as a share of its weights' way."""
    run = toy.built(f"train.ema={ema}", "model.component_optims.encoder={type: toy_sgd}")
    before = {name: one.clone() for name, one in run.models.named_parameters()}
    run.step(dict(BATCH), 0)
    live = {name: one.clone() for name, one in run.models.named_parameters()}
    with run.averages.applied():
        shares = {
            name: ((one - before[name]).norm() / (live[name] - before[name]).norm()).item()
            for name, one in run.models.named_parameters()
        }
    return {"encoder": shares["encoder.net.0.bias"], "head": shares["head.out.bias"]}


@shows("train.ema")
def _(toy: Toy) -> None:
    assert toy.built().averages.components == []
    assert toy.built("train.ema={}").averages.components == ["encoder", "head"]


@shows("train.ema.decay")
def _(toy: Toy) -> None:
    assert averaged(toy, "{decay: 0.75, warmup: false}")["head"] == pytest.approx(0.25, rel=1e-3)


@shows("train.ema.warmup")
def _(toy: Toy) -> None:
    assert averaged(toy, "{}")["head"] == pytest.approx(1 - 2 / 11, rel=1e-3)
    assert averaged(toy, "{warmup: false}")["head"] == pytest.approx(1 - 0.999, rel=1e-2)


@shows("train.ema.components")
def _(toy: Toy) -> None:
    assert averaged(toy, "{components: [head]}")["encoder"] == 1.0


@shows("train.deterministic")
def _(toy: Toy) -> None:
    asked: list[bool] = []
    toy.monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    toy.built()
    assert asked == []
    toy.monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    toy.monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    toy.built("train.deterministic=true")
    assert asked == [True]


@shows("train.overfit_batches")
def _(toy: Toy) -> None:
    assert (toy.built().data.updates.size, toy.built("train.overfit_batches=2").data.updates.size) == (80, 2 * 16)


@shows("train.project_name")
def _(toy: Toy) -> None:
    assert toy.built().config.name == "config"
    assert toy.built("train.project_name=mine").config.name == "mine"


@shows("train.save_dir")
def _(toy: Toy) -> None:
    assert toy.built("train.save_dir=elsewhere/x").config.save_dir == toy.project / "elsewhere/x"
    assert toy.built("train.save_dir=null").config.save_dir == toy.project / "runs/config"


def saves(run: Run) -> list[int]:
    return [step for step in range(1, 2001) if save_is_due(run, Progress(step))]


@shows("train.save_every")
def _(toy: Toy) -> None:
    assert saves(toy.built("train.save_every=150")) == [750, 1500]


@shows("train.save_every_steps")
def _(toy: Toy) -> None:
    assert saves(toy.built()) == [1000, 2000]
    assert saves(toy.built("train.save_every_steps=800")) == [800, 1600]


LINKS = {"latest", "best"}


def kept(result: TrainResult) -> set[str]:
    return {path.name for path in result.run_dir.iterdir() if (path / "manifest.json").is_file()}


@shows("train.keep_last")
def _(toy: Toy) -> None:
    assert kept(toy.trained(max_steps=3, save_every_steps=1, keep_last=2)) - LINKS == {"step_2", "step_3"}
    all_ = toy.trained(max_steps=6, save_every_steps=1, keep_last=None, save_dir="runs/all")
    assert kept(all_) >= {"step_1"}  # of the default, 5 would be left


@shows("train.keep_every")
def _(toy: Toy) -> None:
    saved = kept(toy.trained(max_steps=4, save_every_steps=1, keep_last=1, keep_every=2))
    assert saved - LINKS == {"step_2", "step_4"}


@shows("train.keep_best")
def _(toy: Toy) -> None:
    config = {"train.max_steps": 2, "train.keep_best": True, "data.validation": {"episodes": [0]}}
    result = train(toy.config, {**config, "train.validate_every": 1})
    assert (result.run_dir / "best").is_symlink()


@shows("train.load_dir")
def _(toy: Toy) -> None:
    result = toy.trained(max_steps=1)
    saved = torch.load(result.checkpoint / "head.pt", weights_only=True)
    run = toy.built(f"train.load_dir={result.run_dir}", "seed=9")
    assert torch.equal(run.models["head"].out.weight, saved["out.weight"])


@shows("train.allow_missing")
def _(toy: Toy) -> None:
    old = toy.trained(max_steps=1).checkpoint
    folder = toy.project / "old"
    folder.mkdir()
    for name in ("encoder.pt", "encoder_opt.pt", "head_opt.pt"):
        (folder / name).write_bytes((old / name).read_bytes())
    with pytest.raises(ConfigError, match=r"allow_missing: \[head\.pt\]"):
        toy.built("train.load_dir=old")
    toy.built("train.load_dir=old", "train.allow_missing=[head.pt]")


@shows("train.log_every")
def _(toy: Toy) -> None:
    lines = read_metrics(toy.trained(log_every=5).run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 12]


@shows("train.loggers")
def _(toy: Toy) -> None:
    steps: list[int] = []

    class Noted:
        def __init__(self, run: Any) -> None: ...
        def log(self, step: int, line: Any) -> None:
            steps.append(step)

        def close(self) -> None: ...

    toy.monkeypatch.setitem(sys.modules["trainer.loggers"].LOGGERS, "tensorboard", Noted)
    toy.monkeypatch.setattr("trainer.config.logger_checks._missing", lambda name: ())
    toy.trained(loggers=["tensorboard"])
    assert steps == [4, 8, 12]


@shows("train.profile")
def _(toy: Toy) -> None:
    assert (toy.trained(profile=1).run_dir / "profile" / "trace.json").is_file()


@shows("train.validate_every")
def _(toy: Toy) -> None:
    run = toy.built(HELD_OUT, "train.validate_every=3")
    assert validations(run) == [3, 6]
    assert validations(toy.built(HELD_OUT)) == [4, 8]  # each epoch


@shows("train.evaluation")
def _(toy: Toy) -> None:
    evaluation = toy.built().evaluation
    assert isinstance(evaluation, toy_plugin.ToyEvaluation) and evaluation.episodes == 2


@shows("train.evaluate_every")
def _(toy: Toy) -> None:
    run = toy.built("train.evaluate_every=3")
    assert [step for step in range(1, 8) if evaluation_is_due(run, Progress(step))] == [3, 6]
    assert not evaluation_is_due(toy.built(), Progress(12))
