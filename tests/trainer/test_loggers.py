"""wandb and TensorBoard hold what metrics.jsonl holds; what they lack is told at start; what they break stops nothing."""

import http.server
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy_plugin

from model_constructor import load_config
from trainer import train
from trainer.config.logger_checks import check_loggers
from trainer.loggers import LOGGERS, Forgiving, answers, build_loggers, project_name

KEY = "0123456789" * 4
LINES = [{"step": step, "epoch": step / 10, "loss": 1 / step, "lr/head": 0.1} for step in (10, 20, 30)]


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")


def opened(name: str, run_dir: Path, step: int = 0) -> Any:
    (logger,) = build_loggers([name], run_dir, step, project="pick place", name="run 1", config={"seed": 3})
    return logger


def checked(names: str) -> list[str]:
    config = load_config({"train": {"loggers": names}})
    return [f"{problem.message} | {problem.hint}" for problem in check_loggers(config)]


# TensorBoard


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_every_number_of_every_line(tmp_path: Path) -> None:
    logger = opened("tensorboard", tmp_path)
    for line in [*LINES, {"step": 30, "validation_loss": 0.25, "grad_norm": None}]:
        logger.log(line["step"], line)
    shown = scalars(tmp_path)  # before it is closed: a killed run has what it logged
    assert shown.keys() == {"epoch", "loss", "lr/head", "validation_loss"}
    assert shown["loss"] == [(line["step"], pytest.approx(line["loss"])) for line in LINES]
    assert shown["validation_loss"] == [(30, 0.25)]
    logger.close()


@pytest.mark.fault("F19", "a resumed run's loggers: no step twice, none that goes back")
def test_a_resumed_run_goes_on_in_tensorboard_behind_its_checkpoint(tmp_path: Path) -> None:
    killed = opened("tensorboard", tmp_path)
    for step in (10, 20, 30):
        killed.log(step, {"step": step, "loss": float(step)})
    resumed = opened("tensorboard", tmp_path, step=15)
    for step in (20, 30, 40):
        resumed.log(step, {"step": step, "loss": step + 0.5})
    resumed.close()
    assert scalars(tmp_path)["loss"] == [(10, 10.0), (20, 20.5), (30, 30.5), (40, 40.5)]


# wandb


def wandb_records(run_dir: Path) -> list[Any]:
    """What `wandb sync` would send, of every part of the run."""
    parts = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [record for path in parts for record in wandb_part(path)]


def wandb_part(path: Path) -> list[Any]:
    """The records of one part, which wandb's own process goes on writing for a moment when the run has ended."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    deadline = time.monotonic() + 20
    while True:
        store = DataStore()
        store.open_for_scan(str(path))
        records = [Record.FromString(data) for data in iter(store.scan_data, None)]
        if (records and records[-1].HasField("exit")) or time.monotonic() > deadline:
            return records
        time.sleep(0.05)


@pytest.mark.fault("F19", "wandb offline holds every line")
def test_wandb_offline_holds_every_line_and_a_resumed_run_is_the_same_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step, lines in ((0, LINES[:2]), (20, LINES[2:])):
        logger = opened("wandb", tmp_path, step)
        for line in lines:
            logger.log(line["step"], line)
        logger.close()
        time.sleep(1.0)  # wandb names a part of a run by its second
    records = wandb_records(tmp_path)
    runs = [record.run for record in records if record.HasField("run")]
    assert {run.run_id for run in runs} == {(tmp_path / "wandb/run_id").read_text()}
    assert {(run.project, run.display_name) for run in runs} == {("pick place", "run 1")}
    history = [record.history for record in records if record.HasField("history")]
    found = {row.step.num: {item.key or item.nested_key[0]: item.value_json for item in row.item} for row in history}
    assert {step: float(row["loss"]) for step, row in found.items()} == {line["step"]: line["loss"] for line in LINES}
    assert all(float(row["lr/head"]) == 0.1 for row in found.values())


@pytest.mark.parametrize(
    ("task", "overrides", "named"),
    [
        pytest.param("pick: a/b", {}, ("pick- a-b", "config"), marks=pytest.mark.slow),
        ("pick: a/b", {"train.project_name": "mine"}, ("pick- a-b", "mine")),
        pytest.param("", {}, ("config", "config"), marks=pytest.mark.slow),
        ("", {"train.project_name": "a/b"}, ("a-b", "a/b")),
    ],
)
def test_wandbs_project_is_the_data_sets_task_and_its_run_has_the_runs_name(
    config: Path, monkeypatch: pytest.MonkeyPatch, task: str, overrides: dict[str, str], named: tuple[str, str]
) -> None:
    """A data set that names no task leaves the project to the run's name."""
    build = toy_plugin.ToyData.build
    monkeypatch.setattr(toy_plugin.ToyData, "build", lambda *given: {**build(*given), "task_name": task})
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = train(config, {"train.loggers": ["wandb"], "train.max_steps": 1, **overrides}).run_dir
    (run,) = [record.run for record in wandb_records(run_dir) if record.HasField("run")]
    assert (run.project, run.display_name) == named


class FakeWandb(SimpleNamespace):
    """A service that has seen `step` updates; notes how it is called."""

    def __init__(self, step: int = 0, fails: bool = False) -> None:
        self.calls: list[dict[str, Any]] = []
        self.logged: list[int] = []
        settings = SimpleNamespace(mode="online", base_url="http://127.0.0.1:9", project=None)
        super().__init__(setup=lambda: SimpleNamespace(settings=settings), Settings=dict, step=step, fails=fails)

    def init(self, **given: Any) -> Any:
        if self.fails:
            raise ConnectionError("the service\nis down")
        self.calls.append(given)
        return SimpleNamespace(step=self.step, log=lambda line, step: self.logged.append(step), finish=lambda: None)


