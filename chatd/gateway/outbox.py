"""What waits to be written to one phone: three lanes, bounded in bytes, and an offer that never waits.

Alerts leave before everything else, durable and direct answers before text deltas; deltas of one response that
wait together leave as one. A phone that does not read is closed with 4002 and resumes; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import enum

import msgspec

from protocols.errors import ChatdError


class Lane(enum.IntEnum):
    """Order of leaving."""

    ALERT = 0
    REPLY = 1
    DELTA = 2


class Words(msgspec.Struct, frozen=True):
    """A piece of an answer's text that is being written; it gets its number when it leaves."""

    response_id: str
    section: str
    text: str
    attempt: int


class SlowConsumer(ChatdError):
    """The phone has not read: ``waiting_bytes`` of at most ``max_bytes`` wait, and one more frame does not fit."""

    def __init__(self, waiting_bytes: int, max_bytes: int) -> None:
        super().__init__("slow consumer")
        self.waiting_bytes = waiting_bytes
        self.max_bytes = max_bytes


class Outbox:
    """Frames waiting for one connection.

    ``max_bytes`` bounds the sum of all lanes. ``offer`` and ``offer_delta`` are not coroutines, so no caller can
    be held up by a slow phone. ``take`` has one caller, the connection's write loop; cancelling it loses nothing.
    It calls ``written`` when what it took has been handed to the socket.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Lists, and a future only while somebody waits: thousands of these are empty nearly always.
        self._lanes: tuple[list[bytes], list[bytes]] = ([], [])
        self._deltas: dict[tuple[str, str, int], list[str]] = {}
        self._waiting_bytes = 0
        self._not_empty: asyncio.Future[None] | None = None
        self._alert_bytes = 0
        self._taken: Lane | None = None
        #: Frames that have been offered to the reply lane, and written out of it, since the beginning.
        self.replies_offered = self.replies_written = 0
        #: Frames that have been written out of the alert lane.
        self.alerts_written = 0

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    @property
    def alert_bytes(self) -> int:
        """What waits in the alert lane."""
        return self._alert_bytes

    @property
    def has_alerts(self) -> bool:
        """An alert waits, or has been taken and is not written yet: another one must not pass it."""
        return self._taken is Lane.ALERT or bool(self._lanes[Lane.ALERT])

    def offer(self, frame: bytes, lane: Lane = Lane.REPLY) -> None:
        """Queue an encoded frame.

        Raises:
            SlowConsumer: it does not fit; the outbox is as it was.
        """
        self._reserve(len(frame))
        self._lanes[lane].append(frame)
        if lane is Lane.ALERT:
            self._alert_bytes += len(frame)
        else:
            self.replies_offered += 1

    def offer_delta(self, response_id: str, section: str, text: str, attempt: int = 1) -> None:
        """Queue a piece of text; it joins what already waits for the same section of the same response and attempt.

        Raises:
            SlowConsumer: it does not fit; the outbox is as it was.
        """
        self._reserve(len(text.encode()))
        self._deltas.setdefault((response_id, section, attempt), []).append(text)

    def drop_deltas(self, response_id: str) -> None:
        """Forget waiting text of a response: its final frame is about to be offered, or what was written is void."""
        for key in [key for key in self._deltas if key[0] == response_id]:
            self._waiting_bytes -= sum(len(text.encode()) for text in self._deltas.pop(key))

    async def take(self) -> bytes | Words:
        """The next frame to write, or text that is still to be numbered; waits for one if there is none."""
        while (next_one := self._pop()) is None:
            self._not_empty = asyncio.get_running_loop().create_future()
            try:
                await self._not_empty
            finally:
                self._not_empty = None
        return next_one

    def written(self) -> Lane:
        """What was taken last has been handed to the socket; returns the lane it came from."""
        lane, self._taken = self._taken, None
        if lane is Lane.ALERT:
            self.alerts_written += 1
        elif lane is Lane.REPLY:
            self.replies_written += 1
        return Lane.DELTA if lane is None else lane

    def _reserve(self, size_bytes: int) -> None:
        if self._waiting_bytes + size_bytes > self._max_bytes:
            raise SlowConsumer(self._waiting_bytes, self._max_bytes)
        self._waiting_bytes += size_bytes
        if self._not_empty is not None and not self._not_empty.done():
            self._not_empty.set_result(None)

    def _pop(self) -> bytes | Words | None:
        for kind in (Lane.ALERT, Lane.REPLY):
            if self._lanes[kind]:
                frame = self._lanes[kind].pop(0)
                self._waiting_bytes -= len(frame)
                if kind is Lane.ALERT:
                    self._alert_bytes -= len(frame)
                self._taken = kind
                return frame
        if not self._deltas:
            return None
        # Insertion order: the section that has waited longest.
        response_id, section, attempt = key = next(iter(self._deltas))
        texts = self._deltas.pop(key)
        self._waiting_bytes -= sum(len(text.encode()) for text in texts)
        return Words(response_id, section, "".join(texts), attempt)
