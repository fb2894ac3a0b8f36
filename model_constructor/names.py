"""Names: what a name in a file may mean, beyond the file itself: module types, ops, tensor methods, plain functions.

Everything that can be called is on a list here. Ops are pure functions of tensors; nothing on these lists touches
files, processes, global state, or runs code it is given.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any, TypeVar

from .errors import ConfigError, Problem, nearest

T = TypeVar("T", bound=Callable[..., Any])

SIGNATURE_POLICIES = ("strict", "best_effort", "runtime_only")  # of version 1


class Registry:
    """Names -> classes or functions, filled by a decorator. A name can be taken once."""

    def __init__(self, kind: str = "entry") -> None:
        self.kind = kind  # what the entries are called in messages
        self._entries: dict[str, Callable[..., Any]] = {}

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self.keys())})"

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: enter a class or function under `name`. A second, different entry raises ConfigError."""

        def enter(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and _home(known) != _home(entry):
                raise ConfigError(
                    Problem(
                        f"the {self.kind} '{name}' is registered twice.",
                        hint=f"first by {_home(known)}\nthen by {_home(entry)}\nrename one of them",
                    )
                )
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str) -> Callable[..., Any]:
        if name not in self._entries:
            raise ConfigError(Problem(f"no {self.kind} is called '{name}'.", hint=nearest(name, self._entries)))
        return self._entries[name]

    def has(self, name: str) -> bool:
        return name in self._entries

    def keys(self) -> list[str]:
        return sorted(self._entries)

    def register_module(
        self,
        name: str,
        factory: Callable[..., Any],
        *,
        signature_policy: str = "best_effort",
        tags: Sequence[str] = (),
        doc: str | None = None,
    ) -> None:
        """Enter a module type for model files, as version 1 wrote it.

        For the sake of modules written for it, all its arguments are taken: what a type is given is checked under every
        policy, and `tags` and `doc` say nothing to this version.
        """
        _check_policy(signature_policy)
        TYPES.register(identifier(name))(factory)

    def register_op(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        signature_policy: str = "runtime_only",
        tags: Sequence[str] = (),
        doc: str | None = None,
    ) -> None:
        """Enter an op for model files; the arguments are those of `register_module`."""
        _check_policy(signature_policy)
        OPS.register(identifier(name))(function)


def _check_policy(name: str) -> None:
    if name not in SIGNATURE_POLICIES:
        hint = nearest(name, SIGNATURE_POLICIES)
        raise ConfigError(Problem(f"no signature policy is called '{name}'.", hint=hint))


def identifier(name: str) -> str:
    """A registered name as expressions write it: version 1 allowed names with dots."""
    return re.sub(r"\W", "_", name)


def _home(entry: Callable[..., Any]) -> str:
    """Where an entry was written: file:line and its name."""
    code = inspect.unwrap(entry)
    try:
        file, line = inspect.getsourcefile(code), inspect.getsourcelines(code)[1]
    except (OSError, TypeError):
        return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', entry)}"
    return f"{file}:{line} ({getattr(entry, '__qualname__', entry)})"


TYPES = Registry("module type")
OPS = Registry("op")


class _Register:
    """`@register("Name")` enters a module type, `@register.op("name")` an op."""

    def __call__(self, name: str) -> Callable[[T], T]:
        return TYPES.register(name)

    def op(self, name: str) -> Callable[[T], T]:
        return OPS.register(name)


register = _Register()

# Functions of plain numbers and lists. Where an argument is a tensor, the name means the op.
PLAIN_FUNCTIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    **{name: ("math", getattr(math, name)) for name in ("sqrt", "exp", "log", "cos", "sin", "floor", "ceil")},
    **{f.__name__: ("", f) for f in (min, max, abs, round, int, float, len, sum)},
}

CONSTANTS: dict[str, tuple[str, float]] = {"inf": ("math", math.inf), "pi": ("math", math.pi)}

