"""Files that are replaced as a whole, and the checksum of JSON."""

from __future__ import annotations

import json
import os
import stat

import pytest

from hystar_fast.data.whole_files import opened_json, sealed_json, write_whole
from tests.support.damage import cuts


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "a" / "file", b"old")

    def half(file) -> None:
        file.write(b"ne")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_whole(tmp_path / "a" / "file", half)
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "a").iterdir()] == [("file", b"old")]
    write_whole(tmp_path / "a" / "file", lambda file: file.write(b"new"))
    assert (tmp_path / "a" / "file").read_bytes() == b"new"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a" / "file").stat().st_mode) == 0o666 & ~mask


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_every_flipped_bit_of_sealed_json_is_found_or_changes_nothing():
    content = {"name": "é caf\udce9", "figures": [1, 2.5, float("inf")], "deep": {"x": None}}
    whole = sealed_json(content)
    assert opened_json(whole, "f") == content
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            try:
                found = opened_json(bytes(flipped), "f.json")
            except ValueError as error:
                assert str(error).startswith("f.json is corrupt: ")
            else:
                found = {name: value for name, value in found.items() if name in content}
                assert found == content, f"bit {bit} of byte {place}"
    for cut in cuts(whole[:-1], len(whole)):
        with pytest.raises(ValueError, match=r"f\.json is corrupt"):
            opened_json(cut, "f.json")


def test_json_of_others_is_read_without_a_checksum():
    assert opened_json(b"\xef\xbb\xbf" + json.dumps([1, {"a": 2}]).encode(), "f") == [1, {"a": 2}]
    with pytest.raises(ValueError, match="f is corrupt"):
        opened_json(b"[" * 100_000, "f")
