"""Policy: a run folder or a checkpoint -> an object that turns one raw observation into one action."""

import json
import time
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_constructor import ConfigError, build_model, load_config
from model_constructor.errors import Problem
from model_constructor.saving import values_but_no_parameters
from trainer.build import build_registered, build_trainer, pick_device
from trainer.checkpoint import Checkpoint, CheckpointError, newest_checkpoint, open_checkpoint
from trainer.config import RunConfig
from trainer.config.checks import import_plugins
from trainer.config.folders import Folders
from trainer.config.loader import validated
from trainer.data.augmentation import Augmentation
from trainer.data.normalization import KeyMode, Normalizer, read_stats
from trainer.data.preparation import Preparation
from trainer.distributed import World
from trainer.execution import execution
from trainer.modeling import apply_build_args
from trainer.registry import LOSS_BUILDER_REGISTRY
from trainer.state import set_own_state
from trainer.templates import ComponentTrainer

PAD = "_is_pad"
LATENCIES = 100_000  # the newest are kept


class Policy:
    """Keeps the observation history and the predicted chunk until `reset()`: one policy drives one robot."""

    def __init__(
        self, trainer: ComponentTrainer, prepare: Preparation, item_shapes: dict[str, list[int]], seed: int
    ) -> None:
        self.trainer, self.prepare = trainer, prepare
        self._device = trainer.device
        self.item_shapes = {key: shape for key, shape in item_shapes.items() if key != "action"}
        self._windowed = {key for key in self.item_shapes if f"{key}{PAD}" in self.item_shapes}
        self._seed = seed
        self.latencies_ms: deque[float] = deque(maxlen=LATENCIES)  # of each `select_action` that predicted a chunk
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """A new episode: nothing is remembered of the last one. With a `seed`, what is drawn depends on it alone."""
        if seed is not None:
            self._generator.manual_seed(int(np.random.SeedSequence([self._seed, seed]).generate_state(1)[0]))
        self._history = {key: deque(maxlen=self.item_shapes[key][0]) for key in self._windowed}
        self._execution = execution(self.trainer.execute_steps, self.trainer.ensemble_decay)

    @torch.inference_mode()
    def select_action(self, observation: Mapping[str, np.ndarray | str]) -> np.ndarray:
        """One observation in the data set's keys and units -> one action [A], float32, in the data set's units.

        Texts (a task's name) are passed on as they are; other keys that the data set does not have are ignored.
        """
        began = time.perf_counter()
        values = {key: self._read(key, value) for key, value in observation.items() if key in self.item_shapes}
        for key in self._windowed & values.keys():
            self._history[key].append(values[key])
        if not self._execution.needs_chunk:
            return self._execution.action()
        texts = {key: [one] for key, one in observation.items() if isinstance(one, str) and key not in values}
        self._execution.add(self._predict(values, texts))
        action = self._execution.action()
        self.latencies_ms.append(1e3 * (time.perf_counter() - began))  # the chunk is on the host: the device is done
        return action

    def _predict(self, values: dict[str, Tensor], texts: dict[str, list[str]]) -> np.ndarray:
        """A chunk of actions [T, A]."""
        batch: dict[str, Any] = dict(texts)
        for key, value in values.items():
            if key in self._windowed:
                window, padding = self._window(key)
                batch[key], batch[f"{key}{PAD}"] = window[None].to(self._device), padding[None].to(self._device)
            else:
                batch[key] = value[None].to(self._device)
        try:
            actions = self.trainer.predict(self.prepare(batch), generator=self._generator)  # [1, T, A]
        except KeyError as error:
            if error.args[:1] == () or error.args[0] not in self.item_shapes or error.args[0] in batch:
                raise  # a fault of the trainer's own, not of the observation
            raise KeyError(
                f"the policy reads {error}; the observation holds {', '.join(values) or 'none of its keys'}"
            ) from error
        return self.prepare.normalizer.denormalize("action", actions)[0].float().cpu().numpy()

    def _window(self, key: str) -> tuple[Tensor, Tensor]:
        """The history [H, D], oldest first; before the episode's first frame stand copies of it, marked as padding."""
        seen, length = list(self._history[key]), self.item_shapes[key][0]
        missing = length - len(seen)
        return torch.stack([seen[0]] * missing + seen), torch.tensor([True] * missing + [False] * len(seen))

    def _read(self, key: str, value: np.ndarray | str) -> Tensor:
        shape = self.item_shapes[key][1:] if key in self._windowed else self.item_shapes[key]
        if key in self.prepare.images:
            return _read_image(key, value, shape)
        try:
            tensor = torch.as_tensor(np.asarray(value, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise ValueError(f"'{key}' is not an array of numbers: {value!r:.60}") from error
        if not tensor.isfinite().all():
            raise ValueError(f"'{key}' holds a number that is not finite: {tensor.tolist()}")
        if tensor.numel() != torch.Size(shape).numel():
            raise ValueError(f"'{key}' has shape {list(tensor.shape)}; the policy was trained with {shape}")
        return tensor.reshape(shape)


def _read_image(key: str, image: np.ndarray | str, shape: list[int]) -> Tensor:
    """uint8 [H, W, C], as a camera gives it, -> uint8 [C, H, W]."""
    array, (channels, height, width) = np.asarray(image), shape
    if array.dtype != np.uint8 or array.shape != (height, width, channels):
        raise ValueError(
            f"'{key}' is {array.dtype} {list(array.shape)}; the policy was trained with images of uint8 "
            f"[{height}, {width}, {channels}] (height, width, channels)"
        )
    return torch.from_numpy(array).permute(2, 0, 1)


def load_policy(run_or_checkpoint: str | Path, device: torch.device | str | None = None, seed: int = 0) -> Policy:
    """Components, weights (averaged, if there are any), statistics and `predict`, from a run folder (its newest
    checkpoint) or one checkpoint."""
    checkpoint, config = open_run(run_or_checkpoint)
    device = pick_device() if device is None else torch.device(device)
    models = nn.ModuleDict()
    for name in checkpoint.components:
        with values_but_no_parameters(torch.device("cpu")):  # pretrained weights would be fetched, and replaced
            models[name] = build_model(checkpoint.path / f"{name}.yaml", allow_imports=config.experiment.plugins)
        apply_build_args(models[name], config.experiment.model.build_args(name))
        weights = checkpoint.tensors(f"{name}_ema" if checkpoint.has(f"{name}_ema") else name)
        models[name].load_state_dict(weights, assign=True)
    models.to(device).requires_grad_(False).eval()
    train = config.experiment.train
    loss = build_registered(config, LOSS_BUILDER_REGISTRY, train.loss, ("train", "loss")).build().to(device)
    trainer = build_trainer(config, models, {}, loss, device, World())
    if not isinstance(trainer, ComponentTrainer) or trainer.__class__.predict is ComponentTrainer.predict:
        name = train.trainer.type
        message = f"trainer '{name}' has no `predict`, so no policy can be made of {checkpoint.path}"
        raise ConfigError(Problem(message, hint="only a ComponentTrainer that has one makes a policy"))
    state = checkpoint.tensors("training_state")
    if not {"statistics", "normalization", "item_shapes", "images"} <= state.keys():
        raise CheckpointError(f"{checkpoint.path} holds no statistics: its weights have no units without them")
    set_own_state(trainer, loss, state)
    modes = {key: KeyMode(**how) for key, how in state["normalization"].items()}
    with warnings.catch_warnings(action="ignore"):  # training has told of near-constant dimensions
        normalizer = Normalizer(read_stats(state["statistics"]), modes, state["images"])
    prepare = Preparation(normalizer, state["images"], Augmentation()).to(device)
    return Policy(trainer, prepare, state["item_shapes"], seed)


def config_folder(run_dir: Path) -> Path:
    """Where the config of a run lay, and perhaps its plugins; the run folder itself if that is gone."""
    try:
        return Path(json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))["config_folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return run_dir


def open_run(run_or_checkpoint: str | Path) -> tuple[Checkpoint, RunConfig]:
    """The checkpoint, and the config that its run wrote; the model files that the config names are not needed."""
    path = Path(run_or_checkpoint).expanduser().resolve()  # `latest` becomes the checkpoint it points to
    if (path / "config.yaml").is_file():
        checkpoint = newest_checkpoint(path)
    elif path.is_dir() and (path.parent / "config.yaml").is_file():
        checkpoint = open_checkpoint(path)
    else:
        raise CheckpointError(f"{path} is neither a run folder (with config.yaml) nor a checkpoint in one")
    if checkpoint is None:
        raise CheckpointError(f"{path} holds no valid checkpoint")
    source = load_config(checkpoint.path.parent / "config.yaml")
    problems, cause = import_plugins(source, config_folder(checkpoint.path.parent))
    if problems:
        raise ConfigError(problems) from cause
    return checkpoint, RunConfig(validated(source), source, Folders.of_file(source.path))
