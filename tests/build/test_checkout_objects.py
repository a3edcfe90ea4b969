"""The build of a wheel takes an object of the checkout only where it would make the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkout_objects import kept_object

BUILD = r"""# pybind11 3.1.0
rule cxx
  command = c++ -O3 '-DHYSTAR_FAST_VERSION="1"' -I/checkout $own -MD -MF $out.d -c $in -o $out
build op/cpu/op.cpp.o: cxx /checkout/op.cpp
  own = -mavx2
build op/cuda/bind.cpp.o: cxx /checkout/bind.cpp
  own =
"""


@pytest.mark.parametrize(
    ("before", "after", "is_kept"),
    [
        ("", "", True),
        ("-I/checkout", "-I/else -DHYSTAR_FAST_CUDA", True),
        ("c++ -O3", "/wrapper -O3", True),
        ("pybind11 3.1.0", "pybind11 3.1.1", False),
        ("-O3", "-O2", False),
        ('VERSION="1"', 'VERSION="2"', False),
        ("-mavx2", "-mavx512f", False),
        ("op/cpu/op", "op/cpu/other", False),
        ("# pybind11 3.1.0\n", "", False),
    ],
)
def test_an_object_is_kept_if_what_decides_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, is_kept: bool
) -> None:
    checkout, wheel = tmp_path / "checkout", tmp_path / "wheel"
    for folder, text in ((checkout, BUILD), (wheel, BUILD.replace(before, after) if before else BUILD)):
        folder.mkdir()
        (folder / "build.ninja").write_text(text)
    for name in ("op/cpu/op.cpp.o", "op/cuda/bind.cpp.o"):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).touch()
    monkeypatch.chdir(wheel)
    assert kept_object(checkout, "c++", "op/cpu/op.cpp.o") == (checkout / "op/cpu/op.cpp.o" if is_kept else None)
    assert kept_object(checkout, "clang++", "op/cpu/op.cpp.o") is None
    assert kept_object(checkout, "c++", "op/cuda/bind.cpp.o") is None  # it sees whether there is CUDA
