"""The entries of a large JSON file one by one, so that the file never stands in memory as a whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 2**20
_SPACE = re.compile(r"[ \t\n\r]*")


def read_object(file: Path, consumers: Mapping[str, Callable[[int, Any], None]]) -> dict[str, Any]:
    """The members of the object that a JSON file in UTF-8 holds.

    Args:
        consumers: for some keys, what takes the entries of a list there, with their positions, instead of keeping
            them; the result has the number of entries then. Anything but a list is kept as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, no object, or has a consumed key twice.
    """
    try:
        with file.open("rb") as handle:
            return _Text(handle).members(consumers)
    except FileNotFoundError:
        raise FileNotFoundError(f"annotation file {file} does not exist") from None
    except _Broken as error:
        raise ValueError(f"{file} is not valid JSON in UTF-8: {error}") from None
    except _NoObject as error:
        raise ValueError(
            f"{file}: the top level is a {error}; a COCO file is an object with "
            "'images', 'annotations' and 'categories'"
        ) from None


class _Broken(Exception):
    """The text is no JSON."""


class _NoObject(Exception):
    """The JSON is no object."""


class _Text:
    """A window that moves over the text of a file."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._decoder = handle, codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._passed, self._ended = "", 0, 0, False
        self._bytes = 0

    def members(self, consumers: Mapping[str, Callable[[int, Any], None]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._peek() != "{":
            raise _NoObject(type(self._value()).__name__)
        self._at += 1
        mark = self._take("}") if self._peek() == "}" else ","
        while mark == ",":
            if self._peek() != '"':
                raise self._broken("a key in double quotes should stand")
            key = self._value()
            self._take(":")
            if key in consumers and key in found:
                raise self._broken(f"'{key}' is given twice, a second time")
            found[key] = self._consume(consumers[key]) if key in consumers and self._peek() == "[" else self._value()
            mark = self._take(",}")
        if self._peek():
            raise self._broken("nothing should follow, but something does")
        return found

    def _consume(self, consumer: Callable[[int, Any], None]) -> int:
        count = 0
        for count, entry in enumerate(self._entries(), start=1):
            consumer(count - 1, entry)
        return count

    def _entries(self) -> Iterator[Any]:
        self._at += 1
        mark = self._take("]") if self._peek() == "]" else ","
        while mark == ",":
            yield self._value()
            mark = self._take(",]")

    def _value(self) -> Any:
        self._peek()
        size = CHUNK
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except RecursionError:
                raise self._broken("lists are nested too deeply") from None
            except ValueError as error:  # also a number of thousands of digits
                if self._ended:
                    text = getattr(error, "msg", str(error))
                    raise self._broken(text, getattr(error, "pos", self._at)) from None
            else:
                # Of a number the rest may follow in the next chunk, and "1e+" is read as a 1 until it does.
                if end + 2 < len(self._text) or self._ended:
                    self._at = end
                    return value
            self._more(size)
            size *= 2

    def _peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # pyrefly: ignore[missing-attribute]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more(CHUNK)

    def _take(self, allowed: str) -> str:
        mark = self._peek()
        if not mark or mark not in allowed:
            raise self._broken(f"{' or '.join(allowed)} should stand")
        self._at += 1
        return mark

    def _more(self, size: int) -> None:
        data = self._handle.read(size)
        self._ended = not data
        self._passed += self._at
        waiting = len(self._decoder.getstate()[0])
        try:
            self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise _Broken(f"{error.reason} at byte {self._bytes - waiting + error.start}") from None
        self._bytes += len(data)
        self._at = 0

    def _broken(self, what: str, at: int | None = None) -> _Broken:
        return _Broken(f"{what} at character {self._passed + (self._at if at is None else at)}")
