"""Build: a valid config -> everything a run needs. Nothing is written: a run that cannot start leaves no trace."""

import os
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import Dataset, Subset

from model_constructor import ConfigError, Registry
from model_constructor.errors import Place, Problem
from trainer.averaging import Averages, averages_of
from trainer.config import RunConfig
from trainer.config.checks import is_component_trainer
from trainer.config.schemas import Registered
from trainer.data.normalization import fingerprint, read_stats
from trainer.data.preparation import Preparation, build_preparation
from trainer.data.sampler import UpdateSampler
from trainer.distributed import World
from trainer.execution import wrong_execution
from trainer.modeling import build_components
from trainer.modeling.optimizers import build_optimizers
from trainer.modeling.problems import collected, refuse
from trainer.modeling.warm_start import warm_start, warm_start_folder
from trainer.registry import (
    DATASET_BUILDER_REGISTRY,
    EVALUATION_BUILDER_REGISTRY,
    LOSS_BUILDER_REGISTRY,
    TRAINER_REGISTRY,
)
from trainer.templates import Batch, ComponentTrainer, Evaluation, NonFiniteGradient, StepOptions, Trainer
from trainer.templates.trainer import samples_of
from trainer.timing import PhaseTimer

# Updates of an epoch of data that cannot be read: many, so that no schedule is told to be longer than the run.
UNKNOWN_EPOCH = 1_000_000


@dataclass(frozen=True)
class RunData:
    dataset: Dataset
    validation_dataset: Dataset | None
    held_out: int  # its frames
    norm_stats: dict[str, dict[str, np.ndarray]]
    prepare: Preparation
    item_shapes: dict[str, list[int]]  # shape of every tensor of one item: what a policy must gather
    updates: UpdateSampler
    fingerprint: str  # of the files behind it; a run continues with the same data only
    task: str  # what the data set says it shows; may be empty


@dataclass(frozen=True)
class Run:
    config: RunConfig
    world: World
    device: torch.device
    precision: str
    data: RunData
    models: nn.ModuleDict
    loss: nn.Module
    optimizers: dict[str, Optimizer]
    averages: Averages
    trainer: Trainer
    evaluation: Evaluation | None
    timer: PhaseTimer
    planned_updates: int | None  # None: only the clock ends this run

    @property
    def updates_per_epoch(self) -> int:
        return self.data.updates.updates_per_epoch

    def step(self, batch: Batch, update: int) -> dict[str, Tensor | float]:
        """One update. A plain trainer gets a prepared batch, under autocast; ours prepares each micro-batch itself."""
        seed = (self.config.experiment.run_seed, update, self.world.rank)
        try:
            if isinstance(self.trainer, ComponentTrainer):
                return self.trainer.train_step(batch, seed)
            with self.timer("prepare"):
                prepared = self.data.prepare(batch, seed)
            with self.timer("step"), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                return self.trainer.train_step(prepared)
        except NonFiniteGradient:  # names them itself
            raise
        except Exception as error:
            error.add_note(f"in update {update + 1}, of {samples_of(batch)}")
            raise


