"""Image transforms: images and random numbers -> images, every sample of a batch changed by a draw of its own.

A transform is its parameters and a call, [B, T, C, H, W] float32 in [0, 1] -> the same. The T steps of a window share
their sample's draw: a camera does not move between two frames because of us. What lies outside an image is its edge,
repeated. The functions below the transforms take what was drawn, and are deterministic.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor


class Draws:
    """Random numbers of one batch: a function of `seed` alone, made on the device, from a stream of their own."""

    def __init__(self, seed: Sequence[int], device: torch.device) -> None:
        self._device = device
        mixed = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
        self._generator = torch.Generator(device).manual_seed(int(mixed))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(shape, device=self._device).uniform_(low, high, generator=self._generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._device, generator=self._generator)


def _ordered(bounds: list[float]) -> list[float]:
    if bounds[0] > bounds[1]:
        raise ValueError("should be [lowest, highest]")
    return bounds


Fraction = Annotated[float, Field(ge=0, le=1)]
Bounds = Annotated[list[PositiveFloat], Field(min_length=2, max_length=2), AfterValidator(_ordered)]
FractionBounds = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2), AfterValidator(_ordered)
]


class Transform(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[B, T, C, H, W] -> a new tensor of that shape; `images` is left alone."""
        raise NotImplementedError

    def refuses(self, channels: int) -> str:
        """Why images of so many channels cannot be changed by this; mostly nothing."""
        return ""


class RandomShift(Transform):
    """Up to `pixels` in each direction, whole pixels: the pad-and-crop of DrQ (Kostrikov et al. 2020)."""

    pixels: PositiveInt = 4

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        down_B, right_B = draws.uniform(-self.pixels, self.pixels + 1, 2, len(images)).floor().long()
        bounded = (offset_B.clamp(-self.pixels, self.pixels) for offset_B in (down_B, right_B))  # float32 may round up
        return shift(images, *bounded)


class RandomCrop(Transform):
    """A window of `scale` times the image's sides, anywhere in the image, resized back."""

    scale: FractionBounds = [0.8, 1.0]

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        side_B = draws.uniform(self.scale[0], self.scale[1], len(images))
        x_B, y_B = draws.uniform(-1, 1, 2, len(images)) * (1 - side_B)  # the window's centre
        zero_B = torch.zeros_like(side_B)
        return warp(images, torch.stack([side_B, zero_B, x_B, zero_B, side_B, y_B], dim=1).view(-1, 2, 3))


class RandomAffine(Transform):
    """A turn of up to `degrees` and a zoom by `scale` about the centre, then a move of up to `translate` of a side."""

    degrees: Annotated[float, Field(ge=0, le=180)] = 5.0
    translate: Fraction = 0.05
    scale: Bounds = [0.95, 1.05]

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        size, (height, width) = len(images), images.shape[-2:]
        angle_B = draws.uniform(-self.degrees, self.degrees, size).deg2rad()
        x_B, y_B = 2 * draws.uniform(-self.translate, self.translate, 2, size)
        zoom_B = draws.uniform(self.scale[0], self.scale[1], size)
        return warp(images, affine_matrix(angle_B, x_B, y_B, zoom_B, width / height))


class ColorJitter(Transform):
    """Brightness, contrast and saturation times 1 +- theirs, then hue +- `hue` of a full turn; in this order."""

    brightness: Fraction = 0.2
    contrast: Fraction = 0.2
    saturation: Fraction = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.02

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        def factor(spread: float) -> Tensor:
            return draws.uniform(1 - spread, 1 + spread, len(images), 1, 1, 1, 1)

        if self.brightness:
            images = (images * factor(self.brightness)).clamp_(0, 1)
        if self.contrast:
            images = blend(images, grey(images.mean(dim=(-2, -1), keepdim=True)), factor(self.contrast))
        if self.saturation:
            images = blend(images, grey(images), factor(self.saturation))
        if self.hue:
            images = turn_hue(images, draws.uniform(-self.hue, self.hue, len(images), 1, 1, 1))
        return images

    def refuses(self, channels: int) -> str:
        coloured = [name for name in ("saturation", "hue") if getattr(self, name)]
        if channels == 3 or (channels == 1 and not coloured):
            return ""
        return "set saturation and hue to 0" if channels == 1 else "colours need images of 3 channels"


class GaussianBlur(Transform):
    """A blur whose standard deviation lies in `sigma`, in pixels; its kernel ends at 3 of the largest."""

    sigma: Bounds = [0.1, 1.5]

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        radius = math.ceil(3 * self.sigma[1])
        return blur(images, draws.uniform(self.sigma[0], self.sigma[1], len(images)), radius)


class GaussianNoise(Transform):
    """Noise of standard deviation `std`, new for each pixel and, as a sensor's is, for each frame of a window."""

    std: Fraction = 0.02

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return draws.normal(*images.shape).mul_(self.std).add_(images).clamp_(0, 1)


class RandomErasing(Transform):
    """A black rectangle: `area` of the image, height / width = `aspect` (Zhong et al. 2017)."""

    area: FractionBounds = [0.02, 0.2]
    aspect: Bounds = [0.3, 3.3]

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        size, (height, width) = len(images), images.shape[-2:]
        area_B = draws.uniform(self.area[0], self.area[1], size) * (height * width)
        aspect_B = draws.uniform(math.log(self.aspect[0]), math.log(self.aspect[1]), size).exp()
        tall_B = (area_B * aspect_B).sqrt().round().clamp(1, height)
        wide_B = (area_B / aspect_B).sqrt().round().clamp(1, width)
        down_B, right_B = draws.uniform(0, 1, 2, size)
        top_B, left_B = (down_B * (height - tall_B)).round(), (right_B * (width - wide_B)).round()
        return erase(images, top_B, left_B, tall_B, wide_B)


