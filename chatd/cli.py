"""The command ``chatd``. Each subcommand imports what it needs, so that ``chatd token`` answers at once."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from chatd.settings import Settings, SettingsError, from_environment, unknown_names
from protocols.errors import ChatdError

_ENGINES = ("none", "scripted", "mlx", "vllm")
#: ``--bits`` to bits of a weight; None: as the model has it.
_BITS: Final[Mapping[str, Literal[4, 8] | None]] = {"4": 4, "8": 8, "none": None}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 for a failure that is told, 2 for a wrong call."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for name in unknown_names(os.environ):
        print(f"chatd: {name} is not a setting and is ignored; see docs/settings.md", file=sys.stderr)
    try:
        settings = from_environment(
            os.environ,
            data_dir=getattr(arguments, "data_dir", None),
            host=getattr(arguments, "host", None),
            port=getattr(arguments, "port", None),
            uds=getattr(arguments, "uds", None),
            redis_url=getattr(arguments, "redis", None),
            ledger_url=getattr(arguments, "ledger", None),
            engine=getattr(arguments, "engine", None),
            model=getattr(arguments, "model", None),
            engine_url=getattr(arguments, "url", None),
            engine_slots=getattr(arguments, "slots", None),
        )
        status: int = arguments.run(arguments, settings)
        return status
    except SettingsError as error:
        print(f"chatd: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output has gone, as in `chatd schema | head`.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return _fail(f"{error.filename or 'a file'}: {error.strerror or type(error).__name__}")
    except (ChatdError, ValueError) as error:
        # Keys, pages and addresses that cannot be used; anything else is a bug and keeps its traceback.
        return _fail(str(error) or type(error).__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatd",
        description="Real-time questions and answers about patients, inside the hospital.",
        epilog="Every setting can also be given as CHATD_<NAME>; see docs/settings.md.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    up = _command(commands, "up", _up, "start all that one machine needs: Redis, ledger, gateway, demo hospital, page")
    _data_dir(up)
    _listen(up)
    up.add_argument("--engine", choices=_ENGINES, help="the language model's engine (default: none, facts only)")
    _model(up)
    _state(up)
    up.add_argument("--no-demo", action="store_true", help="no demo patients, staff or sign-in")

    serve = _command(commands, "serve", _serve, "a further gateway on the Redis and ledger of a chatd up, or by URL")
    _data_dir(serve)
    _listen(serve)
    serve.add_argument("--uds", metavar="PATH", help="listen on this Unix socket instead of host and port")
    _state(serve)
    serve.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)

    infer = _command(commands, "infer", _infer, "a worker that writes answers with a language model, watched over")
    infer.epilog = (
        "Joins the Redis and the keys of the chatd up on DIR, or any Redis by --redis with the same keys. Several "
        "workers, on several machines, share one queue. SIGTERM lets running answers end."
    )
    _data_dir(infer)
    infer.add_argument("--engine", choices=_ENGINES[1:], help="mlx, vllm, or scripted, which is no model: for tests")
    _model(infer)
    infer.add_argument("--redis", metavar="URL", help="redis://, rediss:// or unix:// (default: that of the chatd up)")
    infer.add_argument("--step-ms", type=float, default=20.0, help=argparse.SUPPRESS)
    infer.add_argument("--fault", action="append", default=[], help=argparse.SUPPRESS)
    infer.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    infer.add_argument("--worker-id", help=argparse.SUPPRESS)
    infer.add_argument("--pulse-fd", type=int, help=argparse.SUPPRESS)
    infer.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)

    model = commands.add_parser("model", help="the language model's files")
    model_commands = model.add_subparsers(title="commands", required=True, metavar="COMMAND")
    tiny = _command(
        model_commands, "tiny", _model_tiny, "make a small random model, to try the engines without weights"
    )
    tiny.add_argument("folder", metavar="DIR", type=Path)
    tiny.add_argument("--size", choices=("1m", "100m"), default="1m", help="parameters (default: 1m; 100m is 400 MB)")
    convert = _command(model_commands, "convert", _model_convert, "write a model in the form of mlx, quantized")
    convert.add_argument(
        "source", metavar="SOURCE", help="a folder, or a name on the hub, such as google/medgemma-4b-it"
    )
    convert.add_argument("folder", metavar="DIR", type=Path, help="does not exist yet")
    convert.add_argument("--bits", choices=tuple(_BITS), default="4", help="bits of a weight (default: 4)")
    check = _command(model_commands, "check", _model_check, "look at everything that chatd relies on in a model")
    check.add_argument("folder", metavar="DIR", type=Path)
    check.add_argument("--pin", action="store_true", help="if all is well, write down the hashes of its files")
    check.add_argument("--no-run", action="store_true", help="do not load it with mlx and let it write a few tokens")

    token = _command(commands, "token", _token, "print a token (JWT) signed with the installation's own key")
    _data_dir(token)
    token.add_argument("--user", required=True, help="user id, e.g. dr.santos.cardio")
    token.add_argument("--department", required=True, help="department id, e.g. cardiology")
    token.add_argument("--role", default="physician", help="role (default: physician)")
    token.add_argument("--ttl", type=int, default=3600, metavar="S", help="lifetime in seconds (default: 3600)")

    revoke = _command(commands, "revoke", _revoke, "let a person's tokens, one token or a lost phone in no longer")
    revoke.epilog = (
        "Every gateway closes what is connected within 5 s. A person can sign in again, unless it is --for-good. "
        "Tokens have run out by themselves after 12 hours; a phone stays out until --lift."
    )
    _data_dir(revoke)
    revoke.add_argument("--redis", metavar="URL", help="redis://, rediss:// or unix:// (default: that of the chatd up)")
    whom = revoke.add_mutually_exclusive_group(required=True)
    whom.add_argument("--user", metavar="U", help="all tokens of this person that were made until now")
    whom.add_argument("--token", metavar="ID", help="one token, by its jti")
    whom.add_argument("--device", metavar="D", help="all tokens made for this phone")
    whom.add_argument("--list", action="store_true", help="print what is revoked")
    revoke.add_argument("--for-good", action="store_true", help="tokens that are made later, too, until --lift")
    revoke.add_argument("--lift", action="store_true", help="let it in again")

    device = commands.add_parser("device", help="which phones are known, where a second one must be approved")
    device_commands = device.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listed = _command(device_commands, "list", _device_list, "print whose phones are known, those that wait first")
    approve = _command(device_commands, "approve", _device_approve, "let a person's phone in")
    for each in (listed, approve):
        _data_dir(each)
        each.add_argument("--redis", metavar="URL", help="redis://, rediss:// or unix:// (default: as chatd up)")
    approve.add_argument("--user", metavar="U", required=True, help="user id")
    approve.add_argument("--device", metavar="D", required=True, help="device id, as the token names it")

    alert = _command(commands, "alert", _alert, "raise an alert on the running chatd up, and print whom it reaches")
    alert.epilog = (
        "Exit status: 0 the alert is recorded and somebody can be reached; 1 it is not recorded; 3 it is recorded and "
        "nobody can be reached now."
    )
    _data_dir(alert)
    alert.add_argument("department", metavar="DEPARTMENT", help="department id, e.g. cardiology")
    alert.add_argument("text", metavar="TEXT", help="what the phones show")
    alert.add_argument(
        "--priority", choices=("low", "normal", "high", "critical"), default="high", help="(default: high)"
    )
    alert.add_argument("--requires-action", action="store_true", help="it rings until somebody accepts it")
    alert.add_argument("--to", metavar="WHO", help="role:R or user:U (default: the whole department)")
    alert.add_argument("--policy", metavar="P", help="an escalation policy, e.g. stemi")
    _token_file(alert)

    drill = _command(
        commands, "drill", _drill, "a marked exercise: when does an alert reach each phone of a department"
    )
    drill.epilog = (
        "It is called off at the end, also by Ctrl-C. Exit status: 0 everybody who could be reached got it; 1 somebody "
        "did not, or nobody could be reached; 2 a wrong call, or the gateway does not answer."
    )
    _data_dir(drill)
    drill.add_argument("department", metavar="DEPARTMENT", help="department id, e.g. cardiology")
    drill.add_argument("--text", metavar="TEXT", help="what the phones show (default: that it is a drill, to accept)")
    drill.add_argument("--policy", metavar="P", help="an escalation policy, e.g. stemi (default: that of critical)")
    drill.add_argument(
        "--wait", type=float, default=60.0, metavar="S", help="follow it for at most S seconds (default: 60)"
    )
    drill.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else")
    drill.add_argument("--out", metavar="FOLDER", type=Path, help="write the figures and a plot there")
    _token_file(drill)

    fhir = commands.add_parser("fhir", help="FHIR R4 records")
    fhir_commands = fhir.add_subparsers(title="commands", required=True, metavar="COMMAND")
    load = _command(fhir_commands, "import", _fhir_import, "import bundles, resources or bulk NDJSON (plain or .gz)")
    _data_dir(load)
    load.add_argument("--department", help="who may ask about these patients (default: every department)")
    load.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files of one export are given together")

    hl7 = commands.add_parser("hl7", help="HL7 v2 messages")
    hl7_commands = hl7.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listen = _command(hl7_commands, "serve", _hl7_serve, "take results and admissions from interface engines by MLLP")
    listen.epilog = "Which places are which departments, and who may connect, stands in hl7.json of DIR: docs/hl7.md."
    _data_dir(listen)
    _state(listen)
    listen.add_argument("--host", dest="mllp_host", default="127.0.0.1", metavar="H", help="(default: 127.0.0.1)")
    listen.add_argument(
        "--port", dest="mllp_port", default=2575, type=int, metavar="P", help="0 for any (default: 2575)"
    )
    listen.add_argument("--tls-cert", metavar="FILE", default="", help="certificate chain (PEM); without it no TLS")
    listen.add_argument("--tls-key", metavar="FILE", default="", help="its key, if it is not in the same file")
    listen.add_argument(
        "--tls-ca", metavar="FILE", default="", help="only senders with a certificate of this authority"
    )
    listen.add_argument("--metrics-port", metavar="P", type=int, help="serve metrics on the same address")

    context = commands.add_parser("context", help="what chatd knows")
    context_commands = context.add_subparsers(title="commands", required=True, metavar="COMMAND")
    show = _command(context_commands, "show", _context_show, "print the five layers and the composed prompt")
    _data_dir(show)
    show.add_argument("--department", required=True)
    show.add_argument("--user", required=True)
    show.add_argument("--patient", required=True)
    show.add_argument("--question", default="Summarise.", help="the question at the prompt's end (default: Summarise.)")

    audit = commands.add_parser("audit", help="who did what on whom: verify, export, report")
    audit_commands = audit.add_subparsers(title="commands", required=True, metavar="COMMAND")
    verify = _command(audit_commands, "verify", _audit_verify, "walk all rows and name the first that does not hold")
    verify.epilog = (
        "Exit status: 0 all rows hold; 1 one does not; 2 they could not be read; 3 they hold as far as can be told "
        "without the seed."
    )
    _audit_ledger(verify)
    verify.add_argument("--seed", metavar="FILE", type=Path, help="the chain's first key (default: keys/ of DIR)")
    verify.add_argument(
        "--checkpoints",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="checkpoints that were sent away; may be given again (default: this machine's own)",
    )
    export = _command(audit_commands, "export", _audit_export, "print every row, one a line")
    _audit_ledger(export)
    export.add_argument("--fhir", action="store_true", required=True, help="as FHIR R4 AuditEvents (IHE BALP)")
    report = _command(audit_commands, "report", _audit_report, "print what was done with a patient or by a person")
    _audit_ledger(report)
    report.add_argument("--patient", metavar="P", help="patient id")
    report.add_argument("--user", metavar="U", help="user id")

    doctor = _command(commands, "doctor", _doctor, "look at a running installation: TLS, Redis, keys, clocks, ledger")
    doctor.epilog = "Changes nothing. Exit status: 0 nothing fails, 1 something does."
    _data_dir(doctor)
    _state(doctor)
    doctor.add_argument("--site", metavar="FILE", type=Path, help="site.toml of the front (default: as deploy has it)")
    doctor.add_argument("--url", dest="front", metavar="URL", default="", help="https:// as phones reach it")
    doctor.add_argument("--ca", metavar="FILE", type=Path, help="the authority (PEM) of the certificate")
    doctor.add_argument("--ntp", metavar="HOST", default="", help="a time server inside the hospital")
    doctor.add_argument("--deep", action="store_true", help="read the whole audit, ledger and model too")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON, and nothing else")

    schema = _command(commands, "schema", _schema, "print the AsyncAPI document of chatd.v1")
    schema.add_argument("--json-schema", action="store_true", help="the frames as JSON Schema instead")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace, Settings], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", help="keys, ledger, feeds (default: $CHATD_DATA_DIR or .chatd)")


def _listen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="H", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", metavar="P", type=int, help="port to listen on, 0 for any (default: 8080)")


def _token_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="a token of the identity provider, - for standard input (default: one made with the installation's key)",
    )


def _audit_ledger(parser: argparse.ArgumentParser) -> None:
    _data_dir(parser)
    parser.add_argument("--ledger", metavar="URL", help="postgresql:// or sqlite:/// (default: that of DIR)")


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="PATH", help="folder of the model (for vllm: of the served model's tokenizer)"
    )
    parser.add_argument("--url", metavar="URL", help="the vLLM server: http://HOST:PORT or unix:/PATH")
    parser.add_argument("--slots", metavar="N", type=int, help="answers that are written at once (default: 20)")


def _state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--redis", metavar="URL", help="redis://, rediss:// or unix:// (default: a private one)")
    parser.add_argument("--ledger", metavar="URL", help="postgresql:// or sqlite:/// (default: SQLite in DIR)")


def _fail(text: str) -> int:
    print(f"chatd: {text}", file=sys.stderr)
    return 1


def _up(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd.places import Places
    from chatd.private_redis import RedisNotStarted
    from chatd.up import Supervisor, UpError

    if settings.model_configured:
        from chatd.infer import check

        check(settings)
    settings = msgspec.structs.replace(settings, demo=not arguments.no_demo)
    try:
        return Supervisor(settings, Places(settings), own_redis=not settings.redis_url).run()
    except (UpError, RedisNotStarted) as error:
        return _fail(str(error))


def _serve(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd.places import Places
    from chatd.serve import ignore_interrupt, serve

    _wipe(settings)
    running = Places(settings).running()
    if running is not None:
        engine = running.engine if settings.engine == "none" else settings.engine
        settings = msgspec.structs.replace(settings, demo=running.demo, engine=engine)
    places = Places(settings)
    if not places.redis_url:
        return _fail(f"no chatd up is running on {places.data}; start one, or give --redis URL")
    if arguments.supervised:
        ignore_interrupt()
    return serve(settings, places, supervised=arguments.supervised)


def _wipe(settings: Settings) -> None:
    """Only a process that begins anew can have its freed memory overwritten; does nothing where it was begun so."""
    from chatd import wiping

    if settings.wipe_memory:
        wiping.begin_again()


def _infer(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd import infer
    from chatd.places import Places

    places = Places(settings)
    rehearsal = infer.Rehearsal(step_ms=arguments.step_ms, faults=tuple(arguments.fault))
    if arguments.supervised:
        return infer.work(
            settings, places, worker_id=arguments.worker_id, pulse_fd=arguments.pulse_fd, rehearsal=rehearsal
        )
    infer.check(settings)
    if not places.redis_url:
        return _fail(f"no chatd up is running on {places.data}; start one, or give --redis URL")
    running = places.running()
    if running is not None and running.engine == "none":
        print(
            f"chatd infer: the chatd up on {places.data} was started without --engine: it will not ask this worker",
            file=sys.stderr,
        )
    return infer.InferSupervisor(settings, places, rehearsal, ends_with_input=arguments.until_eof).run()


def _model_tiny(arguments: argparse.Namespace, _settings: Settings) -> int:
    from chatd.inference.tiny import make

    if arguments.folder.exists() and any(arguments.folder.iterdir()):
        return _fail(f"{arguments.folder} is not empty")
    make(arguments.folder, arguments.size, say=_progress)
    print(f"{arguments.folder}: a random model that writes nonsense; chatd up --engine mlx --model {arguments.folder}")
    return 0


def _model_convert(arguments: argparse.Namespace, _settings: Settings) -> int:
    from chatd.inference.models import ModelError, convert

    try:
        convert(arguments.source, arguments.folder, _BITS[arguments.bits], _progress)
    except ModelError as error:
        return _fail(str(error))
    print(f"{arguments.folder}: written; chatd model check --pin {arguments.folder} looks at it and pins it")
    return 0


def _model_check(arguments: argparse.Namespace, _settings: Settings) -> int:
    import importlib.util

    from chatd.infer import first_words
    from chatd.inference.models import Finding, check

    def say(finding: Finding) -> None:
        print(f"{finding.level:8}{finding.what}: {finding.text}", flush=True)

    if not arguments.folder.is_dir():
        return _fail(f"there is no folder {arguments.folder}")
    if importlib.util.find_spec("tokenizers") is None:
        return _fail(f"what a model needs is not installed in {sys.prefix}: run scripts/setup mlx")
    has_mlx = importlib.util.find_spec("mlx_lm") is not None
    canary = first_words if has_mlx and not arguments.no_run else None
    findings = check(arguments.folder, pin=arguments.pin, canary=canary, say=say)
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _token(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd.gateway.auth import mint
    from chatd.places import Places

    if not 0 < arguments.ttl <= settings.jwt_max_ttl_s:
        return _fail(f"--ttl must be between 1 and {settings.jwt_max_ttl_s} seconds")
    print(
        mint(
            Places(settings).jwt_secret(),
            user_id=arguments.user,
            departments=(arguments.department,),
            roles=(arguments.role,),
            name=_staff_name(arguments.user),
            ttl_s=arguments.ttl,
            now=datetime.now(UTC),
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
        )
    )
    return 0


def _noted(status: int, settings: Settings, event: str, **fields: str) -> int:
    """Leave the row of a command that went well; what it did stays done where no row can be written."""
    from chatd.auditing import noted
    from chatd.places import Places

    if status == 0:
        with _log_to_stderr():
            asyncio.run(noted(Places(settings), event, **fields))
    return status


def _revoke(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd import revoking
    from chatd.places import Places

    if arguments.list:
        return revoking.list_revoked(Places(settings))
    kind, name = next((k, n) for k in revoking.KINDS if (n := getattr(arguments, k)) is not None)
    if arguments.lift:
        status, how = revoking.lift(Places(settings), kind, name), "lifted"
    else:
        status = revoking.revoke(Places(settings), kind, name, for_good=arguments.for_good)
        how = "for_good" if arguments.for_good else "until_now"
    return _noted(status, settings, "revoked", detail=f"{how}:{kind}:{name}")


def _device_list(_: argparse.Namespace, settings: Settings) -> int:
    from chatd import revoking
    from chatd.places import Places

    return _noted(revoking.list_devices(Places(settings)), settings, "device.list")


def _device_approve(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd import revoking
    from chatd.places import Places

    status = revoking.approve(Places(settings), arguments.user, arguments.device)
    return _noted(status, settings, "device.approved", device=arguments.device, detail=arguments.user)


def _alert(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd.places import Places
    from chatd.raising import raise_alert, read_token

    kind, _, who = (arguments.to or "").partition(":")
    if arguments.to is not None and (kind not in ("role", "user") or not who):
        return _fail("--to is role:R or user:U")
    body = {
        "content": arguments.text,
        "priority": arguments.priority,
        "requires_action": arguments.requires_action,
        "policy": arguments.policy,
        "to": {kind: who} if who else None,
    }
    return raise_alert(Places(settings), arguments.department, body, token=read_token(arguments.token_file))


def _drill(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd import drill
    from chatd.places import Places
    from chatd.raising import read_token

    if not 0 < arguments.wait <= drill.MOST_WAIT_S:
        print(f"chatd: --wait must be above 0 and at most {drill.MOST_WAIT_S:g} seconds", file=sys.stderr)
        return drill.NOT_DRILLED
    return drill.drill(
        Places(settings),
        arguments.department,
        text=arguments.text or drill.TEXT,
        policy=arguments.policy,
        wait_s=arguments.wait,
        as_json=arguments.json,
        out=arguments.out,
        token=read_token(arguments.token_file),
    )


def _staff_name(user_id: str) -> str:
    from chatd import demo

    return next((person.name for person in demo.staff() if person.user_id == user_id), user_id)


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Warnings of the rooms that a command uses; its standard output is for its answer alone."""
    from chatd import logs

    writer = logs.set_up("warning")
    try:
        yield
    finally:
        writer.close()


