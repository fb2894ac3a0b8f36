"""Episodes: which of them are held out for validation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from model_constructor.errors import ConfigError, Problem


def held_out(chosen: Sequence[int], validation: Mapping[str, Any] | None) -> list[int]:
    """The validation episodes, sorted: those named, or a share of the chosen ones that `seed` fixes.

    `validation`: `episodes` (a list of their numbers) or `fraction` and `seed`; None holds nothing out.
    """
    if validation is None:
        return []
    if (named := validation.get("episodes")) is not None:
        if missing := sorted(set(named) - set(chosen)):
            raise ConfigError(
                Problem(
                    f"validation episodes {', '.join(map(str, missing))} are not in the data set",
                    hint=f"choose among the {len(chosen)} episodes from {min(chosen)} to {max(chosen)}",
                )
            )
        held = sorted(set(named))
    else:
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(validation["seed"])).tolist()
        held = sorted(chosen[one] for one in order[: max(1, round(validation["fraction"] * len(chosen)))])
    if len(held) == len(chosen):
        raise ConfigError(
            Problem(f"validation holds out all {len(held)} episodes", hint="leave at least one for training")
        )
    return held
