"""Many users at once, each with words of their own in everything they say: nobody ever gets another's.

``python -m tests.abuse.mixing --messages 100000`` imports a patient for each user, whose name and result hold the
user's canary, and has all users ask, open, close, ping, answer and be refused, over sockets that come and go. Every
byte that a user gets is searched for the canaries of all others. ``--engine scripted`` lets text be written too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from typing import Any

from tests.abuse.gateway import ENV, cpu_s, faults_in, gateway_pid, token_for
from tests.abuse.wire import BINARY, PING, PONG, TEXT, WAIT_S, Ended, Peer, frame, phone, text
from tests.server import Hospital, hospital

DEPARTMENTS = ("cardiology", "emergency", "surgery")
#: Twelve letters between marks that stand in nothing else; no vowels, so that nothing reads a medicine in it.
CANARY = re.compile(r"Zq[b-df-hj-np-tv-xz]{12}qZ", re.IGNORECASE)
#: Messages that a user has under way.
_WINDOW = 4


def canary_of(number: int) -> str:
    """The words of a user: the same for the same number."""
    return "Zq" + "".join(random.Random(number).choices("bcdfghjklmnpqrstvwxz", k=12)) + "qZ"


class User:
    """One user with a patient of their own and what they were sent."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.canary = canary_of(number)
        self.user_id = f"dr.mix{number}"
        self.department = DEPARTMENTS[number % len(DEPARTMENTS)]
        self.patient_id = f"mix-{number}"
        self.got: Counter[str] = Counter()
        #: Own canaries that came back: where nothing did, nothing was searched.
        self.own = 0
        self.crossings: list[str] = []

    def bundle(self) -> dict[str, Any]:
        """The patient as FHIR: the canary in the name, in a result and in a note."""
        subject = {"reference": f"Patient/{self.patient_id}"}
        code = {"coding": [{"system": "http://loinc.org", "code": "2160-0"}], "text": "Creatinine"}
        patient = {
            "resourceType": "Patient",
            "id": self.patient_id,
            "name": [{"text": f"Ana {self.canary}", "family": self.canary, "given": ["Ana"]}],
            "birthDate": "1960-01-01",
            "gender": "female",
        }
        condition = {
            "resourceType": "Condition",
            "id": f"{self.patient_id}-c",
            "subject": subject,
            "code": {"text": f"Fracture {self.canary}"},
            "clinicalStatus": {"coding": [{"code": "active"}]},
        }
        result = {
            "resourceType": "Observation",
            "id": f"{self.patient_id}-o",
            "status": "final",
            "code": code,
            "subject": subject,
            "effectiveDateTime": "2026-01-15T06:10:00Z",
            "valueQuantity": {"value": 60 + self.number % 40, "unit": "umol/L"},
        }
        resources = (patient, condition, result)
        return {
            "resourceType": "Bundle",
            "type": "collection",
            "entry": [
                {"fullUrl": f"https://mix.example/{each['resourceType']}/{each['id']}", "resource": each}
                for each in resources
            ],
        }

    def message(self, rng: random.Random, count: int) -> dict[str, Any]:
        """The next thing this user says; it holds the canary wherever a client may write."""
        own_id = f"{self.canary}.{count}"
        kind = rng.choices(
            ("ask", "ask_none", "ping", "open", "feedback", "cancel", "presence", "wrong", "other"),
            (40, 10, 15, 8, 5, 4, 3, 10, 5),
        )[0]
        match kind:
            case "ask":
                words = rng.choice(("Summarise.", "Creatinine?", "Active problems?", "What is missing?"))
                return {
                    "type": "user_message",
                    "client_msg_id": own_id,
                    "content": f"{words} {self.canary}",
                    "patient_id": self.patient_id,
                }
            case "ask_none":
                words = f"What are the time targets of the STEMI protocol? {self.canary}"
                return {"type": "user_message", "client_msg_id": own_id, "content": words}
            case "ping":
                return {"type": "ping", "t": own_id}
            case "open":
                is_open = rng.random() < 0.5
                patient_id = self.patient_id if is_open else None
                return {"type": "context_set", "client_msg_id": own_id, "patient_id": patient_id}
            case "feedback":
                return {
                    "type": "feedback",
                    "client_msg_id": own_id,
                    "response_id": f"resp_{self.canary}",
                    "useful": False,
                    "text": self.canary,
                }
            case "cancel":
                return {"type": "cancel", "client_msg_id": f"{self.canary}.{max(0, count - 1)}"}
            case "presence":
                return {"type": "presence", "state": "busy", "client_msg_id": own_id}
            case "wrong":
                return {"type": "user_message", "client_msg_id": own_id, "content": f"\u202e{self.canary}"}
            case _:
                # Somebody else's patient of another department: refused, and nothing of it shown.
                other = f"mix-{self.number + 1}"
                return {"type": "user_message", "client_msg_id": own_id, "content": "Summarise.", "patient_id": other}

    def take(self, payload: bytes) -> None:
        """Note what came, and search it."""
        words = payload.decode()
        for found in CANARY.findall(words):
            if found.lower() == self.canary.lower():
                self.own += 1
            else:
                self.crossings.append(f"{self.user_id} got {found} in {json.loads(words).get('type')}")
        self.got[json.loads(words).get("type", "")] += 1


