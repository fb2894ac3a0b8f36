"""Importing a module: what file comes out, and that it is the module; against torch and timm themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model_constructor import ConfigError, build_model
from model_constructor.expressions import evaluate, parse
from model_constructor.importing import Imported, import_module
from model_constructor.importing.constructors import constructor_call
from model_constructor.importing.entries import by_index
from model_constructor.source import read_text
from model_constructor.tools.cli import main

ZOO = Path(__file__).parents[2] / "experiment_models" / "zoo"


def imported(module: nn.Module, inputs: dict[str, Any], sizes: dict[str, int] | None = None) -> Imported:
    """The result of an import, compared with the module here once more, for sizes that the import did not try."""
    result = import_module(module, inputs, sizes)
    module = module.eval()
    result.model.load_state_dict(module.state_dict())
    shapes = {name: declared["shape"] if isinstance(declared, dict) else declared for name, declared in inputs.items()}
    values = {
        name: torch.randn([(sizes or {}).get(s, 5) if isinstance(s, str) else s for s in shape])
        for name, shape in shapes.items()
    }
    for name, declared in inputs.items():
        if isinstance(declared, dict):
            values[name] = (values[name] > 0).to(getattr(torch, declared["dtype"]))
    with torch.no_grad():
        torch.testing.assert_close(result.model.eval()(*values.values()), module(**values), rtol=0, atol=0)
    return result


def body(text: str) -> str:
    """A file without its first comment and blank lines."""
    return "\n".join(line for line in text.splitlines() if line and not line.startswith("#")) + "\n"


def refused(module: nn.Module, inputs: dict[str, Any] | None = None, **sizes: int) -> str:
    with pytest.raises(ConfigError) as caught:
        import_module(module, inputs or {"x": ["B", 8]}, sizes)
    return str(caught.value)


class Of(nn.Module):
    """A module of named parts and a forward."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part, persistent=False)
            else:
                setattr(self, name, part)
        self.does = forward

    def forward(self, x: Tensor) -> Any:
        return self.does(self, x)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / (D // self.heads) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), mask))
        return x + self.drop(self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    def __init__(self, dim: int = 8, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, dim)
        self.position = nn.Parameter(torch.randn(1, 16, dim))
        self.layers = nn.ModuleList([Layer(dim, 2) for _ in range(depth)])

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position[:, : tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(channels, out, 1, stride=stride) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm(self.conv(x))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(residual + shortcut, inplace=True)


# the file


def test_a_transformer_reads_as_one_would_write_it():
    result = imported(
        Encoder(),
        {"tokens": {"shape": ["B", "T"], "dtype": "int64"}, "mask": {"shape": ["B", "T"], "dtype": "bool"}},
        {"T": 6},
    )
    assert body(result.text) == textwrap.dedent("""\
        schema_version: 2
        inputs:
          tokens: {shape: [B, T], dtype: int64}
          mask: {shape: [B, T], dtype: bool}
        blocks:
          attention:                                # test_import_module.Attention
            inputs:
              x: [B, T, 8]
              mask: {shape: [B, T], dtype: bool}
            modules:
              qkv: Linear(8, 24)
              out: Linear(8, 8)
            graph:
              q, k, v: qkv(x).view(B, T, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
              scores: (q @ k.transpose(-2, -1) / 2.0).masked_fill(~mask[:, None, None], -inf)
            outputs: out((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, 8))
          layer:                                    # test_import_module.Layer
            inputs:
              x: [B, T, 8]
              mask: {shape: [B, T], dtype: bool}
            modules:
              norm1: LayerNorm(8)
              attn: attention()
              norm2: LayerNorm(8)
              mlp: Linear(8, 32) >> GELU() >> Linear(32, 8)
            graph:
              x1: x + dropout(attn(norm1(x), mask), 0.1)
            outputs: x1 + dropout(mlp(norm2(x1)), 0.1)
        modules:
          position: Param(1, 16, 8)
          embed: Embedding(11, 8)
          layers: layer() * 3
        outputs: layers(embed(tokens) + position[:, :T], mask)
    """).replace("test_import_module.", f"{__name__}.")
    assert result.in_training == 0, "the dropouts draw in the order of the module"


def test_blocks_that_differ_in_numbers_and_in_a_module_are_one_with_params():
    stages = nn.Sequential(Residual(3, 8, 1), Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 16, 1))
    result = imported(Of(lambda self, x: self.stages(x), stages=stages), {"x": ["B", 3, 8, 8]})
    assert body(result.text) == textwrap.dedent("""\
        schema_version: 2
        inputs:
          x: [B, 3, 8, 8]
        blocks:
          residual:                                 # test_import_module.Residual
            params: {channels: int, stride: 1, has_shortcut: false}
            inputs:
              x: [B, C, H, W]
            modules:
              conv: Conv2d(_, channels, 3, stride=stride, padding=1, bias=False)
              norm: BatchNorm2d(channels)
              shortcut: Conv2d(_, channels, 1, stride=stride)
            graph:
              shortcut1: shortcut(x) if has_shortcut else x
            outputs: relu(norm(conv(x)) + shortcut1)
        modules:
          stages: >-
            residual(channels=8, has_shortcut=True)
            >> residual(channels=8)
            >> residual(channels=16, stride=2, has_shortcut=True)
            >> residual(channels=16)
        outputs: stages(x)
    """).replace("test_import_module.", f"{__name__}.")


def test_a_perceptron_of_torch_alone_is_a_chain_under_a_name_that_is_said():
    result = import_module(
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)), {"x": ["B", 8]}
    )
    assert "layers: Linear(8, 16) >> ReLU() >> Dropout(0.2) >> Linear(16, 3)\n" in result.text
    assert "# The state dict has 'layers.' before the names" in result.text


