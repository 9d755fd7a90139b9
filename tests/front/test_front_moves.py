"""Restarts below 50 phones: nginx reloaded and killed, a gateway killed, both upgraded one after another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from chatd.gateway.auth import mint
from chatd.places import Places
from chatd.settings import Settings
from tests.chat_client import Broken, ChatClient
from tests.front.conftest import ENV
from tests.front.front_nginx import NGINX_DIR, Front
from tests.server import START_S, Hospital, Process, hospital

pytestmark = pytest.mark.front

PHONES = 50
#: A machine that others use too stretches every bound of time by this.
PATIENCE = float(os.environ.get("FRONT_PATIENCE", "1"))
#: The bound of a reconnect for 95 of 100 phones, as the product promises it.
BACK_S = 10.0 * PATIENCE
#: A phone's first wait before it comes back, and its longest.
AGAIN_S, MOST_S = 0.25, 2.0
#: How long a phone rests between two questions, on the average.
PAUSE_S = 1.5
SETTLED_S = 60.0 * PATIENCE


class Ward:
    """A hospital with gateways by name on Unix sockets, and nginx before them."""

    def __init__(self, place: Hospital, folder: Path) -> None:
        self.place = place
        self.paths = {name: folder / f"{name}.sock" for name in ("a", "b")}
        self.gateways: dict[str, Process] = {}
        for name in self.paths:
            self.start(name)
        self.front = Front({name: f"unix:{path}" for name, path in self.paths.items()})
        self.secret = Places(Settings(data_dir=str(place.data))).jwt_secret()

    def start(self, name: str) -> None:
        self.gateways[name] = self.place.serve({"CHATD_UDS": str(self.paths[name])})

    def kill(self, name: str) -> None:
        self.place.forget(self.gateways.pop(name))

    def restart(self, name: str) -> None:
        """As a service manager does it: SIGTERM, wait for the end, start again."""
        gateway = self.gateways.pop(name)
        gateway.process.terminate()
        gateway.process.wait(START_S)
        self.place.forget(gateway)
        self.start(name)

    def token(self, user: str) -> str:
        return mint(
            self.secret,
            user_id=user,
            departments=("cardiology",),
            roles=("physician",),
            ttl_s=3600,
            now=datetime.now(UTC),
        )


class Doctor:
    """A phone that asks on and on, comes back by itself, and sends again what nobody accepted or answered."""

    def __init__(self, ward: Ward, number: int, *, pause_s: float = PAUSE_S) -> None:
        user = f"dr.ward{number}.cardio"
        self._pause_s = pause_s
        self._random = random.Random(number)
        #: When each question was first asked.
        self.asked_at: dict[str, float] = {}
        self.phone = ChatClient(
            ward.front.url,
            department="cardiology",
            user_id=user,
            token=ward.token(user),
            session_id=f"sess_{secrets.token_hex(6)}",
            wait_s=30.0,
        )
        self.asked: list[str] = []
        self.alerts: set[str] = set()
        self.away_s: list[float] = []
        #: Why it was not connected, each time.
        self.reasons: Counter[str] = Counter()
        self.connections = 0
        self._lost_at: float | None = None
        self._stop = False

    @property
    def waiting(self) -> str | None:
        """The question that has no answer yet."""
        return next((msg_id for msg_id in reversed(self.asked) if msg_id not in self.phone.answers), None)

    def stop(self) -> None:
        """Ask nothing new; ``run`` ends with the last answer."""
        self._stop = True

    async def run(self) -> None:
        wait_s = AGAIN_S
        while not self._stop or self.waiting is not None:
            try:
                await self.phone.connect()
                wait_s = AGAIN_S
                self.connections += 1
                if self._lost_at is not None:
                    self.away_s.append(time.monotonic() - self._lost_at)
                    self._lost_at = None
                for alert in (self.phone.snapshot or {}).get("open_alerts", []):
                    self.alerts.add(alert["alert_id"])
                await self._talk()
            except ConnectionClosed as closed:
                self.reasons[str(closed.rcvd.code) if closed.rcvd else "cut"] += 1
            except (InvalidHandshake, OSError, TimeoutError) as error:
                self.reasons[type(error).__name__] += 1
            except Broken as broken:
                # A gateway that is leaving says so before anything else.
                if "'goaway'" not in str(broken):
                    raise
                self.reasons["goaway"] += 1
            if self._lost_at is None:
                self._lost_at = time.monotonic()
            await self.phone.cut()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MOST_S)

    async def _talk(self) -> None:
        while not self._stop or self.waiting is not None:
            if self.waiting is None:
                self.asked.append(f"m-{secrets.token_hex(6)}")
                self.asked_at[self.asked[-1]] = time.monotonic()
            msg_id = self.asked[-1]
            await self.phone.send(
                {"type": "user_message", "client_msg_id": msg_id, "content": "Allergies?", "patient_id": "7823"}
            )
            while msg_id not in self.phone.answers:
                await self._take()
            until = time.monotonic() + self._random.uniform(0, 2) * self._pause_s
            while not self._stop and (left_s := until - time.monotonic()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._take()

    async def _take(self) -> None:
        frame = await self.phone.receive()
        if frame["type"] == "system_notification":
            self.alerts.add(frame["alert_id"])
        elif frame["type"] == "error" and frame.get("retryable"):
            raise ConnectionClosed(None, None)


class Bells:
    """Raises alerts through nginx, again and again under one key until it is told that each is recorded."""

    def __init__(self, ward: Ward) -> None:
        self.front = ward.front
        self._token = ward.token("dr.bells.cardio")
        self.recorded: list[str] = []

    async def ring(self) -> None:
        key = f"k-{secrets.token_hex(6)}"
        body = json.dumps({"content": "Bed 4", "priority": "normal"})
        head = (
            f"POST /v1/departments/cardiology/alerts HTTP/1.1\r\nHost: {self.front.host}\r\nConnection: close\r\n"
            f"Authorization: Bearer {self._token}\r\nIdempotency-Key: {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        while True:
            try:
                status, _, answer = await asyncio.to_thread(self.front.exchange, head)
            except OSError:
                status = 0
            if status == 201:
                self.recorded.append(json.loads(answer)["alert_id"])
                return
            assert status in (0, 429, 503), status
            await asyncio.sleep(AGAIN_S)

    async def run(self) -> None:
        while True:
            await self.ring()
            await asyncio.sleep(1.0)


@pytest.fixture(scope="module")
def ward() -> Iterator[Ward]:
    """Two gateways and nginx, for this module's faults alone."""
    env = {**ENV, "CHATD_ALERT_RAISES_PER_MINUTE": "100000"}
    with hospital(env=env) as place, tempfile.TemporaryDirectory(prefix="gw-") as folder:
        made = Ward(place, Path(folder))
        try:
            made.front.start()
            yield made
        finally:
            made.front.stop()


