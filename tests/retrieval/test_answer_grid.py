"""The pictures: where frames lie and what colour they have, and the plane of the map."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageColor

from hystar_fast.retrieval.answer_grid import IRRELEVANT, RELEVANT, Answer, Question, answer_grid
from hystar_fast.retrieval.embedding_map import embedding_map, principal_plane


def grey(value: int = 128) -> torch.Tensor:
    return torch.full((3, 64, 64), value, dtype=torch.uint8)


def question(rights: list[bool | None], *, image: torch.Tensor | None = None) -> Question:
    answers = [Answer(grey(), right) for right in rights]
    return Question(image, "sketch", "a very long name that goes over several lines of its column", {"ours": answers})


def count(picture: Image.Image, colour: str) -> int:
    wanted = torch.tensor(ImageColor.getrgb(colour), dtype=torch.uint8)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(-1, 3)
    return int((pixels == wanted).all(1).sum())


def test_relevant_answers_are_framed_green_and_irrelevant_ones_red():
    none = answer_grid([question([None, None, None], image=grey())], "t")
    one = answer_grid([question([True, None, None], image=grey())], "t")
    two = answer_grid([question([True, True, False], image=grey())], "t")
    frame = count(one, RELEVANT)
    assert frame > 0
    assert count(none, RELEVANT) == count(none, IRRELEVANT) == 0
    assert count(two, RELEVANT) == 2 * frame
    assert count(two, IRRELEVANT) == frame


def test_rows_add_height_and_columns_add_width():
    small = answer_grid([question([True])], "t")
    tall = answer_grid([question([True])] * 3, "t")
    wide = answer_grid([question([True] * 5)], "t")
    assert tall.height > small.height and tall.width == small.width
    assert wide.width > small.width and wide.height == small.height


def test_a_query_of_words_and_pictures_in_floating_point_are_drawn():
    answers = {"ours": [Answer(torch.rand(3, 20, 30))], "theirs": [Answer(grey())]}
    answer_grid([Question(None, "text", "a red heart", answers)], "t", "a note")


def test_questions_that_do_not_fit_together_are_named():
    with pytest.raises(ValueError, match="questions must hold at least one question, got none"):
        answer_grid([], "t")
    with pytest.raises(ValueError, match="the same columns"):
        answer_grid([question([True]), question([True, False])], "t")


def test_the_plane_of_points_that_lie_in_a_plane_keeps_their_distances():
    points = torch.randn(30, 2).double() @ torch.linalg.qr(torch.randn(7, 2).double()).Q.T + 5.0
    plane, share = principal_plane(points)
    assert share == pytest.approx(1.0)
    assert torch.allclose(torch.pdist(plane.double()), torch.pdist(points), atol=1e-5)
    with pytest.raises(ValueError, match="embeddings must be"):
        principal_plane(torch.randn(1, 4))


def test_equal_points_have_a_plane():
    plane, share = principal_plane(torch.ones(5, 3))
    assert plane.isfinite().all()
    assert share == 0.0


def test_the_map_is_a_picture(tmp_path):
    panels = {name: {"noto": torch.randn(9, 4), "sketch": torch.randn(7, 4)} for name in ("frozen", "hystar")}
    embedding_map(panels, tmp_path / "map.png", "a note")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > picture.height > 300
