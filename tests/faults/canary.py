"""Write what nobody else writes, kill everything at seeded moments, and look for it on the disk and in memory.

``python -m tests.faults.canary --runs 20`` exits with 1 where a word that a doctor wrote, a model answered or a record
held is found on the disk, or where the search finds less than was planted for it. One run is a ``chatd up`` of its own
with all that it writes (data, working directory, home, temporary files) on a small ext4 image, so that blocks of
deleted files are looked at too; that needs Linux and root, and the report says where it could not be done.

A run: three doctors ask, judge, alert and send bad frames while gateway, worker, Redis or all of them are killed
(SIGKILL, SIGTERM, SIGABRT, SIGSEGV) and come back, with core dumps allowed; then they ask again in peace, end their
sessions, and after ``--memory-s`` the memory of every process is read. Then all is stopped or killed and searched:
files, deleted files still open, core dumps, what was printed, files changed elsewhere in the meantime, the raw image.

Each kind of word has a mark of its own: ``said`` (questions, judgements), ``bad`` (frames, requests and tokens that are
refused), ``patient`` (name and notes of an imported record), ``alert`` (texts and reasons of alerts, which the ledger
keeps sealed), ``shown`` (words of the model's answers) and ``id`` (the phone's own names for itself, its sessions and
messages). Ids may be in the ledger, where the audit keeps some of them, and nothing may be anywhere else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import random
import secrets
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from chatd.gateway.auth import mint
from chatd.places import Places
from chatd.settings import Settings
from tests.blas import fast_blas
from tests.chat_client import Broken, ChatClient
from tests.faults.canary_search import Hit, Searcher, deleted_files, files_below, memory_of, pieces_of
from tests.server import ROOT, clean_environment

OUT: Final = ROOT / "out" / "faults" / "canary.json"
DEPARTMENT: Final = "cardiology"
DOCTORS: Final = (
    ("dr.santos.cardio", "physician"),
    ("dr.mendes.cardio", "physician"),
    ("nurse.almeida.cardio", "nurse"),
)
FAULTS_PER_RUN: Final = 3
IMAGE_BYTES: Final = 384 * 1024 * 1024
#: What is read of files that were changed elsewhere, where others are at work too.
ELSEWHERE_BYTES: Final = 1024 * 1024 * 1024
#: No wait is longer.
WAIT_S: Final = 180.0
ENV: Final = {
    "CHATD_MESSAGES_PER_MINUTE": "100000",
    "CHATD_ENGINE_SLOTS": "4",
    "CHATD_ENGINE_RESERVED_SLOTS": "1",
    "CHATD_ANSWER_MAX_TOKENS": "120",
    "CHATD_PROMPT_BUDGET_TOKENS": "2200",
    "CHATD_DRAIN_SPREAD_S": "0.5",
}
Kind = Literal["said", "bad", "patient", "alert", "id", "core", "disk", "file"]
KINDS: Final[tuple[Kind, ...]] = ("said", "bad", "patient", "alert", "id", "core", "disk", "file")
#: Planted by the campaign itself, to be found.
CONTROLS: Final = frozenset({"core", "disk", "file"})
#: What a session's end ends. Records are there while they are loaded, alerts while they are open.
OF_SESSIONS: Final = frozenset({"said", "bad", "shown"})
Victim = Literal["gateway", "worker", "redis", "all"]
FAULTS: Final[tuple[tuple[Victim, signal.Signals], ...]] = (
    ("gateway", signal.SIGKILL),
    ("gateway", signal.SIGABRT),
    ("redis", signal.SIGTERM),
    ("worker", signal.SIGABRT),
    ("gateway", signal.SIGTERM),
    ("redis", signal.SIGKILL),
    ("worker", signal.SIGKILL),
    ("redis", signal.SIGABRT),
    ("gateway", signal.SIGSEGV),
    ("all", signal.SIGKILL),
)
#: Before a command: its core dumps may have any size. Nothing of the campaign's own runs in the child.
WITH_CORES: Final = ("/bin/sh", "-c", 'ulimit -c "$(ulimit -H -c)"; exec "$@"', "sh")
#: Characters of a model's answer that are looked for together, and how many such pieces of a run are looked for.
_WINDOW: Final = 28
_WINDOWS: Final = 12


class Marks:
    """The run's marks: every word of a kind begins with the kind's mark, and all marks with the same letters."""

    def __init__(self, chance: random.Random) -> None:
        letters = [each for each in string.ascii_lowercase if each not in "aeiou"]
        run = "".join(chance.choices(letters, k=10))
        self.of: dict[Kind, str] = {kind: f"{run}{''.join(chance.choices(letters, k=8))}" for kind in KINDS}
        self.kind_of = {mark: kind for kind, mark in self.of.items()}
        self._chance = chance

    def word(self, kind: Kind) -> str:
        """A new word of this kind, with signs that are not ASCII where it is no id."""
        tail = "".join(self._chance.choices(string.ascii_lowercase, k=6))
        return f"{self.of[kind]}{tail}" if kind == "id" else f"{self.of[kind]}é{tail}"


class Finding(msgspec.Struct, frozen=True):
    """Something that was found: ``kind`` of the word, the place, and in which form."""

    kind: str
    where: str
    form: str


class Result(msgspec.Struct, kw_only=True):
    """One run: what was broken, searched and found. ``hits``: what must not be. Sizes in bytes."""

    seed: int
    engine: str
    faults: list[str] = []
    searched: dict[str, int] = {}
    files: int = 0
    cores: list[str] = []
    hits: list[Finding] = []
    #: Kind and process, of what a session's end does not end.
    kept: list[Finding] = []
    controls: dict[str, bool] = {}
    notes: list[str] = []
    answers: int = 0
    seconds: float = 0.0


# --- the disk -----------------------------------------------------------------------------------------------


class Disk:
    """A folder on an ext4 image of its own; ``image`` is None where this system lets nobody make one."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "state"
        self.folder.mkdir()
        self.image: Path | None = None
        image = work / "state.img"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        try:
            subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
            subprocess.run(["mount", "-o", "loop", str(image), str(self.folder)], check=True, capture_output=True)
            self.image = image
        except (OSError, subprocess.CalledProcessError):
            image.unlink()

    def settle(self) -> None:
        """Have everything on the image that was written."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        subprocess.run(["sync", "-f", str(self.folder)], check=False)

    def unmount(self) -> None:
        """Twice does no harm."""
        if self.image is not None and self.folder.is_mount():
            subprocess.run(["umount", str(self.folder)], check=True, capture_output=True)


# --- chatd --------------------------------------------------------------------------------------------------


class Stand:
    """A ``chatd up`` whose every file is on the disk's folder; what it prints goes to ``log``."""

    def __init__(self, disk: Disk, log: Path, engine: Sequence[str]) -> None:
        self.data = disk.folder / "data"
        self._folder = disk.folder
        self._log = log
        self._engine = engine
        self.url = ""
        self._up: subprocess.Popen[bytes] | None = None
        self._seen: set[int] = set()
        for name in ("tmp", "home", "cwd"):
            (disk.folder / name).mkdir()

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        places = {"TMPDIR": folder / "tmp", "HOME": folder / "home", "XDG_CACHE_HOME": folder / "home" / "cache"}
        return {**clean_environment(), **fast_blas(), **ENV, **{name: str(path) for name, path in places.items()}}

    def start(self) -> None:
        """Start it with core dumps allowed, and wait until it is ready. Raises Broken."""
        command = [sys.executable, "-m", "chatd", "up", "--data-dir", str(self.data), "--port", "0", *self._engine]
        before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._up = subprocess.Popen(
                [*WITH_CORES, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder / "cwd",
                env=self._environment(),
            )
        give_up = time.monotonic() + WAIT_S
        while time.monotonic() < give_up:
            for line in self._log.read_bytes()[before:].decode(errors="replace").splitlines():
                if line.startswith("ready "):
                    self.url = line.split()[1]
                    return
            if self._up.poll() is not None:
                break
            time.sleep(0.1)
        raise Broken(f"chatd up was not ready: {self._log.read_text(errors='replace')[-1500:]}")

    def run(self, *arguments: str) -> None:
        """One command of chatd on this installation; its answer is for the person who gave it, and is dropped."""
        with self._log.open("ab") as log:
            subprocess.run(
                [sys.executable, "-m", "chatd", *arguments, "--data-dir", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                check=True,
                timeout=WAIT_S,
                cwd=self._folder / "cwd",
                env=self._environment(),
            )

    def token(self, user: str, role: str, device: str | None = None) -> str:
        secret = Places(Settings(data_dir=str(self.data), demo=True)).jwt_secret()
        return mint(
            secret,
            user_id=user,
            departments=(DEPARTMENT,),
            roles=(role,),
            ttl_s=43_000,
            now=datetime.now(UTC),
            device=device,
        )

    def pids(self) -> dict[int, str]:
        """Each process of it, by what it is: up, gateway, worker, supervisor, redis."""
        if self._up is None or self._up.poll() is not None:
            return {}
        listed = subprocess.run(["ps", "-axo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        rows = [
            (int(pid), int(parent), rest) for pid, parent, rest in (line.split(None, 2) for line in listed.splitlines())
        ]
        found, waiting = {self._up.pid: "up"}, [self._up.pid]
        while waiting:
            above = waiting.pop()
            for pid, parent, words in rows:
                if parent == above:
                    found[pid] = _role_of(words)
                    waiting.append(pid)
        self._seen |= found.keys()
        return found

    def strike(self, victim: Victim, number: signal.Signals) -> None:
        """Signal what is running of the victim."""
        for pid, role in self.pids().items():
            if victim in ("all", role):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if victim == "all" and self._up is not None:
            self._up.wait(WAIT_S)

    def stop(self) -> None:
        """SIGTERM and wait; what outlived its supervisor is killed."""
        self.pids()
        if self._up is not None and self._up.poll() is None:
            self._up.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._up.wait(WAIT_S)
        self.strike("all", signal.SIGKILL)
        for pid in self._seen:
            with contextlib.suppress(OSError):
                # The id may be another process's by now; its folder is nobody else's.
                if Path(f"/proc/{pid}/cwd").readlink().is_relative_to(self._folder):
                    os.kill(pid, signal.SIGKILL)


def _role_of(words: str) -> str:
    program = words.split(maxsplit=1)[0]
    if "redis" in program or "valkey" in program:
        return "redis"
    if " serve " in words:
        return "gateway"
    return "worker" if "--supervised" in words else "supervisor"


def record_of(marks: Marks) -> dict[str, Any]:
    """A patient whose name, problem and note are words of the run."""

    def entry(resource_: dict[str, Any]) -> dict[str, Any]:
        return {
            "resource": resource_,
            "request": {"method": "PUT", "url": f"{resource_['resourceType']}/{resource_['id']}"},
        }

    name, problem, note = (marks.word("patient") for _ in range(3))
    subject = {"reference": "Patient/99001"}
    return {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            entry(
                {
                    "resourceType": "Patient",
                    "id": "99001",
                    "identifier": [{"system": "urn:test:mr", "value": "99001"}],
                    "name": [{"text": f"Ana {name}", "family": name, "given": ["Ana"]}],
                    "gender": "female",
                    "birthDate": "1950-02-03",
                }
            ),
            entry(
                {
                    "resourceType": "Condition",
                    "id": "c1",
                    "clinicalStatus": {
                        "coding": [
                            {"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "active"}
                        ]
                    },
                    "code": {"text": f"Suspected {problem}"},
                    "subject": subject,
                }
            ),
            entry(
                {
                    "resourceType": "Observation",
                    "id": "o1",
                    "status": "final",
                    "code": {"text": "12-lead ECG report"},
                    "subject": subject,
                    "effectiveDateTime": "2026-01-10T08:00:00Z",
                    "valueString": f"Sinus rhythm, {note}.",
                }
            ),
        ],
    }


# --- the doctors --------------------------------------------------------------------------------------------


class Doctor:
    """One doctor's phone; it comes back by itself. ``answers``: what was shown to it."""

    def __init__(self, stand: Stand, marks: Marks, user: str, role: str) -> None:
        self._stand = stand
        self._marks = marks
        self._user, self._role = user, role
        self.answers: list[str] = []
        self._client = self._new()

    def _new(self) -> ChatClient:
        device = marks_id(self._marks)
        client = ChatClient(
            self._stand.url,
            department=DEPARTMENT,
            user_id=self._user,
            token=self._stand.token(self._user, self._role, device),
            session_id=marks_id(self._marks),
            wait_s=WAIT_S / 2,
        )
        client.device_id = device
        return client

    async def connected(self) -> None:
        """Be connected and have a session, again and again until it is so. Raises TimeoutError."""
        async with asyncio.timeout(WAIT_S):
            await self._client.come_back(self._stand.url)

    async def work(self, *, is_rough: bool) -> None:
        """Ask, judge, and raise an alert; ``is_rough``: whatever comes in between is not complained of."""
        said, alert = (self._marks.word(kind) for kind in ("said", "alert"))
        about = random.Random(said).choice(("99001", "7823", None))
        try:
            raised = marks_id(self._marks)
            await self._client.send(
                {
                    "type": "alert_raise",
                    "client_msg_id": raised,
                    "to": {"department": DEPARTMENT},
                    "priority": "high",
                    "content": f"Come to bed 4: {alert}",
                    "requires_action": True,
                    **({"patient_id": about} if about else {}),
                }
            )
            frames = await self._client.ask(
                f"Summarise the case. {said} is what he told me, and “{self._marks.word('said')}”.",
                about,
                client_msg_id=marks_id(self._marks),
                patient=True,
            )
            last = frames[-1]
            if last["type"] != "ai_response":
                if is_rough:
                    return
                raise Broken(f"no answer: {last.get('code')}")
            self.answers.append("".join(each["text"] for each in frames if each["type"] == "ai_delta"))
            await self._client.send(
                {
                    "type": "feedback",
                    "client_msg_id": marks_id(self._marks),
                    "response_id": last["response_id"],
                    "useful": False,
                    "text": f"Wrong: {self._marks.word('said')}",
                }
            )
            alerts = [each for each in self._client.direct if each["type"] == "system_notification"]
            for each in alerts[-1:]:
                await self._client.send(
                    {
                        "type": "alert_response",
                        "client_msg_id": marks_id(self._marks),
                        "alert_id": each["alert_id"],
                        "answer": "decline",
                        "reason": f"I am with {self._marks.word('alert')}",
                    }
                )
        except (OSError, TimeoutError, ConnectionClosed, Broken, AssertionError):
            if not is_rough:
                raise

    async def end(self) -> None:
        """End the session, and hear the server close."""
        code = 0
        for _ in range(3):
            with contextlib.suppress(ConnectionClosed):
                await self._client.send({"type": "session_end"})
            code = await self._client.closed_with()
            if code == 1000:
                return
            await self.connected()
        raise Broken(f"the session was not ended: {code}")

    async def misbehave(self) -> None:
        """Frames, requests and tokens that are refused, each with a word in it."""

        def bad() -> str:
            return self._marks.word("bad")

        frames: list[str | bytes] = [
            f'{{"type":"user_message","content":"{bad()}',
            json.dumps({"type": "user_message", "client_msg_id": "x", "content": 5, "other": bad()}),
            json.dumps({"type": bad()}),
            json.dumps({"type": "user_message", "client_msg_id": f"../{bad()}", "content": bad()}),
            json.dumps({"type": "user_message", "client_msg_id": "y", "content": f"{bad()} " * 300}),
            json.dumps({"type": "user_message", "client_msg_id": "z", "content": f"\u202e{bad()}"}),
            json.dumps({"type": "alert_raise", "client_msg_id": "a", "to": {"role": bad()}, "content": bad()}),
            json.dumps({"type": "context_set", "client_msg_id": "c", "patient_id": marks_id(self._marks, "bad")}),
            json.dumps({"type": "user_message", "content": bad() * 4000}),
            json.dumps({"type": "user_message", "content": bad()}).encode()[:-3] + b"\xff\xfe",
        ]
        for frame in frames:
            client = self._new()
            with contextlib.suppress(
                OSError, TimeoutError, ConnectionClosed, Broken, InvalidHandshake, InvalidMessage, AssertionError
            ):
                await client.connect(self._stand.url)
                assert client.socket is not None
                await client.socket.send(frame, text=True)
                async with asyncio.timeout(0.3):
                    await client.receive()
            await client.cut()
        client = self._new()
        client.token = f"{self._marks.word('bad')}.eyJ.x".replace("é", "")
        with contextlib.suppress(OSError, TimeoutError, ConnectionClosed, Broken, InvalidHandshake, InvalidMessage):
            await client.connect(self._stand.url)
        await client.cut()
        token = self._stand.token(self._user, self._role)
        path = self._marks.of["bad"]
        for url, body in (
            (f"/{path}?q={path}", None),
            (f"/chat/{path}/{path}", None),
            (f"/v1/departments/{DEPARTMENT}/alerts", json.dumps({"content": bad(), "priority": bad()}).encode()),
            ("/v1/fhir/CommunicationRequest", bad().encode()),
            ("/v1/demo/token", json.dumps({"user_id": bad()}).encode()),
        ):
            await asyncio.to_thread(_request, f"{self._stand.url}{url}", body, token)

    async def cut(self) -> None:
        await self._client.cut()


def marks_id(marks: Marks, kind: Kind = "id") -> str:
    """A new id with the mark of a kind in it."""
    return f"{marks.of[kind]}{secrets.token_hex(4)}"


def _request(url: str, body: bytes | None, token: str) -> None:
    headers = {
        "Authorization": f"Bearer {token}",
        "Idempotency-Key": secrets.token_hex(4),
        "Content-Type": "application/json",
    }
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - the gateway of this run
    with contextlib.suppress(OSError, urllib.error.URLError, ValueError), urllib.request.urlopen(request, timeout=5):  # noqa: S310
        pass


# --- one run ------------------------------------------------------------------------------------------------


class Run:
    """One run from an empty disk to its raw image. ``folder`` is emptied by the caller."""

    def __init__(self, seed: int, folder: Path, engine: Sequence[str], *, memory_s: float) -> None:
        self._chance = random.Random(seed)
        self._marks = Marks(self._chance)
        self._searcher = Searcher(self._marks.of.values())
        self._plain = Searcher(self._marks.of.values(), is_plain=True)
        self._folder = folder
        self._memory_s = memory_s
        self._began_s = time.time()
        self._is_model = "mlx" in engine
        self.result = Result(seed=seed, engine="mlx, tiny model" if self._is_model else "scripted")
        self._disk = Disk(folder)
        self._stand = Stand(self._disk, folder / "chatd.log", engine)
        self._words: Searcher | None = None

    def run(self) -> Result:
        """All of it. Raises Broken, TimeoutError where chatd does not come back."""
        begin = time.monotonic()
        try:
            self._plant()
            self._stand.start()
            self._import()
            asyncio.run(self._story())
            self._search_open_files()
            if self._chance.random() < 0.5:
                self._stand.stop()
            else:
                self._stand.strike("all", signal.SIGKILL)
            self._search_files()
            self._disk.settle()
            self._disk.unmount()
            self._search_image()
        finally:
            self._stand.stop()
            self._disk.unmount()
        self.result.seconds = time.monotonic() - begin
        return self.result

    # --- what is to be found ---

    def _plant(self) -> None:
        """A file that is deleted again, one that is encoded thrice, and a core dump of a process that knows a word."""
        folder = self._disk.folder
        deleted = folder / "deleted"
        with deleted.open("wb") as file:
            # Many blocks: some of them are written over by what follows.
            for _ in range(512):
                file.write(f"{self._marks.word('disk')}\n".encode().ljust(4096, b"."))
            file.flush()
            os.fsync(file.fileno())
        deleted.unlink()
        encoded = gzip.compress(json.dumps({"content": self._marks.word("file")}).encode("utf-16-le"))
        (folder / "encoded").write_bytes(encoded)
        script = "import os, sys; word = sys.stdin.readline() * 9; os.abort()"
        subprocess.run(
            [*WITH_CORES, sys.executable, "-c", script],
            input=self._marks.word("core").encode(),
            cwd=folder / "cwd",
            check=False,
            capture_output=True,
        )

    def _import(self) -> None:
        # Records are imported from files of the hospital's, which stay its own: not on the disk that is searched.
        source = self._folder / "record.fhir.json"
        source.write_text(json.dumps(record_of(self._marks)))
        self._stand.run("fhir", "import", str(source), "--department", DEPARTMENT)

    # --- the story ---

    async def _story(self) -> None:
        doctors = [Doctor(self._stand, self._marks, user, role) for user, role in DOCTORS]
        await asyncio.gather(*(doctor.connected() for doctor in doctors))
        first = self._chance.randrange(len(FAULTS))
        chosen = [FAULTS[(first + 3 * n) % len(FAULTS)] for n in range(FAULTS_PER_RUN)]
        for victim, number in chosen:
            self.result.faults.append(f"{victim} {number.name}")
            working = [asyncio.create_task(doctor.work(is_rough=True)) for doctor in doctors]
            working.append(asyncio.create_task(self._chance.choice(doctors).misbehave()))
            await asyncio.sleep(self._chance.random() * 1.2)
            await asyncio.to_thread(self._stand.strike, victim, number)
            if victim == "all":
                await asyncio.to_thread(self._stand.start)
            await asyncio.sleep(self._chance.random())
            for doctor in doctors:
                await doctor.cut()
            done, late = await asyncio.wait(working, timeout=WAIT_S)
            for task in late:
                task.cancel()
            for task in done:
                task.result()
            await asyncio.gather(*(doctor.connected() for doctor in doctors))
        await self._in_peace(doctors)

    async def _in_peace(self, doctors: Sequence[Doctor]) -> None:
        """Whole answers, then the end of all sessions; memory is read before and after."""
        await self._loaded()
        await doctors[0].misbehave()
        # A phone that has not been read meanwhile is not answering pings.
        for doctor in doctors:
            await doctor.cut()
        await asyncio.gather(*(doctor.connected() for doctor in doctors))
        await asyncio.gather(*(doctor.work(is_rough=False) for doctor in doctors))
        live = await asyncio.to_thread(self._search_memory, "during")
        self.result.controls["live memory"] = any(each.kind == "said" and each.where == "gateway" for each in live)
        shown = [each for doctor in doctors for each in doctor.answers]
        self.result.answers = len(shown)
        if self._is_model:
            words = sorted({word for answer in shown for word in windows(answer)})
            self._words = Searcher(self._chance.sample(words, min(_WINDOWS, len(words))), is_plain=True)
        await asyncio.gather(*(doctor.end() for doctor in doctors))
        await asyncio.sleep(self._memory_s)
        for finding in await asyncio.to_thread(self._search_memory, "after"):
            # Redis sees no word in the clear at any time; ids are in its keys' names.
            is_ended = finding.kind in OF_SESSIONS or (finding.where == "redis memory" and finding.kind != "id")
            (self.result.hits if is_ended else self.result.kept).append(finding)

    async def _loaded(self) -> None:
        """Wait until gateway and worker are there again."""
        give_up = time.monotonic() + WAIT_S
        while time.monotonic() < give_up:
            with contextlib.suppress(OSError, ValueError, urllib.error.URLError, RedisError):
                body = await asyncio.to_thread(_health, self._stand.url)
                if body["status"] == "healthy":
                    return
            await asyncio.sleep(0.3)
        raise Broken("not healthy again")

    # --- looking ---

    def _found(self, hits: Iterable[Hit], where: str) -> list[Finding]:
        return [Finding(self._marks.kind_of.get(hit.text, "shown"), where, hit.form) for hit in hits]

    def _look(self, pieces: Callable[[], Iterator[bytes]], *, deep: bool) -> tuple[list[Hit], int]:
        hits, size = (self._searcher if deep else self._plain).find_in(pieces(), deep=deep)
        if self._words is not None:
            hits += self._words.find_in(pieces(), deep=False)[0]
        return hits, size

    def _count(self, what: str, size_bytes: int) -> None:
        self.result.searched[what] = self.result.searched.get(what, 0) + size_bytes

    def _search_memory(self, when: str) -> list[Finding]:
        found = []
        for pid, role in self._stand.pids().items():
            try:
                hits, size = self._look(lambda pid=pid: memory_of(pid), deep=False)  # type: ignore[misc]
            except OSError:
                self.result.notes.append(f"memory of {role} could not be read {when}")
                continue
            self._count(f"memory {when}", size)
            found += self._found(hits, role if when == "during" else f"{role} memory")
        return found

    def _search_open_files(self) -> None:
        for pid, role in self._stand.pids().items():
            for path in deleted_files(pid):
                self._search_file(path, f"a deleted file of {role}", "deleted files, open")

    def _search_file(self, path: Path, where: str, what: str, *, deep: bool = True) -> None:
        try:
            hits, size = self._look(lambda: _pieces(path), deep=deep)
        except OSError:
            return
        self._count(what, size)
        self.result.files += 1
        self._judge(self._found(hits, where))

    def _judge(self, found: Iterable[Finding]) -> None:
        for finding in found:
            if finding.kind in CONTROLS:
                self.result.controls[finding.kind] = True
            elif finding.kind == "id" and "ledger.sqlite3" in finding.where:
                self.result.kept.append(finding)
            else:
                self.result.hits.append(finding)

    def _search_files(self) -> None:
        """Everything on the disk, what was printed, and what has changed elsewhere."""
        controls = self.result.controls
        controls["file"] = controls["core"] = False
        folder = self._disk.folder
        for path in files_below([folder]):
            if path.name.startswith("core"):
                self.result.cores.append(str(path.relative_to(folder)))
            self._search_file(path, str(path.relative_to(folder)), "files")
        self._search_file(self._folder / "chatd.log", "what chatd printed", "printed")
        # The campaign's own folder holds the record's source; others are at work in the same places.
        elsewhere = [
            Path(tempfile.gettempdir()),
            *map(Path, ("/var/tmp", "/var/log", "/var/crash", "/dev/shm", "/run")),
        ]
        elsewhere.append(Path("/var/lib/systemd/coredump"))
        changed = files_below(
            [place for place in elsewhere if place.is_dir()],
            changed_since_s=self._began_s,
            without=[self._folder.parent],
        )
        left_bytes, left_out = ELSEWHERE_BYTES, 0
        for path in changed:
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                if size > left_bytes:
                    left_out += 1
                    continue
                left_bytes -= size
                self._search_file(path, str(path), "changed elsewhere", deep=False)
        if left_out:
            self.result.notes.append(f"{left_out} files that others changed elsewhere were too large to be searched")
        if not self.result.cores:
            pattern = Path("/proc/sys/kernel/core_pattern")
            told = pattern.read_text().strip() if pattern.exists() else "not known"
            self.result.notes.append(f"no core file was made here (core_pattern: {told})")
            del controls["core"]

    def _search_image(self) -> None:
        image = self._disk.image
        if image is None:
            self.result.notes.append("no image could be mounted: blocks of deleted files were not looked at")
            return
        self.result.controls["disk"] = False
        ledger = [each for each in self.result.kept if each.kind == "id"]
        before = len(self.result.hits)
        self._search_file(image, "the raw image", "raw image")
        # The ledger lies on the image, with the ids that it may hold.
        if ledger:
            self.result.hits[before:] = [each for each in self.result.hits[before:] if each.kind != "id"]


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from pieces_of(file)


def windows(text: str) -> set[str]:
    """Some pieces of an answer that no other text has: without digits, line breaks and the labels of sections."""
    lines = [line.strip("-• ") for line in text.splitlines()]
    long = [line for line in lines if len(line) >= _WINDOW]
    return {line[at : at + _WINDOW] for line in long for at in (0, len(line) - _WINDOW)} if long else set()


def _health(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/health", timeout=3) as answer:  # noqa: S310 - the gateway of this run
        body: dict[str, Any] = json.load(answer)
    return body


# --- all runs -----------------------------------------------------------------------------------------------


def one_run(seed: int, folder: Path, engine: Sequence[str], memory_s: float) -> Result:
    """One run in a folder of its own; a chatd that does not come back is a hit too."""
    place = folder / f"run-{seed}"
    place.mkdir()
    run = Run(seed, place, engine, memory_s=memory_s)
    try:
        return run.run()
    except (Broken, TimeoutError, OSError, subprocess.SubprocessError) as error:
        run.result.hits.append(Finding("run", "not finished", repr(error)[:1500]))
        return run.result
    finally:
        shutil.rmtree(place, ignore_errors=True)


def campaign(
    first_seed: int, runs: int, *, memory_s: float, at_once: int, mlx_every: int, show: bool = True
) -> list[Result]:
    """All runs, ``at_once`` side by side; each ``mlx_every``-th with the tiny model (0: none)."""
    with tempfile.TemporaryDirectory(prefix="chatd-canary-") as name, Progress(disable=not show) as progress:
        folder = Path(name)
        if mlx_every:
            from chatd.inference import tiny

            # The model's files are no state; they lie beside.
            tiny.make(folder / "tiny", "1m")
        engines = {
            seed: ["--engine", "mlx", "--model", str(folder / "tiny")]
            if mlx_every and seed % mlx_every == 0
            else ["--engine", "scripted"]
            for seed in range(first_seed, first_seed + runs)
        }
        task = progress.add_task("canaries", total=runs)
        results = []
        with ThreadPoolExecutor(at_once) as pool:
            try:
                for result in pool.map(lambda seed: one_run(seed, folder, engines[seed], memory_s), engines):
                    results.append(result)
                    progress.advance(task)
            except KeyboardInterrupt:
                # Those under way end by themselves, and clean up.
                pool.shutdown(cancel_futures=True)
                raise
    return results


def is_good(result: Result) -> bool:
    """Nothing was found that must not be, and everything that was planted."""
    return not result.hits and all(result.controls.values()) and bool(result.controls)


def table_of(results: Sequence[Result]) -> Table:
    table = Table(title="Canaries")
    for name in (
        "seed",
        "engine",
        "broken",
        "answers",
        "searched MB",
        "raw MB",
        "memory MB",
        "planted and found",
        "hits",
    ):
        table.add_column(name, justify="right" if name.endswith(("MB", "hits", "answers")) else "left")
    for each in results:
        sizes = {name: size / 1e6 for name, size in each.searched.items()}
        controls = ", ".join(name if found else f"NOT {name}" for name, found in sorted(each.controls.items()))
        table.add_row(
            str(each.seed),
            each.engine,
            ", ".join(each.faults),
            str(each.answers),
            f"{sum(size for name, size in sizes.items() if not name.startswith(('memory', 'raw'))):.0f}",
            f"{sizes.get('raw image', 0):.0f}",
            f"{sizes.get('memory after', 0):.0f}",
            controls,
            str(len(each.hits)),
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="(default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default: 0)")
    parser.add_argument(
        "--memory-s", type=float, default=300.0, help="read memory so long after the sessions' end (default: 300)"
    )
    parser.add_argument("--at-once", type=int, default=5, help="runs side by side; most of one is waiting (default: 5)")
    parser.add_argument(
        "--mlx-every", type=int, default=2, help="each so many runs has the tiny model; 0: none (default: 2)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"(default: {OUT.relative_to(ROOT)})")
    arguments = parser.parse_args()
    # As Ctrl-C does it: nothing is left running or mounted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = campaign(
        arguments.seed,
        arguments.runs,
        memory_s=arguments.memory_s,
        at_once=arguments.at_once,
        mlx_every=arguments.mlx_every,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(
        msgspec.json.format(msgspec.json.encode({"memory_s": arguments.memory_s, "runs": results}))
    )
    console = Console(width=200 if not sys.stdout.isatty() else None)
    console.print(table_of(results))
    for each in results:
        for finding, count in Counter(each.hits).items():
            console.print(
                f"seed {each.seed}: HIT {finding.kind} in {finding.where}: {finding.form} ({count})", markup=False
            )
    for note in sorted({note for each in results for note in each.notes}):
        console.print(note, markup=False)
    kept = Counter((finding.kind, finding.where) for each in results for finding in each.kept)
    for (kind, where), count in sorted(kept.items()):
        console.print(f"as it should be: {kind} in {where} ({count})", markup=False)
    if Path("/proc/swaps").exists() and len(Path("/proc/swaps").read_text().splitlines()) > 1:
        console.print("this machine swaps; its swap space was not searched")
    total = Counter[str]()
    for each in results:
        total.update(each.searched)
    sizes = ", ".join(f"{what} {size / 1e6:,.0f} MB" for what, size in sorted(total.items()))
    bad = [each.seed for each in results if not is_good(each)]
    console.print(f"searched: {sizes}; {sum(each.files for each in results)} files")
    console.print(
        f"{len(results) - len(bad)} passed, {len(bad)} failed{': seeds ' + ', '.join(map(str, bad)) if bad else ''}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
