"""Functions that a user wants called during a run, by event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

EVENTS = ("on_fit_epoch_end", "on_train_batch_start", "on_train_end")
Callbacks = dict[str, list[Callable]]


def by_event(callbacks: Any) -> dict[str, list[Callable]]:
    """Callbacks as a dict of functions by event, also when they were given as objects with methods of those names.

    Raises:
        ValueError: an object without any of these methods.
    """
    if callbacks is None or isinstance(callbacks, Mapping):
        return dict(callbacks or {})
    found: dict[str, list[Callable]] = {}
    for one in callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
        methods = {event: getattr(one, event) for event in EVENTS if hasattr(one, event)}
        if not methods:
            raise ValueError(f"callback {one!r} has no method {', '.join(EVENTS)}")
        for event, method in methods.items():
            found.setdefault(event, []).append(method)
    return found


def check_callbacks(callbacks: Callbacks | None) -> Callbacks:
    """A callbacks dict whose events are all known.

    Raises:
        ValueError: an unknown event; the message lists the known ones.
    """
    given = dict(callbacks or {})
    unknown = [name for name in given if name not in EVENTS and given[name]]
    if unknown:
        raise ValueError(f"there is no event {unknown[0]!r}; callbacks can be given for {', '.join(EVENTS)}")
    return {name: list(given.get(name, ())) for name in EVENTS}
