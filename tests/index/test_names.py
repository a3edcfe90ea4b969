"""Any name that a file system allows is indexed, searched, shown and removed as it is, and controls nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hystar_fast.index.folder_index import index_folder
from hystar_fast.index.local import LocalEngine
from hystar_fast.methods.suite import create_method, tiny_config
from tests.support.cli import run
from tests.support.picture_trees import picture

NAMES = [
    *(
        b"caf\xe9.png",
        b"new\nline.png",
        b"tab\t.png",
        b"\x1b[31mred.png",
        b"[red]a.png",
        b"\xff\xfe.png",
        b"a b'\"$(x).png",
    ),
    *(b"a" * 251 + b".png", b"-rf.png", b"..png".rjust(7, b"x"), b":smile:.png", b"\xe2\x80\xae.png"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(NAMES):
        picture(folder / "x.png", seed=i).rename(os.fsdecode(os.fsencode(folder) + b"/" + name))
    picture(folder / "x[" / "bold].png", seed=99)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    folder = tmp_path_factory.mktemp("made") / "index"
    report = index_folder(pictures, create_method("frozen", tiny_config(None)), folder)
    assert report.added == len(NAMES) + 1 and not report.skipped
    return folder


def test_every_name_is_an_id(index):
    with LocalEngine(index) as engine:
        assert {os.fsencode(item) for item in engine.known()} == {*NAMES, b"x[/bold].png"}
        assert engine.verify() == []


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_a_picture_of_any_name_is_found_and_shown_without_control(index, pictures, number):
    path = os.fsdecode(os.fsencode(pictures) + b"/" + NAMES[number])
    result = run("search", "--query", path, "--index", index, "--top", 3)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output and "\u202e" not in result.output
    if b"[red]" in NAMES[number]:
        assert "[red]a.png" in result.output
    hits = json.loads(run("search", "--query", path, "--index", index, "--json").stdout)
    assert os.fsencode(hits[0]["id"]) == NAMES[number] and hits[0]["score"] == pytest.approx(1, abs=1e-4)


def test_one_name_that_is_not_utf8_leaves_a_good_index_as_it_is_and_is_added(tmp_path):
    folder, index = tmp_path / "pics", tmp_path / "index"
    picture(folder / "good.png", seed=1)
    method = create_method("frozen", tiny_config(None))
    index_folder(folder, method, index)
    picture(folder / "x.png", seed=2).rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    assert index_folder(folder, method, index).added == 1
    with LocalEngine(index) as engine:
        assert sorted(map(os.fsencode, engine.known())) == [b"caf\xe9.png", b"good.png"]


def test_ids_of_any_name_are_removed_by_it(index, tmp_path):
    import shutil

    copy = shutil.copytree(index, tmp_path / "copy")
    for name in (b"caf\xe9.png", b"new\nline.png", b"-rf.png"):
        result = run("index", "remove", copy, f"--id={os.fsdecode(name)}")
        assert result.exit_code == 0, result.output
    with LocalEngine(copy) as engine:
        assert engine.count() == len(NAMES) - 2
