"""Images to embeddings: reading image files, and running a method over many images in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.picture_files import IMAGE_SUFFIXES, picture_files


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB, transparent parts on white and grey of 16 bits scaled to 8.

    Raises:
        ValueError: the file is missing, is no image, is damaged or too large, or its range of values is not known; the
            message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path must be an image file, but {path} does not exist or is not a file")
    return decode_image(path, str(path))


def decode_image(source: str | Path | BinaryIO, name: str) -> Image.Image:
    """The same from an open file; `name` is what a message calls it."""
    try:
        with Image.open(source) as image:
            image.load()
            rgba = _scaled(image) if image.mode in ("I", "F") or image.mode.startswith("I;16") else image
            rgba = None if rgba is None else rgba.convert("RGBA")
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"path must be an image file, but {name} is not an image that can be read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"path must be an image of fewer pixels, but {name} is too large: {error}") from error
    # Which exception a damaged file ends in is the decoder's own: RuntimeError of AVIF, NotImplementedError of DDS, ….
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"path must be a whole image file, but {name} is truncated or damaged: {reason}") from error
    if rgba is None:
        raise ValueError(f"path must be an image of 8 or 16 bits, but {name} has values of an unknown range")
    canvas = Image.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    return canvas.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image | None:
    """Grey of 16 bits as grey of 8; None for numbers that are not of 16 bits, whose white nobody knows."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        return None
    grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def thumbnail(image: Image.Image, side: int) -> Tensor:
    """An image to be looked at, whole, as uint8 [3, side, side]: padded to a square with white and resized."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    resized = square.resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)


def find_pictures(directory: str | Path) -> tuple[list[Path], list[Path]]:
    """What `picture_files` finds below a folder, where any of it is read.

    Raises:
        ValueError: the folder is missing or holds no image.
        OSError: a folder in it that cannot be listed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"directory must be a folder of images, but {directory} does not exist or is not a folder")
    found, unread = picture_files(directory)
    if not found:
        raise ValueError(
            f"directory must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}), but {directory} holds none"
        )
    return found, unread


def to_float(images: Tensor) -> Tensor:
    """uint8 images to floating point in [0, 1]; floating point passes through."""
    return images if images.is_floating_point() else images.float() / 255


@torch.no_grad()
def embed_images(
    method: Method,
    images: Tensor,
    *,
    batch_size: int = 128,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Unit vectors [n, D] of images [n, 3, H, W] (uint8, or floating point in [0, 1]).

    Args:
        method: the encoder; it is switched to evaluation.
        images: all images.
        batch_size: images a forward pass.
        progress: called with the size of every batch once it is done.

    Raises:
        ValueError: `images` is not [n, 3, H, W] with n at least 1.
    """
    method.train(False)
    return torch.cat(list(_encoded(method.encode_image, _checked(images), batch_size, progress)))


@torch.no_grad()
def embed_styles(method: Method, images: Tensor, *, batch_size: int = 128) -> Tensor | None:
    """Style vectors [n, d] of images, or None for a method that takes none. They do not change while it trains."""
    parts = []
    for batch in _checked(images).split(batch_size):
        part = method.style(to_float(batch))
        if part is None:
            return None
        parts.append(part)
    return torch.cat(parts)


@torch.no_grad()
def embed_texts(method: Method, texts: Sequence[str], *, batch_size: int = 256) -> Tensor | None:
    """Unit vectors [n, D] of texts, or None for a method that takes no text."""
    method.train(False)
    parts = []
    for start in range(0, len(texts), batch_size):
        part = method.encode_text(texts[start : start + batch_size])
        if part is None:
            return None
        parts.append(part)
    return torch.cat(parts) if parts else None


def _encoded(
    encode: Callable[[Tensor], Tensor], images: Tensor, batch_size: int, progress: Callable[[int], object] | None
) -> Iterator[Tensor]:
    for batch in images.split(batch_size):
        yield encode(to_float(batch))
        if progress is not None:
            progress(len(batch))


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"images must be [n, 3, H, W] with n at least 1, got {tuple(images.shape)}")
    return images
