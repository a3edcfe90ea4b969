"""Micro-batches: the number of passes, the answers of neighbours, errors and deadlines of one request alone."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.methods.device import on_device
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.interface import Method
from hystar_fast.methods.pixels import Pixels
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.serve.batches import Closed, DeadlinePassed, Done
from hystar_fast.serve.encoder import Encoder, NoStyle, NoText, NotFinite, Picture
from tests.support.held_method import Held
from tests.support.linear_method import Linear

SIDE = 64


def hystar(style: str) -> Method:
    torch.manual_seed(0)
    model = Hystar(HystarConfig(backbone="tiny", pretrained=None, style=style, blocks=(2, 3)))
    with torch.no_grad():
        for _, parameter in model.static_parameters():
            parameter.normal_(0, 0.05)
    return HystarMethod(model.merge_static_())


def pictures(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [*torch.randint(256, (n, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)]


def submit(encoder: Encoder, job: Picture | str, deadline: float = math.inf) -> Future[Done[Tensor]]:
    return encoder.words("", job, deadline) if isinstance(job, str) else encoder.picture("", job, deadline)


def answers(held: Held, jobs: Sequence[Picture | str], **options: int) -> list[Done | Exception]:
    """Encode jobs that all wait before the first pass begins."""
    encoder = Encoder({"": held}, **options)
    first = submit(encoder, Picture(torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)))
    assert held.began.wait(10)
    held.calls.clear()
    futures = [submit(encoder, job) for job in jobs]
    held.go_on.set()
    first.result(10)
    found = [future.exception(30) or future.result() for future in futures]
    encoder.close()
    return found


@pytest.fixture(params=["clip", "prefix"])
def method(request: pytest.FixtureRequest) -> Method:
    return hystar(request.param)


def alone(method: Method, job: Picture | str) -> Tensor:
    """Return the answer of one call for one request."""
    with torch.inference_mode():
        if isinstance(job, str):
            return method.encode_text([job])[0]
        image = job.image[None]
        if job.wants_style:
            return method.style(image)[0]
        style = None
        if job.style is not None:
            style = method.style(job.style[None]) if job.style.ndim == 3 else job.style[None]
        return method.encode_image(image, style)[0]


def assert_same(found: Sequence[Done | Exception], wanted: Sequence[Tensor]) -> None:
    for answer, vector in zip(found, wanted, strict=True):
        assert isinstance(answer, Done), answer
        assert 1 - F.cosine_similarity(answer.result.double(), vector.double(), dim=0) < 2e-6


def test_32_requests_with_32_styles_are_one_pass(method):
    given = pictures(32)
    with torch.inference_mode():
        styles = method.style(torch.stack(given[::-1]))
    jobs = [Picture(image, style=style) for image, style in zip(given, styles, strict=True)]
    held = Held(method)
    found = answers(held, jobs)
    assert held.calls == [("encode_image", 32, True)]
    assert [answer.batch for answer in found] == [32] * 32
    assert_same(found, [alone(method, job) for job in jobs])


def test_own_styles_stay_in_the_one_pass_of_the_encoder(method):
    held = Held(method)
    jobs = [Picture(image) for image in pictures(32)]
    assert_same(answers(held, jobs), [alone(method, job) for job in jobs])
    assert held.calls == [("encode_image", 32, False)]


def test_given_styles_own_styles_and_styles_of_other_pictures_mix(method):
    given = pictures(12)
    with torch.inference_mode():
        kept = method.style(given[5][None])[0]
    jobs = [
        *(Picture(image) for image in given[:4]),
        *(Picture(image, style=kept) for image in given[4:7]),
        *(Picture(image, style=given[0]) for image in given[7:9]),
        *(Picture(image, wants_style=True) for image in given[9:]),
    ]
    random.Random(0).shuffle(jobs)
    held = Held(method)
    assert_same(answers(held, jobs), [alone(method, job) for job in jobs])
    assert sorted(held.calls) == [("encode_image", 9, True), ("style", 9, False)]


def test_words_have_a_queue_of_their_own(method):
    jobs = ["a red heart", *(Picture(image) for image in pictures(4)), "moon"]
    held = Held(method)
    assert_same(answers(held, jobs), [alone(method, job) for job in jobs])
    assert sorted(held.calls) == [("encode_image", 4, False), ("encode_text", 2, False)]


def test_no_batch_is_larger_than_its_limit():
    held = Held(hystar("prefix"))
    found = answers(held, [Picture(image) for image in pictures(20)], batch=8)
    assert [answer.batch for answer in found] == [8] * 16 + [4] * 4


def test_each_view_has_its_own_method():
    first, second = hystar("prefix"), Pixels()
    image = pictures(1)[0]
    encoder = Encoder({"adapted": first, "pixels": second})
    found = [encoder.picture(view, Picture(image)).result(10) for view in ("adapted", "pixels")]
    encoder.close()
    assert_same(found, [alone(first, Picture(image)), alone(second, Picture(image))])


def test_an_error_reaches_only_its_own_request(method):
    given = pictures(3)
    jobs = [Picture(given[0]), Picture(torch.zeros(3, 5, 7, dtype=torch.uint8)), Picture(given[2])]
    found = answers(Held(method), jobs)
    assert isinstance(found[1], ValueError)
    assert_same([found[0], found[2]], [alone(method, jobs[0]), alone(method, jobs[2])])


def test_nan_reaches_only_its_own_request(method):
    given = [image.float() / 255 for image in pictures(3)]
    given[1][0, 0, 0] = torch.nan
    jobs = [Picture(image) for image in given]
    found = answers(Held(method), jobs)
    assert isinstance(found[1], NotFinite)
    assert_same([found[0], found[2]], [alone(method, jobs[0]), alone(method, jobs[2])])


def test_a_style_for_a_method_without_one_and_words_without_a_text_encoder_are_refused():
    image = pictures(1)[0]
    encoder = Encoder({"": Pixels()})
    with pytest.raises(NoStyle, match="no style input"):
        submit(encoder, Picture(image, style=image)).result(10)
    with pytest.raises(NoStyle):
        submit(encoder, Picture(image, wants_style=True)).result(10)
    with pytest.raises(NoText, match="no text encoder"):
        submit(encoder, "moon").result(10)
    assert isinstance(submit(encoder, Picture(image)).result(10), Done)
    encoder.close()


def test_passed_deadlines_and_callers_that_have_gone_are_not_encoded(method):
    held = Held(method)
    encoder = Encoder({"": held})
    submit(encoder, Picture(pictures(1)[0]))
    assert held.began.wait(10)
    held.calls.clear()
    late = submit(encoder, Picture(pictures(1)[0]), time.monotonic() + 0.01)
    gone = submit(encoder, Picture(pictures(1)[0]))
    kept = submit(encoder, Picture(pictures(1)[0]), time.monotonic() + 60)
    assert gone.cancel()
    time.sleep(0.02)
    held.go_on.set()
    assert isinstance(late.exception(10), DeadlinePassed)
    assert isinstance(kept.result(10), Done)
    encoder.close()
    assert held.calls == [("encode_image", 1, False)]


def test_closing_serves_what_waits_and_refuses_what_comes_later():
    held = Held(Pixels())
    encoder = Encoder({"": held})
    first = submit(encoder, Picture(pictures(1)[0]))
    assert held.began.wait(10)
    waiting = submit(encoder, Picture(pictures(1)[0]))
    closing = threading.Thread(target=encoder.close)
    closing.start()
    held.go_on.set()
    closing.join(10)
    assert isinstance(first.result(10), Done) and isinstance(waiting.result(10), Done)
    with pytest.raises(Closed):
        submit(encoder, "moon")


@pytest.mark.parametrize("workers", [1, 2])
def test_1000_random_arrival_orders_change_no_answer(workers):
    method = Linear()
    with torch.no_grad():
        method.shift.normal_()
    given = pictures(6)
    kept = method.style(given[0][None])[0]
    kinds = [
        *(Picture(image) for image in given[:3]),
        *(Picture(image, style=kept) for image in given[3:5]),
        Picture(given[5], style=given[1]),
        Picture(given[2], wants_style=True),
        "a red heart",
    ]
    wanted = [alone(method, job) for job in kinds]
    encoder = Encoder({"": method}, batch=5, workers=workers)
    chance = random.Random(workers)
    for _ in range(1000 // workers):
        order = chance.choices(range(len(kinds)), k=chance.randint(1, 6))
        futures = []
        for place in order:
            futures.append(submit(encoder, kinds[place]))
            if chance.random() < 0.1:
                time.sleep(0.001)
        assert_same([future.result(10) for future in futures], [wanted[place] for place in order])
    encoder.close()


def test_a_method_on_a_device_still_says_that_it_computes_its_style():
    assert on_device(hystar("prefix"), torch.device("cpu")).computes_style_in_encode
    assert not on_device(hystar("clip"), torch.device("cpu")).computes_style_in_encode
