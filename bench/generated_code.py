"""Registers, shared memory and instructions of the compiled kernels: the tables of docs/algorithms/generated-code.md.

``python bench/generated_code.py [--triton36 FOLDER]`` compiles every launch of the Triton kernels for every
architecture, with the installed Triton and the one in FOLDER, and reads the CUDA kernels in the installed extension. It
needs no GPU. On two cores it takes about half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 89, 90, 100, 120)
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?!(?:@!?U?P\w+ )?NOP)")


def triton_rows(architecture: int, folder: Path | None) -> tuple[str, list[dict[str, Any]]]:
    """Compile the Triton kernels in a process of their own; return the version of Triton and one row a kernel."""
    path = os.pathsep.join(str(part) for part in (folder, ROOT) if part is not None)
    command = [sys.executable, "-m", "tests.support.svd_linear_compiled", str(architecture), "--instructions"]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    return report["triton"], report["rows"]


def family(label: str) -> str:
    """Return gemm, fused or fp8 for a launch of these kernels, and other for the small ones."""
    found = re.match(r"_svd_linear_(gemm|fused|fp8)_kernel", label)
    return found[1] if found else "other"


def triton_table(folder: Path | None) -> Iterator[str]:
    """Yield the lines of the table of the Triton kernels: one for each version and architecture."""
    yield "| Triton | sm | configurations | gemm | fused | fp8 | other | most registers | most shared memory | spills |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for architecture in ARCHITECTURES:
        for place in (None, folder) if folder else (None,):
            version, rows = triton_rows(architecture, place)
            total: dict[str, int] = defaultdict(int)
            for row in rows:
                total[family(row["kernel"])] += row["instructions"]
            sums = " | ".join(str(total[name]) for name in ("gemm", "fused", "fp8", "other"))
            most = " | ".join(str(max(row[name] for row in rows)) for name in ("reg", "shared"))
            spills = sum(row["stack"] > 0 or row["local"] > 0 for row in rows)
            yield f"| {version} | {architecture} | {len(rows)} | {sums} | {most} | {spills} |"


def cuda_kernels() -> dict[str, dict[str, str]]:
    """Return "registers / shared memory / instructions" of every CUDA kernel of the extension, by architecture."""
    import triton

    from hystar_fast.ops.native import extension

    module = extension()
    assert module is not None and module.__file__
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found: dict[str, dict[str, str]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([tool, "-xelf", "all", module.__file__], cwd=folder, check=True, capture_output=True)
        for binary in sorted(Path(folder).glob("*.cubin")):
            architecture = re.findall(r"sm_(\w+)\.cubin", binary.name)[0]
            command = [tool, "-res-usage", "-sass", binary]
            listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            usage = dict(re.findall(r"Function (\w+):\s*\n\s*(REG:\d+.*)", listing))
            for part in re.split(r"\n\s*Function : ", listing)[1:]:
                name = part.split()[0]
                counts = {key: int(value) for key, value in re.findall(r"\b(REG|SHARED):(\d+)", usage[name])}
                instructions = len(INSTRUCTION.findall(part))
                found[short(name)][architecture] = f"{counts['REG']} / {counts['SHARED']} / {instructions}"
    return found


def short(mangled: str) -> str:
    """Return the name of a kernel with the numbers of its template arguments."""
    name = re.findall(r"\d+([a-z_]+_kernel)", mangled)[0]
    numbers = re.findall(r"Li(\d+)E", mangled)
    return f"{name}<{', '.join(numbers)}>" if numbers else name


def cuda_table() -> Iterator[str]:
    """Yield the lines of the table of the CUDA kernels."""
    kernels = cuda_kernels()
    architectures = sorted({name for row in kernels.values() for name in row}, key=lambda name: int(name.rstrip("a")))
    yield "| kernel | " + " | ".join(f"sm_{name}" for name in architectures) + " |"
    yield "|---" * (1 + len(architectures)) + "|"
    for name, row in sorted(kernels.items()):
        yield f"| `{name}` | " + " | ".join(row.get(architecture, "") for architecture in architectures) + " |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triton36", type=Path, help="a folder with another Triton, put first on the path")
    folder = parser.parse_args().triton36
    for line in (*cuda_table(), "", *triton_table(folder)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
