"""Several processes: what two of them train is what one trains with the doubled batch; and they end together.

`processes/quiet_job.py` runs the cases that end by themselves in one start of torchrun: all of them for the slow tests,
few for the others; its results are files. Who dies, or gets a signal, needs a start of its own.
"""

import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_compare import assert_equal_checkpoints, tensors_of

import trainer

sys.path.append(str(Path(__file__).parent / "processes"))
from launches import ENVIRONMENT, SOON_S, TORCHRUN, ended, launch, rank_process, until
from process_cases import EQUAL, EXTRA_USED, HELD_OUT, METHOD, Recording, write_project

from trainer.build import build_run, synchronise_batch_norms
from trainer.checkpoint import newest_checkpoint
from trainer.config import load_run_config
from trainer.distributed import World
from trainer.metrics import read_metrics
from trainer.modeling.freeze import freeze
from trainer.timing import is_measured

FEW = (
    *("on one rank and accumulated", "plain protocol", "nan", "unused", "drift", "evaluation", "batch norm"),
    *("whole", "parts", "parts, resumed"),
)
ENDED = ("skipped", "nan", "clock", "batch norm", "whole", "parts", "parts, resumed", "judged", "2 then 1", "1 then 2")


@dataclass(frozen=True)
class Job:
    """What the two processes left behind."""

    folder: Path
    out: str

    def told(self, name: str) -> list[dict[str, Any]]:
        """By rank."""
        return [json.loads((self.folder / f"told/{name}.{rank}.json").read_text()) for rank in (0, 1)]

    def run_dir(self, name: str) -> Path:
        return self.folder / "runs2" / name

    def alone(self, name: str, overrides: dict[str, Any], resume: str = "none", run_dir: str = "") -> Path:
        """The run folder of one process with the doubled batch."""
        return train_alone(self.folder, run_dir or f"runs1/{name}", overrides, resume)


def train_alone(folder: Path, run_dir: str, overrides: dict[str, Any], resume: str = "none") -> Path:
    given = {"data.batch_size": 8, **overrides, "train.save_dir": run_dir}
    return trainer.train(folder / "config.yaml", given, resume).run_dir


@pytest.fixture
def job(request: pytest.FixtureRequest) -> Job:
    """Of a slow test every case, of any other the few that those look at."""
    return request.getfixturevalue("every_case" if request.node.get_closest_marker("slow") else "few_cases")


@pytest.fixture(scope="module")
def every_case(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("quiet")
    write_project(folder)
    train_alone(folder, "runs1/1 then 2", {"train.max_steps": 3})
    return done_in(folder)


@pytest.fixture(scope="module")
def few_cases(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("few")
    write_project(folder)
    return done_in(folder, *FEW)


def done_in(folder: Path, *names: str) -> Job:
    """The cases of those names, or every one."""
    command = [*TORCHRUN, str(Path(__file__).parent / "processes/quiet_job.py"), str(folder), *names]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return Job(folder, done.stdout + done.stderr)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not is_measured(name)}
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]


