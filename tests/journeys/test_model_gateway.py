"""Questions that a model writes on, over real WebSockets and two gateways; the worker's steps are taken by the test."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect

from chatd import tasks
from chatd.inference.lanes import QueueLimits
from chatd.inference.queue import JobQueue
from context.seal import KeyRing, Sealer
from tests.chat_client import ChatClient
from tests.fakes.hand_worker import HandWorker, answer_text
from tests.http_call import call
from tests.server import Hospital, Process

pytestmark = pytest.mark.journeys

ASK = "Analyze João Silva's ECG results"
#: Times short enough for a test, in the proportions of the defaults.
ENV = {
    "CHATD_ENGINE": "scripted",
    "CHATD_CANARY_INTERVAL_S": "0.5",
    "CHATD_MODEL_DOWN_S": "8",
    "CHATD_JOB_LEASE_S": "4",
    "CHATD_JOB_BEAT_S": "0.5",
    "CHATD_SILENCE_S": "0.5",
}
Phone = Callable[..., ChatClient]


@pytest.fixture(scope="module")
def gateways(place: Hospital) -> Iterator[tuple[Process, Process]]:
    """Two gateways with an engine configured and no worker but the test's."""
    one, two = place.serve(ENV), place.serve(ENV)
    yield one, two
    place.forget(one)
    place.forget(two)


class Worker(HandWorker):
    """A worker by hand whose beats go on by themselves until ``die``."""

    def start(self) -> None:
        async def beat() -> None:
            while True:
                await self.alive()
                await asyncio.sleep(0.2)

        self._beating = asyncio.create_task(beat())

    async def die(self) -> None:
        await tasks.end([self._beating])


@pytest.fixture
async def queue(place: Hospital) -> AsyncIterator[JobQueue]:
    """The hospital's queue, empty at the beginning."""
    sealer = Sealer(KeyRing.load(Path(place.data) / "keys" / "seal.keys"))
    redis = Redis(unix_socket_path=str(place.data / "redis.sock"))
    for key in [key async for key in redis.scan_iter("chatd:{queue}:*")]:
        await redis.delete(key)
    yield JobQueue(redis, sealer, QueueLimits(lease_ms=4_000))
    await redis.aclose()


async def until(is_so: Callable[[], bool]) -> None:
    """Look again and again until something is so."""
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)


@pytest.fixture
async def worker(queue: JobQueue, gateways: tuple[Process, Process]) -> AsyncIterator[Worker]:
    """A living worker that both gateways have seen."""
    made = Worker(queue)
    made.start()
    await until(lambda: all(call(each.url, "/health/ready").json()["mode"] == "normal" for each in gateways))
    yield made
    await made.die()


@pytest.fixture
def doctor(phone: Phone, gateways: tuple[Process, Process], place: Hospital) -> Callable[..., Any]:
    """Connects a phone to the first or second gateway."""

    async def connect(n: int = 0, user: str = "dr.santos.cardio", session_id: str | None = None) -> ChatClient:
        made = phone(user, session_id=session_id or f"sess_{secrets.token_hex(6)}")
        await made.connect(gateways[n].url)
        return made

    return connect


async def ask(phone: ChatClient, content: str = ASK, **extra: Any) -> str:
    """Send a question; returns its response id."""
    msg_id = f"m-{secrets.token_hex(6)}"
    question = {"type": "user_message", "client_msg_id": msg_id, "content": content, "patient_id": "7823"}
    await phone.send({**question, **extra})
    accepted = await phone.until("accepted", client_msg_id=msg_id)
    return str(accepted["response_id"])


def streamed(phone: ChatClient, response_id: str) -> dict[tuple[int, str], str]:
    """What the phone's deltas since its last connect make of the text; their idx must count from 0."""
    deltas = [f for f in phone.direct if f["type"] == "ai_delta" and f["response_id"] == response_id]
    assert [delta["idx"] for delta in deltas] == list(range(len(deltas)))
    texts: dict[tuple[int, str], str] = {}
    for delta in deltas:
        place = (delta["attempt"], delta["section"])
        texts[place] = texts.get(place, "") + delta["text"]
    return texts


def states(phone: ChatClient, response_id: str) -> list[str]:
    return [f["state"] for f in phone.direct if f["type"] == "queue" and f["response_id"] == response_id]


async def test_model_text_streams_between_facts_and_answer(doctor: Any, worker: Worker) -> None:
    """accepted, facts, a place, text by section and one ai_response that names the model come in this order."""
    phone = await doctor()
    response_id = await ask(phone)
    text = answer_text(findings=("Troponin I 45 ng/mL [Observation/trop-1]",), actions=("order_ecg",))
    await worker.answer(await worker.claim(response_id), text)
    answer = await phone.until("ai_response")
    kinds = [frame["type"] for frame in phone.direct]
    assert [frame["type"] for frame in phone.frames] == ["facts", "ai_response"]
    assert kinds.index("queue") < kinds.index("ai_delta")
    assert streamed(phone, response_id)[1, "headline"] == "Written by hand"
    assert (answer["status"], answer["mode"], answer["finish_reason"]) == ("completed", "normal", "stop")
    assert answer["model"]["id"] == "by-hand"
    assert answer["timing"]["tokens_out"] == 20
    assert answer["is_shared"] is False
    data = answer["content"]["structured_data"]
    assert data["headline"]
    assert set(data["quick_actions"]) == {action["label"] for action in data["actions"]}


