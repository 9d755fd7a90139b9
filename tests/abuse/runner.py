"""Runs the tables of bad inputs against one real gateway and says what it answered to each.

``python -m tests.abuse.runner`` starts ``chatd up``, runs every case, and prints the groups, each case that ended
otherwise than its row says, and what the process gained in memory. ``--group`` runs one group.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import http.client
import json
import secrets
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from protocols.codec import json_to_msgpack
from tests.abuse.gateway import ENV, faults_in, gateway_pid, rss_bytes, secret_of, token_for
from tests.abuse.wire import BINARY, TEXT, WAIT_S, Ended, Peer, frame, phone, text, upgrade
from tests.http_call import call
from tests.server import Hospital, hospital

HERE = Path(__file__).parent
#: Rows: ``id``, ``input`` in words, ``kind`` (handshake, head, token, frame, wire, http) with what to send, and
#: ``expect``, the outcomes of which one must be seen: "http 403", "close 4501", "error bad_request", "frame pong",
#: "open" (a handshake was accepted), "cut" (the connection ended without a code).
CASES: list[dict[str, Any]] = [json.loads(line) for line in (HERE / "cases.jsonl").read_text("utf-8").splitlines()]
#: What the codec alone is tested with is sent over a socket too.
CODEC_CASES: list[dict[str, Any]] = [
    json.loads(line)
    for line in (HERE.parent / "protocols" / "bad_inputs.jsonl").read_text("utf-8").splitlines()
    if json.loads(line).get("mode", "v1") != "compat"
]
#: Who speaks in a case: user, department, role.
CAST = {
    "santos": ("dr.santos.cardio", "cardiology", "physician"),
    "mendes": ("dr.mendes.cardio", "cardiology", "physician"),
    "vieira": ("dr.vieira.surgery", "surgery", "physician"),
    "observer": ("o.observer", "cardiology", "observer"),
    "madeup": ("m.madeup", "cardiology", "superuser"),
    "clerk": ("c.clerk", "cardiology", "clerk"),
    "pharmacist": ("p.pharmacist", "cardiology", "pharmacist"),
    "service": ("lab", "cardiology", "service"),
    "nowhere": ("dr.nowhere", "nowhere", "physician"),
}
USER, DEPARTMENT = CAST["santos"][:2]


def group_of(case: dict[str, Any]) -> str:
    return str(case["id"].rsplit("-", 1)[0])


def data_of(case: dict[str, Any]) -> bytes:
    """The bytes of a row: ``hex``, ``body_hex``, ``parts`` or ``parts_hex``, each part so many times."""
    for name in ("hex", "body_hex"):
        if name in case:
            return bytes.fromhex(case[name])
    if "parts_hex" in case:
        return b"".join(bytes.fromhex(part) * times for part, times in case["parts_hex"])
    return "".join(part * times for part, times in case["parts"]).encode()


def encoded(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Run:
    """One gateway with a phone that looks on, and the cases that are run against it."""

    def __init__(self, place: Hospital) -> None:
        self.place = place
        self.url = place.url
        self.pid = gateway_pid(place)
        self.key = secret_of(place)
        self.tokens = {name: token_for(place, *who) for name, who in CAST.items()}
        self.names: dict[str, str] = {**self.tokens, "host": urlsplit(self.url).netloc}
        self.names["expired"] = self._token({"shift": {"iat": -7200, "exp": -3600}})
        self.names["santos_surgery"] = token_for(place, USER, "surgery")
        self.watcher: Peer

    async def begin(self) -> None:
        """The alerts and the session that cases are about, and a phone that stays to the end."""
        self.watcher = await phone(self.url, "dr.mendes.cardio", DEPARTMENT, self.tokens["mendes"])
        self._looking_on = asyncio.create_task(self._look_on())
        self.names["alert"] = await self._raised("mendes")
        self.names["closed"] = await self._raised("mendes")
        path = f"/v1/alerts/{self.names['closed']}/stand_down"
        await asyncio.to_thread(call, self.url, path, "POST", b"", {"Authorization": f"Bearer {self.tokens['mendes']}"})
        self.names["surgery_alert"] = await self._raised("vieira")
        theirs = await phone(self.url, *CAST["mendes"][:2], self.tokens["mendes"], session_id="sess_theirs")
        theirs.send(text({"type": "user_message", "client_msg_id": "theirs-1", "content": "Allergies?"}))
        await theirs.until("ai_response")
        await theirs.leave()
        self.names["theirs"] = "sess_theirs"

    async def _raised(self, who: str) -> str:
        department = CAST[who][1]
        headers = {"Authorization": f"Bearer {self.tokens[who]}", "Idempotency-Key": secrets.token_hex(8)}
        body = b'{"content":"bed 4","priority":"normal"}'
        found = await asyncio.to_thread(call, self.url, f"/v1/departments/{department}/alerts", "POST", body, headers)
        assert found.status == 201, found
        return str(found.json()["alert_id"])

    async def end(self) -> None:
        """The phone that looked on is connected still, and is answered."""
        self.watcher.send(text({"type": "ping", "t": "end"}))
        async with asyncio.timeout(WAIT_S):
            await self._looking_on
        await self.watcher.leave()

    async def _look_on(self) -> None:
        """Read, so that the line stays alive, until the answer to the last ping."""
        while (await self.watcher.message()).get("t") != "end":
            pass

    # --- one case ---

    async def outcome(self, case: dict[str, Any]) -> list[str]:
        """What was seen: one outcome, or for a token one of each way in."""
        self.names["id"] = f"x-{secrets.token_hex(6)}"
        try:
            match case["kind"]:
                case "handshake":
                    return [await self._handshake(case)]
                case "head":
                    return [await self._head(data_of(case))]
                case "token":
                    return await self._token_case(case)
                case "http":
                    return [await asyncio.to_thread(self._http, case)]
                case _:
                    return [await self._frames(case)]
        except TimeoutError:
            return ["silent"]

    def _filled(self, value: str) -> str:
        for name, known in self.names.items():
            value = value.replace("${" + name + "}", known)
        if "@ranges" in value:
            return value.replace("@ranges", ",".join(f"{n}-{n}" for n in range(10_000)))
        head, mark, size = value.rpartition("@")
        return head + "a" * int(size) if mark and size.isdigit() else value

    async def _head(self, data: bytes) -> str:
        peer = await Peer.dial(self.url)
        try:
            peer.send(data)
            status = await peer.status()
            return f"http {status}" if status else "cut"
        finally:
            await peer.leave()

    async def _handshake(self, case: dict[str, Any]) -> str:
        peer = await Peer.dial(self.url)
        headers = {name: None if value is None else self._filled(value) for name, value in case["headers"].items()}
        try:
            peer.send(upgrade(self._filled(case["path"]), headers, self.names["host"]))
            async with asyncio.timeout(WAIT_S):
                try:
                    head = await peer.reader.readuntil(b"\r\n\r\n")
                except (asyncio.IncompleteReadError, ConnectionError):
                    return "cut"
            if "absent" in case and case["absent"] in head.decode("latin-1").lower():
                return f"{case['absent']} present"
            status = int(head.split(b" ", 2)[1])
            if status != 101:
                return f"http {status}"
            frames = case.get("frames", [{"type": "hello"}])
            for each in frames:
                peer.send(frame(TEXT, self._filled(each if isinstance(each, str) else json.dumps(each)).encode()))
            found = await self._first(peer, {"welcome"})
            # What was refused in words is followed by a code.
            if found.startswith("error"):
                found = await self._first(peer, set())
            return "open" if found == "frame welcome" and "frames" not in case else found
        finally:
            await peer.leave()

    async def _first(self, peer: Peer, kinds: set[str]) -> str:
        """The first frame of these types, refusal or end, as an outcome."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    found = await peer.message()
                except Ended as ended:
                    return "cut" if ended.code is None else f"close {ended.code}"
                if found["type"] == "error":
                    return f"error {found['code']}"
                if found["type"] in kinds:
                    return f"frame {found['type']}"

    async def _frames(self, case: dict[str, Any]) -> str:
        """Send frames on a connection of their own; what goes on must be answered afterwards."""
        who = CAST[case.get("as", "santos")]
        is_msgpack = case.get("msgpack", False)
        hello = {"session_id": self._filled(case.get("session", "sess_${id}")), "channel": case.get("channel", "app")}
        peer = await Peer.dial(self.url)
        try:
            subprotocol = "chatd.v1.msgpack" if is_msgpack else "chatd.v1"
            token = self.tokens[case.get("as", "santos")]
            headers = {"Sec-WebSocket-Protocol": subprotocol, "Authorization": f"Bearer {token}"}
            status = await peer.open(f"/chat/{who[1]}/{who[0]}", headers)
            if status != 101:
                return f"http {status}"
            peer.send(text({"type": "hello", **hello}))
            if is_msgpack:
                return await self._msgpack(peer, case)
            try:
                welcome = await peer.until("welcome")
            except Ended as ended:
                return f"close {ended.code}"
            self.names["epoch"] = welcome["epoch"]
            if case["kind"] == "wire":
                peer.send(data_of(case))
            for number, each in enumerate(case.get("frames", [])):
                peer.send(frame(TEXT, self._filled(each if isinstance(each, str) else json.dumps(each)).encode()))
                if number == 0 and "after" in case:
                    await peer.until(case["after"])
            if case["kind"] == "frame" and ("parts" in case or "hex" in case):
                peer.send(frame(TEXT if "parts" in case else BINARY, data_of(case)))
            kinds = {outcome.split()[1] for outcome in case["expect"] if outcome.startswith("frame ")}
            if kinds or any(outcome.startswith("close") for outcome in case["expect"]):
                return await self._passing(peer, kinds, refusals=case["kind"] == "wire")
            found = await self._first(peer, {"ai_response", "accepted", "pong"})
            if found.startswith("close") or found == "cut":
                return found
            peer.send(text({"type": "ping", "t": "still here"}))
            while (await peer.until("pong")).get("t") != "still here":
                pass
            return found
        finally:
            await peer.leave()

    async def _passing(self, peer: Peer, kinds: set[str], *, refusals: bool) -> str:
        """As ``_first``; where many frames were sent, refusals of the earlier ones are passed over."""
        while True:
            found = await self._first(peer, kinds)
            if not (refusals and found.startswith("error")):
                return found

    async def _msgpack(self, peer: Peer, case: dict[str, Any]) -> str:
        for each in case.get("frames", []):
            peer.send(frame(BINARY, json_to_msgpack(self._filled(json.dumps(each)).encode())))
        if "hex" in case:
            peer.send(frame(BINARY, data_of(case)))
        async with asyncio.timeout(WAIT_S):
            while True:
                opcode, payload = await peer.next()
                # A map whose first key is "type": the frame's name follows it.
                if opcode == BINARY and payload[1:6] == b"\xa4type":
                    kind = payload[7 : 7 + (payload[6] & 0x1F)].decode()
                    if kind == "error":
                        at = payload.index(b"\xa4code") + 5
                        return f"error {payload[at + 1 : at + 1 + (payload[at] & 0x1F)].decode()}"
                    if kind in ("pong", "accepted"):
                        return f"frame {kind}"

    # --- tokens ---

    def _token(self, case: dict[str, Any]) -> str:
        """A token as the row describes it: good in all that it does not name."""
        if "raw" in case:
            return self._deep() if case["raw"] == "@head-deep" else self._filled(str(case["raw"]))
        now_s = int(datetime.now(UTC).timestamp())
        claims: dict[str, Any] = {
            "iss": "chatd",
            "aud": "chatd",
            "sub": USER,
            "jti": secrets.token_hex(8),
            "iat": now_s,
            "exp": now_s + 600,
            "departments": [DEPARTMENT],
            "roles": ["physician"],
        }
        claims.update(case.get("claims", {}))
        claims.update({name: now_s + seconds for name, seconds in case.get("shift", {}).items()})
        for name in case.get("drop", []):
            del claims[name]
        header = {"alg": "HS256", "typ": "JWT", "kid": "demo", **case.get("header", {})}
        header = {name: value for name, value in header.items() if value is not None}
        signed = f"{encoded(header)}.{encoded(claims)}"
        key = {"other": b"another key of thirty-two bytes!!", "empty": b"", "own": self.key}.get(
            case.get("key", "own"), self.key
        )
        signature = encoded(hmac.new(key, signed.encode(), hashlib.sha256).digest())
        if case.get("key") == "none":
            signature = ""
        match case.get("signature"):
            case "":
                signature = ""
            case "other":
                signature = self.tokens["mendes"].rpartition(".")[2]
            case "bit":
                signature = ("B" if signature[0] == "A" else "A") + signature[1:]
        if "edit" in case:
            signed = f"{encoded(header)}.{encoded({**claims, **case['edit']})}"
        return f"{signed}.{signature}"

    @staticmethod
    def _deep() -> str:
        deep = '{"a":' * 400 + "1" + "}" * 400
        return f"{encoded(deep.encode())}.e30.c2ln"

    async def _token_case(self, case: dict[str, Any]) -> list[str]:
        """In the header of the handshake, in hello, and over HTTP."""
        token = self._token(case)
        seen = []
        if token.isascii() and token:
            by_header = await self._handshake(
                {"path": f"/chat/{DEPARTMENT}/{USER}", "headers": {"Authorization": f"Bearer {token}"}}
            )
            seen.append(by_header)
            seen.append(await asyncio.to_thread(self._patients, token))
        by_hello = await self._handshake(
            {"path": f"/chat/{DEPARTMENT}/{USER}", "headers": {}, "frames": [{"type": "hello", "token": token}]}
        )
        return [*seen, by_hello]

    def _patients(self, token: str) -> str:
        path = f"/v1/departments/{DEPARTMENT}/patients"
        return f"http {call(self.url, path, headers={'Authorization': f'Bearer {token}'}).status}"

    # --- HTTP ---

    def _http(self, case: dict[str, Any]) -> str:
        body = data_of(case) if "parts" in case or "body_hex" in case else case.get("body", "").encode() or None
        headers = {name: self._filled(value) for name, value in case["headers"].items()}
        try:
            return f"http {call(self.url, self._filled(case['path']), case['method'], body, headers).status}"
        except (http.client.BadStatusLine, ConnectionError):
            return "cut"

    # --- what the codec is tested with ---

    async def codec_outcome(self, case: dict[str, Any]) -> str:
        """The same bytes over a socket: "type ping" where they are a frame, else "error CODE" and "strike"."""
        is_msgpack = case.get("mode") == "msgpack"
        data = case["text"].encode() if "text" in case else data_of(case)
        opcode = TEXT if "text" in case or "parts" in case else BINARY
        row = {"kind": "frame", "msgpack": is_msgpack, "expect": ["error"]}
        peer = await Peer.dial(self.url)
        try:
            subprotocol = "chatd.v1.msgpack" if row["msgpack"] else "chatd.v1"
            headers = {"Sec-WebSocket-Protocol": subprotocol, "Authorization": f"Bearer {self.tokens['santos']}"}
            assert await peer.open(f"/chat/{DEPARTMENT}/{USER}", headers) == 101
            peer.send(text({"type": "hello", "session_id": f"sess_{secrets.token_hex(6)}"}))
            peer.send(frame(opcode, data))
            async with asyncio.timeout(WAIT_S):
                if is_msgpack:
                    try:
                        return await self._msgpack(peer, {})
                    except Ended as ended:
                        return f"close {ended.code}"
                return await self._first(peer, {"pong", "accepted", "presence", "context", "ai_response"})
        except TimeoutError:
            return "silent"
        finally:
            await peer.leave()


