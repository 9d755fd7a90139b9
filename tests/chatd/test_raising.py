"""The token of ``chatd alert`` and ``chatd drill``: read from a file or standard input, and never an argument."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from chatd.cli import main
from chatd.raising import read_token

TOKEN = "aaaa.bbbb.cc-_"


def test_token_is_read_from_a_file_and_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line end around it does not matter; no file is no token."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", "utf-8")
    assert read_token(file) == TOKEN
    monkeypatch.setattr(sys, "stdin", io.StringIO(f" {TOKEN}\r\n"))
    assert read_token(Path("-")) == TOKEN
    assert read_token(None) is None


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c.d", "a.b.c\nX-Other: 1", "é.b.c", "a." + "b" * 5_000 + ".c"])
def test_what_is_no_token_is_refused_unsent(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of something else ends in a line that names the file and nothing of what is in it."""
    file = tmp_path / "token"
    file.write_text(text, "utf-8")
    monkeypatch.setattr("chatd.raising.Line", None)
    assert main(["alert", "--data-dir", str(tmp_path), "--token-file", str(file), "icu", "x"]) == 1
    told = capsys.readouterr().err
    assert told == f"chatd: {file}: this is no token\n"


class Gateway(BaseHTTPRequestHandler):
    """Takes every alert and remembers by which token."""

    seen: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append(self.headers["authorization"])
        reach = {"online": ["dr.a"], "push": [], "unreachable": []}
        body = json.dumps({"alert_id": "al-1", "alert_seq": 1, "reach": reach}).encode()
        self.send_response(201)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[type[Gateway]]:
    """A gateway of a ``chatd up`` on ``tmp_path``."""
    handler = type("Handler", (Gateway,), {"seen": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    run = {"pid": 1, "redis_url": "", "ledger_url": "", "host": "127.0.0.1", "port": server.server_port, "demo": False}
    (tmp_path / "run.json").write_text(json.dumps(run), "utf-8")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_alert_goes_by_the_token_that_was_given(tmp_path: Path, gateway: type[Gateway]) -> None:
    """With a token of the provider no other one is made; without, the installation's own key signs one."""
    (tmp_path / "token").write_text(TOKEN, "utf-8")
    assert main(["alert", "--data-dir", str(tmp_path), "--token-file", str(tmp_path / "token"), "icu", "x"]) == 0
    assert gateway.seen[-1] == f"Bearer {TOKEN}"
    assert not (tmp_path / "keys").exists()
    assert main(["alert", "--data-dir", str(tmp_path), "icu", "x"]) == 0
    assert (gateway.seen[-1] or "").startswith("Bearer ey")
