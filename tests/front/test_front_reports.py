"""What tools of others say of the front: gixy, sslyze, testssl.sh and Autobahn, each finding in a table or a failure.

The tools are in ``.venv-front`` (``scripts/setup-front-tools``), testssl.sh is the system's. A finding that is wrong
here, or a hospital's own decision, stands in one of the tables with its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.front.front_nginx import Front
from tests.server import ROOT, clean_environment

pytestmark = pytest.mark.front

TOOLS: Final = ROOT / ".venv-front"
#: The longest a tool may take on a busy machine.
TOOL_S: Final = 900.0
Opener = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

#: gixy: a check's name, and why what it finds is none.
GIXY_ALLOWED: Final[Mapping[str, str]] = {
    "missing_resolver": "the variable of proxy_pass holds names of upstream groups alone, which nobody looks up",
}
#: testssl.sh: the id of a finding that is neither OK nor INFO, and why it stays.
TESTSSL_ALLOWED: Final[Mapping[str, str]] = {
    "cert_revocation": "the made authority has no revocation service; a hospital's own has what it has",
    "engine_problem": "about the OpenSSL that testssl.sh runs with: it has no GOST ciphers, which TLS 1.3 has none of",
}
#: testssl.sh: what it sometimes cannot look at and then warns of; a finding about it is none of these.
TESTSSL_NOT_ALWAYS: Final[Mapping[str, str]] = {
    "sessionresumption_ticket": "it could not connect for this in one of three runs; why is not known",
}
#: sslyze: the authorities of the world do not know the hospital's own, which phones have by device management.
SSLYZE_STRANGERS: Final = {"Android", "Apple", "Java", "Mozilla", "Windows"}
#: Autobahn's groups: framing, pings, reserved bits, opcodes, fragments, UTF-8, closing, and one of many fragments.
AUTOBAHN_CASES: Final = [*(f"{group}.*" for group in range(1, 8)), "10.*"]
#: Autobahn: a case that may fail, and why.
AUTOBAHN_ALLOWED: Final[Mapping[str, str]] = {
    "7.1.5": "a close while a message is in fragments, and more after it, gets 1002 and not 1000; no message is lost",
}


def tool(path: str | None, name: str) -> str:
    """The tool's path; skips without one, fails in CI."""
    if path is None or not Path(path).exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no {name}: scripts/setup-front-tools")
        pytest.skip(f"no {name}: scripts/setup-front-tools")
    return path


