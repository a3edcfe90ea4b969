"""Files that torch.save wrote, read without running their pickles and with the checksums of their archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch


def read_torch(path: str | Path) -> Any:
    """Read a file of tensors on the CPU. Files of torch before 1.6 are no archives and have no checksums.

    Raises:
        ValueError: the archive is damaged.
        Exception: anything else that torch.load raises; a damaged or missing file can raise anything.
    """
    if is_zipfile(path):
        with ZipFile(path) as archive:
            broken = archive.testzip()  # torch.load does not compare the checksums
        if broken is not None:
            raise ValueError(f"{path} is damaged: the checksum of {broken} does not fit")
    return torch.load(path, map_location="cpu", weights_only=True)


def read_torchvision(pretrained: str, known: Any) -> Any:
    """Read a local file of tensors, or torchvision weights by their name.

    Args:
        pretrained: a file, or a name.
        known: torchvision's enumeration of weights.

    Raises:
        Exception: as `read_torch`; or there are no such weights.
    """
    if Path(pretrained).is_file():
        return read_torch(pretrained)
    options = {"map_location": "cpu", "weights_only": True}  # torchvision's default runs any pickle
    return known.verify(pretrained).get_state_dict(progress=True, check_hash=True, **options)