# Equal to one process


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in EQUAL]
)
@pytest.mark.fault("F20", "2 processes equal one with the doubled batch")
def test_two_processes_equal_one_with_the_doubled_batch(job: Job, name: str) -> None:
    overrides = EQUAL[name] if name.startswith("plain protocol") else {**HELD_OUT, **EQUAL[name]}
    one, two = job.alone(name, overrides), job.run_dir(name)
    alone, both = tensors_of(one / "latest"), tensors_of(two / "latest")
    numbers = [key for key, value in alone.items() if isinstance(value, torch.Tensor) and "processes" not in key]
    assert any("net" in key or "out" in key for key in numbers)
    for key in numbers:
        torch.testing.assert_close(
            both[key], alone[key], rtol=1e-5, atol=2e-7, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert_same_lines(lines(two), lines(one))
    first, second = job.told(name)
    assert first["hash"] == second["hash"]


def assert_same_lines(both: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    assert len(both) == len(alone) >= 6
    for line, expected in zip(both, alone, strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=2e-7)


@pytest.mark.slow
def test_the_cases_are_what_they_are_called(job: Job) -> None:
    """Valid counts differ between ranks and micro-batches; a part trains here and not there; norms are clipped."""
    first, second = (told["weights"] for told in job.told("masked and accumulated"))
    assert first != second
    assert any(one != other for one, other in zip(first[::2], first[1::2], strict=True))

    cases = ("on one rank", "in some steps", "in the first micro-batch")
    extras = [tensors_of(job.run_dir(name) / "latest")["extra/net.0.weight"] for name in cases]
    assert not any(torch.equal(one, other) for one, other in combinations(extras, 2))

    clipped = job.run_dir("averaged and clipped")
    assert all(line["grad_norm"] > 0.05 for line in lines(clipped) if "grad_norm" in line)
    saved = tensors_of(clipped / "latest")
    assert not torch.equal(saved["encoder_ema/net.0.weight"], saved["encoder/net.0.weight"])


@pytest.mark.slow
def test_every_case_leaves_the_same_parameters_on_both_processes(job: Job) -> None:
    for name in (*EQUAL, *ENDED):
        first, second = job.told(name)
        assert first["hash"] == second["hash"], name


@pytest.mark.slow
@pytest.mark.fault("F23", "2 processes: what is frozen travels in no bucket")
def test_what_is_frozen_travels_in_no_bucket(job: Job) -> None:
    everything = {"encoder.net.0.weight", "encoder.net.0.bias", "head.out.weight", "head.out.bias"}
    assert set(job.told("plain")[0]["reduced"]) == everything
    assert set(job.told("frozen component")[0]["reduced"]) == {"head.out.weight", "head.out.bias"}
    assert set(job.told("frozen part")[0]["reduced"]) == everything - {"encoder.net.0.weight"}


@pytest.mark.slow
def test_gradients_travel_once_an_update(job: Job) -> None:
    for name in ("plain", "accumulated", "used twice and accumulated"):
        counts = Counter(job.told(name)[0]["reduced"])
        assert set(counts.values()) == {6}, name


@pytest.mark.slow
def test_a_frozen_component_stays_as_it_was(job: Job) -> None:
    frozen, trained = job.run_dir("frozen component"), job.run_dir("plain")
    one_update = job.alone("frozen, one update", {**EQUAL["frozen component"], "train.max_steps": 1})
    weights = [tensors_of(run_dir / "latest")["encoder/net.0.weight"] for run_dir in (frozen, one_update, trained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not (frozen / "latest/encoder_opt.pt").exists()


# Seeds, signals, clocks, resumes


@pytest.mark.fault("F2", "2 processes: each has random streams of its own, before and after a resume")
def test_weights_are_built_equal_and_random_streams_differ(job: Job) -> None:
    first, second = job.told("built")
    assert first["hash"] == second["hash"]
    for name in ("whole", "parts", "parts, resumed"):
        first, second = job.told(name)
        assert first["random"] != second["random"]
        assert not set(first["draws"]) & set(second["draws"])


@pytest.mark.fault("F9", "2 processes: SIGTERM to one of them")
def test_a_signal_to_one_process_saves_on_both(job: Job) -> None:
    first, second = job.told("parts")
    assert first["signal"] == second["signal"] == signal.SIGTERM
    assert first["step"] == second["step"] == 6  # asked in update 5, known in the next one
    assert first["checkpoint"] == second["checkpoint"]


@pytest.mark.fault("F2", "2 processes, all that draws: stopped within an epoch")
def test_a_run_continued_on_two_processes_equals_one_that_was_not_stopped(job: Job) -> None:
    """Dropout and noise that differ between them, an average, a schedule-free optimizer, accumulation, validation."""
    assert_equal_checkpoints(job.run_dir("parts") / "epoch_3", job.run_dir("whole") / "epoch_3")
    assert lines(job.run_dir("parts")) == lines(job.run_dir("whole"))
    for stopped, resumed, whole in zip(*map(job.told, ("parts", "parts, resumed", "whole")), strict=True):
        assert [*stopped["seen"], *resumed["seen"]] == whole["seen"]
        assert (resumed["random"], resumed["hash"]) == (whole["random"], whole["hash"])


@pytest.mark.slow
def test_a_signal_to_one_process_within_a_validation_ends_it_on_both(job: Job) -> None:
    """Of 4 batches here and 3 there; told in one of them, known in the next but one."""
    for told in job.told("judged in parts"):
        assert (told["signal"], told["step"], told["judged"]) == (signal.SIGTERM, 3, 1 + 2)
    assert {told["signal"] for told in job.told("judged in parts, resumed")} == {None}
    assert_equal_checkpoints(job.run_dir("judged in parts") / "latest", job.run_dir("judged") / "latest")
    assert lines(job.run_dir("judged in parts")) == lines(job.run_dir("judged"))
    assert [one["step"] for one in lines(job.run_dir("judged")) if "validation_loss" in one] == [3, 6]


@pytest.mark.slow
def test_a_script_trains_twice_on_two_processes(tmp_path: Path) -> None:
    config = write_project(tmp_path)
    script = tmp_path / "twice.py"
    script.write_text(
        "import trainer\n"
        f"for name in ('first', 'second'):\n"
        f"    trainer.train({str(config)!r}, {{'train.save_dir': f'{tmp_path}/{{name}}'}})\n"
    )
    done = subprocess.run([*TORCHRUN, str(script)], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_equal_checkpoints(*(newest_checkpoint(tmp_path / name).path for name in ("first", "second")))


@pytest.mark.slow
def test_the_clock_of_one_process_ends_both(job: Job) -> None:
    first, second = job.told("clock")
    assert first["step"] == second["step"] < 10
    assert first["signal"] is second["signal"] is None
    assert newest_checkpoint(job.run_dir("clock")).step == first["step"]


@pytest.mark.slow
@pytest.mark.fault("F4", "from 1 process to 2 and from 2 to 1: the order of the samples goes on")
def test_another_number_of_processes_continues_the_order(job: Job) -> None:
    job.alone("straight", {})
    expected = updates(Recording.last.seen)
    assert len(expected) == 6
    continued = job.alone("2 then 1", {}, resume=str(job.run_dir("2 then 1")))
    assert newest_checkpoint(continued).step == 6
    two, one = (told["seen"] for told in job.told("2 then 1"))
    assert updates(two, one) + updates(Recording.last.seen) == expected
    one, two = (told["seen"] for told in job.told("1 then 2"))
    assert updates(one, two) == expected[3:]
    assert one != two


def updates(*seen: list[list[Any]]) -> list[Counter]:
    """What all processes together have seen in each update: (episode, frame), counted."""
    return [Counter(tuple(one) for batch in together for one in batch) for together in zip(*seen, strict=True)]


@pytest.mark.slow
@pytest.mark.fault("F4", "another number of frames per update")
def test_another_product_of_batch_processes_and_accumulation_is_refused(job: Job) -> None:
    for told in job.told("another product"):
        assert "frames per update 8, and is to continue with 16" in told["error"]
    assert not job.run_dir("another product").exists()


# Errors that all processes have


@pytest.mark.fault("F12", "2 processes: NaN on one: stop")
def test_nan_on_one_process_stops_both_before_the_update(job: Job) -> None:
    for told in job.told("nan"):
        assert told["kind"] == "NonFiniteGradient"
        assert "gradient of encoder, head is not finite" in told["error"]
        assert told["hash"] == told["hashes"][2] != told["hashes"][1]
        assert len(told["hashes"]) == 3
        for other in job.told("nan"):
            assert " ".join(f"{episode}:{frame}" for episode, frame in other["seen"][-1]) in told["error"]
    assert not list(job.run_dir("nan").glob("*_*/manifest.json"))


@pytest.mark.slow
@pytest.mark.fault("F12", "2 processes: NaN on one: skip")
def test_nan_on_one_process_leaves_the_update_out_on_both(job: Job) -> None:
    for told in job.told("skipped"):
        assert told["step"] == 6
        assert told["hashes"][3] == told["hashes"][2]
        assert len(set(told["hashes"])) == 5
    skipped = [line["skipped"] for line in lines(job.run_dir("skipped"))]
    assert skipped == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("unused", "2 parameters .*: extra.net.0.weight, extra.net.0.bias"),
        pytest.param("unused in the last micro-batch", "not in its last", marks=pytest.mark.slow),
    ],
)
def test_parameters_without_a_gradient_are_named_with_the_key_that_allows_them(
    job: Job, name: str, parameters: str
) -> None:
    for told in job.told(name):
        assert told["kind"] == "ConfigError"
        assert re.search(parameters, told["error"])
        assert "model.find_unused_parameters: true" in told["error"]
        assert told["hash"] == told["hashes"][0]


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("drift", "head.out.weight"),
        pytest.param("drift of a constant", "head.out.bias", marks=pytest.mark.slow),
        pytest.param("drift of a frozen weight", "encoder.net.0.weight", marks=pytest.mark.slow),
    ],
)
def test_a_weight_that_changed_on_one_process_only_is_refused_at_the_save(job: Job, name: str, parameter: str) -> None:
    for told in job.told(name):
        assert told["kind"] == "CheckpointError"
        assert f"not the same any more, first in {parameter};" in told["error"]
    first, second = job.told(name)
    assert first["hash"] != second["hash"]
    assert not list(job.run_dir(name).glob("*_*/manifest.json"))


def test_every_difference_of_bits_is_a_disagreement(job: Job) -> None:
    for told in job.told("disagreement"):
        assert {how for how, name in told.items() if name is None} == {"nothing"}
        assert set(told.values()) == {None, "other"}


def test_what_fails_on_the_first_process_fails_on_both_whatever_is_raised(job: Job) -> None:
    first, second = job.told("decided")
    assert first["error"] == "Unsendable: no room to act"
    assert second["error"] == "RuntimeError: Unsendable: no room to act"
    first, second = job.told("evaluation")
    assert (first["kind"], second["kind"]) == ("Unsendable", "RuntimeError")


def test_what_a_person_is_told_is_told_once(job: Job) -> None:
    assert job.out.count("processes do not share batch statistics") == 1
    assert job.out.count("runs2/batch norm") == 1  # the banner
    assert job.out.count("effective batch 16 (4 x 2 processes x accumulate 2)") >= 1


def test_batch_statistics_are_those_of_the_first_process(job: Job) -> None:
    first, second = job.told("batch norm")
    kept = tensors_of(job.run_dir("batch norm") / "latest")["encoder/norm.running_mean"].tolist()
    assert first["statistics"]["train"] != second["statistics"]["train"]
    assert first["statistics"]["validation"] == second["statistics"]["validation"] == kept


NORMED = {
    "top": nn.BatchNorm1d(8),
    "body": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.GroupNorm(2, 4)),
    "frozen": nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
}