def test_the_names_of_the_file_are_those_of_the_author():
    def forward(self: Any, x: Tensor) -> dict[str, Tensor]:
        mean, spread = self.both(x).chunk(2, -1)
        spread = spread.exp()
        latent = mean + spread * torch.tanh(mean * spread)
        return {"latent": latent, "decoded": self.decoder["fine"](latent) + self.decoder["coarse"](latent)}

    decoder = nn.ModuleDict({"fine": nn.Linear(4, 2), "coarse": nn.Linear(4, 2)})
    text = imported(Of(forward, both=nn.Linear(8, 8), decoder=decoder), {"x": ["B", 8]}).text
    assert body(text).partition("modules:")[2] == textwrap.dedent("""
          both: Linear(8, 8)
          decoder:
            fine: Linear(4, 2)
            coarse: Linear(4, 2)
        graph:
          mean, spread: both(x).chunk(2, -1)
          spread1: spread.exp()
          latent: mean + spread1 * tanh(mean * spread1)
        outputs:
          latent: latent
          decoded: decoder.fine(latent) + decoder.coarse(latent)
    """).replace("\n  ", "\n  ")


def test_an_input_that_is_called_like_a_module_gets_another_name():
    inner = Of(lambda self, x: self.x(x).relu(), x=nn.Linear(8, 8))
    result = imported(Of(lambda self, x: self.inner(x) + self.x(x), x=nn.Linear(8, 8), inner=inner), {"x": ["B", 8]})
    assert result.model.inputs == ("x_in",) and "outputs: inner(x_in) + x(x_in)" in result.text


# that it is the module

IN_PLACE = {
    "an addition": lambda self, x: self.f(x).add_(1).mul_(x),
    "a residual that the activation changed": lambda self, x: (lambda h: nn.ReLU(inplace=True)(h) + self.f(h))(x * 1),
    "an augmented assignment": lambda self, x: _added(self.f(x), x),
    "fill": lambda self, x: self.f(x).masked_fill_(x > 0, 0.5),
}


def _added(y: Tensor, x: Tensor) -> Tensor:
    y += x
    y -= 2 * x
    return y


@pytest.mark.parametrize("what", IN_PLACE)
def test_steps_in_place_have_the_same_effect(what: str):
    imported(Of(IN_PLACE[what], f=nn.Linear(8, 8)), {"x": ["B", 8]})


STEPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "reflected operators": lambda self, x: 2 - self.f(x) / (1 + x**2) + 2**x % 3 - (3 // (x + 9)),
    "slices": lambda self, x: self.f(x)[..., 1:-1:2] + x[:, [0, 1, 2]] - x[:, None, :3].squeeze(1),
    "sizes": lambda self, x: self.f(x).reshape(x.shape[0] * 2, -1).expand(2 * len(x.shape), -1, -1).sum(0),
    "pieces": lambda self, x: torch.cat([part.mean(-1, keepdim=True) for part in self.f(x).split([2, 6], 1)], -1),
    "two outputs of which one is used": lambda self, x: self.f(x).max(-1)[0] + self.f(x).topk(2, -1).values[:, 1],
    "a list": lambda self, x: [self.f(x), x + 1],
    "a constant": lambda self, x: torch.where(self.f(x) > 0, x, torch.zeros_like(x)) * torch.arange(8) / x.new_ones(8),
    "einops": lambda self, x: rearrange(self.f(x), "b (h d) -> h b d", h=2),
    "einsum": lambda self, x: torch.einsum("bd,bd->b", self.f(x), x),
    "one module twice": lambda self, x: self.f(self.f(x).relu()),
    "a weight by its path": lambda self, x: F.linear(self.f(x), self.f.weight, self.f.bias * 2),
    "a functional form": lambda self, x: F.layer_norm(F.gelu(self.f(x), approximate="tanh"), (8,)),
}  # fmt: skip


