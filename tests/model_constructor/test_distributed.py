"""Two processes that share a batch train a model to the weights that one process gets from the whole batch.

Run by torchrun, this file is one of the processes: `test_distributed.py FOLDER`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from model_constructor import GraphModel, build_model

pytestmark = pytest.mark.slow
PROCESSES, STEPS, ROWS = 2, 3, 8
MODEL = {
    "schema_version": 2,
    "params": {"dim": 8, "depth": 3},
    "inputs": {"x": ["B", "T", "dim"], "mask": {"shape": ["B", "T"], "dtype": "bool", "optional": True}},
    "blocks": {
        "layer": {
            "params": {"dim": "int"},
            "inputs": {"h": "any", "mask": {"shape": "any", "optional": True}},
            "modules": {"norm": "LayerNorm(dim)", "attn": "Attention(dim, heads=2)", "mlp": "MLP(dim)"},
            "graph": {"a": "h + attn(norm(h), mask=mask)"},
            "outputs": "a + mlp(a)",
        }
    },
    "modules": {
        "position": "Param(1, 16, dim)",
        "layers": "layer(**params) * depth",
        "head": "Linear(dim, 4)",
    },
    "graph": {"h": "layers(x + position[:, :T], mask=mask)"},
    "outputs": {"y": "head(h)", "mean": "h.mean((1, 2))"},
}


def batches() -> list[tuple[Tensor, Tensor]]:
    """One [ROWS, 5, 8] and its mask for each step; the same in every process."""
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(ROWS, 5, 8, generator=generator) for _ in range(STEPS)]
    return [(x, x[..., 0] > -1) for x in draw]


def build() -> GraphModel:
    torch.manual_seed(0)
    return build_model(MODEL)


def train(model: nn.Module, rows: slice) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, mask in batches():
        outputs = model(x[rows], mask=mask[rows])
        loss = (outputs["y"] ** 2).mean() + (outputs["mean"] ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes wrote their results into."""
    folder = tmp_path_factory.mktemp("trained")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
    done = subprocess.run(
        [*launch, __file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_train_to_the_weights_of_one(how: str, trained: Path):
    alone = build()
    before = {name: value.clone() for name, value in alone.state_dict().items()}
    train(alone, slice(None))
    assert not torch.equal(alone.position, before["position"])
    for rank in range(PROCESSES):
        torch.testing.assert_close(torch.load(trained / f"{how}{rank}.pt"), dict(alone.state_dict()))


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_failure_is_told_as_without(how: str, trained: Path):
    for rank in range(PROCESSES):
        note = (trained / f"{how}{rank}.txt").read_text()
        assert "in node 'a' of 'layer' (layers[0]), calling attn: h [2, 5, 8] float32, mask [2, 3] bool" in note


def process(how: str, folder: Path) -> None:
    """Train on this process's share of each batch; write the whole weights, and the notes of a call that fails."""
    rank, share = dist.get_rank(), ROWS // PROCESSES
    model = build()
    trained: nn.Module = model
    if how == "ddp":
        trained = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (PROCESSES,))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert isinstance(model, GraphModel) and isinstance(model.layers[0], FSDPModule)
    train(trained, slice(rank * share, (rank + 1) * share))
    weights = {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in model.state_dict().items()
    }
    torch.save(weights, folder / f"{how}{rank}.pt")
    try:
        trained(torch.zeros(2, 5, 8), mask=torch.ones(2, 3, dtype=torch.bool))
    except RuntimeError as error:
        (folder / f"{how}{rank}.txt").write_text("\n".join(error.__notes__))


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for how in ("ddp", "fsdp"):
        process(how, Path(sys.argv[1]))
    dist.destroy_process_group()
