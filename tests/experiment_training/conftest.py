"""What several tests of the experiments start from."""

import sys
from pathlib import Path

import pytest
import torch

import experiment_training.components  # noqa: F401  registers them
from experiment_training.quickstart.record import Recording, record
from trainer import timing

sys.path.append(str(Path(__file__).parent))  # where other processes find `wanderer`


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations, as the quickstart records them."""
    root = tmp_path_factory.mktemp("runs") / "demonstrations"
    assert "3 episodes" in record(root, Recording(episodes=3))
    return root


@pytest.fixture
def one_thread():
    """For models that are too small to share out; what they draw is the same in every test."""
    torch.manual_seed(0)
    with timing.one_thread():
        yield
