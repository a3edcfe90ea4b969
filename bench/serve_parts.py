"""Parts of bench_serve.py: an index, requests, the same work without a server, and the server as a process."""

from __future__ import annotations

import io
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.images import decode_image, least_side
from hystar_fast.index.engine import Item
from hystar_fast.index.generation_methods import open_view, save_generation
from hystar_fast.index.open_index import create_engine, open_engine
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar

BATCH, PICTURES, SIDE, GALLERY = 32, 96, 256, 400
TEXTS = ("a red heart", "crescent moon", "a dog", "smiling face", "house with garden", "aeroplane", "tree", "clock")
_RAW = 2  # times all pictures, before and after each row


def make_index(folder: Path) -> None:
    """Index drawings with a Hystar of random offsets, whose style is computed in its encoder."""
    torch.manual_seed(0)
    config = HystarConfig(backbone="tiny", pretrained="packaged", style="prefix", blocks=None)
    method = HystarMethod(Hystar(config))
    method.train(False)
    data = load_emoji("test")
    gallery = data.gallery[:GALLERY]
    images = torch.stack([method.resize(data.read(record)) for record in gallery])
    with torch.inference_mode():
        vectors = torch.cat([method.encode_image(batch) for batch in images.split(BATCH)])
    with create_engine(folder, save_generation(method, folder), {"sources": {}}) as engine:
        engine.upsert([Item(record.path) for record in gallery], {"adapted": vectors})
    (folder / "pictures").mkdir()
    for number, record in enumerate(data.of_style("outline")[:PICTURES]):
        picture = data.read(record).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(folder / "pictures" / f"{number:03}.jpg", quality=85)


def write_requests(folder: Path) -> dict[str, list[str]]:
    """Write whole HTTP requests into files; return kind -> files."""
    pictures = [path.read_bytes() for path in sorted((folder / "pictures").iterdir())]
    found: dict[str, list[str]] = {"picture": [], "text": [], "styled": [], "both": []}
    for number, picture in enumerate(pictures):
        text, style = TEXTS[number % len(TEXTS)].encode(), pictures[(number + 7) % len(pictures)]
        kinds = {
            "picture": {"image": picture},
            "text": {"text": text},
            "styled": {"image": picture, "style": style},
            "both": {"image": picture, "text": text},
        }
        for kind, fields in kinds.items():
            path = folder / f"{kind}-{number:03}"
            path.write_bytes(_request(fields))
            found[kind].append(str(path))
    return found


def _request(fields: dict[str, bytes]) -> bytes:
    body = b""
    for name, value in {**fields, "k": b"10"}.items():
        file = '; filename="a.jpg"' if name in ("image", "style") else ""
        body += f'--xx\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"
    body += b"--xx--\r\n"
    head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=xx\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def interleaved(paths: list[str]) -> list[str]:
    """Return paths in a random order, the same every time."""
    return random.Random(0).sample(paths, len(paths))


class Raw:
    """Decoding and encoding without a server, with one thread."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rate = folder, 0.0
        with open_engine(folder) as engine:
            self._method = open_view(engine, engine.generation(), "adapted")
        self._method.model.merge_static_()  # type: ignore[attr-defined]
        self._files = [path.read_bytes() for path in sorted((folder / "pictures").iterdir())]
        torch.set_num_threads(1)
        self._encode(self._files[:BATCH])

    @torch.inference_mode()
    def _encode(self, files: list[bytes]) -> None:
        resize = self._method.resize
        images = [resize(decode_image(io.BytesIO(file), "it", least=least_side(resize))) for file in files]
        self._method.encode_image(torch.stack(images))

    @contextmanager
    def around(self) -> Iterator[Callable[[], float]]:
        """Measure before and after a block; give a function that returns the pictures of a CPU second."""
        rates = [self._measure()]
        yield lambda: statistics.mean(rates)
        rates.append(self._measure())
        self.rate = statistics.mean(rates)

    def _measure(self) -> float:
        start = time.process_time()
        for place in [*range(0, PICTURES, BATCH)] * _RAW:
            self._encode(self._files[place : place + BATCH])
        return _RAW * PICTURES / (time.process_time() - start)

    @contextmanager
    def around_one(self) -> Iterator[Callable[[], float]]:
        """Measure single pictures before and after a block; give a function that returns the median seconds of one."""
        times = self._singles()
        yield lambda: statistics.median(times)
        times += self._singles()

    def _singles(self) -> list[float]:
        times = []
        for file in self._files[:BATCH]:
            start = time.perf_counter()
            self._encode([file])
            times.append(time.perf_counter() - start)
        return times


def serve(
    folder: str, *, batch: int = BATCH, workers: int = 1, threads: int = 1, queue: int = 256, **rest: float
) -> None:
    """Serve the index in a folder at a free port, which is printed; `rest` are other settings of the server."""
    from hystar_fast.serve import server
    from hystar_fast.serve.service import Limits

    server.batch_size_on = lambda device: batch
    server.Encoder = partial(server.Encoder, threads=threads)  # type: ignore[assignment, misc]
    settings = server.ServerSettings(port=0, encoders=workers, limits=Limits(queue=queue), **rest)
    with open_engine(folder) as engine:
        running = server.Server(engine, server.open_views, settings, lambda line: None)
        print(running.url.rstrip("/").rpartition(":")[2], flush=True)
        running.run()


if __name__ == "__main__":
    serve(sys.argv[1], **json.loads(sys.argv[2]))
