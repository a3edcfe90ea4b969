"""An index knows what made its vectors, and refuses everything else by the name of what differs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hystar_fast.data import images
from hystar_fast.index import generation_methods, stamp
from hystar_fast.index.folder_index import index_folder
from hystar_fast.index.generation_methods import encoder_of, save_generation
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.open_index import create_engine
from hystar_fast.index.searcher import Query, Searcher
from hystar_fast.index.stamp import Stamp, StampMismatch
from hystar_fast.index.sync import add
from hystar_fast.methods.suite import create_hystar, create_method, tiny_config
from hystar_fast.serve.server import ServerSettings, serve_index
from tests.support.picture_trees import picture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        picture(folder / f"{i}.png", seed=i)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """Return an index of a Hystar on random weights."""
    folder = tmp_path_factory.mktemp("made") / "index"
    index_folder(pictures, create_hystar(tiny_config(None)), folder)
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "index")


def check_refused(index: Path, pictures: Path, field: str) -> None:
    """Check that add, search and serve refuse, and that nothing was written."""
    with LocalEngine(index) as engine:
        before = engine.count()
        late = picture(pictures.parent / "late" / "late.png", seed=99)
        with pytest.raises(StampMismatch, match=rf"index must have vectors of one model, got .*{field}"):
            add(engine, [late.parent], encoder_of(engine, CPU))
        assert engine.count() == before and engine.verify() == []
    with pytest.raises(StampMismatch, match=field):
        Searcher.open(index)
    with pytest.raises(StampMismatch, match=field):
        serve_index(index, ServerSettings(port=0), print)


def test_the_stamp_holds_what_decides_a_vector_and_not_where_it_lies(index):
    with LocalEngine(index) as engine:
        [(view, found)] = engine.stamps().items()
        assert view == "adapted" and engine.generation().notes["adapter"] == "adapter"
    assert found.values["method"] == "hystar" and found.dimension == 192 and found.values["metric"] == "cosine"
    assert len(found.values["tensors_sha256"]) == 64 and found.values["fingerprints.backbone"]
    assert {name for name in found.values if name.startswith("reader.")} >= {"reader.orientation", "reader.resize"}
    assert not any(str(index.parent) in str(value) or "pretrained" in name for name, value in found.values.items())
    assert found.sha256 == Stamp(json.loads(found.text)).sha256 != replace(found, values={}).sha256


def test_another_adapter_is_refused(index, pictures, tmp_path):
    other = create_hystar(tiny_config(None), seed=5)
    save_generation(other, tmp_path / "other")
    shutil.rmtree(index / "adapter")
    shutil.copytree(tmp_path / "other" / "adapter", index / "adapter")
    check_refused(index, pictures, "tensors_sha256")


def test_an_adapter_of_another_kind_is_refused(index, pictures, tmp_path):
    save_generation(create_method("ssf", tiny_config(None)), tmp_path / "other")
    shutil.rmtree(index / "adapter")
    shutil.copytree(tmp_path / "other" / "adapter", index / "adapter")
    check_refused(index, pictures, "method 'hystar' in it and 'ssf' now")


def test_another_reader_rule_is_refused(index, pictures, monkeypatch):
    monkeypatch.setitem(images.READER_RULES, "orientation", "exif 2")
    check_refused(index, pictures, "reader.orientation 'exif 1' in it and 'exif 2' now")


def test_another_dimension_is_refused(index, pictures, monkeypatch):
    real = generation_methods.embed_images
    monkeypatch.setattr(generation_methods, "embed_images", lambda *args: real(*args)[:, :100])
    check_refused(index, pictures, "dimension 192 in it and 100 now")


def test_other_weights_of_the_frozen_backbone_are_refused(pictures, tmp_path, monkeypatch):
    index_folder(pictures, create_method("frozen", tiny_config(None)), tmp_path / "index")
    from hystar_fast.methods import suite

    real = suite.backbone_fingerprints
    monkeypatch.setattr(suite, "backbone_fingerprints", lambda *args: {**real(*args), "backbone": "0" * 64})
    check_refused(tmp_path / "index", pictures, "fingerprints.backbone")


def test_an_index_of_another_model_is_replaced_only_on_request_and_whole(index, pictures, tmp_path):
    other = create_hystar(tiny_config(None), seed=5)
    with LocalEngine(index) as engine:
        before = engine.vectors(engine.keys(), "adapted")
    with pytest.raises(StampMismatch, match="unless --overwrite replaces it, must have vectors of one model"):
        index_folder(pictures, other, index)
    assert sorted(path.name for path in index.iterdir()) == ["adapter", "index.db"]
    with LocalEngine(index) as reader:
        assert torch.equal(reader.vectors(reader.keys(), "adapted"), before)
        reader.search("adapted", before[:1], 1)
        index_folder(pictures, other, index, overwrite=True)
        after = reader.vectors(reader.keys(), "adapted")
        assert not torch.allclose(after, before, atol=1e-3)
        assert reader.search("adapted", after[:1], 1)[1][0] == reader.keys()[:1], "the reader sees the new one"
        assert reader.generation().notes["adapter"] == "adapter-2"
    [[hit, *_]] = Searcher.open(index).search([Query(pictures / "1.png")], 1)
    assert hit.id == "1.png" and hit.score == pytest.approx(1, abs=1e-5)


def test_an_exact_copy_is_first_with_both_views(pictures, tmp_path):
    method = create_hystar(tiny_config(None))
    made = save_generation(method, tmp_path / "index", with_frozen=True)
    assert [*made.stamps] == ["adapted", "frozen"]
    with create_engine(tmp_path / "index", made) as engine:
        add(engine, [pictures], encoder_of(engine, CPU))
    for view in ("adapted", "frozen"):
        [[hit]] = Searcher.open(tmp_path / "index", view=view).search([Query(pictures / "2.png")], 1)
        assert hit.id == "2.png" and hit.score == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="view must be one of adapted, frozen, got 'other'"):
        Searcher.open(tmp_path / "index", view="other")


def test_the_message_shortens_long_values():
    one, two = Stamp({"dimension": 3, "config.blocks": [*range(99)]}), Stamp({"dimension": 3})
    with pytest.raises(StampMismatch) as error:
        one.check(two, "runs/index")
    assert len(str(error.value)) < 200 and "config.blocks" in str(error.value)
    with pytest.raises(StampMismatch, match="the views a in it and b now"):
        stamp.check_stamps({"a": one}, {"b": one}, "x")
