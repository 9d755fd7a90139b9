"""Where everything of a gateway is wired: settings in, ASGI application out."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from chatd import endpoints, tasks
from chatd.actions.service import Actions
from chatd.alerts.policies import Policies
from chatd.alerts.presence import Presence
from chatd.alerts.service import Alerts
from chatd.audit.service import Audit
from chatd.audit_place import audit_of
from chatd.clock import Clock, SystemClock
from chatd.faults import FaultPoints
from chatd.gateway.alerting import Departments
from chatd.gateway.auditing import of_identity
from chatd.gateway.gate import Gate
from chatd.gateway.node import Node
from chatd.identity.register import REGISTERS, Register
from chatd.inference.limits import limits_of
from chatd.inference.queue import JobQueue
from chatd.inference.watch import ModelWatch
from chatd.ledger import Ledger
from chatd.ledger.day_keys import DayKeys
from chatd.places import Places
from chatd.records import RecordKeeper, configured
from chatd.replies.following import Follower
from chatd.replies.runs import Run, Runs
from chatd.replies.sessions import Sessions
from chatd.replies.stale import Rests
from chatd.replies.writing import Writer
from chatd.settings import Settings
from context.seal import Sealer
from context.store import ContextStore, connect
from protocols.errors import ChatdError
from protocols.frames import AiResponse

#: The doorbell's connection waits for rings; its reads end after this and begin again.
_DOORBELL_READ_S = 60.0


def build(settings: Settings, places: Places, clock: Clock | None = None) -> Starlette:
    """The ASGI application of one gateway. Nothing is connected before its lifespan begins.

    Args:
        places: Where Redis, the ledger and the keys of this installation are.
        clock: Another clock in tests.
    """
    clock = clock or SystemClock()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        redis = connect(
            places.redis_url, timeout_s=settings.redis_timeout_s, max_connections=settings.redis_max_connections
        )
        doorbell = connect(places.redis_url, timeout_s=_DOORBELL_READ_S, max_connections=4)
        try:
            keys = places.live_keys()
            sealer = keys.sealer
            ledger = Ledger.open(places.ledger_url, timeout_s=settings.ledger_timeout_s)
            node = _node(settings, places, clock, sealer, redis, doorbell, ledger)
            node.knows_departments(configured(places.data, is_demo=settings.demo, now=clock.now()).departments)
            keeper = RecordKeeper(node.store, redis, places, demo=settings.demo, clock=clock)
        except (ChatdError, ValueError, OSError) as error:
            # Keys, pages or addresses that cannot be used: the server swallows the reason, so it is said here.
            print(f"chatd: {error}", file=sys.stderr, flush=True)
            raise
        # Before the first phone: a question that comes at once must not be answered as if there were no model.
        await node.watch.look()
        # The same of a token: what was revoked while this gateway was not there, and the keys of its provider.
        await node.gate.prepare()
        app.state.node = node
        app.state.keeper = keeper
        app.state.jwt_secret = places.jwt_secret() if settings.demo else b""
        loops = [
            asyncio.create_task(tasks.keep(name, run), name=name)
            for name, run in (
                ("node", node.run),
                ("records", keeper.run),
                ("alerts", node.alerts.run),
                ("presence", node.alerts.presence.run),
                ("audit", node.audit.run),
                ("keys", keys.run),
            )
        ]
        try:
            yield
        finally:
            await tasks.end(loops)
            await node.alerts.flush()
            await node.runs.drain(0)
            node.runs.close()
            await node.audit.flush()
            await ledger.close()
            await redis.aclose()
            await doorbell.aclose()

    return Starlette(
        routes=endpoints.routes(),
        lifespan=lifespan,
        middleware=[Middleware(endpoints.SecureHeaders)],
        exception_handlers={HTTPException: endpoints.no_route},
    )


def _node(
    settings: Settings,
    places: Places,
    clock: Clock,
    sealer: Sealer,
    redis: Redis,
    doorbell: Redis,
    ledger: Ledger,
) -> Node:
    node_id = f"n-{secrets.token_hex(6)}"
    audit = audit_of(places, sealer, ledger, clock=clock, node_id=node_id)
    faults = FaultPoints(settings.fault_kill_at)
    store = ContextStore(redis, sealer, session_ttl_s=settings.session_timeout_s, timeout_s=settings.redis_timeout_s)
    sessions = Sessions(
        redis,
        sealer,
        sealer.derive("client-message-digest"),
        node_id=node_id,
        ttl_ms=round(settings.session_timeout_s * 1000),
        max_events=settings.session_log_events,
    )
    watch, queue, follower, writer = ModelWatch(None, clock=clock, model_down_s=settings.model_down_s), None, None, None
    if settings.model_configured:
        queue = JobQueue(redis, sealer, limits_of(settings))
        watch = ModelWatch(queue, clock=clock, model_down_s=settings.model_down_s)
        follower = Follower(
            queue, redis, doorbell, clock=clock, silence_s=settings.silence_s, is_down=lambda: watch.is_down
        )
        writer = Writer(queue, follower, digest_key=sealer.derive("same-question"), settings=settings, clock=clock)
    runs = Runs(
        sessions=sessions,
        store=store,
        library=places.library(),
        clock=clock,
        node_id=node_id,
        action_ttl_s=settings.action_ttl_s,
        give_up_s=settings.session_timeout_s,
        faults=faults,
        writer=writer,
        watch=watch,
        rests=Rests(redis, sealer, ttl_ms=round(settings.session_timeout_s * 1000)),
    )
    actions = Actions(
        ledger,
        token_key=sealer.derive("confirm-token"),
        sealer=sealer,
        pseudonym_key=sealer.derive("patient-pseudonym"),
    )
    actions.on_step = audit.of_action
    runs.on_answered = _answered(audit)
    policies = settings.alert_policies_file
    alerts = Alerts(
        ledger,
        DayKeys(sealer),
        Policies(Path(policies).read_bytes() if policies else None),
        Presence(redis),
        clock=clock,
        mac_key=sealer.derive("alert-command"),
        node_id=node_id,
        retention_days=settings.alert_retention_days,
        raises_per_minute=settings.alert_raises_per_minute,
    )
    alerts.is_department = Departments(store).has
    alerts.on_record = audit.of_alert
    gate = _gate(settings, places, clock, sealer, redis)
    gate.on_audit = of_identity(audit)
    return Node(
        settings=settings,
        clock=clock,
        redis=redis,
        doorbell=doorbell,
        store=store,
        sessions=sessions,
        runs=runs,
        actions=actions,
        ledger=ledger,
        gate=gate,
        audit=audit,
        node_id=node_id,
        faults=faults,
        watch=watch,
        queue=queue,
        follower=follower,
        alerts=alerts,
    )


def _answered(audit: Audit) -> Callable[[Run, AiResponse], None]:
    def note(run: Run, answer: AiResponse) -> None:
        request = run.request
        audit.note(
            audit.row(
                "answer",
                user=request.user_id,
                session=request.session_id,
                department=request.department,
                patient_id=request.patient_id,
                response=run.response_id,
                detail=answer.status,
            )
        )

    return note


def _gate(settings: Settings, places: Places, clock: Clock, sealer: Sealer, redis: Redis) -> Gate:
    revoked, devices, glass = (
        Register(redis, sealer, name, clock=clock, file=places.register(name)) for name in REGISTERS
    )
    return Gate(
        places.token_verifier(clock),
        revoked=revoked,
        devices=devices,
        glass=glass,
        pseudonym_key=sealer.derive("emergency-access"),
        clock=clock,
        needs_device=settings.device_approval,
        break_glass_s=settings.break_glass_s,
        origins=settings.allowed_origins,
    )
