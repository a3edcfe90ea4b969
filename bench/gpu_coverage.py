"""The kernel variants of svd_linear that the dispatch chooses in production, and what runs each on a GPU.

``PYTHONPATH=. python bench/gpu_coverage.py`` writes docs/benchmarks/gpu-coverage.md, with the kernels of Sinkhorn and
StyleNCE (transport_coverage.py). A variant is a Triton kernel with
everything that makes it other machine code: dtype, tile, loop, samples of a tile, and which operands it has. Launches
are recorded from the CUDA implementation of the op on tensors without memory, so this needs no GPU. A test fails for a
variant that no check of first_minute.py or no row of bench_svd_linear.py runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import first_minute
import torch
from svd_linear_cases import NEEDS, Case, cuda_cases

from hystar_fast.kernels.tuning import Gpu
from hystar_fast.ops.svd_linear import cuda
from hystar_fast.ops.svd_linear import fp8 as fp8_op
from tests.support.svd_linear_compiled import NAMES, Launch, recorded

H200 = Gpu((9, 0), 132)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "gpu-coverage.md"
SPANS = ("one scale", "two samples", "many samples")
DTYPES = {**NAMES, torch.float8_e4m3fn: "e4m3"}
Runs = dict[str, list[str]]


def variant(launch: Launch) -> str:
    """Describe the machine code of a launch."""
    given = launch.arguments
    first = next(a for a in (given.get(name) for name in ("a", "x", "partials", "scale")) if a is not None)
    base = first.base if hasattr(first, "block_shape") else first  # a tensor descriptor, of Triton or of Gluon
    words = [launch.kernel.removeprefix("_svd_linear_").removesuffix("_kernel"), DTYPES[base.dtype]]
    if "TILE" in given:
        stages = given.get("num_stages", given.get("STAGES"))
        words.append("x".join(map(str, given["TILE"])) + f", {given['num_warps']} warps, {stages} stages")
        words.append("TMA" if hasattr(first, "block_shape") else "pointers")
        words.append(SPANS[given["SPAN"]] if "SPAN" in given else "")
        by_column = given.get("B_BY_COLUMN", given.get("BY_COLUMN"))
        words += ["" if by_column is None else "forward" if by_column else "backward"]
        words += ["persistent"] if given.get("PERSISTENT") else []
    else:
        words.append(", ".join(f"{name} {given[name]}" for name in ("PARTS", "COLUMNS", "num_warps") if name in given))
    operands = ("g", "out", "h", "partials", "bias", "index")
    names = [name for name in operands if launch.has(name)]
    scale = given.get("scale")
    names += ["index"] if isinstance(scale, tuple) and scale[1] is not None else []
    names += ["scales of rows"] if launch.kernel.endswith("fp8_kernel") and scale is None else []
    return "; ".join(word for word in (*words, "with " + " ".join(names) if names else "") if word)


@contextmanager
def on_an_h200() -> Iterator[None]:
    """Let the CUDA implementations believe that they run on an H200, with TF32 on."""
    with ExitStack() as stack:
        for target, name, value in (
            (torch.cuda, "device", lambda _: nullcontext()),
            (cuda, "gpu", lambda _: H200),
            (cuda, "_triton_works", lambda: True),
            (cuda, "_tf32", lambda: True),
            (fp8_op, "fp8_problem", lambda _: None),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        yield


def record(case: Case, needs: str, *, fp8: bool = False) -> tuple[list[Launch], list[Launch]]:
    """Return the launches of one call of the op on tensors without memory, and those of its gradients."""
    with torch.device("meta"):
        x = torch.empty(case.batch, case.tokens, case.in_features, dtype=case.dtype)
        u, vh = (torch.empty(*n, dtype=case.dtype) for n in ((case.out_features, case.rank), (case.rank, x.shape[-1])))
        scale = torch.empty(*{"sample": (case.batch,), "bank": (8,), "shared": ()}[case.kind], case.rank)
        index = torch.empty(case.batch, dtype=torch.int64) if case.kind == "bank" else None
        dy = torch.empty(case.batch, case.tokens, case.out_features, dtype=case.dtype)
        factors = fp8_op.quantise_factors(u, vh)
    needs_dx, needs_dscale = needs in ("both", "x"), needs in ("both", "scale")
    with on_an_h200(), recorded() as found:
        if fp8:
            _, saved = fp8_op.forward_cuda(x, scale, *factors, None, index, needs_dscale)
        else:
            _, saved = cuda.forward(x, u, scale, vh, None, index, False, needs_dscale)
        forward = len(found)
        if needs != "none":
            cuda.backward(dy, None, u, scale, vh, index, saved, False, needs_dx, needs_dscale, False)
    return found[:forward], found[forward:]


def launched(case: Case, needs: str, *, fp8: bool = False, mode: str = "") -> list[str]:
    """Return the variants of a call, or those of a part of it that a mode measures."""
    forward, backward = record(case, needs, fp8=fp8)
    forward, backward = [] if mode.startswith("backward") else forward, [] if mode == "training forward" else backward
    return [variant(launch) for launch in (*forward, *backward)]


def production() -> Iterator[tuple[Case, str, bool]]:
    """Yield the layers that are measured, with every set of gradients that a model needs, in every precision."""
    for case in cuda_cases():
        for needs in NEEDS:
            yield case, needs, False
        if any("fp8" in name for name in case.providers):
            yield from ((case, needs, True) for needs in ("none", "both"))


def collect(runs: Iterator[tuple[str, Callable[[], list[str]]]]) -> Runs:
    """Return the names of the runs of each variant."""
    found: Runs = {}
    for name, run in runs:
        for one in run():
            found.setdefault(one, [])
            if name not in found[one]:
                found[one].append(name)
    return found


def checks() -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Yield the checks of first_minute.py that run the op, by name."""
    for check in first_minute.op_checks():
        yield check.name, lambda k=check: launched(k.case, k.needs, fp8=k.fp8)