@pytest.mark.fault("F19", "a resumed run's loggers: no step twice, none that goes back")
def test_a_resumed_run_repeats_nothing_that_wandb_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.loggers.answers", lambda url: True)
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb(step=25))
    for step in (0, 15):
        logger = opened("wandb", tmp_path, step)
    for step in (20, 25, 30):
        logger.log(step, {"step": step, "loss": 1.0})
    assert fake.logged == [25, 30]
    assert [(call["mode"], call["resume"]) for call in fake.calls] == [("online", "allow")] * 2
    assert fake.calls[0]["id"] == fake.calls[1]["id"]
    assert opened("wandb", tmp_path / "..", 0) and fake.calls[2]["id"] != fake.calls[0]["id"]


@pytest.mark.fault("F19", "a logger's server does not answer")
def test_a_server_that_does_not_answer_is_told_and_the_run_is_kept_offline(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    opened("wandb", tmp_path)
    assert fake.calls[0]["mode"] == "offline"
    assert f"http://127.0.0.1:9 does not answer: wandb writes to {tmp_path}/wandb" in capsys.readouterr().out


def test_a_project_of_wandbs_own_settings_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for project in ("lab", None):
        monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
        fake.setup().settings.project = project
        opened("wandb", tmp_path)
        assert fake.calls[0]["project"] == (project or "pick place")


@pytest.fixture
def refusing_server() -> Iterator[str]:
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_answer_is_an_answer_whatever_it_says(refusing_server: str) -> None:
    assert answers(refusing_server)
    assert not answers("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("task", "name"), [("pick the cube", "pick the cube"), ("a/b: c?", "a-b- c-"), ("x" * 200, "x" * 128)]
)
def test_a_task_becomes_a_name_that_wandb_takes(task: str, name: str) -> None:
    assert project_name(task) == name


# What is missing is told at start


@pytest.mark.fault("F19", "a logger is not installed")
def test_a_logger_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = tmp_path / "config.yaml"
    path.write_text("train:\n  loggers: [tensorboard, wandb]\n")
    problems = check_loggers(load_config(path))
    assert [problem.message for problem in problems] == [
        "train.loggers asks for tensorboard, which is not installed",
        "train.loggers asks for wandb, which is not installed",
    ]
    assert [problem.hint for problem in problems] == [
        "pip install 'policy-constructor[tensorboard]'",
        "pip install 'policy-constructor[wandb]'",
    ]
    assert [(problem.place.line, problem.place.column) for problem in problems] == [(2, 13), (2, 26)]


def test_a_logger_that_is_named_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train:\n  loggers: [tensorboard, tensorboard]\n")
    (problem,) = check_loggers(load_config(path))
    assert (problem.message, problem.place.column) == ("train.loggers names tensorboard twice", 26)


def test_wandb_without_a_key_is_told_how_to_get_one_or_do_without(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")  # unset, it is read once a process from wandb's settings files
    (told,) = checked(["wandb"])
    assert told.startswith("train.loggers asks for wandb, which has no key | ")
    assert "wandb login" in told and "WANDB_MODE=offline" in told
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert checked(["wandb"]) == []
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "no_netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert checked(["wandb"]) == []
    (tmp_path / "no_netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert checked(["wandb"]) == []


def test_settings_that_wandb_does_not_take_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    assert checked(["wandb"])[0].startswith("train.loggers asks for wandb, which knows no WANDB_MODE=ofline | ")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    fake.__spec__ = object()  # installed
    fake.setup = lambda: {}["no\nurl"]
    assert checked(["wandb"])[0].startswith("train.loggers asks for wandb, which says: 'no\\nurl' | ")


def test_what_is_not_asked_for_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOGGERS:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    assert checked([]) == []
    assert check_loggers(load_config({"train": {"max_steps": 3}})) == []
    assert check_loggers(load_config({"train": "no mapping"})) == []
    assert build_loggers([], Path("nowhere"), 0, project="", name="", config={}) == []


# What fails later


@pytest.mark.fault("F19", "a logger fails, at once or later")
def test_a_logger_that_fails_costs_one_warning_and_not_the_run(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fails=True))
    logger = opened("wandb", tmp_path)
    for line in LINES:
        logger.log(line["step"], line)
    logger.close()
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert said == [
        "warning: wandb is left out from here on, metrics.jsonl has all (ConnectionError: the service is down)"
    ]


@pytest.mark.parametrize("broken", ["log", "close"])
@pytest.mark.fault("F19", "a logger fails, at once or later")
def test_a_logger_may_break_at_any_moment(broken: str, capsys: pytest.CaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    inner = SimpleNamespace(**{"log": lambda *_: None, "close": lambda: None, broken: fail})
    logger = Forgiving("tensorboard", lambda: inner)
    logger.log(1, {"loss": 1.0})
    logger.log(2, {"loss": 1.0})
    logger.close()
    assert capsys.readouterr().out.count("no space left") == 1


def test_opening_loggers_draws_nothing_from_trainings_random_streams(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(LOGGERS, "wandb", lambda run: (random.random(), np.random.rand(), torch.rand(1)))
    streams = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    build_loggers(["wandb", "tensorboard"], tmp_path, 0, project="p", name="n", config={})
    assert streams == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
