"""The command line: what each command prints, and what it exits with."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model_constructor import build_model, register
from model_constructor.tools.arguments import build_without_memory
from model_constructor.tools.cli import main
from model_constructor.tools.measure import measure
from model_constructor.tools.table import cut, folded, short, table

ROOT = Path(__file__).parents[2]

DECODER = """
params: {dim: 8, heads: 2, depth: 3}
inputs:
  x: [B, T, 4]
  context: [B, S, dim]
blocks:
  layer:
    params: {dim: int, heads: int}
    inputs: {h: [B, T, dim], context: [B, S, dim]}
    modules:
      attn: Attention(dim, heads=heads)
      mlp: MLP(dim, hidden=4 * dim)
      gate: Linear(dim, 2 * dim)
    graph:
      scale, shift: gate(h).chunk(2, -1)
      a: attn(h * scale + shift, context)
    outputs: a + mlp(a)
modules:
  embed: Linear(4, dim)
  position: Param(1, 1, dim, requires_grad=False)
  layers: layer(**params) * depth
graph:
  h: layers(embed(x) + position, context)
outputs: h.mean(1)
"""


@pytest.fixture
def decoder(write: Callable[..., Path]) -> str:
    return str(write(DECODER))


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run a command as in a terminal of so many columns: exit status, output, errors."""

    def shell(*arguments: str, columns: int = 120) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        status = main(arguments)
        return status, *capsys.readouterr()

    return shell


def lines(text: str) -> list[str]:
    """Without the widths of columns."""
    return [" ".join(line.split()) for line in text.splitlines()]


# check


def test_check_shows_every_node_with_its_shape_expression_and_line(shell, decoder: str):
    status, out, err = shell("check", decoder)
    assert (status, err) == (0, "")
    assert lines(out) == [
        decoder,
        "x [B, T, 4] input 5",
        "context [B, S, 8] input 6",
        "h [B, T, 8] layers(embed(x) + position, context) 24",
        "outputs [B, 8] h.mean(1) 25",
        "",
        "layers.0-2 layer(dim=8, heads=2)",
        "h [B, T, 8] input 10",
        "context [B, S, 8] input 10",
        "scale, shift [B, T, 8] gate(h).chunk(2, -1) 16",
        "a [B, T, 8] attn(h * scale + shift, context) 17",
        "outputs [B, T, 8] a + mlp(a) 18",
        "",
        "3,000 parameters, 11.7 KiB: no problems",
    ]


@pytest.mark.parametrize("columns", [66, 80, 200])
def test_a_table_fits_its_terminal(shell, decoder: str, columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(decoder).parent)  # a long path would be cut
    for command in (["check", "model.yaml"], ["summary", "model.yaml", "--size", "T=5", "S=7"]):
        _, out, _ = shell(*command, columns=columns)
        widest = max(len(line) for line in out.splitlines()[1:])
        assert 40 < widest <= columns
        assert ("..." in out) == (columns == 66)


def test_check_says_every_problem_of_every_file(shell, write: Callable[..., Path], decoder: str):
    wrong = str(write("inputs: {x: [B, 4]}\ngraph: {h: reluu(x)}\noutputs: hh + 1\n", "wrong.yaml"))
    missing = str(Path(decoder).parent / "missing.yaml")
    status, out, err = shell("check", wrong, missing, decoder)
    assert status == 1
    assert lines(out) == [f"{decoder} 3,000 parameters, 11.7 KiB: no problems"]
    assert all(part in err for part in (f"{wrong}:3:12", "'reluu'", f"{wrong}:4:10", "'hh'", "there is no such file"))


def test_a_quiet_check_speaks_only_of_problems(shell, decoder: str):
    assert shell("check", "-q", decoder) == (0, "", "")
    status, out, err = shell("check", "-q", decoder, "--set", "params.heads=3")
    assert (status, out) == (1, "")
    assert "heads" in err


def test_check_goes_as_far_as_the_compiler(shell, write: Callable[..., Path]):
    path = write("inputs: {x: [B, 4]}\nmodules: {all: {one: 'Linear(4, 4)'}}\noutputs: all(x) + all.one(x)\n")
    status, _, err = shell("check", str(path))
    assert status == 1
    assert "'all' only holds modules" in err


