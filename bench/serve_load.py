"""The load of bench_serve.py, a process of its own: python bench/serve_load.py < plan.json > result.json.

The plan has "port", "pid" of the server, "bodies" (files whose content is a whole request), "clients", "seconds", and
"rate": 0 lets each client send its next request when it has the answer to the last; otherwise so many requests a second
are sent, whether or not they are answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

WARM_UP = 1.5  # seconds


@dataclass
class Measured:
    """Answers: status, or "lost" -> number, and the seconds of those with status 200."""

    codes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    unsent: int = 0


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process with all of its threads."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Load:
    """Connections to a server that send the bodies of a plan."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.port, self.clients, self.rate = plan["port"], plan["clients"], plan["rate"]
        self.bodies = [Path(path).read_bytes() for path in plan["bodies"]]
        self.numbers = count()
        self.measured = Measured()

    async def one(self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Send one request and read its answer."""
        reader, writer = connection
        start = time.perf_counter()
        writer.write(self.bodies[next(self.numbers) % len(self.bodies)])
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        content = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
        code = head[9:12].decode()
        self.measured.codes[code] += 1
        if code == "200":
            self.measured.seconds.append(time.perf_counter() - start)
            self.measured.batches.append(json.loads(content)["timing"]["batch"])

    async def run(self, seconds: float) -> None:
        """Load the server for a time."""
        end = time.perf_counter() + seconds
        if self.rate:
            await self._at_a_rate(end)
        else:
            await asyncio.gather(*(self._in_turn(end) for _ in range(self.clients)))

    async def _in_turn(self, end: float) -> None:
        connection = await asyncio.open_connection("127.0.0.1", self.port)
        while time.perf_counter() < end:
            await self.one(connection)
        connection[1].close()

    async def _at_a_rate(self, end: float) -> None:
        free, tasks, start = list[Any](), set[asyncio.Task[None]](), time.perf_counter()

        async def use(connection: Any) -> None:
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", self.port)
                await self.one(connection)
                free.append(connection)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.measured.codes["lost"] += 1

        for number in count():
            due = start + number / self.rate
            if due > end:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(tasks) >= self.clients:
                self.measured.unsent += 1
                continue
            task = asyncio.create_task(use(free.pop() if free else None))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        for _, writer in free:
            writer.close()


async def main() -> None:
    plan = json.load(sys.stdin)
    load, pid = Load(plan), plan["pid"]
    if not load.rate:
        await load.run(WARM_UP)
    load.measured = Measured()
    cpu, start = cpu_seconds(pid), time.perf_counter()
    await load.run(plan["seconds"])
    spent, wall, measured = cpu_seconds(pid) - cpu, time.perf_counter() - start, load.measured
    json.dump({"cpu": spent, "wall": wall, "memory": memory(pid), **vars(measured)}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
