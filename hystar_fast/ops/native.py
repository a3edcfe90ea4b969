"""The compiled extension: loaded once, and when it or its CUDA half cannot run, the reason in one sentence."""

from __future__ import annotations

import hashlib
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from hystar_fast import __version__

# sm_80 is the oldest architecture that is built; newer GPUs run it, their own, or the PTX of the newest
_OLDEST_CAPABILITY = (8, 0)
_SOURCES = {".cpp", ".h", ".cu", ".cuh"}
_CSRC = Path(__file__).resolve().parents[2] / "csrc"


@cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        module = import_module("hystar_fast._C")
    except ModuleNotFoundError:
        reason = "the extension was not built (no C++ compiler when hystar_fast was installed)"
    except ImportError as error:
        reason = f"the extension does not load: {error}"
    else:
        reason = version_problem(module.version, __version__) or sources_problem(getattr(module, "sources", ""), _CSRC)
        if not reason:
            return module, ""
    warnings.warn(f"hystar_fast runs in plain torch: {reason}; reinstall hystar_fast to build it", stacklevel=3)
    return None, reason


def version_problem(built: str, running: str) -> str:
    """Why an extension built from version `built` must not serve `running`; empty when it may."""
    return "" if built == running else f"the extension was built from hystar_fast {built}, but this is {running}"


def sources_problem(built: str, folder: Path) -> str:
    """Why an extension built from sources of digest `built` must not serve this checkout; empty when it may.

    Its functions take raw pointers: one that expects other arguments than it gets would read wild memory. Only a
    checkout has the folder; in a wheel extension and Python cannot come apart.
    """
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _SOURCES):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return "" if digest.hexdigest()[:16] == built else f"the extension is older than the sources in {folder}"


def driver_problem(driver: int, runtime: int) -> str:
    """Why a driver cannot run code built with a CUDA runtime (both as 1000 * major + 10 * minor); empty when it can.

    Within a major version any driver serves any runtime; across major versions the driver must be the newer.
    A driver version of 0 means that there is no driver.
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
    """Why a GPU of this compute capability cannot run the extension; empty when it can."""
    if capability >= _OLDEST_CAPABILITY:
        return ""
    return f"{name} has compute capability {capability[0]}.{capability[1]}, and 8.0 is the oldest supported"


def extension() -> ModuleType | None:
    """``hystar_fast._C``, or None (with one warning the first time) when it is missing, stale or does not load."""
    return _load()[0]


def why_not() -> str | None:
    """Why there is no extension; None when there is one."""
    return _load()[1] or None


@cache
def cuda_ready() -> tuple[bool, str]:
    """Whether the extension's CUDA kernels can run in this process, and if not, why.

    They need an extension built with nvcc, a driver new enough for its runtime, and a GPU new enough that torch sees.
    """
    module, reason = _load()
    if module is None:
        return False, reason
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
