"""A C++ compiler for the build of a wheel that takes objects out of the checkout's build, where it would make the same.

``python checkout_objects.py <folder of the checkout's build> <C++ compiler> <its arguments>`` runs in the folder of a
build, in an interpreter without packages. Two builds make the same object if they have the same compiler, flags and
version of pybind11, and their sources are the same, which `write_compiler` has looked at.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType

OTHERWISE = ("-I", "-DHYSTAR_FAST_CUDA")  # flags of places, and of CUDA, which decide nothing but in these files:
OF_CUDA = ("bindings.cpp", "cuda/bind.cpp")  # and bindings.h, which declares more with CUDA


def write_compiler(path: Path, setup: ModuleType) -> str:
    """Write the compiler, and return what the variable CXX must be: nothing if the checkout's build is of no use."""
    folder, real = setup.CHECKOUT_BUILD, next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    record = folder / "built_from.txt"
    if real is None or not record.exists() or record.read_text().splitlines()[0] != setup.source_digest(setup.CSRC):
        return ""
    sources = (path for path in setup.CSRC.rglob("*") if path.suffix in setup.SOURCES)
    if any(
        "HYSTAR_FAST_CUDA" in path.read_text() for path in sources if not str(path).endswith((*OF_CUDA, "bindings.h"))
    ):
        return ""
    command = shlex.join([sys.executable, "-IS", __file__, str(folder), real])
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)
    return shlex.quote(str(path))


def read_build(folder: Path) -> tuple[str, list[str], dict[str, str]]:
    """Return the line with pybind11's version, the compiler's command, and each object's own flags, of a build file."""
    text = (folder / "build.ninja").read_text()
    found = re.search(r"^rule cxx\n  command = (.+) \$own ", text, re.MULTILINE)
    words = shlex.split(found[1].replace("$$", "$")) if found else []
    own = dict(re.findall(r"^build (\S+): cxx .+\n  own = (.*)$", text, re.MULTILINE))
    return text.splitlines()[0], [word for word in words if not word.startswith(OTHERWISE)], own


def kept_object(folder: Path, compiler: str, name: str) -> Path | None:
    """Return the checkout's object of this name, if the build in this folder would make the same."""
    if name.endswith(tuple(f"{source}.o" for source in OF_CUDA)) or not Path("build.ninja").exists():
        return None
    (version, command, own), (kept_version, kept_command, kept_own) = read_build(Path()), read_build(folder)
    is_same = version.startswith("# pybind11 ") and version == kept_version and kept_command[:1] == [compiler]
    is_same = is_same and command[1:] == kept_command[1:] and name in own and own[name] == kept_own.get(name)
    return folder / name if is_same and (folder / name).exists() else None


def main(folder: str, compiler: str, *words: str) -> None:
    name = words[words.index("-o") + 1] if "-c" in words else ""
    kept = kept_object(Path(folder), compiler, name)
    if kept is None:
        os.execvp(compiler, [compiler, *words])
    shutil.copyfile(kept, name)
    Path(words[words.index("-MF") + 1]).write_text(f"{shlex.quote(name)}:\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
