"""Pictures of rankings: the frames of answers and their colours, and the plane of the embedding map."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageColor

from hystar_fast.retrieval.answer_grid import IRRELEVANT, RELEVANT, Answer, Question, answer_grid
from hystar_fast.retrieval.embedding_map import embedding_map, principal_plane


def grey(value: int = 128) -> torch.Tensor:
    return torch.full((3, 64, 64), value, dtype=torch.uint8)


def question(relevance: list[bool | None], *, image: torch.Tensor | None = None) -> Question:
    answers = [Answer(grey(), relevant) for relevant in relevance]
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
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 20, 30)
    drawn = answer_grid(
        [Question(None, "text", "a red heart", {"ours": [Answer(red)], "theirs": [Answer(grey())]})], "t"
    )
    assert count(drawn, "#ff0000") > 100
    blank = answer_grid([Question(None, "text", "", {"ours": [Answer(red)], "theirs": [Answer(grey())]})], "t")
    assert drawn.tobytes() != blank.tobytes(), "the words of the query are not drawn"


def test_questions_with_unequal_columns_are_rejected():
    with pytest.raises(ValueError, match="questions must hold at least one question, got none"):
        answer_grid([], "t")
    with pytest.raises(ValueError, match="the same columns"):
        answer_grid([question([True]), question([True, False])], "t")


def test_points_of_a_plane_keep_their_distances():
    points = torch.randn(30, 2).double() @ torch.linalg.qr(torch.randn(7, 2).double()).Q.T + 5.0
    plane, share = principal_plane(points)
    assert share == pytest.approx(1.0)
    assert torch.allclose(torch.pdist(plane.double()), torch.pdist(points), atol=1e-5)
    with pytest.raises(ValueError, match="embeddings must be"):
        principal_plane(torch.randn(1, 4))


def test_equal_points_have_a_finite_plane():
    plane, share = principal_plane(torch.ones(5, 3))
    assert plane.isfinite().all()
    assert share == 0.0


def test_the_map_is_written_as_a_picture(tmp_path):
    panels = {name: {"noto": torch.randn(9, 4), "sketch": torch.randn(7, 4)} for name in ("frozen", "hystar")}
    embedding_map(panels, tmp_path / "map.png", "a note")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > picture.height > 300
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 10, "the map is blank"
