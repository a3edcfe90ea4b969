"""The picture of answers and their marks, the page of one query, and the plane of the embedding map."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from PIL import Image, ImageColor, ImageDraw

from hystar_fast.retrieval import picture_text
from hystar_fast.retrieval.answer_grid import PAGE_TILE, Answer, Question, answer_grid, answer_page
from hystar_fast.retrieval.embedding_map import embedding_map, principal_plane
from hystar_fast.retrieval.picture_sheet import IRRELEVANT, RELEVANT, SAME_CATEGORY, UNKNOWN, Mark
from hystar_fast.retrieval.picture_text import drawable, paragraph
from hystar_fast.retrieval.plot_style import dot_size, looks

NAMES = ("photos/airplane/n02691156_10151.jpg", "Ελλάδα и кошка.jpeg", "a\x1b[31m\x00\u202eb.png", "caf\udce9.png",
         "日本の猫.png", "\U0001f349.png", "line\nbreak\t.png", "", "x" * 255, "many words " * 200)  # fmt: skip


PURPLE = "#c80078"


def grey(value: int = 128) -> torch.Tensor:
    return torch.full((3, 64, 64), value, dtype=torch.uint8)


def purple(height: int = 64, width: int = 64) -> torch.Tensor:
    """Return a picture in a colour that nothing else in a drawing has."""
    return torch.tensor(ImageColor.getrgb(PURPLE), dtype=torch.uint8).view(3, 1, 1).expand(3, height, width)


def question(relevance: list[bool | None], *, image: torch.Tensor | None = None) -> Question:
    answers = [Answer(grey(), relevant) for relevant in relevance]
    return Question(image, "sketch", "a very long name that goes over several lines of its column", {"ours": answers})


def count(picture: Image.Image, colour: str) -> int:
    wanted = torch.tensor(ImageColor.getrgb(colour), dtype=torch.uint8)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(-1, 3)
    return int((pixels == wanted).all(1).sum())


def tile(mark: Mark, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Return the grey levels of one answer with a mark, its frame included."""
    monkeypatch.setattr(Answer, "mark", mark)
    drawn = answer_grid([Question(grey(), "", "", {"ours": [Answer(grey())]})], "t").convert("L")
    return torch.frombuffer(bytearray(drawn.tobytes()), dtype=torch.uint8).view(drawn.height, drawn.width).int()


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Return every text that is drawn, with its box, in order."""
    found = []
    draw = ImageDraw.ImageDraw.text

    def spy(self, xy, text, *args, **options):
        box = self.textbbox(xy, text, font=options["font"], anchor=options.get("anchor"))
        found.append((text, tuple(round(side) for side in box)))
        draw(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return found


def test_relevant_answers_are_framed_green_and_irrelevant_ones_red():
    pairs = [([True, None, None], 1, 0), ([True, True, False], 2, 1), ([None, None, None], 0, 0)]
    tiles = {True: 0, False: 0}
    for relevant, mark in ((True, RELEVANT), (False, IRRELEVANT)):
        one, two = (count(answer_grid([question([relevant] * n, image=grey())], "t"), mark.colour) for n in (1, 2))
        tiles[relevant], legend = two - one, 2 * one - two
        assert tiles[relevant] > 0 and legend > 0, "the legend does not show the mark"
    for relevance, right, wrong in pairs:
        drawn = answer_grid([question(relevance, image=grey())], "t")
        assert (count(drawn, RELEVANT.colour) >= right * tiles[True] > 0) == (right > 0)
        assert (count(drawn, IRRELEVANT.colour) >= wrong * tiles[False] > 0) == (wrong > 0)


def test_marks_differ_without_colour(monkeypatch):
    marks = (RELEVANT, SAME_CATEGORY, IRRELEVANT, UNKNOWN)
    assert len({mark.sign for mark in marks}) == len({mark.frame for mark in marks}) == len(marks)
    pictures = {mark: tile(mark, monkeypatch) for mark in (RELEVANT, SAME_CATEGORY, IRRELEVANT)}
    for one, other in combinations(pictures, 2):
        low = min(pictures[one].shape[0], pictures[other].shape[0])
        strong = (pictures[one][:low] - pictures[other][:low]).abs() > 30
        assert strong.sum() > 200, f"{one} and {other} look alike in grey"
        levels = [Image.new("RGB", (1, 1), mark.colour).convert("L").getpixel((0, 0)) for mark in (one, other)]
        assert abs(levels[0] - levels[1]) > 20


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


def test_long_names_of_a_grid_stay_in_their_columns(texts):
    name = "hystar+loss=info_nce_hard+blocks=2-4-6"
    drawn = answer_grid([Question(grey(), name, name * 9, {name: [Answer(grey())], "b": [Answer(grey())]})], name * 9)
    boxes = [box for text, box in texts if text.strip()]
    assert max(box[2] for box in boxes) <= drawn.width and max(box[3] for box in boxes) <= drawn.height
    for (_, one), (_, other) in combinations([entry for entry in texts if entry[0].strip()], 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1], "texts overlap"


def test_questions_with_unequal_columns_are_rejected():
    with pytest.raises(ValueError, match="questions must hold at least one question, got none"):
        answer_grid([], "t")
    with pytest.raises(ValueError, match="the same columns"):
        answer_grid([question([True]), question([True, False])], "t")


@pytest.mark.parametrize("n", [0, 1, 6, 7, 200])
def test_a_page_wraps_its_answers_into_rows_that_fit_a_screen(n, texts):
    answers = [Answer(purple(), caption=f"name{i}", score=0.9 - 0.004 * i) for i in range(n)]
    drawn = answer_page(grey(), "query.png", answers, f"First {n} of 310")
    assert drawn.width <= 960
    tiles = {text: box for text, box in texts if text.startswith("name")}
    assert list(tiles) == [f"name{i}" for i in range(n)]
    assert len({box[1] for box in tiles.values()}) == -(-n // 6)
    assert all(box[2] <= drawn.width and box[3] <= drawn.height for box in tiles.values())
    ranks = [text.split() for text, _ in texts if "." in text and text.split(".")[0].isdigit()]
    assert ranks == [[f"{i + 1}.", f"{0.9 - 0.004 * i:.3f}"] for i in range(n)]
    assert count(drawn, PURPLE) == n * PAGE_TILE**2, "a picture is not drawn at 128 pixels"
    assert ("no answers" in [text for text, _ in texts]) == (n == 0)


def test_names_of_any_kind_are_whole_or_have_an_ellipsis(texts):
    answers = [Answer(grey(), caption=name, score=0.5) for name in NAMES]
    drawn = answer_page(None, "words", answers, "t")
    assert all(box[2] <= drawn.width and box[3] <= drawn.height for _, box in texts)
    shown = "".join(text for text, _ in texts).replace(" ", "")
    for name in NAMES[:8]:
        assert drawable(name).replace(" ", "") in shown
    assert sum("…" in text for text, _ in texts) == 2, "only the last two names are too long"
    answer_page(None, "日" * 100_000, [], "t" * 100_000)


def test_text_that_no_font_can_draw_is_escaped():
    assert drawable("caf\udce9 \x1b\u202e") == "caf\\udce9 \\x1b\\u202e"
    assert drawable("é ß я λ عرب") == "é ß я λ عرب"
    assert drawable("\U000f0000") == "\\U000f0000"


def test_a_paragraph_breaks_after_separators_and_keeps_both_ends():
    assert paragraph("one two/three_four", 15, 50).rows == ("one", "two/", "three_", "four")
    long = paragraph("begin" + "x" * 500 + "end.png", 15, 90, lines=2)
    assert len(long.rows) == 2 and long.rows[0].startswith("begin") and long.rows[1].startswith("…")
    assert long.rows[1].endswith("end.png") and long.width <= 90
    assert all(paragraph("wide" * 9, 15, 1, lines=3).rows), "a letter wider than the line has a line"


@pytest.mark.parametrize(("height", "width"), [(2, 3000), (3000, 2), (64, 64), (1, 1)])
def test_pictures_of_any_shape_keep_their_proportions(height, width):
    drawn = answer_page(None, "words", [Answer(purple(height, width))], "t")
    seen = count(drawn, PURPLE)
    side = max(height, width)
    expected = [max(1, round(PAGE_TILE * length / side)) for length in (height, width)]
    assert seen == expected[0] * expected[1]


def test_an_answer_that_cannot_be_read_keeps_its_place(texts):
    answer_page(grey(), "q.png", [Answer(None, caption="gone.png", score=0.25), Answer(grey(), caption="b")], "t")
    found = [text for text, _ in texts]
    assert "cannot be read" in found and "gone.png" in found and "b" in found


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


def test_a_map_of_many_styles_with_any_name_is_drawn(tmp_path):
    names = (*NAMES[:8], "_hidden", "$\\frac$", "a $b", *(f"style {i}" for i in range(9)))
    embedding_map({"$x_": {name: torch.randn(5, 4) for name in names}}, tmp_path / "map.png", "a $ note")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.height > 300


def test_labels_differ_in_colour_and_in_shape():
    found = list(looks([f"label {i}" for i in range(40)]).values())
    assert len(set(found)) == 40
    for part in (0, 1):
        assert len({look[part] for look in found[:8]}) == 8


def test_dots_are_smaller_the_more_there_are():
    sizes = [dot_size(n, 2.7) for n in (1, 30, 300, 1_000, 5_000, 100_000)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] >= 1
    inked = [n * dot_size(n, 2.7) / (72 * 2.7) ** 2 for n in (300, 1_000)]
    assert inked[0] == pytest.approx(inked[1]), "the share of the panel that dots cover depends on their number"


def test_a_name_that_dejavu_lacks_is_drawn_in_a_font_of_the_system(monkeypatch):
    stix = str(Path(mpl.get_data_path()) / "fonts/ttf/STIXGeneral.ttf")
    letter = chr(min(picture_text._letters(stix) - picture_text._letters(picture_text._dejavu(bold=False))))
    monkeypatch.setattr(picture_text, "_system_fonts", lambda: (stix,))
    picture_text._file_for.cache_clear()
    assert drawable(f"a{letter}") == f"a{letter}"
    assert paragraph(f"a{letter}", 15, 99).font.path == stix
    assert paragraph("a", 15, 99).font.path != stix
    picture_text._file_for.cache_clear()
    monkeypatch.setattr(picture_text, "_system_fonts", tuple)
    assert drawable(f"a{letter}") == f"a{ascii(letter)[1:-1]}"
    picture_text._file_for.cache_clear()
