"""Who chooses a request's engines: the plan, or the reference scheduler by the queues of the moment."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from dualpath_model.errors import InputError
from dualpath_model.routing import LiveRoutes, PlanRoutes, Route


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as far as routing goes. ``name``: its own; ``prompt_tokens``, ``hit_tokens``: about."""

    name: str
    session: str
    prompt_tokens: int
    hit_tokens: int


class Chooser(Protocol):
    """Every request that was given to ``choose`` is given to ``finished``, whatever happened to it."""

    async def choose(self, asked: Asked) -> Route:
        """Return a request's route, perhaps after a wait. Raises InputError if it fits nowhere."""

    def prefilled(self, asked: Asked) -> None:
        """Its prefill is done."""

    def finished(self, asked: Asked) -> None:
        """It is over."""

    def lost(self, engine: str) -> None:
        """An engine cannot be reached."""

    def joined(self, engine: str) -> None:
        """It can be reached again."""


class ByPlan:
    """Sticky by session, at once."""

    def __init__(self, routes: PlanRoutes) -> None:
        """Take over the plan's routes."""
        self.routes = routes
        self._prefilling: dict[str, Route] = {}

    async def choose(self, asked: Asked) -> Route:
        """Return the session's route."""
        route = self.routes.route(asked.session, asked.prompt_tokens)
        self._prefilling[asked.name] = route
        return route

    def prefilled(self, asked: Asked) -> None:
        """Take its tokens off the prefill engine."""
        route = self._prefilling.pop(asked.name, None)
        if route is not None:
            self.routes.prefill_finished(route, asked.prompt_tokens)

    def finished(self, asked: Asked) -> None:
        """Forget it."""
        self.prefilled(asked)

    def lost(self, engine: str) -> None:
        """Give it nothing."""
        self.routes.lost.add(engine)

    def joined(self, engine: str) -> None:
        """Give it its sessions again."""
        self.routes.lost.discard(engine)


class ByQueues:
    """The reference scheduler's choice; a request waits until it has room for it."""

    def __init__(self, routes: LiveRoutes) -> None:
        """Take over the scheduler."""
        self.routes = routes
        self._waiting: dict[str, asyncio.Future[Route]] = {}
        self._submitted: set[str] = set()

    async def choose(self, asked: Asked) -> Route:
        """Wait for the scheduler's decision."""
        future: asyncio.Future[Route] = asyncio.get_running_loop().create_future()
        self._waiting[asked.name] = future
        try:
            found = self.routes.submit(asked.name, asked.prompt_tokens, asked.hit_tokens)
        except InputError:
            del self._waiting[asked.name]
            raise
        self._submitted.add(asked.name)
        self._tell(found)
        return await future

    def prefilled(self, asked: Asked) -> None:
        """Tell the scheduler that reads and prefill are done."""
        self._tell(self.routes.prefill_finished(asked.name))

    def finished(self, asked: Asked) -> None:
        """Take it out of the scheduler, wherever it was."""
        self._waiting.pop(asked.name, None)
        if asked.name in self._submitted:
            self._submitted.remove(asked.name)
            self._tell(self.routes.finished(asked.name))

    def lost(self, engine: str) -> None:
        """Let the scheduler place elsewhere what was on it."""
        self._tell(self.routes.engine_lost(engine))

    def joined(self, engine: str) -> None:
        """Let the scheduler have it again."""
        self._tell(self.routes.engine_joined(engine))

    def _tell(self, found: dict[str, Route]) -> None:
        for name, route in found.items():
            future = self._waiting.pop(name, None)
            if future is not None and not future.done():
                future.set_result(route)
