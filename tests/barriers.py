"""Remove every barrier and wait of the CUDA block algorithms in turn: ``python tests/barriers.py [part of a place]``.

Each removal is compiled for the CPU (tests/support/cuda_host) and run by the runner of a GPU session at toy sizes. It
must be found: by a wrong row, by other bits in another order of the threads, or by threads that wait for ever. Prints a
line for each, and those that were not found last. A line with the comment ``not needed here: why`` is left alone. This
takes half a minute for each of 40 places, so it is no test of pytest.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOST, RUNNER = ROOT / "tests/support/cuda_host", ROOT / "bench/gpu_runner"
CALL = re.compile(r"block_?\.(sync|sync_warp|sync_cluster|sync_grid|wait_for_copies|commit_copies)\([^;]*\);")
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w", "-pthread"]


def places() -> Iterator[tuple[Path, int, str]]:
    """Yield the file, the number and the text of every line with a barrier or a wait."""
    for path in sorted((ROOT / "csrc").rglob("*.cuh")):
        for number, line in enumerate(path.read_text().splitlines()):
            if path.name != "device_block.cuh" and CALL.search(line) and "not needed here" not in line:
                yield path, number, line


def compiled(csrc: Path, sources: list[Path], folder: Path) -> list[Path]:
    """Compile for the CPU, and return the objects."""
    objects = []
    for source in sources:
        objects.append(folder / f"{source.stem}.o")
        includes = [f"-I{path}" for path in (csrc, HOST, RUNNER)]
        subprocess.run(["g++", *FLAGS, *includes, "-c", str(source), "-o", str(objects[-1])], check=True)
    return objects


def outcome(csrc: Path, fixed: list[Path], folder: Path) -> str:
    """Return what the runner says about the algorithms in `csrc`; empty if it finds nothing wrong."""
    objects = compiled(csrc, [HOST / "sinkhorn.cpp", HOST / "style_nce.cpp"], folder)
    program = folder / "runner"
    subprocess.run(["g++", "-pthread", *map(str, [*objects, *fixed]), "-o", str(program)], check=True)
    try:
        done = subprocess.run([program, "toy"], capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        return "never ends"
    if done.returncode == 0:
        return ""
    wrong = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    return wrong[0].split(": ")[-1] if wrong else done.stderr.strip()[:100] or f"ended with {done.returncode}"


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fixed = compiled(ROOT / "csrc", [HOST / "device.cpp", RUNNER / "runner.cpp"], folder)
        for path, number, line in places():
            place = f"{path.relative_to(ROOT)}:{number + 1} {line.strip()}"
            if wanted not in place:
                continue
            copy = folder / "csrc"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(ROOT / "csrc", copy)
            lines = path.read_text().splitlines()
            lines[number] = CALL.sub(";", line)
            (copy / path.relative_to(ROOT / "csrc")).write_text("\n".join(lines) + "\n")
            found = outcome(copy, fixed, folder)
            print(f"{'found ' if found else 'MISSED'} {place}: {found}", flush=True)
            missed += [place] * (not found)
    print("\n".join(["not found:", *missed]) if missed else "every removal was found")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
