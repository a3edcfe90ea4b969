"""Plans, shards and their loading, in one process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from hystar_fast.index import shard_timeline
from hystar_fast.index.claims import Claims, Holder
from hystar_fast.index.embed_shards import CLAIMS, agree_on_plan, embed_shards
from hystar_fast.index.generation_methods import Made
from hystar_fast.index.load_shards import LoadReport, load_shards, plan_in
from hystar_fast.index.shard_files import Header, ShardFolder, shard_path
from hystar_fast.index.shard_plan import Plan, Source, read_plan
from hystar_fast.index.shard_progress import SILENT, State, state_of_work
from hystar_fast.index.stamp import Stamp, StampMismatch
from hystar_fast.methods.pixels import Pixels
from tests.support import picture_trees as trees
from tests.support.counting_encoder import DIMENSION, STAMPS, Counting, Library
from tests.support.picture_trees import encoded, picture, tar

OTHER = {"adapted": Stamp({"model": "another", "dimension": DIMENSION})}


class Corpus:
    """Pictures that are embedded into shards of three."""

    def __init__(self, root: Path, pictures: Path) -> None:
        self.pictures, self.out = pictures, root / "out"
        self.claims = Claims(self.out / CLAIMS, 0.02, 0.3)
        self.states: list[State] = []

    def plan(self, place: Path | None = None, stamps: dict[str, Stamp] = STAMPS, shard_size: int | None = 3) -> Plan:
        return agree_on_plan(
            place or self.pictures, self.out, stamps, lambda out: Made(stamps, {}), self.claims, shard_size=shard_size
        )

    def embed(self, **options: bool) -> list[str]:
        """Embed what is missing, and return the names of what was encoded."""
        plan, names = self.plan(), list[str]()
        encoder = Counting({"adapted": Pixels()}, 2, names)
        folder = Source.of(self.pictures).folder
        embed_shards(plan, folder, self.out, lambda: encoder, self.claims, progress=self.states.append, **options)
        return sorted(names)

    def load(self, library: Library) -> LoadReport:
        return load_shards(library.engine, self.out, plan_in(self.out))

    def headers(self) -> dict[int, Header]:
        return ShardFolder(self.out, plan_in(self.out)).headers()


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    for i in range(8):
        picture(tmp_path / "pics" / f"{'sub/' * (i % 2)}{i}.png", seed=i)
    return Corpus(tmp_path, tmp_path / "pics")


def vectors(library: Library) -> dict[str, Tensor]:
    return {
        item.id: vector
        for items, found in library.engine.scan()
        for item, vector in zip(items, found["adapted"], strict=True)
    }


def test_a_second_run_does_what_is_missing(corpus):
    assert len(corpus.embed()) == 8
    assert corpus.embed() == []
    shard_path(corpus.out, 1).unlink()
    paths = corpus.plan().paths_of(1)
    assert corpus.embed() == sorted(paths)
    state = corpus.states[-1]
    assert (state.done, state.total, state.skipped) == (8, 8, 0)


def test_the_plan_is_checked_by_every_process(corpus, tmp_path):
    plan = corpus.plan()
    assert plan.count == 3 and corpus.plan(shard_size=None) == plan
    with pytest.raises(StampMismatch, match=r"plan\.json must have .* model 'pixels' in it and 'another' now"):
        corpus.plan(stamps=OTHER)
    with pytest.raises(ValueError, match=r"shard_size must be that of .*plan\.json, 3, got 4"):
        corpus.plan(shard_size=4)
    with pytest.raises(ValueError, match=r"SOURCE must hold the pictures of .*pics, for which plan\.json was made"):
        corpus.plan(picture(tmp_path / "others" / "a.png").parent)
    with pytest.raises(ValueError, match=r"SOURCE must be a folder of pictures or of tars, or a tar, got .*nothing"):
        corpus.plan(tmp_path / "nothing")
    corpus.pictures.rename(tmp_path / "mounted elsewhere")
    assert corpus.plan(tmp_path / "mounted elsewhere") == plan
    content = (corpus.out / "plan.json").read_text()
    (corpus.out / "plan.json").write_text(content.replace("sub/1.png", "sub/2.png"))
    with pytest.raises(ValueError, match=r"plan\.json is corrupt"):
        corpus.plan(tmp_path / "mounted elsewhere")


def test_a_plan_of_nothing_is_refused_and_not_written(corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"SOURCE must hold pictures, but .*empty holds none"):
        corpus.plan(tmp_path / "empty")
    assert read_plan(corpus.out) is None and not [*(corpus.out / CLAIMS).iterdir()]


def test_shards_of_another_plan_are_made_again(corpus):
    corpus.embed()
    (corpus.out / "plan.json").unlink()
    picture(corpus.pictures / "new.png", seed=20)
    assert len(corpus.embed()) == 9


def test_skipped_files_are_tried_again_on_request_alone(corpus, tmp_path):
    for name in ("4.png", "sub/3.png"):
        (corpus.pictures / name).write_text("no picture")
    (corpus.pictures / "0.svg").write_text("<svg/>")
    assert len(corpus.embed()) == 6
    library = Library(tmp_path / "index")
    report = corpus.load(library)
    assert report.added == 6 and {entry.path for entry in report.skipped} == {"4.png", "sub/3.png", "0.svg"}
    assert report.skipped[-1].reason == "an image in an unsupported format, .svg"
    sync = library.sync()
    assert (sync.unchanged, len(sync.skipped), library.encoded) == (6, 3, []), "they are not opened again"
    picture(corpus.pictures / "4.png", seed=4)
    assert corpus.embed() == []
    assert corpus.embed(retry_skipped=True) == ["4.png"]
    assert (corpus.states[-1].total, corpus.states[-1].skipped) == (2, 1)
    report = corpus.load(library)
    assert (report.added, report.shards, len(report.skipped)) == (1, 2, 2)
    library.check()
    assert library.sync().unchanged == 7


def test_loading_refuses_another_model_and_names_the_field(corpus, tmp_path):
    corpus.plan(stamps=OTHER)
    library = Library(tmp_path / "index")
    with pytest.raises(StampMismatch, match=r"must have .* model 'pixels' in it and 'another' now"):
        corpus.load(library)
    assert library.engine.count() == 0 and library.engine.settings()["sources"] == {}


def test_what_is_not_there_yet_is_loaded_later(corpus, tmp_path):
    corpus.embed()
    kept = shard_path(corpus.out, 1).read_bytes()
    shard_path(corpus.out, 1).unlink()
    library = Library(tmp_path / "index")
    report = corpus.load(library)
    assert (report.missing, report.added) == ([1], 5)
    shard_path(corpus.out, 1).write_bytes(kept)
    report = corpus.load(library)
    assert (report.missing, report.added, report.known) == ([], 3, 2)
    library.check()


@pytest.mark.parametrize("place", [0.02, 0.5, 0.99])
def test_a_flipped_bit_in_a_shard_is_an_error(corpus, tmp_path, place):
    corpus.embed()
    path = shard_path(corpus.out, 2)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    library = Library(tmp_path / "index")
    try:
        report = corpus.load(library)
    except ValueError as error:
        assert f"{path} is damaged" in str(error) and "hystar-fast embed --shards" in str(error)
    else:
        assert report.missing == [2], "its header cannot be read"
    path.unlink()
    corpus.embed()
    corpus.load(library)
    assert library.engine.count() == 8
    library.check()


def test_an_index_keeps_what_it_has_read_later_and_the_words_it_was_given(corpus, tmp_path):
    corpus.embed()
    picture(corpus.pictures / "0.png", seed=30)
    library = Library(tmp_path / "index")
    library.add(corpus.pictures, described={"2.png": {"caption": "a heart", "year": 2000}})
    picture(corpus.pictures / "4.png", seed=31)  # changed since; the shard has the state before, too
    before = vectors(library)
    report = corpus.load(library)
    assert (report.unchanged, report.changed, report.added) == (8, 0, 0)
    assert all(torch.equal(before[item], vector) for item, vector in vectors(library).items())
    words = next(item for items, _ in library.engine.scan() for item in items if item.id == "2.png")
    assert (words.caption, dict(words.attributes)) == ("a heart", {"year": 2000})
    assert library.sync().changed == 1


def test_a_newer_shard_replaces_what_the_index_has(corpus, tmp_path):
    library = Library(tmp_path / "index")
    library.add(corpus.pictures, described={"2.png": {"caption": "a heart"}})
    picture(corpus.pictures / "2.png", seed=30)
    corpus.embed()
    report = corpus.load(library)
    assert (report.unchanged, report.changed) == (7, 1)
    library.check()
    words = next(item for items, _ in library.engine.scan() for item in items if item.id == "2.png")
    assert words.caption == "a heart"


def test_ids_by_content_keep_no_duplicates(corpus, tmp_path):
    for name in ("copy.png", "sub/copy.png"):
        (corpus.pictures / name).write_bytes((corpus.pictures / "0.png").read_bytes())
    corpus.embed()
    library = Library(tmp_path / "index", ids="content")
    report = corpus.load(library)
    assert (report.added, report.duplicates) == (8, 2)
    assert library.engine.count() == 8


def test_a_folder_within_a_source_belongs_to_it(corpus, tmp_path):
    library = Library(tmp_path / "index")
    library.engine.put_settings({"ids": "path", "sources": {}})
    library.add(corpus.pictures / "0.png")
    library.engine.remove([item.key for items, _ in library.engine.scan() for item in items])
    inner = Corpus(tmp_path / "inner", corpus.pictures / "sub")
    settings = library.engine.settings()
    settings["sources"]["pics"]["whole"] = True
    library.engine.put_settings(settings)
    inner.embed()
    assert inner.load(library).added == 4
    assert {*library.engine.known()} == {f"sub/{i}.png" for i in (1, 3, 5, 7)}
    assert library.sync().added == 4
    library.check()


def test_names_of_any_bytes_pass_through_plan_and_shard(corpus, tmp_path):
    name = os.fsdecode(b"caf\xe9 \x1b[31m\n.png")
    picture(corpus.pictures / "0.png").rename(corpus.pictures / name)
    corpus.embed()
    library = Library(tmp_path / "index")
    assert corpus.load(library).added == 8
    assert name in library.engine.known()
    library.check()


def test_tars_are_embedded_and_loaded_with_their_captions(tmp_path):
    tars = tmp_path / "tars"
    tar(tars / "a.tar", {"./0.png": encoded(0), "./0.txt": b"a red heart", "./1.png": encoded(1)})
    tar(tars / "b.tar", {"x/0.png": encoded(2), "x/bad.png": b"no picture", "x/2.png": encoded(3)})
    corpus, library = Corpus(tmp_path, tars), Library(tmp_path / "index")
    assert len(corpus.embed()) == 4
    corpus.load(library)
    assert (library.sync().unchanged, library.encoded) == (4, [])
    captions = {item.id: item.caption for items, _ in library.engine.scan() for item in items}
    assert captions["a.tar/0.png"] == "a red heart" and captions["b.tar/x/2.png"] == "b.tar/x/2.png"
    one = Corpus(tmp_path / "one", tars / "a.tar")
    assert len(one.embed()) == 2
    other = Library(tmp_path / "other")
    one.load(other)
    assert other.sync().unchanged == 2 and {*other.engine.known()} == {"a.tar/0.png", "a.tar/1.png"}


def test_of_sketches_and_photos_the_photos_are_embedded(tmp_path):
    corpus = Corpus(tmp_path, trees.matching(tmp_path / "set", n=4))
    assert all(path.endswith(".jpg") for path in corpus.plan().paths) and len(corpus.embed()) == 4


def test_pictures_that_go_while_they_are_embedded_are_no_skipped_files(corpus, tmp_path):
    plan = corpus.plan()
    encoder = Counting({"adapted": Pixels()}, 2, [])
    (tmp_path / "unmounted").mkdir()
    with pytest.raises(ValueError, match=r"SOURCE must hold the pictures of"):
        embed_shards(plan, tmp_path / "unmounted", corpus.out, lambda: encoder, corpus.claims)
    assert corpus.headers() == {} and not [*(corpus.out / CLAIMS).iterdir()], "others need not wait"


def test_a_process_that_may_be_dead_is_shown_apart_from_those_that_work():
    headers = {0: Header("", 0, "a:1", 100.0, 110.0, 30, 0, 30)}
    holders = [
        Holder("shard-000001", "a:1", 0, 0.5, 0.1),
        Holder("shard-000002", "b:2", 10, 4.0, 1.0),
        Holder("shard-000003", "c:3", 5, 1.0, SILENT + 1),
        Holder("plan", "d:4", 0, 0.1, 0.0),
    ]
    state = state_of_work(dict.fromkeys(range(5), 30), {1, 2, 3, 4}, headers, holders)
    assert (state.done, state.total) == (45, 150)
    assert state.rates == {"a:1": 3.0, "b:2": 2.5} and state.silent == {"c:3": SILENT + 1}


def runs() -> Iterator[Header]:
    for process in range(3):
        for shard in range(4):
            start = 1.8e9 + 70 * shard + process
            yield Header("", 4 * process + shard, f"node{process}:12", start, start + 60, 4000, 96, 4000)


def test_the_timeline_has_a_row_for_each_process(tmp_path, monkeypatch):
    with Image.open(shard_timeline.draw_timeline(runs(), tmp_path)) as drawn:
        three = drawn.size
    monkeypatch.setattr(shard_timeline, "_MOST_ROWS", 2)
    with Image.open(shard_timeline.draw_timeline(runs(), tmp_path)) as drawn:
        assert drawn.width == three[0] and drawn.height < three[1]


def test_the_plan_is_readable_json(corpus):
    corpus.plan()
    content = json.loads((corpus.out / "plan.json").read_text())
    assert content["shard_size"] == 3 and len(content["paths"]) == 8 and len(content["checksum"]) == 64