DTYPES = (
    "bool uint8 int8 int16 int32 int64 long float16 half bfloat16 float32 float float64 double complex64 complex128"
).split()
# Creation ops: see `creates`.
CREATION_OPS = (
    "arange empty eye full linspace logspace ones rand randint randn randperm tensor tril_indices triu_indices zeros"
).split()
_TORCH_OPS = (
    # creation and random
    "empty_like full_like ones_like zeros_like rand_like randn_like randint_like bernoulli multinomial normal poisson "
    # joining, splitting, indexing
    "atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cat cartesian_prod chunk clone "
    "column_stack combinations concat concatenate diag diag_embed diagonal dsplit dstack expand_copy flatten flip "
    "fliplr flipud gather hsplit hstack index_add index_copy index_fill index_reduce index_select masked_fill "
    "masked_scatter masked_select meshgrid moveaxis movedim narrow nonzero permute ravel repeat_interleave reshape "
    "roll rot90 row_stack scatter scatter_add scatter_reduce select select_scatter slice_scatter split squeeze stack "
    "swapaxes swapdims t take take_along_dim tensor_split tile transpose tril triu unbind unflatten unsqueeze "
    "vander view_as_complex view_as_real vsplit vstack where "
    # comparison
    "allclose argsort eq equal fmax fmin ge greater greater_equal gt isclose isfinite isin isinf isnan isneginf "
    "isposinf isreal kthvalue le less less_equal lt maximum minimum msort ne not_equal searchsorted sort topk "
    # element-wise
    "abs absolute acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin "
    "asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor "
    "bucketize ceil clamp clamp_max clamp_min clip complex conj copysign cos cosh deg2rad digamma div divide erf erfc "
    "erfinv exp exp2 expm1 fix float_power floor floor_divide fmod frac gradient heaviside hypot i0 igamma igammac "
    "imag ldexp lerp lgamma log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor "
    "logit mul multiply mvlgamma nan_to_num neg negative nextafter polar polygamma positive pow rad2deg real "
    "reciprocal remainder round rsqrt rsub sgn sigmoid sign signbit sin sinc sinh softmax sqrt square sub subtract tan "
    "tanh true_divide trunc xlogy "
    # reduction
    "all amax amin aminmax any argmax argmin bincount count_nonzero cummax cummin cumprod cumsum cov corrcoef diff "
    "dist histc logcumsumexp logsumexp max mean median min mode nanmean nanmedian nanquantile nansum norm prod "
    "quantile std std_mean sum trapezoid unique unique_consecutive var var_mean "
    # linear algebra
    "addbmm addmm addmv addr baddbmm bmm cdist chain_matmul cross det dot einsum ger inner inverse kron logdet "
    "matmul matrix_exp mm mv outer pinverse renorm tensordot trace vdot"
).split()

_LINALG_OPS = ["cholesky", "eigh", "lstsq", "matrix_norm", "qr", "slogdet", "solve", "svd", "vector_norm"]
_EINOPS = ("rearrange", "reduce", "repeat", "pack", "unpack")
# In torch.nn.functional, but not functions of tensors alone, or public only by accident.
_NOT_OPS = {"assert_int_or_pair", "boolean_dispatch", "handle_torch_function", "has_torch_function"}

METHODS = frozenset(
    (
        "abs acos add addcmul all amax amin any argmax argmin argsort asin atan atan2 baddbmm bernoulli bfloat16 "
        "bmm bool broadcast_to ceil chunk clamp clamp_max clamp_min clip clone contiguous copysign cos cosh "
        "count_nonzero cross cummax cummin cumprod cumsum deg2rad detach diag diag_embed diagonal diff dim div dot "
        "double eq erf exp expand expand_as expm1 flatten flip float floor floor_divide fmod frac gather ge gt "
        "half index_add index_copy index_fill index_select int isfinite isinf isnan kthvalue le lerp log log10 "
        "log1p log2 logical_and logical_not logical_or logical_xor logit log_softmax logsumexp long lt masked_fill "
        "masked_select matmul max maximum mean median min minimum mm moveaxis movedim mul mv nan_to_num nanmean "
        "nansum narrow ne neg new_empty new_full new_ones new_zeros nonzero norm numel outer permute pow prod "
        "quantile ravel reciprocal relu remainder repeat repeat_interleave reshape reshape_as roll round rsqrt "
        "scatter scatter_add scatter_reduce select sigmoid sign sin sinh size softmax sort split split_with_sizes "
        "sqrt square squeeze std sub sum swapaxes swapdims t take_along_dim tan tanh tensor_split tile to topk "
        "transpose tril triu trunc type_as unbind unflatten unfold unique unsqueeze var view view_as where xlogy"
    ).split()
)
ATTRIBUTES = frozenset(("shape", "dtype", "device", "ndim", "mT"))

# What a block may not name anything: words of the dialect, and the instance in the compiled code.
TAKEN = frozenset(("index", "training", "params", "each", "self"))
# What a module may not be called besides: the public attributes that a GraphModel adds to nn.Module's.
TAKEN_BY_MODELS = frozenset(
    ("architecture_hash", "code", "from_pretrained", "inputs", "save_pretrained", "spec", "tap")
)


