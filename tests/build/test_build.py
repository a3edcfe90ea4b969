"""The build: a wheel with every file and without libtorch, and one line of output for a missing or broken compiler."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import triton
from setuptools import Distribution

from hystar_fast.ops import native
from tests.support.checkout_objects import write_compiler

ROOT = Path(__file__).resolve().parents[2]
# One process builds the wheel: with xdist, `--dist loadgroup` keeps this file together.
pytestmark = pytest.mark.xdist_group("build")
SYSTEM_LIBRARIES = {"libstdc++", "libgcc_s", "libm", "libc", "libdl", "libpthread", "librt", "ld-linux-x86-64"}


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """Import setup.py as a module, without running setup()."""
    spec = importlib.util.spec_from_file_location("hystar_fast_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def package_files(source: Path) -> set[str]:
    """Return the names of all files that a wheel must hold."""
    files = [p for folder in ("hystar_fast", "kernels") for p in (source / folder).rglob("*") if p.is_file()]
    names = {p.relative_to(source).as_posix() for p in files if p.suffix not in (".so", ".pyc")}
    return {f"hystar_fast/{name}" if name.startswith("kernels/") else name for name in names}


@pytest.fixture(scope="module")
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the source tree without build products, to build in."""
    copy = tmp_path_factory.mktemp("source") / "hystar fast"  # a space: paths must be quoted
    copy.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in ("hystar_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def pip(*arguments: str | Path, **environment: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    env = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH", "CXX")} | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr  # -v prints the build's output on stderr


