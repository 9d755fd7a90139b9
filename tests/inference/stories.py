"""Whole stories over WebSockets, as one class for every engine: a test module gives it a place and gets all of them.

    from tests.inference.stories import Stories, running

    @pytest.fixture(scope="module")
    def place() -> Iterator[Hospital]:
        with running("--engine", "mlx", "--model", FOLDER) as hospital:
            yield hospital

    class TestMlxStories(Stories):
        pass

Orders are counted in what phones hear, never in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

from chatd.gateway.auth import mint
from tests.chat_client import ChatClient
from tests.server import Hospital, hospital

DEPARTMENTS = ("cardiology", "emergency", "surgery", "icu")
#: Places for anything, and one more for stat alone: few, so that there is a queue.
OPEN, RESERVED = 3, 1
#: No single wait is longer.
WAIT_S = 120.0
ENV = {
    "CHATD_MESSAGES_PER_MINUTE": "1000",
    "CHATD_QUEUE_MAX_PER_DOCTOR": "60",
    "CHATD_ENGINE_SLOTS": str(OPEN + RESERVED),
    "CHATD_ENGINE_RESERVED_SLOTS": str(RESERVED),
    "CHATD_ANSWER_MAX_TOKENS": "32",
    # Short prompts: what is shown here is the order, and prefill is what a CPU without Metal or CUDA is slow at.
    "CHATD_PROMPT_BUDGET_TOKENS": "1600",
}


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Hospital]:
    """A ``chatd up`` with these arguments, once a model writes behind it; stopped at the end."""
    with hospital(*arguments, env=ENV) as place:
        deadline = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(OSError):
                if read_json(f"{place.url}/health/ready")["mode"] == "normal":
                    break
            assert time.monotonic() < deadline, f"the model did not become ready: {place.up.log()[-2000:]}"
            time.sleep(0.2)
        yield place


def read_text(url: str, bearer: str = "") -> str:
    """The body of a page of our own server."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer}"} if bearer else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as body:  # noqa: S310
        text: str = body.read().decode()
    return text


def read_json(url: str, bearer: str = "") -> Any:
    """The same, of JSON."""
    return json.loads(read_text(url, bearer))


def patient_of(place: Hospital, department: str) -> str:
    """A patient whom this department may ask about."""
    url = f"{place.url}/v1/departments/{department}/patients"
    found: str = read_json(url, token(place, "dr.story.0", department))["patients"][0]["patient_id"]
    return found


def token(place: Hospital, user: str, department: str) -> str:
    """A token of the installation's own key, without a process for each."""
    return mint(
        (place.data / "keys" / "jwt.key").read_text().strip().encode(),
        user_id=user,
        departments=(department,),
        roles=("physician",),
        ttl_s=3600,
        now=datetime.now(UTC),
    )


async def doctor(place: Hospital, number: int, department: str = "cardiology") -> ChatClient:
    """One doctor, connected."""
    user = f"dr.story.{number}"
    client = ChatClient(
        place.url, department=department, user_id=user, token=token(place, user, department), wait_s=WAIT_S
    )
    await client.connect()
    return client


class Story:
    """What phones heard, in the order in which it came, over all of them."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, str, dict[str, Any]]] = []
        self.names: dict[str, str] = {}
        self.changed = asyncio.Event()

    async def all_asked(self, count: int) -> None:
        """Wait until so many questions have their facts: the next thing is the queue."""
        async with asyncio.timeout(WAIT_S):
            while len({name for _, name, frame in self.heard if frame["type"] == "facts"}) < count:
                self.changed.clear()
                await self.changed.wait()

    async def listen(self, client: ChatClient, wanted: set[str]) -> None:
        """Take frames until each wanted question has its answer."""
        open_ids = set(wanted)
        while open_ids:
            async with asyncio.timeout(WAIT_S):
                frame = await client.receive()
            if frame["type"] == "accepted":
                self.names[frame["response_id"]] = frame["client_msg_id"]
            name = self.names.get(frame.get("response_id", ""))
            if name is None:
                continue
            self.heard.append((time.monotonic(), name, frame))
            self.changed.set()
            if frame["type"] == "ai_response":
                open_ids.discard(name)

    def of(self, name: str, kind: str) -> list[dict[str, Any]]:
        return [frame for _, who, frame in self.heard if who == name and frame["type"] == kind]

    def index(self, name: str, *, is_begin: bool) -> int:
        """Where a question's facts came, just before it entered the queue, or where its text began."""
        for at, (_, who, frame) in enumerate(self.heard):
            if who != name:
                continue
            has_begun = frame["type"] == "ai_delta" or (frame["type"] == "queue" and frame["state"] == "running")
            if has_begun if is_begin else frame["type"] == "facts":
                return at
        raise AssertionError(f"{name} never {'began' if is_begin else 'stood in the queue'}")

    def moment(self, name: str, *, is_begin: bool) -> float:
        return self.heard[self.index(name, is_begin=is_begin)][0]

    def began_between(self, first: int, last: int) -> list[str]:
        """Whose text began after the first and before the last moment, each once."""
        seen: dict[str, int] = {}
        for at, (_, who, frame) in enumerate(self.heard):
            if frame["type"] == "ai_delta" or (frame["type"] == "queue" and frame["state"] == "running"):
                seen.setdefault(who, at)
        return [who for who, at in seen.items() if first < at < last]


