"""What several tests of the experiments start from."""

from pathlib import Path

import pytest

from experiment_training.quickstart.record import record


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations, as the quickstart records them."""
    root = tmp_path_factory.mktemp("runs") / "demonstrations"
    assert "3 episodes" in record(root, episodes=3)
    return root