@pytest.mark.parametrize("what", STEPS)
def test_what_a_forward_does_is_written_down(what: str):
    imported(Of(STEPS[what], f=nn.Linear(8, 8)), {"x": ["B", 8]})


def test_buffers_that_are_in_no_state_dict_keep_their_values():
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.f(x).masked_fill(~self.causal, 0) @ self.table.T[:, :3] + self.bias + self.grid[0]

    parts = {
        "causal": torch.ones(8, 8, dtype=torch.bool).tril(), "table": torch.randn(6, 8),
        "bias": torch.full((8, 3), -0.3), "grid": torch.arange(3.0)[None],
    }  # fmt: skip
    text = imported(Of(forward, f=nn.Linear(8, 8), **parts), {"x": [8, 8]}).text
    for written in ("ones(8, 8, dtype=bool).tril()", "full((8, 3), -0.3)", "arange(3, dtype=float32)[None, :]"):
        assert written in text


def test_layers_whose_results_are_all_used_are_scanned():
    def forward(self: Any, x: Tensor) -> Tensor:
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return torch.stack(found).sum(0)

    layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)])
    text = imported(Of(forward, layers=layers), {"x": ["B", 8]}).text
    assert "layers: Linear(8, 8) * 3" in text and "layers.scan(x)" in text


def test_a_list_whose_results_are_read_between_its_calls_runs_once():
    def forward(self: Any, x: Tensor) -> Tensor:
        found = []
        for layer in self.layers:
            x = layer(x)
            y = self.head(x)
            found.append(y + y.mean())
        return torch.stack(found).sum(0)

    layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)])
    text = imported(Of(forward, layers=layers, head=nn.Linear(8, 2)), {"x": ["B", 8]}).text
    assert text.count("layers.scan(x)") == 1


def test_numbers_that_are_none_in_both_are_no_difference():
    module = Of(lambda self, x: torch.log(self.f(x)), f=nn.Linear(8, 8))
    assert module(torch.randn(64, 8)).isnan().any()
    assert import_module(module, {"x": ["B", 8]}).difference == 0


def test_torchs_own_attention_is_called_as_it_was():
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.attn(x, x, x, attn_mask=None, need_weights=False)[0]

    module = Of(forward, attn=nn.MultiheadAttention(8, 2, batch_first=True))
    assert "outputs: attn(x, x, x, need_weights=False)[0]\n" in imported(module, {"x": ["B", "T", 8]}, {"T": 4}).text


def test_a_class_derived_from_one_of_torch_is_that_and_what_it_adds():
    class NormAct(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.num_batches_tracked.add_(1)
            x = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
            )
            return F.silu(x)

    result = imported(Of(lambda self, x: self.norm(self.f(x)), f=nn.Linear(8, 8), norm=NormAct(8)), {"x": ["B", 8]})
    assert "norm: BatchNorm1d(8)" in result.text and "outputs: silu(norm(f(x)))" in result.text
    assert result.in_training == 0


def test_the_module_is_left_as_it_is():
    module = Residual(3, 8, 1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    import_module(module, {"x": ["B", 3, 8, 8]})
    assert module.training
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def _dropped(self: Any, x: Tensor) -> Tensor:
    q, k, v = self.qkv(x)[:, None].chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if self.training else 0.0)[:, 0]


def test_a_number_that_is_another_one_in_training_is_written_with_both():
    result = imported(Of(_dropped, qkv=nn.Linear(8, 24)), {"x": ["B", 6, 8]})
    assert "dropout_p=0.5 if training else 0.0" in result.text
    assert result.in_training == 0


def test_what_training_does_besides_is_said_in_the_file_and_by_the_comparison():
    module = Of(
        lambda self, x: self.f(x) * (2 if self.training else 1) if self.training else self.f(x), f=nn.Linear(8, 8)
    )
    result = imported(module, {"x": ["B", 8]})
    assert "# This is what it does in eval mode; in training other steps are taken in Of." in result.text
    assert result.in_training is not None and result.in_training > 0.1


