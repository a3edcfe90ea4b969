"""Every launch of the CUDA Sinkhorn and StyleNCE, on a stub of the runtime that checks it as a driver does."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.cuda_launches import AT, DEVICES, STREAM, Launch, Launches, launches, read, translated

pytestmark = pytest.mark.xdist_group("cuda launches")  # compiled once, not once a worker
KIB = 1 << 10
TILE_48, TILE_128 = "tile_kernel Tile<6, 12, 4, 1, 12>", "tile_kernel Tile<8, 8, 16, 8, 1>"
CLUSTER_256 = "cluster_kernel Tile<16, 8, 32, 8, 1, 8>, clusters of "
CLUSTER_512 = "cluster_kernel Tile<8, 16, 32, 8, 1, 16>, clusters of "
CLUSTER_768 = "cluster_kernel Tile<5, 24, 32, 8, 1, 16>, clusters of "
OUTCOME = ("stream_outcome_kernel", 1, 256, 0)
STREAMED = [("stream_row_kernel", 38, 256, 0), ("stream_column_kernel", 282, 256, 0)]

# Production shapes on an H200: op, its numbers; kernel, blocks, threads and dynamic shared memory of each launch
PRODUCTION = [
    ("forward", (1, 48, 48, 50), [(TILE_48, 1, 32, 0)]),
    ("forward", (4096, 48, 48, 50), [(TILE_48, 4096, 32, 0)]),
    ("forward", (64, 128, 128, 50), [(TILE_128, 64, 256, 0)]),
    ("forward", (64, 256, 256, 50), [(CLUSTER_256 + "2", 128, 256, 0)]),
    ("forward", (16, 512, 512, 50), [(CLUSTER_512 + "8", 128, 256, 0)]),
    ("forward", (8, 640, 640, 50), [(CLUSTER_768 + "16", 128, 256, 0)]),
    ("forward", (1, 1024, 1024, 50), [("sweep_kernel SweepShape<4, 4>", 132, 512, 192 * KIB), OUTCOME]),
    ("forward", (1, 8192, 8192, 50), [("sweep_kernel SweepShape<16, 4>", 132, 512, 224 * KIB), OUTCOME]),
    ("forward", (1, 300, 9001, 3), [*3 * STREAMED, ("stream_plan_kernel", 38, 256, 0), OUTCOME]),
    ("unrolled", (1024, 48, 48, 50), [("unrolled_kernel Tile<6, 12, 4, 1, 8>", 1024, 32, 0)]),
    ("unrolled", (4096, 48, 48, 50), [("unrolled_kernel Tile<6, 12, 4, 1, 8>", 132 * 8, 32, 0)]),
    ("implicit", (64, 128, 128), [("implicit_kernel Tile<8, 8, 16, 8, 1>", 64, 256, 0)]),
    ("unrolled", (16, 256, 256, 50), [("unrolled_cluster_kernel Tile<8, 8, 32, 8, 1, 8>, clusters of 4", 64, 256, 0)]),
    ("implicit", (64, 256, 256), [("implicit_cluster_kernel Tile<8, 8, 32, 8, 1, 8>, clusters of 4", 132, 256, 0)]),
    (
        "style_nce",
        (48, 768, 50),
        [
            ("normalise_kernel", 96, 128, 0),
            ("cost_kernel", 12, 128, 0),
            (TILE_48, 1, 32, 0),
            ("loss_kernel", 12, 128, 0),
            ("project_kernel", 96, 128, 0),
        ],
    ),
]


@pytest.fixture
def on() -> Iterator[Launches]:
    """Give the launch code, on an H200."""
    code = launches()
    code.use("H200")
    yield code
    code.use("H200")


@pytest.mark.parametrize(("op", "numbers", "expected"), PRODUCTION)
def test_production_launches(
    on: Launches, op: str, numbers: tuple[int, ...], expected: list[tuple[object, ...]]
) -> None:
    found = on.run(op, numbers)
    assert [(one.variant, one.grid[0], one.threads, one.dynamic) for one in found] == expected
    for one in found:
        assert one.stream == STREAM and one.grid[1] == 1
        assert one.cooperative == one.kernel.startswith("sweep")


def test_uniform_weights_need_no_plan(on: Launches) -> None:
    kernels = ["normalise_kernel", "cost_kernel", "loss_kernel", "project_kernel"]
    assert [one.kernel for one in on.style_nce(48, 768, weights=2)] == kernels


@pytest.mark.parametrize("device", DEVICES)
def test_the_runner_expects_the_kernels_of_the_device(on: Launches, device: str) -> None:
    """The runner asks for a kernel by its name; on an H200 every case takes it, and on any GPU it can be launched."""
    on.use(device)
    cases = on.runner_cases()
    assert len(cases) > 80
    for case in cases:
        assert device != "H200" or not case.kernel or case.kernel in case.name.split(",")[0].split(" or "), case
        if case.op == "forward" or case.kernel not in ("", "stream"):
            assert on.run(case.op, case.numbers), case


def test_a_gpu_without_such_clusters_sweeps(on: Launches) -> None:
    """Clusters of 16 do not fit on 14 multiprocessors, an RTX 5090 has 8 blocks at most, and an A100 no clusters."""
    taken: dict[str, list[str]] = {}
    for device in DEVICES:
        on.use(device)
        taken[device] = [on.forward(1, n, n)[0].variant.split()[0] for n in (256, 512, 640)]
        sweep = on.forward(1, 1024, 1024)[0]
        slots = {"A100": 4, "RTX 5090": 2}.get(device, 6)
        assert (sweep.kernel, sweep.dynamic) == ("sweep_kernel SweepShape<4, 4>", slots * 32 * KIB)
    assert taken == {
        "H200": ["cluster_kernel", "cluster_kernel", "cluster_kernel"],
        "A100": ["sweep_kernel", "sweep_kernel", "sweep_kernel"],
        "RTX 5090": ["cluster_kernel", "cluster_kernel", "sweep_kernel"],
        "slice of an H200": ["cluster_kernel", "cluster_kernel", "sweep_kernel"],
    }
    on.use("A100")
    assert on.has_gradient(128, 128) and not on.has_gradient(128, 129)
    with pytest.raises(RuntimeError, match="no gradient kernel holds this size"):
        on.unrolled(1, 128, 129)


def test_batches_beyond_a_grid_are_divided(on: Launches) -> None:
    most = 2**31 - 1
    assert [one.grid for one in on.forward(most + 5, 48, 48)] == [(most, 1), (5, 1)]
    assert [one.grid for one in on.forward(2**30, 256, 256)] == [(most - 1, 1), (2, 1)]  # clusters of two
    rows = [one.grid for one in on.forward(70_000, 8, 900, 1) if one.kernel == "stream_row_kernel"]
    assert rows == [(1, 65_535), (1, 4_465)]
    assert {one.grid for one in on.unrolled(10**9, 48, 48)} == {(132 * 8, 1)}


def test_vectors_are_read_where_rows_are_aligned(on: Launches) -> None:
    def sweep(m: int, at: int) -> str:
        return on.forward(1, 1040, m, at=at)[0].kernel

    assert sweep(40, AT) == "sweep_kernel SweepShape<1, 4>"
    assert sweep(40, AT + 4) == sweep(37, AT) == "sweep_kernel SweepShape<1, 1>"


def test_workspaces(on: Launches) -> None:
    """On chip there is none; histories have 256 MiB at most, or what one problem needs."""
    assert on.workspace(4096, 192, 192) == on.workspace(64, 256, 256) == 0
    assert on.workspace(2, 8, 900) == 2 * on.workspace(1, 8, 900) > 0
    for numbers in ((1024, 48, 48, 50), (16, 256, 256, 50), (64, 128, 128, 10_000)):
        launch = on.unrolled(*numbers)[0]
        histories, size = launch.grid[0] // max(1, launch.cluster), on.unrolled_workspace(*numbers)
        assert size == histories * on.unrolled_workspace(1, *numbers[1:]) <= 256 << 20
    assert on.unrolled_workspace(9, 128, 128, 10**6) == on.unrolled_workspace(1, 128, 128, 10**6) > 256 << 20
    with pytest.raises(RuntimeError, match="this size needs a workspace"):
        on.forward(1, 1024, 1024, workspace=0)


@pytest.mark.parametrize(
    ("op", "numbers", "what"),
    [
        ("forward", (1, 48, 48), "tile kernel"),
        ("forward", (1, 256, 256), "cluster kernel"),
        ("forward", (1, 1024, 1024), "sweeping kernel"),
        ("forward", (1, 8, 900), "row kernel"),
        ("unrolled", (1, 48, 48), "gradient kernel"),
        ("implicit", (1, 256, 256), "gradient kernel on clusters"),
        ("style_nce", (48, 768), "kernel that normalises"),
    ],
)
def test_a_refused_launch_is_an_error_of_its_call_alone(
    on: Launches, op: str, numbers: tuple[int, ...], what: str
) -> None:
    usual = on.run(op, numbers)
    on.refuse_next()
    with pytest.raises(RuntimeError, match=f"the launch of the {what} failed: invalid configuration"):
        on.run(op, numbers)
    assert on.run(op, numbers) == usual


@pytest.mark.parametrize(
    ("fine", "wrong"),
    [
        ({"threads": 256}, {"threads": 257}),
        ({"grid": (2**31 - 1, 1)}, {"grid": (2**31, 1)}),
        ({"grid": (1, 65_535)}, {"grid": (1, 65_536)}),
        ({"dynamic": 48 * KIB - 1000}, {"dynamic": 48 * KIB - 999}),
        ({"cluster": 8, "grid": (16, 1)}, {"cluster": 8, "grid": (12, 1)}),
        ({"cluster": 8, "grid": (16, 1)}, {"cluster": 16, "grid": (16, 1)}),
        ({"cooperative": 1, "grid": (132, 1)}, {"cooperative": 1, "grid": (132 * 65, 1)}),
    ],
)
def test_the_stub_refuses_what_a_driver_refuses(on: Launches, fine: dict[str, int], wrong: dict[str, int]) -> None:
    assert on.launch(**fine) == ""
    assert on.launch(**wrong) == "invalid configuration"


def test_all_kernels_are_translated() -> None:
    source = """