@cache
def torch_ops() -> dict[str, tuple[str, Callable[..., Any]]]:
    """Op name -> (the module it is written under in compiled code, the function)."""
    import einops
    import torch
    import torch.nn.functional as F

    ops: dict[str, tuple[str, Callable[..., Any]]] = {}
    for name in _LINALG_OPS:
        ops[name] = ("torch.linalg", getattr(torch.linalg, name))
    for name in (*_TORCH_OPS, *CREATION_OPS):
        ops[name] = ("torch", getattr(torch, name))
    for name in dir(F):
        function = getattr(F, name)
        public = not name.startswith("_") and not name.endswith("_") and name not in _NOT_OPS
        if public and callable(function) and not inspect.isclass(function) and _is_tensor_function(function):
            ops[name] = ("F", function)
    for name in _EINOPS:
        ops[name] = ("einops", getattr(einops, name))
    ops["einsum"] = ("torch", einsum)
    return ops


def einsum(*arguments: Any) -> Any:
    """The sum of products that a pattern describes, in torch's letters or, as einops has it, in names of axes."""
    import einops
    import torch

    first, *rest = arguments
    if isinstance(first, str) and not names_axes(first):
        return torch.einsum(*arguments)
    return einops.einsum(*rest, first) if isinstance(first, str) else einops.einsum(*arguments)  # pyrefly: ignore


def names_axes(pattern: str) -> bool:
    """Whether a pattern such as `batch time, time dim -> batch dim` separates axes by spaces and has names for them."""
    operands = [operand.split() for operand in re.split(",|->", pattern)]
    return any(len(axes) > 1 and any(axis.isidentifier() and len(axis) > 1 for axis in axes) for axes in operands)


def _is_tensor_function(function: Callable[..., Any]) -> bool:
    module = getattr(function, "__module__", None)
    return module in (None, "torch.nn.functional", "torch._jit_internal", "torch._C._nn", "torch")


def training_position(name: str) -> int | None:
    """Where the op has its argument `training`, which compiled code then gives it; None if it has none."""
    function = OPS.get(name) if OPS.has(name) else torch_ops()[name][1]
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin of torch; none of them has one
        return None
    return parameters.index("training") if "training" in parameters else None


def creates(name: str, positional: int, keywords: Collection[str | None]) -> bool:
    """Whether a call of an op makes a tensor of numbers. Without `device` that is made where the block's tensors are.

    `normal` does where it is given a size, its third argument; its other form draws around tensors.
    """
    return name in CREATION_OPS or (name == "normal" and (positional > 2 or "size" in keywords))


# Functions of torch.nn.functional that choose a dimension by the rank, if they are given none: of [B, T, D] the batch.
NEEDS_DIM = ("softmax", "log_softmax", "softmin")
ANY_DIM = "without 'dim', '{}' takes a dimension that depends on how many there are."
WRITE_DIM = "write dim=-1, or the dimension that is meant"

# Arguments with which an op changes what it is given.
CHANGING = ("out", "inplace", "max_norm")


@cache
def changing_positions(name: str) -> dict[int, str]:
    """Where an op has such arguments."""
    try:
        parameters = inspect.signature(torch_ops()[name][1]).parameters
    except (TypeError, ValueError):  # a builtin of torch: `out` is a keyword there
        return {}
    return {i: parameter for i, parameter in enumerate(parameters) if parameter in CHANGING}


@cache
def torch_types() -> dict[str, type]:
    """The module classes of torch.nn, by their own names."""
    import torch.nn as nn

    left_out = {"Module", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Container", "DataParallel"}
    return {
        name: kind
        for name, kind in vars(nn).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and name not in left_out
    }


@cache
def shipped_types() -> dict[str, type]:
    """The module classes that this package adds to torch's."""
    from . import blocks
    from .blocks import version1

    return {**{name: getattr(blocks, name) for name in blocks.__all__}, **version1.BLOCKS}


def find_type(name: str) -> type | Callable[..., Any] | None:
    if TYPES.has(name):
        return TYPES.get(name)
    return shipped_types().get(name) or torch_types().get(name)


def is_known_code(kind: Callable[..., Any]) -> bool:
    """Whether the code of a type is torch's or this package's own, and not another library's behind a backbone."""
    home = kind.__module__
    return home.startswith("torch.nn") or (
        home.startswith("model_constructor.blocks") and not home.endswith("_backbone")
    )


def type_names() -> list[str]:
    return [*TYPES.keys(), *shipped_types(), *torch_types(), "Param", "Buffer"]


@cache
def initialisers() -> dict[str, Callable[..., Any]]:
    """The functions of torch.nn.init that fill a tensor, by name without the underscore."""
    import torch.nn.init as init

    return {name[:-1]: getattr(init, name) for name in dir(init) if name.endswith("_") and not name.startswith("_")}
