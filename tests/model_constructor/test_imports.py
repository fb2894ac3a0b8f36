"""Who may import whom, and what the import of model_constructor costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import model_constructor

ROOT = Path(model_constructor.__file__).parents[1]


def imported(file: Path) -> set[str]:
    """The first names of everything that a file imports absolutely, at any depth of it."""
    found = set()
    for part in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(part, ast.Import):
            found |= {alias.name.split(".")[0] for alias in part.names}
        elif isinstance(part, ast.ImportFrom) and part.level == 0 and part.module:
            found.add(part.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("model_constructor", {"trainer", "experiment_training", "experiment_models"}),
        ("trainer", {"experiment_training", "experiment_models"}),
    ],
)
def test_a_core_package_imports_no_package_that_stands_on_it(package: str, forbidden: set[str]):
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    assert {
        str(file.relative_to(ROOT)): imported(file) & forbidden for file in files if imported(file) & forbidden
    } == {}


def test_a_relative_import_never_leaves_its_package():
    for package in ("model_constructor", "trainer"):
        for file in sorted((ROOT / package).rglob("*.py")):
            depth = len(file.relative_to(ROOT).parts) - 1
            for part in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(part, ast.ImportFrom):
                    assert part.level <= depth, file


@pytest.mark.slow
def test_importing_model_constructor_is_light():
    heavy = ["lerobot", "transformers", "pydantic", "matplotlib", "trainer", "metaworld", "pandas"]
    code = f"import sys, model_constructor; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_these():
    assert sorted(model_constructor.__all__) == [
        "Config",
        "ConfigError",
        "GraphModel",
        "Place",
        "Problem",
        "Registry",
        "build_model",
        "compile_ir",
        "dump",
        "load_config",
        "load_weights",
        "register",
        "resolve_config",
        "select",
        "select_parameters",
    ]
    assert all(hasattr(model_constructor, name) for name in model_constructor.__all__)