@pytest.fixture(scope="module")
def isolated(source_copy: Path, build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Build a wheel in isolation with an nvcc that cannot compile; return the wheel and the output.

    An object that the checkout's build has made in the same way is not made again.
    """
    out = tmp_path_factory.mktemp("wheel")
    write_executable(out / "bin" / "nvcc", "echo 'nvcc fatal: broken on purpose' >&2; exit 1")
    path = f"{out / 'bin'}{os.pathsep}{os.environ['PATH']}"
    compiler = write_compiler(out / "bin" / "c++ of the checkout", build)
    log = pip("wheel", "-v", "--no-deps", "-w", out, source_copy, PATH=path, CXX=compiler)
    (wheel,) = out.glob("*.whl")
    return wheel, log


@pytest.fixture(scope="module")
def fresh_environment(isolated: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new environment that uses this one's torch and other packages; return its bin folder."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # a line with a path adds a folder without running the .pth files in it, so no editable install is added
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    Path(packages, "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip("--python", folder / "bin" / "python", "install", "-q", "--no-deps", isolated[0])
    return folder / "bin"


def run(command: list[str | Path], cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needed_libraries(extension: Path) -> set[str]:
    output = subprocess.run(["readelf", "-d", str(extension)], capture_output=True, text=True, check=True).stdout
    return {name.split(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.+)\]", output)}


def test_a_broken_nvcc_gives_a_cpu_build_and_one_line_of_output(isolated: tuple[Path, str]) -> None:
    printed = [line for line in isolated[1].splitlines() if "hystar_fast:" in line]
    assert len(printed) == 1, isolated[1]
    assert "CPU only" in printed[0]
    assert "broken on purpose" in printed[0]


def test_the_wheel_holds_every_file_and_nothing_else(isolated: tuple[Path, str], source_copy: Path) -> None:
    with zipfile.ZipFile(isolated[0]) as wheel:
        names = set(wheel.namelist())
    missing = sorted(package_files(source_copy) - names)
    assert not missing, f"not in the wheel: {missing}"
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hystar_fast"}  # no top-level kernels, tests, bench
    assert "hystar_fast/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert isolated[0].stat().st_size < 60e6


def test_the_wheel_runs_in_a_fresh_environment(fresh_environment: Path, tmp_path: Path) -> None:
    code = """
import hystar_fast as hf, hystar_fast.kernels, importlib.util, sys, torch
from pathlib import Path
from hystar_fast.ops import native
home = Path(hf.__file__).parent
assert home.is_relative_to(sys.prefix), home
assert Path(hystar_fast.kernels.__file__).is_relative_to(home)
module = native.extension()
assert module is not None and Path(module.__file__).parent == home, native.extension_problem()
assert module.cuda_version == 0 and "broken on purpose" in module.cuda_reason
x, u, vh = torch.randn(2, 3, 8), torch.randn(6, 4), torch.randn(4, 8)
scale = torch.randn(2, 4)
torch.testing.assert_close(hf.svd_linear(x, u, scale, vh), hf.ref.svd_linear(x, u, scale, vh))
cost = torch.rand(2, 7, 7)
torch.testing.assert_close(hf.sinkhorn(cost, 0.1), hf.ref.sinkhorn(cost, 0.1), atol=1e-5, rtol=1e-5)
q, t = torch.randn(2, 9, 16)
torch.testing.assert_close(hf.style_nce(q, t), hf.ref.style_nce(q, t), atol=1e-4, rtol=1e-4)
layer = hf.FastSVDLinear.from_linear(torch.nn.Linear(8, 6))
assert layer(x, torch.zeros(2, 6)).shape == (2, 3, 6)
soft, same = (
    f(q, 3, sigma=0.1, samples=20, generator=torch.Generator().manual_seed(0))
    for f in (hf.perturbed_topk, hf.ref.perturbed_topk)
)
torch.testing.assert_close(soft, same)
assert {row["op"] for row in hf.info()} == {"svd_linear", "sinkhorn", "style_nce", "perturbed_topk"}
print("ran")
"""
    assert run([fresh_environment / "python", "-c", code], tmp_path).strip() == "ran"


def test_the_wheel_has_its_data_and_its_command(fresh_environment: Path, tmp_path: Path) -> None:
    code = """
from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.models.tiny import create_tiny
data = EmojiStyles()
assert data.concepts("test")
create_tiny("packaged")
print("read")
"""
    assert run([fresh_environment / "python", "-c", code], tmp_path).strip() == "read"
    shown = run([fresh_environment / "hystar-fast", "info"], tmp_path)
    assert all(op in shown for op in ("svd_linear", "sinkhorn", "style_nce", "perturbed_topk"))


def test_the_extension_links_neither_torch_nor_the_cuda_runtime(isolated: tuple[Path, str], tmp_path: Path) -> None:
    with zipfile.ZipFile(isolated[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".so"))
        built = Path(wheel.extract(name, tmp_path))
    installed = native.extension()
    assert installed is not None and installed.__file__
    for extension in (built, Path(installed.__file__)):
        assert needed_libraries(extension) <= SYSTEM_LIBRARIES
        undefined = subprocess.run(
            ["nm", "-D", "-u", str(extension)], capture_output=True, text=True, check=True
        ).stdout
        assert not re.findall(r"c10|torch|_ZN2at|\bcuda\w+", undefined)
        exported = subprocess.run(
            ["nm", "-D", "--defined-only", str(extension)], capture_output=True, text=True, check=True
        ).stdout
        assert not re.findall(r"\bcuda\w+", exported)  # an exported runtime symbol would replace another library's


def test_a_source_distribution_builds_the_same_wheel(source_copy: Path, tmp_path: Path) -> None:
    code = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=source_copy)
    assert done.returncode == 0, done.stderr
    (archive,) = (source_copy / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    for folder in ("csrc", "hystar_fast", "kernels"):
        for path in (source_copy / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".pyc", ".so"):
                assert (unpacked / path.relative_to(source_copy)).is_file(), path.relative_to(source_copy)


def test_without_a_cxx_compiler_the_wheel_still_installs(source_copy: Path, tmp_path: Path) -> None:
    log = pip("wheel", "-v", "--no-deps", "--no-build-isolation", "-w", tmp_path, source_copy, CXX="/nonexistent/c++")
    printed = [line for line in log.splitlines() if "hystar_fast:" in line]
    assert len(printed) == 1 and "no extension" in printed[0] and "plain torch" in printed[0]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


def test_a_working_nvcc_builds_for_every_architecture(build: ModuleType) -> None:
    """Fail if nvcc works on this machine and the extension was built without CUDA."""
    cuda, reason = build.find_cuda()
    module = native.extension()
    assert module is not None
    if cuda is None:
        assert module.cuda_version == 0 and reason
        return
    assert module.cuda_version >= 12000, f"built for the CPU only: {module.cuda_reason}"
    assert module.cuda_architectures.split() == list(cuda.architectures)
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"  # not every toolkit has one
    command = [str(cuobjdump), "-lelf", "-lptx", str(module.__file__)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(cuda.architectures) <= set(re.findall(r"sm_(\d+a?)\.cubin", listed.stdout))
    assert re.search(rf"sm_{cuda.architectures[-1]}\.ptx", listed.stdout)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "no nvcc"),
        ("exit 1", "does not work"),
        ("echo '#$ TOP=/nonexistent' >&2", "lacks cuda_runtime_api.h"),
    ],
    ids=["absent", "failing", "without a toolkit"],
)
def test_a_missing_or_broken_nvcc_is_reported(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, reason: str
) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        write_executable(tmp_path / "nvcc", script)
    cuda, reported = build.find_cuda()
    assert cuda is None
    assert reason in reported


def test_an_nvcc_that_cannot_compile_is_detected_by_a_trial(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toolkit is complete and its nvcc reports its version, but it compiles nothing."""
    for name in ("include/cuda_runtime_api.h", "lib64/libcudart_static.a"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    script = f"""case "$*" in
*--dryrun*) echo '#$ TOP={tmp_path}' >&2;;
*--list-gpu-arch*) printf 'compute_80\\ncompute_90\\n';;
*) echo 'error: unsupported host compiler' >&2; exit 1;;
esac"""
    write_executable(tmp_path / "bin" / "nvcc", script)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    cuda, reported = build.find_cuda()
    assert cuda is None
    assert "cannot compile a trial kernel: error: unsupported host compiler" in reported


def test_an_older_toolkit_builds_for_its_own_architectures(build: ModuleType) -> None:
    cuda = build.Cuda("nvcc", Path("include"), Path("lib"), ("80", "90a"))
    assert cuda.gencode == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",  # PTX of 90a runs on no other architecture
    ]


@pytest.mark.parametrize(
    ("wanted", "built", "reason"),
    [
        ("90a", ("90a",), ""),
        ("80, 90a", ("80", "90a"), ""),
        ("", None, ""),
        ("35", (), "knows none of the architectures 35"),
    ],
)
def test_an_environment_variable_selects_the_architectures(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, wanted: str, built: tuple[str, ...] | None, reason: str
) -> None:
    if build.find_nvcc() is None:
        assert build.find_cuda() == (None, "no nvcc on PATH or in CUDA_HOME")
        return
    monkeypatch.setenv("HYSTAR_FAST_CUDA_ARCHITECTURES", wanted)
    cuda, reported = build.find_cuda()
    assert reason in reported
    assert (() if cuda is None else cuda.architectures) == (build.CUDA_ARCHITECTURES if built is None else built)


def test_only_per_isa_files_get_the_flags_of_instruction_sets(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_isa = build.CSRC / "sinkhorn/cpu/kernels_per_isa.cpp"
    monkeypatch.setattr(build, "X86", True)
    objects = {name.rsplit(".", 2)[1]: flags for name, flags in build.compilations(per_isa).items()}
    assert set(objects) == {"baseline", "avx2", "avx512"}
    assert all(f"-DHYSTAR_ISA={isa}" in flags for isa, flags in objects.items())
    assert "-mavx512f" in objects["avx512"] and "-mavx2" in objects["avx2"] and "-mavx512f" not in objects["avx2"]
    assert not [flag for flag in objects["baseline"] if flag.startswith("-m")]
    monkeypatch.setattr(build, "X86", False)
    assert list(build.compilations(per_isa)) == ["sinkhorn/cpu/kernels_per_isa.cpp.baseline.o"]
    assert build.compilations(build.CSRC / "sinkhorn/cpu/forward.cpp") == {"sinkhorn/cpu/forward.cpp.o": []}
    assert not [flag for flag in build.CXX_FLAGS + build.NVCC_FLAGS if "fast-math" in flag or flag.startswith("-m")]


def test_the_build_and_the_sources_list_the_same_instruction_sets(build: ModuleType) -> None:
    header = (build.CSRC / "cpu/instruction_sets.h").read_text()
    listed = re.search(r"#define HYSTAR_INSTRUCTION_SETS\(APPLY\) (APPLY\(avx512\).*)", header)
    assert listed and set(re.findall(r"APPLY\((\w+)\)", listed[1])) == set(build.INSTRUCTION_SETS)
    assert len(list(build.CSRC.rglob(f"*{build.PER_ISA}.cpp"))) == 4


def test_the_build_and_the_package_compute_the_same_digest_of_sources(build: ModuleType, tmp_path: Path) -> None:
    source, header = tmp_path / "op/cpu/op.cpp", tmp_path / "op.h"
    source.parent.mkdir(parents=True)
    source.write_text("int f(int);")
    header.write_text("")
    (tmp_path / "notes.txt").write_text("no source")
    built = build.source_digest(tmp_path)
    assert native.sources_problem(built, tmp_path) == ""
    changes = (
        lambda: source.write_text("int f(long);"),
        lambda: header.rename(tmp_path / "other.h"),
        lambda: source.rename(tmp_path / "op/op.cpp"),
    )
    for change in changes:
        change()
        assert build.source_digest(tmp_path) != built
        assert "older than the sources" in native.sources_problem(built, tmp_path)
        built = build.source_digest(tmp_path)


def test_a_checkout_keeps_the_objects_of_its_build_and_a_wheel_has_a_folder_of_its_own(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[str] = []
    monkeypatch.setattr(build.build_ext, "run", lambda self: folders.append(self.build_temp))
    for of_checkout in ("inplace", "editable_mode", ""):
        command = build.BuildExtension(Distribution())
        command.ensure_finalized()
        if of_checkout:
            setattr(command, of_checkout, True)
        command.run()
    assert folders[:2] == [str(ROOT / "build" / "checkout")] * 2 and not Path(folders[2]).is_absolute()


def test_the_record_of_a_build_names_sources_flags_and_architectures(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(*architectures: str) -> str:
        found: str = build.built_from(build.Cuda("nvcc", Path(), Path(), architectures))
        return found

    first = record("80", "90a")
    assert first == record("80", "90a") != record("80") and build.built_from(None) not in (first, record("80"))
    monkeypatch.setattr(build, "NVCC_FLAGS", [*build.NVCC_FLAGS, "-g"])
    assert record("80", "90a") != first
    monkeypatch.setattr(build, "source_digest", lambda _: "other")
    assert record("80", "90a").startswith("other")


def test_files_with_their_own_instruction_set_define_no_weak_symbol(
    build: ModuleType, isolated: tuple[Path, str], source_copy: Path
) -> None:
    """The linker may keep a weak symbol that was compiled with AVX-512 for all callers, which crashes older CPUs."""
    objects = [path for isa in ("avx2", "avx512") for path in source_copy.glob(f"build/temp.*/**/*.{isa}.o")]
    assert len(objects) == (8 if build.X86 else 0)
    for path in objects:
        listed = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        weak = [line for line in listed.splitlines() if re.search(r"^[0-9a-f]+ [WVu] ", line)]
        assert not weak, f"{path.name}: {weak[:5]}"