def normed_models() -> nn.ModuleDict:
    """Batch norms as a component, within one, and within one that is frozen; with statistics, and in eval mode."""
    models = nn.ModuleDict(copy.deepcopy(NORMED))
    for norm in (models["top"], models["body"][1][0], models["frozen"][1]):
        nn.init.normal_(norm.running_mean)
    freeze(models["frozen"], None, lambda *_: None)
    return models.eval()


def test_on_cuda_what_trains_shares_its_batch_statistics(capsys: pytest.CaptureFixture) -> None:
    models = normed_models()
    before = copy.deepcopy(models.state_dict())
    synchronise_batch_norms(models, torch.device("cuda"), World(0, 2))
    kinds = [type(one) for one in (models["top"], models["body"][1][0], models["body"][2], models["frozen"][1])]
    assert kinds == [nn.SyncBatchNorm, nn.SyncBatchNorm, nn.GroupNorm, nn.BatchNorm1d]
    assert models["top"].training and not models["frozen"][1].training
    assert models.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in models.state_dict().items())
    assert capsys.readouterr().out == ""


def test_elsewhere_batch_norms_stay_and_those_that_train_are_named(capsys: pytest.CaptureFixture) -> None:
    models = normed_models()
    kinds = [type(one) for one in models.modules()]
    synchronise_batch_norms(models, torch.device("cpu"), World(0, 2))
    assert [type(one) for one in models.modules()] == kinds
    told = capsys.readouterr().out
    assert told.startswith("warning: on a cpu, processes do not share batch statistics; those of the first one are ")
    assert "kept: top, body.1.0. A norm" in told

    many = nn.ModuleDict({f"norm{number}": nn.BatchNorm1d(2) for number in range(5)})
    synchronise_batch_norms(many, torch.device("cpu"), World(0, 2))
    assert "kept: norm0, norm1, norm2, norm3 .... A norm" in capsys.readouterr().out
    synchronise_batch_norms(models, torch.device("cpu"), World(1, 2))
    synchronise_batch_norms(nn.ModuleDict({"head": nn.LayerNorm(2)}), torch.device("cpu"), World(0, 2))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("processes", "kind"), [(1, nn.BatchNorm1d), (2, nn.SyncBatchNorm)])
