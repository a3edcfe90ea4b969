"""The pictures of the benchmarks: what they show fits a screen, and every method has one colour."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import report_pictures  # noqa: E402

COMMITTED = json.loads((ROOT / "bench/results/intel-r-xeon-r-processor-2-threads.json").read_text())


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return every figure that is drawn."""
    found: list[Any] = []
    figure_of = report_pictures.figure_of
    monkeypatch.setattr(report_pictures, "figure_of", lambda *size: found.append(figure_of(*size)) or found[-1])
    return found


def results(rows: list[tuple[str, str, float]], op: str = "sinkhorn") -> dict[str, Any]:
    common = {"op": op, "dtype": "float32", "mode": "forward", "extra": {}}
    return {
        "device": "cpu",
        "rows": [{**common, "case": case, "provider": name, "median_ms": time} for case, name, time in rows],
    }


def test_the_committed_picture_fits_a_screen_with_a_panel_for_each_op(tmp_path, figures):
    report_pictures.ratios(COMMITTED, tmp_path / "ratios.png")
    with Image.open(tmp_path / "ratios.png") as picture:
        assert 830 * picture.height / picture.width < 950, "too high in a column of 830 pixels"
    (figure,) = figures
    ops = [part.get_suptitle().partition(":")[0] for part in figure.subfigs]
    assert sorted(ops) == ["model", "perturbed_topk", "sinkhorn", "style_nce", "svd_linear"]
    for part in figure.subfigs:
        (axes,) = part.axes
        numbers = [float(tick.get_text().removesuffix("×")) for tick in axes.get_xticklabels()]
        assert numbers == list(axes.get_xticks()) and len(numbers) >= 2
        box = axes.get_tightbbox().transformed(figure.dpi_scale_trans.inverted())
        assert box.x0 >= 0 and box.x1 <= figure.get_figwidth() + 0.02, "a label is cut off"


def test_a_method_has_one_colour_in_every_panel_and_no_two_share_it_in_one(tmp_path, figures):
    report_pictures.ratios(COMMITTED, tmp_path / "ratios.png")
    seen: dict[str, tuple[str, str]] = {}
    for part in figures[0].subfigs:
        (legend,) = part.legends
        look = {
            text.get_text(): (handle.get_color(), handle.get_marker())
            for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
        }
        for k in (0, 1):
            assert len({one[k] for one in look.values()}) == len(look)
        assert all(seen.setdefault(name, one) == one for name, one in look.items())
    assert len(seen) > 10


def test_many_cases_are_limited_to_those_with_goals_and_said_so(tmp_path, figures):
    rows = [(f"case {i}", name, time) for i in range(40) for name, time in (("hystar_fast", 1.0), ("POT", 2.0 + i))]
    rows += [("16 of 256x256", "hystar_fast", 1.0), ("16 of 256x256", "naive torch", 0.25)]
    report_pictures.ratios(results(rows), tmp_path / "ratios.png")
    (part,) = figures[0].subfigs
    labels = [tick.get_text() for tick in part.axes[0].get_yticklabels()]
    assert labels[0] == "16 of 256x256, f32 fwd" and len(labels) == 7
    assert part.get_suptitle() == "sinkhorn: from 0.25× (naive torch) to 7.0× (POT) (7 of 41 cases)"


def test_the_roofline_is_drawn_where_ceilings_were_measured(tmp_path):
    assert report_pictures.roofline(COMMITTED, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
    assert not report_pictures.roofline(results([("a", "hystar_fast", 1.0)]), tmp_path / "none.png")
