"""Members of tars, found by paths that go through the tar."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hystar_fast.data.tar_files import find_member, list_members, member_path, read_member
from tests.support.picture_trees import tar


def test_a_member_is_found_by_its_path_whatever_form_its_name_has(tmp_path: Path) -> None:
    names = {"./a.png": b"one", "/b//c.png": b"two", "d/e.png": b"three", "../f.png": b"four"}
    path = tar(tmp_path / "x" / "a.tar", names)
    assert [*list_members(path)] == [*names]
    for name, content in names.items():
        if not name.startswith(".."):
            assert read_member(*find_member(tmp_path / "x" / "a.tar" / member_path(name))) == content
    with pytest.raises(OSError, match=r"a\.tar has no member nothing"):
        find_member(path / "nothing")
    with pytest.raises(OSError, match="does not exist"):
        find_member(tmp_path / "no.tar" / "a.png")


def test_the_list_of_members_follows_the_tar(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a": b"1"})
    find_member(path / "a")
    tar(path, {"a": b"22", "b": b"333"})
    os.utime(path, ns=(1, 1))
    found, member = find_member(path / "b")
    assert found == path and read_member(found, member) == b"333"


def test_a_tar_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a": b"1" * 600, "b": b"2" * 600})
    path.write_bytes(path.read_bytes()[:2200])
    with pytest.raises(OSError, match=r"a\.tar is no tar that can be read"):
        find_member(path / "a")
