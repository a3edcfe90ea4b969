"""Small files that state many pixels."""

from __future__ import annotations

import struct
import zlib


def png(width: int, height: int) -> bytes:
    """Write a black PNG of 8-bit grey without holding its pixels: 169 million pixels take some 160 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = b"\0" * (width + 1)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    """Write a lossless WebP of one colour, with the sizes of a large one in its headers."""
    bits = (width - 1) | (height - 1) << 14
    lossless = b"\x2f" + struct.pack("<I", bits) + bytes(8)
    body = b"WEBP" + b"VP8L" + struct.pack("<I", len(lossless)) + lossless + b"\0" * (len(lossless) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body
