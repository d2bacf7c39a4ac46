"""What every set of options shares: unknown names and wrong values are refused in one line that helps."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError


class Options(BaseModel):
    """A set of options that refuses unknown names and wrong values with one line that names the nearest valid one."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())
    # Names that are accepted with a warning although they are no options any more, and the reason to give.
    retired: ClassVar[dict[str, str]] = {}
    _explicit: frozenset[str] = PrivateAttr(frozenset())

    def __init__(self, **values: Any) -> None:
        self.refuse_unknown(values)
        try:
            super().__init__(**{**self.preset(), **values})
        except ValidationError as error:
            raise ValueError(_one_line(type(self).__name__, error)) from None
        self._explicit = frozenset(values)

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            self.__dict__[name] = before
            raise ValueError(_one_line(type(self).__name__, error)) from None

    @classmethod
    def preset(cls) -> dict[str, object]:
        """Values that a subclass sets before the user's."""
        return {}

    def is_explicit(self, name: str) -> bool:
        """Whether the user gave this option, also when the value equals the default."""
        return name in self._explicit

    @classmethod
    def refuse_unknown(cls, values: dict[str, Any]) -> None:
        """Raise a ValueError that names each unknown option, its nearest valid one, and all there are."""
        unknown = [name for name in values if name not in cls.model_fields and name not in cls.retired]
        if not unknown:
            return
        hints = [f"{name!r}{_did_you_mean(name, cls.model_fields)}" for name in unknown]
        raise ValueError(
            f"{cls.__name__} has no option {', '.join(hints)}. The options are: {', '.join(sorted(cls.model_fields))}"
        )

    def record(self) -> dict[str, Any]:
        """All options as plain values; a function is given by its full name."""
        return {name: _plain(value) for name, value in self.model_dump().items()}


def _plain(value: Any) -> Any:
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like another one, None if none is."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known)
    return f" (did you mean {close!r}?)" if close else ""


def _one_line(name: str, error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        # Some messages name what was given themselves.
        named = not field or message.startswith(f"{field}=")
        parts.append(message if named else f"{field}={item['input']!r}: {message}")
    return f"{name}: " + "; ".join(parts)


def check_resolution(value: Any, block: int, what: str = "resolution") -> int:
    """Return a legal square input size, a positive multiple of `block` (patch size x windows per side).

    A multiple of 14 that does not fit is rounded up with a UserWarning, because older guides allow it.

    Raises:
        ValueError: any other value; the message names the two nearest legal sizes.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{what}={value!r} must be a positive whole number, a multiple of {block}")
    if value % block == 0:
        return value
    lower, upper = value // block * block, -(-value // block) * block
    if value % 14 == 0:
        warnings.warn(
            f"{what}={value} is not a multiple of {block} (patch size x windows); using {upper}", UserWarning, 3
        )
        return upper
    nearest = f"{lower} and {upper}" if lower else str(upper)
    raise ValueError(f"{what}={value} is not divisible by {block} (patch size x windows); the nearest are {nearest}")