def question(name: str, patient_id: str, urgency: str = "routine") -> dict[str, Any]:
    return {
        "type": "user_message",
        "client_msg_id": name,
        "content": f"Summarise the case, {name}",
        "patient_id": patient_id,
        "urgency": urgency,
    }


async def stop_one(place: Hospital, client: ChatClient) -> None:
    """Ask, stop in the middle of the text, and take the one cancelled answer.

    A text may have ended before the stop arrives; then another one is stopped, of a few.
    """
    patient = await asyncio.to_thread(patient_of, place, "cardiology")
    for number in range(5):
        name = f"stop-{number}"
        await client.send(question(name, patient))
        response_id = (await client.until("accepted", client_msg_id=name))["response_id"]
        await client.until("ai_delta", response_id=response_id)
        await client.send({"type": "cancel", "client_msg_id": name})
        answer = await client.until("ai_response", client_msg_id=name)
        if answer["status"] == "cancelled":
            return
    raise AssertionError("every text had ended before it could be stopped")


def active_places(place: Hospital) -> float:
    """How many places of the engine are taken, as the gateway last heard from the worker."""
    (taken,) = (
        line for line in read_text(f"{place.url}/metrics").splitlines() if 'chatd_model_slots{use="active"' in line
    )
    return float(taken.split()[-1])


