"""`model-constructor eject` writes a module that needs nothing of this package and is the model, to the last bit."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from model_constructor import GraphModel, build_model
from model_constructor.tools.cli import main
from model_constructor.tools.printer import module_text

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "experiment_models" / "zoo"


@pytest.fixture
def eject(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Eject a model; what it is, the class that was written, built where this package cannot be imported, and its text."""

    def eject(source: str | Path, params: dict[str, Any] | None = None, arguments: tuple[str, ...] = ()) -> Any:
        path = write(source) if isinstance(source, str) else source
        out = tmp_path / "ejected.py"
        settings = [
            f"params.{name}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}"
            for name, value in (params or {}).items()
        ]
        given = [str(path), str(out), "--force", *(["--set", *settings] if settings else []), *arguments]
        assert main(["eject", *given]) == 0
        torch.manual_seed(5)
        allowed = arguments[1:] if arguments[:1] == ("--allow-import",) else ()
        model = build_model(path, params=params, allow_imports=allowed)
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.split(".")[0] == "model_constructor"]:
                patch.setitem(sys.modules, name, None)
            namespace: dict[str, Any] = {"__name__": "ejected"}
            exec(compile(out.read_text(encoding="utf-8"), str(out), "exec"), namespace)
            classes = [kind for kind in namespace.values() if isinstance(kind, type) and kind.__module__ == "ejected"]
            torch.manual_seed(5)
            twin = classes[-1]()
        return SimpleNamespace(model=model, twin=twin, text=out.read_text(encoding="utf-8"), namespace=namespace)

    return eject


