"""Logger checks: `train.loggers` and the machine -> problems, before anything is built."""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from model_constructor.errors import Problem

KNOWN = ("wandb", "tensorboard")
WANDB_MODES = ("online", "offline", "disabled")


def check_loggers(source: Any) -> list[Problem]:
    """A logger that is not installed, or that would stop and ask for a key."""
    train = source.data.get("train")
    given = train.get("loggers") if isinstance(train, dict) else None
    names = given if isinstance(given, list) else []
    twice = [
        Problem(f"train.loggers names {name} twice", source.place(("train", "loggers", position)), "once is enough")
        for position, name in enumerate(names)
        if name in names[:position]
    ]
    return twice + [
        Problem(f"train.loggers asks for {name}, which {what}", source.place(("train", "loggers", position)), hint)
        for position, name in enumerate(names)
        if name in KNOWN
        for what, hint in _missing(name)
    ]


def _missing(name: str) -> Iterator[tuple[str, str]]:
    if importlib.util.find_spec(name) is None:
        yield "is not installed", f"pip install 'policy-constructor[{name}]'"
    elif name == "wandb" and (what := _wandb_key_problem()):
        yield what, "`wandb login` stores a key, WANDB_API_KEY gives one; with WANDB_MODE=offline none is needed"


def wandb_mode() -> str:
    """`online`, `offline` or `disabled`: the environment's word, else that of wandb's settings files."""
    import wandb

    mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
    return {"dryrun": "offline", "run": "online"}.get(mode, mode)


def _wandb_key_problem() -> str | None:
    """Why wandb would stop and ask; a question that nobody may be there to answer."""
    import wandb

    try:
        mode = wandb_mode()
        if mode not in WANDB_MODES:
            return f"knows no WANDB_MODE={mode}"
        if mode != "online" or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or wandb.api.api_key:
            return None
    except Exception as error:  # settings that wandb cannot read
        return f"says: {' '.join(str(error).split())}"
    return "has no key"
