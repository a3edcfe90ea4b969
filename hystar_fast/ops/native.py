"""The compiled extension: loaded once. If it or its CUDA kernels cannot run, one sentence gives the reason."""

from __future__ import annotations

import hashlib
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from hystar_fast import __version__

# sm_80 is the oldest architecture that is built. A newer GPU runs its own code or the PTX of the newest architecture.
_OLDEST_CAPABILITY = (8, 0)
_SOURCES = {".cpp", ".h", ".cu", ".cuh"}
_CSRC = Path(__file__).resolve().parents[2] / "csrc"


@cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        module = import_module("hystar_fast._C")
    except ModuleNotFoundError:
        problem = "the extension was not built (no C++ compiler when hystar_fast was installed)"
    except ImportError as error:
        problem = f"the extension does not load: {error}"
    else:
        problem = version_problem(module.version, __version__) or sources_problem(getattr(module, "sources", ""), _CSRC)
        if not problem:
            return module, ""
    warnings.warn(f"hystar_fast runs in plain torch: {problem}; reinstall hystar_fast to build it", stacklevel=3)
    return None, problem


def version_problem(built: str, running: str) -> str:
    """Return why an extension built from version `built` must not be used by `running`; empty if it may be."""
    return "" if built == running else f"the extension was built from hystar_fast {built}, but this is {running}"


def sources_problem(built: str, folder: Path) -> str:
    """Return why an extension built from sources of digest `built` must not be used here; empty if it may be.

    The functions of the extension take raw pointers: one that expects other arguments would read arbitrary memory. Only
    a checkout has the folder of sources. In a wheel, the extension always belongs to the Python code.
    """
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _SOURCES):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return "" if digest.hexdigest()[:16] == built else f"the extension is older than the sources in {folder}"


def driver_problem(driver: int, runtime: int) -> str:
    """Return why a driver cannot run code that was built with a CUDA runtime; empty if it can.

    Both versions are 1000 * major + 10 * minor, and a driver version of 0 means that there is no driver. Within a major
    version every driver runs every runtime. Across major versions the driver must be the newer one.
    """
    if driver == 0:
        return "no NVIDIA driver"
    if driver // 1000 >= runtime // 1000:
        return ""
    supported, built = (f"{version // 1000}.{version % 1000 // 10}" for version in (driver, runtime))
    return (
        f"the driver supports CUDA {supported} but the extension was built with CUDA {built}: "
        f"update the driver, or reinstall hystar_fast with the nvcc of CUDA {driver // 1000}"
    )


def capability_problem(name: str, capability: tuple[int, int]) -> str:
    """Return why a GPU of this compute capability cannot run the extension; empty if it can."""
    if capability >= _OLDEST_CAPABILITY:
        return ""
    return f"{name} has compute capability {capability[0]}.{capability[1]}, and 8.0 is the oldest supported"


def extension() -> ModuleType | None:
    """Return ``hystar_fast._C``, or None if it is missing, stale or does not load. The first such call warns."""
    return _load()[0]


def extension_problem() -> str | None:
    """Return why there is no extension; None if there is one."""
    return _load()[1] or None


def instruction_set() -> str | None:
    """Return the widest instruction set that this CPU and the extension have; None without the extension."""
    module = extension()
    return None if module is None else _widest(module)


@cache
def _widest(module: ModuleType) -> str:
    return str(module.cpu_instruction_sets()[0])


@cache
def cuda_ready() -> tuple[bool, str]:
    """Return whether the CUDA kernels of the extension can run in this process, and if not, why.

    They need an extension that was built with nvcc, a driver that is new enough for its runtime, and a GPU that torch
    finds and that is new enough.
    """
    module, problem = _load()
    if module is None:
        return False, problem
    if not module.cuda_version:
        return False, f"the extension was built for the CPU only: {module.cuda_reason}"
    problem = driver_problem(module.cuda_driver_version(), module.cuda_version)
    if problem:
        return False, problem
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA GPU"
    problems = [
        capability_problem(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))
        for index in range(torch.cuda.device_count())
    ]
    return ("" in problems), "" if "" in problems else "; ".join(problems)


def cuda_extension(dtype: torch.dtype) -> ModuleType | None:
    """Return the extension if its CUDA kernels, which compute in float32, can run for this dtype; else None."""
    return extension() if dtype == torch.float32 and cuda_ready()[0] else None
