"""The figures: projections, drawings, and the runs that they share with the tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hystar_fast.data.emoji import load_emoji
from hystar_fast.experiments import answer_sheets
from hystar_fast.experiments import figures as module
from hystar_fast.experiments.figures import _middle_features
from hystar_fast.experiments.plots import Cloud, Curve, draw_clouds, draw_sweep, project
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.retrieval.answer_grid import Answer, Question, answer_sheet
from hystar_fast.retrieval.answers import first_answers, query_vector
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.picture_sheet import IRRELEVANT, RELEVANT, SAME_CATEGORY, UNKNOWN, Mark
from tests.support import picture_trees as trees
from tests.support.experiments import done, refused_experiment, shrink_grids
from tests.support.small_tiny import shrink_tiny


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def clusters(n: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(3, 16, generator=generator)
    return centres.repeat_interleave(n, 0) + 0.1 * torch.randn(3 * n, 16, generator=generator)


@pytest.mark.parametrize(("projection", "module"), [("tsne", "sklearn"), ("umap", "umap")])
def test_a_projection_separates_clusters_and_is_reproducible(projection, module):
    pytest.importorskip(module)
    found = project(clusters(), projection)
    groups = found.reshape(3, 20, 2)
    spread = (groups - groups.mean(1, keepdim=True)).norm(dim=-1).max()
    assert torch.pdist(groups.mean(1)).min() > 2 * spread
    assert torch.equal(found, project(clusters(), projection))


@pytest.mark.parametrize(
    ("projection", "module", "distribution"),
    [
        ("tsne", "sklearn.manifold", "scikit-learn"),
        ("umap", "umap", "umap-learn"),
    ],
)
def test_a_missing_projection_library_is_reported_with_its_install_command(
    monkeypatch, projection, module, distribution
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {distribution}: pip install 'hystar-fast\[figures\]'"):
        project(clusters(), projection)


def test_pca_is_the_plane_of_the_principal_components():
    points = clusters()
    found = project(points, "pca")
    centred = points - points.mean(0)
    assert torch.allclose(found.norm(dim=0), torch.linalg.svdvals(centred)[:2], rtol=1e-4)
    with pytest.raises(ValueError, match=r"projection must be one of \('tsne', 'umap', 'pca'\), got 'lda'"):
        project(points, "lda")
    for projection, name in (("tsne", "t-SNE"), ("umap", "UMAP")):
        with pytest.raises(ValueError, match=f"embeddings must be at least 4 points for {name}"):
            project(points[:3], projection)


def test_clouds_are_drawn_in_the_colour_of_every_label(tmp_path):
    labels = ["a"] * 20 + ["b"] * 20 + ["c"] * 20
    panels = {"one": Cloud(clusters(), labels), "two": Cloud(clusters(), labels)}
    other = {name: Cloud(cloud.embeddings, ["x"] * 60) for name, cloud in panels.items()}
    draw_clouds({"style": panels, "class": other}, tmp_path / "clouds.png", "a note", projection="pca")
    pixels = drawn(tmp_path / "clouds.png")
    assert min(pixels.shape[:2]) > 800
    for colour in ("0072b2", "e69f00", "009e73"):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)])
        seen = 0.75 * wanted + 0.25 * 255  # the points are drawn with an opacity of 0.75
        assert (np.abs(pixels - seen).sum(-1) < 12).sum() > 50, colour


def test_a_sweep_draws_higher_values_higher(tmp_path):
    settings = (1, 10, 100)
    low, high = Curve((20.0,) * 3, (19.0,) * 3, (21.0,) * 3), Curve((80.0,) * 3, (79.0,) * 3, (81.0,) * 3)
    draw_sweep(settings, {"low": low, "high": high}, tmp_path / "sweep.png", "γ", "a title", "a note", default=10)
    pixels = drawn(tmp_path / "sweep.png")
    rows = []
    for colour in ("0072b2", "e69f00"):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)])
        places = (np.abs(pixels - wanted).sum(-1) < 30).sum(1)
        rows.append(int(places.argmax()))
    assert rows[0] > rows[1] + 100, "20 % lies below 80 %"
    with pytest.raises(ValueError, match="curves must have 2 points, got 3 in 'low'"):
        draw_sweep((1, 2), {"low": low}, tmp_path / "sweep.png", "γ", "")


def test_a_sheet_frames_answers_by_their_relevance(tmp_path):
    grey = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    answers = [Answer(grey, True), Answer(grey, False, same_category=True), Answer(grey, False), Answer(grey)]
    questions = [
        Question(grey, "sketch", "a cat", {"frozen": answers, "hystar": answers[::-1]}),
        Question(None, "text", "a dog", {"frozen": answers[:1] * 4, "hystar": answers[1:2] * 4}),
    ]
    legend = {RELEVANT: "relevant", SAME_CATEGORY: "same category"}
    answer_sheet(questions, "title", ["one", "two"], legend).save(tmp_path / "sheet.png")
    pixels = drawn(tmp_path / "sheet.png")

    def frames(mark: Mark) -> list[tuple[int, int]]:
        """Return the (row, column) of the top left corner of every frame of one mark, the legend's included."""
        wanted = np.array([int(mark.colour[i : i + 2], 16) for i in (1, 3, 5)])
        here = (pixels == wanted).all(-1)
        starts = here & ~np.roll(here, 1, 0) & ~np.roll(here, 1, 1)
        return [
            (int(y), int(x))
            for y, x in np.argwhere(starts)
            if here[y, x : x + 20].all() and here[y : y + 20, x].all() and not here[y + mark.frame, x + mark.frame]
        ]

    relevant, same, irrelevant, unknown = map(frames, (RELEVANT, SAME_CATEGORY, IRRELEVANT, UNKNOWN))
    assert [len(found) for found in (relevant, same, irrelevant, unknown)] == [1 + 2 + 4, 1 + 2 + 4, 2, 1 + 2]
    columns = sorted({x + RELEVANT.frame for _, x in relevant[1:]})  # of the pictures in the frames
    assert len(columns) == 4 and relevant[1][1] + RELEVANT.frame == columns[0]
    assert irrelevant[0][1] + IRRELEVANT.frame == columns[2]
    assert [x + UNKNOWN.frame for _, x in unknown[1:]] == [columns[3], columns[0]], (
        "the second column is not in reverse order"
    )
    with pytest.raises(ValueError, match="all with the same methods"):
        answer_sheet([questions[0], Question(None, "text", "", {"hystar": answers})], "", [], {})


