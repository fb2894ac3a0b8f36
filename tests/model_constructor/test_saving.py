"""save_pretrained and from_pretrained: two files that bring the same model back, or say why they do not."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model_constructor import ConfigError, GraphModel, build_model, load_config, register
from model_constructor.saving import _parameters_on_meta

MODEL = """\
params: {dim: 8, depth: 2}
inputs: {x: [B, T, dim]}
blocks:
  layer:
    params: {dim: int}
    inputs: {h: [B, T, dim]}
    modules:
      norm: LayerNorm(dim)
      fc: Linear(dim, dim)
      mask: Buffer(ones(dim, dim).tril(), persistent=False)
    outputs: h + fc(norm(h)) @ mask
    init: {fc: normal(std=0.5)}
modules:
  layers: layer(dim=dim) * depth
  named: {scale: "Param([2.0, 3.0], requires_grad=False)"}
  count: Buffer(zeros([], dtype=int64))
  batch_norm: BatchNorm1d(dim)
graph: {h: "batch_norm(layers(x).mT).mT"}
outputs: h * named.scale[0] + named.scale[1] + count
init: {"layers[*].norm": zeros}
"""


@register("TablesOfTestSaving")
class Tables(nn.Module):
    """Holds a parameter under two names, and a buffer that is not stored and which only its constructor can compute."""

    downloads = 0

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.a = self.b = nn.Parameter(torch.randn(dim))
        self.register_buffer("table", torch.arange(dim) / 7, persistent=False)
        Tables.downloads += torch.get_default_device().type != "meta"  # as a pretrained backbone would

    def forward(self, x):
        return x * self.a + self.b * self.table


sys.modules.setdefault(Tables.__module__, sys.modules[__name__])


@register("ReadsOfTestSaving")
class Reads(nn.Module):
    """Its constructor reads values, as torchvision's Swin does those of linspace."""

    table: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 1, dim)]
        self.l = nn.Linear(dim, dim)
        self.register_buffer("table", torch.tensor(self.rates), persistent=False)
        self.register_buffer("count", torch.tensor(self.rates[-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.l(x) * self.table + sum(self.rates)


WITH_TABLES = """\
inputs: {x: [B, 4]}
modules: {t: TablesOfTestSaving(4), own: "Buffer(arange(4) / 3, persistent=False)", l: "Linear(4, 4)"}
outputs: l(t(x)) + own
"""


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 5, 8)


@pytest.fixture
def saved(build: Callable, tmp_path: Path) -> tuple[GraphModel, Path]:
    model = build(MODEL, params={"depth": 3})
    model(torch.randn(16, 5, 8))  # moves the statistics of the batch norm
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))  # as if trained
    folder = tmp_path / "saved" / "model"
    model.save_pretrained(folder)
    return model, folder


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same(twin: GraphModel, model: GraphModel) -> None:
    ours, theirs = tensors(twin), tensors(model)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype, name
        assert ours[name].requires_grad == tensor.requires_grad and type(ours[name]) is type(tensor), name
    assert twin.architecture_hash == model.architecture_hash and twin.params == model.params


# what comes back


def test_the_model_comes_back_whole(saved: tuple, x: torch.Tensor):
    model, folder = saved
    twin = GraphModel.from_pretrained(folder)
    assert_same(twin, model)
    assert twin.training and twin.params["depth"] == 3
    torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=0, atol=0)
    twin(x).sum().backward()
    assert twin.layers[2].fc.weight.grad is not None and twin.named.scale.grad is None


def test_it_comes_back_in_a_fresh_process_without_the_authors_file(saved: tuple, x: torch.Tensor, tmp_path: Path):
    model, folder = saved
    (tmp_path / "model.yaml").unlink()
    torch.save((x, model.eval()(x)), tmp_path / "data.pt")
    code = (
        "import sys, torch; from model_constructor import GraphModel; x, y = torch.load('data.pt');"
        f"torch.testing.assert_close(GraphModel.from_pretrained({str(folder)!r}).eval()(x), y); print('same')"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.stdout.strip() == "same", done.stderr


def test_the_folder_holds_the_specification_and_the_weights_and_nothing_else(saved: tuple):
    model, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "model.yaml"]
    assert load_config(folder / "model.yaml").data == model.spec
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == model.state_dict().keys() and not any("mask" in name for name in stored)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert build_model(folder / "model.yaml").architecture_hash == model.architecture_hash


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
def test_dtypes_are_kept_also_those_of_buffers_that_are_not_stored(saved: tuple, tmp_path: Path, dtype: torch.dtype):
    model = saved[0].to(dtype).eval()
    model.batch_norm.float()
    model.save_pretrained(tmp_path / "cast")
    twin = GraphModel.from_pretrained(tmp_path / "cast").eval()
    assert_same(twin, model)
    assert twin.layers[0].mask.dtype == dtype and twin.batch_norm.weight.dtype == torch.float32
    assert twin.count.dtype == torch.int64 or twin.count.is_floating_point()
    h = torch.ones(1, 2, 8, dtype=dtype)
    assert torch.equal(twin.layers[0](h), model.layers[0](h))