def build_run(config: RunConfig, world: World, is_resumed: bool = False) -> Run:
    """A resumed run's weights come from its checkpoint, not from `train.load_dir`.

    Raises ConfigError with the problems of the data, the components, the loss, the trainer and the evaluation. What
    needs a part that could not be built is left out: optimizers, weights and averages follow the components.
    """
    train = config.experiment.train
    device = pick_device()
    precision = train.precision or ("bf16" if device.type == "cuda" else "fp32")
    torch.backends.cudnn.benchmark = True  # convolutions of CUDA try what is fastest for their sizes
    if train.deterministic:
        be_deterministic()
    seed_everything(config.experiment.seed)  # what a data set's factory draws is equal on all processes and resumes
    problems: list[Problem] = []
    data = models = optimizers = averages = loss = trainer = evaluation = load_dir = None
    with collected(problems):
        data = build_data(config, device, world)
    planned = planned_updates(config, UNKNOWN_EPOCH if data is None else data.updates.updates_per_epoch)
    with collected(problems):
        load_dir = None if is_resumed else warm_start_folder(config)
    with collected(problems):
        models = build_components(config).to(device)
        if world.size > 1:
            synchronise_batch_norms(models, device, world)
        optimizers = build_optimizers(config, models, planned)
    if models is not None and optimizers is not None:
        with collected(problems):
            if load_dir is not None:
                warm_start(config, load_dir, models, optimizers)
        with collected(problems):
            averages = averages_of(config, models, optimizers)
    with collected(problems):
        loss = build_loss(config, device)
    with collected(problems):
        if models is not None and optimizers is not None and loss is not None:
            trainer = build_trainer(config, models, optimizers, loss, device, world)
    with collected(problems):
        if train.evaluation is not None:  # also where it is only asked for after the training: its faults are told now
            key = ("train", "evaluation")
            evaluation = build_registered(config, EVALUATION_BUILDER_REGISTRY, train.evaluation, key)
    refuse(problems)
    assert trainer is not None and averages is not None, "only a problem leaves a part out"
    timer = PhaseTimer(device)
    if isinstance(trainer, ComponentTrainer):
        trainer.configure_step(
            StepOptions(
                precision=precision,
                accumulate=train.accumulate,
                clip_grad_norm=train.clip_grad_norm,
                on_nonfinite=train.on_nonfinite,
                find_unused_parameters=config.experiment.model.find_unused_parameters,
                world=world,
                prepare=data.prepare,
                after_update=averages.update,
                phase=timer,
            )
        )
    seed_everything(config.experiment.run_seed + world.rank)
    return Run(
        config, world, device, precision, data, models, loss, optimizers, averages, trainer, evaluation, timer, planned
    )


def build_data(config: RunConfig, device: torch.device, world: World) -> RunData:
    data, train = config.experiment.data, config.experiment.train
    opt_params: dict[str, Any] = {
        "local_rank": int(os.environ.get("LOCAL_RANK", "0")),
        "dist_enabled": world.size > 1,
        "save_dir": config.save_dir,
        "project_root": config.folders.project,
        "config_dir": config.folders.config,
    }
    if data.validation is not None:
        opt_params["validation"] = {**data.validation.model_dump(exclude_none=True), "seed": config.experiment.seed}
    key = ("data", "datamodule")
    with placed(config.place(*key), partial(param_place, config, key, data.datamodule.params)):
        factory = DATASET_BUILDER_REGISTRY.get(data.datamodule.type)()
        params = Params(data.datamodule.params)
        bundle = factory.build(opt_params, params)
        _check_bundle(bundle, data.datamodule.type)
        if unread := sorted(params.keys() - params.read):
            place = config.place("data", "datamodule", "params")
            world.say(
                f"warning: data set '{data.datamodule.type}' did not read {', '.join(unread)} of its params ({place})"
            )
    validation = bundle.get("validation_dataset")
    if data.validation is not None and validation is None:
        message = f"the data set '{data.datamodule.type}' holds nothing out: it returned no validation_dataset"
        raise ConfigError(Problem(message, config.place("data", "validation"), "remove data.validation"))
    with placed(config.place("data", "datamodule")):
        stats = read_stats(bundle.get("norm_stats") or {})
    if validation is not None and not len(validation):
        message = f"the data set '{data.datamodule.type}' holds nothing out: its validation_dataset is empty"
        raise ConfigError(Problem(message, config.place("data", "validation"), "hold more out, or remove the key"))
    dataset = bundle["dataset"]
    with placed(config.place("data", "batch_size")):
        updates = update_sampler(config, dataset, world)
        if train.overfit_batches:
            whole = UpdateSampler(updates.size, updates.update_size, updates.seed, epoch_order=updates.epoch_order)
            count = min(train.overfit_batches, whole.updates_per_epoch)
            first = list(chain.from_iterable(islice(whole, count)))  # the same on every process
            dataset = Subset(dataset, first)
            updates = update_sampler(config, dataset, world)
    item = dataset[0]
    if not isinstance(item, Mapping):
        message = f"an item of the data set '{data.datamodule.type}' is of type {type(item).__name__}"
        raise ConfigError(Problem(message, config.place("data", "datamodule"), "it is a dict: key -> tensor or text"))
    with placed(config.place("data", "datamodule")):
        prepare = preparation(config, item, stats, world).to(device)
    shapes = {key: list(value.shape) for key, value in item.items() if isinstance(value, Tensor | np.ndarray)}
    held_out = 0 if validation is None else len(validation)
    return RunData(
        dataset,
        validation,
        held_out,
        stats,
        prepare,
        shapes,
        updates,
        bundle.get("fingerprint") or fingerprint(stats),
        bundle.get("task_name", ""),
    )


