"""Save and load trained methods: a folder with the trained parameters and a description of the method.

Hystar and its static form are written by :meth:`Hystar.save_pretrained`. Every other method, and Hystar with shuffled
styles, has the same two files,
``adapter.safetensors`` and ``config.json``, in another format: the description also names the method and its settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method
from hystar_fast.models.adapter_format import (
    DELTA_FORMAT,
    FORMAT,
    FORMATS,
    METHOD_FORMAT,
    change_description,
    check_tensors,
    read_adapter,
    write_adapter,
)
from hystar_fast.models.backbone_identity import check_fingerprints
from hystar_fast.models.backbones import move_weights
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar, weightless

STATIC, MEANS = "static", "means"


def save_method(method: Method, directory: str | Path) -> None:
    """Write the trained parameters of a method into a folder, each file in one move; the backbone is not written.

    Args:
        method: built by :func:`hystar_fast.methods.suite.create_method`.
        directory: the folder to write; it is created if needed.

    Raises:
        ValueError: the method has nothing trained and no means, or no configuration, or `directory` is a file.
    """
    if isinstance(method, HystarMethod) and not method.settings:
        method.model.save_pretrained(directory)
        if method.style_means:
            change_description(directory, {MEANS: _listed(method)})
        return
    tensors = method.trained_parameters()
    if not tensors and not method.style_means:
        raise ValueError(f"method must have trainable parameters to save, got {method.name!r}")
    write_adapter(directory, _described(method, _config_of(method)), tensors, kind=METHOD_FORMAT)


def save_delta(method: Method, directory: str | Path) -> None:
    """Write a method that trained weights of its backbone as their difference from the released ones, in bfloat16.

    The file has half the size of that of :func:`save_method`, and is for serving: a weight w + d is off by at most
    2⁻⁹ |d|, so that embeddings are those of the trained method but for their last digits. Continue a training from its
    checkpoint. Every weight changes in training, so that a file without those that are equal would not be smaller.

    Args:
        method: as of :func:`save_method`; its backbone is built again, to subtract its weights.
        directory: the folder to write; it is created if needed.

    Raises:
        ValueError: the method trained no weight of its backbone, or as of :func:`save_method`.
    """
    names = method.tuned_weights()
    if not names:
        raise ValueError(
            f"method must have trained weights of its backbone to be saved as their difference, got {method.name!r}"
        )
    config = _config_of(method)
    released = create_method(method.name, config, settings=method.settings)
    check_fingerprints(method.fingerprints, released.fingerprints, config, directory)
    before = released.trained_parameters()
    tensors = {
        name: (value.detach().cpu() - before[name].detach().cpu()).bfloat16() if name in names else value
        for name, value in method.trained_parameters().items()
    }
    write_adapter(directory, _described(method, config), tensors, kind=DELTA_FORMAT)


def load_method(directory: str | Path, **changes: Any) -> Method:
    """Rebuild a trained method from its folder: the backbone of its configuration, and its trained parameters.

    Args:
        directory: written by :func:`save_method`, :func:`save_delta` or :meth:`Hystar.save_pretrained`.
        changes: fields of the configuration to replace, such as ``pretrained`` if the weights have moved.

    Returns:
        The method, in evaluation mode.

    Raises:
        ValueError: a file is missing, corrupt or of another format, names an unknown method or settings, does not fit
            the backbone, or was trained on other weights.
    """
    description, tensors = read_adapter(directory, kinds=FORMATS)
    means = _means(description, directory)
    if description["format"] == FORMAT:
        return _hystar(directory, changes, means)
    config = move_weights(HystarConfig.from_dict(description["config"]), **changes)
    name, settings = description.get("method"), description.get("settings")
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise ValueError(f'the description in {directory} must hold "method" and "settings"')
    try:
        with weightless(config) as sizes:  # before anything is read or factored
            needed = create_method(name, sizes, settings=settings).trained_parameters()
        check_tensors(tensors, needed, f"backbone {config.backbone!r}")
        method = create_method(name, config, settings=settings)
    except TypeError as error:
        raise ValueError(f"settings must be those of {name!r}, got {settings} in {directory}") from error
    check_fingerprints(description["fingerprints"], method.fingerprints, config, directory)
    needed = method.trained_parameters()
    check_tensors(tensors, needed)
    with torch.no_grad():
        differences = method.tuned_weights() if description["format"] == DELTA_FORMAT else frozenset()
        for key, parameter in needed.items():
            if key in differences:
                parameter.add_(tensors[key].to(parameter))
            else:
                parameter.copy_(tensors[key])
    method.style_means = means
    method.train(False)
    return method


def _config_of(method: Method) -> HystarConfig:
    if method.config is None:
        raise ValueError(
            f"method must be built by create_method to be saved, got {method.name!r} without a configuration"
        )
    return method.config


def _described(method: Method, config: HystarConfig) -> dict[str, Any]:
    return {
        "method": method.name,
        "settings": dict(method.settings),
        "config": config.to_dict(),
        "fingerprints": dict(method.fingerprints),
        **({MEANS: _listed(method)} if method.style_means else {}),
    }


def _listed(method: Method) -> dict[str, list[float]]:
    """Return the means of the styles as JSON holds them: every float32 exactly."""
    return {style: mean.float().tolist() for style, mean in method.style_means.items()}


def _means(description: Mapping[str, Any], directory: str | Path) -> dict[str, Tensor]:
    listed = description.get(MEANS, {})
    try:
        means = {str(style): torch.tensor(values, dtype=torch.float32) for style, values in listed.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f'"{MEANS}" in {directory} must be a list of numbers for each style: {error}') from error
    shapes = {tuple(mean.shape) for mean in means.values()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f'"{MEANS}" in {directory} must be vectors of one length, got shapes {sorted(shapes)}')
    return means


def _hystar(directory: str | Path, changes: Mapping[str, Any], means: Mapping[str, Tensor]) -> HystarMethod:
    method = HystarMethod(Hystar.from_pretrained(directory, **changes))
    if method.model.extractor is None:
        method.name = STATIC
    method.style_means = means
    method.train(False)
    return method
