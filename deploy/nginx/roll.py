#!/usr/bin/env python3
"""Restarts the gateways behind nginx one after another: ``roll.py SITE.TOML FOLDER``.

Each one gets no new connections, is restarted (it tells its phones to come back, finishes or hands over their answers),
and is let in again once it answers questions. The first that does not come back ends the run, and the others go on.
Standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import render

#: nginx's old workers stop accepting within this after a reload.
SETTLE_S: Final = 2.0
_POLL_S: Final = 0.2
#: One look at a gateway that starts.
_ASK_S: Final = 3.0
#: Between two gateways: phones of the first are back, and spread, before the next says goodbye.
PAUSE_S: Final = 5.0


class RollError(Exception):
    """A gateway did not come back, or a command failed; the text says which, and what stands now."""


class _OnSocket(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ASK_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ASK_S)
        self.sock.connect(self._path)


def is_ready(address: str) -> bool:
    """Whether the gateway at ``unix:PATH`` or ``HOST:PORT`` says that phones may come."""
    unix = address.removeprefix("unix:")
    line = _OnSocket(unix) if unix != address else http.client.HTTPConnection(address, timeout=_ASK_S)
    try:
        line.request("GET", "/health/ready")
        return line.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        line.close()


def roll(
    site: Path,
    folder: Path,
    *,
    test: Sequence[str],
    reload: Sequence[str],
    restart: Sequence[str],
    wait_s: float,
    pause_s: float,
    say: Callable[[str], None],
) -> None:
    """Restart each gateway once; ``{}`` in ``restart`` is its name.

    Raises:
        RollError: a command failed, or a gateway is not ready after ``wait_s``; that one stays without new connections.
        render.SiteError, OSError: the site's file or the folder.
    """
    settings = render.load(site)
    gateways: dict[str, str] = settings["gateways"]
    if len(gateways) < 2:
        raise RollError("one gateway alone cannot be rolled: its phones would have nowhere to go")

    def switch(down: frozenset[str]) -> None:
        render.write(settings, folder, down)
        _run(test)
        _run(reload)
        time.sleep(SETTLE_S)

    for name, address in gateways.items():
        others = [other for other in gateways if other != name and is_ready(gateways[other])]
        if not others:
            raise RollError(f"{name} is left as it is: no other gateway is ready")
        say(f"{name}: no new connections")
        switch(frozenset({name}))
        say(f"{name}: restarting")
        _run([word.replace("{}", name) for word in restart])
        give_up = time.monotonic() + wait_s
        while not is_ready(address):
            if time.monotonic() > give_up:
                raise RollError(f"{name} is not ready after {wait_s:g} s and gets no connections; {others} serve on")
            time.sleep(_POLL_S)
        switch(frozenset())
        say(f"{name}: ready")
        if name != list(gateways)[-1]:
            time.sleep(pause_s)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the operator's own
    if done.returncode != 0:
        raise RollError(f"{shlex.join(command)} failed ({done.returncode}): {done.stderr.strip()[-500:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Restart the gateways one after another, losing no session.")
    parser.add_argument("site", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--test", default="nginx -t", help="(default: %(default)s)")
    parser.add_argument("--reload", default="systemctl reload nginx", help="(default: %(default)s)")
    parser.add_argument(
        "--restart", default="systemctl restart chatd@{}", help="{} is the gateway's name (default: %(default)s)"
    )
    parser.add_argument(
        "--wait", type=float, default=120.0, metavar="S", help="until it is ready (default: %(default)g)"
    )
    parser.add_argument("--pause", type=float, default=PAUSE_S, metavar="S", help="between two (default: %(default)g)")
    arguments = parser.parse_args()
    try:
        roll(
            arguments.site,
            arguments.folder.absolute(),
            test=shlex.split(arguments.test),
            reload=shlex.split(arguments.reload),
            restart=shlex.split(arguments.restart),
            wait_s=arguments.wait,
            pause_s=arguments.pause,
            say=lambda text: print(text, flush=True),
        )
    except (RollError, render.SiteError, OSError) as error:
        print(f"roll: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
