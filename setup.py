"""Build the extension hystar_fast._C: C++, and CUDA if nvcc works. It does not use libtorch.

The kernels take pointers, sizes and strides, so one build works with every torch version, and a build needs only
setuptools, pybind11 and ninja. A missing compiler never stops an installation. Without nvcc, or with one that cannot
compile, the extension is for the CPU only. Without a C++ compiler there is no extension, and the ops use plain torch.
The build says so in one line, and so does ``hystar-fast info``. An error in our own sources stops the installation.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# The last one is also shipped as PTX, for later GPUs. 90a instead of 90 lets the code use wgmma.
# HYSTAR_FAST_CUDA_ARCHITECTURES="90a" builds for that GPU only, in a quarter of the time.
CUDA_ARCHITECTURES = ("80", "90a", "100", "120")
CSRC = ROOT / "csrc"
SOURCES = {".cpp", ".h", ".cu", ".cuh"}
# Where the objects of a checkout stay, with what ptxas said of each kernel; a wheel is built in a folder of its own.
CHECKOUT_BUILD = ROOT / "build" / "checkout"
X86 = platform.machine().lower() in ("x86_64", "amd64")
# A file *_per_isa.cpp is compiled once for each of these instruction sets, which csrc/cpu/instruction_sets.h lists too.
# Every other file is compiled for any CPU, and chooses one of them at run time.
PER_ISA = "_per_isa"
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
# No -ffast-math, because the code relies on +inf and NaN. The two -fno flags respect both, and let loops with selects
# vectorise.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-pthread"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xfatbin", "-compress-all", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit whose nvcc has compiled a trial kernel."""

    nvcc: str
    include: Path
    library: Path
    architectures: tuple[str, ...]

    @property
    def gencode(self) -> list[str]:
        flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in self.architectures]
        newest = self.architectures[-1].rstrip("a")  # PTX of 90a would run on 90a alone
        return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def run(command: list[str]) -> tuple[bool, str]:
    """Run a command, and return whether it succeeded and all that it printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        return False, str(error)
    return done.returncode == 0, done.stdout + done.stderr


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def compiles(command: list[str], suffix: str, source: str) -> tuple[bool, str]:
    """Compile `source`, and return whether that succeeded and what the compiler printed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trial" + suffix)
        path.write_text(source)
        return run([*command, "-c", str(path), "-o", str(Path(folder, "trial.o"))])


def find_cxx() -> tuple[list[str] | None, str]:
    """Return the C++ compiler as a command (from the variable CXX, if set), or None and the reason."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = named or next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if not found:
        return None, "no C++ compiler on PATH"
    include = sysconfig.get_paths()["include"]
    ok, output = compiles([*found, *CXX_FLAGS, f"-I{include}"], ".cpp", "#include <Python.h>\n#include <vector>\n")
    return (found, "") if ok else (None, f"{found[0]} cannot compile a C++17 file with Python.h: {last_line(output)}")


def find_nvcc() -> str | None:
    """Return the nvcc in CUDA_HOME, or else the one on PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return (shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None) or shutil.which("nvcc")


def find_cuda() -> tuple[Cuda | None, str]:
    """Return the toolkit of nvcc, after a trial compilation, or None and the reason."""
    nvcc = find_nvcc()
    if nvcc is None:
        return None, "no nvcc on PATH or in CUDA_HOME"
    # nvcc may be a wrapper script, so only a dry run tells where its toolkit is
    _, dryrun = run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull])
    top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    if top is None:
        return None, f"{nvcc} does not work: {last_line(dryrun)}"
    root = Path(top[1].strip()).resolve()
    places = [root, *sorted(root.glob(f"targets/{platform.machine()}-linux"))]
    include = next((p / "include" for p in places if (p / "include/cuda_runtime_api.h").exists()), None)
    libraries = [p / name for p in places for name in ("lib64", "lib")]
    library = next((p / "libcudart_static.a" for p in libraries if (p / "libcudart_static.a").exists()), None)
    if include is None or library is None:
        return None, f"the toolkit at {root} lacks {'cuda_runtime_api.h' if include is None else 'libcudart_static.a'}"
    _, listed = run([nvcc, "--list-gpu-arch"])  # lists compute_90 for 90a too
    known = set(re.findall(r"compute_(\d+)", listed))
    wanted = os.environ.get("HYSTAR_FAST_CUDA_ARCHITECTURES", "").replace(",", " ").split() or CUDA_ARCHITECTURES
    architectures = tuple(a for a in wanted if a.rstrip("a") in known)
    if not architectures:
        return None, f"{nvcc} knows none of the architectures {', '.join(wanted)}"
    cuda = Cuda(nvcc, include, library, architectures)
    trial = "#include <cuda_runtime.h>\n__global__ void trial() {}\n"
    ok, output = compiles([nvcc, *NVCC_FLAGS, cuda.gencode[0]], ".cu", trial)
    return (cuda, "") if ok else (None, f"{nvcc} cannot compile a trial kernel: {last_line(output)}")


