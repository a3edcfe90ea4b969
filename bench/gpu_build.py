"""Build ahead what a GPU session runs: python bench/gpu_build.py build/gpu [--python PYTHON] [--architecture 90a].

The folder gets the extension for the Python of the GPU's machine, and the runner (bench/gpu_runner), which has the same
objects and no Python. PYTHON needs nothing but its headers. bench/gpu_session.sh uses both from the folder that CARRIED
names, if they run on its machine, and otherwise calls this script there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import ninja
import pybind11

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ROOT / "bench" / "gpu_runner"
ASK = "import json, sysconfig as s; print(json.dumps([s.get_paths()['include'], s.get_config_var('EXT_SUFFIX')]))"


def load_setup() -> ModuleType:
    """Import setup.py as a module, without running setup()."""
    spec = importlib.util.spec_from_file_location("hystar_fast_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def ninja_file(setup: ModuleType, folder: Path, python: str, architecture: str) -> str:
    """Return the build file of the extension (as setup.py writes it) and of the runner."""
    os.environ["HYSTAR_FAST_CUDA_ARCHITECTURES"] = architecture
    cxx, problem = setup.find_cxx()
    cuda, cuda_problem = setup.find_cuda()
    if cxx is None or cuda is None:
        raise SystemExit(f"the runner cannot be built: {problem or cuda_problem}")
    asked = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=True).stdout
    include, suffix = json.loads(asked)
    version = re.search(r'__version__ = "(.+)"', (ROOT / "hystar_fast/__init__.py").read_text())
    assert version
    text = setup.ninja_file(cxx, cuda, "", [pybind11.get_include(), include], version[1], folder / f"_C{suffix}")
    kernels = [f"{source.relative_to(setup.CSRC).as_posix()}.o" for source in sorted(setup.CSRC.rglob("*.cu"))]
    libraries = f"{cuda.library} -pthread -ldl -lrt"
    return text + "\n".join(
        [
            f"rule executable\n  command = {' '.join(cxx)} -s $in -o $out {libraries}\n  description = $out",
            f"build runner.o: cxx {RUNNER / 'runner.cpp'}",
            f"build device.o: nvcc {RUNNER / 'device_cuda.cu'}",
            f"build runner: executable runner.o device.o {' '.join(kernels)}",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=sys.executable, help="the Python that will load the extension")
    parser.add_argument("--architecture", default="90a")
    parser.add_argument("--only", choices=["runner"], help="leave the extension out")
    parser.add_argument("--dry", action="store_true", help="write the build file and build nothing")
    parser.add_argument(
        "--check", action="store_true", help="build nothing; say whether the folder is of these sources"
    )
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    setup = load_setup()
    digest, kept = setup.source_digest(setup.CSRC) + setup.source_digest(RUNNER), folder / "sources.txt"
    if arguments.check:
        return int(not kept.exists() or kept.read_text() != digest)
    folder.mkdir(parents=True, exist_ok=True)
    kept.unlink(missing_ok=True)
    text = ninja_file(setup, folder, arguments.python, arguments.architecture)
    (folder / "build.ninja").write_text(text)
    if arguments.dry:
        return 0
    wanted = [arguments.only] if arguments.only else []
    failed = subprocess.call([str(Path(ninja.BIN_DIR, "ninja")), "-C", str(folder), *wanted])
    if not failed:
        kept.write_text(digest)
    return failed


if __name__ == "__main__":
    sys.exit(main())
