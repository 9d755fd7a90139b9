"""The faults of ``tests.faults.network`` do what they say, and nothing of them stays."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults.network import Network, missing

pytestmark = pytest.mark.journeys

#: A datagram on a veth arrives at once; this bounds a test that is broken.
_WAIT_S = 10.0
_MARK = b"mark"


@pytest.fixture(scope="module", autouse=True)
def needed() -> None:
    """Says why these tests cannot be had here."""
    if (why := missing()) is not None:
        pytest.skip(why)


@pytest.fixture
def network() -> Iterator[Network]:
    """A network without a fault."""
    with Network() as made:
        yield made


class Ends:
    """A datagram socket of chatd's machine and one among the phones; datagrams of a wire keep their order."""

    def __init__(self, network: Network) -> None:
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server.bind((network.address, 0))
        self.phone = network.socket(socket.SOCK_DGRAM)
        self.phone.bind((network.phone_address, 0))
        for end, other in ((self.server, self.phone), (self.phone, self.server)):
            end.connect(other.getsockname())
            end.settimeout(_WAIT_S)

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.phone.close()

    def arrives(self, network: Network, *, up: bool, count: int) -> int:
        """Send so many under the present fault, then clear it and count those that came before the mark."""
        source, sink = (self.phone, self.server) if up else (self.server, self.phone)
        came = 0
        for n in range(count):
            source.send(n.to_bytes(4))
            if n % 50 == 49:
                came += _read_all(sink)
        network.clear()
        source.send(_MARK)
        while sink.recv(16) != _MARK:
            came += 1
        return came


def _has(sink: socket.socket) -> bool:
    """Whether something is there to be read now."""
    return bool(select.select([sink], [], [], 0)[0])


def _read_all(sink: socket.socket) -> int:
    """What is there now, so that no buffer is ever full."""
    came = 0
    while _has(sink):
        sink.recv(16)
        came += 1
    return came


@pytest.mark.parametrize("direction", ["up", "down"])
def test_blackout_stops_one_direction_only(network: Network, direction: str) -> None:
    """Of 20 datagrams that way none arrives and 20 are counted; the other way all do."""
    with Ends(network) as ends:
        for is_up in (True, False):
            network.blackout("up" if direction == "up" else "down")
            is_cut = is_up == (direction == "up")
            assert ends.arrives(network, up=is_up, count=20) == (0 if is_cut else 20)
    assert network.counters() == {"up": 0, "down": 0, direction: 20}


def test_blackout_of_both_directions_stops_both(network: Network) -> None:
    """Nothing arrives either way until it is cleared; ``arrives`` clears it and hears its mark."""
    with Ends(network) as ends:
        for is_up in (True, False):
            network.blackout("both")
            assert ends.arrives(network, up=is_up, count=20) == 0
    assert network.counters() == {"up": 20, "down": 20}


def test_loss_drops_about_its_share(network: Network) -> None:
    """Of 2,000 datagrams each way 30 % are lost, within seven standard deviations, and every one is counted."""
    with Ends(network) as ends:
        for is_up in (True, False):
            before = network.counters()["up" if is_up else "down"]
            network.loss(30)
            lost = 2000 - ends.arrives(network, up=is_up, count=2000)
            assert 457 < lost < 743
            assert network.counters()["up" if is_up else "down"] - before == lost


def test_tcp_goes_on_after_a_blackout(network: Network) -> None:
    """A connection that was cut off for a moment is the same connection afterwards: nothing was refused or reset."""
    with socket.create_server((network.address, 0)) as listener, network.socket() as phone:
        phone.settimeout(_WAIT_S)
        phone.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.settimeout(_WAIT_S)
            network.blackout("down")
            server.sendall(b"alert")
            assert not _has(phone)
            assert network.counters()["down"] > 0
            network.clear()
            assert phone.recv(16) == b"alert"


def test_command_runs_among_the_phones(network: Network) -> None:
    """A process in the namespace reaches the address and has nothing else: not the machine's loopback."""
    with socket.create_server((network.address, 0)) as listener:
        port = listener.getsockname()[1]
        code = f"import socket; print(socket.create_connection(('{network.address}', {port}), 5).getsockname()[0])"
        done = subprocess.run(network.run_in([sys.executable, "-c", code]), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == network.phone_address
    links = subprocess.run(network.run_in(["ip", "-o", "link"]), capture_output=True, text=True, check=True).stdout
    assert len(links.splitlines()) == 2


def _traces(name: str) -> str:
    """What of a network the machine still has."""
    commands = (
        ["ip", "netns", "list"],
        ["ip", "-o", "link"],
        ["ip", "-4", "-o", "address"],
        ["nft", "list", "ruleset"],
    )
    text = "".join(subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in commands)
    return "\n".join(line for line in text.splitlines() if name in line or name.replace("-", "_") in line)


def test_network_leaves_nothing_behind() -> None:
    """Not after its end, and not after an exception in the middle of a fault."""
    network = Network()

    def fail() -> None:
        with network:
            network.blackout("both")
            assert _traces(network.name)
            assert _traces(network.address)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not _traces(network.name)
    assert not _traces(network.address)


def test_network_of_a_killed_process_is_removed_by_the_next() -> None:
    """What a process killed with SIGKILL has left is gone once another network is made."""
    code = "import os, signal; from tests.faults.network import Network; n = Network(); n.__enter__(); n.loss(5)"
    code += "; print(n.name, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    left = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."}
    ).stdout.strip()
    assert _traces(left)
    with Network() as network:
        assert network.name != left
    assert not _traces(left)
