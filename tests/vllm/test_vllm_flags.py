"""The reviewed unit of ``deploy/vllm`` says nothing that the installed vLLM does not know."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import pytest

from chatd.inference.vllm import CONTEXT_TOKENS
from tests.vllm.server import PYTHON, ROOT, environment, require

pytestmark = pytest.mark.vllm

UNIT = ROOT / "deploy" / "vllm" / "vllm.service"
SETTINGS = ROOT / "deploy" / "vllm" / "vllm.env"

# Parses as `vllm serve` does and says what came out; no card is needed for that.
_PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
import vllm.envs
asked = json.load(sys.stdin)
known = make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(asked["flags"])
print(json.dumps({
    "values": {name: str(value) for name, value in vars(known).items()},
    "unknown": [name for name in asked["names"] if name not in vllm.envs.environment_variables],
}))
"""


def _settings() -> dict[str, str]:
    lines = (line for line in SETTINGS.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def _flags() -> list[str]:
    match = re.search(r"^ExecStart=\S+ serve (.*?[^\\])$", UNIT.read_text(), re.DOTALL | re.MULTILINE)
    assert match
    return shlex.split(match[1].replace("\\\n", " ").replace("${MODEL}", _settings()["MODEL"]))


def test_every_flag_and_variable_of_the_unit_is_known_to_vllm() -> None:
    """The server's own parser takes them all and understands what was meant."""
    require()
    names = [name for name in _settings() if name.startswith("VLLM_")]
    run = subprocess.run(
        [PYTHON, "-c", _PARSE],
        input=json.dumps({"flags": _flags(), "names": names}),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["unknown"] == []
    values = said["values"]
    assert values["model_tag"] == _settings()["MODEL"]
    assert values["uds"] == "/run/vllm/vllm.sock"
    assert values["max_num_seqs"] == "20"
    assert values["max_model_len"] == str(CONTEXT_TOKENS)
    assert values["enable_log_requests"] == "False"
    assert values["enable_prefix_caching"] == "True"
    assert "guidance" in values["structured_outputs_config"]
