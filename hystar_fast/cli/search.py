"""Search: answer a picture or words from an indexed gallery, and index a folder of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from hystar_fast.cli.demo import ADAPTER_FOLDER, INDEX_FOLDER
from hystar_fast.cli.report import left_out
from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.records import ImageSet, Record, Skipped, from_folder
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.interface import Method
from hystar_fast.methods.on_device import chosen_device, placed
from hystar_fast.retrieval.embed import (
    embed_images,
    embed_texts,
    find_pictures,
    load_image,
    thumbnail,
)
from hystar_fast.retrieval.embedded import embed_batches
from hystar_fast.retrieval.index import Index
from hystar_fast.retrieval.picture_files import not_read
from hystar_fast.retrieval.pictures import Answer, Question, retrieval_grid

_PICTURE_SIDE = 64


@dataclass(frozen=True)
class Hit:
    """One answer: its place (1 is best), id, what it is called, and its cosine."""

    place: int
    id: str
    caption: str
    score: float


@dataclass(frozen=True)
class Searcher:
    """An index with the model that made it."""

    index: Index
    method: Method

    @classmethod
    def open(cls, directory: Path) -> Searcher:
        """Open what `hystar-fast demo` or `hystar-fast embed` wrote.

        Raises:
            ValueError: the folder or something in it is missing or damaged.
        """
        if not (directory / INDEX_FOLDER).is_dir() or not (directory / ADAPTER_FOLDER).is_dir():
            raise ValueError(
                f"{directory} must be a folder written by `hystar-fast demo` or `hystar-fast embed`: "
                f"it has no {INDEX_FOLDER}/ and {ADAPTER_FOLDER}/. Run `hystar-fast demo --output {directory}` first"
            )
        index = Index.load(directory / INDEX_FOLDER)
        return cls(index, load_method(directory / ADAPTER_FOLDER))

    def image(self, path: Path, top: int) -> list[Hit]:
        """The `top` answers to a picture file."""
        picture = self.method.reader.read(load_image(path))
        return self._hits(embed_images(self.method, picture[None]), top)

    def text(self, words: str, top: int) -> list[Hit]:
        """The `top` answers to words."""
        if not words.strip():
            raise ValueError("text must not be empty")
        embedded = embed_texts(self.method, [words])
        if embedded is None:
            raise ValueError("this model takes no text")
        return self._hits(embedded, top)

    def _hits(self, query: Tensor, top: int) -> list[Hit]:
        scores, positions = self.index.search(query, top)
        captions = self.index.about.get("captions", self.index.ids)
        found = zip(positions[0].tolist(), scores[0].tolist(), strict=True)
        return [Hit(place, self.index.ids[i], captions[i], score) for place, (i, score) in enumerate(found, start=1)]

    def picture(self, hits: list[Hit], *, query: Path | None, words: str) -> Image.Image:
        """The query and its answers as one picture."""
        answers = [Answer(self._drawing(hit.id), caption=hit.caption) for hit in hits]
        shown = None if query is None else thumbnail(load_image(query), _PICTURE_SIDE)
        style = "text" if query is None else "picture"
        question = Question(shown, style, words if query is None else query.name, {"answers": answers})
        return retrieval_grid([question], f"First {len(hits)} of {len(self.index)}")

    def _drawing(self, item: str) -> Tensor:
        if self.index.about.get("source") == "emoji":
            return EmojiStyles().images(self.index.about["gallery"], [item])[0]
        return thumbnail(load_image(Path(self.index.about["source"]) / item), _PICTURE_SIDE)


def embed_folder(
    folder: Path, adapter: Path, output: Path, console: Console, device: str = "auto", **changes: str | None
) -> int:
    """Index the pictures of a folder with a trained adapter, batch by batch; `Searcher.open(output)` reads it.

    What cannot be read is left out, named and counted on the console and in the index's `about`. `changes` are of the
    adapter's configuration, such as the place of its backbone.

    Returns:
        How many pictures the index has.

    Raises:
        ValueError: the folder or the adapter cannot be used, no picture can be read, or one has no finite embedding.
    """
    where = chosen_device(device)
    found, unread = find_pictures(folder)
    paths = [path.as_posix() for path in found]
    skipped = [Skipped(path.as_posix(), not_read(path)) for path in unread]
    pictures_in_all = len(paths) + len(skipped)
    method = load_method(adapter, **changes)
    answering = placed(method, where)
    pictures = ImageSet(folder.name, "", tuple(Record(path, "") for path in paths), from_folder(folder))
    ids: list[str] = []
    embedded: list[Tensor] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"embed {folder}", total=len(paths))
        for batch in embed_batches(answering, pictures, pictures.records, skipped):
            bad = (~batch.vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
            if bad:
                raise ValueError(f"the model gives no finite embedding for {batch.records[bad[0]].path}")
            ids += [record.path for record in batch.records]
            embedded.append(batch.vectors)
            progress.update(task, advance=len(batch.records))
    if not ids:
        first = skipped[0].reason
        raise ValueError(f"none of the {pictures_in_all} pictures of {folder} can be read, the first: {first}")
    about = {"source": str(folder.resolve()), "captions": ids, "skipped": left_out(skipped, pictures_in_all)}
    Index(torch.cat(embedded), ids, about).save(output / INDEX_FOLDER)
    save_method(method, output / ADAPTER_FOLDER)
    if skipped:
        first = f"{skipped[0].path}: {skipped[0].reason}"
        said = f"skipped {len(skipped)} of {pictures_in_all} pictures, the first: {first}"
        console.print(said, highlight=False, markup=False)
    return len(ids)
