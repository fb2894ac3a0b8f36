"""The module types of version 1 of the dialect. Their parts are named as there, and so are their weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn


class ConvBnAct(nn.Module):
    """Convolution, normalisation, activation.

    in_channels: null is found at the first call. bias: by default only without a `norm` of the caller's own.
    norm [BatchNorm2d(out_channels)], act [ReLU(inplace=True)].
    """

    def __init__(
        self,
        *,
        in_channels: int | None,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool | None = None,
        norm: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
            "bias": norm is None if bias is None else bias,
        }  # fmt: skip
        self.conv: nn.Module
        if in_channels is None:
            self.conv = nn.LazyConv2d(out_channels, kernel_size, **options)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, **options)
        self.norm = nn.BatchNorm2d(out_channels) if norm is None else norm
        self.act = nn.ReLU(inplace=True) if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> [B, out_channels, H', W']."""
        return self.act(self.norm(self.conv(x)))


class DimsMLP(nn.Module):
    """Linear layers of widths `dims`, with one activation [ReLU()] and dropout between them.

    dims: the first may be null, found at the first call. final_activation: after the last layer, if any.
    """

    def __init__(
        self,
        *,
        dims: list[int | None],
        activation: nn.Module | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        final_activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(dims) < 2:
            raise ValueError("dims needs two widths or more")
        between = [nn.ReLU() if activation is None else activation]
        if dropout > 0:
            between.append(nn.Dropout(dropout))
        layers: list[nn.Module] = []
        for width, out in pairwise(dims):
            if out is None:
                raise ValueError("only the first of dims may be null")
            layers += between if layers else []
            layers.append(nn.LazyLinear(out, bias) if width is None else nn.Linear(width, out, bias))
        self.net = nn.Sequential(*layers, *([] if final_activation is None else [final_activation]))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dims[0]] -> [..., dims[-1]]."""
        return self.net(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip, then an activation [ReLU(inplace=True)] (He et al. 2016, figure 2).

    out_channels [in_channels]. The skip is a 1x1 convolution where the shape changes.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int | None = None, stride: int = 1, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        out = in_channels if out_channels is None else out_channels
        self.main1 = ConvBnAct(in_channels=in_channels, out_channels=out, stride=stride, padding=1)
        self.main2 = ConvBnAct(in_channels=out, out_channels=out, padding=1, act=nn.Identity())
        self.skip: nn.Module = nn.Identity()
        if out != in_channels or stride != 1:
            self.skip = ConvBnAct(
                in_channels=in_channels, out_channels=out, kernel_size=1, stride=stride, act=nn.Identity()
            )
        self.act = nn.ReLU(inplace=True) if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        return self.act(self.main2(self.main1(x)) + self.skip(x))


BLOCKS: dict[str, type[nn.Module]] = {"conv_bn_act": ConvBnAct, "mlp": DimsMLP, "residual_block": ResidualBlock}