async def test_two_phones_on_two_gateways_hear_the_same(doctor: Any, worker: Worker) -> None:
    """A second phone of the session, on another gateway, gets the text too, and both the one answer."""
    one = await doctor(0, session_id="sess_model_two")
    two = await doctor(1, session_id="sess_model_two")
    response_id = await ask(one)
    job = await worker.claim(response_id)
    await worker.write(job, "Headline: for both\nFindings:\n- first\n")
    await two.until("ai_delta", section="findings")
    await worker.write(job, "- second\nInterpretation:\n- none\nRecommendations:\n- none\nMissing:\n- none\n")
    await worker.write(job, "Actions: none\n")
    await worker.end(job)
    await one.until("ai_response")
    await two.until("ai_response")
    assert streamed(one, response_id) == streamed(two, response_id)
    assert streamed(one, response_id)[1, "findings"] == "first\nsecond"


async def test_resume_on_another_gateway_begins_the_text_again(doctor: Any, worker: Worker, gateways: Any) -> None:
    """A phone that loses its line mid-stream gets the text so far from idx 0 on another gateway, then the rest."""
    phone = await doctor(0)
    response_id = await ask(phone)
    job = await worker.claim(response_id)
    await worker.write(job, "Headline: before\nFindings:\n- one\n")
    await phone.until("ai_delta", section="findings")
    await phone.cut()
    phone.direct.clear()
    welcome = await phone.connect(gateways[1].url)
    assert welcome["resumed"] is True
    await phone.until("ai_delta", section="findings")
    await worker.write(job, "- two\n")
    await phone.until("ai_delta", section="findings")
    await worker.end(job, "length")
    answer = await phone.until("ai_response")
    assert streamed(phone, response_id) == {(1, "headline"): "before", (1, "findings"): "one\ntwo"}
    assert answer["status"] == "incomplete"


async def test_disconnect_is_no_stop(doctor: Any, worker: Worker, gateways: Any) -> None:
    """A phone that is away finds the finished answer when it comes back, and no text after it."""
    phone, colleague = await doctor(0, session_id="sess_away"), await doctor(0, session_id="sess_away")
    response_id = await ask(phone)
    await phone.until("facts")
    await phone.cut()
    await worker.answer(await worker.claim(response_id))
    await colleague.until("ai_response")
    phone.direct.clear()
    await phone.connect(gateways[1].url)
    assert (await phone.until("ai_response"))["status"] == "completed"
    await phone.send({"type": "ping", "t": 1})
    await phone.until("pong")
    assert streamed(phone, response_id) == {}


@pytest.mark.parametrize("from_gateway", [0, 1])
async def test_cancel_frees_the_job(doctor: Any, worker: Worker, from_gateway: int) -> None:
    """Cancel on any gateway ends in one cancelled answer at once, and the worker is told to stop."""
    phone = await doctor(0, session_id=f"sess_cancel_{from_gateway}")
    other = await doctor(from_gateway, session_id=f"sess_cancel_{from_gateway}")
    response_id = await ask(phone)
    job = await worker.claim(response_id)
    await worker.write(job, "Headline: never seen to its end")
    await phone.until("ai_delta")
    await other.send({"type": "cancel", "response_id": response_id})
    assert (await phone.until("ai_response"))["status"] == "cancelled"
    await until(lambda: job.job_id in worker.stopped)
    await worker.end(job, "cancelled")
    await phone.send({"type": "ping", "t": 1})
    await phone.until("pong")
    assert all(len(answers) == 1 for answers in phone.answers.values())


async def test_session_end_stops_the_writing(doctor: Any, worker: Worker) -> None:
    """Ending the session frees what is written for it."""
    phone = await doctor(0)
    job = await worker.claim(await ask(phone))
    await phone.send({"type": "session_end"})
    assert await phone.closed_with() == 1000
    await until(lambda: job.job_id in worker.stopped)
    await worker.end(job, "cancelled")


async def test_full_queue_is_an_error_and_an_answer_from_facts(doctor: Any, worker: Worker) -> None:
    """Of six questions at once one is refused with a time to come back, and answered from facts all the same."""
    phone = await doctor(0)
    asked = [await ask(phone, f"{ASK} ({n})") for n in range(6)]
    error = await phone.until("error")
    assert (error["code"], error["retryable"]) == ("queue_full", True)
    assert error["retry_after_ms"] > 0
    # Whichever had its facts last: they are made at the same time.
    answer = await phone.until("ai_response")
    assert (answer["status"], answer["finish_reason"], answer["mode"]) == ("degraded", "queue_full", "facts_only")
    assert answer["content"]["structured_data"]["findings"]
    asked.remove(answer["response_id"])
    for each in asked:
        await phone.send({"type": "cancel", "response_id": each})
        await phone.until("ai_response", response_id=each)


