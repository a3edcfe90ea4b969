"""Pictures of an index whose files are members of tars."""

from __future__ import annotations

import pytest

from hystar_fast.serve.pictures import PictureGone, Pictures
from tests.support.counting_encoder import Library
from tests.support.picture_trees import encoded, tar


def test_a_member_of_a_tar_is_sent_and_one_that_has_gone_is_gone(tmp_path):
    content = encoded(1)
    place = tar(tmp_path / "tars" / "a.tar", {"x/0.png": content})
    library = Library(tmp_path / "index")
    library.add(tmp_path / "tars")
    item = next(item for items, _ in library.engine.scan() for item in items)
    pictures = Pictures(library.engine)
    file, kind = pictures.open(item)
    with file:
        assert (file.read(), kind) == (content, "image/png")
    assert pictures.thumbnail(item)[8:12] == b"WEBP"
    elsewhere = place.rename(tmp_path / "other.tar")
    place.symlink_to(elsewhere)
    with pytest.raises(PictureGone, match="lies outside its source"):
        pictures.open(item)
    place.unlink()
    tar(place, {"y.png": content})
    with pytest.raises(PictureGone, match="cannot be opened"):
        pictures.open(item)
