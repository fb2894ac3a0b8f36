"""A network of Hugging Face transformers, from its configuration or with its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import nearest

# The output asked for says which kind of model gives it; all others are of the bare model.
MODEL_OF_OUTPUT = {"predicted_depth": "AutoModelForDepthEstimation"}
ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
LEADS_ELSEWHERE = ("trust_remote_code", "backbone", "use_timm_backbone", "use_pretrained_backbone", "model_args")
MAX_COUNT = 1_000  # of layers, stages, experts: one layer of these libraries is many modules


class HuggingFaceBackbone(nn.Module):
    """A model of `transformers` that returns one of its outputs. It needs the package `transformers`.

    source: a folder or a name on the hub (of the hub's cache, or over the network), for the configuration and the
    weights; or a configuration `{"model_type": "dinov2", "hidden_size": 384, ...}`, for a new network.
    output: the field of the model's result that is returned; "predicted_depth" makes it a depth model.

    No code of a repository is run, weights are read from safetensors alone, and a configuration that leads to other
    code or weights is refused. On the meta device, which holds none, no weights are loaded.
    """

    def __init__(self, source: str | dict[str, Any], output: str = "last_hidden_state") -> None:
        super().__init__()
        import transformers

        given = source if isinstance(source, dict) else transformers.PretrainedConfig.get_config_dict(source)[0]
        _check_entries(given)
        model_type = given.get("model_type")
        if model_type not in transformers.CONFIG_MAPPING:
            raise ValueError(f"the configuration's model_type is {model_type!r}, which transformers does not have")
        config_class = transformers.CONFIG_MAPPING[model_type]
        config = config_class.from_dict(dict(given), attn_implementation=given.get("attn_implementation"))
        _check_entries(config.to_dict())  # also what the class itself fills in
        if isinstance(source, dict):
            _check_names(source, config_class())
        kind = getattr(transformers, MODEL_OF_OUTPUT.get(output, "AutoModel"))
        if isinstance(source, dict) or torch.get_default_device().type == "meta":
            model = kind.from_config(config, trust_remote_code=False)
        else:
            model = kind.from_pretrained(source, config=config, trust_remote_code=False, use_safetensors=True)
        self.output = output
        self.pretrained = isinstance(source, str)
        self.model = model.train()  # as every new module; from_pretrained gives it in eval

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        """What the model's own forward takes -> its field `output`: of images pixel_values [B, C, H, W] -> [B, T, D],
        of text input_ids [B, T] and attention_mask=[B, T] -> [B, T, D], of depth models -> [B, H, W]."""
        return self.model(*inputs, **options)[self.output]


def _check_entries(config: dict[str, Any]) -> None:
    """Refuse a configuration that fetches code or weights of its own, or that is absurdly deep."""
    for key, value in _entries(config):
        if "attn_implementation" in key and value not in ATTENTION:
            raise ValueError(f"{key} {value!r} may be code to fetch; known: {', '.join(map(str, ATTENTION))}")
        if key in LEADS_ELSEWHERE and value:
            raise ValueError(f"{key} {value!r} leads to other code or weights; for a network of timm use TimmBackbone")
        counts = value if isinstance(value, list) else [value]
        if re.search("layer|depth|stage|expert", key) and any(type(n) is int and n > MAX_COUNT for n in counts):
            raise ValueError(f"{key} is {value}; at most {MAX_COUNT} are built")


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield str(key), value  # id2label has numbers for keys
        if isinstance(value, dict):
            yield from _entries(value)


def _check_names(given: dict[str, Any], default: Any) -> None:
    """Refuse a key that the configuration class does not have, which it would keep and never read."""
    for key in given:
        if key != "attn_implementation" and not hasattr(default, key):
            raise ValueError(f"{default.model_type} has no setting '{key}'; {nearest(key, default.to_dict())}")