def source_digest(folder: Path) -> str:
    """Return a digest of the sources; hystar_fast/ops/native.py compares it with those of a checkout."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SOURCES):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def built_from(cuda: Cuda | None) -> str:
    """Return what the objects of a build depend on: the sources, the flags of nvcc and the architectures."""
    return "\n".join([source_digest(CSRC), *(NVCC_FLAGS + cuda.gencode if cuda else [])])


def compilations(source: Path) -> dict[str, list[str]]:
    """Return the flags of every object that is compiled from a file in csrc/, by the name of the object."""
    name = source.relative_to(CSRC).as_posix()
    if source.stem.endswith(PER_ISA):
        sets = INSTRUCTION_SETS if X86 else ["baseline"]
        return {f"{name}.{isa}.o": [f"-DHYSTAR_ISA={isa}", *INSTRUCTION_SETS[isa]] for isa in sets}
    # the digest goes into one file, because a changed flag compiles a file again
    told = name == "bindings.cpp"
    return {f"{name}.o": [f'-DHYSTAR_FAST_SOURCES=\\"{source_digest(CSRC)}\\"'] if told else []}


def ninja_file(cxx: list[str], cuda: Cuda | None, reason: str, python: list[str], version: str, target: Path) -> str:
    """Return the build file of ninja: the objects, one shared library, and the headers that each object depends on.

    Only what binds to Python is given the folders of its headers: they are others in every environment that pip builds
    in, and a changed flag compiles a file again.
    """
    literal = reason.replace("\\", "/").replace('"', "'")  # without characters that a C string would have to escape
    defines = [f'-DHYSTAR_FAST_VERSION="{version}"', f'-DHYSTAR_FAST_CUDA_REASON="{literal}"']
    include_flags, python_flags = [f"-I{CSRC}"], [f"-I{path}" for path in python]
    if cuda is not None:
        defines += ["-DHYSTAR_FAST_CUDA", f'-DHYSTAR_FAST_CUDA_ARCHITECTURES="{" ".join(cuda.architectures)}"']
        include_flags.append(f"-I{cuda.include}")
    libraries = ["-pthread", "-ldl"]
    if cuda is not None:
        libraries += [str(cuda.library), "-lpthread", "-lrt", "-Wl,--exclude-libs,ALL"]

    def command(*words: str) -> str:
        return shlex.join(words).replace("$", "$$")

    def path(name: Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(name))

    compile_cxx = command(*cxx, *CXX_FLAGS, *defines, *include_flags)
    compile_cu = command(cuda.nvcc, *NVCC_FLAGS, "--threads=0", *cuda.gencode, *defines, *include_flags) if cuda else ""
    one_file = "-MD -MF $out.d -c $in -o $out"
    kept = "-Xptxas=-v >$out.txt 2>&1 || { cat $out.txt; exit 1; }"  # the tests read the registers and spills there
    tracked = "\n  depfile = $out.d\n  deps = gcc\n  description = $in"
    lines = [
        f"rule cxx\n  command = {compile_cxx} $own {one_file}{tracked}",
        f"rule nvcc\n  command = {f'{compile_cu} {one_file} {kept}' if cuda else 'false'}{tracked}",
        f"rule link\n  command = {command(*cxx)} -shared -s $in -o $out {command(*libraries)}\n  description = $out",
    ]
    objects = []
    for source in [*sorted(CSRC.rglob("*.cu") if cuda else []), *sorted(CSRC.rglob("*.cpp"))]:  # the slowest first
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        binds = rule == "cxx" and not source.stem.endswith(PER_ISA)
        for name, flags in compilations(source).items():
            own = " ".join([*flags, command(*python_flags)] if binds else flags)
            objects.append(path(Path(name)))
            lines.append(f"build {objects[-1]}: {rule} {path(source)}\n  own = {own}")
    lines.append(f"build {path(target)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


class BuildExtension(build_ext):
    """Compile with ninja. Without a compiler the installation succeeds, without the extension."""

    def run(self) -> None:
        if self.inplace or self.editable_mode:
            self.build_temp = str(CHECKOUT_BUILD)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        import ninja
        import pybind11

        target, folder = Path(self.get_ext_fullpath(ext.name)).resolve(), Path(self.build_temp).resolve()
        cxx, problem = find_cxx()
        if cxx is None:
            target.unlink(missing_ok=True)  # from an earlier build: it must not get into the wheel
            print(f"hystar_fast: no extension ({problem}); the ops will run in plain torch", flush=True)
            return
        cuda, reason = find_cuda()
        what = f"CUDA for sm_{', sm_'.join(cuda.architectures)}" if cuda else f"CPU only: {reason}"
        print(f"hystar_fast: building the extension, {what}", flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        python = [pybind11.get_include(), sysconfig.get_paths()["include"]]
        version = self.distribution.get_version()
        rules = ninja_file(cxx, cuda, reason, python, version, target)
        (folder / "build.ninja").write_text(f"# pybind11 {pybind11.__version__}\n{rules}")
        record = folder / "built_from.txt"
        record.unlink(missing_ok=True)
        ok = subprocess.call([str(Path(ninja.BIN_DIR, "ninja")), "-C", str(folder)], stdout=sys.stdout) == 0
        if not ok:
            raise SystemExit("hystar_fast: the extension did not compile (see above)")
        record.write_text(built_from(cuda))


if __name__ == "__main__":
    setup(
        packages=[
            *find_packages(str(ROOT), include=["hystar_fast", "hystar_fast.*"]),
            "hystar_fast.kernels",
            *(f"hystar_fast.kernels.{name}" for name in find_packages(str(ROOT / "kernels"))),
        ],
        package_dir={"hystar_fast": "hystar_fast", "hystar_fast.kernels": "kernels"},
        # optional: a missing extension is no error when the build copies it into place
        ext_modules=[Extension("hystar_fast._C", sources=[], optional=True)],
        cmdclass={"build_ext": BuildExtension},
    )
