"""Starts and ends a real vLLM on the CPU, from the environment that ``scripts/setup-vllm`` makes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from chatd.inference.vllm import read_metrics

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
LOGS = ROOT / "out" / "vllm"
MODEL = "tiny"
SLOTS = 20
CONTEXT_TOKENS = 8192
#: About 40 s on two idle cores; imports alone take half of it.
START_S = 300.0
STOP_S = 30.0
_POLL_S = 0.25
_ASK_S = 5.0
_TAIL_LINES = 40

Address = str | tuple[str, int]

#: What a server on the CPU needs beside the flags; nothing is fetched, nothing is reported.
ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # One thread: a tiny model gains nothing from two, and threads that wait for each other by turning a core idle
    # stop everything on a machine that has only two.
    "KMP_BLOCKTIME": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}

FLAGS = (
    *("--served-model-name", MODEL),
    *("--dtype", "float32"),
    *("--max-model-len", str(CONTEXT_TOKENS)),
    *("--max-num-seqs", str(SLOTS)),
    *("--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": true}'),
    *("--generation-config", "vllm"),
    "--enforce-eager",
    "--enable-prefix-caching",
    "--enable-prompt-tokens-details",
)


def environment() -> dict[str, str]:
    """The process's environment for anything of vLLM; torch keeps its own BLAS, whatever this process has."""
    clean = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "OPENBLAS_NUM_THREADS")}
    return {**clean, **ENVIRONMENT}


def require() -> None:
    """Fail, and not skip, where the environment has not been made: the target that runs these tests makes it."""
    assert PYTHON.exists(), "run scripts/setup-vllm first, or `make test-vllm`, which does"


@contextlib.contextmanager
def serving(model: Path, name: str, *, uds: Path | None = None) -> Iterator[str]:
    """A server of the model folder; gives its address as ``VllmEngine`` takes it, and ends it whatever happens.

    ``name``: of the log, ``out/vllm/NAME.log``. Raises AssertionError with the log's tail when it does not come up.
    """
    require()
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    address: Address
    if uds is None:
        port = _free_port()
        url, address = f"http://127.0.0.1:{port}", ("127.0.0.1", port)
        where = ["--host", "127.0.0.1", "--port", str(port)]
    else:
        url, address = f"unix:{uds}", str(uds)
        where = ["--uds", str(uds)]
    # `vllm serve` looks for a distribution of its own name, which the CPU build does not have.
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *FLAGS, *where]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
        try:
            _wait_healthy(process, address, log)
            yield url
        finally:
            _end(process)


async def running_requests(url: str) -> float:
    """Running requests as the server at the socket ``url`` counts them itself; it does so once a step."""
    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=url.removeprefix("unix:")), base_url="http://localhost", timeout=30.0
    ) as client:
        return read_metrics((await client.get("/metrics")).content)["vllm:num_requests_running"]


def _wait_healthy(process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise AssertionError(f"vLLM ended with {process.returncode}:\n{_tail(log)}")
        if _is_healthy(address):
            return
        time.sleep(_POLL_S)
    raise AssertionError(f"vLLM was not healthy after {START_S:.0f} s:\n{_tail(log)}")


def _is_healthy(address: Address) -> bool:
    # By hand: httpx's pool leaves the socket of a failed connection to a Unix path to the garbage collector.
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.settimeout(_ASK_S)
        try:
            sock.connect(address)
            sock.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return sock.recv(64).split(b" ")[1:2] == [b"200"]
        except OSError:
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """The server is asked, then its whole group, which is its own, is killed: its engine is a process beside it."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
