"""hystar_fast.ops.native: the extension is found, and every way it can be missing or unable is said, not crashed on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hystar_fast
from hystar_fast.ops import native
from hystar_fast.ref.sinkhorn import CONVERGED_BELOW, SinkhornStatus
from hystar_fast.ref.style_nce import AUTO_GAMMA, MAX_EXPONENT, WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
REAL = import_module("hystar_fast._C")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget what native found, before and after."""
    native._load.cache_clear()
    native.cuda_ready.cache_clear()
    yield
    native._load.cache_clear()
    native.cuda_ready.cache_clear()


def fake_extension(**attributes: object) -> SimpleNamespace:
    defaults = {
        "version": hystar_fast.__version__,
        "sources": REAL.sources,
        "cuda_version": 13000,
        "cuda_reason": "",
        "cuda_driver_version": lambda: 13000,
    }
    return SimpleNamespace(**(defaults | attributes))


def test_the_installed_extension_loads_without_a_warning(fresh: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = native.extension()
    assert module is not None
    assert native.extension_problem() is None
    assert module.version == hystar_fast.__version__
    assert bool(module.cuda_version) == bool(module.cuda_architectures) == (not module.cuda_reason)


def test_the_extension_has_the_constants_of_the_reference() -> None:
    assert REAL.constants == {
        "SinkhornStatus": {status.name: status.value for status in SinkhornStatus},
        "WEIGHTS": {name.upper(): code for code, name in enumerate(WEIGHTS)},
        "CONVERGED_BELOW": CONVERGED_BELOW,
        "MAX_EXPONENT": MAX_EXPONENT,
        "AUTO_GAMMA": AUTO_GAMMA,
    }


def test_a_missing_extension_warns_once_and_gives_the_reason(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hystar_fast._C", None)  # import now raises ModuleNotFoundError
    with pytest.warns(UserWarning, match="plain torch.*not built"):
        assert native.extension() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.extension() is None
        assert "not built" in (native.extension_problem() or "")
        assert native.cuda_ready() == (False, native.extension_problem())


def test_an_extension_that_does_not_load_says_what_the_loader_said(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise ImportError(f"{name}: undefined symbol: zzz")

    monkeypatch.setattr(native, "import_module", broken)
    with pytest.warns(UserWarning, match="undefined symbol: zzz"):
        assert native.extension() is None


def test_an_extension_of_another_version_is_not_used(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hystar_fast._C", fake_extension(version="0.0.0"))
    with pytest.warns(UserWarning, match=r"built from hystar_fast 0\.0\.0"):
        assert native.extension() is None


def test_an_extension_older_than_the_sources_beside_it_is_not_used(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "op.cpp").write_text("int f(int);")
    monkeypatch.setattr(native, "_CSRC", tmp_path)
    monkeypatch.setitem(sys.modules, "hystar_fast._C", fake_extension(sources="0123456789abcdef"))
    with pytest.warns(UserWarning, match=r"older than the sources.*reinstall hystar_fast"):
        assert native.extension() is None


def test_a_wheel_has_no_sources_to_be_older_than(tmp_path: Path) -> None:
    assert native.sources_problem("0123456789abcdef", tmp_path / "csrc") == ""


@pytest.mark.parametrize(
    ("driver", "runtime", "problem"),
    [
        (13000, 13000, ""),
        (13010, 13000, ""),
        (13000, 13020, ""),  # same major version: any minor runs
        (14000, 13000, ""),
        (12090, 13000, "supports CUDA 12.9 but the extension was built with CUDA 13.0"),
        (11080, 12040, "supports CUDA 11.8 but the extension was built with CUDA 12.4"),
        (0, 13000, "no NVIDIA driver"),
    ],
)
def test_which_driver_runs_which_runtime(driver: int, runtime: int, problem: str) -> None:
    found = native.driver_problem(driver, runtime)
    assert problem in found
    assert bool(problem) == bool(found)


def test_which_gpu_is_new_enough() -> None:
    assert "7.5" in native.capability_problem("T4", (7, 5))
    assert [native.capability_problem("GPU", c) for c in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 1))] == [""] * 5


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"cuda_version": 0, "cuda_reason": "no nvcc"}, "built for the CPU only: no nvcc"),
        ({"cuda_driver_version": lambda: 0}, "no NVIDIA driver"),
        ({"cuda_driver_version": lambda: 12040}, "supports CUDA 12.4"),
    ],
)
def test_cuda_is_not_ready_and_says_why(
    fresh: None, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, object], reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "hystar_fast._C", fake_extension(**attributes))
    ready, said = native.cuda_ready()
    assert not ready
    assert reason in said


