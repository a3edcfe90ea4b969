"""Build MA-SBIR, of categories or fine-grained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hystar_fast.methods.ma_sbir.fine_method import FineMASBIR
from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.methods.ma_sbir.ma_sbir_method import MASBIR
from hystar_fast.models.backbone_identity import backbone_fingerprints
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.config import HystarConfig


def create_ma_sbir(config: HystarConfig, settings: Mapping[str, Any]) -> MASBIR:
    """Build MA-SBIR from settings, or from those of a saved one.

    Args:
        config: names the backbone.
        settings: of `MASBIRConfig`; of a saved one also "styles", of its pictures.

    Raises:
        ValueError: a setting is wrong, or a backbone whose towers cannot be trained.
    """
    values = dict(settings)
    styles = str(values.pop("styles", ""))
    own = MASBIRConfig.from_dict(values)
    backbone = create_backbone(config)
    fingerprints = backbone_fingerprints(backbone)  # of the weights before training
    kind = FineMASBIR if own.fine else MASBIR
    made = kind(own, backbone, tuple(styles.split("\n")) if styles else ())
    made.config, made.fingerprints = config, fingerprints
    return made
