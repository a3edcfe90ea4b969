"""A server encodes what it is asked as queries and what it is given to keep as gallery pictures."""

from __future__ import annotations

import random

import pytest
import torch

from hystar_fast.serve.encoder import Encoder, Picture
from tests.support import served
from tests.support.served import drawing, encoded, form
from tests.support.turned_queries import TurnedQueries


def pictures(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [*torch.randint(256, (n, 3, 64, 64), dtype=torch.uint8, generator=generator)]


def test_queries_of_several_styles_are_one_call_and_additions_another():
    method, given = TurnedQueries(), pictures(9)
    kept = method.style(given[0][None])[0]
    jobs = [
        *(Picture(image) for image in given[:3]),
        *(Picture(image, style=kept) for image in given[3:5]),
        Picture(given[5], style=given[1]),
        *(Picture(image, role="gallery") for image in given[6:]),
    ]
    random.Random(0).shuffle(jobs)
    encoder = Encoder({"": method})
    found = encoder._encode("", jobs)
    encoder.close()
    assert method.calls == [("query", 6, True), ("image", 3, True)]
    for job, vector in zip(jobs, found, strict=True):
        source = job.image if job.style is None else job.style
        style = source[None] if source.ndim == 1 else method.style(source[None])
        assert torch.allclose(vector, method.encode(job.image[None], job.role, style)[0], atol=1e-6)


def test_queries_without_additions_stay_one_call():
    method = TurnedQueries()
    encoder = Encoder({"": method})
    encoder._encode("", [Picture(image) for image in pictures(8)])
    encoder.close()
    assert method.calls == [("query", 8, False)]


@pytest.mark.parametrize("role", ["query", "gallery"])
def test_the_server_searches_by_the_query_and_keeps_the_gallery_vector(tmp_path, role):
    method = TurnedQueries()
    engine = served.make_index(tmp_path, {"adapted": method})
    content = encoded(drawing(100))
    image = method.resize(drawing(100))[None]
    wanted = {"query": method.encode_query(image)[0], "gallery": method.encode_image(image)[0]}
    with served.serve(engine, tmp_path / "pictures", lambda *_: {"adapted": method}, allow_writes=True) as server:
        embedded = server.client.post("v1/embed", files=form(image=content, role=role)).json()["image"]
        assert torch.allclose(torch.tensor(embedded), wanted[role], atol=1e-6)
        key = server.client.post("v1/items", files=form(image=content)).json()["key"]
        assert torch.allclose(engine.vectors([key], "adapted")[0], wanted["gallery"], atol=1e-6)
        hits = server.search(image=content, k=served.COUNT + 1).json()["hits"]
    keys = [hit["key"] for hit in hits]
    scores = engine.vectors(keys, "adapted") @ wanted["query"]
    assert torch.allclose(torch.tensor([hit["score"] for hit in hits]), scores, atol=2e-6)
    assert keys[0] != key
