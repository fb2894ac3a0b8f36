"""Loggers: lines of metrics -> wandb and TensorBoard, where the config asks for them. metrics.jsonl has all they have.

What is missing is told when the config is read (`trainer.config.logger_checks`). A logger is a convenience:
one that fails is left out with a warning, and the training goes on.
"""

import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainer.checkpoint import random_state, set_random_state
from trainer.config.logger_checks import wandb_mode

REACH_S = 5.0  # how long a server may take to answer at all

Line = Mapping[str, Any]


class Logger(Protocol):
    def log(self, step: int, line: Line) -> None:
        """The numbers of one line of metrics.jsonl, by name."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Logged:
    """What a logger knows of the run; `step` updates are done when it is opened."""

    run_dir: Path
    step: int
    project: str
    name: str
    config: Mapping[str, Any]


def build_loggers(
    names: Sequence[str], run_dir: Path, step: int, *, project: str, name: str, config: Mapping[str, Any]
) -> list[Logger]:
    """One each, continued behind `step`; for the first process alone. Random streams stay where they are."""
    run, before = Logged(run_dir, step, project, name, config), random_state()
    try:
        return [Forgiving(one, lambda open_=LOGGERS[one]: open_(run)) for one in names]
    finally:
        set_random_state(before)


class Forgiving:
    """A logger whose failures cost one warning and the logger, never the run."""

    def __init__(self, name: str, open_: Callable[[], Logger]) -> None:
        self._name = name
        self._logger: Logger | None = None
        self._try(lambda: setattr(self, "_logger", open_()))

    def log(self, step: int, line: Line) -> None:
        if (logger := self._logger) is not None:
            self._try(lambda: logger.log(step, line))

    def close(self) -> None:
        if (logger := self._logger) is not None:
            self._try(logger.close)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # whatever a service or its library raises
            self._logger = None
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"warning: {self._name} is left out from here on, metrics.jsonl has all ({why})", flush=True)


class TensorBoard:
    """Event files in `tensorboard/` of the run folder, readable while the run goes on."""

    def __init__(self, run: Logged) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run.run_dir / "tensorboard", purge_step=run.step + 1)  # done again

    def log(self, step: int, line: Line) -> None:
        for name, value in numbers(line).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run has what it logged

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A wandb run whose id lies in the run folder: a resumed run continues it."""

    def __init__(self, run: Logged) -> None:
        import wandb

        settings = wandb.setup().settings
        mode: Any = wandb_mode()
        if mode == "online" and not answers(settings.base_url):
            mode = "offline"
            print(
                f"warning: {settings.base_url} does not answer: wandb writes to {run.run_dir}/wandb, for `wandb sync`"
            )
        self._run = wandb.init(
            project=settings.project or project_name(run.project),
            name=run.name,
            id=run_id(run.run_dir),
            dir=run.run_dir,
            config=dict(run.config),
            mode=mode,
            resume="allow" if mode == "online" else None,  # offline the id alone says so, to `wandb sync`
            settings=wandb.Settings(console="off"),  # a progress bar is no log
        )

    def log(self, step: int, line: Line) -> None:
        if step >= self._run.step:  # what the service has already, an exact resume would only repeat
            self._run.log(numbers(line), step=step)

    def close(self) -> None:
        self._run.finish()


LOGGERS: dict[str, Callable[[Logged], Logger]] = {
    "wandb": Wandb,
    "tensorboard": TensorBoard,
}


def numbers(line: Line) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, int | float) and name != "step"}


def project_name(task: str) -> str:
    """A task's words as wandb takes them."""
    return re.sub(r"[/\\#?%:]+", "-", task)[:128]


def answers(url: str) -> bool:
    """Whether anything at all comes back: a wandb that cannot reach its server keeps a run waiting for minutes."""
    try:
        urllib.request.urlopen(url, timeout=REACH_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def run_id(run_dir: Path) -> str:
    path = run_dir / "wandb" / "run_id"
    if path.is_file() and (known := path.read_text(encoding="utf-8").strip()):
        return known
    path.parent.mkdir(exist_ok=True)
    path.write_text(made := uuid.uuid4().hex[:12], encoding="utf-8")
    return made
