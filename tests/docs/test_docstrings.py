"""Every doctest runs, and the docstring of every public name has a first sentence and a doctest."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

import hystar_fast

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(hystar_fast.__path__, "hystar_fast.")
    if not name.startswith("hystar_fast._C") and not name.endswith("__main__")
)
FUNCTIONS_AND_CLASSES = sorted(set(hystar_fast.__all__) - {"__version__", "ref"})


@pytest.mark.parametrize("name", MODULES)
def test_the_doctests_of_a_module_pass(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # an example that writes, writes here
    module = import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples of {name} failed (printed above)"


@pytest.mark.parametrize("name", FUNCTIONS_AND_CLASSES)
def test_a_public_name_has_a_sentence_and_a_doctest(name: str) -> None:
    documentation = inspect.getdoc(getattr(hystar_fast, name)) or ""
    first = documentation.split("\n")[0]
    assert first.endswith("."), f"{name}: the first line of the docstring is a sentence"
    assert ">>>" in documentation, f"{name}: the docstring has no example"
