"""The lines of a Triton kernel in TTGIR, as a tree."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

NAME = re.compile(r"%[\w.-]+(?:#\d+)?")
LOCATION = re.compile(r" loc\((?:[^()]|\([^()]*\))*\)")


@dataclass
class Op:
    """A line of the TTGIR, and the lines in its regions."""

    line: int
    text: str
    name: str
    results: list[str]
    operands: list[str]
    regions: list[list[Op]] = field(default_factory=list)


def parse(text: str) -> tuple[dict[str, str], list[Op]]:
    """Return the arguments of the kernel with their types, and its lines."""
    header = re.search(r"tt\.func public @\w+\((.*)\) attributes", text)
    assert header is not None
    stack: list[list[Op]] = [[]]
    for number, line in enumerate(text[header.end() :].splitlines(), text[: header.end()].count("\n") + 1):
        line = LOCATION.sub("", line).strip()
        if line.startswith("}"):
            if len(stack) == 1:
                break
            stack.pop()
            if line.startswith("} else"):
                stack.append([])
                stack[-2][-1].regions.append(stack[-1])
            continue
        if not line or line.startswith(("^", "{")):
            continue
        left, found, right = line.partition(" = ")
        if not (found and left.startswith("%")):
            left, right = "", line
        name = right.split("(")[0].split(" ")[0].strip('"')
        base, _, count = left.partition(":")
        results = [f"{base}#{i}" for i in range(int(count))] if count else NAME.findall(left)
        op = Op(number, line, name, results, NAME.findall(right))
        stack[-1].append(op)
        if line.endswith("{"):
            stack.append([])
            op.regions.append(stack[-1])
    return dict(re.findall(r"(%[\w.]+): (\S+)", header[1])), stack[0]
