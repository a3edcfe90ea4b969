"""Run by test_svd_linear_replay.py on the stub of CUDA: the first svd_linear of a process, and a second one.

Prints one JSON object: the kernels that Triton compiled, the launches, the packages that were imported and the number
of modules of ours and of Triton, and processor seconds, with those of ptxas.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

import torch

import hystar_fast as hf
from tests.support.cuda_stub import launches


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    from triton import knobs  # torch imports it with its compiler, and svd_linear when it first launches

    compiled: list[str] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        compiled.append(src.name + " from the cache" * cache_hit)

    knobs.compilation.listener = listen
    x = torch.empty(48, 257, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    u, vh = (torch.empty(*shape, device="cuda", dtype=torch.bfloat16) for shape in ((3072, 1024), (1024, 1024)))
    scale = torch.empty(48, 1024, device="cuda", requires_grad=True)
    dy = torch.empty(48, 257, 3072, device="cuda", dtype=torch.bfloat16)
    (x[:1] @ vh.mT).sum()  # torch's own first call
    found: dict[str, Any] = {}
    for name in ("first", "second"):
        compiled.clear()
        launches()
        before, started = {*sys.modules}, processor_seconds()
        torch.autograd.grad(hf.svd_linear(x, u, scale, vh), (x, scale), dy)
        taken = processor_seconds() - started
        new = {*sys.modules} - before
        found[name] = {
            "compiled": sorted(compiled),
            "launched": [launch.kernel for launch in launches()],
            "packages": sorted({module.partition(".")[0] for module in new} - {*sys.stdlib_module_names}),
            "modules": sum(module.partition(".")[0] in ("hystar_fast", "triton") for module in new),
            "seconds": taken,
        }
    print(json.dumps(found), flush=True)
    os._exit(0)  # torch's threads do not end on the stub


if __name__ == "__main__":
    main()
