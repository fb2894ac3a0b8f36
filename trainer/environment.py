"""Environment: what a run was started with and on -> environment.json. The newest start stands first, earlier ones
under `earlier`: what each part of a resumed run was trained with can be told."""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from trainer.build import Run
from trainer.files import replace_text

PACKAGES = (
    *("policy-constructor", "torch", "torchvision", "torchcodec", "numpy", "pyarrow", "lerobot", "transformers"),
    *("peft", "timm", "schedulefree", "geomloss", "flow-matching"),
)
GIT_S = 10.0  # a repository on a slow disk is not waited for


def write_environment(run: Run, path: Path) -> None:
    """Replace the file whole; what it said of earlier starts is kept."""
    started = {**environment(run), "earlier": _earlier(path)}
    replace_text(path, json.dumps(started, indent=1))


def environment(run: Run) -> dict[str, Any]:
    """`config_folder` is where a policy looks for the run's plugins; the rest is for people."""
    config, cuda = run.config, run.device.type == "cuda"
    return {
        "run": config.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "config_folder": str(config.folders.config),
        "seed": config.experiment.seed,
        "train_seed": config.experiment.run_seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(run.device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "processes": run.world.size,
        "threads": torch.get_num_threads(),  # the order in which a CPU adds up
        "packages": {name: _version(name) for name in PACKAGES},
        **git_state(config.folders.project),
    }


def git_state(folder: Path) -> dict[str, Any]:
    """The commit, and whether tracked files differ from it; null where `folder` is in no repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_S).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": described.removesuffix("-dirty"), "git_dirty": described.endswith("-dirty")}


def _earlier(path: Path) -> list[dict[str, Any]]:
    """The starts that the file tells of, newest first; a damaged file tells of none."""
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
        earlier = last.pop("earlier", [])
        return [last, *earlier] if last else []
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