# timm


def test_a_resnet_of_timm_is_the_file_of_the_zoo():
    result = imported(timm.create_model("resnet18"), {"x": ["B", 3, 32, 32]})
    zoo = build_model(ZOO / "resnet18.yaml").eval()
    zoo.load_state_dict(result.model.state_dict())
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(result.model.eval()(image), zoo(image), rtol=1e-5, atol=1e-5)
    assert result.in_training == 0
    assert len(body(result.text).splitlines()) <= len(body((ZOO / "resnet18.yaml").read_text()).splitlines())


def test_a_vision_transformer_of_timm_is_one_layer_many_times():
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=4, num_classes=5)
    result = imported(module, {"x": ["B", 3, 32, 32]})
    assert "  blocks: block() * 4\n" in result.text
    assert len(body(result.text).splitlines()) < 50
    assert result.in_training == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet50", "densenet121", "efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto", "regnetx_002"]
)
def test_other_networks_of_timm_are_written_down(name: str):
    result = imported(timm.create_model(name), {"x": ["B", 3, 64, 64]})
    assert result.in_training == 0


# constructors

BUILT = [
    "Conv2d(3, 8, 7, stride=2, padding=3, bias=False)", "Conv1d(4, 4, 3, padding='same', groups=2)", "Linear(3, 4)",
    "ConvTranspose1d(3, 4, 3, stride=2)", "LayerNorm(8, eps=0.001)", "LayerNorm((2, 3), elementwise_affine=False)",
    "BatchNorm2d(8, momentum=0.2)", "GroupNorm(2, 8)", "RMSNorm(8)", "Embedding(10, 4, padding_idx=1)", "PReLU()",
    "MultiheadAttention(8, 2, dropout=0.1, batch_first=True)", "LSTM(3, 4, num_layers=2, bidirectional=True)",
    "GRU(3, 4)", "MaxPool2d(3, stride=2)", "AdaptiveAvgPool2d((1, 2))", "Dropout(0.1)", "GELU(approximate='tanh')".replace("approximate=", ""),
    "Softmax(1)", "Flatten()", "Upsample(scale_factor=2.0)", "LeakyReLU(0.2)", "Identity()",
]  # fmt: skip


@pytest.mark.parametrize("text", BUILT)
def test_a_constructor_is_recovered_from_what_it_built(text: str):
    import ast

    call = constructor_call(eval(text, vars(nn)))
    assert call is not None and ast.unparse(call) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((True, False, False), "index == 0"),
        ((False, True, True), "index > 0"),
        ((False, True, False, True), "index % 2 == 1"),
        ((False, False, True), "index == 2"),
        ((2, 1, 1), "2 if index == 0 else 1"),
        ((8, 16, 32), "8 * 2 ** index"),
        ((3, 5, 7), "3 + 2 * index"),
        ((1, 2, 1, 2), "1 if index % 2 == 0 else 2"),
        ((0.0, 0.1, 0.7), "[0.0, 0.1, 0.7][index]"),
        ((True, True, False, True), "[True, True, False, True][index]"),
    ],
)
def test_numbers_of_the_members_of_a_list_are_written_by_index(values: Sequence[Any], text: str):
    import ast

    assert ast.unparse(by_index(tuple(values))) == text
    expression = parse(read_text(f'"{text}"', "text"))
    assert [evaluate(expression, {"index": i}) for i in range(len(values))] == list(values)


# what cannot be written


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.f(x)
        return x if x.sum() > 0 else -x