def test_what_two_names_share_is_stored_once_and_shared_again(build: Callable, tmp_path: Path):
    model = build(WITH_TABLES)
    model.save_pretrained(tmp_path / "tied")
    assert load_file(tmp_path / "tied/model.safetensors").keys() == {"t.a", "l.weight", "l.bias"}
    twin = GraphModel.from_pretrained(tmp_path / "tied")
    assert_same(twin, model)
    assert twin.t.a is twin.t.b


def test_weights_tied_after_building_are_tied_again(build: Callable, tmp_path: Path):
    model = build(MODEL)
    model.layers[1].fc.weight = model.layers[0].fc.weight
    model.save_pretrained(tmp_path / "tied")
    twin = GraphModel.from_pretrained(tmp_path / "tied")
    assert_same(twin, model)
    assert twin.layers[1].fc.weight is twin.layers[0].fc.weight


def test_tensors_that_share_memory_but_are_not_one_are_saved_apart(build: Callable, tmp_path: Path):
    model = build(
        'inputs: {x: any}\nmodules: {a: "Linear(2, 2)", b: "Linear(2, 2)", c: "Linear(2, 2)"}\noutputs: a(b(c(x)))\n'
    )
    whole = torch.randn(4, 2)
    model.a.weight, model.b.weight = nn.Parameter(whole[:2]), nn.Parameter(whole[2:])
    model.c.weight = nn.Parameter(whole[:2].t())
    model.c.bias = nn.Parameter(model.a.bias.data)
    model.save_pretrained(tmp_path / "views")
    assert_same(GraphModel.from_pretrained(tmp_path / "views"), model)


