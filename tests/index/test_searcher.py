"""Search with pictures, words and both; styles; indexes of the first format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.images import load_image
from hystar_fast.index.engine import IndexDamaged, Item
from hystar_fast.index.generation_methods import Encoder as GenerationEncoder
from hystar_fast.index.generation_methods import save_generation
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.open_index import open_engine
from hystar_fast.index.searcher import Query, Searcher
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.where import Where
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_hystar, create_method, tiny_config
from hystar_fast.retrieval.joint import joint_ranks
from tests.support.index_engines import DIMENSION, STAMPS, items, units
from tests.support.linear_method import Linear
from tests.support.picture_trees import picture
from tests.support.turned_queries import TurnedQueries


class Given(Method):
    """Returns given vectors for pictures and words."""

    name = "given"

    def __init__(self, pictures: Tensor, texts: Tensor) -> None:
        self.pictures, self.texts = pictures, texts

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        return self.pictures[: len(images)]

    def encode_text(self, texts: list[str]) -> Tensor:
        return self.texts[: len(texts)]


def searcher_of(engine: LocalEngine, method: Method) -> Searcher:
    return Searcher(engine, engine.generation(), "adapted", method)


@pytest.mark.parametrize("combine", ["similarity", "softmax"])
@pytest.mark.parametrize("seed", range(4))
def test_a_picture_and_words_together_are_ranked_as_in_evaluation(tmp_path, combine, seed):
    gallery, pictures, texts = units(80, seed), units(6, seed + 10), units(6, seed + 20)
    with LocalEngine.create(tmp_path / "index", STAMPS) as engine:
        engine.upsert(items(80), {"adapted": gallery})
        file = picture(tmp_path / "a.png")
        found = searcher_of(engine, Given(pictures, texts)).search([Query(file, "words")] * 6, 7, combine=combine)
        everything = searcher_of(engine, Given(pictures, texts)).search([Query(file, "words")] * 6, 80, combine=combine)
    place_of = {item.id: place for place, item in enumerate(items(80))}
    for row in range(6):
        order = [place_of[hit.id] for hit in everything[row]]
        one, two = pictures[row : row + 1], texts[row : row + 1]
        ranks = [int(joint_ranks(one, two, gallery, torch.tensor([place]), combine=combine)) for place in order]
        assert ranks == list(range(80))
        assert [hit.id for hit in found[row]] == [hit.id for hit in everything[row]][:7]
        assert [hit.rank for hit in found[row]] == list(range(1, 8))
    if combine == "similarity":
        expected = torch.maximum(pictures @ gallery.T, texts @ gallery.T)
        scores = torch.tensor([[hit.score for hit in hits] for hits in found])
        assert torch.allclose(scores, expected.sort(descending=True).values[:, :7], atol=1e-6)
        by = {hit.by for hits in everything for hit in hits}
        assert by == {"image", "text"}


def test_a_batch_of_pictures_words_and_both_gives_the_answers_of_single_queries(tmp_path):
    with LocalEngine.create(tmp_path / "index", STAMPS) as engine:
        engine.upsert(items(30), {"adapted": units(30)})
        file = picture(tmp_path / "a.png")
        searcher = searcher_of(engine, Given(units(1, 5).expand(4, -1), units(1, 6).expand(4, -1)))
        queries = [Query(file), Query(text="words"), Query(file, "words"), Query(file)]
        together = searcher.search(queries, 5, where=Where.parse("path^=even/"))
        for query, hits in zip(queries, together, strict=True):
            [alone] = searcher.search([query], 5, where=Where.parse("path^=even/"))
            assert [(hit.rank, hit.id, hit.by) for hit in hits] == [(hit.rank, hit.id, hit.by) for hit in alone]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=2e-6)
        assert all(hit.id.startswith("even/") for hits in together for hit in hits)
        assert all(hit.by == "text" for hit in together[1])


def test_a_query_takes_the_style_of_another_picture_and_each_its_own(tmp_path):
    one, two, light = (picture(tmp_path / f"{i}.png", seed=i) for i in range(3))
    method = create_hystar(tiny_config(None))
    generator = torch.Generator().manual_seed(0)
    for parameter in method.model.parameters():  # so that the style matters
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    made = save_generation(method, tmp_path / "index")
    with LocalEngine.create(tmp_path / "index", made.stamps, made.notes) as engine:
        searcher = searcher_of(engine, method)
        own = searcher.encode_pictures([Query(one), Query(two)])
        mixed = searcher.encode_pictures([Query(one, style=light), Query(two)])
        assert not torch.allclose(mixed[0], own[0], atol=1e-3)
        assert torch.allclose(mixed[1], own[1], atol=2e-6)
        pixels = torch.stack([searcher._read(one)])
        style = method.style(torch.stack([searcher._read(light)]))
        with torch.no_grad():
            assert torch.allclose(method.encode_image(pixels, style)[0], mixed[0], atol=2e-6)
        frozen = searcher_of(engine, create_method("frozen", tiny_config(None)))
    with pytest.raises(ValueError, match="style must be left out for 'frozen'"):
        frozen.encode_pictures([Query(one, style=light)])


def test_wrong_queries_are_refused(tmp_path):
    with LocalEngine.create(tmp_path / "index", STAMPS) as engine:
        searcher = searcher_of(engine, Linear())
        with pytest.raises(ValueError, match="query must hold a picture or a word, got ' '"):
            Query(text=" ")
        with pytest.raises(ValueError, match="style must belong to a picture"):
            Query(text="a", style=tmp_path / "a.png")
        with pytest.raises(ValueError, match="combine must be one of"):
            searcher.search([Query(text="a")], 3, combine="sum")
        searcher = searcher_of(engine, create_method("pixels", tiny_config(None)))
        with pytest.raises(ValueError, match="method must have a text encoder for a query of words, got 'pixels'"):
            searcher.search([Query(text="a")], 3)
        with pytest.raises(ValueError, match=r"path must be an image file, but .*none\.png does not exist"):
            searcher.search([Query(tmp_path / "none.png")], 3)


def test_a_vector_without_its_item_is_damage_and_a_removed_one_is_not(tmp_path, monkeypatch):
    with LocalEngine.create(tmp_path / "index", STAMPS) as engine:
        engine.upsert(items(5), {"adapted": units(5)})
        searcher = searcher_of(engine, Given(units(1), units(1)))
        real = LocalEngine.fetch
        monkeypatch.setattr(LocalEngine, "fetch", lambda self, keys: dict([*real(self, keys).items()][1:]))
        with pytest.raises(IndexDamaged, match="vectors belong to no item"):
            searcher.search([Query(text="a")], 3)

        def fetch(self: LocalEngine, keys: list[str]) -> dict[str, Item]:
            self.remove(keys[:1])
            return real(self, keys)

        monkeypatch.setattr(LocalEngine, "fetch", fetch)
        [hits] = searcher.search([Query(text="a")], 3)
        assert [hit.rank for hit in hits] == [1, 2]


def first_format(folder: Path, pictures: Path, **changes: object) -> Path:
    """Write an index of format 1 of three pictures by the frozen backbone."""
    method = create_method("frozen", tiny_config(None))
    (folder / "index").mkdir(parents=True)
    names = ["0.png", "1.png", "2.png"]
    files = [picture(pictures / name, seed=i) for i, name in enumerate(names)]
    searcher = Searcher(None, None, "", method)  # type: ignore[arg-type]
    vectors = searcher.encode_pictures([Query(file) for file in files])
    save_file({"embeddings": F.normalize(vectors, dim=-1)}, folder / "index" / "index.safetensors")
    about = {"source": str(pictures), "captions": names, "config": tiny_config(None).to_dict()}
    meta = {"format": 1, "ids": names, "about": {**about, "fingerprints": dict(method.fingerprints)}, **changes}
    (folder / "index" / "index.json").write_text(json.dumps(meta))
    return folder


def test_an_index_of_the_first_format_is_read_with_a_warning_and_never_written(tmp_path):
    folder = first_format(tmp_path / "old", tmp_path / "pics")
    searcher = Searcher.open(folder)
    [[hit, *_]] = searcher.search([Query(tmp_path / "pics" / "1.png")], 3)
    assert hit.id == hit.caption == "1.png" and hit.score == pytest.approx(1, abs=1e-5)
    assert "index again with" in searcher.generation.notes["warning"]
    assert searcher.draw([hit], Query(tmp_path / "pics" / "1.png")).width > 100
    with pytest.raises(OSError, match="read-only"):
        searcher.engine.remove([hit.key])


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": ["0.png", "1.png"]},
        {"ids": ["0.png", "1.png", "1.png"]},
        {"ids": ["0.png", "1.png", 2]},
        {"format": 3},
        {"about": {"source": "x", "captions": ["a"]}},
        {"about": []},
    ],
)
def test_a_damaged_index_of_the_first_format_is_refused(tmp_path, changes):
    folder = first_format(tmp_path / "old", tmp_path / "pics", **changes)
    with pytest.raises(ValueError, match="holds a damaged index of format 1"):
        open_engine(folder)


def test_a_folder_without_an_index_is_refused_with_the_next_command(tmp_path):
    with pytest.raises(ValueError, match=r"hystar-fast embed FOLDER --output"):
        open_engine(tmp_path)
    with pytest.raises(ValueError, match="index must be a folder or local:PATH, got http://x"):
        open_engine("http://x")
    LocalEngine.create(tmp_path / "a", STAMPS).close()
    with open_engine(f"local:{tmp_path}/a") as engine:
        assert engine.stamps()["adapted"].dimension == DIMENSION


def test_the_query_is_encoded_as_a_query_and_the_index_as_a_gallery(tmp_path):
    files = [picture(tmp_path / f"{number}.png", number) for number in range(4)]
    method = TurnedQueries()
    loaded = torch.stack([method.resize(load_image(file)) for file in files])
    stamps = {"adapted": Stamp({"method": "turned", "dimension": 64})}
    with LocalEngine.create(tmp_path / "index", stamps) as engine:
        gallery = GenerationEncoder({"adapted": method}).encode(loaded, [file.name for file in files])["adapted"]
        assert method.calls == [("image", 4, False)]
        engine.upsert([Item(file.name) for file in files], {"adapted": gallery})
        searcher = searcher_of(engine, method)
        styles = [files[0], None, files[0], None]
        queries = [Query(file, style=style) for file, style in zip(files, styles, strict=True)]
        found = searcher.search(queries, 4)
        assert method.calls[1:] == [("query", 4, True)], "queries of several styles are one call"
    own = method.style(loaded)
    vectors = method.encode_query(loaded, torch.stack([own[0], own[1], own[0], own[3]]))
    for hits, row in zip(found, vectors @ gallery.T, strict=True):
        assert [hit.id for hit in hits] == [files[i].name for i in row.argsort(descending=True)]
        assert torch.allclose(torch.tensor([hit.score for hit in hits]), row.sort(descending=True).values, atol=1e-6)
