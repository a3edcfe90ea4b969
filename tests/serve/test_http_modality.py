"""Queries over HTTP that name the style of their picture: their vectors are moved to the style of the gallery."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hystar_fast.index.engine import Engine, Generation
from hystar_fast.methods.interface import Method
from tests.support import served
from tests.support.cli import run
from tests.support.served import Served, drawing, encoded, problem, seeded

GENERATOR = torch.Generator().manual_seed(5)
MEANS = {style: F.normalize(torch.randn(64, generator=GENERATOR), dim=-1) for style in ("photo", "sketch")}


def with_means(engine: Engine, generation: Generation) -> Mapping[str, Method]:
    """Load the methods; that of the view "adapted" has means of styles."""
    methods = seeded(engine, generation)
    methods["adapted"].style_means = MEANS
    return methods


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    engine = served.make_index(folder, {"adapted": served.method(1), "frozen": served.method(2)})
    with served.serve(engine, folder / "pictures", with_means) as running:
        yield running


def moved_hits(server: Served, number: int, k: int) -> tuple[list[str], list[float]]:
    """Return ids and scores of the exact answer to a drawing that is moved by the means."""
    method = seeded(server.engine, server.engine.generation())["adapted"]
    with torch.inference_mode():
        vector = method.encode_image(method.resize(drawing(number))[None])
    moved = F.normalize(vector - MEANS["sketch"] + MEANS["photo"], dim=-1)
    scores, keys = server.engine.search("adapted", moved, k)
    items = server.engine.fetch(keys[0])
    return [items[key].id for key in keys[0]], scores[0].tolist()


@pytest.mark.parametrize("modality", ["sketch", "sketch [mean shift]"])
def test_a_picture_of_a_style_is_moved_to_the_gallery(server: Served, modality: str) -> None:
    hits = server.search(image=encoded(drawing(7)), k=6, modality=modality).json()["hits"]
    ids, scores = moved_hits(server, 7, 6)
    assert [hit["id"] for hit in hits] == ids
    assert [hit["score"] for hit in hits] == pytest.approx(scores, abs=3e-6)
    plain = server.search(image=encoded(drawing(7)), k=6).json()["hits"]
    assert [hit["score"] for hit in plain] != pytest.approx(scores, abs=1e-3)


def test_words_beside_the_picture_and_the_gallerys_own_style_are_not_moved(server: Served) -> None:
    fields = {"image": encoded(drawing(7)), "modality": "sketch"}
    asked = [{"text": "a moon"}, fields, {"text": "a moon", **fields}]
    words, moved, both = (
        {hit["id"]: hit["score"] for hit in server.search(**one, k=24).json()["hits"]} for one in asked
    )
    assert len(both) == 24 and both == {name: max(words[name], moved[name]) for name in both}
    image = encoded(drawing(3))
    own = server.search(image=image, k=5, modality="photo").json()["hits"]
    assert own == server.search(image=image, k=5).json()["hits"]


def test_a_style_that_the_model_does_not_know_is_refused(server: Served) -> None:
    image = encoded(drawing(7))
    wrong = {
        "painting": "modality must be one of photo, sketch, got 'painting'",
        "sketch [converted]": "modality must name one of mean shift in brackets, got 'sketch [converted]'",
    }
    for modality, message in wrong.items():
        answer = server.search(image=image, modality=modality)
        assert problem(answer) == (422, "invalid", "modality") and answer.json()["detail"] == message
    for fields in ({"view": "frozen"}, {"compare": True}):
        answer = server.search(image=image, modality="sketch", **fields)
        assert problem(answer) == (422, "invalid", "modality")
        assert "whose adapter has no means of styles" in answer.json()["detail"]
    assert problem(server.search(text="moon", modality="sketch")) == (422, "invalid", "modality")


def test_the_command_asks_a_server_for_it(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "query.png").write_bytes(encoded(drawing(3)))
    words = ("index", "search", "--server", server.server.url, "--query", tmp_path / "query.png", "--top", 4, "--json")
    done = run(*words, "--modality", "sketch")
    assert done.exit_code == 0, done.output
    ids, scores = moved_hits(server, 3, 4)
    hits = json.loads(done.stdout)
    assert [hit["id"] for hit in hits] == ids and [hit["score"] for hit in hits] == pytest.approx(scores, abs=3e-6)