def test_buffers_that_are_not_stored_have_their_values_and_nothing_is_drawn_or_downloaded(
    build: Callable, tmp_path: Path
):
    model = build(WITH_TABLES)
    model.save_pretrained(tmp_path / "saved")
    before, downloads = torch.get_rng_state(), Tables.downloads
    twin = GraphModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), before) and Tables.downloads == downloads > 0
    torch.testing.assert_close(twin.t.table, torch.arange(4) / 7)
    torch.testing.assert_close(twin.own, torch.arange(4) / 3)
    x = torch.randn(2, 4)
    torch.testing.assert_close(twin(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_type_that_reads_values_when_it_is_built_comes_back_too(build: Callable, tmp_path: Path, dtype: torch.dtype):
    text = 'inputs: {x: [B, 3]}\nmodules: {r: ReadsOfTestSaving(3), l: "Linear(3, 3) * 2", b: "BatchNorm1d(3)"}\n'
    model = build(text + "outputs: b(l(r(x)))\n").to(dtype)
    model.save_pretrained(tmp_path / "saved")
    state = torch.get_rng_state()
    x = torch.ones(2, 3, dtype=dtype)
    for twin in GraphModel.from_pretrained(tmp_path / "saved"), pickle.loads(pickle.dumps(model)):
        assert_same(twin, model)
        assert torch.equal(twin.eval()(x), model.eval()(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_lazy_module_comes_back_with_the_size_that_its_first_call_found(build: Callable, tmp_path: Path):
    text = (
        'inputs: {x: any}\nmodules: {c: "LazyConv1d(4, 1) >> LazyBatchNorm1d()", l: LazyLinear(2)}\noutputs: l(c(x))\n'
    )
    model, x = build(text), torch.randn(2, 3, 5)
    with pytest.raises(ConfigError, match=r"sizes are not known yet: .*'l.weight'"):
        model.save_pretrained(tmp_path / "saved")
    expected = model(x)
    model.save_pretrained(tmp_path / "saved")
    twin = GraphModel.from_pretrained(tmp_path / "saved")
    assert_same(twin, model)
    torch.testing.assert_close(twin(x), expected)
    assert twin.l.in_features == 5


def test_no_initialiser_runs_and_memory_is_that_of_one_copy(
    build: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = "inputs: {x: any}\nmodules: {l: 'Linear(1000, 1000) * 8', m: 'Buffer(ones(3), persistent=False)'}\noutputs: l(x) * m\n"
    build(text).save_pretrained(tmp_path / "saved")
    made: list[int] = []

    class Counts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not result.is_meta and "empty" in function.__name__:
                made.append(result.numel())
            return result

    with Counts():
        twin = GraphModel.from_pretrained(tmp_path / "saved")
    assert sum(made) < 100 and not any(tensor.is_meta for tensor in tensors(twin).values())


def test_saving_again_replaces_both_files_and_leaves_others(saved: tuple):
    model, folder = saved
    (folder / "notes.txt").write_text("mine")
    with torch.no_grad():
        model.layers[0].fc.weight.fill_(3.0)
    model.save_pretrained(folder)
    assert (GraphModel.from_pretrained(folder).layers[0].fc.weight == 3).all()
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "model.yaml", "notes.txt"]


def test_a_crash_while_writing_leaves_the_old_files(saved: tuple, monkeypatch: pytest.MonkeyPatch):
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_block_inside_a_model_is_saved_on_its_own(saved: tuple, tmp_path: Path):
    inner = saved[0].layers[1]
    inner.save_pretrained(tmp_path / "inner")
    assert_same(GraphModel.from_pretrained(tmp_path / "inner"), inner)


def test_a_file_can_import_only_what_the_caller_allows(write: Callable, tmp_path: Path):
    path = write("imports: [colorsys]\ninputs: {x: any}\nmodules: {l: 'Linear(2, 2)'}\noutputs: l(x)\n")
    build_model(path, allow_imports=("colorsys",)).save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="import of 'colorsys' is not allowed"):
        GraphModel.from_pretrained(tmp_path / "saved")
    assert GraphModel.from_pretrained(tmp_path / "saved", allow_imports=("colorsys",)).l.weight.shape == (2, 2)


# what does not fit


def rewrite(folder: Path, change: Callable[[dict, dict], object]) -> None:
    from safetensors import safe_open

    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata, weights = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(weights, metadata)
    save_file(weights, path, metadata)


def error_of(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        GraphModel.from_pretrained(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, m: w.pop("layers.0.fc.bias"), "missing: 'layers.0.fc.bias'."),
        (lambda w, m: w.update(extra=torch.ones(1)), "the specification has no 'extra'."),
        (lambda w, m: w.update({"layers.0.fc.bais": w.pop("layers.0.fc.bias")}), "did you mean 'layers.0.fc.bais'?"),
        (lambda w, m: w.update({"layers.0.fc.bias": torch.ones(9)}), "'layers.0.fc.bias' has the shape [9]; the specification says [8]."),
        (lambda w, m: w.update(count=torch.tensor(1.5)), "'count' holds floating-point numbers; it should hold integers."),
        (lambda w, m: m.update(architecture_hash="0" * 64), "weights of another architecture"),
        (lambda w, m: m.pop("architecture_hash"), "its metadata has no 'architecture_hash'"),
        (lambda w, m: m.pop("same_as"), "its metadata has no 'same_as'"),
        (lambda w, m: m.update(same_as="{"), "the file is damaged"),
        (lambda w, m: m.update(same_as="[1]"), "the file is damaged"),
        (lambda w, m: m.update(same_as=json.dumps({"named.scale": "nothing"})), "the file is damaged"),
        (lambda w, m: m.update(computed="7"), "the file is damaged"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_with_all_that_is_wrong(saved: tuple, change: Callable, message: str):
    folder = saved[1]
    rewrite(folder, change)
    assert message in error_of(folder) and "model.safetensors" in error_of(folder)


def test_all_that_does_not_fit_is_told_together(saved: tuple):
    def change(weights: dict, metadata: dict) -> None:
        for i in range(3):
            for name in ("norm.weight", "norm.bias", "fc.weight", "fc.bias"):
                weights.pop(f"layers.{i}.{name}")
        weights["batch_norm.weight"] = torch.ones(2)

    rewrite(saved[1], change)
    text = error_of(saved[1])
    assert "and 2 more" in text and "'batch_norm.weight' has the shape [2]" in text


def test_a_specification_that_computes_something_else_is_refused(saved: tuple):
    path = saved[1] / "model.yaml"
    path.write_text(path.read_text().replace("h + fc(norm(h))", "h - fc(norm(h))"))
    assert "weights of another architecture" in error_of(saved[1])


@pytest.mark.parametrize("keep", [0, 4, 7, 100, -1])
def test_a_truncated_file_is_told_as_one(saved: tuple, keep: int):
    path = saved[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors: the file is damaged, or no safetensors" in error_of(saved[1])


def test_a_pickle_in_place_of_the_weights_is_not_loaded(saved: tuple):
    class Runs:
        def __reduce__(self):
            return os.abort, ()

    torch.save(Runs(), saved[1] / "model.safetensors")
    assert "the file is damaged, or no safetensors" in error_of(saved[1])


def test_a_missing_file_is_told_by_its_name(saved: tuple):
    folder = saved[1]
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: there is no such file" in error_of(folder)
    shutil.rmtree(folder)
    assert "model.yaml: there is no such file" in error_of(folder)


def test_a_model_that_its_specification_does_not_describe_is_not_saved(saved: tuple, tmp_path: Path):
    model, folder = saved
    before = (folder / "model.safetensors").read_bytes()
    model.layers[0].fc = nn.Linear(8, 8, bias=False)
    with pytest.raises(ConfigError, match=r"(?s)missing: 'layers.0.fc.bias'.*changed since it was built"):
        model.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    with pytest.raises(ConfigError, match="on the meta device"):
        saved[0].layers[1].to("meta").save_pretrained(tmp_path / "meta")


def test_parameters_are_kept_from_memory_in_this_thread_only():
    other: list[nn.Module] = []
    with _parameters_on_meta():
        thread = threading.Thread(target=lambda: other.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        mine = Tables(3)
    assert mine.a.is_meta and mine.a is mine.b and not mine.table.is_meta
    assert not other[0].weight.is_meta and not nn.Linear(2, 2).weight.is_meta
