"""Pictures from strangers: formats, orientation, frames, limits before decoding, and errors that name their cause."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from hystar_fast.data.images import TooManyPixels
from hystar_fast.serve.decoding import BadImage, Decoder
from tests.support import bombs


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_of_the_list_is_read(kind):
    assert Decoder().decode(encoded(noise(), kind), "image").size == (40, 30)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "PDF", "EPS", "DDS", "JPEG2000", "TGA", "PCX"])
def test_other_formats_are_refused(kind):
    with pytest.raises(BadImage, match=r"^image must be an image file, but it is not an image that can be read$"):
        Decoder().decode(encoded(noise(), kind), "image")


def test_a_picture_is_upright():
    turned = noise().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = Decoder().decode(encoded(turned, "PNG", exif=exif), "image")
    assert np.array_equal(np.asarray(found), np.asarray(noise()))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_of_several_frames_is_read(kind):
    colours = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    data = encoded(colours[0], kind, save_all=True, append_images=colours[1:])
    red, green, blue = Decoder().decode(data, "image").getpixel((8, 8))
    assert red > 240 and max(green, blue) < 16


def damaged() -> dict[str, bytes]:
    """Return files that are no whole picture."""
    png, jpeg, webp = (encoded(noise(), kind) for kind in ("PNG", "JPEG", "WEBP"))
    return {
        "empty": b"",
        "one byte": b"\xff",
        "text": b"this is no picture",
        "html": b"<!doctype html><img src=x>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "zip": b"PK\x03\x04" + bytes(100),
        "half a PNG": png[: len(png) // 2],
        "half a JPEG": jpeg[: len(jpeg) // 2],
        "half a WebP": webp[: len(webp) // 2],
        "a PNG without its header": png[:8] + png[33:],
        "a PNG with another checksum": png[:45] + bytes([png[45] ^ 1]) + png[46:],
        "a JPEG header alone": jpeg[:20],
        "half an AVIF": encoded(noise(), "AVIF")[:200],
        "a TIFF without a directory": b"II*\0\x08\0\0\0",
    }


@pytest.mark.parametrize("name", damaged())
def test_every_damaged_file_is_refused_in_one_line(name):
    with pytest.raises(BadImage, match=r"^style must be an? (whole )?image file, but it is [^\n]+$") as error:
        Decoder().decode(damaged()[name], "style")
    assert "0x" not in str(error.value)


def test_values_without_a_known_white_are_refused():
    grey = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    with pytest.raises(BadImage, match="unknown range"):
        Decoder().decode(encoded(grey, "TIFF"), "image")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("kind", "width", "height"), [("png", 13_000, 13_000), ("png", 9000, 5000), ("webp", 16_000, 16_000)]
)
def test_too_many_pixels_are_refused_from_the_header(kind, width, height, monkeypatch):
    data = getattr(bombs, kind)(width, height)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    start = time.process_time()
    with pytest.raises(TooManyPixels, match="pixels"):
        Decoder().decode(data, "image")
    assert time.process_time() - start < 0.05


def test_the_limit_itself_is_allowed():
    assert Decoder(max_pixels=1200).decode(encoded(noise(), "PNG"), "image").size == (40, 30)
    with pytest.raises(TooManyPixels, match=r"image must be an image of fewer pixels, but it is too large: 40 x 30"):
        Decoder(max_pixels=1199).decode(encoded(noise(), "PNG"), "image")


CHILD = """
import resource, sys
from hystar_fast.data.images import TooManyPixels
from hystar_fast.serve.decoding import Decoder
data = sys.stdin.buffer.read()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
try:
    Decoder().decode(data, "image")
except TooManyPixels:
    print("refused")
"""


def test_a_bomb_needs_no_memory():
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=bombs.png(13_000, 13_000), capture_output=True, check=False
    )
    assert done.stdout.decode().strip() == "refused", done.stderr.decode()


def test_pictures_that_are_too_much_together_wait_for_their_turn(monkeypatch):
    decoder = Decoder(max_pixels=1200, max_pixels_at_once=2500)
    together, most, lock = 0, 0, threading.Lock()
    turn = ImageOps.exif_transpose

    def slow(image):
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.02)
        found = turn(image)
        with lock:
            together -= 1
        return found

    monkeypatch.setattr(ImageOps, "exif_transpose", slow)
    data, broken = encoded(noise(), "BMP"), encoded(noise(), "BMP")[:2000]

    def work(number):
        if number % 3:
            decoder.decode(data, "image")
        else:
            with pytest.raises(BadImage):
                decoder.decode(broken, "image")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == 2
    assert decoder._free == 2500
