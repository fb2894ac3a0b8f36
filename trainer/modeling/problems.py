"""Problems: what is wrong in several places, told together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from model_constructor import ConfigError
from model_constructor.errors import Place, Problem

# Keys below a section of the config -> where they stand, or the nearest part that does.
PlaceOf = Callable[..., Place | None]


@contextmanager
def collected(problems: list[Problem]) -> Iterator[None]:
    """A ConfigError raised inside is put aside with the others; any other error tells these, too."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems
    except Exception as error:
        if problems:
            error.add_note(f"besides:\n{ConfigError(problems)}")
        raise


def refuse(problems: list[Problem]) -> None:
    if problems:
        raise ConfigError(problems)


def listed(names: list[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
