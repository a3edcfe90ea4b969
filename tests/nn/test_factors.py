"""SVD factors: accuracy, signs, the cache by content, and damaged or unwritable caches."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor

from hystar_fast.nn.factors import SVDFactors, svd_factors
from tests.support.gpu import requires_cuda
from tests.support.pickles import Payload
from tests.support.tolerance import relative_error

SHAPES = [(1, 1), (17, 13), (31, 33), (192, 64), (3, 65), (1, 7)]


def rebuild(factors: SVDFactors) -> Tensor:
    return (factors.u * factors.s) @ factors.vh


def forbid_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    def svd(*args: object, **kwargs: object) -> None:
        raise AssertionError("a decomposition was computed")

    for name in ("svd", "qr", "eigh"):
        monkeypatch.setattr(torch.linalg, name, svd)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_factors_rebuild_the_weight(tmp_path: Path, shape: tuple[int, int], dtype: torch.dtype, limit: float) -> None:
    weight = torch.randn(shape).to(dtype)
    u, s, vh = factors = svd_factors(weight, cache_dir=tmp_path)
    rank = min(shape)
    wide = torch.promote_types(dtype, torch.float32)
    assert (u.shape, s.shape, vh.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
    assert {u.dtype, s.dtype, vh.dtype} == {wide}
    assert relative_error(rebuild(factors), weight) < limit
    assert relative_error(u.T @ u, torch.eye(rank)) < limit
    assert relative_error(vh @ vh.T, torch.eye(rank)) < limit
    assert torch.equal(s, s.sort(descending=True).values)


@pytest.mark.parametrize("shape", [(96, 40), (40, 96), (64, 64)])
@pytest.mark.parametrize("smallest", [0.5, 2e-4, 5e-5, 1e-7, 0.0])
def test_factors_of_a_float32_weight_are_as_exact_as_its_svd_at_any_condition(
    tmp_path: Path, shape: tuple[int, int], smallest: float
) -> None:
    rank = min(shape)
    left, right = (torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64)).Q for n in shape)
    values = torch.linspace(1, smallest, rank, dtype=torch.float64)
    weight = ((left * values) @ right.T).float()
    u, s, vh = (factor.double() for factor in svd_factors(weight, cache_dir=tmp_path))
    assert (u.T @ u - torch.eye(rank)).abs().max() < 1.5e-7
    assert (vh @ vh.T - torch.eye(rank)).abs().max() < 1.5e-7
    assert ((u * s) @ vh - weight).abs().max() < 1.5e-7
    assert (s - torch.linalg.svdvals(weight.double())).abs().max() < 1e-7


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    rank=st.integers(0, 9),
    seed=st.integers(0, 99),
    magnitude=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_weights_of_any_rank_and_magnitude(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], rank: int, seed: int, magnitude: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in shape)
    weight = left @ right.T * magnitude  # all zero at rank 0
    u, s, _ = factors = svd_factors(weight, cache_dir=tmp_path_factory.mktemp("svd"))
    assert (rebuild(factors) - weight).norm() <= 1e-12 * weight.norm()
    assert relative_error(u.T @ u, torch.eye(len(s))) < 1e-12
    assert int((s > 1e-12 * s.max()).sum()) <= rank


@requires_cuda
@pytest.mark.parametrize("shape", [(96, 40), (40, 96)])
def test_factors_of_a_weight_on_a_gpu_are_those_of_the_cpu(tmp_path: Path, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    on_cpu, on_gpu = (
        svd_factors(weight, cache_dir=tmp_path / "cpu"),
        svd_factors(weight.cuda(), cache_dir=tmp_path / "gpu"),
    )
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        assert found.is_cuda
        assert relative_error(found.cpu(), expected) < 1e-6


def test_a_truncated_rank_is_the_leading_part(tmp_path: Path) -> None:
    weight = torch.randn(20, 30, dtype=torch.float64)
    full, part = svd_factors(weight, cache_dir=tmp_path), svd_factors(weight, 7, cache_dir=tmp_path)
    assert torch.equal(part.u, full.u[:, :7])
    assert torch.equal(part.s, full.s[:7])
    assert torch.equal(part.vh, full.vh[:7])


def test_the_largest_entry_of_each_left_vector_is_positive(tmp_path: Path) -> None:
    weight = torch.randn(40, 24, dtype=torch.float64)
    u = svd_factors(weight, cache_dir=tmp_path).u
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()
    negated = svd_factors(-weight, cache_dir=tmp_path)
    assert relative_error(negated.u, u) < 1e-10


def test_cached_factors_cost_no_svd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(24, 16)
    first = svd_factors(weight, cache_dir=tmp_path)
    forbid_svd(monkeypatch)
    for same in (weight, weight.clone(), weight.t().contiguous().t()):
        assert all(map(torch.equal, svd_factors(same, cache_dir=tmp_path), first))


def test_each_weight_dtype_shape_and_rank_has_its_own_file(tmp_path: Path) -> None:
    weight = torch.randn(16, 16)
    changed = weight.clone()
    changed[3, 5] = torch.nextafter(changed[3, 5], torch.tensor(9.0))
    for variant in (
        weight,
        changed,
        weight.double(),
        weight.half(),
        weight.bfloat16(),
        weight.reshape(8, 32),
        weight.T,
    ):
        svd_factors(variant, cache_dir=tmp_path)
    svd_factors(weight, 5, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 8


def test_writing_into_the_factors_does_not_change_the_cache(tmp_path: Path) -> None:
    weight = torch.randn(8, 8)
    first = svd_factors(weight, cache_dir=tmp_path)
    kept = first.u.clone()
    first.u.zero_()
    second = svd_factors(weight, cache_dir=tmp_path)
    second.s.zero_()
    third = svd_factors(weight, cache_dir=tmp_path)
    assert torch.equal(third.u, kept)
    assert relative_error(rebuild(third), weight) < 1e-6


def damage_truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_one_bit(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def damage_header(data: bytes) -> bytes:
    return b"\xff" * 8 + data[8:]


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_one_bit, damage_header, lambda data: b"", lambda data: b"x" * 50]
)
def test_a_damaged_file_is_rebuilt(tmp_path: Path, damage: object) -> None:
    weight = torch.randn(12, 9)
    svd_factors(weight, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.warns(UserWarning, match="rebuilding the SVD cache file"):
        rebuilt = svd_factors(weight, cache_dir=tmp_path)
    assert relative_error(rebuild(rebuilt), weight) < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svd_factors(weight, cache_dir=tmp_path)


def test_a_pickle_in_the_cache_is_rebuilt_and_not_run(tmp_path: Path) -> None:
    """Neither code nor a state dict that torch.save wrote is read: the cache holds safetensors alone."""
    weight, mark = torch.randn(12, 9), tmp_path / "ran"
    cache = tmp_path / "cache"
    whole = svd_factors(weight, cache_dir=cache)
    (path,) = cache.iterdir()
    stored = {**whole._asdict(), "checksum": load(path.read_bytes())["checksum"]}
    for held in (stored, {**stored, "payload": Payload(mark)}):
        torch.save(held, path)
        with pytest.warns(UserWarning, match="rebuilding the SVD cache file"):
            rebuilt = svd_factors(weight, cache_dir=cache)
        assert relative_error(rebuild(rebuilt), weight) < 1e-6
    assert not mark.exists()


def test_a_file_of_another_weight_is_rebuilt(tmp_path: Path) -> None:
    weight, other = torch.randn(12, 9), torch.randn(12, 9)
    svd_factors(weight, cache_dir=tmp_path / "a")
    svd_factors(other, cache_dir=tmp_path / "b")
    (ours,), (theirs,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    ours.write_bytes(theirs.read_bytes())
    with pytest.warns(UserWarning, match="rebuilding the SVD cache file"):
        factors = svd_factors(weight, cache_dir=tmp_path / "a")
    assert relative_error(rebuild(factors), weight) < 1e-6


def test_an_unwritable_directory_gives_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    weight = torch.randn(6, 5)
    with pytest.warns(UserWarning, match="not cached"):
        factors = svd_factors(weight, cache_dir=tmp_path / "file" / "svd")
    assert relative_error(rebuild(factors), weight) < 1e-6


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    weight = torch.randn(6, 5)
    with pytest.warns(UserWarning, match="not cached, .*no space left"):
        factors = svd_factors(weight, cache_dir=tmp_path)
    assert relative_error(rebuild(factors), weight) < 1e-6
    assert not list(tmp_path.iterdir())


def test_the_default_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(6, 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    svd_factors(weight)
    assert len(list((tmp_path / "xdg" / "hystar_fast" / "svd").glob("*.safetensors"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    svd_factors(weight)
    assert len(list((tmp_path / "home" / ".cache" / "hystar_fast" / "svd").glob("*.safetensors"))) == 1


def test_a_user_without_a_home_has_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    weight = torch.randn(6, 5)
    assert relative_error(rebuild(svd_factors(weight)), weight) < 1e-6


def test_concurrent_writers_leave_one_whole_file(tmp_path: Path) -> None:
    weight = torch.randn(48, 48)
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("error")
        results = list(pool.map(lambda _: svd_factors(weight, cache_dir=tmp_path), range(32)))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize(
    ("weight", "rank", "error", "message"),
    [
        (torch.full((3, 3), torch.nan), None, ValueError, "weight must be finite, got NaN or inf in 9 of 9 entries"),
        (torch.tensor([[1.0, torch.inf]]), None, ValueError, "weight must be finite"),
        (
            torch.ones(3, 3, dtype=torch.int32),
            None,
            TypeError,
            "weight must be a floating-point tensor, got torch.int32",
        ),
        ([[1.0]], None, TypeError, "weight must be a floating-point tensor, got list"),
        (torch.ones(3), None, ValueError, r"weight must be a non-empty matrix .* got shape \(3,\)"),
        (torch.ones(0, 3), None, ValueError, r"weight must be a non-empty matrix .* got shape \(0, 3\)"),
        (torch.ones(4, 3), 0, ValueError, r"rank must lie in 1..3 .* got 0"),
        (torch.ones(4, 3), 4, ValueError, r"rank must lie in 1..3 .* got 4"),
        (torch.ones(4, 3), 2.0, TypeError, "rank must be an int or None, got float"),
        (torch.ones(4, 3), True, TypeError, "rank must be an int or None, got bool"),
    ],
)
def test_bad_input(tmp_path: Path, weight: Tensor, rank: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        svd_factors(weight, rank, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())
