"""docs/experiments.md lists every setting of the experiments with its default, and every method."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from hystar_fast.experiments.experiment_settings import KEYS
from hystar_fast.methods.suite import METHODS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")


def test_every_key_is_listed_once_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| `(.*?)` \| (.+) \|$", PAGE, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(KEYS)
    for name, default, meaning in rows:
        assert tomllib.loads(f"value = {default}")["value"] == KEYS[name].shown_default, name
        assert len(meaning) > 5


def test_every_method_is_listed() -> None:
    table = re.findall(r"^\| (`.+?`) \|", PAGE.partition("## Methods")[2].partition("## Compare")[0], re.MULTILINE)
    assert {name for row in table for name in re.findall(r"`(\w+)`", row)} == set(METHODS)


def test_it_says_what_the_paper_leaves_open_on_classes() -> None:
    assert "### What the paper leaves open for training on classes\n" in PAGE
