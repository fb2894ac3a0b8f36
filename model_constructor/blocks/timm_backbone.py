"""An image backbone of timm (Wightman 2019), by its name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import nearest


class TimmBackbone(nn.Module):
    """A model of timm without its classifier. It needs the package `timm`.

    name: of timm's own registry, with or without the tag of its weights (`resnet18`, `resnet18.a1_in1k`). Names that
    lead elsewhere, to a folder or to somebody's repository, are refused.
    output: "pooled" for one vector, "features" for what is pooled otherwise, or a list of levels such as [2, 3].
    pretrained: loads timm's weights, from its cache or over the network; not on the meta device, which holds none.
    channels: of the image [3]. image_size: side in pixels, for models that are built for one [timm's].
    """

    def __init__(
        self,
        name: str,
        output: str | list[int] = "pooled",
        *,
        pretrained: bool = False,
        channels: int = 3,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise ValueError(f"timm's registry has no model '{name}'; {nearest(name, timm.list_models())}")
        options: dict[str, Any] = {"in_chans": channels, "img_size": image_size}
        if isinstance(output, list):
            options |= {"features_only": True, "out_indices": tuple(output)}
        elif output == "pooled":
            options |= {"num_classes": 0}
        elif output == "features":
            options |= {"num_classes": 0, "global_pool": ""}
        else:
            raise ValueError(f"output {output!r} is neither 'pooled' nor 'features' nor a list of levels")
        on_meta = torch.get_default_device().type == "meta"
        self.model = timm.create_model(name, pretrained=pretrained and not on_meta, **options)
        self.pretrained = pretrained

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """image [B, channels, H, W], normalised as the weights expect it -> by `output`:

        "pooled": [B, D]. "features": [B, D, h, w] of convolutional networks, [B, tokens, D] of transformers.
        [levels]: the list of their maps [B, D_i, h_i, w_i], as timm lays them out (a few have D last).
        """
        return self.model(image)
