"""Recording: a module run once on real tensors -> what its forward did, a graph for each module that holds tensors.

The module is run as it is: Python decides, loops and computes sizes as it always does, and what calls torch is written
down. Modules without parameters and buffers leave no trace but their calls. Sizes of tensors are integers that remember
where they come from.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest.mock import patch

import einops.einops
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from ..equality import equal
from ..errors import ConfigError, Problem
from ..names import METHODS, OPS, torch_ops
from .constructors import constructor_call, is_leaf, leaf_type
from .steps import Node, Recorded, Ref, Size, Sized, SizeOf, Sizes

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NAMES_OF_OPERATORS = {
    "add": "+", "__add__": "+", "__radd__": "r+", "sub": "-", "__sub__": "-", "__rsub__": "r-", "mul": "*",
    "__mul__": "*", "__rmul__": "r*", "div": "/", "true_divide": "/", "__truediv__": "/", "__rdiv__": "r/",
    "__rtruediv__": "r/", "__floordiv__": "//", "__rfloordiv__": "r//", "remainder": "%", "__mod__": "%", "pow": "**",
    "__pow__": "**", "__rpow__": "r**", "matmul": "@", "__matmul__": "@", "__rmatmul__": "r@", "__and__": "&",
    "__or__": "|", "gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!=",
}  # fmt: skip
_UNARY = {"neg": "-", "__neg__": "-", "__invert__": "~"}
_DECIDING = {"__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "__array__", "__contains__"}


class Problematic(Exception):
    """What cannot be written down: the sentence that says so, and what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(message, hint=hint)


