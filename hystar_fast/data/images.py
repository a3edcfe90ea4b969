"""Read pictures: decode a file to RGB, resize it to the input of a model, and normalise it.

Training, evaluation, indexing and search all read a picture by the same steps::

    load_image (file -> RGB)  ->  resize (RGB -> uint8 [3, H, W])  ->  normalise (uint8 -> the model's input)

Each backbone defines `resize` and `normalise`; its `preprocess` applies one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

READER_RULES = {"orientation": "exif 1", "transparency": "white 1", "grey16": "linear 1", "jpeg": "reduced 1"}
"""How `decode_image` makes pixels of a file; embeddings of other rules are not compared with these."""
MOST_PIXELS = 120_000_000
"""The most pixels of a picture that is decoded; cameras have up to 102 million."""
_LONGEST_STRIP = 100  # times its width; longer ones are cropped before they are resized
FITS = ("crop", "squash", "pad")
_INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class TooManyPixels(ValueError):
    """A picture has more pixels than its reader may decode; it was not decoded."""


def load_image(path: str | Path, *, least: int = 0) -> Image.Image:
    """Read an image file as RGB, upright by its EXIF orientation.

    Transparent parts become white, and 16-bit grey is scaled to 8 bits.

    Args:
        path: of the file.
        least: see `decode_image`.

    Raises:
        ValueError: the file is missing, is not an image, is damaged or too large, or holds values of unknown range.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path must be an image file, but {path} does not exist or is not a file")
    return decode_image(path, str(path), least=least)


def decode_image(
    source: str | Path | BinaryIO,
    name: str,
    *,
    least: int = 0,
    most_pixels: int = MOST_PIXELS,
    formats: tuple[str, ...] | None = None,
    admit: Callable[[int], object] = lambda pixels: None,
) -> Image.Image:
    """Read an image from a path or an open file as `load_image` does; of several frames, the first.

    Args:
        source: what is read.
        name: stands for it in error messages.
        least: pixels that the shorter side needs. A larger JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which
            takes a quarter of the time at 12 megapixels; 0 means its full size. For twice the side of a model's input
            the embeddings are the same (mean cosine 0.99999 over drawings as photos of 12 megapixels).
        most_pixels: more are refused by the size in the header, before anything is decoded.
        formats: Pillow's names of the formats that are read; None for all.
        admit: called with the number of pixels before anything is decoded; it may wait.

    Raises:
        ValueError: as `load_image`; TooManyPixels where it has more than `most_pixels`.
    """
    try:
        with Image.open(source, formats=formats) as image:
            if image.width * image.height > most_pixels:
                raise TooManyPixels(
                    f"path must be an image of fewer pixels, but {name} is too large: {image.width} x {image.height} "
                    f"pixels, more than {most_pixels}"
                )
            if least:
                image.draft(None, (least, least))
            admit(image.width * image.height)
            image.load()
            return to_rgb(_with_8_bits(ImageOps.exif_transpose(image), name))
    except (MemoryError, TooManyPixels):
        raise
    except _RangeError as error:
        raise ValueError(str(error)) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"path must be an image file, but {name} is not an image that can be read") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"path must be an image of fewer pixels, but {name} is too large: {error}") from error
    # Decoders raise different exceptions for damaged files: RuntimeError (AVIF), NotImplementedError (DDS), ...
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"path must be a whole image file, but {name} is truncated or damaged: {reason}") from error


def least_side(resize: Resize) -> int:
    """Return `least` of `decode_image` for a model's input."""
    return 2 * max(resize.size)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, with transparent parts on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    return canvas.convert("RGB")


class _RangeError(ValueError):
    """The values of an image have no known white."""


def _with_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit grey to 8 bits; other modes pass unchanged."""
    if not (image.mode in ("I", "F") or image.mode.startswith("I;16")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise _RangeError(f"path must be an image of 8 or 16 bits, but {name} has values of an unknown range")
    grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


class Resize(Protocol):
    """A function from an RGB picture of any size to a tensor of one size."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the tensor in pixels."""

    def __call__(self, picture: Image.Image) -> Tensor:
        """Resize a picture in RGB to uint8 [3, *size]."""


