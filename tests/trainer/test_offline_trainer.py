"""The command line, as people start it: from anywhere, three ways; its messages, its exit codes, its Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trainer
from trainer.checkpoint import newest_checkpoint
from trainer.data.cameras import UnreadableFrame
from trainer.data.prefetch import WorkerDied
from trainer.offline_trainer import main
from trainer.templates import ComponentTrainer

SCRIPT = Path(trainer.__file__).parent / "offline_trainer.py"
REPOSITORY = SCRIPT.parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
}
STARTED = {
    "script": [sys.executable, str(SCRIPT)],
    "module": [sys.executable, "-m", "trainer.offline_trainer"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "--standalone", str(SCRIPT)],
}
ENDLESS = ["--set", "train.max_steps=1000000", "train.log_every=20", "model.component_optims.encoder.params.lr=0.0"]


@pytest.mark.slow
@pytest.mark.parametrize("way", STARTED)
def test_it_starts_from_any_working_directory(config: Path, tmp_path_factory: pytest.TempPathFactory, way: str) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    command = [*STARTED[way], "--train_config", str(config)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert newest_checkpoint(config.parents[1] / "runs/toy").step == 12
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_as_a_script_its_folder_is_not_importable(project: Path, config: Path) -> None:
    """`import config` and the like are the user's own names, or no names at all."""
    text = f"import importlib.util, sys\nassert {str(SCRIPT.parent)!r} not in sys.path\n"
    text += "assert not any(map(importlib.util.find_spec, ('config', 'loop', 'metrics')))\n"
    (project / "looks_around.py").write_text(text)
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{project}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    command = [*STARTED["script"], "--train_config", str(config), "--set", "plugins=[toy_plugin, looks_around]"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [(signal.SIGINT, 130, 1), (signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 0), (signal.SIGTERM, 143, 1)],
)
def test_a_signal_saves_says_so_in_one_line_and_ends(config: Path, number: int, code: int, workers: int) -> None:
    """Sent to the whole process group, as a terminal does; the loader's workers must not die of it."""
    process = start(config, *ENDLESS, f"data.num_workers={workers}")
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert out.splitlines()[-1].startswith(f"{signal.Signals(number).name}: stopped after update ")
    run_dir = config.parents[1] / "runs/toy"
    step = newest_checkpoint(run_dir).step
    assert f"after update {step}; --resume auto" in out
    more = ["--set", f"train.max_steps={step + 3}", "--resume", "auto"]
    assert main(["--train_config", str(config), *more]) == 0
    assert newest_checkpoint(run_dir).step == step + 3


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(config: Path, project: Path) -> None:
    (project / "slow_plugin.py").write_text(
        "import time, toy_plugin\nstep = toy_plugin.ToyTrainer.train_step\n"
        "def slow(self, *given):\n    metrics = step(self, *given)\n    print('stepping', flush=True)\n    time.sleep(60)\n"
        "    return metrics\ntoy_plugin.ToyTrainer.train_step = slow\n"
    )
    process = start(config, "--set", "plugins=[toy_plugin, slow_plugin]", paths=project, until="stepping")
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # the first waits for the step
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT


def test_a_wrong_config_is_a_message_and_no_traceback(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--train_config", str(config), "--set", "data.batchsize=3", "train.los=1"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'batch_size'?" in error
    assert "did you mean 'loss'?" in error
    assert "Traceback" not in error
    assert main(["--train_config", str(config.with_name("nowhere.yaml"))]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_run_that_blows_up_ends_with_its_message(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--train_config", str(config), "--set", "data.datamodule.params.nan=true"]) == 1
    assert "training stopped: the gradient of encoder, head is not finite" in capsys.readouterr().err


@pytest.mark.parametrize("error", [UnreadableFrame("frame 3 of 'top'"), WorkerDied("data worker 0 was ended")])
def test_data_that_cannot_be_read_are_one_message(config: Path, capsys, monkeypatch, error: Exception) -> None:
    def fails(self, data: dict, seed: tuple):
        raise error

    monkeypatch.setattr(ComponentTrainer, "train_step", fails)
    assert main(["--train_config", str(config)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"training stopped: {error}\n  in update 1, of episode:frame ") and "Traceback" not in told


def test_an_error_of_a_step_names_its_samples(config: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    step = ComponentTrainer.train_step

    def fails(self, data: dict, seed: tuple):
        if seed[1] == 4:
            raise RuntimeError("of the method")
        return step(self, data, seed)

    monkeypatch.setattr(ComponentTrainer, "train_step", fails)
    assert main(["--train_config", str(config)]) == 1
    assert re.search(
        r"RuntimeError: of the method\nin update 5, of episode:frame( \d+:\d+){16}\nafter 4", capsys.readouterr().err
    )


def test_a_dry_run_shows_and_writes_nothing(config: Path, project: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--train_config", str(config), "--dry-run", "--set", "train.max_steps=77"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for part in ("max_steps: 77", "head 72 72 train", "observation.state: [16, 1, 3] float32", "action: [16, 4, 2]"):
        assert part in words
    assert "one step: loss" in words
    assert "peak memory" in words
    assert not (project / "runs").exists()


def test_the_package_is_imported_without_torch() -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}; import trainer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-S", "-c", code], check=True)


def start(config: Path, *arguments: str, paths: Path | None = None, until: str = "step ") -> subprocess.Popen:
    """A run in a process group of its own, and training: its first progress line was read."""
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{paths or ''}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    command = [*STARTED["script"], "--train_config", str(config), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    for line in process.stdout:
        if line.startswith(until):
            return process
    raise AssertionError(process.stderr.read())
