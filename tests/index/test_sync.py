"""Pictures that add and sync encode: as little as possible, and the index is always that of the files."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from hystar_fast.index import compare_files, encode_files, sync
from hystar_fast.index.engine import key_of
from hystar_fast.index.sync import plan
from hystar_fast.index.where import Where
from tests.support.counting_encoder import Library
from tests.support.picture_trees import damaged, picture


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    folder = tmp_path / "pics"
    for i in range(10):
        picture(folder / f"{'sub/' * (i % 2)}{i}.png", seed=i)
    return folder


@pytest.fixture
def library(tmp_path: Path, pics: Path) -> Library:
    """Return an index of `pics`."""
    made = Library(tmp_path / "index")
    made.add(pics)
    return made


def touch(place: Path) -> None:
    state = place.stat()
    os.utime(place, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))


def test_a_folder_is_added_once_and_every_picture_encoded_once(tmp_path, pics):
    library = Library(tmp_path / "index")
    report = library.add(pics)
    assert (report.added, report.unchanged, len(library.encoded)) == (10, 0, 10)
    assert sorted(library.engine.known()) == sorted(path.relative_to(pics).as_posix() for path in pics.rglob("*.png"))
    library.check()
    report = library.add(pics)
    assert (report.added, report.unchanged, library.opened) == (0, 10, 1)


def test_nothing_to_encode_opens_no_model_and_no_file(library, pics, monkeypatch):
    def fail(*arguments: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(encode_files, "_load", fail)
    monkeypatch.setattr(compare_files, "sha256_of", fail)
    before = library.opened
    assert library.sync().unchanged == 10 and library.encoded == [] and library.opened == before


def test_each_kind_of_change_encodes_what_it_must(library, pics):
    picture(pics / "new.png", seed=20)
    report = library.sync()
    assert (report.added, library.encoded) == (1, ["new.png"])

    picture(pics / "2.png", seed=21)
    report = library.sync()
    assert (report.changed, report.added, library.encoded) == (1, 0, ["2.png"])

    (pics / "4.png").unlink()
    report = library.sync()
    assert (report.removed, library.encoded) == (1, []) and "4.png" not in library.engine.known()

    (pics / "6.png").rename(pics / "sub" / "six.png")
    report = library.sync()
    assert (report.moved, report.added, report.removed, library.encoded) == (1, 0, 0, [])
    assert "sub/six.png" in library.engine.known() and "6.png" not in library.engine.known()

    (pics / "sub").rename(pics / "folder")
    report = library.sync()
    assert (report.moved, report.removed, library.encoded) == (6, 0, [])

    shutil.copy(pics / "8.png", pics / "copy.png")
    report = library.sync()
    assert (report.copied, report.moved, library.encoded) == (1, 0, [])

    touch(pics / "0.png")
    report = library.sync()
    assert (report.unchanged, report.changed, library.encoded) == (library.engine.count(), 0, [])
    assert library.engine.known()["0.png"].mtime_ns == (pics / "0.png").stat().st_mtime_ns
    library.check()
    assert library.sync().unchanged == library.engine.count()


def test_a_change_that_keeps_size_and_time_is_found_with_checksum(library, pics):
    state, content = (pics / "0.png").stat(), (pics / "2.png").read_bytes()
    assert len(content) == state.st_size
    (pics / "0.png").write_bytes(content)
    os.utime(pics / "0.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert library.sync().unchanged == 10
    report = library.sync(checksum=True)
    assert report.copied == 1 and library.encoded == []
    library.check()


def test_two_pictures_that_change_places_have_each_the_vector_of_its_file(library, pics):
    (pics / "0.png").rename(pics / "x")
    (pics / "2.png").rename(pics / "0.png")
    (pics / "x").rename(pics / "2.png")
    for name in ("0.png", "2.png"):
        touch(pics / name)
    library.sync()
    assert library.encoded == []
    library.check()


def test_pictures_that_change_places_across_transactions_are_still_right(library, pics, monkeypatch):
    monkeypatch.setattr(sync, "_COPIES", 1)
    (pics / "0.png").rename(pics / "x")
    (pics / "2.png").rename(pics / "0.png")
    (pics / "x").rename(pics / "2.png")
    for name in ("0.png", "2.png"):
        touch(pics / name)
    library.sync()
    assert len(library.encoded) == 1
    library.check()


def test_one_content_twice_in_a_batch_is_encoded_once(tmp_path, pics):
    shutil.copy(pics / "0.png", pics / "again.png")
    library = Library(tmp_path / "index")
    report = library.add(pics)
    assert report.added == 11 and len(library.encoded) <= 11
    library.check()
    few = tmp_path / "few"
    picture(few / "a.png", seed=50)
    shutil.copy(few / "a.png", few / "b.png")
    assert library.add(few).added == 2 and len(library.encoded) == 1
    library.check()


def test_a_dry_run_changes_nothing(library, pics):
    picture(pics / "new.png", seed=20)
    (pics / "4.png").unlink()
    before = library.engine.version()
    changes = plan(library.engine)
    assert (len(changes.new), changes.removed, changes.unchanged) == (1, ["4.png"], 9)
    assert library.engine.version() == before


def test_files_that_cannot_be_read_are_named_once_and_tried_again_when_they_change(library, pics):
    damaged(pics / "0.png")
    (pics / "text.png").write_text("no picture")
    (pics / "b.svg").write_text("<svg/>")
    report = library.sync()
    assert sorted(entry.path for entry in report.skipped) == ["0.png", "b.svg", "text.png"]
    lines = [json.loads(line) for line in (library.engine.folder / "skipped.jsonl").read_text().splitlines()]
    assert [Path(line["place"]).name for line in lines] == ["0.png", "text.png"]
    assert "truncated or damaged" in lines[0]["reason"]
    assert "0.png" in library.engine.known(), "the last picture that could be read stays"
    before = library.opened
    report = library.sync()
    assert len(report.skipped) == 3 and library.opened == before
    picture(pics / "text.png", seed=30)
    picture(pics / "0.png", seed=31)
    report = library.sync()
    assert (report.added, report.changed) == (1, 1) and [e.path for e in report.skipped] == ["b.svg"]
    assert not (library.engine.folder / "skipped.jsonl").exists()
    library.check()


def test_a_source_that_is_not_there_is_not_taken_for_an_empty_one(library, pics, tmp_path):
    pics.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"source must be a folder that is there, but .* is not: mount it"):
        library.sync()
    pics.mkdir()
    with pytest.raises(ValueError, match=r"source must hold pictures, but .* holds none of 10"):
        library.sync()
    assert library.engine.count() == 10


def test_a_source_may_move_as_a_whole(library, pics, tmp_path):
    pics.rename(tmp_path / "elsewhere")
    settings = library.engine.settings()
    settings["sources"]["pics"]["folder"] = str(tmp_path / "elsewhere")
    library.engine.put_settings(settings)
    assert library.sync().unchanged == 10 and library.encoded == []
    library.check()


def test_single_pictures_and_lists_are_looked_after_without_their_neighbours(tmp_path, pics):
    library = Library(tmp_path / "index")
    (tmp_path / "list.txt").write_text("pics/0.png\n\npics/sub/1.png\npics/none.png\n")
    report = library.add(pics / "2.png", tmp_path / "list.txt")
    assert report.added == 3 and [entry.path for entry in report.skipped] == ["none.png"]
    picture(pics / "2.png", seed=40)
    (pics / "0.png").unlink()
    report = library.sync()
    assert (report.changed, report.removed, report.added) == (1, 1, 0) and library.engine.count() == 2
    assert library.add(pics).added == 7, "now all of it belongs to the index"
    assert library.sync().unchanged == 9
    library.check()
    for wrong in (tmp_path / "nothing", tmp_path / "index" / "index.db"):
        with pytest.raises(ValueError, match="SOURCE must be a folder, a picture or a list"):
            library.add(wrong)


def test_a_second_source_has_ids_with_its_name_and_a_part_of_a_source_is_no_second_one(library, pics, tmp_path):
    assert library.add(pics / "sub").unchanged == 5 and [*library.engine.settings()["sources"]] == ["pics"]
    other = tmp_path / "more" / "pics"
    picture(other / "0.png", seed=60)
    report = library.add(other)
    assert report.added == 1 and "pics-2/0.png" in library.engine.known()
    assert library.engine.count(Where.parse("source=pics-2")) == 1
    picture(pics / "sub" / "late.png", seed=61)
    assert library.add(pics / "sub").added == 1 and "sub/late.png" in library.engine.known()
    library.check()


def test_ids_by_content_keep_no_duplicates_and_survive_a_move(tmp_path, pics):
    library = Library(tmp_path / "index", ids="content")
    shutil.copy(pics / "0.png", pics / "again.png")
    report = library.add(pics)
    assert report.added == 10 and report.duplicates == 1 and library.engine.count() == 10
    first = library.engine.known()
    assert all(item == known.sha256 for item, known in first.items())
    (pics / "2.png").rename(pics / "two.png")
    (pics / "again.png").unlink()
    report = library.sync()
    assert report.moved == 1 and report.removed == 0 and library.encoded == []
    assert {*library.engine.known()} == {*first}
    picture(pics / "4.png", seed=70)
    report = library.sync()
    assert report.changed == 1 and library.engine.count() == 10 and len({*library.engine.known()} - {*first}) == 1
    shutil.copy(pics / "6.png", pics / "sixth.png")
    assert library.sync().duplicates == 1
    (pics / "6.png").unlink()
    report = library.sync()
    assert report.moved == 1 and library.engine.count() == 10
    library.check()


def test_captions_and_attributes_stay_with_a_moved_or_changed_picture(tmp_path, pics):
    library = Library(tmp_path / "index")
    described = {"0.png": {"caption": "a cat", "year": 2001}, "2.png": {"year": 2002}}
    library.add(pics, described=described)
    (pics / "0.png").rename(pics / "cat.png")
    picture(pics / "2.png", seed=80)
    library.sync()
    held = library.engine.fetch([key_of("cat.png"), key_of("2.png")])
    assert [(item.caption, dict(item.attributes)) for item in held.values()] == [
        ("a cat", {"year": 2001}),
        ("2.png", {"year": 2002}),
    ]
    library.add(pics, described={"2.png": {"caption": "two"}})
    assert library.encoded == []
    assert library.engine.fetch([key_of("2.png")])[key_of("2.png")].caption == "two"


def test_a_picture_with_the_content_of_another_keeps_its_own_words(tmp_path, pics, monkeypatch):
    library = Library(tmp_path / "index")
    library.add(pics, described={"0.png": {"caption": "a cat", "owner": "A"}, "2.png": {"owner": "B"}})
    shutil.copy(pics / "0.png", pics / "2.png")
    touch(pics / "2.png")
    assert library.sync().copied == 1 and library.encoded == []
    wanted = {"0.png": ("a cat", {"owner": "A"}), "2.png": ("2.png", {"owner": "B"})}

    def words() -> dict[str, object]:
        held = library.engine.fetch([key_of(name) for name in wanted])
        return {item.id: (item.caption, dict(item.attributes)) for item in held.values()}

    assert words() == wanted
    picture(pics / "2.png", seed=81)
    library.sync()
    monkeypatch.setattr(sync, "_COPIES", 1)  # the second of two that change places is encoded again
    (pics / "0.png").rename(pics / "x")
    (pics / "2.png").rename(pics / "0.png")
    (pics / "x").rename(pics / "2.png")
    library.sync()
    assert words() == wanted
    library.check()


def test_with_ids_by_content_every_item_is_the_picture_of_its_file(tmp_path, pics):
    library = Library(tmp_path / "index", ids="content")
    library.add(pics)
    before = {*library.engine.known()}
    (pics / "0.png").rename(pics / "x")
    (pics / "2.png").rename(pics / "0.png")
    (pics / "x").rename(pics / "2.png")
    for name in ("0.png", "2.png"):
        touch(pics / name)
    assert library.sync().moved == 2 and {*library.engine.known()} == before
    library.check()
    gone = next(item for item, known in library.engine.known().items() if known.path == "2.png")
    shutil.copy(pics / "0.png", pics / "2.png")
    touch(pics / "2.png")
    report = library.sync()
    assert (report.duplicates, report.removed, library.encoded) == (1, 1, [])
    assert before - {*library.engine.known()} == {gone}, "no file has its content any more"
    library.check()


def test_an_item_that_another_command_removes_meanwhile_is_encoded_again(library, pics, monkeypatch):
    (pics / "0.png").rename(pics / "zero.png")
    changes = plan(library.engine)
    library.engine.remove([key_of("0.png")])
    monkeypatch.setattr(sync, "plan", lambda engine, checksum: changes)
    assert library.sync().added == 1 and library.encoded == ["zero.png"]
    library.check()


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_file_of_which_nobody_knows_whether_it_is_there_is_not_taken_for_gone(library, pics, monkeypatch, code):
    real = os.stat

    def stat(place, *arguments, **options):
        if str(place).endswith("4.png"):
            raise OSError(code, os.strerror(code), str(place))
        return real(place, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", stat)
        with pytest.raises(OSError, match=r"4\.png"):
            library.sync()
        (pics.parent / "list.txt").write_text("pics/4.png\npics/6.png\n")
        report = library.add(pics.parent / "list.txt")
        assert [entry.path for entry in report.skipped] == ["4.png"] and report.unchanged == 1
    assert library.engine.count() == 10 and library.sync().unchanged == 10


def test_a_pipe_with_the_name_of_a_picture_holds_nothing_up(library, pics):
    os.mkfifo(pics / "pipe.jpg")
    (pics / "sub" / "loop.png").symlink_to("loop.png")
    report = library.sync()
    assert [(entry.path, "is no regular file" in entry.reason) for entry in report.skipped] == [("pipe.jpg", True)]
    assert report.unchanged == 10 and library.engine.count() == 10


def test_an_embedding_that_is_not_finite_is_named_and_the_batches_before_it_are_kept(tmp_path, pics, monkeypatch):
    library = Library(tmp_path / "index")
    picture(pics / "sub" / "z.png", seed=0, size=(3, 3)).write_bytes((pics / "0.png").read_bytes())
    from tests.support.counting_encoder import Counting

    real = Counting.encode

    def broken(self: Counting, pixels, names):
        if "sub/9.png" in names:
            raise FloatingPointError("embeddings of 'pixels' must be finite, got NaN or inf for sub/9.png")
        return real(self, pixels, names)

    monkeypatch.setattr(Counting, "encode", broken)
    with pytest.raises(FloatingPointError, match=r"for sub/9\.png"):
        library.add(pics)
    kept = library.engine.count()
    assert kept == 8 and library.engine.verify() == []
    monkeypatch.setattr(Counting, "encode", real)
    report = library.add(pics)
    assert report.unchanged == 8
    library.check()