def _fhir_import(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd.auditing import noted
    from chatd.importing import import_files
    from chatd.places import Places

    async def work() -> int:
        await noted(Places(settings), "record.import", department=arguments.department)
        return await import_files(Places(settings), arguments.files, department=arguments.department)

    with _log_to_stderr():
        return asyncio.run(work())


def _hl7_serve(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd.hl7_server import Where, serve
    from chatd.places import Places

    _wipe(settings)
    running = Places(settings).running()
    settings = msgspec.structs.replace(settings, demo=running is not None and running.demo)
    places = Places(settings)
    if not places.redis_url:
        return _fail(f"no chatd up is running on {places.data}; start one, or give --redis URL")
    where = Where(
        host=arguments.mllp_host,
        port=arguments.mllp_port,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        tls_ca=arguments.tls_ca,
        metrics_port=arguments.metrics_port,
    )
    return serve(settings, places, where)


def _context_show(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd.auditing import noted
    from chatd.places import Places
    from chatd.showing import show

    async def work() -> int:
        places = Places(settings)
        await noted(places, "patient.show", department=arguments.department, patient_id=arguments.patient)
        return await show(
            places,
            department=arguments.department,
            user=arguments.user,
            patient=arguments.patient,
            question=arguments.question,
            budget_tokens=settings.prompt_budget_tokens,
        )

    with _log_to_stderr():
        return asyncio.run(work())


def _doctor(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd import doctor
    from chatd.places import Places

    where = doctor.Where(
        site=arguments.site,
        url=arguments.front,
        authority=arguments.ca,
        ntp=arguments.ntp,
        is_deep=arguments.deep,
    )
    with _log_to_stderr():
        return doctor.doctor(Places(settings), where, as_json=arguments.json)


def _audit_verify(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd import auditing
    from chatd.places import Places

    with _log_to_stderr():
        return auditing.verify(Places(settings), seed=arguments.seed, checkpoints=arguments.checkpoints)


def _audit_export(_: argparse.Namespace, settings: Settings) -> int:
    from chatd import auditing
    from chatd.places import Places

    with _log_to_stderr():
        return auditing.export(Places(settings))


def _audit_report(arguments: argparse.Namespace, settings: Settings) -> int:
    from chatd import auditing
    from chatd.places import Places

    if arguments.patient is None and arguments.user is None:
        print("chatd: give --patient P, --user U, or both", file=sys.stderr)
        return 2
    with _log_to_stderr():
        return auditing.report(Places(settings), patient=arguments.patient, user=arguments.user)


def _schema(arguments: argparse.Namespace, _settings: Settings) -> int:
    from protocols import schema

    document = schema.json_schema() if arguments.json_schema else schema.asyncapi()
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    print()
    return 0