def assert_the_same(model: GraphModel, twin: nn.Module, *arguments: Any, **keywords: Any) -> None:
    """The same weights by the same names in the same order, from the same seed; the same outputs in eval and train."""
    ours, theirs = model.state_dict(), twin.state_dict()
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert [(n, p.requires_grad) for n, p in twin.named_parameters()] == [
        (n, p.requires_grad) for n, p in model.named_parameters()
    ]
    assert [name for name, _ in twin.named_buffers()] == [name for name, _ in model.named_buffers()]
    with torch.no_grad():
        for tensor in ours.values():
            if tensor.is_floating_point():
                tensor += 0.02 * torch.randn_like(tensor) if tensor.ndim > 1 else 0.1 * torch.rand_like(tensor)
    twin.load_state_dict(ours, strict=True)
    for training in (False, True):
        torch.manual_seed(1)
        expected = model.train(training)(*arguments, **keywords)
        torch.manual_seed(1)
        assert_equal(twin.train(training)(*arguments, **keywords), expected)


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(other, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(other, dict):
        assert list(one) == list(other)
        assert_equal(list(one.values()), list(other.values()))
    elif isinstance(other, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


X = torch.linspace(-1, 1, 24).view(2, 3, 4)
CASES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "namespaces and lists": (
        """
        inputs: {x: [B, T, 4]}
        modules:
          text_model:
            encoder: {layers: "Linear(4, 4) * 2", scale: "Param(4, init=normal)", bias: "Buffer([1.0])"}
            head: ["Linear(4, 4) >> ReLU()", "Linear(4, 4)"]
          towers: [{left: "Linear(4, 4)", more: ["Linear(4, 4)"]}, {left: "Linear(4, 4)", more: ["Linear(4, 4)"]}]
        graph:
          h: text_model.encoder.layers(x) * text_model.encoder.scale + text_model.encoder.bias
          a: text_model.head(h)
        outputs: "towers[0].left(a) + towers[1].left(a) + towers[0].more(a) + towers[1].more[0](a)"
        """,
        (X,),
    ),
    "threading, scan, map and each": (
        """
        params: {widths: [4, 4, 4]}
        inputs: {x: [B, T, 4], clock: [B, 4]}
        blocks:
          pair:
            params: {first: 1.0}
            inputs: {a: [B, T, 4], b: [B, T, 4], clock: [B, 4], extra: {shape: [B, T, 4], optional: true}}
            modules: {fc: "Linear(4, 4)"}
            graph: {c: "fc(a) * first + clock[:, None]"}
            outputs: [c, b + 1 if extra is None else b + extra]
        modules:
          pairs: pair(first=index / 2) * len(widths)
          downs: Linear(4, widths[index]) * 3
          ups: pair() * 2
          none: Linear(4, 4) * 0
          experts: Linear(4, 4) * 2
        graph:
          a, b: pairs(x, x, clock)
          skips: downs.scan(none(a))
          c, _: ups(b, a, clock, extra=each(skips[:0:-1]))
          many: experts.map(c)
          each_one: experts.map(each([a, b]))
        outputs: {c: c, many: many, each: "stack(each_one)"}
        """,
        (X, X[:, 0]),
    ),
    "conditionals, optional inputs and training": (
        """
        params: {side: left, deep: true, norm_first: false, depth: 2}
        inputs: {x: [B, T, 4], mask: {shape: [B, T], dtype: bool, optional: true}, scale: {shape: [T], optional: true}}
        modules:
          towers: {left: "Linear(4, 4)", right: "Linear(4, 8)"}
          heads: Linear(4, 4) * depth
          norm: LayerNorm(4) if norm_first else Identity()
          act: "{'relu': ReLU(), 'left': GELU()}[side]"
          unused: Linear(4, 4)
          noisy: Linear(4, 4)
        graph:
          y: norm(towers[side](x)) if deep else unused(x)
          masked: y if mask is None else y.masked_fill(~mask[..., None], 0)
          noise: noisy(masked) if training and deep else None
          z: heads[depth - 1](act(masked)) if noise is None else act(noise + heads[0](masked)) + heads[1](y)
        outputs: dropout(z, 0.5) * (scale[:, None] if scale is not None else T)
        """,
        (X, torch.tensor([[True, False, True]] * 2)),
    ),
    "parameters, buffers and tied weights": (
        """
        params: {dim: 4, causal: true}
        inputs: {tokens: {shape: [B, T], dtype: int64}}
        modules:
          wte: Embedding(7, dim)
          scalar: Param()
          frozen: Param(dim, requires_grad=False, init=ones)
          given: Param([1, 2, 3, 4])
          table: Param(arange(dim, dtype=float32) / dim)
          noise: Param(dim, 2, init=trunc_normal(std=0.02 * dim))
          mask: "Buffer(ones(5, 5, dtype=bool).tril() if causal else zeros(5, 5, dtype=bool), persistent=False)"
          count: Buffer(3, init=constant(inf))
          fc: Linear(dim, dim)
        graph:
          h: (wte(tokens) + scalar + frozen + given) * table
          m: where(mask[:T, :T], 1.0, -inf)
        outputs: [fc(h @ noise @ noise.mT) @ wte.weight.mT, m, count, fc.weight.sum()]
        """,
        (torch.tensor([[0, 1, 6], [3, 3, 2]]),),
    ),
    "functions of blocks without modules": (
        """
        params: {dim: 4, base: 100.0}
        inputs: {x: [B, T, 4], n: any}
        blocks:
          rope:
            params: {dim: int, base: 10.0, scale: "${dim ** -0.5}", dims: [1, 2]}
            inputs: {position: [T]}
            graph: {angle: "position[:, None] / base ** (arange(0, dim, 2) / dim) * scale + sum(dims) + dims[0]"}
            outputs: [angle.sin(), angle.cos()]
          drop: {params: {p: 0.5}, inputs: {x: any}, outputs: "dropout(x, p)"}
          grid: {params: {size: int, flip: false}, inputs: {n: any}, outputs: "-ones(size) * n if flip else ones(size) * n"}
          outer:
            params: {dim: int}
            inputs: {position: [T]}
            graph: {"s, c": "rope(position, dim=dim // 2)"}
            outputs: cat([s, c], -1)
        modules: {fc: "Linear(dim, dim)"}
        graph:
          s, c: rope(arange(T), dim=dim, base=base)
          o: outer(arange(T), dim=2 * dim)
        outputs: fc(drop(x)) + cat([s, c], -1) + o + grid(n, size=dim) + grid(n, size=1, flip=True)
        """,
        (X, 3),
    ),
    "index, inferred sizes and lists that are not alike": (
        """
        params: {depth: 5, widths: [4, 6, 8], classes: null}
        inputs: {x: [B, T, 4]}
        blocks:
          layer:
            params: {dim: int, cross: bool, eps: 1e-6}
            inputs: {h: [B, T, C], context: [B, T, 4]}
            modules: {norm: "LayerNorm(_, eps=eps)", fc: "Linear(_, dim)", mix: "Linear(4, dim)"}
            graph: {a: fc(norm(h)) + mix(context) if cross else fc(norm(h))}
            outputs: a
          wide: {params: {dim: int}, inputs: {x: [B, T, dim]}, modules: {fc: "Linear(dim, 2 * dim)"}, outputs: fc(x)}
        modules:
          layers: layer(dim=4, cross=index % 2 == 0) * depth
          grow: layer(dim=widths[index], cross=index == 0) * len(widths)
          same: layer(dim=8, cross=False) * 3
          grid:
            - Linear(_, 8) * 2
            - (Linear(8, 8) >> (ReLU() if index else Tanh()) >> Linear(8, 8)) * 3
          head: "Linear(_, 2 if classes is None else classes)"
          given: wide(dim=_) >> wide(dim=_)
        graph:
          h: same(grow(layers(x, x), x), x)
          g: grid[1](grid[0](h))
        outputs: head(g) + given(h).mean()
        """,
        (X,),
    ),
    "initial values by every kind of selector": (
        """
        params: {std: 0.5}
        inputs: {x: [B, T, 4]}
        blocks:
          layer:
            params: {dim: int}
            inputs: {x: [B, T, 4]}
            modules: {fc: "Linear(dim, dim)", out: "Linear(dim, dim, bias=False)", norm: LayerNorm(dim), gain: Param(dim)}
            outputs: norm(out(fc(x))) * gain
            init: {fc: normal(std=2.0), gain: ones}
        modules: {layers: layer(dim=4) * 3, head: "Linear(4, 4) >> Linear(4, 4)", last: layer(dim=4), scale: Param(4)}
        outputs: last(head(layers(x))) * scale
        init:
          type:Linear: {weight: trunc_normal(std=std / 2), bias: zeros}
          layers[*].out: orthogonal
          "layers[1].**.bias": constant(0.25)
          "*.norm.weight": uniform(1, 2)
          head[1].weight: xavier_uniform(gain=sqrt(2))
          last: kaiming_uniform
          type:layer.norm: {weight: normal(mean=1), bias: normal}
          scale: ones
        """,
        (X,),
    ),
    "ops, numbers and outputs of every kind": (
        """
        params: {heads: 2, factor: 1.0e-6, name: 'a "b" \\ c'}
        inputs: {x: [B, T, C], pair: any}
        modules: {fc: "GatedMLP(4, activation=ReLU())", att: "Attention(4, heads=heads, causal=True)", rnn: "GRU(4, 4, batch_first=True)"}
        graph:
          q: rearrange(x, "b t (h e) -> b h t e", h=heads)
          s: einsum("b h t e, b h s e -> b h t s", q, q) + einsum("bhte,bhse->bhts", q, q)
          n: floor(sqrt(T * C)) + max(T, 2) - len([1, 2]) + round(factor * 1e6)
          y, last: rnn(fc(att(x)))
          chain: x.float()[:, 0:T - 1].transpose(1, 2).flatten(1) ** 2 + (2 * x.shape[0]) ** -1 - (-x).mean() // 3 % 2
          test: (x > 0) & ~(x <= -0.5) | x.isnan()
        outputs: {s: s, n: n, many: "[[y, last], (chain, test), None, name, pair['k']]", empty: "[]"}
        """,
        (X, {"k": X[0]}),
    ),
    "names that mean something else": (
        """
        params: {GatedMLP: 4, module: 4, parameter: 2, name: 4, super: 4, range: 2, len: 4, nn: 4, Layer: 4, torch: 0.01}
        inputs: {F: [B, T, 4], zip: [B, T, 4], math: [B, T, 4], Tensor: [B, T, 4]}
        blocks:
          tensor:
            params: {math: 2, device: 1.0}
            inputs: {torch: any}
            outputs: arange(2).sum() * sqrt(math) + exp(torch * math) * device
          attention: {inputs: {x: [B, T, 4]}, modules: {q: "Attention(4, heads=2)"}, outputs: q(x)}
          Linear: {params: {index_: 4}, inputs: {x: any}, modules: {linear: Identity()}, outputs: linear(x) * index_}
          layer: {params: {torch: float}, inputs: {h: [B, T, 4]}, modules: {nn: "Bilinear(4, 4, 4)"}, outputs: "nn(h, h) * torch"}
          relu: {inputs: {x: any}, outputs: x * 3}
          any: {params: {dim: int}, inputs: {x: any}, modules: {fc: "Linear(index_=dim)"}, outputs: fc(x)}
        modules:
          mlp: GatedMLP(GatedMLP)
          frozen: FrozenBatchNorm(4)
          any: any(dim=2)
          Attention: attention()
          LayerNorm: LayerNorm(module)
          layers: layer(torch=torch) * range
          linear: Linear(index_=super)
          fill: Param(name, init=normal)
          forward_: Embedding(parameter, len)
        graph:
          relu_: any(frozen((relu(Attention(mlp(F))) / 20).mT).mT)
          sinusoid, layer: layers(relu_).chunk(2, -1)
          int: LayerNorm(math + tensor(cat([sinusoid, layer], -1) / 100, math=3)) + silu(zip) + nn + Layer
          for_: layers.scan(int + Tensor)
        outputs: linear(stack(for_)) + fill + forward_(zeros(B, T, dtype=int64))
        """,
        (X, X, X, X),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_dialect_says_is_ejected_as_it_is(case: str, eject: Callable[..., Any]) -> None:
    source, arguments = CASES[case]
    found = eject(source)
    assert_the_same(found.model, found.twin, *arguments)
    assert_is_formatted(found.text)


def assert_is_formatted(text: str) -> None:
    """As the formatter and the linter of this repository have it."""
    for command in (["format", "--diff"], ["check", "--quiet"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--stdin-filename", "ejected.py", "-"]
        ran = subprocess.run(arguments, input=text, capture_output=True, text=True, cwd=ROOT)
        assert ran.returncode == 0, ran.stdout + ran.stderr


SMALL = """
# Adds what a clock says
# to a sequence.

params:
  dim: 8                    # of each token
  widths: [8, 16]
  hidden: ${2 * dim}
  gated: true

inputs:
  x: [B, T, dim]
  time: {shape: [B], optional: true}   # seconds

blocks:
  embed:                    # sines of a time
    params: {dim: int}
    inputs: {time: [B]}
    outputs: sin(time[:, None] * arange(dim))
  layer:
    params: {dim: int, hidden: int, gated: bool}
    inputs: {h: [B, T, dim]}
    modules:
      fc: Linear(dim, hidden)
      out: Linear(hidden, dim)
    graph:
      # the gate, if there is one
      y: silu(fc(h)) if gated else fc(h)   # [B, T, hidden]
    outputs: h + out(y)

modules:
  layers: layer(**params) * len(widths)
  mask: Buffer(zeros(dim, dtype=bool), persistent=False)   # nothing yet

graph:
  h: layers(x)
  clock: embed(time, dim=dim)

outputs:
  - h if time is None else h + clock[:, None]
  - mask                    # [dim]

init: {layers: normal(std=0.02)}
"""
SMALL_EJECTED = '''"""The model of model.yaml as plain PyTorch with gated=True written in, by `model-constructor eject`.

`Model` has the weights of that model by the same names, its first values from the same seed, its outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embed(time: Tensor, *, dim: int) -> Tensor:
    """Sines of a time.

    time [B].
    """
    return torch.sin(time[:, None] * torch.arange(dim, device=time.device))


class Layer(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, T, dim]."""
        # the gate, if there is one
        y = F.silu(self.fc(h))  # [B, T, hidden]
        return h + self.out(y)


class Model(nn.Module):
    """Adds what a clock says to a sequence."""

    def __init__(
        self,
        dim: int = 8,  # of each token
        widths: tuple[int, ...] = (8, 16),
    ) -> None:
        super().__init__()
        hidden = 2 * dim
        self.dim = dim
        self.layers = nn.ModuleList(Layer(dim=dim, hidden=hidden) for _ in range(len(widths)))
        self.register_buffer("mask", torch.zeros(dim, dtype=torch.bool), persistent=False)  # nothing yet
        for parameter in self.layers.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor, time: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, T, dim]
        time [B] or None: seconds
        """
        h = x
        for layer in self.layers:
            h = layer(h)
        clock = embed(time, dim=self.dim)
        return (
            h if time is None else h + clock[:, None],
            self.mask,  # [dim]
        )
'''


def test_the_module_reads_as_written_by_hand(eject: Callable[..., Any]) -> None:
    assert eject(SMALL).text == SMALL_EJECTED


def test_no_comment_and_no_string_of_a_file_becomes_code(eject: Callable[..., Any]) -> None:
    found = eject(
        r'''
# \ """ + evil() \
params:
  name: '"""\" evil() \n %s {x}'             # """ evil() \
  keys: ['a"', "b'", '\']
inputs:
  x: [B, T, 4]                               # "quoted"
modules:
  fc: Linear(4, 4)                           # """ evil()
graph:
  y: fc(x)                                   # \
outputs: {it: y, name: name, keys: keys}
'''
    )
    assert_the_same(found.model, found.twin, X)
    assert 'nn.Linear(4, 4)  # """ evil()' in found.text


def test_what_is_left_as_arguments_means_what_it_means_in_the_file(
    eject: Callable[..., Any], build: Callable[..., GraphModel]
) -> None:
    found = eject(SMALL)
    torch.manual_seed(3)
    model = build(SMALL, params={"dim": 6, "widths": [1, 1, 1]})
    torch.manual_seed(3)
    assert_the_same(model, found.namespace["Model"](dim=6, widths=[1, 1, 1]), X[..., :1].expand(2, 3, 6), X[:, 0, 0])


def test_a_param_that_decides_anything_below_is_no_argument_above(eject: Callable[..., Any]) -> None:
    """`norm_first` of the layers alone decides the graph; what passes it on has no choice left."""
    source = """
    params: {dim: 4, norm_first: true, rate: 0.5, unused: 1}
    inputs: {x: [B, T, dim]}
    blocks:
      layer:
        params: {dim: int, first: bool, rate: float}
        inputs: {x: [B, T, dim]}
        modules: {norm: LayerNorm(dim), drop: "Dropout(rate if first else 0.0)"}
        outputs: drop(norm(x)) if first else norm(drop(x))
      stack:
        params: {dim: int, first: bool, rate: float}
        inputs: {x: [B, T, dim]}
        modules: {layers: "layer(**params) * 2"}
        outputs: layers(x)
    modules: {a: "stack(first=norm_first, **params)", b: "stack(first=not norm_first, **params)"}
    outputs: b(a(x))
    """
    found = eject(source)
    assert_the_same(found.model, found.twin, X)
    arguments = {
        name: inspect.signature(kind).parameters
        for name, kind in found.namespace.items()
        if name.startswith(("Layer", "Model", "Stack"))
    }
    assert list(arguments["Model"]) == ["dim", "rate"]
    assert list(arguments["StackFirst"]) == list(arguments["LayerFirst"]) == ["dim", "rate"]
    assert list(arguments["Stack"]) == list(arguments["Layer"]) == ["dim"]


def test_a_param_that_an_inferred_size_depends_on_is_written_in(eject: Callable[..., Any]) -> None:
    """`Linear(_, 3)` behind a layer of `width` is Linear(8, 3), which another width would not fit."""
    source = """
    params: {width: 8, depth: 2}
    inputs: {x: [B, T, 4]}
    modules: {first: "Linear(4, width)", more: "Linear(_, width) * depth", last: "Linear(_, 3)"}
    outputs: last(more(first(x)))
    """
    found = eject(source)
    assert list(inspect.signature(found.namespace["Model"]).parameters) == ["depth"]
    assert_the_same(found.model, found.twin, X)


# the zoo

ACT = {"dim": 16, "heads": 2, "hidden": 24}
LAYERS = {**ACT, "depth": 2, "activation": "relu", "dropout": 0.1}
HEAD = {
    "embodiments": 3,
    "state_dim": 5,
    "action_dim": 3,
    "hidden": 6,
    "longest": 9,
    "dim": 16,
    "depth": 2,
    "heads": 4,
    "context_dim": 12,
}
JOINT = {"dim": 16, "hidden": 24, "expert_dim": 8, "expert_hidden": 12, "heads": 4, "kv_heads": 1, "head_dim": 6}
TINY: dict[str, dict[str, Any]] = {  # what a file does not say itself, and smaller sizes
    "act/act.yaml": {**ACT, "encoder_depth": 1, "posterior_depth": 1},
    "act/decoder.yaml": {**LAYERS, "pre_norm": False},
    "act/encoder.yaml": {**LAYERS, "pre_norm": True},
    "diffusion_unet.yaml": {"obs_dim": 10, "down_dims": [8, 16, 32]},
    "dit.yaml": {"size": 6, "patch": 2, "channels": 3, "dim": 16, "depth": 2, "heads": 2, "classes": 5},
    "gemma/gemma.yaml": {"vocab": 20, "dim": 16, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "hidden": 24},
    "gemma/norm.yaml": {"dim": 8},
    "gpt.yaml": {"in_dim": 5, "out_dim": 3, "longest": 30, "dim": 16, "depth": 2, "heads": 2},
    "groot/dit.yaml": {"dim": 16, "depth": 5, "heads": 4, "context_dim": 10, "out_dim": 6},
    "groot/head.yaml": {**HEAD, "future": 2, "context_depth": 1, "context_heads": 3},
    "groot/head_n1.yaml": HEAD,
    "groot/vl_self_attention.yaml": {"dim": 16, "depth": 2, "heads": 4},
    "perceiver_resampler.yaml": {"dim": 12, "tokens": 3, "depth": 2, "heads": 2, "head_dim": 5},
    "pi0/joint_layer.yaml": JOINT,
    "pi0/pi0.yaml": {
        "image_size": 8, "patch": 4, "vision_dim": 12, "vision_depth": 2, "vision_heads": 2, "vision_hidden": 20,
        "vocab": 20, "depth": 2, "state_dim": 5, "action_dim": 3, "horizon": 4, **JOINT,
    },
    "resnet18.yaml": {"width": 16},
    "resnet50.yaml": {"width": 8},
    "siglip.yaml": {"size": 12, "patch": 4, "dim": 16, "depth": 2, "heads": 2, "hidden": 20},
    "transformer/decoder.yaml": {**ACT, "depth": 2},
    "transformer/encoder.yaml": {**ACT, "depth": 2},
    "vit_tiny.yaml": {"size": 32, "dim": 24, "depth": 3},
}  # fmt: skip
FILES = [str(path.relative_to(ZOO)) for path in sorted(ZOO.rglob("*.yaml")) if not path.name.endswith(".keys.yaml")]
QUICK = {"act/encoder.yaml", "gemma/norm.yaml", "transformer/visible.yaml"}


def some_inputs(model: GraphModel) -> dict[str, Tensor]:
    """Inputs that every file of the zoo runs with."""
    sizes = {name: 3 + i for i, name in enumerate(model._block.symbols)} | {"B": 2, "H": 32, "W": 64}
    if "noisy_action" in model.inputs and "T" in sizes:
        sizes["T"] = 8  # which a U-Net halves twice
    inputs = {}
    for name, declared in model._block.inputs.items():
        shape = [
            2
            if entry is None
            else eval(ast.unparse(entry.tree), {**model.params, **sizes})
            if hasattr(entry, "tree")
            else entry
            for entry in declared.shape
        ]
        whole = declared.dtype == "int64" or name in ("tokens", "label", "embodiment", "positions")
        inputs[name] = (
            torch.rand(shape) < 0.8
            if declared.dtype == "bool"
            else torch.randint(0, 3, shape)
            if whole
            else torch.randn(shape)
        )
    return inputs


@pytest.mark.parametrize(
    "file", [file if file in QUICK else pytest.param(file, marks=pytest.mark.slow) for file in FILES]
)
def test_every_file_of_the_zoo_is_ejected_as_it_is(
    file: str, eject: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = eject(ZOO / file, TINY.get(file))
    assert_the_same(found.model, found.twin, **some_inputs(found.model))
    assert_is_formatted(found.text)
    assert "outputs in eval and train mode to the last bit" in capsys.readouterr().out


@pytest.mark.slow
def test_the_arguments_of_a_diffusion_unet_are_those_of_its_file(eject: Callable[..., Any]) -> None:
    found = eject(ZOO / "diffusion_unet.yaml", TINY["diffusion_unet.yaml"])
    params = {"obs_dim": 7, "action_dim": 3, "down_dims": [8, 16], "groups": 2, "step_dim": 6, "kernel_size": 3}
    torch.manual_seed(3)
    model = build_model(ZOO / "diffusion_unet.yaml", params=params)
    torch.manual_seed(3)
    twin = found.namespace["DiffusionUnet"](**params)
    assert_the_same(model, twin, torch.randn(2, 4, 3), torch.tensor([1.0, 2.0]), torch.randn(2, 7))


@pytest.mark.slow
def test_a_resnet_34_is_an_ejected_resnet_18_with_more_layers(eject: Callable[..., Any]) -> None:
    found = eject(ZOO / "resnet18.yaml", {"width": 16})
    torch.manual_seed(3)
    model = build_model(ZOO / "resnet18.yaml", params={"width": 16, "layers": [3, 4, 6, 3]})
    torch.manual_seed(3)
    assert_the_same(model, found.namespace["Resnet18"](layers=(3, 4, 6, 3)), torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("name", ["narrow", "order", "sorted", "stack", "steps"])
def test_files_of_version_1_are_ejected(name: str, eject: Callable[..., Any]) -> None:
    found = eject(ROOT / "tests" / "model_constructor" / "version1" / f"{name}.yaml")
    inputs = {"narrow": [(2, 3, 8, 8), (2, 5)], "steps": [(2, 3, 6)]}.get(name, [(2, 6)])
    assert_the_same(found.model, found.twin, *map(torch.randn, inputs))


# types and ops


@pytest.mark.parametrize(
    ("constructor", "shape"),
    [
        ("GatedMLP(4, activation=GELU())", (2, 3, 4)),
        ("FrozenBatchNorm(4)", (2, 4, 3)),
        ("NoisyTopKGate(4, 3)", (2, 4)),
        ("RotaryEmbedding()", (2, 3, 4)),
        ("SinusoidalEmbedding(4)", (2,)),
        ("SpatialSoftArgmax(learned=True)", (2, 3, 5, 5)),
        ("VectorQuantizer(5, 4)", (2, 4)),
        ("Attention(4, heads=2, qk_norm=True, rotary_base=100.0)", (2, 3, 4)),
        pytest.param("TimmBackbone('resnet10t')", (2, 3, 32, 32), marks=pytest.mark.slow),
        pytest.param(
            "HuggingFaceBackbone({'model_type': 'bert', 'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 2,"
            " 'intermediate_size': 8, 'vocab_size': 9}, output='pooler_output')",
            (), marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_the_types_of_this_package_travel_along(
    constructor: str, shape: tuple[int, ...], eject: Callable[..., Any]
) -> None:
    found = eject(f"inputs: {{x: any}}\nmodules:\n  m: >-\n    {constructor}\noutputs: m(x)")
    assert_the_same(found.model, found.twin, torch.rand(shape) if shape else torch.randint(0, 9, (2, 5)))
    assert "model_constructor" not in found.text


PLUGIN = """
import torch
from torch import nn
from model_constructor import register

@register("EjectedMixer")
class Mixer(nn.Module):
    def __init__(self, block, copies):
        super().__init__()
        self.blocks = nn.ModuleList([block] * copies)
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x

@register.op("ejected_clamp")
def soft_clamp(x, limit=1.0):
    return limit * torch.tanh(x / limit)

register.op("ejected_hidden")(lambda x: x)
"""
PLUGGED = """
imports: [ejected_plugin]
params: {limit: 2.0}
inputs: {x: [B, T, 4]}
blocks:
  inner: {params: {dim: int}, inputs: {x: [B, T, 4]}, modules: {fc: "Linear(dim, dim)"}, outputs: fc(x)}
modules: {mixer: "EjectedMixer(inner(dim=4) if limit > 1 else Identity(), copies=2)"}
outputs: ejected_clamp(mixer(x), limit=limit)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ejected_plugin.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_registered_types_and_ops_are_imported_from_where_they_are_defined(
    eject: Callable[..., Any], plugin: None
) -> None:
    found = eject(PLUGGED, arguments=("--allow-import", "ejected_plugin"))
    assert "from ejected_plugin import Mixer, soft_clamp  # registered for the model file" in found.text
    assert_the_same(found.model, found.twin, X)


def test_what_has_no_name_to_be_imported_by_is_refused(
    write: Callable[..., Path], plugin: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(
        PLUGGED.replace("ejected_clamp(mixer(x), limit=limit)", "ejected_hidden(mixer(x))").replace(
            "limit > 1", "limit"
        )
    )
    assert main(["eject", str(path), str(tmp_path / "out.py"), "--allow-import", "ejected_plugin"]) == 1
    assert "'<lambda>' of ejected_plugin cannot be imported by its name" in capsys.readouterr().err
    assert not (tmp_path / "out.py").exists()


# the command


@pytest.fixture
def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[..., Path]
) -> Callable[..., tuple[int, str]]:
    def run(source: str, *arguments: str, out: str = "out.py") -> tuple[int, str]:
        status = main(["eject", str(write(source)), str(tmp_path / out), *arguments])
        return status, "".join(capsys.readouterr())

    return run


LINEAR = "inputs: {x: [B, T, 4]}\nmodules: {fc: 'Linear(4, 4)'}\noutputs: fc(x)"


def test_it_says_what_it_wrote_and_what_was_compared(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    assert run(LINEAR) == (
        0,
        f"written: {tmp_path / 'out.py'}, 18 lines; class Model; it imports torch\n"
        "equal: 2 tensors by name, shape and first value; outputs in eval and train mode to the last bit, "
        "in 2 calls with B=2, T=4\n",
    )


def test_a_file_that_is_there_is_replaced_by_force_alone(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "out.py").write_text("mine")
    status, said = run(LINEAR)
    assert status == 1 and "the file is there already" in said and (tmp_path / "out.py").read_text() == "mine"
    assert run(LINEAR, "--force")[0] == 0


def test_what_is_no_name_of_a_python_module_is_refused(run: Callable[..., tuple[int, str]]) -> None:
    status, said = run(LINEAR, out="out.yaml")
    assert status == 1 and "the name of a Python module ends in .py" in said


def test_what_is_wrong_in_a_file_is_said_as_check_says_it(run: Callable[..., tuple[int, str]]) -> None:
    status, said = run(LINEAR.replace("fc(x)", "fd(x)"))
    assert status == 1 and "no value, module or op is called 'fd'" in said


def test_sizes_for_the_comparison_can_be_given(run: Callable[..., tuple[int, str]]) -> None:
    needs_a_size = "inputs: {x: [B, T, 4]}\nmodules: {fc: 'Linear(4, 4)', mix: 'Linear(77, 2)'}\noutputs: mix(fc(x).mT)"
    assert "no sizes are known that it runs with; give them by --size" in run(needs_a_size)[1]
    assert "to the last bit, in 2 calls with B=2, T=77" in run(needs_a_size, "--size", "T=77", "--force")[1]
    status, said = run(LINEAR, "--size", "Q=3", "--force")
    assert status == 1 and "--size: the inputs have no symbol 'Q'" in said


def test_a_model_that_fails_with_every_value_is_said_not_to_be_compared(run: Callable[..., tuple[int, str]]) -> None:
    fails = "inputs: {x: [B, 2, 2]}\nmodules: {fc: 'Linear(2, 2)'}\noutputs: cholesky(fc(x) * 0 - 1)"
    assert "outputs are not compared: it fails with all values that were tried" in run(fails)[1]


def test_comments_keep_what_they_quote(eject: Callable[..., Any]) -> None:
    text = eject(
        "params:\n  dim: 4  # the model's width, the head's too\ninputs:\n  x: [B, dim]  # of 'relu' or \"gelu\"\n"
        "modules: {fc: 'Linear(dim, dim)'}\noutputs: fc(x)\n"
    ).text
    assert "the model's width, the head's too" in text
    assert "of 'relu' or \"gelu\"" in text


def test_an_input_without_a_shape_and_a_model_too_large_are_said_not_to_be_compared(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "outputs are not compared: the input 'x' is any" in run(LINEAR.replace("[B, T, 4]", "any"))[1]
    monkeypatch.setattr("model_constructor.tools.eject.MAX_BYTES", 10)
    assert "equal: 2 tensors by name and shape, not values and outputs, of 0.0 GiB" in run(LINEAR, "--force")[1]


@pytest.mark.parametrize(
    ("written", "wrong", "said"),
    [
        ("self.fc = nn.Linear(4, 4)", "self.fd = nn.Linear(4, 4)", "where the model has the tensor fc.weight, it has fd.weight"),
        ("nn.Linear(4, 4)", "nn.Linear(4, 4).half()", "fc.weight is [4, 4] float16, trained; in the model it is [4, 4] float32, trained"),
        ("nn.Linear(4, 4)", "nn.Linear(4, 4).requires_grad_(False)", "fc.weight is [4, 4] float32; in the model it is [4, 4] float32, trained"),
        ("super().__init__()", "super().__init__(); torch.rand(1)", "fc.weight begins with other values, of the same seed"),
        ("return self.fc(x)", "return self.fc(x) + 1e-6", "its output differs, in eval mode, of the inputs x"),
        ("return self.fc(x)", "return self.fc(x) + 1e-6 * self.training", "its output differs, in train mode"),
        ("return self.fc(x)", "return (self.fc(x),)", "its output differs"),
        ("return self.fc(x)", "raise ValueError", "its output differs"),
    ],
)  # fmt: skip
def test_a_module_that_is_not_the_model_is_not_written(
    written: str,
    wrong: str,
    said: str,
    run: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def text(*arguments: Any) -> str:
        right = module_text(*arguments)
        assert written in right
        return right.replace(written, wrong).replace("from torch import", "import torch\nfrom torch import")

    monkeypatch.setattr("model_constructor.tools.eject.module_text", text)
    status, message = run(LINEAR)
    assert status == 1 and said in message
    assert not (tmp_path / "out.py").exists()


@pytest.mark.slow
def test_it_runs_where_this_package_is_not_installed(write: Callable[..., Path], tmp_path: Path) -> None:
    """In a process of its own, with the weights that `save_pretrained` wrote."""
    path = write("params: {heads: 2}\ninputs: {x: [B, T, 4]}\nmodules: {m: 'Attention(4, heads=heads)'}\noutputs: m(x)")
    assert main(["eject", str(path), str(tmp_path / "ejected.py")]) == 0
    model = build_model(path)
    model.save_pretrained(tmp_path / "saved")
    torch.save((X, model(X)), tmp_path / "expected.pt")
    program = f"""
import sys

class Absent:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("model_constructor", "trainer"):
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, {str(tmp_path)!r})
import torch
from ejected import Model
from safetensors.torch import load_file
model = Model()
model.load_state_dict(load_file({str(tmp_path / "saved" / "model.safetensors")!r}))
x, expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
assert torch.equal(model(x), expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_the_random_state_of_the_caller_is_left_alone(run: Callable[..., tuple[int, str]]) -> None:
    before = torch.get_rng_state()
    assert run(LINEAR)[0] == 0
    assert torch.equal(torch.get_rng_state(), before)