def record(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[list[Recorded], Any]:
    """What each call of a module inside `module` did, the innermost first, and the output. Raises ConfigError.

    inputs: by the names of the arguments of `forward`.
    """
    recorder = _Recorder(module)
    try:
        with torch.no_grad(), recorder:
            output = module(**inputs)
    except Problematic as error:
        raise ConfigError(error.problem) from error
    return recorder.finished, output


def has_tensors(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


class _Recorder(TorchFunctionMode):
    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.paths = {id(module): path for path, module in root.named_modules()}
        self.tensors: dict[int, str] = {}
        for path, tensor in (*root.named_parameters(), *root.named_buffers()):
            self.tensors.setdefault(id(tensor), path)
        self.stack: list[Recorded | None] = []  # None inside of what is one step as a whole
        self.finished: list[Recorded] = []
        self.in_chain: set[int] = set()  # modules that are links of a chain
        self.derived: list[nn.Module] = []  # of a class that does more than the type it is derived from

    def __enter__(self) -> _Recorder:
        super().__enter__()
        call = nn.Module.__call__
        reduce = einops.einops.reduce
        recorder = self

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return recorder.call(module, lambda *a, **k: call(module, *a, **k), args, kwargs)

        def reduced(tensor: Any, pattern: str, reduction: Any, **axes: int) -> Any:
            name = reduction if reduction in ("rearrange", "repeat") else "reduce"
            more = () if name != "reduce" else (reduction,)
            return recorder.whole(
                lambda: reduce(tensor, pattern, reduction, **axes), "op", name, (tensor, pattern, *more), axes
            )

        self._patches = [patch.object(nn.Module, "__call__", called), patch.object(einops.einops, "reduce", reduced)]
        for one in self._patches:
            one.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:  # pyrefly: ignore[bad-override]
        for one in self._patches:
            one.stop()
        super().__exit__(kind, error, trace)

    # modules

    def call(self, module: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        path = self.paths.get(id(module))
        caller = self.stack[-1] if self.stack else None
        linked = id(module) in self.in_chain
        if caller is not None:
            self._learn_names(caller)
        if self.stack and caller is None and not linked:  # inside of a leaf
            return forward(*args, **kwargs)
        if self.stack and not linked and (path is None or not has_tensors(module)):
            return forward(*args, **kwargs)
        assert path is not None
        with self.unrecorded():
            chain = isinstance(module, nn.Sequential) and is_chain(module)
            leaf = is_leaf(module)
        if self.stack and (leaf or chain):
            if chain:
                self.in_chain.update(id(link) for link in module)
            parameters = inspect.signature(module.forward).parameters
            said = {
                k: one for k, one in kwargs.items() if k not in parameters or not _equals(one, parameters[k].default)
            }
            return self.whole(lambda: forward(*args, **kwargs), "call", path, args, said)
        if isinstance(module, nn.Sequential) and self.stack and not linked:
            return forward(*args, **kwargs)
        if caller is not None and leaf_type(module) is not None and self._has_constructor(module):
            self.derived.append(module)
            try:
                return forward(*args, **kwargs)  # its steps are the caller's
            finally:
                self.derived.pop()
        bound = bound_arguments(module, args, kwargs)
        inner = self._enter(path, module, bound)
        self.stack.append(inner)
        try:
            result = forward(*args, **kwargs)
            inner.outputs = self.encode(result)
        finally:
            self.stack.pop()
        self.finished.append(inner)
        if caller is None:
            return result
        given = {name: bound[name] for name in inner.inputs}
        return self._step(caller, result, "call", path, (), given)

    def _has_constructor(self, module: nn.Module) -> bool:
        with self.unrecorded():
            return not isinstance(module, CONTAINERS) and constructor_call(module) is not None

    def _enter(self, path: str, module: nn.Module, bound: Mapping[str, Any]) -> Recorded:
        inner = Recorded(path, module)
        for name, value in bound.items():
            if any(True for _ in tensors_in(value)):
                inner.bind(value, inner.add(Node("input", name, name=name)))
                inner.inputs[name] = (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None
        return inner

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        self.stack.append(None)
        try:
            yield
        finally:
            self.stack.pop()

    def whole(self, run: Callable[[], Any], kind: str, target: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A call that is one step, whatever happens inside of it."""
        caller = self.stack[-1] if self.stack else None
        if caller is None:
            with self.unrecorded():
                return run()
        encoded = self.encode(args), {name: self.encode(value) for name, value in kwargs.items()}
        with self.unrecorded():
            result = run()
        given = list(tensors_in([*args, *kwargs.values()]))
        if any(result is one for one in given):
            result = _fresh(result)
        caller.bind(
            result, caller.add(Node(kind, self.relative(caller, target) if kind == "call" else target, *encoded))
        )
        return result

    # functions

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        recorded = self.stack[-1] if self.stack else None
        if recorded is None:
            return func(*args, **kwargs)
        self._learn_names(recorded)
        full = resolve_name(func) or ""
        name = full.removesuffix(".__get__").rpartition(".")[2] or getattr(func, "__name__", "")
        getter = full.endswith(".__get__")
        if name in ("shape", "size") and (getter or full == "torch.Tensor.size"):
            return self._sizes(recorded, args, kwargs)
        if name in _DECIDING and any(id(t) in recorded.values or isinstance(t, nn.Parameter) for t in tensors_in(args)):
            raise Problematic(
                f"{self.where(recorded)}: the forward reads the value of a tensor ({name}), to decide or to compute.",
                "what depends on the values of tensors is a registered module or op",
            )
        if name == "__setitem__":
            raise Problematic(
                f"{self.where(recorded)}: the forward writes into a tensor, x[...] = y.",
                "write it as where(...), cat(...) or masked_fill(...), which make a new one",
            )
        if name == "__iter__":
            return iter(torch.Tensor.unbind(*args))
        result = func(*args, **kwargs)
        if name == "data" and getter:
            recorded.bind(result, self.encode(args[0]))
        if (name == "data" and getter) or name in ("requires_grad_", "detach_") or not [*tensors_in(result)]:
            return result
        trains = "training" in kwargs and (kwargs.get("p") or 0) > 0
        in_place = name.endswith("_") and not name.endswith("__")
        same = next((t for t in tensors_in([*args, *kwargs.values()]) if t is result), None)
        if same is not None and not (trains or in_place or kwargs.get("inplace") or name.startswith("__i")):
            return result  # it changes nothing
        owner = next(
            (one for one in self.derived if any(t is one.weight for t in tensors_in([*args, *kwargs.values()]))), None
        )
        if owner is not None and self._is_base_call(owner, args, result):
            return self._step(recorded, result, "call", self.paths[id(owner)], args[:1], {})
        if "training" in kwargs and name.endswith("dropout") and not trains:
            recorded.bind(result, self.encode(args[0]))
            return result
        if same is not None and trains and not kwargs.get("inplace"):
            result = _fresh(result)
        node = self._function(recorded, func, full, name, args, kwargs, getter)
        if in_place or kwargs.get("inplace"):
            result = args[0]
        recorded.bind(result, recorded.add(node))
        return result

    def _is_base_call(self, module: nn.Module, args: tuple, result: Any) -> bool:
        """Whether a call on the tensors of a module is what the type does that its class is derived from."""
        kind = leaf_type(module)
        assert kind is not None
        if module.training:
            return True  # as in eval mode; to try it would count twice
        with self.unrecorded():
            return equal(kind.forward(module, args[0]), result)

    def _function(
        self, recorded: Recorded, func: Callable, full: str, name: str, args: tuple, kwargs: dict, getter: bool
    ) -> Node:
        """The step that a call of a torch function is."""
        if name.startswith("__i") and name != "__invert__":
            name = f"__{name[3:]}"
        elif name.endswith("_") and not name.endswith("__"):
            name = name.rstrip("_")
        kwargs = {key: value for key, value in kwargs.items() if key not in ("inplace", "device", "_stacklevel")}
        if kwargs.get("training") is recorded.module.training or kwargs.get("training") is False:
            kwargs.pop("training", None)
        args, kwargs = _without_defaults(func, args, kwargs)
        encoded = self.encode(args), {key: self.encode(value) for key, value in kwargs.items()}
        if getter:
            if name == "T" and args[0].ndim == 2:
                name = "mT"
            if name != "mT":
                raise self.unknown(recorded, f"x.{name}")
            return Node("attribute", name, *encoded)
        if name == "__getitem__":
            return Node("item", name, *encoded)
        if name == "hardtanh" and [*args[1:], *kwargs.values()] == [0.0, 6.0]:
            name, encoded = "relu6", (encoded[0][:1], {})
        if len(args) == 2 and not kwargs and name in _NAMES_OF_OPERATORS:
            symbol = _NAMES_OF_OPERATORS[name]
            left, right = encoded[0] if not symbol.startswith("r") else encoded[0][::-1]
            return Node("operator", symbol.removeprefix("r"), (left, right))
        if len(args) == 1 and not kwargs and name in _UNARY:
            return Node("operator", _UNARY[name], encoded[0])
        method = full.startswith("torch.Tensor.")
        if method and name in METHODS:
            return Node("method", name, *encoded)
        if OPS.has(name) or name in torch_ops():
            return Node("op", name, *encoded)
        raise self.unknown(recorded, full or name)

    def unknown(self, recorded: Recorded, call: str) -> Problematic:
        return Problematic(
            f"{self.where(recorded)}: the forward calls {call}, which is no op of model files.",
            f"keep {type(recorded.module).__name__} whole as a registered type, or write it with other ops",
        )

    def where(self, recorded: Recorded) -> str:
        kind = type(recorded.module)
        return f"{recorded.path or 'the module'} ({kind.__module__}.{kind.__qualname__})"

    def _step(
        self, recorded: Recorded, result: Any, kind: str, path: str, args: tuple, kwargs: Mapping[str, Any]
    ) -> Any:
        encoded = self.encode(args), {name: self.encode(value) for name, value in kwargs.items()}
        recorded.bind(result, recorded.add(Node(kind, self.relative(recorded, path), *encoded)))
        return result

    def relative(self, recorded: Recorded, path: str) -> str:
        prefix = f"{recorded.path}." if recorded.path else ""
        if not path.startswith(prefix):
            raise Problematic(
                f"{self.where(recorded)}: the forward uses '{path}', which is not inside of it.",
                "a block uses what it holds and what it is given",
            )
        return path.removeprefix(prefix)

    def encode(self, value: Any) -> Any:
        """A value as a step has it: tensors as Refs, sizes with their origin, everything else as it is."""
        recorded = self.stack[-1]
        assert recorded is not None
        if isinstance(value, Tensor):
            if id(value) not in recorded.values:
                recorded.bind(value, self._constant(recorded, value))
            return recorded.values[id(value)]
        if isinstance(value, Size):
            return Sized(int(value), value.origin) if value.recorded is recorded else int(value)
        if isinstance(value, list | tuple):
            entries = [self.encode(entry) for entry in value]
            return entries if isinstance(value, list) else tuple(entries)
        if isinstance(value, Mapping):
            return {name: self.encode(entry) for name, entry in value.items()}
        if isinstance(value, slice):
            return slice(self.encode(value.start), self.encode(value.stop), self.encode(value.step))
        if value is None or isinstance(value, bool | int | float | str | torch.dtype | type(...)):
            return value
        if isinstance(value, torch.device):
            return None
        raise Problematic(f"{self.where(recorded)}: a {type(value).__name__} is no value of model files.")

    def _constant(self, recorded: Recorded, tensor: Tensor) -> Ref:
        """A tensor that no step made: a parameter or buffer, or what Python code holds beside them."""
        path = self.tensors.get(id(tensor))
        if path is not None:
            return recorded.add(Node("tensor", self.relative(recorded, path)))
        if tensor.ndim == 0:
            return recorded.add(Node("op", "tensor", (tensor.item(),)))
        raise Problematic(
            f"{self.where(recorded)}: the forward uses a tensor of shape {list(tensor.shape)} that is no parameter, "
            "no buffer and no argument.",
            "make it a buffer (register_buffer), or hand it over as an argument",
        )

    def _sizes(self, recorded: Recorded, args: tuple, kwargs: dict[str, Any]) -> Any:
        value, *rest = args
        dims = rest[0] if rest else kwargs.get("dim")
        with torch._C.DisableTorchFunction():
            shape = tuple(value.shape)
        ref = self.encode(value)
        sizes = Sizes(Size.of(size, recorded, SizeOf(ref, dim)) for dim, size in enumerate(shape))
        return sizes if dims is None else sizes[dims]

    def _learn_names(self, recorded: Recorded) -> None:
        """The names that the author's code has for the values so far."""
        frame: FrameType | None = sys._getframe(2)
        for _ in range(20):
            if frame is None:
                return
            local = frame.f_locals
            if local.get("self") is recorded.module:
                for name, value in local.items():
                    ref = recorded.values.get(id(value)) if isinstance(value, Tensor) else None
                    if ref is not None and not ref.path and not recorded.nodes[ref.node].name:
                        recorded.nodes[ref.node].name = name
                    elif ref is not None:
                        recorded.variables.setdefault(name, ref)
                return
            frame = frame.f_back


def bound_arguments(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a forward is given, by name; the entries of `*args` are numbered."""
    signature = inspect.signature(module.forward)
    bound: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            bound |= {f"{name}_{i}": entry for i, entry in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            bound |= value
        else:
            bound[name] = value
    return bound


def is_chain(module: nn.Sequential) -> bool:
    """Whether a Sequential is written as A() >> B(): numbered links, each one module."""
    return (
        list(module._modules) == [str(i) for i in range(len(module))]
        and len(module) > 1
        and all(
            not isinstance(link, CONTAINERS) and (is_leaf(link) if leaf_type(link) is not None else has_tensors(link))
            for link in module
        )
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors_in(entry)
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry)


def _fresh(result: Any) -> Any:
    with torch._C.DisableTorchFunction():
        return result.view_as(result)


# Of builtins, which have no signature; what is None is left out of any call.
_DEFAULTS = (("is_causal", False), ("enable_gqa", False), ("approximate", "none"))
_POOLING = {3: 0, 4: False, 5: True, 6: None}
_TRAILING: dict[str, dict[int, Any]] = {"flatten": {2: -1}, **{f"avg_pool{d}d": _POOLING for d in (1, 2, 3)}}


def _without_defaults(func: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Arguments as one would write them: without those that are as by default, the first two by position."""
    name = getattr(func, "__name__", "")
    while len(args) - 1 in _TRAILING.get(name, ()) and args[-1] == _TRAILING[name][len(args) - 1]:
        args = args[:-1]
    function = getattr(F, f"_{name}", func)  # of those that choose by `return_indices`
    try:
        parameters = inspect.signature(function).parameters
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return args, {key: one for key, one in kwargs.items() if one is not None and (key, one) not in _DEFAULTS}
    if any(one.kind is one.VAR_POSITIONAL for one in parameters.values()):
        return args, kwargs
    kept = {key: one for key, one in bound.items() if not _equals(one, parameters[key].default)}
    leading = list(parameters)[: max(min(len(args), 2), 2)]
    positional: list[Any] = []
    for key in leading:
        if key not in kept or parameters[key].kind is inspect.Parameter.KEYWORD_ONLY:
            break
        positional.append(kept.pop(key))
    if any(parameters[key].kind is inspect.Parameter.POSITIONAL_ONLY for key in kept):
        return args, kwargs
    return tuple(positional), kept


def _equals(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and not isinstance(value, Tensor) and value == default)
