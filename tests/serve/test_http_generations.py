"""An index that gets another model, is damaged, or is made anew while it is served."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from hystar_fast.index.engine import IndexDamaged, Item
from hystar_fast.index.local import LocalEngine
from tests.support import served
from tests.support.served import drawing, encoded, form, problem, until

PICTURE = encoded(drawing(0))


def with_generation(running, seed):
    """Fill a second generation, which is not live; return its number."""
    methods = {"adapted": served.method(seed)}
    number = running.engine.create_generation(served.stamps(methods), {})
    items = [item for batch, _ in running.engine.scan() for item in batch]
    running.engine.upsert(items, served.vectors(methods, running.folder, items), number)
    return number


def slowly(engine, generation):
    """Load a model, which takes a while but for that of the first generation."""
    if generation.number > 1:
        time.sleep(1)
    return served.seeded(engine, generation)


def test_no_request_fails_while_the_model_of_the_next_generation_is_loaded(start):
    running = start(load=slowly, allow_writes=True)
    number = with_generation(running, 5)
    running.engine.switch(number)
    running.engine.drop(1)
    added = running.client.post("v1/items", files=form(image=encoded(drawing(80)), id="new"))
    assert added.status_code == 201
    answer = running.search(image=encoded(drawing(80)), k=1).json()
    assert answer["stamp"] == running.engine.stamps()["adapted"].sha256
    assert (answer["hits"][0]["id"], answer["hits"][0]["score"]) == ("new", pytest.approx(1, abs=1e-5))


def test_a_picture_is_added_with_the_model_that_is_live_when_it_is_written(start):
    running = start(load=slowly, allow_writes=True)
    number = with_generation(running, 5)
    running.engine.switch(number)  # the server will see it in a moment
    known = running.client.post("v1/items", files=form(image=encoded(drawing(3)), id="003.png", caption="a new one"))
    new = running.client.post("v1/items", files=form(image=encoded(drawing(81)), id="new"))
    assert (known.status_code, new.status_code) == (201, 201)
    methods = {"adapted": served.method(5)}
    for name, image in (("003.png", 3), ("new", 81)):
        held = running.engine.vectors([Item(name).key], "adapted", number)[0]
        with torch.inference_mode():
            made = methods["adapted"].encode_image(methods["adapted"].resize(drawing(image))[None])[0]
        assert torch.allclose(held, made, atol=1e-6)
    assert running.engine.fetch([Item("003.png").key])[Item("003.png").key].caption == "a new one"


def test_a_generation_that_is_switched_while_the_server_starts_is_served(tmp_path):
    engine = served.make_index(tmp_path, {"adapted": served.method(1)})
    number = with_generation(served.Served(None, engine, tmp_path / "pictures", [], None), 5)

    def load(engine, generation):
        methods = served.seeded(engine, generation)
        if generation.number != number:
            engine.switch(number)
        return methods

    with served.serve(engine, tmp_path / "pictures", load) as running:
        until(lambda: running.client.get("v1/index").json()["generation"] == number)
        assert running.search(image=PICTURE).json()["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_an_index_of_another_model_under_the_same_name_and_number_brings_its_model(start, monkeypatch):
    running = start()
    methods = {"adapted": served.method(5)}
    anew = replace(running.engine.generation(), stamps=served.stamps(methods))  # as after DROP SCHEMA and index create
    monkeypatch.setattr(running.engine, "generation", lambda number=None: anew)
    running.engine.put_style("any", torch.ones(3))
    wanted = anew.stamps["adapted"].sha256
    until(lambda: running.client.get("v1/index").json()["views"] == {"adapted": wanted})
    assert running.search(text="moon").json()["stamp"] == wanted


def test_a_damaged_index_is_an_error_of_the_server_whatever_was_asked(start, monkeypatch):
    running = start()

    def damaged(*arguments, **options):
        raise IndexDamaged("/secret/index.db is damaged")

    monkeypatch.setattr(running.engine, "search", damaged)
    monkeypatch.setattr(running.engine, "log_sum", damaged)
    for fields in ({}, {"where": "parity=1"}, {"combine": "softmax"}):
        refused = running.search(image=PICTURE, **fields)
        assert problem(refused)[:2] == (500, "internal") and "secret" not in refused.text


def test_an_index_that_is_made_anew_in_its_place_is_not_answered_from(start, tmp_path):
    running = start()
    folder = tmp_path / "index"
    folder.rename(tmp_path / "old")
    refused = running.search(image=PICTURE)
    assert problem(refused)[:2] == (503, "engine_unavailable")
    with LocalEngine.create(folder, served.stamps({"adapted": served.method(2)})):
        assert problem(running.search(image=PICTURE))[:2] == (503, "engine_unavailable")
    until(lambda: running.client.get("readyz").status_code == 503)
    assert any("open the index again" in line for line in running.lines)