def test_answers_of_the_querys_category_are_marked_on_request():
    images = load_emoji("test", ("flat",)).select(limit=40)
    method = create_method("pixels", tiny_config(None))
    gallery = embed_records(method, images, images.of_style(images.gallery_style), [])
    for place in (3, 17):
        query = images.of_style("flat")[place]
        vector = query_vector(method, images, query)
        answers = first_answers(gallery, images, query, vector, 10, by_category=True)
        scores = gallery.vectors @ vector
        best = [gallery.records[i] for i in scores.sort(descending=True, stable=True).indices[:10].tolist()]
        assert [answer.caption for answer in answers] == [record.caption for record in best]
        assert [answer.relevant for answer in answers] == [record.instance == query.instance for record in best]
        assert [answer.same_category for answer in answers] == [record.category == query.category for record in best]
        plain = first_answers(gallery, images, query, vector, 10)
        assert not any(answer.same_category for answer in plain)


def test_sheets_of_dsr_and_domainnet_have_the_papers_styles(tmp_path, monkeypatch):
    shrink_grids(monkeypatch)
    shrink_tiny(monkeypatch)
    monkeypatch.setattr(module, "_METHODS", ("frozen", "hystar"))
    drawn_styles: list[tuple[str, str]] = []
    answer_sheet = answer_sheets.answer_sheet

    def spy(questions, title, notes, legend):
        drawn_styles.extend((question.style, title) for question in questions)
        assert legend[RELEVANT] == ("the query's picture" if "DSR" in title else "the query's category")
        assert all(len(answers) > 1 for question in questions for answers in question.answers.values())
        return answer_sheet(questions, title, notes, legend)

    monkeypatch.setattr(answer_sheets, "answer_sheet", spy)
    data = {
        "source": f"dsr:{trees.split_dsr(tmp_path / 'DSR', 30, 10)}",
        "test": f"domainnet:{trees.domainnet(tmp_path / 'DomainNet')}",
    }
    done("figure", tmp_path, 5, 8, 9, data=data, training={"batch_size": 4}, run={"projection": "pca"})
    for number in (5, 8, 9):
        assert drawn(tmp_path / f"figure{number}.png").std() > 5
    of_figure_8 = [style for style, title in drawn_styles if "Figure 8 with DSR: first 10 of 10" in title]
    assert sorted(of_figure_8) == ["art", "art", "sketch", "sketch", "text", "text"]
    assert {style for style, title in drawn_styles if "Figure 9 with DomainNet" in title} == {"clipart", "sketch"}