def rows() -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Yield the rows of bench_svd_linear.py that run the op as it is, by name."""
    modes = {mode: needs for needs, mode in NEEDS.items()} | {"training forward": "both", "forward+backward": "both"}
    for case in cuda_cases():
        for mode in case.modes:
            for provider in ("hystar_fast", "hystar_fast, fp8"):
                if provider in case.providers:
                    fp8 = "fp8" in provider
                    name = f"{case}, {DTYPES[case.dtype]}, {mode}{', fp8' * fp8}"
                    yield name, lambda c=case, n=modes[mode], f=fp8, m=mode: launched(c, n, fp8=f, mode=m)


def wanted() -> list[str]:
    """Return the variants of production, in the order of their first use."""
    names = ((str(case), lambda c=case, n=needs, f=fp8: launched(c, n, fp8=f)) for case, needs, fp8 in production())
    return list(collect(names))


def page() -> str:
    """Return the part of the page on svd_linear, and its head: one line for each variant."""
    checked, measured = collect(checks()), collect(rows())
    lines = [
        "# What runs each kernel on a GPU",
        "",
        "Written by `bench/gpu_coverage.py`. Nothing here has run on a GPU yet.",
        "",
        "## svd_linear",
        "",
        "Every Triton kernel, as it is specialised, that the op launches on an H200 for the layers that are measured,",
        "with the first check of `bench/first_minute.py` and the first row of `bench/bench_svd_linear.py` that run it.",
        "",
        "| kernel | check | row |",
        "|---|---|---|",
    ]
    for one in wanted():
        first = [runs.get(one, ["**none**"])[0] for runs in (checked, measured)]
        lines.append(f"| {one} | {first[0]} | {first[1]} |")
    return "\n".join(lines) + "\n"


def holes() -> list[str]:
    """Return the variants of production that no check or no row runs."""
    runs = {"check": collect(checks()), "row": collect(rows())}
    return [f"no {name}: {one}" for one in wanted() for name, found in runs.items() if one not in found]


if __name__ == "__main__":
    import transport_coverage  # compiles the launch code, which warm.py does not need

    PAGE.write_text(f"{page()}\n{transport_coverage.section()}", encoding="utf-8")
    print("\n".join(holes() + transport_coverage.holes()) or "every variant has a check and a row")