@pytest.mark.parametrize(
    ("capabilities", "ready", "reason"),
    [
        ([], False, "torch sees no CUDA GPU"),
        ([(7, 5)], False, "compute capability 7.5"),
        ([(9, 0)], True, ""),
        ([(7, 5), (9, 0)], True, ""),  # one that can is enough
    ],
)
def test_cuda_is_ready_when_one_gpu_can(
    fresh: None, monkeypatch: pytest.MonkeyPatch, capabilities: list[tuple[int, int]], ready: bool, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "hystar_fast._C", fake_extension())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    found, said = native.cuda_ready()
    assert found == ready
    assert reason in said
    assert bool(said) != ready


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_driver_older_than_the_runtime_is_reported_by_the_real_extension(tmp_path: Path) -> None:
    """A stand-in libcuda.so.1 that answers 'CUDA 12.4', the way an old machine's would."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the tests need the C compiler that built the extension"
    source = tmp_path / "driver.c"
    source.write_text("int cuDriverGetVersion(int* version) { *version = 12040; return 0; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(tmp_path / "libcuda.so.1")], check=True)
    out = run(
        "from hystar_fast.ops import native\n"
        "print(native.extension().cuda_driver_version())\n"
        "print(native.cuda_ready()[1])\n",
        LD_LIBRARY_PATH=str(tmp_path),
    ).splitlines()
    assert out[0] == "12040"
    assert "supports CUDA 12.4" in out[1] or "CPU only" in out[1]


def test_without_the_extension_every_op_runs_and_info_says_why() -> None:
    out = run(
        "import sys, warnings\n"
        "sys.modules['hystar_fast._C'] = None\n"
        "import torch, hystar_fast as hf\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    def check(op, *arguments, **options):\n"
        "        leaf = arguments[0].requires_grad_()\n"
        "        for function in (getattr(hf, op), getattr(hf.ref, op)):\n"
        "            torch.manual_seed(0)\n"
        "            y = function(leaf, *arguments[1:], **options)\n"
        "            yield y, *torch.autograd.grad(y.square().sum(), leaf)\n"
        "    mask = torch.eye(5).bool()\n"
        "    cases = [('sinkhorn', (torch.rand(2, 5, 5), 0.1), {'mask': mask}),\n"
        "        ('style_nce', (torch.randn(5, 8), torch.randn(5, 8)), {'mask': mask.roll(1), 'gamma': 'auto'}),\n"
        "        ('perturbed_topk', (torch.rand(2, 5), 2), {'sigma': 0.1, 'samples': 9, 'mask': mask[1]}),\n"
        "        ('svd_linear', (torch.randn(2, 3, 4), torch.randn(6, 5), torch.randn(2, 5), torch.randn(5, 4)), {})]\n"
        "    for op, arguments, options in cases:\n"
        "        torch.testing.assert_close(*check(op, *arguments, **options), atol=1e-5, rtol=1e-4)\n"
        "print(sum('plain torch' in str(w.message) for w in caught))\n"
        "print(next(row['reason'] for row in hf.info() if row['op'] == 'sinkhorn' and row['device'] == 'cpu'))\n"
    ).splitlines()
    assert out[0] == "1"
    assert "not built" in out[1]