def _tied() -> nn.Module:
    module = Of(lambda self, x: self.g(self.f(x)), f=nn.Linear(8, 8), g=nn.Linear(8, 8))
    module.g.weight = module.f.weight
    return module


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Branching(), "Branching): the forward reads the value of a tensor (__bool__)"),
        (Of(lambda self, x: self.f(x) * self.g.item() + self.g, f=nn.Linear(8, 8), g=nn.Parameter(torch.ones(()))), "reads the value of a tensor (item)"),
        (Of(lambda self, x: _written(self.f(x)), f=nn.Linear(8, 8)), "writes into a tensor"),
        (Of(lambda self, x: torch.fft.fft(self.f(x)).real, f=nn.Linear(8, 8)), "fft, which is no op of model files"),
        (Of(lambda self, x: self.f(x), f=nn.Linear(8, 8), g=nn.Linear(8, 3)), "nothing in the forward uses 'g' (27 numbers)"),
        (_tied(), "'f.weight' and 'g.weight' are one tensor"),
        (Of(lambda self, x: self.f(x) + OUTSIDE, f=nn.Linear(8, 8)), "no parameter, no buffer and no argument"),
        (Of(lambda self, x: self.f(x) @ self.big, f=nn.Linear(8, 8), big=torch.randn(8, 100)), "'big', which is in no state dict"),
        (Of(lambda self, x: self.f(x) * float(x.shape[0]), f=nn.Linear(8, 8)), "2.0 and 3.0 for inputs of different sizes"),
        (Of(lambda self, x: (self.f(x), float(x.shape[0])), f=nn.Linear(8, 8)), "a number that is returned was 2.0 and 3.0"),
        (Of(lambda self, x: torch.stack([self.f(x) for _ in x]).sum(0), f=nn.Linear(8, 8)), "does different things in different calls"),
        (Of(lambda self, x: self.f(x.view(2, 8)), f=nn.Linear(8, 8)), "does not run with other sizes"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_say_is_told(module: nn.Module, said: str):
    assert said in refused(module)


OUTSIDE = torch.randn(8)


def _written(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"y": ["B", 8]}, "has no argument 'y'"),
        ({"x": ["B", "T", 8]}, "how large is 'T'"),
        ({"x": ["B", "2 * T"]}, "a list of numbers and symbols"),
        ({"x": {"shape": ["B", 8], "dtype": "int63"}}, "no dtype is called 'int63'"),
        ({}, "the forward needs 'x'"),
    ],
)
def test_inputs_that_do_not_fit_the_forward_are_told(inputs: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(").replace("*", r"\*")):
        import_module(Branching(), inputs)


def test_a_failure_of_the_module_itself_stays_what_it_is_with_a_note():
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        import_module(Branching(), {"x": ["B", 9]})
    assert caught.value.__notes__ == ["while the module was run in eval mode with x [2, 9]"]


def test_inputs_may_be_declared_in_any_order():
    inputs = {"mask": {"shape": ["B", 5], "dtype": "bool"}, "tokens": {"shape": ["B", 5], "dtype": "int64"}}
    assert import_module(Encoder(), inputs).model.inputs == ("tokens", "mask")


def test_a_file_that_computes_something_else_is_not_handed_over():
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.f(x)
        h[0].add_(1)  # a view of it changes, and so does h
        return h

    assert "does not compute what the module does: the largest difference is" in refused(Of(forward, f=nn.Linear(8, 8)))


# the command


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_to_import.py").write_text(
        "from torch import nn\n"
        "def net(width, *, out=2):\n"
        "    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, out))\n"
        "def broken():\n    raise OSError('no such weights')\n"
        "BUILT = net(8)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_command_writes_a_file_that_builds(package: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["import", "mine_to_import:net", "--args", "8", "out=3", "--input", "x: [B, 4]"]
    assert main([*command, "-o", "net.yaml"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "net.yaml: 12 lines, 4 tensors of the same names and shapes",
        "in eval mode the outputs are equal",
        "in training mode the outputs are equal",
    ]
    assert main(["check", "-q", "net.yaml"]) == 0
    assert build_model("net.yaml")(torch.zeros(5, 4)).shape == (5, 3)
    assert main([*command, "-o", "net.yaml"]) == 1
    assert "there already" in capsys.readouterr().err
    assert main([*command, "-o", "net.yaml", "--force"]) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out == Path("net.yaml").read_text(), "without -o it goes to the terminal"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["mine_to_import", "--input", "x: [B]"], "is not written PACKAGE:CALLABLE"),
        (["mine_to_import:nett", "--input", "x: [B]"], "did you mean 'net'"),
        (["not_there_at_all:net", "--input", "x: [B]"], "cannot be imported"),
        (["mine_to_import:net", "--args", "8", "--input", "x"], "declared by its name and shape"),
        (["mine_to_import:BUILT", "--args", "4", "--input", "x: [B, 4]"], "is a module already: it takes no --args"),
        (["math:sqrt", "--args", "4", "--input", "x: [B]"], "gives no nn.Module but float"),
    ],
)
def test_a_wrong_command_is_told(package: None, command: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["import", *command]) == 1
    assert said in capsys.readouterr().err


def test_a_failure_of_the_users_own_code_stays_what_it_is(package: None):
    with pytest.raises(OSError, match="no such weights"):
        main(["import", "mine_to_import:broken", "--input", "x: [B]"])
