"""The checks of bench/first_minute.py find what they are for; bench/gpu_session.sh --rehearse runs them all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import device_time
import first_minute
import kernel_variants
import tune
from first_minute import WrongResultError, compare_with_one_tile, equal, hold, poisoned, row_error

from hystar_fast.kernels.tuning import Gpu


def test_one_wrong_row_of_thousands_is_found() -> None:
    truth = torch.randn(12_336, 64, dtype=torch.float64)
    actual = truth.bfloat16()
    assert hold("y", [actual], [truth], 1.5e-2).startswith("row errors y")
    actual[7000] += 0.05 * truth[7000].norm() / 8
    assert (actual.double() - truth).norm() / truth.norm() < 3e-3  # the norm of all does not see it
    with pytest.raises(WrongResultError, match="row errors y 5"):
        hold("y", [actual], [truth], 1.5e-2)
    actual[3, 3] = torch.nan
    assert row_error(actual, truth) == float("inf")


def test_a_small_row_counts_by_a_tenth_of_the_others() -> None:
    truth = torch.ones(100, 4, dtype=torch.float64)
    truth[5] = 0
    actual = truth.clone()
    actual[5, 0] = 0.02
    assert row_error(actual, truth) == pytest.approx(0.02 / (0.1 * 2 * 0.99**0.5))


def test_bits_are_compared_and_equal_nans_are_equal() -> None:
    a = torch.tensor([[0.0, float("nan")], [1.0, 2.0]])
    equal("y", [a], [a.clone()], "")
    with pytest.raises(WrongResultError, match="y differs in"):
        equal("y", [a], [torch.tensor([[-0.0, float("nan")], [1.0, 2.0]])], "")


def test_fresh_buffers_are_nan_inside_and_not_outside() -> None:
    with poisoned():
        for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
            assert torch.empty(1000, dtype=dtype).float().isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_persistent_kernel_that_differs_once_is_found() -> None:
    tile, calls = kernel_variants.TOY_TILE, []

    def run(tile: kernel_variants.Tile) -> list[torch.Tensor]:
        calls.append(tile.persistent)
        return [torch.full((4, 4), float(calls.count(True) == first_minute.REPEATS))]

    with pytest.raises(WrongResultError, match=r"g differs in 4 of 4 rows in run \d+ of the persistent kernel"):
        compare_with_one_tile("g", run, tile, 5, Gpu((9, 0), 4))
    with pytest.raises(WrongResultError, match="5 tiles are not persistent on 132 multiprocessors"):
        compare_with_one_tile("g", run, tile, 5, Gpu((9, 0), 132))


def test_a_failing_check_is_reported_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> str:
        raise WrongResultError("row errors y 1.0e+00, limit 1e-02")

    def breaks() -> str:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    planned = [("a", "one", fails), ("a", "two", lambda: "fine"), ("b", "three", breaks), ("b", "four", lambda: "fine")]
    monkeypatch.setattr(first_minute, "checks", lambda: iter(planned))
    assert first_minute.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines if line[:4] in ("FAIL", "ok  ")] == ["FAIL", "ok  ", "FAIL", "FAIL"]
    assert lines[-2] == "WRONG a: 1 of 2 checks; one: row errors y 1.0e+00, limit 1e-02"
    assert lines[-1].startswith("WRONG b: 0 of 2 checks; three: RuntimeError: CUDA error")


def test_the_kernel_that_may_wait_for_ever_has_a_process_and_a_verdict_of_its_own() -> None:
    session = Path(first_minute.__file__).with_name("gpu_session.sh").read_text()
    (group,) = {group for group, _, _ in first_minute.specialised_checks()}
    assert group not in {group for group, _, _ in first_minute.checks()}
    assert f'verdict 40 "{group}" lines "$python" bench/first_minute.py --specialised' in session
    assert f"grep -q '^RIGHT {group.split()[0]}' \"$table\" && specialised=(--specialised)" in session
    names = [str(configuration) for configuration in tune.specialised()]
    assert len(set(names)) == len(names) == 2 and all("specialised" in name for name in names)


def test_alternatives_are_timed_in_turn() -> None:
    order: list[str] = []
    found = device_time.interleaved({name: lambda n=name: order.append(n) for name in "abc"}, 0.0)
    assert set(found) == set("abc") and all(timing.rounds == device_time.FEWEST for timing in found.values())
    assert all(timing.how == "clock" and timing.median_ms > 0 for timing in found.values())
    rounds = [name for name, last in zip(order, ["", *order], strict=False) if name != last]
    assert "".join(rounds).endswith("abcbcacab"[-6:] + "abcbca")
    assert device_time.host_time(lambda: None, calls=2, rounds=4).rounds == 4


def test_the_variant_that_is_not_flattened_is_the_shipped_source_but_for_that() -> None:
    module = kernel_variants.unflattened()
    assert "flatten=False" in module._svd_linear_gemm_kernel.fn.src
    assert kernel_variants.FLATTEN in kernel_variants.gemm._svd_linear_gemm_kernel.fn.src