template <class T>
__global__ void __launch_bounds__(T::THREADS, min(2, T::BLOCKS)) some_kernel(int n, float* out) {
    __shared__ typename T::Shared shared;
    __shared__ float scratch[T::WARPS];
    use(shared);
}
void f() {
    some_kernel<T><<<dim3(1, 2), T::THREADS, 0, stream>>>(1, out);
}
"""
    found = re.sub(r"\s+", " ", translated(source))
    described = "stub::describe(__PRETTY_FUNCTION__, {T::THREADS, min(2, T::BLOCKS)}"
    assert f"{described}, {{sizeof(typename T::Shared), sizeof(float[T::WARPS])}}); }}" in found
    assert "stub::launch(some_kernel<T>, dim3(1, 2), T::THREADS, 0, stream, 1, out);" in found
    with pytest.raises(AssertionError):
        translated(source.replace("__launch_bounds__(T::THREADS, min(2, T::BLOCKS)) ", ""))


def test_a_launch_is_read_with_its_template_argument() -> None:
    line = "128 1 256 19312 0 2 0 81 void hystar_fast::{anonymous}::cluster_kernel(hystar_fast::Batch) [with T = "
    found = Launch("cluster_kernel Tile<16, 8>", (128, 1), 256, 19312, 0, 2, False, 81)
    assert read(line + "hystar_fast::Tile<16, 8>]") == found and found.variant.endswith(", clusters of 2")