async def test_lost_worker_shows_attempt_two(doctor: Any, worker: Worker, queue: JobQueue) -> None:
    """A worker that dies mid-stream voids its text within the lease; another one writes it again as attempt 2."""
    phone = await doctor(0)
    response_id = await ask(phone)
    job = await worker.claim(response_id)
    await worker.write(job, "Headline: void\n")
    await phone.until("ai_delta")
    await worker.die()
    second = Worker(queue, "w-second")
    second.start()
    await phone.until("queue", state="restarted")
    await second.answer(await second.claim(response_id))
    answer = await phone.until("ai_response")
    assert (answer["attempt"], answer["status"]) == (2, "completed")
    assert streamed(phone, response_id)[2, "headline"] == "Written by hand"
    assert not await worker.write(job, "words of the zombie")
    assert states(phone, response_id).index("stalled") < states(phone, response_id).index("restarted")
    await second.die()


async def test_model_gone_and_back(doctor: Any, worker: Worker) -> None:
    """Without a living worker phones hear facts_only, waiting questions end degraded, new ones at once; then back."""
    phone = await doctor(0)
    waiting = await ask(phone)
    await worker.die()
    mode = await phone.until("mode", mode="facts_only")
    assert mode["model"] == {"state": "down", "id": "by-hand", "canary_age_s": mode["model"]["canary_age_s"]}
    answer = await phone.until("ai_response", response_id=waiting)
    assert (answer["status"], answer["finish_reason"]) == ("degraded", "model_unavailable")
    now = await ask(phone)
    assert (await phone.until("ai_response", response_id=now))["status"] == "degraded"
    worker.start()
    await phone.until("mode", mode="normal")
    again = await ask(phone)
    await worker.answer(await worker.claim(again))
    assert (await phone.until("ai_response", response_id=again))["status"] == "completed"


async def test_same_question_of_a_colleague_is_shared(doctor: Any, worker: Worker) -> None:
    """A colleague who asks the same within the minute joins the running text; both answers stand in their sessions."""
    one, two = await doctor(0), await doctor(1, user="dr.mendes.cardio")
    first = await ask(one)
    job = await worker.claim(first)
    await worker.write(job, "Headline: shared words\n")
    await one.until("ai_delta")
    second = await ask(two)
    await two.until("ai_delta")
    await worker.write(job, answer_text().partition("\n")[2])
    await worker.end(job)
    ours, theirs = await one.until("ai_response"), await two.until("ai_response")
    assert (ours["is_shared"], theirs["is_shared"]) == (False, True)
    assert theirs["response_id"] == second
    assert streamed(one, first) == streamed(two, second)


async def test_gateway_killed_mid_stream_is_taken_over(
    doctor: Any, worker: Worker, place: Hospital, gateways: Any
) -> None:
    """The gateway that runs a question is killed; another one adopts run and job, and the answer comes once."""
    third = await asyncio.to_thread(place.serve, ENV)
    phone = await doctor(0)
    await phone.cut()
    await phone.connect(third.url)
    response_id = await ask(phone)
    job = await worker.claim(response_id)
    await worker.write(job, "Headline: kept\n")
    await phone.until("ai_delta")
    place.forget(third)
    await phone.cut()
    phone.direct.clear()
    await phone.connect(gateways[1].url)
    await phone.until("ai_delta")
    await worker.write(job, answer_text().partition("\n")[2])
    await worker.end(job)
    answer = await phone.until("ai_response")
    assert (answer["response_id"], answer["attempt"]) == (response_id, 1)
    assert streamed(phone, response_id)[1, "headline"] == "kept"


async def test_original_client_gets_only_its_answer(
    place: Hospital, tokens: Any, worker: Worker, gateways: Any
) -> None:
    """A client of the original design gets one ai_response, with the model's words, and nothing else but alerts."""

    async def told(socket: ClientConnection) -> Any:
        # What is open in the ward comes first, and rings on meanwhile.
        while (frame := json.loads(await socket.recv()))["type"] == "system_notification":
            pass
        return frame

    url = f"{gateways[0].url.replace('http', 'ws', 1)}/chat/cardiology/dr.santos.cardio"
    async with connect(url, additional_headers={"Authorization": f"Bearer {tokens()}"}) as socket:
        await socket.send('{"content":"Any allergies of this patient, please?","patient_id":"7823"}')
        await worker.answer(await worker.claim())
        frame = await told(socket)
        assert frame["type"] == "ai_response", frame
        assert frame["status"] == "completed"
        await socket.send('{"type":"ping","t":1}')
        assert (await told(socket))["type"] == "pong"
