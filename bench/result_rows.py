"""Rows of a results file: grouped by case, and compared with the ceilings of their machine."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Rows = list[dict[str, Any]]


def cases(rows: Rows) -> dict[tuple[str, str, str, str], dict[str, dict[str, Any]]]:
    """Group rows by (op, case, dtype, mode), then by provider; without the ceilings."""
    grouped: dict[tuple[str, str, str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["op"] != "ceiling":
            grouped[row["op"], row["case"], row["dtype"], row["mode"]][row["provider"]] = row
    return grouped


def ceilings(rows: Rows) -> tuple[float | None, dict[str, float]]:
    """Return copy bandwidth in GB/s, and GFLOP/s of the matrix product by dtype, as measured on this machine."""
    bandwidth, rates = None, {}
    for row in rows:
        if row["op"] == "ceiling" and row["case"] == "copy":
            bandwidth = row["extra"]["gib"] * 2**30 / 1e9 / row["median_ms"] * 1e3
        elif row["op"] == "ceiling":
            rates[row["dtype"]] = row["extra"]["gflop"] / row["median_ms"] * 1e3
    return bandwidth, rates


def demand(row: dict[str, Any]) -> tuple[float, float] | None:
    """Return the least GFLOP of matrix products and GiB that a row needs; None if its benchmark gives neither."""
    extra = row["extra"]
    return (extra.get("gflop", 0.0), extra.get("gib", 0.0)) if {"gflop", "gib"} & extra.keys() else None


def attained(row: dict[str, Any], bandwidth: float | None, rates: dict[str, float]) -> float | None:
    """Return the time that a row needs at the ceilings (the larger of its two), as a share of the time it took."""
    needed = demand(row)
    rate = rates.get(row["extra"].get("rate", row["dtype"]))
    if needed is None or bandwidth is None or (needed[0] and rate is None):
        return None
    floor = max(needed[0] / rate if rate else 0.0, needed[1] * 2**30 / 1e9 / bandwidth) * 1e3
    return floor / float(row["median_ms"])
