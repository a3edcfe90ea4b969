"""A server over a real socket, with a small index of drawings and a method that needs milliseconds."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from hystar_fast.data.images import load_image
from hystar_fast.index.engine import Engine, Generation, Item
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.stamp import Stamp, stamp_of
from hystar_fast.methods.interface import Method
from hystar_fast.serve.server import Server, ServerSettings
from tests.support.linear_method import Linear

COUNT = 24


def method(seed: int) -> Linear:
    """Return a method whose answers depend on the seed and on the style."""
    made = Linear()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.weight += 0.3 * torch.randn(64, 64, generator=generator)
        made.shift.normal_(generator=generator)
    made.name = f"linear{seed}"
    return made


def drawing(number: int) -> Image.Image:
    """Return a picture that is like no other."""
    colours = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((96, 80), Image.Resampling.NEAREST)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    picture.save(content, kind)
    return content.getvalue()


def stamps(methods: Mapping[str, Method]) -> dict[str, Stamp]:
    return {view: stamp_of(entry, 64, None) for view, entry in methods.items()}


def item(folder: Path, number: int) -> Item:
    """Write a drawing into a folder and return its item."""
    path = folder / f"{number:03}.png"
    path.write_bytes(encoded(drawing(number)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    attributes = {"parity": number % 2, "kind": "even number" if number % 2 == 0 else "odd"}
    return Item(path.name, "pictures", path.name, f"drawing {number}", attributes, path.stat().st_size, 1, digest)


def vectors(methods: Mapping[str, Method], folder: Path, items: list[Item]) -> dict[str, torch.Tensor]:
    """Embed the files of items with the method of each view."""
    found = {}
    with torch.inference_mode():
        for view, entry in methods.items():
            images = torch.stack([entry.resize(load_image(folder / one.path)) for one in items])
            found[view] = entry.encode_image(images)
    return found


def make_index(folder: Path, methods: Mapping[str, Method], count: int = COUNT) -> LocalEngine:
    """Index drawings in ``folder/pictures``."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    sources = {"pictures": {"folder": str(pictures), "whole": True}}
    engine = LocalEngine.create(folder / "index", stamps(methods), settings={"sources": sources})
    items = [item(pictures, number) for number in range(count)]
    engine.upsert(items, vectors(methods, pictures, items))
    return engine


def form(**fields: Any) -> dict[str, tuple[str | None, bytes | str]]:
    """Return the parts of a multipart form; bytes are files."""
    return {name: (name, value) if isinstance(value, bytes) else (None, str(value)) for name, value in fields.items()}


@dataclass
class Served:
    """A running server.

    Attributes:
        server: it.
        engine: its index.
        folder: of its pictures.
        lines: of its log.
        client: with its address.
    """

    server: Server
    engine: Engine
    folder: Path
    lines: list[str]
    client: httpx.Client

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.server.url)
        return url.host, url.port or 80

    def connect(self) -> socket.socket:
        """Open a connection of one's own."""
        return socket.create_connection(self.address, timeout=20)

    def search(self, **fields: Any) -> httpx.Response:
        """Search by a form; bytes are files."""
        return self.client.post("v1/search", files=form(**fields))


def seeded(engine: Engine, generation: Generation) -> dict[str, Method]:
    """Load the methods of `method` by the names in the stamps."""
    return {
        view: method(int(str(stamp.values["method"]).removeprefix("linear")))
        for view, stamp in generation.stamps.items()
    }


@contextmanager
def serve(
    engine: Engine,
    folder: Path,
    load: Callable[[Engine, Generation], Mapping[str, Method]] = seeded,
    **settings: Any,
) -> Iterator[Served]:
    """Run a server over an engine in a thread."""
    lines: list[str] = []
    server = Server(engine, load, replace(ServerSettings(port=0), **settings), lines.append)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            yield Served(server, engine, folder, lines, client)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def problem(response: httpx.Response) -> tuple[int, str, str]:
    """Return status, code and field of a problem document."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    content = json.loads(response.text)
    assert content["status"] == response.status_code
    assert content["detail"] and "\n" not in content["detail"]
    return response.status_code, content["code"], content.get("field", "")
