"""Asks the API server now and then for what the watches cannot tell: which kinds there are, and what they missed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from ireko_operator.kube.client import KubeError
from ireko_operator.kube.keys import Key, Kind, Resource
from ireko_operator.process.inquiry import Inquiry
from ireko_operator.process.sight import Sight
from ireko_operator.process.watched import WATCHED, Served

logger = logging.getLogger(__name__)

_SECONDS = 15.0
"""Between two questions which kinds there are."""
_LOOK_SECONDS = 60.0
"""Between two looks at all objects."""
_SECONDS_AT_FIRST = 1.0
"""Between two looks until everything that existed at the start has been delivered."""


class Prober:
    """Compares, in a thread of its own, what the watches delivered with what the API server has."""

    def __init__(
        self,
        *,
        inquiry: Inquiry,
        namespaces: Sequence[str],
        sight: Sight,
        watch: Callable[[Served], None],
        gone: Callable[[Kind, Key, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`watch` is told what there is to watch; `gone`, kind, key and uid of what has gone without an event."""
        self._inquiry = inquiry
        self._namespaces = tuple(namespaces)
        self._sight = sight
        self._watch = watch
        self._gone = gone
        self._clock = clock
        self._served: Served | None = None
        self._next_look = clock()
        self._was_in_step = False
        self._answered = True

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop` is set."""
        while not stop.is_set():
            self.ask()
            stop.wait(_SECONDS if self._in_step() else _SECONDS_AT_FIRST)

    def ask(self) -> None:
        """One round; an API server that does not answer is asked again in the next."""
        try:
            self._discover()
            if not self._in_step() or self._clock() >= self._next_look:
                self._look()
                self._next_look = self._clock() + _LOOK_SECONDS
        except KubeError as error:
            if self._answered:
                logger.warning("The API server could not be asked what there is: %s", error)
            self._answered = False
        else:
            self._answered = True

    def _in_step(self) -> bool:
        """Whether the watches have caught up since the start; afterwards being a little behind is no news."""
        self._was_in_step = self._was_in_step or self._sight.synced()
        return self._was_in_step

    def _discover(self) -> None:
        known: dict[tuple[str, str], frozenset[str]] = {}
        served = {kind: found for kind in Kind if (found := self._find(kind, known)) is not None}
        if served == self._served:
            return
        for kind in Kind:
            missing = WATCHED[kind].missing
            if kind in served and self._served is not None and kind not in self._served:
                logger.info("The API server knows %s now: they are watched.", kind.value)
            elif kind not in served and missing:
                logger.warning("%s", missing)
        self._served = served
        self._sight.watch(frozenset(served))
        self._watch(served)

    def _find(self, kind: Kind, known: dict[tuple[str, str], frozenset[str]]) -> Resource | None:
        """The first version of a kind that the API server knows; `known` is what it said in this round."""
        for resource in (WATCHED[kind].resource, *WATCHED[kind].older):
            place = (resource.group, resource.version)
            if place not in known:
                known[place] = self._inquiry.known(*place)
            if resource.plural in known[place]:
                return resource
        return None

    def _look(self) -> None:
        for kind, resource in (self._served or {}).items():
            listed = self._inquiry.marks(
                resource, namespaces=self._namespaces, selector=WATCHED[kind].selector
            )
            for key, uid in self._sight.look(kind, listed):
                logger.info("%s %s/%s has gone while its watch was interrupted.", kind.value, *key)
                self._gone(kind, key, uid)