def run(*command: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A tool's run to its end; its exit status is the caller's to judge."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TOOL_S, env=env)


# --- gixy: the configuration as it is written -----------------------------------------------------------------


DEPARTMENTS: Final = {"cardiology": ["a"]}


@pytest.fixture(params=[{}, DEPARTMENTS], ids=["one group", "a department with its own"])
def rendered(request: pytest.FixtureRequest) -> Iterator[Front]:
    """The configuration with two gateways, and nobody running."""
    made = Front({"a": "unix:/run/a/gateway.sock", "b": "127.0.0.1:9"}, request.param)
    try:
        made.render()
        yield made
    finally:
        made.stop()


def gixy(front: Front) -> list[dict[str, Any]]:
    """What gixy finds in what is rendered, of every severity."""
    done = run(tool(str(TOOLS / "bin" / "gixy"), "gixy"), "--format", "json", front.conf / "nginx.conf")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_gixy_finds_nothing_that_is_right(rendered: Front) -> None:
    """Nothing is found, but for the table's where departments have gateways of their own."""
    found = gixy(rendered)
    assert {each["plugin"] for each in found} == (GIXY_ALLOWED.keys() if rendered.departments else set())
    for each in found:
        assert set(re.findall(r"proxy_pass (.*);", each["config"])) == {"http://$chatd_gateways"}
    chosen = re.search(r"map \$uri \$chatd_gateways \{(.*?)\}", (rendered.conf / "chatd.conf").read_text(), re.DOTALL)
    assert chosen is not None
    assert {line.split()[-1] for line in chosen[1].split(";")[:-1]} <= {"chatd_all", "chatd_0"}


def test_gixy_reads_the_included_file(rendered: Front) -> None:
    """What is worsened in chatd.conf is found, so finding nothing means something."""
    path = rendered.conf / "chatd.conf"
    text = path.read_text()
    for good, bad in (
        ("ssl_protocols TLSv1.3", "ssl_protocols TLSv1 TLSv1.3"),
        ("server_tokens off", "server_tokens on"),
    ):
        assert good in text
        text = text.replace(good, bad)
    path.write_text(text)
    assert {"weak_ssl_tls", "version_disclosure"} <= {each["plugin"] for each in gixy(rendered)}


# --- sslyze and testssl.sh: TLS as it is spoken ---------------------------------------------------------------


def test_sslyze_is_content_with_mozillas_modern_profile(front: Front, tmp_path: Path) -> None:
    """TLS 1.3 alone with the three suites and two curves, nothing early, compressed or renegotiated; sslyze agrees."""
    report = tmp_path / "sslyze.json"
    options = ["--mozilla_config", "modern", "--early_data", "--http_headers", "--resum", "--sni", "localhost"]
    done = run(
        tool(str(TOOLS / "bin" / "sslyze"), "sslyze"),
        *options,
        *("--json_out", report, "--certinfo_ca_file", front.authority.ca, front.host),
    )
    assert done.returncode == 0, done.stdout[-2000:]
    scan = json.loads(report.read_text())["server_scan_results"][0]["scan_result"]
    assert {part["status"] for part in scan.values()} == {"COMPLETED"}
    result = {name: part["result"] for name, part in scan.items()}
    versions = [name for name in result if name.endswith("_cipher_suites")]
    assert len(versions) == 6
    assert [name for name in versions if result[name]["is_tls_version_supported"]] == ["tls_1_3_cipher_suites"]
    assert {suite["cipher_suite"]["name"] for suite in result["tls_1_3_cipher_suites"]["accepted_cipher_suites"]} == {
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_GCM_SHA256",
    }
    assert {curve["name"] for curve in result["elliptic_curves"]["supported_curves"]} == {"X25519", "secp256r1"}
    assert result["tls_1_3_early_data"]["supports_early_data"] is False
    assert result["tls_compression"]["supports_compression"] is False
    assert result["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"] is False
    assert result["heartbleed"]["is_vulnerable_to_heartbleed"] is False
    assert result["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"] is False
    assert result["robot"]["robot_result"] == "NOT_VULNERABLE_RSA_NOT_SUPPORTED"
    assert result["http_headers"]["strict_transport_security_header"]["max_age"] == 31_536_000


def test_sslyze_trusts_the_certificate_by_the_hospitals_authority_alone(front: Front, tmp_path: Path) -> None:
    """The one chain is right in order and names, and trusted by the made authority and by none of the world's."""
    report = tmp_path / "sslyze.json"
    run(
        tool(str(TOOLS / "bin" / "sslyze"), "sslyze"),
        *(
            "--certinfo",
            "--sni",
            "localhost",
            "--json_out",
            report,
            "--certinfo_ca_file",
            front.authority.ca,
            front.host,
        ),
    )
    scan = json.loads(report.read_text())["server_scan_results"][0]["scan_result"]
    (chain,) = scan["certificate_info"]["result"]["certificate_deployments"]
    assert chain["received_chain_has_valid_order"] is True
    assert chain["received_chain_contains_anchor_certificate"] is False
    assert chain["verified_chain_has_sha1_signature"] is False
    trusted = {v["trust_store"]["name"]: v["was_validation_successful"] for v in chain["path_validation_results"]}
    assert [name for name, is_trusted in trusted.items() if is_trusted] == ["Supplied CA file"]
    assert trusted.keys() == SSLYZE_STRANGERS | {"Supplied CA file"}


def test_testssl_finds_only_what_an_own_authority_lacks(front: Front, tmp_path: Path) -> None:
    """Protocols, suites, certificate, headers and known faults: all is OK or mere news, but for the table's."""
    testssl = tool(shutil.which("testssl") or shutil.which("testssl.sh"), "testssl.sh")
    report = tmp_path / "testssl.json"
    parts = ["--protocols", "--std", "--fs", "--server-preference", "--server-defaults", "--headers", "--vulnerable"]
    quiet = ["--quiet", "--warnings", "batch", "--color", "0", "--nodns", "none", "--ip", "127.0.0.1"]
    run(testssl, *quiet, *parts, "--add-ca", front.authority.ca, "--jsonfile", report, front.host)
    findings = json.loads(report.read_text())
    told = {each["id"]: each["finding"] for each in findings}
    assert {name for name, finding in told.items() if finding.startswith("offered") and name[:3] in ("SSL", "TLS")} == {
        "TLS1_3"
    }
    assert {"heartbleed", "BREACH", "LUCKY13", "HSTS_time", "cert_trust"} <= told.keys()
    not_looked = {each["id"] for each in findings if each["severity"] == "WARN"} & TESTSSL_NOT_ALWAYS.keys()
    assert all("check failed" in told[name] for name in not_looked)
    odd = {each["id"] for each in findings if each["severity"] not in ("OK", "INFO")} - not_looked
    assert odd - TESTSSL_ALLOWED.keys() == set(), {name: told[name] for name in odd}
    assert "cert_revocation" in odd


# --- Autobahn: WebSockets as they are spoken ------------------------------------------------------------------


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, with its end; what TLS cannot half close is closed."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        writer.close()
    else:
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()


@contextlib.asynccontextmanager
async def relay(opener: Opener) -> AsyncIterator[int]:
    """A port of this machine that leads on to where Autobahn cannot: it has neither Unix sockets nor SNI."""
    lines: set[asyncio.Task[None]] = set()

    async def lead_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await opener()
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()

    def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.create_task(lead_on(reader, writer))
        lines.add(line)
        line.add_done_callback(lines.discard)

    async with await asyncio.start_server(taken, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    for line in list(lines):
        line.cancel()
    await asyncio.gather(*lines, return_exceptions=True)


@pytest.fixture
def echo(sockets: Path) -> Iterator[Path]:
    """The socket of a server on chatd's protocols that sends back what it is sent."""
    path = sockets / "echo.sock"
    script = Path(__file__).with_name("echo.py")
    served = subprocess.Popen(
        [sys.executable, script, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=clean_environment(),
    )
    assert served.stdout is not None
    try:
        assert served.stdout.readline() == "ready\n"
        yield path
    finally:
        served.kill()
        served.wait()
        served.stdout.close()


@pytest.fixture
def echo_front(echo: Path) -> Iterator[Front]:
    """nginx before it. One person opens all of Autobahn's sockets, so the share of a person alone is made greater."""
    made = Front({"a": f"unix:{echo}"})
    try:
        made.render()
        conf = made.conf / "chatd.conf"
        text, changed = re.subn(r"(zone=chatd_who:10m rate=)2r/s", r"\g<1>1000r/s", conf.read_text())
        assert changed == 1
        conf.write_text(text)
        made.restart()
        yield made
    finally:
        made.stop()


async def test_autobahn_fails_nothing_but_one_close(echo: Path, echo_front: Front, tmp_path: Path) -> None:
    """Each case of the core groups is passed, on the gateway's own socket and through TLS and nginx alike."""
    autobahn = TOOLS / "autobahn"
    if not (autobahn / "python2.7").exists():
        pytest.skip("no Python 2.7 on Linux x86-64, which Autobahn's suite needs: scripts/setup-front-tools")
    tls: dict[str, Any] = {"ssl": echo_front.authority.context(), "server_hostname": "localhost"}
    async with (
        relay(lambda: asyncio.open_unix_connection(str(echo))) as direct,
        relay(lambda: asyncio.open_connection("127.0.0.1", echo_front.port, **tls)) as nginx,
    ):
        ports = {"direct": direct, "nginx": nginx}
        servers = [
            {"agent": name, "url": f"ws://localhost:{port}/chat/cardiology/x", "options": {"version": 18}}
            for name, port in ports.items()
        ]
        spec: dict[str, Any] = {"outdir": str(tmp_path / "reports"), "servers": servers, "cases": AUTOBAHN_CASES}
        spec |= {"exclude-cases": [], "exclude-agent-cases": {}}
        path = tmp_path / "spec.json"
        path.write_text(json.dumps(spec))
        done = await asyncio.to_thread(
            run,
            *(autobahn / "python2.7", autobahn / "bin" / "wstest", "-m", "fuzzingclient", "-s", path),
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(autobahn)},
        )
    assert done.returncode == 0, done.stderr[-2000:]
    index = json.loads((tmp_path / "reports" / "index.json").read_text())
    assert index.keys() == ports.keys()
    for agent, cases in index.items():
        assert len(cases) == 247, agent
        failed = {
            name
            for name, case in cases.items()
            if case["behavior"] not in ("OK", "NON-STRICT", "INFORMATIONAL")
            or case["behaviorClose"] not in ("OK", "INFORMATIONAL")
        }
        assert failed == AUTOBAHN_ALLOWED.keys(), agent
