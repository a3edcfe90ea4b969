"""Queries over a real socket: their answers, and each wrong field with its status, code and name."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hystar_fast.index.engine import Item
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.sync import plan
from hystar_fast.retrieval.joint import SOFTMAX_SCALE
from tests.support import bombs, served
from tests.support.linear_method import Linear
from tests.support.served import COUNT, drawing, encoded, form, problem


def vector(server, number=None, text=None, view="adapted", style=None):
    """Return what the method of a view makes of a drawing or of words."""
    method = served.seeded(server.engine, server.engine.generation())[view]
    with torch.inference_mode():
        if text is not None:
            return method.encode_text([text])
        image = method.resize(drawing(number))[None]
        return method.encode_image(image, None if style is None else method.style(method.resize(drawing(style))[None]))


def expected(server, query, k=10, view="adapted"):
    """Return ids and scores of the exact answer."""
    scores, keys = server.engine.search(view, query, k)
    items = server.engine.fetch(keys[0])
    return [items[key].id for key in keys[0]], scores[0].tolist()


def assert_hits(hits, ids, scores):
    assert [hit["id"] for hit in hits] == ids
    assert [hit["score"] for hit in hits] == pytest.approx(scores, abs=3e-6)
    assert [hit["place"] for hit in hits] == [*range(1, len(hits) + 1)]


def test_a_picture_finds_itself_and_its_answer_is_complete(server):
    answer = server.search(image=encoded(drawing(7)), k=5).json()
    assert_hits(answer["hits"], *expected(server, vector(server, 7), 5))
    assert answer["hits"][0] == {
        "place": 1,
        "key": Item("007.png").key,
        "id": "007.png",
        "caption": "drawing 7",
        "score": pytest.approx(1, abs=1e-5),
        "by": "image",
    }
    assert answer["view"] == "adapted"
    assert answer["stamp"] == server.engine.stamps()["adapted"].sha256
    assert set(answer["timing"]) == {"decode", "queue", "encode", "search", "batch"}


def test_words_a_filter_and_a_view(server):
    answer = server.search(text="a moon", k=30, view="frozen").json()
    assert_hits(answer["hits"], *expected(server, vector(server, text="a moon", view="frozen"), 30, "frozen"))
    assert len(answer["hits"]) == COUNT and answer["hits"][0]["by"] == "text"
    odd = server.search(text="a moon", k=30, where="parity=1").json()["hits"]
    assert len(odd) == COUNT // 2 and all(int(hit["id"][:3]) % 2 for hit in odd)
    assert server.search(text="a moon", where="kind='even number' and path^=02").json()["hits"][0]["id"] in (
        "020.png",
        "022.png",
    )


@pytest.mark.parametrize("combine", ["similarity", "softmax"])
def test_picture_and_words_together(server, combine):
    answer = server.search(image=encoded(drawing(3)), text="a moon", k=6, combine=combine).json()
    method = served.seeded(server.engine, server.engine.generation())["adapted"]
    gallery = served.vectors(
        {"adapted": method}, server.folder, [Item(f"{i:03}.png", path=f"{i:03}.png") for i in range(COUNT)]
    )["adapted"]
    parts = [vector(server, 3) @ gallery.T, vector(server, text="a moon") @ gallery.T]
    if combine == "softmax":
        parts = [(SOFTMAX_SCALE * part).log_softmax(1) / SOFTMAX_SCALE for part in parts]
    best = torch.maximum(*parts)[0]
    order = best.argsort(descending=True)[:6].tolist()
    assert_hits(answer["hits"], [f"{i:03}.png" for i in order], best[order].tolist())
    by = ["image" if parts[0][0, i] > parts[1][0, i] else "text" for i in order]
    assert [hit["by"] for hit in answer["hits"]] == by


def test_the_style_of_another_picture_and_a_registered_one(server):
    wanted = expected(server, vector(server, 3, style=9))
    other = server.search(image=encoded(drawing(3)), style=encoded(drawing(9))).json()
    assert_hits(other["hits"], *wanted)
    assert [hit["score"] for hit in other["hits"]] != expected(server, vector(server, 3))[1]
    kept = server.client.put("v1/styles/nine.a-b_c", files=form(image=encoded(drawing(9))))
    assert kept.json() == {"name": "nine.a-b_c", "dimension": 3}
    assert "nine.a-b_c" in server.client.get("v1/index").json()["styles"]
    named = server.search(image=encoded(drawing(3)), style="nine.a-b_c").json()
    assert_hits(named["hits"], *wanted)
    assert server.client.delete("v1/styles/nine.a-b_c").status_code == 204
    assert problem(server.client.delete("v1/styles/nine.a-b_c"))[:2] == (404, "not_found")
    assert problem(server.search(image=encoded(drawing(3)), style="nine.a-b_c")) == (422, "invalid", "style")


def test_json_is_the_same_as_a_form(server):
    picture, style = (base64.b64encode(encoded(drawing(n))).decode() for n in (5, 6))
    fields = {"image": picture, "style": {"image": style}, "k": 4, "text": "a moon", "compare": True}
    answer = server.client.post("v1/search", json=fields).json()
    same = server.search(image=encoded(drawing(5)), style=encoded(drawing(6)), k=4, text="a moon", compare=True).json()
    assert [*answer["compared"]] == [*same["compared"]] == ["frozen"]
    for hits, others in ((answer["hits"], same["hits"]), (answer["compared"]["frozen"], same["compared"]["frozen"])):
        assert_hits(hits, [hit["id"] for hit in others], [hit["score"] for hit in others])


def test_compare_gives_the_other_view_too(server):
    answer = server.search(image=encoded(drawing(3)), compare="true", k=4).json()
    assert_hits(answer["hits"], *expected(server, vector(server, 3), 4))
    assert_hits(answer["compared"]["frozen"], *expected(server, vector(server, 3, view="frozen"), 4, "frozen"))
    assert "compared" not in server.search(image=encoded(drawing(3))).json()


def test_vectors(server):
    answer = server.client.post("v1/embed", files=form(image=encoded(drawing(3)), text="a moon")).json()
    assert answer["image"] == pytest.approx(vector(server, 3)[0].tolist(), abs=1e-6)
    assert answer["text"] == pytest.approx(vector(server, text="a moon")[0].tolist(), abs=1e-6)
    assert answer["stamp"] == server.engine.stamps()["adapted"].sha256
    assert set(server.client.post("v1/embed", json={"text": "moon"}).json()) == {"stamp", "view", "text"}


def test_a_batch_answers_or_refuses_each_query(server):
    picture = base64.b64encode(encoded(drawing(3))).decode()
    queries = [
        {"image": picture, "k": 2},
        {"text": " "},
        {"image": "bm90IGEgcGljdHVyZQ=="},
        {"text": "moon", "k": 1},
        7,
    ]
    answers = server.client.post("v1/search/batch", json={"queries": queries}).json()["answers"]
    assert [hit["id"] for hit in answers[0]["hits"]] == expected(server, vector(server, 3), 2)[0]
    assert (answers[1]["status"], answers[1]["field"]) == (422, "text")
    assert (answers[2]["status"], answers[2]["code"]) == (400, "bad_image")
    assert len(answers[3]["hits"]) == 1
    assert (answers[4]["status"], answers[4]["detail"]) == (422, "a query must be a JSON object")
    assert "queries must have at least 1 item" in server.client.post("v1/search/batch", json={"queries": []}).text
    for queries in ([], [{"text": "moon"}] * 65):
        assert problem(server.client.post("v1/search/batch", json={"queries": queries})) == (422, "invalid", "queries")


PICTURE = encoded(drawing(0))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"text": ""}, "text"),
        ({"text": " \n\t"}, "text"),
        ({"text": "a" * 1001}, "text"),
        ({"text": "moon", "k": 0}, "k"),
        ({"text": "moon", "k": 101}, "k"),
        ({"text": "moon", "k": "many"}, "k"),
        ({"text": "moon", "colour": "red"}, "colour"),
        ({"text": "moon", "where": "kind and"}, "where"),
        ({"text": "moon", "where": "nothing=1"}, "where"),
        ({"text": "moon", "view": "other"}, "view"),
        ({"text": "moon", "combine": "sum"}, "combine"),
        ({"text": "moon", "compare": "perhaps"}, "compare"),
        ({"text": "moon", "style": "a"}, "style"),
        ({"image": PICTURE, "style": "unknown"}, "style"),
        ({"text": "moon", "": ""}, ""),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(server, fields, field):
    assert problem(server.search(**fields)) == (422, "invalid", field)


@pytest.mark.parametrize("content", [b"", b"no picture", PICTURE[:-200], encoded(drawing(0), "PPM"), b"GIF89a"])
@pytest.mark.parametrize("field", ["image", "style"])
def test_no_picture_is_refused(server, content, field):
    response = server.search(**{"image": PICTURE, field: content})
    assert problem(response)[:2] == (400, "bad_image")
    assert response.json()["detail"].startswith(f"{field} must be")


def test_too_many_pixels_are_refused(server):
    assert problem(server.search(image=bombs.png(9000, 5000)))[:2] == (413, "too_many_pixels")


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        ("text/plain", b"moon", 415, "unsupported_media_type"),
        ("", b"moon", 415, "unsupported_media_type"),
        ("application/json", b"{", 400, "bad_request"),
        ("application/json", b"[1]", 400, "bad_request"),
        ("application/json", b"\xff\xfe", 400, "bad_request"),
        ("application/json", b"[" * 100_000, 400, "bad_request"),
        ("application/json", b'{"k": ' + b"1" * 5000 + b"}", 400, "bad_request"),
        ("application/json", b'{"text": "\\ud800"}', 422, "invalid"),
        ("application/json", b"{}", 422, "invalid"),
        ("application/json", b'{"text": 5}', 422, "invalid"),
        ("application/json", b'{"image": "?"}', 422, "invalid"),
        ("application/json", b'{"text": "moon", "style": {"image": 1}}', 422, "invalid"),
        ("multipart/form-data", b"x", 400, "bad_request"),
        ("multipart/form-data; boundary=x", b"no form", 400, "bad_request"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; name=text\r\n\r\nmo",
            422,
            "invalid",
        ),
    ],
)
def test_a_wrong_body_is_refused(server, kind, body, status, code):
    response = server.client.post("v1/search", content=body, headers={"Content-Type": kind})
    assert problem(response)[:2] == (status, code)


def test_a_field_that_is_given_twice_is_refused(server):
    twice = server.client.post("v1/search", files=[("text", (None, "moon")), ("text", (None, "sun"))])
    assert problem(twice) == (422, "invalid", "text")
    many = server.client.post("v1/search", files=[(f"x{i}", (None, "")) for i in range(30)])
    assert problem(many)[:2] == (400, "bad_request")


def test_unknown_addresses_and_methods(server):
    assert problem(server.client.get("v1/nothing"))[:2] == (404, "not_found")
    for method, path, allowed in (
        ("GET", "v1/search", "POST"),
        ("OPTIONS", "v1/items/0123456789abcdef", "DELETE, GET, HEAD"),
        ("POST", "", "GET, HEAD"),
        ("PATCH", "v1/styles/a", "DELETE, PUT"),
    ):
        refused = server.client.request(method, path)
        assert problem(refused)[:2] == (405, "method_not_allowed") and refused.headers["allow"] == allowed
    assert problem(server.client.get("v1/items/0123456789abcdef"))[:2] == (404, "not_found")
    assert problem(server.client.put("v1/styles/a%20b", files=form(image=PICTURE))) == (422, "invalid", "name")


def test_head_is_get_without_a_body(server):
    key = Item("004.png").key
    for path in ("", "healthz", "readyz", "metrics", "v1/index", f"v1/items/{key}", f"v1/items/{key}/picture"):
        head, whole = server.client.head(path), server.client.get(path)
        assert (head.status_code, head.content) == (200, b"") and whole.content
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert server.client.head("v1/items/0123456789abcdef").status_code == 404


@pytest.mark.parametrize("count", [21, 20_000])
def test_a_request_with_thousands_of_fields_is_refused_in_one_line(server, count):
    many = {f"field{i}": [] for i in range(count)}
    refused = server.client.post("v1/search", json=many)
    assert problem(refused)[:2] == (400, "bad_request") and len(refused.content) < 1000
    batch = server.client.post("v1/search/batch", json={"queries": [many]})
    assert [answer["code"] for answer in batch.json()["answers"]] == ["bad_request"] and len(batch.content) < 1000


def test_words_are_read_by_the_model_of_their_view(tmp_path):
    class Other(Linear):
        def encode_text(self, texts):
            return super().encode_text([text[::2] for text in texts])

    methods = {"adapted": served.method(1), "frozen": Other()}
    methods["frozen"].name = "linear2"
    engine = served.make_index(tmp_path, methods)
    with served.serve(engine, tmp_path / "pictures", lambda engine, generation: methods) as running:
        answer = running.search(text="moonlight", compare=True, k=1).json()
        for view, hits in (("adapted", answer["hits"]), ("frozen", answer["compared"]["frozen"])):
            scores, keys = engine.search(view, methods[view].encode_text(["moonlight"]), 1)
            assert (hits[0]["key"], hits[0]["score"]) == (keys[0][0], pytest.approx(float(scores[0, 0]), abs=2e-6))
            alone = running.search(text="moonlight", view=view, k=1).json()["hits"]
            assert alone == hits


def test_items_with_their_pictures_and_thumbnails(server):
    key = Item("004.png").key
    about = server.client.get(f"v1/items/{key}").json()
    assert about["id"] == "004.png" and about["attributes"] == {"parity": 0, "kind": "even number"}
    whole = server.client.get(f"v1/items/{key}/picture")
    assert whole.content == encoded(drawing(4)) and whole.headers["content-type"] == "image/png"
    small = server.client.get(f"v1/items/{key}/thumbnail")
    assert small.headers["cache-control"] == "private, no-cache"
    again = server.client.get(f"v1/items/{key}/thumbnail", headers={"If-None-Match": small.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", small.headers["etag"])
    assert small.headers["content-type"] == "image/webp"
    shown = np.asarray(Image.open(io.BytesIO(small.content)).convert("RGB"), np.float32)
    assert np.abs(shown - np.asarray(drawing(4), np.float32)).mean() < 8


def test_the_index_describes_itself(server):
    about = server.client.get("v1/index").json()
    assert about["items"] == COUNT and list(about["views"]) == ["adapted", "frozen"]
    assert about["takes_words"] and about["takes_styles"] and not about["allows_writes"]
    assert about["limits"]["k"] == 100 and about["limits"]["body"] == 2**24


def test_nan_of_the_model_is_an_error_of_its_request_alone(start):
    method = served.method(1)
    encode = method.encode_image

    def broken(images, style=None):
        is_white = (images.float().mean((1, 2, 3)) > 254)[:, None]
        return torch.where(is_white, torch.nan, encode(images, style))

    method.encode_image = broken
    server = start(load=lambda engine, generation: {"adapted": method})
    white = encoded(Image.new("RGB", (64, 64), "white"))
    queries = [{"image": base64.b64encode(content).decode()} for content in (PICTURE, white, PICTURE)]
    first, second, third = server.client.post("v1/search/batch", json={"queries": queries}).json()["answers"]
    assert first["hits"] == third["hits"] and first["hits"][0]["id"] == "000.png"
    assert (second["status"], second["code"]) == (500, "not_finite")
    assert problem(server.search(image=white))[:2] == (500, "not_finite")
    assert "hystar_not_finite_total 2.0" in server.client.get("metrics").text


def test_a_picture_is_added_found_replaced_and_removed(start):
    server = start(allow_writes=True)
    content = encoded(drawing(70))
    fields = {
        "image": content,
        "id": "new/one",
        "caption": "a new one",
        "attributes": '{"year": 2024, "is_good": true}',
    }
    added = server.client.post("v1/items", files=form(**fields))
    assert added.status_code == 201
    assert added.json()["attributes"] == {"year": 2024, "is_good": True} and added.json()["id"] == "new/one"
    (hit,) = server.search(image=content, where="year=2024 and is_good=true").json()["hits"]
    assert (hit["id"], hit["caption"], hit["score"]) == ("new/one", "a new one", pytest.approx(1, abs=1e-5))
    key = added.json()["key"]
    assert server.client.get(f"v1/items/{key}/picture").content == content
    other = encoded(drawing(71))
    assert server.client.post("v1/items", files=form(image=other, id="new/one")).json()["key"] == key
    assert server.client.get(f"v1/items/{key}/picture").content == other
    assert server.search(image=other).json()["hits"][0]["caption"] == "new/one"
    assert server.client.delete(f"v1/items/{key}").json() == {"removed": 1}
    assert problem(server.client.delete(f"v1/items/{key}"))[:2] == (404, "not_found")
    assert server.search(image=other).json()["hits"][0]["id"] != "new/one"
    assert [*(Path(server.engine.folder) / "added").iterdir()] == [], "a file goes with its last item"
    twins = [server.client.post("v1/items", files=form(image=other, id=name)).json()["key"] for name in ("a", "b")]
    assert server.client.delete(f"v1/items/{twins[0]}").status_code == 200
    assert server.client.get(f"v1/items/{twins[1]}/picture").content == other
    for wrong, field in (
        ({"attributes": "[1]"}, "attributes"),
        ({"attributes": "{"}, "attributes"),
        ({"attributes": '{"x": NaN}'}, "attributes"),
        ({"attributes": json.dumps({f"x{i}": [] for i in range(100_000)})}, "attributes"),
        ({"attributes": '{"x": 1e999}'}, "attributes"),
        ({"id": ""}, "id"),
    ):
        assert problem(server.client.post("v1/items", files=form(image=content, **wrong))) == (422, "invalid", field)
    assert problem(server.client.post("v1/items", files=form(image=b"none")))[:2] == (400, "bad_image")


def test_a_picture_with_several_frames_of_a_phone_is_a_jpeg(start):
    server = start(allow_writes=True)
    content = io.BytesIO()
    drawing(72).save(content, "MPO", save_all=True, append_images=[drawing(73)])
    added = server.client.post("v1/items", files=form(image=content.getvalue()))
    assert added.status_code == 201 and added.json()["id"].endswith(".jpeg")
    sent = server.client.get(f"v1/items/{added.json()['key']}/picture")
    assert (sent.headers["content-type"], sent.content) == ("image/jpeg", content.getvalue())


def test_pictures_that_are_added_to_a_copy_of_an_index_lie_beside_it(start, tmp_path):
    server = start(allow_writes=True)
    server.client.post("v1/items", files=form(image=encoded(drawing(74)), id="first"))
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    engine = LocalEngine(tmp_path / "copy")
    with served.serve(engine, tmp_path / "pictures", allow_writes=True) as copy:
        for number in (75, 76):
            added = copy.client.post("v1/items", files=form(image=encoded(drawing(number)), id=str(number))).json()
            assert copy.client.get(f"v1/items/{added['key']}/picture").content == encoded(drawing(number))
        assert {*engine.settings()["sources"]} == {"pictures", ".added", ".added-2"}
        assert plan(engine).removed == []
