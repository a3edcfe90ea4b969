"""Icon families: their splits, their rendering, and the rejection of other layouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hystar_fast.data.icons import SIDE
from hystar_fast.data.open import open_images
from hystar_fast.experiments.experiment_settings import Data, ExperimentSettings
from hystar_fast.experiments.splits import open_splits
from tests.support.cli import run

SUFFIXES = {"": "Regular", "bold": "Bold", "fill": "Fill"}


def family(root: Path, names: int = 40, **metadata: Any) -> Path:
    """Write a family of rectangles in three weights, with four icons that are hidden, unmatched or not SVG."""
    icons: dict[str, Any] = {}
    for number in range(names):
        for suffix, width in (("", 2), ("bold", 4), ("fill", 6)):
            body = f'<rect x="{number % 8}" y="{number // 8}" width="{width}" height="9" fill="currentColor"/>'
            icons[f"thing-{number}" + (f"-{suffix}" if suffix else "")] = {"body": body}
    icons |= {
        "lonely": {"body": "<path/>"},
        "old": {"body": "<path/>", "hidden": True},
        "old-bold": {"body": "<path/>"},
    }
    icons["torn-bold"] = {"body": "<rect"}
    icons["torn"] = icons["thing-0"]
    root.mkdir(exist_ok=True)
    (root / "icons.json").write_text(json.dumps({"prefix": "own", "icons": icons, "width": 16, "height": 16}))
    (root / "metadata.json").write_text(json.dumps({"suffixes": SUFFIXES, **metadata}))
    return root


def test_every_icon_of_several_weights_is_in_one_split(tmp_path):
    root = family(tmp_path / "own")
    seen: list[str] = []
    for split in ("train", "val", "test"):
        found = open_images(f"icons:{root}", split)
        assert (found.name, found.gallery_style, found.styles) == ("own", "regular", ("regular", "bold", "fill"))
        for style in found.styles[1:]:
            queries = [record.instance for record in found.of_style(style)]
            assert set(queries) <= {record.instance for record in found.of_style("regular")}
        seen += [record.instance for record in found.of_style("regular") if record.instance is not None]
    assert sorted(seen) == sorted([*(f"thing-{number}" for number in range(40)), "torn"])
    assert open_images(str(root), "test").of_style("bold")[0].caption == found.of_style("bold")[0].caption
    assert open_images(str(root), "test").has_splits
    assert open_images(str(root), "test", gallery_style="bold").gallery_style == "bold"


def test_icons_are_drawn_black_on_white_and_a_broken_one_is_an_error(tmp_path):
    found = open_images(f"icons:{family(tmp_path / 'own')}", "train")
    one = next(record for record in found.of_style("fill"))
    number = int(one.path.split("-")[1])
    pixels = np.asarray(found.read(one))
    assert pixels.shape == (SIDE, SIDE, 3)
    left, top, unit = number % 8, number // 8, SIDE // 16
    assert (pixels[unit * (top + 1), unit * (left + 1)] == 0).all() and (pixels[-1, -1] == 255).all()
    assert (pixels == 0).all(axis=2).sum() == 6 * 9 * unit * unit
    held_out = open_images(f"icons:{tmp_path}/own", "test")
    with pytest.raises(ValueError, match="an icon that can be rendered, got torn-bold"):
        held_out.read(next(record for record in held_out.records if record.path == "torn-bold"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "metadata.json").unlink(), "Expected: icons.json and metadata.json.*Found: icons.json"),
        (lambda root: (root / "metadata.json").write_text('{"suffixes": {"": "Regular"}}'), "fewer than two suffixes"),
        (lambda root: (root / "icons.json").write_text("{"), "JSONDecodeError"),
        (lambda root: (root / "icons.json").write_text('{"icons": {"a": {"body": ""}}}'), "no icon of the test split"),
    ],
)
def test_another_layout_is_rejected(tmp_path, spoil, message):
    root = family(tmp_path / "own")
    spoil(root)
    with pytest.raises(ValueError, match=message):
        open_images(f"icons:{root}")


def test_wrong_arguments_and_a_missing_renderer_are_reported(tmp_path, monkeypatch):
    root = family(tmp_path / "own")
    with pytest.raises(ValueError, match="gallery_style must be one of regular, bold, fill of own, got 'thin'"):
        open_images(f"icons:{root}", gallery_style="thin")
    with pytest.raises(ValueError, match="split must be train, val or test, got 'all'"):
        open_images(f"icons:{root}", "all")
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hystar-fast\[icons\]'"):
        open_images(f"icons:{root}")


def test_experiments_use_the_splits_of_the_family(tmp_path):
    source = f"icons:{family(tmp_path / 'own', names=100)}"
    parts = open_splits(ExperimentSettings(data=Data(source)))
    found = [{r.instance for r in part.records} for part in (parts.training, parts.validation, parts.test)]
    assert found[1] == {record.instance for record in open_images(source, "val").records}
    assert all(len(names) > 5 for names in found) and len(set.union(*found)) == sum(map(len, found))


def test_evaluation_counts_the_icon_that_cannot_be_rendered(tmp_path):
    root = family(tmp_path / "own", names=60)
    result = run("eval", "--data", f"icons:{root}", "--method", "pixels", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "torn-bold" in json.dumps(found["skipped"])
