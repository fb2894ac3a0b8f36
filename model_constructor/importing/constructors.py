"""Constructors: a built module or tensor -> the call that would build one like it."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..expressions import evaluate, parse
from ..names import TYPES, shipped_types, torch_types
from ..source import read_text

_LEFT_OUT = ("device", "dtype", "inplace")  # which a file does not say
_OF_RNN = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
_ASKED: dict[str, Any] = {  # what a module keeps in another form than it was given
    "add_bias_kv": lambda module: module.bias_k is not None,
    "kdim": lambda module: None if module.kdim == module.embed_dim else module.kdim,
    "vdim": lambda module: None if module.vdim == module.embed_dim else module.vdim,
}
MAX_LISTED = 64  # entries of a buffer that are written out


def constructor_call(module: nn.Module) -> ast.Call | None:
    """`Conv2d(3, 64, 7, stride=2)` of such a module, of torch's or a registered type; None if that cannot be known."""
    kind = leaf_type(module)
    if kind is None:
        return None
    name = _names()[kind]
    parameters = inspect.signature(kind).parameters
    defaults = {key: one.default for key, one in parameters.items()}
    if isinstance(module, nn.RNNBase):
        defaults = {**inspect.signature(nn.RNNBase).parameters}
        defaults = {key: defaults[key].default for key in _OF_RNN}
    args, keywords = [], []
    for key, default in defaults.items():
        variadic = key in parameters and parameters[key].kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        )
        if key in _LEFT_OUT or key.startswith("_") or variadic:
            continue
        try:
            value = _argument(module, key)
        except AttributeError:
            return None
        if _is_default(module, key, value, default):
            continue
        if not _is_literal(value):
            return None
        tree = ast.parse(repr(value), mode="eval").body
        if default is inspect.Parameter.empty or key == next(iter(defaults)):
            args.append(tree)
        else:
            keywords.append(ast.keyword(key, tree))
    call = ast.Call(ast.Name(name, ast.Load()), args, keywords)
    return call if _builds_alike(kind, call, module) else None


def leaf_type(module: nn.Module) -> type[nn.Module] | None:
    """The type of a file that a module is one of, or behaves as."""
    known = _names()
    return next((kind for kind in type(module).__mro__ if kind in known), None)


def is_leaf(module: nn.Module) -> bool:
    """Whether a constructor is all that there is to say of a module."""
    kind = leaf_type(module)
    if kind is None or issubclass(kind, nn.Sequential):
        return False
    return type(module).forward is kind.forward and constructor_call(module) is not None


def param_call(tensor: nn.Parameter) -> ast.expr:
    """`Param(1, 16, init=ones)` of such a parameter."""
    keywords = [] if tensor.requires_grad else [ast.keyword("requires_grad", ast.Constant(False))]
    first = tensor.flatten()[0].item() if tensor.numel() else 0.0
    if first and bool((tensor == first).all()):
        init: ast.expr = ast.Name("ones", ast.Load())
        if first != 1:
            init = ast.Call(ast.Name("constant", ast.Load()), [ast.Constant(_short(first, tensor.dtype))], [])
        keywords.insert(0, ast.keyword("init", init))
    return ast.Call(ast.Name("Param", ast.Load()), [ast.Constant(size) for size in tensor.shape], keywords)


def buffer_call(tensor: Tensor, persistent: bool) -> ast.expr | None:
    """`Buffer(16)`, filled by a state dict; or, if it is not part of one, with its value; None if that is too long."""
    if persistent:
        sizes = ", ".join(map(str, tensor.shape))
        dtype = str(tensor.dtype).removeprefix("torch.")
        float32 = tensor.dtype is torch.float32
        text = f"Buffer({sizes})" if float32 else f"Buffer(zeros({sizes or '()'}, dtype={dtype}))"
        return ast.parse(text, mode="eval").body
    value = _value(tensor)
    return ast.parse(f"Buffer({value}, persistent=False)", mode="eval").body if value else None


def _value(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    sizes = ", ".join(map(str, tensor.shape))
    kind = "" if dtype == "float32" else f", dtype={dtype}"
    tries = [f"zeros({sizes}{kind})", f"ones({sizes}{kind})"]
    if tensor.numel():
        first = _short(tensor.flatten()[0].item(), tensor.dtype)
        tries.append(f"full(({sizes},), {first}{kind})")
    if tensor.ndim >= 2:
        masks = ("tril()", "triu()", "tril(-1)", "triu(1)")
        tries += [f"ones({sizes}{kind}).{mask}" for mask in masks]
        tries += [f"full(({sizes},), -inf{kind}).{mask}" for mask in masks if tensor.is_floating_point()]
    if tensor.ndim and tensor.numel() == tensor.shape[-1]:
        lead = "None, " * (tensor.ndim - 1)
        tries.append(f"arange({tensor.numel()}, dtype={dtype})" + (f"[{lead}:]" if lead else ""))
    for text in tries:
        if _is(text, tensor):
            return text
    if tensor.numel() <= MAX_LISTED and tensor.numel():
        text = f"tensor({_listed(tensor.tolist(), tensor.dtype)}{kind})"
        return text if _is(text, tensor) else ""
    return ""


def _is(text: str, tensor: Tensor) -> bool:
    """Whether a file that has this text gets this tensor."""
    try:
        made = evaluate(parse(read_text(f'"{text}"', "buffer")), {})
    except ConfigError:  # more work than a file may ask for
        return False
    return made.dtype == tensor.dtype and torch.equal(made, tensor)


def _listed(value: Any, dtype: torch.dtype) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_listed(entry, dtype) for entry in value)}]"
    return repr(_short(value, dtype))


def _short(value: Any, dtype: torch.dtype) -> Any:
    """The shortest number that is the same in a dtype."""
    if not isinstance(value, float) or value in (float("inf"), float("-inf")) or value != value:
        return value
    same = (f"{value:.{digits}g}" for digits in range(1, 18))
    return next(float(text) for text in same if torch.tensor(float(text), dtype=dtype).item() == value)


def _names() -> dict[type, str]:
    known = {**torch_types(), **shipped_types(), **{name: TYPES.get(name) for name in TYPES.keys()}}  # noqa: SIM118
    return {kind: name for name, kind in known.items() if isinstance(kind, type)}


def _argument(module: nn.Module, key: str) -> Any:
    if key in _ASKED and isinstance(module, nn.MultiheadAttention):
        return _ASKED[key](module)
    if key == "bias" and isinstance(module, nn.MultiheadAttention):
        return module.in_proj_bias is not None
    if key == "bias" and not getattr(module, "elementwise_affine", True):
        return True  # as by default: there is none
    value = getattr(module, key)
    if key == "bias" and not isinstance(value, bool):
        return value is not None
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple) and value and all(entry == value[0] for entry in value) and key != "output_size":
        return value[0] if key != "normalized_shape" or len(value) == 1 else value
    return value


def _is_default(module: nn.Module, key: str, value: Any, default: Any) -> bool:
    if key == "stride" and default is None:  # of pooling: as the window
        return value == _argument(module, "kernel_size")
    return value == default and (type(value) is type(default) or isinstance(value, int | float))


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_literal(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)


def _builds_alike(kind: type, call: ast.Call, module: nn.Module) -> bool:
    """Whether a constructor gives tensors of the same names and shapes."""
    args = [ast.literal_eval(one) for one in call.args]
    keywords = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    try:
        with torch.device("meta"):
            built = kind(*args, **keywords)
    except Exception:
        return False
    return {n: t.shape for n, t in built.state_dict().items()} == {n: t.shape for n, t in module.state_dict().items()}