@dataclass(frozen=True)
class ResizeTo:
    """Resize with Pillow, as torchvision's and open_clip's evaluation transforms do.

    Attributes:
        size: height and width of the result in pixels.
        fit: "crop" scales the picture to cover `size` and cuts off what is outside, "squash" ignores its proportions,
            "pad" scales it to fit inside `size` and fills the rest with `fill`.
        interpolation: "bicubic" or "bilinear", both with antialiasing.
        fill: grey level 0 to 255 of the padding.

    Raises:
        ValueError: `fit` or `interpolation` is unknown, or `size` is not positive.

    Example:
        >>> ResizeTo((8, 8), "crop")(Image.new("RGB", (40, 20))).shape
        torch.Size([3, 8, 8])
    """

    size: tuple[int, int]
    fit: str = "crop"
    interpolation: str = "bicubic"
    fill: int = 0

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {FITS}, got {self.fit!r}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {(*_INTERPOLATIONS,)}, got {self.interpolation!r}")
        if min(self.size) < 1:
            raise ValueError(f"size must be at least 1 pixel a side, got {self.size}")

    def __call__(self, picture: Image.Image) -> Tensor:
        height, width = self.size
        resampling = _INTERPOLATIONS[self.interpolation]
        if self.fit == "squash":
            return to_uint8(picture.resize((width, height), resampling))
        picture = self._without_far_ends(picture)
        scaled = picture.resize(self._scaled(picture.width, picture.height), resampling)
        if self.fit == "crop":
            left, top = round((scaled.width - width) / 2), round((scaled.height - height) / 2)
            return to_uint8(scaled.crop((left, top, left + width, top + height)))
        canvas = Image.new("RGB", (width, height), (self.fill,) * 3)
        canvas.paste(scaled, ((width - scaled.width) // 2, (height - scaled.height) // 2))
        return to_uint8(canvas)

    def _without_far_ends(self, picture: Image.Image) -> Image.Image:
        """Cut the ends of a strip that would need gigabytes when scaled, and lie far outside the crop."""
        longest = _LONGEST_STRIP * min(picture.size)
        if self.fit != "crop" or max(picture.size) <= longest:
            return picture
        width, height = min(picture.width, longest), min(picture.height, longest)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return picture.crop((left, top, left + width, top + height))

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height of the scaled picture before it is cropped or padded."""
        rows, columns = self.size
        if self.fit == "crop" and rows == columns:  # torchvision truncates the longer side
            if width <= height:
                return columns, int(rows * height / width)
            return int(columns * width / height), rows
        ratios = height / rows, width / columns
        ratio = min(ratios) if self.fit == "crop" else max(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def to_uint8(picture: Image.Image) -> Tensor:
    """Return the pixels of an RGB picture as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 images to floating point in [0, 1]; floating-point images pass unchanged."""
    return images if images.is_floating_point() else images.float() / 255


def to_picture(image: Tensor) -> Image.Image:
    """Return an image [3, H, W], uint8 or floating point in [0, 1], as a Pillow image."""
    pixels = image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


@dataclass(frozen=True)
class Normalise:
    """Normalise images by the statistics a model was trained with: (x - mean) / std for each channel.

    Attributes:
        mean, std: of the red, green and blue channels, on the scale [0, 1].

    Example:
        >>> Normalise((0.5,) * 3, (0.5,) * 3)(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).max()
        tensor(1.)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images [..., 3, H, W], uint8 or floating point in [0, 1]."""
        mean, std = _columns(self.mean, self.std, images.device)
        return (to_float(images) - mean) / std


@lru_cache(maxsize=32)
def _columns(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the statistics as tensors [3, 1, 1] on a device."""
    with torch.inference_mode(False):
        return tuple(torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))  # type: ignore[return-value]


@dataclass(frozen=True)
class Preprocess:
    """Make a model's input [3, H, W] of one picture: RGB, resized, normalised."""

    resize: Resize
    normalise: Normalise

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.normalise(self.resize(to_rgb(picture)))


def thumbnail(picture: Image.Image, side: int) -> Tensor:
    """Show a whole picture in a white square, as uint8 [3, side, side]."""
    scale = side / max(picture.size)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    square = Image.new("RGB", (side, side), "white")
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(scaled, ((side - width) // 2, (side - height) // 2))
    return to_uint8(square)