def test_middle_features_are_the_outputs_of_the_middle_block():
    images = torch.rand(3, 3, 64, 64)
    for name in ("frozen", "hystar"):
        method = create_method(name, tiny_config(None))
        found = _middle_features(method, images)
        model = method.modules[0]
        backbone = model.backbone if name == "hystar" else model
        kept: list[torch.Tensor] = []
        handle = backbone.blocks[4].ln_1.register_forward_pre_hook(lambda _, args: kept.append(args[0]))  # noqa: B023
        with torch.no_grad():
            method.encode_image(images)
        handle.remove()
        assert found.shape == (3, 192)
        assert torch.allclose(found, kept[0].mean(1), atol=1e-5)


def test_the_command_trains_the_methods_it_draws(tmp_path, monkeypatch):
    shrink_grids(monkeypatch)
    shrink_tiny(monkeypatch)
    monkeypatch.setitem(module.FIGURES, 6, module._sweep("gamma", (10, 80), "γ"))
    monkeypatch.setattr(module, "_METHODS", ("frozen", "hystar"))
    sections = {"data": {"limit": 6}, "run": {"projection": "pca"}}
    done("figure", tmp_path, 5, 6, 8, 10, **sections)
    for number in (5, 6, 8, 10):
        assert drawn(tmp_path / f"figure{number}.png").std() > 5
    record = json.loads((tmp_path / "compare.json").read_text())
    assert [entry["method"] for entry in record["runs"]] == ["hystar", "hystar+gamma=10", "frozen"], (
        "γ = 80 is the default, so it is no variant"
    )
    assert record["runs"][0]["learning_rates"] == record["runs"][1]["learning_rates"]
    trials = json.loads((tmp_path / "tuning.json").read_text())["trials"]
    assert {trial["method"] for trial in trials} == {"hystar"}, "variants along a curve were tuned"


def test_bad_figures_projections_and_data_are_rejected(tmp_path):
    assert "figures must be some of (3, 5, 6, 7, 8, 9, 10, 11), got 4" in refused_experiment("figure", tmp_path, 4)
    lda = {"projection": "lda"}
    assert "run.projection must be one of" in refused_experiment("figure", tmp_path, 3, run=lda)
    for i in range(30):
        for style in ("photo", "sketch"):
            trees.picture(tmp_path / "in" / style / "ant" / f"{i}.png", seed=i)
    folders = {"source": f"folders:{tmp_path / 'in'}"}
    message = refused_experiment("figure", tmp_path / "out", 5, data=folders)
    assert "data.source must have instances with queries in two styles for figure 5, got none in in" in message
