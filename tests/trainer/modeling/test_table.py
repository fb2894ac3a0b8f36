"""The component table says what trains, how, and in which precision."""

from pathlib import Path

import pytest

from trainer.config import load_run_config
from trainer.modeling import Component, build_components, describe_components
from trainer.modeling.optimizers import build_optimizers


def described(config: Path, *overrides: str) -> dict[str, Component]:
    run_config = load_run_config(config, list(overrides))
    models = build_components(run_config)
    rows = describe_components(run_config, models, build_optimizers(run_config, models, 10))
    return {row.name: row for row in rows}


def test_a_component_that_trains(config: Path) -> None:
    row = described(config)["encoder"]
    assert row == Component("encoder", 3 * 8 + 8, 3 * 8 + 8, "train", "fp32", "toy_adam", "0.01")


@pytest.mark.parametrize(
    ("args", "trainable", "mode", "dtype", "optimizer"),
    [
        ("{freeze: true, dtype: bfloat16}", 0, "frozen", "bf16", "none: skipped"),
        ("{freeze: [out.bias]}", 64, "partly frozen", "fp32", "toy_sgd"),
        ("{lora: {rank: 2, targets: [out]}, dtype: bfloat16}", 32, "lora", "bf16 fp32", "toy_sgd"),
    ],
)
def test_what_its_build_args_make_of_it(
    config: Path, args: str, trainable: int, mode: str, dtype: str, optimizer: str
) -> None:
    row = described(config, f"model.component_build_args={{head: {args}}}")["head"]
    assert (row.trainable, row.mode, row.dtype, row.optimizer) == (trainable, mode, dtype, optimizer)
    assert row.parameters == 8 * 8 + 8 + (32 if mode == "lora" else 0)
    assert row.peak_lr == ("-" if mode == "frozen" else "0.05")


def test_the_peak_rate_of_each_group(config: Path) -> None:
    entry = "{type: adamw_warmup_cosine_decay, params: {peak_lr: 1.0e-3, warmup_steps: 5}, groups: {out.bias: {peak_lr: 1.0e-4}}}"
    assert described(config, f"model.component_optims.head={entry}")["head"].peak_lr == "0.001 / 0.0001"
