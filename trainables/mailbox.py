"""Where a gang leaves its results and waits for leave to go on.

In a module of its own that imports nothing else of ours: a process is started for it with every gang.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray


@ray.remote(num_cpus=0)
class Mailbox:
    """Where a gang leaves its results and waits for leave to go on."""

    def __init__(self) -> None:
        self._results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._leave: asyncio.Queue[bool] = asyncio.Queue()
        self._holdings: dict[int, dict[str, Any]] = {}
        self._notes: list[dict[str, str]] = []

    async def enrol(self, rank: int, held: dict[str, Any]) -> None:
        """Say what a worker holds."""
        self._holdings[rank] = held

    async def holdings(self) -> list[dict[str, Any]]:
        """What all workers hold, by rank."""
        return [self._holdings[rank] for rank in sorted(self._holdings)]

    async def note(self, note: dict[str, str]) -> None:
        """Say why a worker ends."""
        self._notes.append(note)

    async def notes(self) -> list[dict[str, str]]:
        """Why workers have ended."""
        return self._notes

    async def put(self, result: dict[str, Any]) -> None:
        """Leave a result."""
        await self._results.put(result)

    async def take(self) -> dict[str, Any]:
        """Wait for the next result."""
        return await self._results.get()

    async def grant(self, leave: bool) -> None:
        """Say whether the gang goes on."""
        await self._leave.put(leave)

    async def may_go_on(self) -> bool:
        """Wait for leave to compute one more epoch; False ends the gang."""
        return await self._leave.get()
