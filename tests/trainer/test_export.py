"""A policy's step as one program: equal to `predict`, and without this library."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_plugin import ToyTrainer

from model_constructor import ConfigError
from trainer import export, load_policy, train
from trainer.export import export_policy, main
from trainer.registry import TRAINER_REGISTRY

STATE = np.array([4.0, 12.0, 5.1], dtype=np.float32)
ALONE = """
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("model_constructor", "trainer", "experiment_training", "experiment_models"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import torch
step = torch.export.load(sys.argv[1]).module()
draws = tuple(torch.tensor(one) for one in json.loads(sys.argv[3]))
print(json.dumps(step({"observation.state": torch.tensor(json.loads(sys.argv[2]))}, draws).tolist()))
"""


@TRAINER_REGISTRY.register("drawing_toy_trainer")
class DrawingTrainer(ToyTrainer):
    """Acts on a state that it blurs."""

    def __init__(self, models, optimizers, loss, device, hidden: bool = False) -> None:
        super().__init__(models, optimizers, loss, device)
        self.hidden = hidden

    def predict(self, batch: dict, generator: torch.Generator | None = None) -> torch.Tensor:
        state = batch["observation.state"]
        if self.hidden:
            return self._act(torch.normal(state, 0.1, generator=generator))
        return self._act(state + 0.1 * torch.randn(state.shape, generator=generator))


def alone(folder: Path, *arguments: object) -> np.ndarray:
    """The chunk that the program gives in a process of its own."""
    command = [sys.executable, "-c", ALONE, str(folder / "policy.pt2"), *map(json.dumps, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout), dtype=np.float32)


@pytest.mark.slow
def test_the_program_gives_the_policys_chunk_where_this_library_is_not(config: Path, tmp_path: Path, capsys) -> None:
    run_dir = train(config).run_dir
    assert main([str(run_dir), "--output", str(tmp_path / "export")]) == 0
    assert str(tmp_path / "export/policy.pt2") in capsys.readouterr().out
    policy = load_policy(run_dir)
    expected = [policy.select_action({"observation.state": STATE}) for _ in range(4)]
    found = alone(tmp_path / "export", STATE[None, None].tolist(), [])
    assert np.allclose(found[0], expected, rtol=1e-6)
    described = json.loads((tmp_path / "export/policy.json").read_text())
    assert described["observation"] == {"observation.state": {"shape": [1, 1, 3], "dtype": "float32"}}
    assert (described["draws"], described["actions"]["shape"]) == ([], [1, 4, 2])
    assert described["latencies_ms"].keys() == {"predict", "torch.export"}


def test_the_updates_of_lora_are_added_to_their_weights(config: Path, tmp_path: Path) -> None:
    lora = {"rank": 2, "targets": ["net.0"]}
    run_dir = train(config, {"model.component_build_args": {"encoder": {"lora": lora}}}).run_dir
    exported = export_policy(run_dir, tmp_path / "export")
    program = torch.export.load(tmp_path / "export/policy.pt2")
    assert exported.difference < 1e-5 and not [name for name in program.state_dict if "lora" in name]
    policy = load_policy(run_dir)
    policy.reset()
    chunk = program.module()({"observation.state": torch.from_numpy(STATE)[None, None]}, ())
    assert np.allclose(policy.select_action({"observation.state": STATE}), chunk[0, 0].numpy(), rtol=1e-5)


def test_what_a_policy_draws_is_an_input_of_its_program(config: Path, tmp_path: Path) -> None:
    run_dir = train(config, {"train.trainer": {"type": "drawing_toy_trainer"}}).run_dir
    export_policy(run_dir, tmp_path / "export")
    described = json.loads((tmp_path / "export/policy.json").read_text())
    assert described["draws"] == [{"shape": [1, 1, 3], "distribution": "normal"}]
    policy = load_policy(run_dir)
    draw = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(3))
    batch = policy.prepare({"observation.state": torch.tensor(STATE)[None, None]})
    actions = policy.trainer.predict(batch, torch.Generator().manual_seed(3))
    expected = policy.prepare.normalizer.denormalize("action", actions)
    found = alone(tmp_path / "export", STATE[None, None].tolist(), [draw.tolist()])
    assert np.allclose(found, expected.numpy(), rtol=1e-6)


def test_numbers_drawn_inside_a_program_are_refused_by_name(config: Path, tmp_path: Path) -> None:
    run_dir = train(config, {"train.trainer": {"type": "drawing_toy_trainer", "params": {"hidden": True}}}).run_dir
    with pytest.raises(
        ConfigError, match=r"`predict` draws random numbers by aten.normal[^\n]*\n *draw them by torch.randn"
    ):
        export_policy(run_dir, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_nothing_is_overwritten(config: Path, tmp_path: Path, capsys) -> None:
    run_dir = train(config).run_dir
    (tmp_path / "mine").write_text("kept")
    assert main([str(run_dir), "--output", str(tmp_path)]) == 2
    assert "is not empty, and nothing is overwritten" in capsys.readouterr().err
    assert main([str(run_dir), "--output", str(tmp_path / "mine")]) == 2
    assert main([str(run_dir / "latest")]) == 0  # beside the checkpoints, which are deleted as a run goes on
    assert (run_dir / "export/policy.pt2").is_file()
    capsys.readouterr()
    assert main([str(tmp_path / "no run")]) == 2
    assert "is neither a run folder" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "kept"


def test_an_export_that_fails_leaves_nothing(config: Path, tmp_path: Path, monkeypatch) -> None:
    run_dir = train(config).run_dir
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    folder = tmp_path / "programs/export"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match="--onnx: onnxruntime cannot be imported"):
        export_policy(run_dir, folder, onnx=True)
    assert list(folder.parent.rglob("*")) == [folder]
    export_policy(run_dir, folder)  # into the empty folder
    assert sorted(one.name for one in folder.parent.rglob("*")) == ["export", "policy.json", "policy.pt2"]


def test_what_is_made_up_to_trace_a_program_lies_within_the_data(config: Path) -> None:
    policy = load_policy(train(config).run_dir)
    observation, _ = export._inputs(policy)
    normalized = policy.prepare(dict(observation))["observation.state"]
    assert normalized.abs().max() <= 1 + 1e-5
    assert not torch.equal(normalized, observation["observation.state"])


@pytest.mark.slow
def test_an_onnx_runtime_gives_the_policys_chunk_too(config: Path, tmp_path: Path) -> None:
    import onnxruntime

    run_dir = train(config, {"train.trainer": {"type": "drawing_toy_trainer"}}).run_dir
    exported = export_policy(run_dir, tmp_path / "export", onnx=True)
    assert exported.latencies_ms.keys() == {"predict", "torch.export", "onnx"}
    session = onnxruntime.InferenceSession(str(tmp_path / "export/policy.onnx"))
    draw = np.full((1, 1, 3), 0.5, dtype=np.float32)
    inputs = json.loads((tmp_path / "export/policy.json").read_text())["onnx_inputs"]
    assert inputs == [one.name for one in session.get_inputs()]
    fed = dict(zip(inputs, (STATE[None, None], draw), strict=True))
    found = session.run(None, fed)[0]
    assert np.allclose(found, alone(tmp_path / "export", STATE[None, None].tolist(), [draw.tolist()]), rtol=1e-5)