def test_a_component_of_several_processes_on_cuda_uses_the_shared_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, kind: type[nn.Module]
) -> None:
    """As far as a machine without one can tell: the run is built for a CPU, and its batch norms as on CUDA."""
    on_cuda = lambda models, device, world: synchronise_batch_norms(models, torch.device("cuda"), world)  # noqa: E731
    monkeypatch.setattr("trainer.build.synchronise_batch_norms", on_cuda)
    monkeypatch.setattr("trainer.templates.trainer.DistributedDataParallel", lambda module, **options: module)
    overrides = ["model.component_config_paths.encoder=normed.yaml"]
    run = build_run(load_run_config(write_project(tmp_path), overrides), World(0, processes))
    encoder, called = run.models["encoder"].eval(), []
    assert type(encoder.norm) is kind
    encoder.norm.register_forward_hook(lambda norm, given, output: called.append(norm))
    encoder(torch.randn(4, 1, 3))
    assert called == [encoder.norm]


# Starts of their own


ENDLESS = ["train.max_steps=1000000", "train.log_every=10", "train.save_every_steps=9"]


@pytest.mark.fault("F10", "2 processes: one raises")
def test_a_process_that_raises_ends_all_and_its_traceback_is_told_once(tmp_path: Path) -> None:
    process = launch(tmp_path, *ENDLESS, f"{METHOD}.raise_rank=1", f"{METHOD}.raise_at=30")
    read = until(process, "step 10")
    rest, _ = ended(process, tmp_path, SOON_S)
    assert process.returncode != 0
    assert (read + rest).count("RuntimeError: the gripper is stuck") == 1
    assert (read + rest).count("Traceback (most recent call last)") == 1 + rest.count("ChildFailedError:")
    assert "in compute_loss" in rest


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
@pytest.mark.fault("F10", "2 processes: one is killed; with workers")
def test_a_process_that_is_killed_ends_all(tmp_path: Path, workers: int) -> None:
    process = launch(tmp_path, *ENDLESS, f"data.num_workers={workers}")
    read = until(process, "step 10")
    os.kill(rank_process(tmp_path, 1), signal.SIGKILL)
    rest, _ = ended(process, tmp_path)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in read + rest