def test_a_type_that_needs_data_to_be_built_is_no_problem(shell, write: Callable[..., Path]):
    @register("ScaledByData")
    class ScaledByData(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.linspace(0, 1, 3)[1].item()  # not on the meta device
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x * self.weight * self.scale

    path = str(write("inputs: {x: [B, 4]}\nmodules: {f: ScaledByData()}\noutputs: f(x)\n"))
    assert "4 parameters" in shell("check", path)[1]
    assert "f ScaledByData [B, 4] 4" in lines(shell("summary", path)[1])


def test_uses_of_a_block_with_other_shapes_stand_apart(shell, write: Callable[..., Path]):
    path = write("""
        inputs: {x: [B, 4, 8]}
        blocks:
          twice:
            inputs: {y: [..., 8]}
            outputs: y + y
          act:
            inputs: {y: [..., D]}
            modules: {norm: LayerNorm(_)}
            outputs: norm(y)
        modules: {a: act(), b: act() * 3}
        graph: {low: "a(twice(twice(x)[:, 0]))"}
        outputs: b(x) + low[:, None]
    """)
    _, out, _ = shell("check", str(path))
    sections = [text.splitlines() for text in out.split("\n\n")[1:-1]]
    assert [[title, *lines("\n".join(rows))] for title, *rows in sections] == [
        ["twice, called by the model", "y [B, 4, 8] input 6", "outputs [B, 4, 8] y + y 7"],
        ["twice, called by the model", "y [B, 8] input 6", "outputs [B, 8] y + y 7"],
        ["a  act()", "y [B, 8] input 9", "outputs [B, 8] norm(y) 11"],
        ["b.0-2  act()", "y [B, 4, 8] input 9", "outputs [B, 4, 8] norm(y) 11"],
    ]


def test_rows_from_other_files_say_so(shell, write: Callable[..., Path]):
    write("inputs: {x: [B, 4]}\ngraph: {h: relu(x)}\noutputs: h\n", "base.yaml")
    write("inputs: {x: [B, 4]}\nmodules: {f: 'Linear(4, 4)'}\noutputs: f(x)\n", "part.yaml")
    path = write("""
        defaults: [base.yaml]
        blocks: {part: part.yaml}
        modules: {p: part()}
        graph: {k: tanh(h)}
        outputs: p(k)
    """)
    _, out, _ = shell("check", str(path), "--set", "graph.k=sin(h)", columns=300)
    assert {"x [B, 4] input base.yaml:2", "k [B, 4] sin(h) 6", "outputs [B, 4] p(k) 7"} <= {*lines(out)}
    assert f"p part() in {path.parent / 'part.yaml'}" in lines(out)


def test_a_file_imports_only_what_the_command_allows(
    shell, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = "from torch import nn\nfrom model_constructor import register\n@register('OfMine')\nclass OfMine(nn.Tanh): ...\n"
    (tmp_path / "types_of_mine.py").write_text(code)
    path = str(write("imports: [types_of_mine]\ninputs: {x: [B]}\nmodules: {f: OfMine()}\noutputs: f(x)\n"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    status, _, err = shell("check", path)
    assert status == 1
    assert "not allowed" in err
    assert shell("check", "-q", path, "--allow-import", "types_of_mine") == (0, "", "")


def test_warnings_of_older_files_are_one_line_each(shell, tmp_path: Path):
    path = tmp_path / "old.yaml"
    path.write_text(
        "schema_version: 1\nmodel:\n  graph:\n    inputs: [x]\n    modules: {a: {_type_: nn.Tanh}, b: {_type_: nn.ReLU}}\n"
        "    nodes: [{name: y, call: 'module:a', args: [$x]}]\n    outputs: [y]\n"
    )
    status, _, err = shell("check", "-q", str(path))
    assert status == 0
    assert err.startswith(f"warning: {path}:5:")
    assert "'b'" in err
    assert "UserWarning" not in err


# summary


def test_summary_shows_the_modules_as_authored_and_equal_neighbours_once(shell, decoder: str):
    status, out, err = shell("summary", decoder, "--size", "T=5", "S=7")
    assert (status, err) == (0, "")
    # By hand, for 5 queries and 7 keys of width 8. Attention: four products with 8 x 8 and two with 5 x 7. MLP: 8 x 32 twice.
    attention = 8 * 8 * (5 + 7 + 7 + 5) + 2 * 5 * 7 * 8
    layer = attention + 5 * 2 * 8 * 32 + 5 * 8 * 16
    assert (attention, layer) == (2096, 5296)
    assert lines(out) == [
        "module output parameters trainable multiply-adds",
        "model.yaml [B, 8] 3.00k 2.99k 16.0k",
        "embed Linear [B, 5, 8] 40 40 160",
        "position Param [1, 1, 8] 8 0",
        "layers ModuleList 2.95k 2.95k 15.9k",
        "0-2 3 x layer [B, 5, 8] 984 984 5.30k",
        "attn Attention [B, 5, 8] 288 288 2.10k",
        "mlp MLP [B, 5, 8] 552 552 2.56k",
        "gate Linear [B, 5, 16] 144 144 640",
        "",
        "3,000 parameters, 2,992 of them trainable",
        f"{5 * 4 * 8 + 3 * layer:,} multiply-adds for B=1, T=5, S=7",
    ]


def test_without_sizes_the_shapes_are_in_symbols_and_nothing_is_counted(shell, decoder: str):
    status, out, _ = shell("summary", decoder)
    assert status == 0
    assert lines(out)[0] == "module output parameters trainable"
    assert "gate Linear [B, T, 16] 144 144" in lines(out)
    assert lines(out)[-1] == "multiply-adds are not counted: give a size: --size T=... S=..."


def test_depth_cuts_the_tree_and_opens_types(shell, decoder: str):
    names = [line.split()[0] for line in shell("summary", decoder, "--depth", "1")[1].splitlines()[1:-3]]
    assert names == ["model.yaml", "embed", "position", "layers"]
    deep = lines(shell("summary", decoder, "--depth", "9")[1])
    of_types = build_model(decoder).layers[0].mlp.named_children()
    for name, module in of_types:
        count = sum(p.numel() for p in module.parameters())
        assert any(line.startswith(f"{name} {type(module).__name__}") and str(count or "") in line for line in deep)


class Handwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.shared = nn.Linear(8, 8)

    def forward(self, image, tokens):
        h = self.up(self.conv(image)).flatten(2)  # [B, 4, 64]
        a = self.shared(self.encoder(self.shared(self.attn(tokens, tokens, tokens)[0])))
        return h @ h.transpose(1, 2), a


HANDWRITTEN = """
inputs: {image: [B, 4, H, W], tokens: [B, T, 8]}
modules:
  conv: Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
  up: ConvTranspose2d(6, 4, 2, stride=2)
  attn: MultiheadAttention(8, 2, batch_first=True)
  encoder: TransformerEncoderLayer(8, 2, 16, batch_first=True)
  shared: Linear(8, 8)
graph:
  h: up(conv(image)).flatten(2)
  a, _: attn(tokens, tokens, tokens)
outputs:
  - h @ h.transpose(1, 2)
  - shared(encoder(shared(a)))
"""


def test_multiply_adds_are_half_the_flops_of_the_module_written_by_hand(write: Callable[..., Path]):
    by_hand = Handwritten()  # in training mode: torch then takes no kernel that is not counted
    with FlopCounterMode(display=False) as counter:
        by_hand(torch.zeros(2, 4, 8, 8), torch.zeros(2, 5, 8))
    model = built(write(HANDWRITTEN))
    measured = measure(model, {"B": 2, "H": 8, "W": 8, "T": 5})
    assert measured.multiply_adds[model] == counter.get_total_flops() // 2
    for name in ("conv", "up", "attn", "encoder", "shared"):
        flops = sum(counter.get_flop_counts()[f"Handwritten.{name}"].values())
        assert measured.multiply_adds[model.get_submodule(name)] == flops // 2
    assert measured.multiply_adds[model.conv] == 2 * 16 * 6 * (4 // 2) * 9  # B * out * channels * taps
    assert measured.multiply_adds[model.shared] == 2 * (2 * 5 * 8 * 8)  # called twice


def built(path: Path):
    return build_without_memory(str(path), SimpleNamespace(overrides=[], allow_import=[]))  # pyrefly: ignore


def test_the_shapes_of_modules_are_those_of_a_run_with_data(write: Callable[..., Path]):
    model = built(write(HANDWRITTEN))
    shapes = {name: measure(model, {}).shapes[module] for name, module in model.named_children()}
    seen: dict[str, object] = {}
    by_hand = Handwritten()
    for name, module in by_hand.named_children():
        module.register_forward_hook(lambda _, args, output, name=name: seen.update({name: output}))
    by_hand(torch.zeros(2, 4, 8, 16), torch.zeros(2, 5, 8))
    values = {"B": 2, "H": 8, "W": 16, "T": 5}
    assert shapes["conv"] == "[B, 6, (H + 1)//2, (W + 1)//2]"
    for name, text in shapes.items():
        output = seen[name]
        sizes = tuple(list(t.shape) for t in output) if isinstance(output, tuple) else list(output.shape)  # pyrefly: ignore
        assert eval(text, {}, values) == sizes


def test_a_size_that_is_halved_often_is_still_told_in_symbols(shell, write: Callable[..., Path]):
    down = "Conv2d(3, 3, 3, stride=2, padding=1)"
    path = write(f"inputs: {{x: [B, 3, H, H]}}\nmodules: {{f: {' >> '.join([down] * 5)!r}}}\noutputs: f(x)\n")
    assert "4 Conv2d [B, 3, (H + 31)//32, (H + 31)//32] 84" in lines(shell("summary", str(path))[1])


def test_a_model_with_an_input_of_any_kind_is_not_run(shell, write: Callable[..., Path]):
    path = write("""
        inputs: {features: any, x: [B, 4]}
        blocks:
          head: {inputs: {y: [B, 4]}, modules: {f: 'Linear(4, 2)'}, outputs: f(y)}
        modules: {heads: head() * 2}
        outputs: [heads.map(x), "features['a']"]
    """)
    status, out, _ = shell("summary", str(path))
    assert status == 0
    assert "0-1 2 x head [B, 2] 10" in lines(out)
    assert lines(out)[-1] == (
        "multiply-adds are not counted: the input 'features' is any: nothing is known to run the model with"
    )


def test_an_input_without_a_dtype_may_hold_indices(shell, write: Callable[..., Path]):
    path = write(
        "inputs: {x: [B, 3], tokens: [B, 5]}\nmodules: {e: 'Embedding(9, 3)'}\noutputs: e(tokens) @ x[:, :, None]\n"
    )
    _, out, _ = shell("summary", str(path))
    assert "e Embedding [B, 5, 3] 27" in lines(out)
    assert lines(out)[-1] == "15 multiply-adds for B=1"


def test_a_model_that_needs_data_to_run_says_why_it_is_not_counted(shell, write: Callable[..., Path]):
    path = write("inputs: {x: [B, 4]}\nmodules: {f: 'Linear(4, 2)'}\noutputs: f(x)[nonzero(x[:, 0])]\n")
    status, out, _ = shell("summary", str(path))
    assert status == 0
    assert "f Linear 10" in lines(out)
    assert "the model does not run without data: " in lines(out)[-1]


def test_a_size_of_no_symbol_is_an_error_with_the_nearest(shell, decoder: str):
    status, out, err = shell("summary", decoder, "--size", "t=5")
    assert (status, out) == (1, "")
    assert "did you mean 'T'" in err


# why


def test_why_shows_each_place_and_the_one_that_won(shell, write: Callable[..., Path]):
    write("params: {dim: 512}\n", "base.yaml")
    path = write("defaults: [base.yaml]\nparams: {dim: 256}\ninputs: {x: [B, dim]}\noutputs: x\n")
    status, out, _ = shell("why", str(path), "params.dim", "--set", "params.dim=64", columns=200)
    assert status == 0
    assert lines(out) == [
        f"{path.parent / 'base.yaml'}:2:15 512",
        f"{path}:3:15 256",
        "--set params.dim=64 64 <- this one",
    ]


def test_why_shows_what_was_computed_and_what_was_removed(shell, write: Callable[..., Path]):
    path = write("params: {dim: 4, wide: '${2 * dim}'}\ninputs: {x: [B]}\ngraph: {h: 'where(x, 1, 2)'}\noutputs: x\n")
    assert lines(shell("why", str(path), "params.wide", "--set", "params.dim=5", columns=200)[1]) == [
        f"{path}:2:24 ${{2 * dim}}",
        f"{path}:2:24 10 (computed) <- this one",
    ]
    assert lines(shell("why", str(path), "graph.h", "--set", "graph.h=null", columns=200)[1]) == [
        f"{path}:4:12 where(x, 1, 2)",
        "--set graph.h=null removed <- this one",
    ]


def test_why_reads_train_configs_too(shell, tmp_path: Path):
    path = tmp_path / "train.yaml"
    path.write_text("data: {batch: 8, steps: '${2 * data.batch}', none: null}\n")
    assert lines(shell("why", str(path), "data.steps", columns=200)[1])[-1] == f"{path}:1:25 16 (computed) <- this one"
    assert lines(shell("why", str(path), "data.none", columns=200)[1]) == [f"{path}:1:52 null <- this one"]


def test_why_names_the_nearest_path(shell, decoder: str):
    status, out, err = shell("why", decoder, "params.dims")
    assert (status, out) == (1, "")
    assert "did you mean 'dim'" in err


# the command line


def test_without_a_command_the_commands_are_listed(shell):
    status, out, _ = shell()
    assert status == 0
    names = [line.split()[0] for line in out.splitlines() if line.startswith("    ") and line[4] != " "]
    assert names == "new check summary why show diff load import eject migrate schema".split()


@pytest.mark.parametrize(
    "arguments", [["check"], ["chek"], ["summary", "x.yaml", "--size", "T"], ["summary", "x.yaml", "--depth", "-1"]]
)
def test_wrong_arguments_exit_with_2(shell, arguments: list[str]):
    with pytest.raises(SystemExit) as caught:
        shell(*arguments)
    assert caught.value.code == 2


def test_the_command_is_installed_under_its_name():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["model-constructor"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


@pytest.mark.slow
def test_the_module_runs_and_a_reader_that_leaves_is_no_error(decoder: str):
    command = [sys.executable, "-m", "model_constructor", "check", decoder]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 1


# tables


def test_numbers_have_three_digits():
    assert [short(n) for n in (0, 999, 1000, 12_345, 99_960, 999_400, 999_999, 41_017_368, 3_280_000_000, 5 * 10**13)] == [
        "0", "999", "1.00k", "12.3k", "100k", "999k", "1.00M", "41.0M", "3.28G", "50.0T",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (["norm"], "norm"),
        (["layers.0", "layers.1", "layers.2"], "layers.0-2"),
        (["a.0.mlp", "a.1.mlp", "b"], "a.0-1.mlp, b"),
        (["x.0.1", "x.0.2", "x.1.1", "x.1.2"], "x.0-1.1-2"),
        (["layers.0", "layers.2"], "layers.0 and 1 more"),
        (["conv2d.0", "h1"], "conv2d.0, h1"),
    ],
)
def test_paths_are_folded_where_their_numbers_have_no_gaps(paths: list[str], text: str):
    assert folded(paths) == text


def test_a_cut_cell_keeps_its_beginning_and_the_widest_column_gives_way(monkeypatch: pytest.MonkeyPatch):
    assert [cut("abcdefgh", width) for width in (8, 7, 2, 0)] == ["abcdefgh", "abcd...", "..", "abcdefgh"]
    rows = [["short", "a very long expression indeed", "12"], ["s", "x", "7"]]
    monkeypatch.setenv("COLUMNS", "30")
    assert table(rows, right=(2,)).splitlines() == ["short  a very long expr...  12", "s      x                     7"]
    monkeypatch.setenv("COLUMNS", "0")
    assert rows[0][1] in table(rows)
