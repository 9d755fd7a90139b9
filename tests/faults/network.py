"""A network between phones and chatd that loses packets: a namespace of its own behind a pair of veth devices.

Phones live in the namespace, chatd on the machine: ``chatd serve --host ADDRESS`` with ``Network.address``. Packets
are dropped where they arrive, as on a radio link: the sender's stack notices nothing. Needs root, ``ip`` and ``nft``.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Literal, Self

Direction = Literal["up", "down", "both"]

#: Kept for measurements between networks (RFC 2544); no hospital routes it. Each network takes four addresses of it.
_POOL: Final = "198.18"
_PREFIX: Final = "chatd-faults-"
#: Of ``setns``: nothing but a network namespace. Source: linux/sched.h
_CLONE_NEWNET: Final = 0x4000_0000
_SERIAL: Final = itertools.count()


def missing() -> str | None:
    """Why such a network cannot be had here, in one line; None if it can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    try:
        with Network():
            return None
    except NetworkUnavailable as error:
        return str(error)


class NetworkUnavailable(Exception):
    """The kernel or its tools refused; the text is theirs, in one line."""


class Network:
    """One namespace, the wire to it and one fault at a time: a new one takes the place of the one before.

    Left behind by a process that was killed, it is removed by the next one that is entered.
    """

    def __init__(self) -> None:
        serial = next(_SERIAL)
        self.name = f"{_PREFIX}{os.getpid()}-{serial}"
        self._host_end, self._phone_end = (f"cf{end}{os.getpid():x}{serial % 4096:x}" for end in "hp")
        self._table = self.name.replace("-", "_")
        #: Where chatd is to listen, and phones find it.
        self.address = ""
        #: Where phones' connections come from.
        self.phone_address = ""

    def __enter__(self) -> Self:
        _remove_left()
        third, fourth = divmod(_free_block() * 4, 256)
        self.address, self.phone_address = (f"{_POOL}.{third}.{fourth + n}" for n in (1, 2))
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    # --- what lives in it ---

    def run_in(self, argv: Sequence[str]) -> list[str]:
        """The command that runs ``argv`` among the phones."""
        return ["ip", "netns", "exec", self.name, *argv]

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket among the phones, for a client in this process: the namespace is the socket's, not the thread's."""
        made: list[socket.socket] = []
        failed: list[OSError] = []

        def make() -> None:
            try:
                with open(f"/run/netns/{self.name}", "rb") as namespace:
                    _enter(namespace.fileno())
                made.append(socket.socket(socket.AF_INET, kind))
            except OSError as error:
                failed.append(error)

        # The thread that has moved ends here; no other code ever runs in it.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]

    # --- faults ---

    def blackout(self, direction: Direction) -> None:
        """Drop everything from phones to chatd (``up``), from chatd to phones (``down``), or both ways."""
        self._drop(
            "" if direction in ("up", "both") else None,
            "" if direction in ("down", "both") else None,
        )

    def loss(self, percent: int) -> None:
        """Drop so many of 100 packets in each direction, each by its own chance."""
        if not 0 <= percent <= 100:
            raise ValueError("percent: 0 to 100")
        rule = f"numgen random mod 100 < {percent}"
        self._drop(rule, rule)

    def clear(self) -> None:
        """Let everything through again."""
        self._drop(None, None)

    def counters(self) -> dict[str, int]:
        """Packets dropped so far, ``up`` and ``down``: they show that a fault has happened."""
        return {"up": self._dropped("up", ()), "down": self._dropped("down", self.run_in(()))}

    # --- the kernel ---

    def _build(self) -> None:
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self._host_end, "type", "veth", "peer", "name", self._phone_end, "netns", self.name)
        here: Sequence[str] = ()
        ends = (
            (self._host_end, self.address, here),
            (self._phone_end, self.phone_address, self.run_in(())),
        )
        macs = []
        for device, address, inside in ends:
            _run(*inside, "ip", "address", "add", f"{address}/30", "dev", device)
            _run(*inside, "ip", "link", "set", device, "up")
            macs.append(_run(*inside, "cat", f"/sys/class/net/{device}/address").strip())
        _run(*self.run_in(()), "ip", "link", "set", "lo", "up")
        # Neighbours are told to each other: a fault must not end later than it is cleared because nobody answers ARP.
        for (device, _, inside), (_, other, _), mac in zip(ends, ends[::-1], macs[::-1], strict=True):
            _run(*inside, "ip", "neigh", "replace", other, "lladdr", mac, "dev", device, "nud", "permanent")
        for direction, device, inside in (("up", self._host_end, here), ("down", self._phone_end, self.run_in(()))):
            _nft(
                inside,
                f"add table netdev {self._table}",
                f"add counter netdev {self._table} {direction}",
                f"add chain netdev {self._table} wire {{ type filter hook ingress device {device} priority 0; }}",
            )

    def _drop(self, up: str | None, down: str | None) -> None:
        here: Sequence[str] = ()
        for direction, rule, inside in (("up", up, here), ("down", down, self.run_in(()))):
            commands = [f"flush chain netdev {self._table} wire"]
            if rule is not None:
                commands.append(
                    f"add rule netdev {self._table} wire meta protocol ip {rule} counter name {direction} drop"
                )
            _nft(inside, *commands)

    def _dropped(self, direction: str, inside: Sequence[str]) -> int:
        words = _run(*inside, "nft", "list", "counter", "netdev", self._table, direction).split()
        return int(words[words.index("packets") + 1])

    def _remove(self) -> None:
        _remove(self.name, self._host_end)


def _enter(namespace_fd: int) -> None:
    """Move the calling thread into a network namespace; ``os.setns`` is there from Python 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace_fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _remove(name: str, host_end: str | None = None) -> None:
    """Take a namespace, its wire and its rules away; what is not there is no error."""
    with contextlib.suppress(NetworkUnavailable):
        _run("nft", "delete", "table", "netdev", name.replace("-", "_"))
    if host_end is not None:
        # The device goes with its namespace some time later; with this command, now.
        with contextlib.suppress(NetworkUnavailable):
            _run("ip", "link", "delete", host_end)
    with contextlib.suppress(NetworkUnavailable):
        _run("ip", "netns", "delete", name)


def _remove_left() -> None:
    """Remove what processes that are no more have left."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(_PREFIX) and not os.path.exists(f"/proc/{name.removeprefix(_PREFIX).split('-')[0]}"):
            _remove(name)


def _free_block() -> int:
    """A number from 0 whose four addresses no network of this machine has; processes begin at different ones."""
    taken = {int(word) for word in _blocks(_run("ip", "-4", "-o", "address"))}
    start = os.getpid() % 16_384
    return next(block for n in range(16_384) if (block := (start + n) % 16_384) not in taken)


def _blocks(listing: str) -> Iterator[int]:
    for word in listing.split():
        if word.startswith(f"{_POOL}."):
            third, fourth = word.partition("/")[0].split(".")[2:]
            yield (int(third) * 256 + int(fourth)) // 4


def _nft(inside: Sequence[str], *commands: str) -> None:
    """Run nft commands as one change: all of them or none."""
    _run(*inside, "nft", "-f", "-", given="\n".join(commands))


def _run(*argv: str, given: str = "") -> str:
    done = subprocess.run(argv, input=given, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise NetworkUnavailable(f"{' '.join(argv[:6])}: {said[0] if said else done.returncode}")
    return done.stdout
