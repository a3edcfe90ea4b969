"""Open the method of a command: an adapter, a method without training, or the frozen backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hystar_fast.cli.downloads import announce_downloads
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import UNTRAINED, create_method, tiny_config, uses_backbone
from hystar_fast.models.adapter_format import FORMAT, read_description
from hystar_fast.models.backbones import move_weights
from hystar_fast.models.config import HystarConfig
from hystar_fast.terminal.console import Console


def open_method(adapter: Path | None, name: str | None, changes: dict[str, Any], console: Console) -> Method:
    """Return the method of an adapter folder or, without one, the method without training of this name.

    Args:
        adapter: of a trained method.
        name: of a method without training; None for "frozen".
        changes: fields of the adapter's configuration, or of the tiny backbone's.
        console: announces downloads.

    Raises:
        ValueError: the adapter or the backbone cannot be used, or a method that must be trained.
    """
    if adapter is not None:
        description = read_description(adapter)
        config = move_weights(HystarConfig.from_dict(description["config"]), **changes)
        if uses_backbone(description.get("method", "hystar"), description.get("settings", {})):
            announce_downloads(config, console, styled=description["format"] == FORMAT)
        return load_method(adapter, **changes)
    name = "frozen" if name is None else name
    if name not in UNTRAINED:
        raise ValueError(
            f"method must be a method without training, {UNTRAINED}, got {name!r}; for a trained one give --adapter"
        )
    config = replace(tiny_config(), **changes)
    if name == "frozen":
        announce_downloads(config, console, styled=False)
    return create_method(name, config)