@pytest.fixture
async def doctors(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Doctor]]:
    """50 phones that are connected and have each had an answer."""
    monkeypatch.setenv("SSL_CERT_FILE", str(ward.front.authority.ca))
    made = [Doctor(ward, number) for number in range(PHONES)]
    running = [asyncio.create_task(doctor.run()) for doctor in made]
    await until(lambda: all(doctor.phone.answers for doctor in made), running)
    yield made
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for doctor in made:
        await doctor.phone.close()


async def until(is_so: Callable[[], bool], running: list[asyncio.Task[None]] | None = None) -> None:
    """Wait for a state of the phones; a phone that saw a broken promise ends it at once."""
    async with asyncio.timeout(SETTLED_S):
        while not is_so():
            for task in running or ():
                if task.done():
                    task.result()
            await asyncio.sleep(0.05)


async def settle(doctors: list[Doctor], bells: Bells) -> None:
    """Everybody is back; then nothing that was accepted is missing, on any phone."""
    await until(lambda: all(doctor.phone.socket is not None for doctor in doctors))
    await bells.ring()
    last = bells.recorded[-1]
    await until(lambda: all(last in doctor.alerts for doctor in doctors))
    for doctor in doctors:
        doctor.stop()
    await until(lambda: all(doctor.waiting is None for doctor in doctors))
    for doctor in doctors:
        # ChatClient itself raises on a second answer, a gap, and a number that comes twice.
        assert set(doctor.phone.accepted) <= set(doctor.phone.answers)
        assert [len(doctor.phone.answers[msg_id]) for msg_id in doctor.asked] == [1] * len(doctor.asked)
        assert set(bells.recorded) <= doctor.alerts


def assert_back_in_time(doctors: list[Doctor]) -> None:
    """95 of 100 that were away were back in time; the figures are printed by -rP."""
    reasons = sum((doctor.reasons for doctor in doctors), Counter())
    away_s = sorted(seconds for doctor in doctors for seconds in doctor.away_s)
    print(f"away {len(away_s)}: median {away_s[len(away_s) // 2]:.2f} s, longest {away_s[-1]:.2f} s; {dict(reasons)}")
    assert sum(seconds <= BACK_S for seconds in away_s) >= 0.95 * len(away_s)


async def test_reload_leaves_open_sockets_and_lets_new_ones_in(ward: Ward, doctors: list[Doctor]) -> None:
    """After a reload new workers take new connections, and no phone has lost its own."""
    bells = Bells(ward)
    before = await asyncio.to_thread(ward.front.workers)
    lines = [doctor.phone.socket for doctor in doctors]
    await asyncio.to_thread(ward.front.render)
    await asyncio.to_thread(ward.front.reload)
    await until(lambda: not ward.front.workers() <= before)
    counts = [len(doctor.phone.answers) for doctor in doctors]
    await until(lambda: all(len(d.phone.answers) > n for d, n in zip(doctors, counts, strict=True)))
    newcomer = Doctor(ward, PHONES)
    running = asyncio.create_task(newcomer.run())
    await until(lambda: bool(newcomer.phone.answers), [running])
    newcomer.stop()
    await running
    await newcomer.phone.close()
    assert [doctor.phone.socket for doctor in doctors] == lines
    assert [doctor.connections for doctor in doctors] == [1] * PHONES
    await settle(doctors, bells)


