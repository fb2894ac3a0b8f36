"""Schemas: what a train config may say. Unknown keys are refused everywhere; every key here has an effect.

Paths stay text here: `Folders.find` and `Folders.save_dir` resolve them.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from torch import nn


def component_name(name: str) -> str:
    """A component's name names files of a checkpoint and an entry of the ModuleDict."""
    if not name.isidentifier():
        raise ValueError("a component's name is made of letters, digits and _")
    if name == "training_state" or name.endswith(("_opt", "_ema")) or hasattr(nn.ModuleDict, name):
        raise ValueError("this name is taken by a checkpoint's files or by torch; choose another")
    return name


Name = Annotated[str, AfterValidator(component_name)]

Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what every random stream takes


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Registered(Section):
    """One registered component, and what it is given."""

    type: str
    params: dict[str, Any] = {}


class Weights(Section):
    path: str
    strict: bool = True


class Lora(Section):
    rank: PositiveInt
    alpha: PositiveFloat | None = None  # None: the rank, so that the update is added as it is
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[list[str], Field(min_length=1)]  # selectors of modules


class BuildArgs(Section):
    init: bool = False
    freeze: bool | list[str] = False
    weights: str | Weights | None = None
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    compile: bool = False
    gradient_checkpointing: bool = False


class Optimizer(Registered):
    groups: dict[str, dict[str, Any]] = {}  # selector -> params that differ


class ModelConfig(Section):
    component_config_paths: Annotated[dict[Name, str], Field(min_length=1)]
    component_params: dict[str, dict[str, Any]] = {}
    component_build_args: dict[str, BuildArgs] = {}
    component_optims: dict[str, Optimizer] = {}
    find_unused_parameters: bool = False

    def build_args(self, component: str) -> BuildArgs:
        return self.component_build_args.get(component, BuildArgs())


class ValidationConfig(Section):
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    episodes: Annotated[list[int], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def one_of_both(self) -> "ValidationConfig":
        if (self.fraction is None) == (self.episodes is None):
            raise ValueError("give either `fraction` (of the episodes) or `episodes` (a list)")
        return self


class DataConfig(Section):
    datamodule: Registered
    batch_size: PositiveInt = 32
    num_workers: Annotated[int, Field(ge=0)] = 0
    pin_memory: bool = True
    persistent_workers: bool = True
    prefetch_factor: PositiveInt = 2
    validation: ValidationConfig | None = None
    normalization: dict[str, Any] = {}  # its own words: see trainer.data.normalization
    augmentation: list[Any] = []  # its own words: see trainer.data.augmentation


class Ema(Section):
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    warmup: bool = True
    components: Annotated[list[str], Field(min_length=1)] | None = None  # None: every component that trains


class TrainConfig(Section):
    trainer: Registered
    loss: Registered
    epoch: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    max_minutes: PositiveFloat | None = None
    seed: Seed | None = None
    precision: Literal["fp32", "bf16"] | None = None
    accumulate: PositiveInt = 1
    clip_grad_norm: PositiveFloat | None = 1.0
    on_nonfinite: Literal["stop", "skip"] = "stop"
    ema: Ema | None = None
    deterministic: bool = False
    overfit_batches: Annotated[int, Field(ge=0)] = 0
    project_name: str | None = None
    save_dir: str | None = None
    save_every: PositiveInt | None = None
    save_every_steps: PositiveInt | None = None
    keep_last: PositiveInt | None = 5
    keep_every: PositiveInt | None = None
    keep_best: bool = False
    load_dir: str | None = None
    allow_missing: list[str] = []
    log_every: PositiveInt = 50
    loggers: list[Literal["wandb", "tensorboard"]] = []
    profile: Annotated[int, Field(ge=0)] = 0
    validate_every: PositiveInt | None = None
    evaluation: Registered | None = None
    evaluate_every: PositiveInt | None = None

    @model_validator(mode="after")
    def has_an_end(self) -> "TrainConfig":
        if self.epoch is None and self.max_steps is None and self.max_minutes is None:
            raise ValueError(
                "say when the run ends: give `epoch`, `max_steps` or `max_minutes` (whichever comes first)"
            )
        return self


class ExperimentConfig(Section):
    plugins: list[str] = []
    seed: Seed = 0
    model: ModelConfig
    data: DataConfig
    train: TrainConfig

    @property
    def run_seed(self) -> int:
        """Of everything at run time; each process adds its rank where processes must differ."""
        return self.seed if self.train.seed is None else self.train.seed