def _check_bundle(bundle: Any, name: str) -> None:
    """What a data set's factory gives, as `trainer.templates.dataset` says."""
    hint = 'return {"dataset": ..., "norm_stats": ...}; docs/training.md has an example'
    if not isinstance(bundle, Mapping) or "dataset" not in bundle:
        what = f"keys {', '.join(map(str, bundle))}" if isinstance(bundle, Mapping) else type(bundle).__name__
        raise ConfigError(Problem(f"the factory of the data set '{name}' gives no 'dataset' but {what}", hint=hint))
    for key in ("dataset", "validation_dataset"):
        one = bundle.get(key)
        if one is not None and not (hasattr(one, "__len__") and hasattr(one, "__getitem__")):
            message = f"the '{key}' of the data set '{name}' is of type {type(one).__name__}, which has no items"
            raise ConfigError(
                Problem(message, hint="an update is made of items by their indices: __len__, __getitem__")
            )


class Params(dict[str, Any]):
    """What a data set is given, and which of it was looked at: nobody else can check these names."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)

    def setdefault(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().setdefault(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.read.add(name)
        return super().pop(name, *default)

    def items(self) -> Any:
        self.read |= self.keys()
        return super().items()

    def values(self) -> Any:
        self.read |= self.keys()
        return super().values()

    def copy(self) -> dict[str, Any]:
        self.read |= self.keys()
        return super().copy()

    def __iter__(self) -> Iterator[str]:  # so that `**params` goes through `__getitem__`
        return super().__iter__()


def update_sampler(config: RunConfig, dataset: Any, world: World) -> UpdateSampler:
    return UpdateSampler(
        len(dataset),
        config.experiment.data.batch_size,
        config.experiment.run_seed,
        accumulate=config.experiment.train.accumulate,
        rank=world.rank,
        processes=world.size,
        epoch_order=getattr(dataset, "epoch_order", None),
    )


def preparation(config: RunConfig, item: Mapping[str, Any], stats: Mapping[str, Any], world: World) -> Preparation:
    """Its warnings (near-constant dimensions) become one plain line each."""
    data = config.experiment.data
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare = build_preparation(item, stats, data.normalization, data.augmentation, config.source)
    for warning in caught:
        world.say(str(warning.message))
    return prepare


def build_loss(config: RunConfig, device: torch.device) -> nn.Module:
    entry, place = config.experiment.train.loss, config.place("train", "loss")
    loss = build_registered(config, LOSS_BUILDER_REGISTRY, entry, ("train", "loss")).build()
    if not isinstance(loss, nn.Module):
        message = f"the loss '{entry.type}' builds a {type(loss).__name__}, and no nn.Module"
        raise ConfigError(Problem(message, place, "its build() returns a module"))
    if learned := [name for name, one in loss.named_parameters() if one.requires_grad]:
        message = f"the loss '{entry.type}' has parameters that no optimizer would train: {', '.join(learned)}"
        hint = "make them a component with an entry of its own under model.component_optims"
        raise ConfigError(Problem(message, place, hint))
    return loss.to(device)


def build_trainer(
    config: RunConfig,
    models: nn.ModuleDict,
    optimizers: Mapping[str, Optimizer],
    loss: nn.Module,
    device: torch.device,
    world: World,
) -> Trainer:
    entry = config.experiment.train.trainer
    if world.size > 1 and not is_component_trainer(entry.type):
        models = each_in_its_own_ddp(models, config.experiment.model.find_unused_parameters)
    given = {"models": models, "optimizers": dict(optimizers), "loss": loss, "device": device}
    trainer = build_registered(config, TRAINER_REGISTRY, entry, ("train", "trainer"), **given)
    if isinstance(trainer, ComponentTrainer):
        wrong = wrong_execution(trainer.execute_steps, trainer.ensemble_decay, horizon=None)
        if problems := [Problem(what, config.place("train", "trainer"), right) for what, right in wrong]:
            raise ConfigError(problems)
    return trainer


def each_in_its_own_ddp(models: nn.ModuleDict, find_unused_parameters: bool) -> nn.ModuleDict:
    """For a trainer that does its own backward: its gradients are averaged component by component."""
    wrapped: dict[str, nn.Module] = {
        name: DistributedDataParallel(
            one, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=find_unused_parameters
        )
        if any(parameter.requires_grad for parameter in one.parameters())
        else one
        for name, one in models.items()
    }
    return nn.ModuleDict(wrapped)


def synchronise_batch_norms(models: nn.ModuleDict, device: torch.device, world: World) -> None:
    """On CUDA their statistics are those of all processes; elsewhere torch cannot, and the first process's count."""
    models.train()
    batch_norms = [
        (name, module)
        for name, module in models.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training  # a frozen one stays in eval mode
    ]
    if device.type == "cuda":
        for name, module in batch_norms:
            parent, _, own_name = name.rpartition(".")
            setattr(models.get_submodule(parent), own_name, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    elif batch_norms:
        named = ", ".join(name for name, _ in batch_norms[:4]) + (" ..." if len(batch_norms) > 4 else "")
        world.say(
            f"warning: on a {device.type}, processes do not share batch statistics; those of the first one are kept: "
            f"{named}. A norm that does not look at the batch (GroupNorm, LayerNorm) has no such trouble."
        )


def build_registered(
    config: RunConfig, registry: Registry, entry: Registered, key: tuple[str, ...], **given: Any
) -> Any:
    with placed(config.place(*key), partial(param_place, config, key, entry.params)):
        return registry.get(entry.type)(**given, **entry.params)


@contextmanager
def placed(place: Place | None, of: Callable[[str], Place | None] = lambda message: None) -> Iterator[None]:
    """Problems that a component reports of itself get the place where the config speaks of it, or `of` the message."""
    try:
        yield
    except ConfigError as error:
        problems = [Problem(one.message, one.place or of(one.message) or place, one.hint) for one in error.problems]
        raise ConfigError(problems) from error
    except Exception as error:
        error.add_note(f"while building what {place or 'the config'} asks for")
        raise


def param_place(config: RunConfig, key: tuple[str, ...], params: Mapping[str, Any], message: str) -> Place | None:
    """The param of a registered component that a message speaks of, by its name or by its value."""
    words = set(re.findall(r"\w+", message))
    for name, value in params.items():
        if name in words or (len(str(value)) > 2 and str(value) in message):
            return config.place(*key, "params", name)
    return None


def planned_updates(config: RunConfig, updates_per_epoch: int) -> int | None:
    train = config.experiment.train
    ends = [train.max_steps, None if train.epoch is None else train.epoch * updates_per_epoch]
    return min((end for end in ends if end is not None), default=None)


def pick_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def seed_everything(*words: int) -> None:
    """Every random stream of this process, from one seed or from several words of one."""
    seed = words[0] if len(words) == 1 else int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def be_deterministic() -> None:
    """The same numbers in every run on the same machine and versions, also on CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # A property of the module. Filling new tensors costs a tenth of a step and decides no number.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
