"""One text between engine and consumer."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from chatd.inference.engine import Delta, Finished
from chatd.inference.texts import Text

PATIENCE_S = 30.0
END = Finished(reason="stop", text="", tokens_out=3)


async def read(text: Text) -> list[Delta | Finished]:
    """Everything that a text still tells."""
    async with asyncio.timeout(PATIENCE_S):
        return [event async for event in text]


@given(pieces=st.lists(st.text(max_size=4), max_size=12), turns=st.lists(st.booleans(), max_size=12))
def test_text_gives_every_piece_once_and_one_end(pieces: list[str], turns: list[bool]) -> None:
    """However the consumer's turns fall between the pieces, what it takes joins to the text, and the end is last."""

    async def run() -> None:
        text = Text()
        reading = asyncio.create_task(read(text))
        for n, piece in enumerate(pieces):
            text.add(piece)
            if n < len(turns) and turns[n]:
                await asyncio.sleep(0)
        text.end(END)
        *deltas, last = await reading
        assert isinstance(last, Finished)
        assert (last.text, last.reason, last.tokens_out) == ("".join(pieces), "stop", 3)
        assert all(isinstance(delta, Delta) and delta.text for delta in deltas)
        assert "".join(delta.text for delta in deltas) == last.text

    asyncio.run(run())


async def test_text_slow_consumer_gets_what_came_meanwhile_as_one_piece() -> None:
    """Nothing waits for it, and it need not take many small pieces."""
    text = Text()
    for piece in ("one", " two", " three"):
        text.add(piece)
    text.end(END)
    assert await read(text) == [
        Delta(text="one two three"),
        Finished(reason="stop", text="one two three", tokens_out=3),
    ]
    assert await read(text) == []


async def test_text_cancelled_consumer_loses_nothing() -> None:
    """A wait that is cancelled takes no piece with it; who takes over reads on."""
    text = Text()
    waiting = asyncio.create_task(read(text))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    text.add("kept")
    text.end(END)
    assert [event.text for event in await read(text)] == ["kept", "kept"]
