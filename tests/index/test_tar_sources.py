"""Pictures in tars as sources of an index."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hystar_fast.index.reembed import fill_generation
from hystar_fast.index.sources import picture_of
from hystar_fast.index.stamp import Stamp
from hystar_fast.methods.pixels import Pixels
from tests.support import picture_trees as trees
from tests.support.counting_encoder import Counting, Library
from tests.support.picture_trees import encoded, tar


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Return a folder of two tars with two pictures each, of one style, one of them with a caption."""
    folder = tmp_path / "tars"
    tar(folder / "a.tar", {"./0.png": encoded(0), "./0.txt": b"a red heart", "./1.png": encoded(1)})
    tar(folder / "b.tar", {"x/0.png": encoded(2), "x/bad.png": b"no picture", "x/2.png": encoded(3)})
    return folder


def ids(library: Library) -> set[str]:
    return {*library.engine.known()}


def test_a_folder_of_tars_is_added_and_followed(tmp_path, tars):
    library = Library(tmp_path / "index")
    report = library.add(tars)
    assert (report.added, [entry.path for entry in report.skipped]) == (4, ["b.tar/x/bad.png"])
    assert ids(library) == {"a.tar/0.png", "a.tar/1.png", "b.tar/x/0.png", "b.tar/x/2.png"}
    captions = {item.id: item.caption for items, _ in library.engine.scan() for item in items}
    assert captions["a.tar/0.png"] == "a red heart" and captions["a.tar/1.png"] == "a.tar/1.png"
    report = library.sync()
    assert (report.unchanged, len(report.skipped), library.opened) == (4, 1, 1), "no model is opened again"
    tar(tars / "a.tar", {"0.png": encoded(0), "1.png": encoded(7), "3.png": encoded(8)})
    (tars / "b.tar").unlink()
    report = library.sync()
    assert (report.changed, report.added, report.removed, report.unchanged) == (1, 1, 2, 1)
    assert ids(library) == {"a.tar/0.png", "a.tar/1.png", "a.tar/3.png"}
    settings = library.engine.settings()
    for items, vectors in library.engine.scan():
        for item, vector in zip(items, vectors["adapted"], strict=True):
            pixels = Pixels().resize(picture_of(settings, item))
            assert torch.allclose(Pixels().encode_image(pixels[None])[0], vector, atol=1e-6)


def test_of_several_styles_the_gallery_is_indexed(tmp_path):
    library = Library(tmp_path / "index")
    library.add(trees.shards(tmp_path / "tars"))
    assert ids(library) == {f"part-00{tar}.tar/000{i}.photo.png" for tar in (0, 1) for i in (0, 1)}


def test_a_single_tar_is_looked_after_alone(tmp_path, tars):
    library = Library(tmp_path / "index")
    trees.picture(tars / "pictures" / "0.png", seed=20)
    assert library.add(tars / "a.tar").added == 2
    assert library.sync().unchanged == 2
    assert library.add(tars).added == 1, "with a picture below it, the folder is one of pictures"
    assert library.sync().unchanged == 3
    whole = (tars / "a.tar").read_bytes()
    (tars / "a.tar").write_bytes(whole[:2000])
    with pytest.raises(ValueError, match=r"a\.tar does not have the layout of WebDataset shards"):
        library.sync()
    assert library.engine.count() == 3, "a tar that is being copied is no empty one"
    (tars / "a.tar").write_bytes(whole)
    assert library.sync().removed == 0


def test_pictures_in_tars_are_embedded_with_another_model(tmp_path, tars):
    library = Library(tmp_path / "index")
    library.add(tars)
    number = library.engine.create_generation({"adapted": Stamp({"model": "small", "dimension": 25})}, {})
    done = fill_generation(library.engine, number, lambda: Counting({"adapted": Pixels(5)}, 4, []))
    assert done.encoded == 4 and not done.skipped


def test_a_missing_member_is_an_error_of_its_picture(tmp_path, tars):
    library = Library(tmp_path / "index")
    library.add(tars)
    tar(tars / "a.tar", {"1.png": encoded(1)})
    item = next(item for items, _ in library.engine.scan() for item in items if item.id == "a.tar/0.png")
    with pytest.raises(ValueError, match=r"a\.tar has no member 0\.png"):
        picture_of(library.engine.settings(), item)