TRANSFORMS: dict[str, type[Transform]] = {
    "random_shift": RandomShift,
    "random_crop": RandomCrop,
    "random_affine": RandomAffine,
    "color_jitter": ColorJitter,
    "gaussian_blur": GaussianBlur,
    "gaussian_noise": GaussianNoise,
    "random_erasing": RandomErasing,
}


def shift(images: Tensor, down_B: Tensor, right_B: Tensor) -> Tensor:
    """out[y, x] = in[y + down, x + right], in whole pixels."""
    height, width = images.shape[-2:]
    row_BH = (torch.arange(height, device=images.device) + down_B[:, None]).clamp(0, height - 1)
    column_BW = (torch.arange(width, device=images.device) + right_B[:, None]).clamp(0, width - 1)
    source_BHW = row_BH[:, :, None] * width + column_BW[:, None, :]
    planes = images.flatten(3).flatten(1, 2)  # [B, T * C, H * W]: a sample's planes all move alike
    return planes.gather(2, source_BHW.view(len(images), 1, -1).expand(planes.shape)).view(images.shape)


def warp(images: Tensor, matrix_B23: Tensor) -> Tensor:
    """out(x, y) = in(matrix @ (x, y, 1)), bilinear; x and y are -1 and 1 at the outer edges of the image."""
    planes = images.flatten(1, 2)  # [B, T * C, H, W]
    y_H, x_W = ((2 * torch.arange(size, device=images.device) + 1) / size - 1 for size in images.shape[-2:])
    # Not affine_grid: it multiplies matrices, which bf16 autocast and TF32 would round to a quarter of a pixel.
    along_x, along_y, move = matrix_B23[:, None, None].unbind(dim=-1)  # each [B, 1, 1, 2]
    grid_BHW2 = along_x * x_W[:, None] + along_y * y_H[:, None, None] + move
    return F.grid_sample(planes, grid_BHW2, padding_mode="border", align_corners=False).view(images.shape)


def affine_matrix(angle_B: Tensor, x_B: Tensor, y_B: Tensor, zoom_B: Tensor, width_to_height: float) -> Tensor:
    """The matrix for `warp` that turns clockwise by `angle` (radians), zooms about the centre, then moves by x and y.

    It leads from where a pixel comes to lie to where it came from, so it undoes each in turn. Returns [B, 2, 3].
    """
    cos_B, sin_B = angle_B.cos() / zoom_B, angle_B.sin() / zoom_B
    turn_B22 = torch.stack([cos_B, sin_B / width_to_height, -sin_B * width_to_height, cos_B], dim=1).view(-1, 2, 2)
    moved_B2 = -(turn_B22 * torch.stack([x_B, y_B], dim=1)[:, None]).sum(dim=2)
    return torch.cat([turn_B22, moved_B2[:, :, None]], dim=2)


def grey(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, 0.2989 R + 0.587 G + 0.114 B: [..., 1, H, W]."""
    if images.shape[-3] == 1:
        return images
    red, green, blue = images.unbind(-3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor * images + (1 - factor) * other, kept in [0, 1]."""
    return torch.lerp(other.expand_as(images), images, factor).clamp_(0, 1)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """The hue of HSV moved by `turns` [B, 1, 1, 1] of a full circle; saturation and value stay."""
    red, green, blue = images.unbind(-3)  # each [B, T, H, W]
    value, least = images.amax(dim=-3), images.amin(dim=-3)
    chroma = value - least
    divisor = chroma.clamp(min=1e-8)
    from_green = torch.where(value == green, (blue - red).div_(divisor).add_(2), (red - green).div_(divisor).add_(4))
    sixths = torch.where(value == red, (green - blue).div_(divisor), from_green).add_(6 * turns).remainder_(6)  # hue
    near_red = (sixths - 3).abs_().sub_(1)
    near_green, near_blue = (2 - (sixths - place).abs_() for place in (2, 4))
    colours = torch.stack([near_red, near_green, near_blue], dim=-3).clamp_(0, 1)
    return colours.mul_(chroma.unsqueeze(-3)).add_(least.unsqueeze(-3))


def blur(images: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
    """Convolution with a Gaussian of `sigma` pixels, cut at `radius` and normalised; one direction after the other."""
    steps = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.softmax(-0.5 * (steps / sigma_B[:, None]).square(), dim=1)  # [B, 2 * radius + 1]
    planes = images.flatten(1, 2)  # [B, T * C, H, W]
    for dim, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, size = F.pad(planes, padding, mode="replicate"), planes.shape[dim]
        planes = torch.zeros_like(planes)
        for step in range(2 * radius + 1):
            planes.addcmul_(padded.narrow(dim, step, size), weights[:, step, None, None, None])
    return planes.view(images.shape)


def erase(images: Tensor, top_B: Tensor, left_B: Tensor, tall_B: Tensor, wide_B: Tensor) -> Tensor:
    """Black where top <= y < top + tall and left <= x < left + wide, in pixels."""
    y_H, x_W = (torch.arange(size, device=images.device) for size in images.shape[-2:])
    rows_BH = (y_H >= top_B[:, None]) & (y_H < (top_B + tall_B)[:, None])
    columns_BW = (x_W >= left_B[:, None]) & (x_W < (left_B + wide_B)[:, None])
    return images.masked_fill((rows_BH[:, :, None] & columns_BW[:, None, :])[:, None, None], 0.0)
