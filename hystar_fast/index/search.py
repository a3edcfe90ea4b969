"""Index a folder of pictures, and answer a picture or words from an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.image_files import find_images, unsupported_reason
from hystar_fast.data.image_set import ImageSet, Record, Skipped, folder_reader
from hystar_fast.data.images import load_image, thumbnail
from hystar_fast.index.memory import MemoryIndex
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.device import on_device, select_device
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.answer_grid import PAGE_TILE, Answer, answer_page
from hystar_fast.retrieval.embed import embed_batches, embed_images, embed_texts
from hystar_fast.retrieval.results_json import skipped_info

INDEX_FOLDER, ADAPTER_FOLDER = "index", "adapter"


@dataclass(frozen=True)
class Hit:
    """One answer: its rank (1 is best), id, caption and cosine similarity."""

    rank: int
    id: str
    caption: str
    score: float


@dataclass(frozen=True)
class Searcher:
    """An index and the method that embedded it."""

    index: MemoryIndex
    method: Method

    @classmethod
    def open(cls, directory: Path) -> Searcher:
        """Open a folder written by `hystar-fast demo`, `hystar-fast embed` or :func:`index_folder`.

        Raises:
            ValueError: the folder or something in it is missing or damaged.
        """
        index = _read_index(directory)
        config = index.about.get("config")
        if config is None:
            return cls(index, load_method(directory / ADAPTER_FOLDER))
        method = create_method("frozen", HystarConfig.from_dict(config))
        if method.fingerprints != index.about.get("fingerprints"):
            raise ValueError(
                f"directory must be an index of the backbone's present weights, got {directory}, which other weights "
                "embedded: index the pictures again with `hystar-fast embed`"
            )
        return cls(index, method)

    def search_image(self, path: Path, top: int) -> list[Hit]:
        """Return the `top` answers to a picture file."""
        picture = self.method.resize(load_image(path))
        return self._hits(embed_images(self.method, picture[None]), top)

    def search_text(self, text: str, top: int) -> list[Hit]:
        """Return the `top` answers to words."""
        if not text.strip():
            raise ValueError(f"text must hold a word, got {text!r}")
        vectors = embed_texts(self.method, [text])
        if vectors is None:
            raise ValueError(f"method must have a text encoder for a query of words, got {self.method.name!r}")
        return self._hits(vectors, top)

    def _hits(self, query: Tensor, top: int) -> list[Hit]:
        scores, positions = self.index.search(query, top)
        captions = self.index.about.get("captions", self.index.ids)
        found = zip(positions[0].tolist(), scores[0].tolist(), strict=True)
        return [Hit(rank, self.index.ids[i], captions[i], score) for rank, (i, score) in enumerate(found, start=1)]

    def draw(self, hits: list[Hit], *, query: Path | None, text: str) -> Image.Image:
        """Draw the query and its answers as one picture."""
        answers = [Answer(self._picture(hit.id), caption=hit.caption, score=hit.score) for hit in hits]
        title = f"First {len(hits)} of {len(self.index)}"
        if query is None:
            return answer_page(None, text, answers, title)
        return answer_page(thumbnail(load_image(query), PAGE_TILE), query.name, answers, title)

    def _picture(self, item: str) -> Tensor | None:
        """Return the picture of an answer; None if it can no longer be read."""
        if self.index.about.get("source") == "emoji":
            return EmojiStyles().images(self.index.about["gallery"], [item])[0]
        try:
            return thumbnail(load_image(Path(self.index.about["source"]) / item), PAGE_TILE)
        except ValueError:
            return None


def _read_index(directory: Path) -> MemoryIndex:
    if (directory / INDEX_FOLDER).is_dir():
        index = MemoryIndex.load(directory / INDEX_FOLDER)
        if "config" in index.about or (directory / ADAPTER_FOLDER).is_dir():
            return index
    raise ValueError(
        f"directory must be a folder that `hystar-fast embed` or `hystar-fast demo` wrote, got {directory}, which has "
        f"no {INDEX_FOLDER}/ with its {ADAPTER_FOLDER}/. First index your pictures: "
        f"hystar-fast embed FOLDER --output {directory}"
    )


def indexed_source(output: Path) -> str | None:
    """Return the folder whose pictures an index holds; None if there is none, or it cannot be read."""
    try:
        return str(_read_index(output).about.get("source"))
    except ValueError:
        return None


def index_folder(
    folder: Path,
    adapter: Path | Method,
    output: Path,
    *,
    device: str = "auto",
    progress: Callable[[int, int], object] | None = None,
    **changes: str | None,
) -> tuple[int, list[Skipped]]:
    """Index the pictures of a folder with a method; `Searcher.open(output)` reads it.

    Unreadable pictures are skipped; the index's `about` names and counts them.

    Args:
        folder: searched recursively.
        adapter: of any trained method, or a method itself: a trained one, or the frozen backbone.
        output: folder for the index and a copy of the adapter.
        device: "auto", "cpu" or "cuda".
        progress: called after every batch with the number of pictures done and their total.
        changes: fields of the adapter's configuration, such as the new place of its backbone.

    Returns:
        The number of indexed pictures, and the skipped ones.

    Raises:
        ValueError: the folder or the adapter cannot be used, no picture can be read, or another command is writing
            `output`.
        FloatingPointError: a picture has an embedding that is not finite.
    """
    with lock_folder(output):
        return _index_folder(folder, adapter, output, device, progress, changes)


def _index_folder(
    folder: Path,
    adapter: Path | Method,
    output: Path,
    device: str,
    progress: Callable[[int, int], object] | None,
    changes: Mapping[str, str | None],
) -> tuple[int, list[Skipped]]:
    where = select_device(device)
    paths, unsupported = find_images(folder)
    skipped = [Skipped(path.as_posix(), unsupported_reason(path)) for path in unsupported]
    total = len(paths) + len(skipped)
    method = adapter if isinstance(adapter, Method) else load_method(adapter, **changes)
    encoder = on_device(method, where)
    records = tuple(Record(path.as_posix(), "") for path in paths)
    pictures = ImageSet(folder.name, "", records, folder_reader(folder))
    ids: list[str] = []
    vectors: list[Tensor] = []
    for batch in embed_batches(encoder, pictures, records, skipped):
        ids += [record.path for record in batch.records]
        vectors.append(batch.vectors)
        if progress is not None:
            progress(len(ids), len(paths))
    if not ids:
        first = skipped[0].reason
        raise ValueError(f"folder must hold readable pictures, got {folder} with none of {total}, the first: {first}")
    about: dict[str, Any] = {
        "source": str(folder.resolve()),
        "captions": ids,
        "skipped": skipped_info(skipped, total),
    }
    frozen = method.config if method.name == "frozen" else None
    if frozen is not None:  # there is no adapter to save
        about |= {"config": frozen.to_dict(), "fingerprints": dict(method.fingerprints)}
    MemoryIndex(torch.cat(vectors), ids, about).save(output / INDEX_FOLDER)
    if frozen is None:
        save_method(method, output / ADAPTER_FOLDER)
    return len(ids), skipped
