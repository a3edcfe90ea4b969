"""Measure MA-SBIR on the embedded drawings beside the frozen backbone, mean shift, LoRA and Hystar.

    python bench/ma_sbir_demo.py                     # three seeds: docs/results/ma_sbir.json, ma_sbir.md
    python bench/ma_sbir_demo.py --seeds 1 --steps 2 --output /tmp/demo

Every method is measured with its queries as they are ("original") and moved by means of training drawings ("mean
shift"); MA-SBIR also by the vectors that it learned ("converted"). Runs are kept in --runs; a second call makes only
what is missing or changed.
"""

from __future__ import annotations

from unseen_demo import Demo, beside, run_command

from hystar_fast.data.image_set import ImageSet
from hystar_fast.experiments.embedded_runs import chance
from hystar_fast.experiments.ma_sbir_runs import STYLES, ma_sbir_figures, ma_sbir_parts
from hystar_fast.methods.conversion import CONVERTED, MEAN_SHIFT
from hystar_fast.retrieval.evaluate import ORIGINAL

_CLIP_ALONE = tuple(f"ma_sbir.lambda_{name}=0.0" for name in ("sem", "mc", "rec", "ortho"))


def _chance(images: ImageSet) -> float:
    return chance(images, [record for style in STYLES for record in images.of_style(style)])


MA_SBIR_DEMO = Demo(
    name="ma_sbir",
    introduction=(
        "# MA-SBIR on the embedded drawings",
        "",
        "Outlines and black and white sketches find the pictures of their subgroup. `mAP@all` and `Prec@5:shortened`",
        "of the subgroup, `R@1` of the own concept. In `unseen` and `unseen-all` no subgroup was trained on; `test`",
        "has seen ones too. MA-SBIR trains on drawings and their names: no drawing is compared with a picture. In",
        "`unpaired=disjoint` no concept is both drawn and pictured; LoRA and Hystar train on pairs, and cannot. `clip`",
        "has no loss but L_clip.",
    ),
    ending=("[MA-SBIR](../ma_sbir.md) says what is compared.",),
    configs={
        "ma_sbir": ("ma-sbir-emoji", ()),
        "ma_sbir clip": ("ma-sbir-emoji", _CLIP_ALONE),
        "ma_sbir unpaired=disjoint": ("ma-sbir-emoji", ("ma_sbir.unpaired=disjoint",)),
        **beside(f"data.styles={[*STYLES]}".replace("'", '"')),
    },
    parts=ma_sbir_parts,
    chance=_chance,
    measure=ma_sbir_figures,
    figures=("mAP@all", "Prec@5:shortened", "R@1"),
    usual=ORIGINAL,
    own=CONVERTED,
    other_ways=(ORIGINAL, MEAN_SHIFT),
    draw=lambda method, parts, output: None,
)

if __name__ == "__main__":
    run_command(MA_SBIR_DEMO)
