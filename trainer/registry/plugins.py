"""Plugins: entry points and the config's `plugins` list -> imported modules that have registered their components."""

import importlib
from importlib.metadata import entry_points

from model_constructor import ConfigError
from model_constructor.errors import Place, Problem

ENTRY_POINT_GROUP = "trainer.plugins"


def load_shipped_plugins() -> None:
    """Import every module that an installed distribution offers under `trainer.plugins`."""
    for name in sorted({point.value for point in entry_points(group=ENTRY_POINT_GROUP)}):
        importlib.import_module(name)


def load_plugin(name: str, place: Place | None = None) -> None:
    """Import one module of the config's `plugins`; `place` is where the config names it."""
    try:
        importlib.import_module(name)
    except ConfigError:
        raise  # a duplicate registered name says itself which two places it means
    except Exception as error:
        raise ConfigError(
            Problem(
                f"plugin '{name}' cannot be imported: {type(error).__name__}: {error}",
                place,
                "a plugin is an importable module: installed, on PYTHONPATH, or a file beside the config",
            )
        ) from error
