"""Hand-picked faults that the tests must find: ``python -m tests.mutants [part of a name …]``.

Each mutant replaces one expression in a copy of the project and runs the tests of that file there. A mutant whose
tests pass has survived: either the tests miss a fault, or the expression does not matter. The exit status is the
number of survivors. It takes a few minutes on two cores, so it is run by hand and not with the suite.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.faults import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]


def main(words: list[str]) -> int:
    """Run the mutants whose path or name contains one of the words, and return the number of survivors."""
    chosen = [m for m in MUTANTS if not words or any(word in f"{m.path} {m.name}" for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy(Path(folder) / "project")
        for mutant in chosen:
            start = time.monotonic()
            killed = _is_killed(copy, mutant)
            if not killed:
                survivors.append(mutant)
            word = "killed  " if killed else "SURVIVED"
            print(f"{word} {time.monotonic() - start:4.0f} s  {mutant.path}: {mutant.name}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    return len(survivors)


def _copy(folder: Path) -> Path:
    """Copy the tracked files, with the kernels where an import finds them before an installed package."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "hystar_fast" / "kernels").symlink_to("../kernels", target_is_directory=True)
    for library in (ROOT / "hystar_fast").glob("_C*.so"):
        shutil.copy2(library, folder / "hystar_fast")
    return folder


def _is_killed(copy: Path, mutant: Mutant) -> bool:
    path = copy / mutant.path
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.path} must contain {mutant.old!r} once, got {source.count(mutant.old)} times")
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *mutant.tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy)}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(source, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutant.name}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}")
    return done.returncode == 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