class Report:
    """What was seen against what was to be seen."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.failed: list[str] = []

    def note(self, case: dict[str, Any], seen: list[str], expect: list[str]) -> None:
        self.counted[group_of(case)] += 1
        wrong = [each for each in seen if each not in expect and each.partition(" ")[0] not in expect]
        if wrong or not seen:
            self.failed.append(f"{case['id']} {case['input']}: {', '.join(seen)} instead of {' or '.join(expect)}")


def codec_expects(case: dict[str, Any]) -> list[str]:
    """What a socket shows for a row of the codec's table."""
    if "code" not in case:
        return ["frame", "error"]
    if case["code"] == "too_large":
        return ["close 1009"]
    if "invalid UTF-8" in case["input"] or "overlong" in case["input"] or "surrogate as UTF-8" in case["input"]:
        return [f"error {case['code']}", "close 1007"]
    return [f"error {case['code']}"]


async def run_all(place: Hospital, group: str | None = None) -> tuple[Report, Run, int]:
    """Run every case; returns the report, the run and the growth of the gateway's memory in bytes."""
    run = Run(place)
    await run.begin()
    await run.outcome(CASES[0])
    before = rss_bytes(run.pid)
    report = Report()
    for case in CASES:
        if group in (None, group_of(case)):
            report.note(case, await run.outcome(case), case["expect"])
    for case in CODEC_CASES if group in (None, "codec") else []:
        report.note(case, [await run.codec_outcome(case)], codec_expects(case))
    await run.end()
    return report, run, rss_bytes(run.pid) - before


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abuse.runner", description=__doc__)
    parser.add_argument("--group", help="handshake, token, schema, content, authz, frames, http or codec")
    options = parser.parse_args(arguments)
    with hospital(env=ENV) as place:
        report, run, growth_bytes = asyncio.run(run_all(place, options.group))
        is_same = gateway_pid(place) == run.pid
        faults = faults_in(place.up.log())
    for name, count in sorted(report.counted.items()):
        print(f"{name:<12} {count:>5}")
    for line in report.failed:
        print(f"FAILED {line}")
    for line in faults:
        print(f"LOG {line}")
    total = sum(report.counted.values())
    print(f"{total - len(report.failed)} of {total} as expected, memory +{growth_bytes / 1e6:.1f} MB, ", end="")
    print("the same process" if is_same else "ANOTHER PROCESS")
    return 0 if not report.failed and not faults and is_same else 1


if __name__ == "__main__":
    sys.exit(main())
