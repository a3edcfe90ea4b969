"""Index a folder of pictures with an adapter, and search it with a sketch.

Without --folder the pictures are 100 embedded drawings and the query is an outline of one of them. Without --adapter
a small one is trained first.

    python examples/search_folder.py
    python examples/search_folder.py --folder ~/pictures --adapter runs/demo/adapter --query sketch.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hystar_fast.data.emoji import load_emoji
from hystar_fast.index.folder_index import index_folder
from hystar_fast.index.searcher import Hit, Query, Searcher
from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.train.loop import train
from hystar_fast.train.recipe import Recipe


def write_drawings(folder: Path) -> Path:
    """Write 100 drawings into a folder and an outline of one of them beside it; return the outline's place."""
    drawings = load_emoji("test", ["outline"]).select(limit=100)
    folder.mkdir(parents=True, exist_ok=True)
    for record in drawings.gallery:
        drawings.read(record).save(folder / f"{record.instance}.png")
    sketch = drawings.of_style("outline")[7]
    query = folder.with_name(f"outline-{sketch.instance}.png")
    drawings.read(sketch).save(query)
    return query


def train_adapter(folder: Path, steps: int) -> None:
    """Train Hystar on 100 embedded drawings for a few steps and save its adapter."""
    method = create_method("hystar", tiny_config())
    recipe = Recipe({"static": 0.06, "dynamic": 0.003}, steps=steps, batch_size=32)
    losses = train(method, load_emoji("train").select(limit=100), recipe)
    print(f"trained for {steps} steps: loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    save_method(method, folder)


def main(folder: Path | None, adapter: Path | None, query: Path | None, output: Path, steps: int) -> list[Hit]:
    """Index, search, draw the answers and return them."""
    if folder is None:
        folder = output / "drawings"
        query = write_drawings(folder)
    if query is None:
        raise SystemExit("--folder needs a --query")
    if adapter is None:
        adapter = output / "trained"
        train_adapter(adapter, steps)
    report = index_folder(folder, adapter, output / "index", overwrite=True)
    searcher = Searcher.open(output / "index")
    print(f"indexed {searcher.engine.count()} pictures, skipped {len(report.skipped)}")
    [hits] = searcher.search([Query(query)], 5)
    for hit in hits:
        print(f"{hit.rank}. {hit.id}  cosine {hit.score:.3f}")
    searcher.draw(hits, Query(query)).save(output / "answers.png")
    print(f"wrote {output / 'answers.png'}")
    return hits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="pictures to search; searched recursively")
    parser.add_argument("--adapter", type=Path, help="an adapter that `hystar-fast train` or `demo` wrote")
    parser.add_argument("--query", type=Path, help="the picture to search with")
    parser.add_argument("--output", type=Path, default=Path("runs/search_folder"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="training steps without --adapter (default: %(default)s)")
    main(**vars(parser.parse_args()))
