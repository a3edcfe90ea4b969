"""Two steps in one future: results, errors, and cancelling at every moment."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future

import pytest

from hystar_fast.serve.batches import then


def chain() -> tuple[Future[int], Future[str], list[int], Future[str]]:
    """Return the futures of two steps, the arguments of the second, and the future of both."""
    first: Future[int] = Future()
    second: Future[str] = Future()
    seen: list[int] = []

    def step(result: int) -> Future[str]:
        seen.append(result)
        return second

    return first, second, seen, then(first, step)


def test_the_second_step_gets_the_result_of_the_first():
    first, second, seen, both = chain()
    assert not seen
    first.set_result(3)
    assert seen == [3] and not both.done()
    second.set_result("three")
    assert both.result(0) == "three"


def test_a_step_that_is_done_already_is_followed_at_once():
    first: Future[int] = Future()
    first.set_result(3)
    second: Future[int] = Future()
    second.set_result(4)
    assert then(first, lambda _: second).result(0) == 4


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_a_step_is_that_of_both(failing):
    first, second, seen, both = chain()
    if failing:
        first.set_result(3)
    (first, second)[failing].set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        both.result(0)
    assert len(seen) == failing


def test_a_second_step_that_cannot_start_is_an_error():
    first: Future[int] = Future()
    both = then(first, lambda result: 1 / 0)  # type: ignore[arg-type, return-value]
    first.set_result(0)
    with pytest.raises(ZeroDivisionError):
        both.result(0)


def test_cancelling_before_the_first_step_ends_starts_no_second():
    first, _, seen, both = chain()
    assert both.cancel() and first.cancelled() and not seen


def test_cancelling_while_the_first_step_runs_starts_no_second():
    first, _, seen, both = chain()
    first.set_running_or_notify_cancel()
    assert both.cancel()
    first.set_result(3)
    assert not seen


def test_cancelling_while_the_second_step_waits_cancels_it():
    first, second, _, both = chain()
    first.set_result(3)
    assert both.cancel() and second.cancelled()


@pytest.mark.parametrize("number", [0, 1])
def test_a_step_that_is_cancelled_by_another_ends_both(number):
    first, second, _, both = chain()
    if number:
        first.set_result(3)
    assert (first, second)[number].cancel()
    with pytest.raises(CancelledError):
        both.result(0)
