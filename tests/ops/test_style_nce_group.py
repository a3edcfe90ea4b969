"""style_nce of a batch that processes share equals that of one process: gathered, and in a ring."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import hystar_fast as hf
from hystar_fast.ops.style_nce import stream
from tests.support.processes import in_processes
from tests.support.style_nce_parity import same_class
from tests.support.tolerance import FLOOR, relative_error

pytestmark = pytest.mark.xdist_group("distributed")  # the processes start once, not once a worker
SHARES = {2: (9, 14), 4: (5, 1, 11, 6)}
N, D = 23, 12
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def _start(rank: int, world: int, work: Callable[[int], None], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
    work(rank)
    dist.destroy_process_group()


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    query, target = (torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2))
    query[4], target[7] = 0, 1000 * target[7]
    return query.to(dtype), target.to(dtype)


def compare(rank: int, world: int) -> None:
    """Compare loss and gradients of the own rows with those of the whole batch."""
    first = sum(SHARES[world][:rank])
    rows = slice(first, first + SHARES[world][rank])
    every = same_class(N, 1)
    masks = {"none": None, "classes": same_class(N, 5), "no plan": every.tril(), "empty rows": every}
    for streams, dtype, reduction in product((False, True), DTYPES, ("mean", "none")):
        stream.MAX_MATRIX_BYTES, stream._BLOCK_ELEMENTS = (0, 40) if streams else (1 << 29, 1 << 25)
        for name, weights, gamma in product(masks, ("paper", "authors", "uniform"), (80.0, "auto")):
            if dtype != torch.float64 and (weights != "paper" or name != "classes" or reduction == "none"):
                continue
            if reduction == "none" and gamma == "auto":
                continue
            options = {"weights": weights, "gamma": gamma, "n_iter": 3, "reduction": reduction}
            mask = masks[name]
            whole = [x.requires_grad_() for x in batch(dtype)]
            loss = hf.style_nce(*whole, mask=mask, **options)
            upstream = torch.ones_like(loss) if reduction == "mean" else torch.linspace(-1, 2, N, dtype=loss.dtype)
            expected = torch.autograd.grad(loss, whole, upstream)
            own = [x[rows].clone().requires_grad_() for x in batch(dtype)]
            shared = hf.style_nce(*own, mask=None if mask is None else mask[rows], group=dist.group.WORLD, **options)
            found = torch.autograd.grad(shared, own, upstream if reduction == "mean" else upstream[rows])
            truths = (loss if reduction == "mean" else loss[rows], *(gradient[rows] for gradient in expected))
            for mine, truth in zip((shared, *found), truths, strict=True):
                case = f"{streams=} {dtype} {reduction} {name} {weights} {gamma}"
                assert mine.dtype == truth.dtype, case
                assert relative_error(mine, truth) <= FLOOR[mine.dtype], f"{case}: {relative_error(mine, truth)}"


def compare_poisoned(rank: int, world: int) -> None:
    """A sample that is not finite is NaN in its own loss, and changes no other."""
    stream.MAX_MATRIX_BYTES = 0
    first = sum(SHARES[world][:rank])
    rows = slice(first, first + SHARES[world][rank])
    query, target = batch(torch.float64)
    query[10] = torch.nan
    alone = hf.style_nce(query, target, n_iter=5, reduction="none")
    shared = hf.style_nce(query[rows], target[rows], n_iter=5, reduction="none", group=dist.group.WORLD)
    torch.testing.assert_close(shared, alone[rows], equal_nan=True)


def refuse(rank: int, world: int) -> None:
    """Arguments that do not fit raise on every process, and none waits for another."""
    query, target = batch(torch.float32)
    own = (query[:5], target[:5])
    empty = torch.zeros(5, 10, dtype=torch.bool)
    narrow = (query[:5, : 12 - rank], target[:5, : 12 - rank])
    cases = [
        (narrow, {}, r"features of query and target must be the same .*12, 11"),
        (own, {"mask": empty if rank else None}, r"mask, given or not, must"),
        ((own[0], own[1].double() if rank else own[1]), {}, "dtype of target must be the same"),
        (own, {"mask": empty[:, :5]}, r"mask must have shape \[N_p, N\] with N = 10"),
        (own, {"mask": empty[:, : 10 - rank]}, r"mask must have shape \[N_p, N\] with N = 10"),
        (own, {"n_iter": 5 + rank}, "options must be the same"),
        (own, {"reduction": ("mean", "none")[rank]}, "options must be the same"),
        ((own[0].clone().requires_grad_(rank == 1), own[1]), {}, "requires_grad of query or target must be the same"),
        (own, {"temperature": 0.07 - rank}, "temperature must be positive" if rank else "an error on process 1"),
        ((own[0], own[1][: 5 - rank]), {}, "target must have the shape" if rank else "an error on process 1"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            hf.style_nce(*arguments, **options, group=dist.group.WORLD)
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed\.ProcessGroup or None, got str"):
        hf.style_nce(*own, group="all")  # type: ignore[arg-type]


def without_gradients(rank: int, world: int) -> None:
    """Inference, and a mask that changes before the backward."""
    rows = slice(0, 9) if rank == 0 else slice(9, N)
    query, target = batch(torch.float64)
    for limit in (0, 1 << 29):
        stream.MAX_MATRIX_BYTES = limit
        with torch.inference_mode():
            alone = hf.style_nce(query, target, n_iter=5)
            torch.testing.assert_close(hf.style_nce(query[rows], target[rows], n_iter=5, group=dist.group.WORLD), alone)
    stream.MAX_MATRIX_BYTES = 0
    mask, own = same_class(N, 5)[rows].clone(), query[rows].clone().requires_grad_()
    loss = hf.style_nce(own, target[rows], mask=mask, n_iter=5, group=dist.group.WORLD)
    mask.logical_not_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def measure(rank: int, world: int) -> None:
    """Half of the work and memory is left to each of two processes: pairs computed, and the largest tensor."""
    stream.MAX_MATRIX_BYTES, stream._BLOCK_ELEMENTS = 0, 1 << 10
    from hystar_fast.ops.style_nce import ring

    pairs, largest = 0, 0
    original = ring.cosines

    def counted(q: ring.Units, t: ring.Units) -> Tensor:
        nonlocal pairs, largest
        sim = original(q, t)
        pairs, largest = pairs + sim.numel(), max(largest, sim.numel())
        return sim

    ring.cosines = counted
    query, target = torch.randn(64, 8, requires_grad=True), torch.randn(64, 8)
    hf.style_nce(query, target, n_iter=5, group=dist.group.WORLD).backward()
    rounds = 1 + 2 * 5 + 1 + 1  # survey, u and v in each iteration, loss, gradients
    assert pairs == rounds * 64 * 64 * world and largest <= 1 << 10


def two(rank: int) -> None:
    refuse(rank, 2)
    without_gradients(rank, 2)
    compare(rank, 2)
    measure(rank, 2)


def four(rank: int) -> None:
    compare(rank, 4)
    compare_poisoned(rank, 4)


@pytest.mark.parametrize("work", [two, four], ids=["2", "4"])
def test_equal_to_one_process(work: Callable[[int], None], tmp_path: object) -> None:
    """Uneven shares, masks with and without a plan, every kind of weights, float64 to bfloat16."""
    world = {two: 2, four: 4}[work]
    in_processes(_start, (world, work, str(tmp_path)), world)