class Stories:
    """The stories; a subclass names smaller sizes where its engine is slow.

    ``doctors`` ask at once. One doctor has ``hogged`` questions waiting when ``others`` ask one each. Of ``busy``
    questions all open places are full and the rest wait when a stat question comes.
    """

    doctors: ClassVar[int] = 20
    hogged: ClassVar[int] = 50
    others: ClassVar[int] = 8
    busy: ClassVar[int] = 8

    async def test_twenty_doctors_of_four_departments_are_all_answered(self, place: Hospital) -> None:
        """Each gets one answer of the model about the own patient, structured, with actions of the own catalogue."""
        patients = {name: await asyncio.to_thread(patient_of, place, name) for name in DEPARTMENTS}
        story = Story()
        clients = [
            await doctor(place, number, DEPARTMENTS[number % len(DEPARTMENTS)]) for number in range(self.doctors)
        ]
        listening = []
        for number, client in enumerate(clients):
            await client.send(question(f"all-{number}", patients[DEPARTMENTS[number % len(DEPARTMENTS)]]))
            listening.append(asyncio.create_task(story.listen(client, {f"all-{number}"})))
        await asyncio.gather(*listening)
        for number, client in enumerate(clients):
            answers = story.of(f"all-{number}", "ai_response")
            assert len(answers) == 1
            (answer,) = answers
            department = DEPARTMENTS[number % len(DEPARTMENTS)]
            assert answer["patient_id"] == patients[department]
            assert answer["status"] in ("completed", "incomplete", "degraded")
            assert answer["timing"]["tokens_out"] > 0
            assert answer["confidence"] is None
            catalogue = {action["id"] for action in client.welcome["department"]["actions"]}
            data = answer["content"]["structured_data"]
            assert {action["catalog_id"] for action in data["actions"]} <= catalogue
            assert [action["label"] for action in data["actions"]] == data["quick_actions"]
            deltas = [frame["idx"] for frame in story.of(f"all-{number}", "ai_delta")]
            assert deltas == list(range(len(deltas)))
            await client.close()

    async def test_fifty_questions_of_one_doctor_cost_the_others_one_turn(self, place: Hospital) -> None:
        """Whoever asks one question while another doctor's fifty wait sees at most one more of those begin first."""
        story = Story()
        patient = await asyncio.to_thread(patient_of, place, "cardiology")
        hog = await doctor(place, 100)
        mine = [f"hog-{n}" for n in range(self.hogged)]
        for name in mine:
            await hog.send(question(name, patient))
        listening = [asyncio.create_task(story.listen(hog, set(mine)))]
        await story.all_asked(len(mine))
        others = [await doctor(place, 101 + n) for n in range(self.others)]
        theirs = [f"one-{n}" for n in range(len(others))]
        for name, client in zip(theirs, others, strict=True):
            await client.send(question(name, patient))
            listening.append(asyncio.create_task(story.listen(client, {name})))
        await asyncio.gather(*listening)
        errors = []
        for name in theirs:
            between = story.began_between(story.index(name, is_begin=False), story.index(name, is_begin=True))
            # One turn of the hog's, and what began in the instant in which the phones heard of it.
            assert sum(who.startswith("hog") for who in between) <= 1 + OPEN
            places = [frame["position"] for frame in story.of(name, "queue") if frame["state"] == "waiting"]
            assert places == sorted(places, reverse=True), name
            told = [frame for frame in story.of(name, "queue") if frame["state"] == "waiting" and frame["eta_ms"]]
            waited_ms = (story.moment(name, is_begin=True) - story.moment(name, is_begin=False)) * 1000
            if told:
                errors.append(abs(told[0]["eta_ms"] - waited_ms) / max(waited_ms, told[0]["eta_ms"]))
        # The last of the fifty are refused where they could not be written before their deadline.
        hogged = {
            who: at for at, (_, who, frame) in enumerate(story.heard) if frame["type"] == "ai_delta" and who in mine
        }
        assert len(hogged) > len(mine) // 2
        assert all(story.index(name, is_begin=True) < max(hogged.values()) for name in theirs)
        assert all(len(story.of(name, "ai_response")) == 1 for name in (*mine, *theirs))
        if errors:
            print(
                f"\nETA of {len(errors)} waits: median error {statistics.median(errors):.0%} of the longer of the two"
            )
        for client in (hog, *others):
            await client.close()

    async def test_stat_question_starts_within_one_place_under_full_load(self, place: Hospital) -> None:
        """With every open place taken and others waiting, at most one other text begins before a stat question's."""
        story = Story()
        patient = await asyncio.to_thread(patient_of, place, "cardiology")
        busy = [await doctor(place, 200 + n) for n in range(self.busy)]
        listening = []
        for n, client in enumerate(busy):
            await client.send(question(f"busy-{n}", patient))
            listening.append(asyncio.create_task(story.listen(client, {f"busy-{n}"})))
        await story.all_asked(len(busy))
        urgent = await doctor(place, 250)
        await urgent.send(question("stat-0", patient, "stat"))
        listening.append(asyncio.create_task(story.listen(urgent, {"stat-0"})))
        await asyncio.gather(*listening)
        entered, began = story.index("stat-0", is_begin=False), story.index("stat-0", is_begin=True)
        assert len(story.began_between(entered, began)) <= 1
        for client in (urgent, *busy):
            await client.close()

    async def test_stop_frees_the_place_and_ends_in_one_cancelled_answer(self, place: Hospital) -> None:
        """Stopping in the middle of the text ends the question as cancelled, and the engine has its place back."""
        client = await doctor(place, 300)
        await stop_one(place, client)
        async with asyncio.timeout(WAIT_S):
            while await asyncio.to_thread(active_places, place) > 0:  # noqa: ASYNC110 - a number on the metrics page
                await asyncio.sleep(0.1)
        # And what is asked next is written.
        story = Story()
        await client.send(question("after-stop", await asyncio.to_thread(patient_of, place, "cardiology")))
        await story.listen(client, {"after-stop"})
        (answer,) = story.of("after-stop", "ai_response")
        assert answer["model"] is not None
        assert answer["timing"]["tokens_out"] > 0
        await client.close()