async def _chat(place: Hospital, user: User, token: str, messages: int, seed: int) -> None:
    """Say so many things, a few at a time, over connections that end now and then."""
    rng = random.Random(seed * 1_000_003 + user.number)
    peer: Peer | None = None
    for first in range(0, messages, _WINDOW):
        if peer is None or rng.random() < 0.02:
            if peer is not None:
                await peer.leave()
            peer = await phone(
                place.url, user.user_id, user.department, token, session_id=f"sess_{user.canary}", device_id=user.canary
            )
        count = min(_WINDOW, messages - first)
        waited: set[str] = set()
        for each in range(first, first + count):
            message = user.message(rng, each)
            peer.send(text(message))
            if message["type"] == "user_message":
                waited.add(message["client_msg_id"])
        peer.send(frame(PING, str(first).encode()))
        await _until_done(peer, user, waited, str(first).encode())
    if peer is not None:
        await peer.leave()


async def _until_done(peer: Peer, user: User, waited: set[str], mark: bytes) -> None:
    """Take frames until each question is answered or refused, and the ping is answered."""
    is_answered = False
    async with asyncio.timeout(6 * WAIT_S):
        while waited or not is_answered:
            opcode, payload = await peer.next()
            if opcode == PONG:
                is_answered = is_answered or payload == mark
            elif opcode == PING:
                peer.send(frame(PONG, payload))
            elif opcode in (TEXT, BINARY):
                user.take(payload)
                found = json.loads(payload)
                if found["type"] in ("ai_response", "error"):
                    waited.discard(found.get("client_msg_id") or "")


def admit(place: Hospital, users: list[User]) -> None:
    """Import each user's patient into the user's department alone."""
    folder = place.data / "mixing"
    folder.mkdir()
    for department in DEPARTMENTS:
        files = []
        for user in users:
            if user.department == department:
                path = folder / f"{user.patient_id}.json"
                path.write_text(json.dumps(user.bundle()))
                files.append(str(path))
        if files:
            done = place.run("fhir", "import", "--data-dir", "DIR", "--department", department, *files, check=False)
            assert done.returncode == 0, (done.stdout, done.stderr)


async def mix(place: Hospital, users: list[User], messages: int, seed: int) -> None:
    """All users at once, ``messages`` in all."""
    each = -(-messages // len(users))
    await asyncio.gather(
        *(_chat(place, user, token_for(place, user.user_id, user.department), each, seed) for user in users)
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abuse.mixing", description=__doc__)
    parser.add_argument("--messages", type=int, default=2_000, help="in all (default: 2000)")
    parser.add_argument("--users", type=int, default=40, help="at once (default: 40)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", default="none", help="none or scripted (default: none)")
    options = parser.parse_args(arguments)
    users = [User(number) for number in range(options.users)]
    with hospital("--engine", options.engine, env=ENV) as place:
        admit(place, users)
        pid = gateway_pid(place)
        began_s, used_s = time.process_time(), cpu_s(pid)
        try:
            asyncio.run(mix(place, users, options.messages, options.seed))
        except Ended as ended:
            print(f"closed with {ended.code}")
            return 1
        own_s, theirs_s = time.process_time() - began_s, cpu_s(pid) - used_s
        faults = faults_in(place.up.log())
        leaks = CANARY.findall(place.up.log())
    got: Counter[str] = sum((user.got for user in users), Counter())
    crossings = [line for user in users for line in user.crossings]
    print(f"{dict(got)}")
    print(f"own canaries seen: {sum(user.own for user in users)}; in the log: {len(leaks)}; faults: {len(faults)}")
    share = 10_000 / options.messages
    print(f"processor time per 10,000 messages: {own_s * share:.1f} s here, {theirs_s * share:.1f} s of the gateway")
    print("\n".join([*crossings[:20], *faults[:20]]))
    print(f"{len(crossings)} crossings in {options.messages} messages of {options.users} users")
    return 0 if not crossings and not faults else 1


if __name__ == "__main__":
    sys.exit(main())
