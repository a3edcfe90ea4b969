"""Decode pictures from strangers: few formats, a limit of pixels read from the header, the first frame alone."""

from __future__ import annotations

import io
import threading

from PIL import Image

from hystar_fast.data.images import TooManyPixels, decode_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MEGAPIXEL = 1_000_000


def media_type(image: Image.Image) -> str:
    """Return the media type of an opened picture; a JPEG with further frames (MPO), as phones write it, is a JPEG."""
    return Image.MIME["JPEG" if image.format == "MPO" else image.format or ""]


class BadImage(ValueError):
    """A file is no picture that can be read."""


class Decoder:
    """Decodes pictures in the threads that call it.

    Args:
        max_pixels: of one picture.
        max_pixels_at_once: of all pictures that are being decoded; others wait for their turn.
    """

    def __init__(self, max_pixels: int = 40 * MEGAPIXEL, max_pixels_at_once: int = 80 * MEGAPIXEL) -> None:
        self.max_pixels, self._free = max_pixels, max(max_pixels, max_pixels_at_once)
        self._changed = threading.Condition()

    def decode(self, data: bytes, name: str, *, least: int = 0) -> Image.Image:
        """Decode a file to RGB, upright.

        Args:
            data: the file.
            name: of the field that it came in.
            least: see `decode_image`.

        Raises:
            TooManyPixels: the header states more than `max_pixels`; nothing was decoded.
            BadImage: it is no picture, of another format, or damaged.
        """
        taken = 0

        def take(pixels: int) -> None:
            nonlocal taken
            with self._changed:
                self._changed.wait_for(lambda: self._free >= pixels)
                self._free -= pixels
            taken = pixels

        try:
            return decode_image(
                io.BytesIO(data), "it", least=least, most_pixels=self.max_pixels, formats=FORMATS, admit=take
            )
        except ValueError as error:
            kind = TooManyPixels if isinstance(error, TooManyPixels) else BadImage
            raise kind(str(error).replace("path must", f"{name} must", 1)) from error
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()
