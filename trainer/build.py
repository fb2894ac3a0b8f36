"""Build: a valid config -> everything a run needs. Nothing is written: a run that cannot start leaves no trace."""

import inspect
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Subset

from model_constructor import ConfigError, Registry
from model_constructor.errors import Place, Problem
from trainer.config import RunConfig
from trainer.config.schemas import Registered
from trainer.data.normalization import KeyMode, Normalizer, normalization_modes
from trainer.data.sampler import UpdateSampler
from trainer.modeling import build_components
from trainer.registry import (
    DATASET_BUILDER_REGISTRY,
    EVALUATION_BUILDER_REGISTRY,
    LOSS_BUILDER_REGISTRY,
    OPTIMIZER_BUILDER_REGISTRY,
    TRAINER_REGISTRY,
)
from trainer.templates import ComponentTrainer, Trainer


@dataclass(frozen=True)
class RunData:
    dataset: Dataset
    validation_dataset: Dataset | None
    held_out: int  # its frames
    norm_stats: dict[str, dict[str, np.ndarray]]
    modes: dict[str, KeyMode]
    normalizer: Normalizer
    item_shapes: dict[str, list[int]]  # shape of every tensor of one item: what a policy must gather
    updates: UpdateSampler
    task: str  # what the data set says it shows; may be empty


@dataclass(frozen=True)
class Run:
    config: RunConfig
    device: torch.device
    precision: str
    data: RunData
    models: nn.ModuleDict
    loss: nn.Module
    optimizers: dict[str, Optimizer]
    trainer: Trainer
    planned_updates: int | None  # None: only the clock ends this run

    @property
    def updates_per_epoch(self) -> int:
        return self.data.updates.updates_per_epoch


def build_run(config: RunConfig) -> Run:
    train = config.experiment.train
    device = pick_device()
    precision = train.precision or ("bf16" if device.type == "cuda" else "fp32")
    if train.deterministic:
        be_deterministic()
    data = build_data(config, device)
    models = build_components(config).to(device)
    planned = planned_updates(config, data.updates.updates_per_epoch)
    optimizers = build_optimizers(config, models, planned)
    loss = build_registered(config, LOSS_BUILDER_REGISTRY, train.loss, ("train", "loss")).build().to(device)
    trainer = build_trainer(config, models, optimizers, loss, device)
    if train.evaluation is not None:  # not kept: what is wrong with it is told before the training, not after
        build_registered(config, EVALUATION_BUILDER_REGISTRY, train.evaluation, ("train", "evaluation"))
    if isinstance(trainer, ComponentTrainer):
        trainer.configure_step(precision, train.accumulate, train.clip_grad_norm)
    seed_everything(config.experiment.run_seed)
    return Run(config, device, precision, data, models, loss, optimizers, trainer, planned)


def build_data(config: RunConfig, device: torch.device) -> RunData:
    data, train = config.experiment.data, config.experiment.train
    opt_params: dict[str, Any] = {
        "local_rank": 0,
        "dist_enabled": False,
        "save_dir": config.save_dir,
        "project_root": config.folders.project,
        "config_dir": config.folders.config,
    }
    if data.validation is not None:
        opt_params["validation"] = {**data.validation.model_dump(exclude_none=True), "seed": config.experiment.seed}
    with placed(config.place("data", "datamodule")):
        factory = DATASET_BUILDER_REGISTRY.get(data.datamodule.type)()
        bundle = factory.build(opt_params, dict(data.datamodule.params))
    validation = bundle.get("validation_dataset")
    if data.validation is not None and validation is None:
        message = f"the data set '{data.datamodule.type}' holds nothing out: it returned no validation_dataset"
        raise ConfigError(Problem(message, config.place("data", "validation"), "remove data.validation"))
    stats = bundle.get("norm_stats", {})
    modes = normalization_modes(data.normalization, stats, config.source)
    dataset, update_size = bundle["dataset"], data.batch_size * train.accumulate
    with placed(config.place("data", "batch_size")):
        updates = UpdateSampler(len(dataset), update_size, config.experiment.run_seed)
        if train.overfit_batches:
            first = list(chain.from_iterable(islice(updates, train.overfit_batches)))
            dataset = Subset(dataset, first)
            updates = UpdateSampler(len(first), update_size, config.experiment.run_seed)
    item = dataset[0]
    shapes = {key: list(value.shape) for key, value in item.items() if isinstance(value, Tensor | np.ndarray)}
    held_out = 0 if validation is None else len(validation)
    return RunData(
        dataset,
        validation,
        held_out,
        stats,
        modes,
        build_normalizer(stats, modes).to(device),
        shapes,
        updates,
        bundle.get("task_name", ""),
    )


def build_normalizer(stats: Mapping[str, Mapping[str, np.ndarray]], modes: Mapping[str, KeyMode]) -> Normalizer:
    """Its warnings (near-constant dimensions) become one plain line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        normalizer = Normalizer(stats, modes)
    for warning in caught:
        print(warning.message, flush=True)
    return normalizer


def build_optimizers(config: RunConfig, models: nn.ModuleDict, planned: int | None) -> dict[str, Optimizer]:
    """One per component that has something to train; the entry of any other is skipped."""
    optimizers = {}
    for name, entry in config.experiment.model.component_optims.items():
        trainable = [parameter for parameter in models[name].parameters() if parameter.requires_grad]
        if not trainable:
            continue
        key = ("model", "component_optims", name)
        params = dict(entry.params)
        signature = inspect.signature(OPTIMIZER_BUILDER_REGISTRY.get(entry.type)).parameters
        if "total_steps" in signature and "total_steps" not in params:
            if planned is not None:
                params["total_steps"] = planned
            elif signature["total_steps"].default is inspect.Parameter.empty:
                message = f"optimizer '{entry.type}' needs total_steps, and a run that only the clock ends has none"
                raise ConfigError(
                    Problem(message, config.place(*key), "give total_steps, train.max_steps or train.epoch")
                )
        with placed(config.place(*key)):
            factory = OPTIMIZER_BUILDER_REGISTRY.get(entry.type)(**params)
            optimizers[name] = factory.build(trainable)
    if not optimizers:
        message = "nothing trains: every component is frozen or has no parameters"
        raise ConfigError(Problem(message, config.place("model", "component_build_args")))
    return optimizers


def build_trainer(
    config: RunConfig, models: nn.ModuleDict, optimizers: Mapping[str, Optimizer], loss: nn.Module, device: torch.device
) -> Trainer:
    given = {"models": models, "optimizers": dict(optimizers), "loss": loss, "device": device}
    return build_registered(config, TRAINER_REGISTRY, config.experiment.train.trainer, ("train", "trainer"), **given)


def build_registered(
    config: RunConfig, registry: Registry, entry: Registered, key: tuple[str, ...], **given: Any
) -> Any:
    with placed(config.place(*key)):
        return registry.get(entry.type)(**given, **entry.params)


@contextmanager
def placed(place: Place | None) -> Iterator[None]:
    """Problems that a component reports of itself get the place where the config speaks of it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([Problem(one.message, one.place or place, one.hint) for one in error.problems]) from error
    except Exception as error:
        error.add_note(f"while building what {place or 'the config'} asks for")
        raise


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


def seed_everything(seed: int) -> None:
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