@pytest.mark.slow
def test_a_parameter_without_a_gradient_on_one_process_only_ends_all(tmp_path: Path) -> None:
    extra = [f"{key}={json.dumps(value)}" for key, value in EXTRA_USED.items()]
    process = launch(tmp_path, *ENDLESS, *extra, f"{METHOD}.extra=second half")
    rest, _ = ended(process, tmp_path, 60 + SOON_S)
    assert process.returncode != 0
    assert rest.count("2 parameters took no part in this update: extra.net.0.weight, extra.net.0.bias") == 1
    assert rest.count("Traceback (most recent call last)") == rest.count("ChildFailedError:")  # torchrun's own


def to_one(process: subprocess.Popen, folder: Path) -> None:
    os.kill(rank_process(folder, 1), signal.SIGTERM)


def to_torchrun(process: subprocess.Popen, folder: Path) -> None:
    process.send_signal(signal.SIGTERM)


def control_c(process: subprocess.Popen, folder: Path) -> None:
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "name", "workers"),
    [
        (to_one, "SIGTERM", 1),
        (to_torchrun, "SIGTERM", 1),
        (control_c, "SIGINT", 1),
    ],
)
@pytest.mark.fault("F9", "2 processes: SIGTERM to one or to torchrun, Ctrl-C to all; with workers")
def test_a_signal_saves_and_ends_all(tmp_path: Path, send: Callable, name: str, workers: int) -> None:
    process = launch(tmp_path, *ENDLESS, f"data.num_workers={workers}")
    until(process, "step 10")
    send(process, tmp_path)
    rest, _ = ended(process, tmp_path)
    said = re.search(rf"^{name}: stopped after update (\d+); --resume auto continues from", rest, re.MULTILINE)
    assert said, rest
    assert newest_checkpoint(tmp_path / "run").step == int(said[1])
    assert rest.count(f"{name}: stopped after update") == 1
    if send is to_one:
        assert re.search(r"exitcode *: 143", rest), rest
    before_torchrun_speaks = rest.partition("Traceback")[0]
    assert "Error" not in before_torchrun_speaks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.los=1"], "unknown key 'train.los'"),
        (["model.component_config_paths.head=nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        (["data.datamodule.type=unreadable_data"], "OSError: the disk is gone"),
        (
            ["train.evaluation={type: failing_evaluation}", "train.evaluate_every=1"],
            'in evaluate\n    raise Unsendable("no room", "to act")',
        ),
    ],
)
def test_what_is_wrong_everywhere_is_told_once(tmp_path: Path, overrides: list[str], message: str) -> None:
    """Both processes without torchrun, which would only take longer to start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, **meet} for rank in ("0", "1")]
    started = [launch(tmp_path, *overrides, command=[sys.executable], **rank) for rank in ranks]
    told = [process.communicate(timeout=120)[0] for process in started]
    assert all(process.returncode for process in started)
    assert "".join(told).count(message) == 1, told
