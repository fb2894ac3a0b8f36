"""What the tests of the policy families share: tiny runs that are cut and resumed, fresh processes, full sizes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiment_training.components.dataloader.point_reach import FRAMES
from model_constructor import build_model
from trainer import train
from trainer.build import Run, build_run
from trainer.config import load_run_config, written_overrides
from trainer.distributed import World

sys.path.append(str(Path(__file__).parents[1] / "trainer"))
from toy_compare import assert_equal_checkpoints, lines_of

EXPERIMENTS = Path(__file__).parents[2] / "experiment_training"
SHORT = {"data.datamodule.params.episodes": 3, "data.batch_size": 8, "train.log_every": 1}


def run_of(config: Path, overrides: dict[str, Any] | None = None) -> Run:
    """Built, not trained. Its parameters are moved off where they begin: a head of zeros hides what is behind it."""
    run = build_run(load_run_config(config, written_overrides(overrides or {})), World())
    generator = torch.Generator().manual_seed(0)
    for parameter in run.models.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return run


def batch_of(run: Run, size: int) -> dict[str, Any]:
    """The last frames of an episode and the first ones of the next, prepared for a step."""
    first = min(FRAMES - size // 2, len(run.data.dataset) - size)
    return run.data.prepare(run.data.dataset.__getitems__(list(range(first, first + size))))


def without_gradient(models: nn.Module) -> list[str]:
    """The trainable parameters that the last backward did not reach."""
    parameters = [(name, one) for name, one in models.named_parameters() if one.requires_grad]
    return [name for name, one in parameters if one.grad is None or not one.grad.any()]


def assert_resumes_exactly(config: Path, folder: Path, overrides: dict[str, Any] | None = None) -> Path:
    """Twelve updates in one go, and cut behind the sixth: every tensor of every file, and every line."""
    settings = {**SHORT, "train.max_steps": 12, "train.save_every_steps": 6, **(overrides or {})}
    whole = train(config, {**settings, "train.save_dir": str(folder / "whole")})
    shutil.copytree(folder / "whole", folder / "parts", symlinks=True)
    shutil.rmtree(folder / "parts" / whole.checkpoint.name)
    parts = train(config, {**settings, "train.save_dir": str(folder / "parts")}, resume="auto")
    assert parts.step == whole.step == 12
    assert_equal_checkpoints(parts.checkpoint, whole.checkpoint)
    assert lines_of(parts.run_dir) == lines_of(whole.run_dir)
    return whole.run_dir


def action_in_a_fresh_process(run_dir: Path, observation: dict[str, np.ndarray]) -> list[float]:
    """What a policy of this run does first, in a Python that has imported nothing but the trainer."""
    np.savez(run_dir / "observation.npz", **observation)
    code = (
        "import json, numpy as np, trainer\n"
        f"observation = dict(np.load({str(run_dir / 'observation.npz')!r}))\n"
        f"print(json.dumps(trainer.load_policy({str(run_dir)!r}, 'cpu').select_action(observation).tolist()))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXPERIMENTS.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=run_dir)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def observation_of(run: Run, frame: int = 0) -> dict[str, np.ndarray]:
    """As a robot gives it: numbers, and images uint8 with their channels last."""
    item = run.data.dataset[frame]
    seen = {key: value[-1].numpy() for key, value in item.items() if key.startswith("observation") and "pad" not in key}
    return {key: value.transpose(1, 2, 0) if "images" in key else value for key, value in seen.items()}


def full_sizes(config: Path, overrides: dict[str, Any] | None = None) -> dict[str, int]:
    """Parameters of each component at its published size; the config passes every check that needs no data."""
    full = load_run_config(config, written_overrides(overrides or {}))
    model = full.experiment.model
    with torch.device("meta"):
        components = {
            name: build_model(full.folders.find(path), params=model.component_params.get(name, {}))
            for name, path in model.component_config_paths.items()
        }
    return {name: sum(one.numel() for one in component.parameters()) for name, component in components.items()}
