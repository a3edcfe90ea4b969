"""Remove every barrier and wait of the CUDA block algorithms in turn: ``python -m tests.barriers [part of a place]``.

The runner of a GPU session runs the emulated kernels (tests/support/cuda_host) at toy sizes without it, and must find
the fault. Prints a table and ends with 1 if a removal was not found. Takes two minutes (90 s of CPU time).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.support.gpu_runner_host import barriers, build_runner, fault_without


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(Path(folder))
        for place in filter(lambda place: wanted in place, barriers()):
            fault = fault_without(runner, place)
            print(f"{place:28} {fault or 'NOT FOUND'}", flush=True)
            missed += [place] * (not fault)
    print("not found: " + ", ".join(missed) if missed else "every removal was found")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
