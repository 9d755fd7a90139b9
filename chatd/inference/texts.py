"""One text between the engine that writes it and the consumer that takes it; the same for every engine."""

from __future__ import annotations

import asyncio

import msgspec

from chatd.inference.engine import Delta, Finished


class Text:
    """Written with ``add`` and ``end`` in the event loop, taken with ``async for`` by one consumer.

    The consumer gets what has come since it last looked as one Delta, so that a slow one costs no more memory than the
    text has, and last of all the Finished. Leaving the loop early, or being cancelled in it, loses nothing: who
    iterates again goes on there. What is to happen with the engine then is the caller's.
    """

    def __init__(self) -> None:
        self.finished: Finished | None = None
        self._written: list[str] = []
        self._unread: list[str] = []
        self._changed = asyncio.Event()
        self._is_told = False

    def add(self, piece: str) -> None:
        """The next piece; an empty one changes nothing. None may follow ``end``."""
        if piece:
            self._written.append(piece)
            self._unread.append(piece)
            self._changed.set()

    def end(self, finished: Finished) -> None:
        """The one end; its ``text`` becomes all pieces joined, whatever it was."""
        self.finished = msgspec.structs.replace(finished, text="".join(self._written))
        self._changed.set()

    def __aiter__(self) -> Text:
        return self

    async def __anext__(self) -> Delta | Finished:
        while not self._unread and self.finished is None:
            self._changed.clear()
            await self._changed.wait()
        if self._unread:
            piece = "".join(self._unread)
            self._unread.clear()
            return Delta(text=piece)
        if self.finished is None or self._is_told:
            raise StopAsyncIteration
        self._is_told = True
        return self.finished