async def test_nginx_killed_and_started_again_loses_nothing(ward: Ward, doctors: list[Doctor]) -> None:
    """SIGKILL to all of nginx: the phones come back to the next one and resume; what was accepted is there."""
    bells = Bells(ward)
    ringing = asyncio.create_task(bells.run())
    await until(lambda: len(bells.recorded) > 1)
    await asyncio.to_thread(ward.front.kill)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(ward.front.restart)
    await until(lambda: all(doctor.connections > 1 for doctor in doctors))
    ringing.cancel()
    await settle(doctors, bells)
    assert_back_in_time(doctors)


async def test_gateway_killed_sends_its_phones_to_the_other(ward: Ward, doctors: list[Doctor]) -> None:
    """SIGKILL to one gateway, which stays away: its phones go on at the other one, through the same address."""
    bells = Bells(ward)
    ringing = asyncio.create_task(bells.run())
    await until(lambda: len(bells.recorded) > 1)
    await asyncio.to_thread(ward.kill, "b")
    try:
        await until(lambda: any(doctor.connections > 1 for doctor in doctors))
        await until(lambda: all(doctor.phone.socket is not None for doctor in doctors))
        ringing.cancel()
        await settle(doctors, bells)
        assert_back_in_time(doctors)
    finally:
        # The other tests need both.
        await asyncio.to_thread(ward.start, "b")


async def test_rolling_upgrade_loses_no_session(ward: Ward, doctors: list[Doctor], tmp_path: Path) -> None:
    """roll.py restarts both gateways in turn: every phone resumes its session, and nothing accepted is lost."""
    bells = Bells(ward)
    sessions = {doctor.phone.session_id: doctor.phone.epoch for doctor in doctors}
    ended = threading.Event()
    manager = threading.Thread(target=_service_manager, args=(ward, tmp_path, ended))
    manager.start()
    ringing = asyncio.create_task(bells.run())
    asked = shlex.quote(f"{tmp_path}/{{}}")
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            [
                *(sys.executable, str(NGINX_DIR / "roll.py"), str(ward.front.site), str(ward.front.conf)),
                *("--test", shlex.join(ward.front.command("-t"))),
                *("--reload", shlex.join(ward.front.command("-s", "reload"))),
                *("--restart", f"sh -c 'touch {asked}; while [ -e {asked} ]; do sleep 0.05; done'"),
                *("--pause", "2"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        ended.set()
        await asyncio.to_thread(manager.join)
        ringing.cancel()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:-1] == [
        f"{name}: {what}" for name in ("a", "b") for what in ("no new connections", "restarting", "ready")
    ]
    await settle(doctors, bells)
    assert all(doctor.connections > 1 for doctor in doctors)
    assert {doctor.phone.session_id: doctor.phone.epoch for doctor in doctors} == sessions
    assert_back_in_time(doctors)


def _service_manager(ward: Ward, folder: Path, ended: threading.Event) -> None:
    """Restarts the gateway whose name is touched in the folder, and removes the file when it runs."""
    while not ended.wait(0.05):
        for name in ("a", "b"):
            if (folder / name).exists():
                ward.restart(name)
                (folder / name).unlink()


def test_roll_stops_where_no_other_gateway_is_ready(ward: Ward, tmp_path: Path) -> None:
    """With one gateway away the other one is not restarted: nobody would be left."""
    alone = Front({"a": ward.front.gateways["a"], "c": f"unix:{tmp_path}/nobody.sock"})
    try:
        done = subprocess.run(
            [sys.executable, str(NGINX_DIR / "roll.py"), str(alone.site), str(alone.conf), "--restart", "false"],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        alone.stop()
    assert done.returncode == 1
    assert "no other gateway is ready" in done.stderr


def test_department_goes_to_its_gateway_and_to_another_while_that_is_away(ward: Ward) -> None:
    """Requests of a named department reach its gateway alone; with it down, another one answers them."""
    routed = Front(ward.front.gateways, {"cardiology": ["b"]})
    headers = {"Authorization": f"Bearer {ward.token('dr.route.cardio')}"}
    try:
        routed.start()
        for down in ((), ("b",)):
            if down:
                routed.render(*down)
                old = routed.workers()
                routed.reload()
                give_up = time.monotonic() + SETTLED_S
                while routed.workers() & old and time.monotonic() < give_up:
                    time.sleep(0.05)
            for _ in range(6):
                assert routed.get("/v1/departments/cardiology/patients", **headers)[0] == 200
        expected = [ward.front.gateways["b"]] * 6 + [ward.front.gateways["a"]] * 6
        access = routed.folder / "logs" / "access.log"
        # nginx logs a request once its answer has gone out.
        give_up = time.monotonic() + SETTLED_S
        while len(access.read_text().splitlines()) < len(expected) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert [json.loads(line)["gateway"] for line in access.read_text().splitlines()] == expected
    finally:
        routed.stop()
