"""Alerts in the ledger: the statements that read and write them, each within one open transaction.

Nothing here awaits, and nothing decides: the rules are ``chatd.alerts.board``'s. On PostgreSQL all transactions take
their locks in one order, so that none waits in a circle: the idempotency key (``remembered``), the dedup key
(``by_dedup``), the alert (``lock``, ``due``), the key of the day (``insert``, ``store``, ``append``), the department's
counter (``append``). A transaction deals with one alert. On SQLite there is one writer.

Of an alert's people those who have ever answered have a row each. All others, a department's thousand, are one sealed
record: who was called, and whose phone has it since when. Both are written with the alert, in its transaction.

Moments in columns are kept to the millisecond. ``SealError`` from any of these means that a row is damaged, was moved,
or that the installation's ring lost a key; what cannot be read is never left out silently.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from datetime import date, datetime
from itertools import islice
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import ColumnElement, RowMapping, Select, and_, bindparam, delete, exists, func, select, union, update
from sqlalchemy import insert as sql_insert
from sqlalchemy.dialects import postgresql, sqlite

from chatd.alerts.model import CLOSED, RECEIPTS, Alert, Happened, Person, Recorded, Span, Timer
from chatd.ledger.day_keys import DayKeys
from chatd.ledger.rows import HeldAlert, Transaction
from chatd.ledger.tables import (
    alert_called,
    alert_commands,
    alert_counters,
    alert_events,
    alert_people,
    alert_timers,
    alerts,
    kept_ms,
    ledger_keys,
)
from context.seal import SealError

_URGENCY: Final = {"low": 0, "normal": 1, "high": 2, "critical": 3}
_CLOSED: Final = tuple(sorted(CLOSED))


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command that was taken. ``body_mac`` tells the same command from another under its key."""

    body_mac: str
    alert_id: str
    alert_seq: int


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """What is sealed of an alert: all of it but its people's rows, and what these people wrote, by user."""

    alert: Alert
    reasons: dict[str, str] = {}


_encode_body = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(_Body).decode


#: Every person who has not answered, in the alert's own order.
_encode_called = msgspec.msgpack.Encoder().encode
_decode_called = msgspec.msgpack.Decoder(tuple[Person, ...]).decode


# The statements, built once: building one at each use costs four times what running it does. SQLite, whose one writer
# holds everything, is sent no "FOR UPDATE". ``on_conflict`` is spelled alike by both dialects and shared by neither.
_INSERTS: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_PERSON: Final = ("n", "answer", "at", "step", "eta_at", "slot", "delivered_at", "displayed_at", "accepted_at")

_ALERT = select(alerts).where(alerts.c.alert_id == bindparam("id"))
_DEPARTMENT = select(alerts.c.department).where(alerts.c.alert_id == bindparam("id"))
_ALERT_LOCKED = _ALERT.with_for_update()
_INSERT_ALERT = sql_insert(alerts)
_UPDATE_ALERT = update(alerts).where(alerts.c.alert_id == bindparam("id"))
_PEOPLE = (
    select(alert_people)
    .where(alert_people.c.alert_id.in_(bindparam("ids", expanding=True)))
    .order_by(alert_people.c.alert_id, alert_people.c.n)
)
#: Answers that are none: such a person was called, or their phone has it.
_UNANSWERED: Final = frozenset(("addressed", *RECEIPTS))
_ANSWERED = _PEOPLE.where(alert_people.c.answer.not_in(sorted(_UNANSWERED)))
#: Whose rows are read with open alerts: ``all``, those who have ``answered``, or ``nobody``.
Who = Literal["all", "answered", "nobody"]
_WHO: Final = {"all": _PEOPLE, "answered": _ANSWERED}
_UPSERT_PEOPLE: Final = {
    name: statement.on_conflict_do_update(
        index_elements=["alert_id", "user_id"], set_={column: statement.excluded[column] for column in _PERSON}
    )
    for name, statement in ((name, make(alert_people)) for name, make in _INSERTS.items())
}
_CALLED = select(alert_called).where(alert_called.c.alert_id.in_(bindparam("ids", expanding=True)))
_UPSERT_CALLED: Final = {
    name: statement.on_conflict_do_update(
        index_elements=["alert_id"],
        set_={column: statement.excluded[column] for column in ("key_day", "people_sealed")},
    )
    for name, statement in ((name, make(alert_called)) for name, make in _INSERTS.items())
}
_PERSON_COLUMNS: Final = ("alert_id", "user_id", *_PERSON)
#: By dialect: the statement's text, and the order of its values where they have no names.
_READY_PEOPLE: Final[dict[str, tuple[str, tuple[str, ...]]]] = {}
_DELETE_TIMERS = delete(alert_timers).where(alert_timers.c.alert_id == bindparam("id"))
_INSERT_TIMERS = sql_insert(alert_timers)
_SET_NEXT_DUE = update(alerts).where(alerts.c.alert_id == bindparam("id")).values(next_due_at=bindparam("due"))
_DUE_ALERTS = (
    select(alerts.c.alert_id)
    .where(alerts.c.next_due_at <= bindparam("now"))
    .order_by(alerts.c.next_due_at, alerts.c.alert_id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_AHEAD = (
    select(alerts.c.alert_id)
    .where(alerts.c.next_due_at > bindparam("moment"), alerts.c.updated_at > bindparam("moment"))
    .order_by(alerts.c.next_due_at, alerts.c.alert_id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_DUE_TIMERS = (
    select(alert_timers)
    .where(alert_timers.c.alert_id.in_(bindparam("ids", expanding=True)), alert_timers.c.due_at <= bindparam("now"))
    .order_by(alert_timers.c.due_at, alert_timers.c.alert_id, alert_timers.c.n)
)
_TAKE_NUMBERS = (
    update(alert_counters)
    .where(alert_counters.c.department == bindparam("of"))
    .values(alert_seq=alert_counters.c.alert_seq + bindparam("count"))
    .returning(alert_counters.c.alert_seq)
)
_NEW_COUNTER: Final = {name: make(alert_counters).on_conflict_do_nothing() for name, make in _INSERTS.items()}
_COUNTER = select(alert_counters).where(alert_counters.c.department == bindparam("of"))
_INSERT_EVENTS = sql_insert(alert_events)
_EVENTS_SINCE = (
    select(alert_events.c.alert_seq, alert_events.c.key_day, alert_events.c.frame_sealed)
    .where(alert_events.c.department == bindparam("of"), alert_events.c.alert_seq > bindparam("after"))
    .order_by(alert_events.c.alert_seq)
    .limit(bindparam("limit"))
)
_OPEN = (
    select(alerts)
    .where(alerts.c.department == bindparam("of"), alerts.c.state.not_in(_CLOSED))
    .order_by(alerts.c.urgency.desc(), alerts.c.raised_at, alerts.c.alert_id)
    .limit(bindparam("limit"))
)
_SAME = (
    select(alerts)
    .where(
        alerts.c.dedup_mac == bindparam("mac"),
        alerts.c.department == bindparam("of"),
        alerts.c.state.not_in(_CLOSED),
        alerts.c.raised_at >= bindparam("not_before"),
    )
    .order_by(alerts.c.raised_at.desc(), alerts.c.alert_id)
    .limit(1)
    .with_for_update()
)
_COMMAND = select(alert_commands).where(
    alert_commands.c.by_user == bindparam("by"), alert_commands.c.command_key == bindparam("key")
)
_INSERT_COMMAND = sql_insert(alert_commands)


def insert(tx: Transaction, keys: DayKeys, alert: Alert) -> None:
    """Add a new alert with its people; it gets its timers and events by the functions below."""
    tx.connection.execute(_INSERT_ALERT, {"alert_id": alert.alert_id} | _columns(tx, keys, alert))
    _store_people(tx, keys, alert, None)


def lock(tx: Transaction, keys: DayKeys, alert_id: str) -> Alert | None:
    """The alert, held against every other writer until the commit; None if there is none."""
    row = tx.connection.execute(_ALERT_LOCKED, {"id": alert_id}).mappings().one_or_none()
    if row is None:
        return None
    held = tx.held_alerts[alert_id] = _alert(tx, keys, row)
    return held.alert


def read(tx: Transaction, keys: DayKeys, alert_id: str) -> Alert | None:
    """The alert as last committed; None if there is none."""
    row = tx.connection.execute(_ALERT, {"id": alert_id}).mappings().one_or_none()
    return None if row is None else _alert(tx, keys, row).alert


def department(tx: Transaction, alert_id: str) -> str:
    """Whose alert it is; empty if there is none. It is not opened."""
    found: str | None = tx.connection.execute(_DEPARTMENT, {"id": alert_id}).scalar_one_or_none()
    return found or ""


def store(tx: Transaction, keys: DayKeys, alert: Alert) -> None:
    """Write how an alert stands now; of its people, what is not as it was.

    Raises:
        ValueError: this transaction has not locked the alert, so what it would write may rest on an old state.
    """
    before = tx.held_alerts.get(alert.alert_id)
    if before is None:
        raise ValueError("an alert is stored by the transaction that locked it")
    tx.connection.execute(_UPDATE_ALERT, {"id": alert.alert_id} | _columns(tx, keys, alert))
    _store_people(tx, keys, alert, before)


def set_timers(tx: Transaction, alert_id: str, timers: Sequence[Timer]) -> None:
    """Replace all timers of an alert that this transaction holds; none is fine."""
    tx.connection.execute(_DELETE_TIMERS, {"id": alert_id})
    rows = [
        {"alert_id": alert_id, "n": n, "kind": timer.kind, "due_at": timer.due_at} for n, timer in enumerate(timers)
    ]
    if rows:
        tx.connection.execute(_INSERT_TIMERS, rows)
    next_due_at = min((timer.due_at for timer in timers), default=None)
    tx.connection.execute(_SET_NEXT_DUE, {"id": alert_id, "due": next_due_at})


def due(tx: Transaction, now: datetime, limit: int) -> list[tuple[str, Timer]]:
    """The earliest timer of each of at most ``limit`` alerts with one due, longest due first; the alerts are held.

    On PostgreSQL alerts that another transaction holds are left to it and come again at the next asking, if then
    something is still due. A second timer of one alert that is due comes at the next asking too: the first one's
    change may have taken it away. Whoever takes one and changes nothing sets the timers that remain.
    """
    ids = list(tx.connection.execute(_DUE_ALERTS, {"now": now, "limit": limit}).scalars())
    if not ids:
        return []
    # Read after the locks are held, so that a timer which another transaction has just fired is not seen.
    rows = tx.connection.execute(_DUE_TIMERS, {"ids": ids, "now": now})
    earliest: dict[str, Timer] = {}
    for row in rows:
        earliest.setdefault(row.alert_id, Timer(kind=row.kind, due_at=row.due_at))
    return list(earliest.items())


def ahead(tx: Transaction, moment: datetime, limit: int) -> list[str]:
    """At most ``limit`` alerts that were changed after ``moment`` and wait for longer; they are held, as by ``due``."""
    return list(tx.connection.execute(_AHEAD, {"moment": moment, "limit": limit}).scalars())


def append(
    tx: Transaction,
    keys: DayKeys,
    department: str,
    alert_id: str,
    events: Sequence[tuple[Happened, Callable[[int], bytes]]],
) -> tuple[Recorded, ...]:
    """Add events to the department's log under its next numbers, and hold its counter until the commit.

    ``events``: what happened, and how its frame is made of its ``alert_seq``; in order. A transaction that rolls
    back gives its numbers back, so there is never a hole; while it runs, others of the department wait.
    """
    if not events:
        return ()
    days = [keys.hold(tx, happened.at) for happened, _ in events]
    last = _take(tx, department, len(events))
    recorded = tuple(
        Recorded(alert_seq=seq, frame=make(seq)) for seq, (_, make) in enumerate(events, start=last - len(events) + 1)
    )
    rows = [
        {
            "department": department,
            "alert_seq": each.alert_seq,
            "alert_id": alert_id,
            "event": happened.event,
            "at": happened.at,
            "by_user": happened.by,
            "key_day": day,
            "frame_sealed": keys.seal(tx, day, each.frame, aad=_frame_place(department, each.alert_seq)),
        }
        for each, day, (happened, _) in zip(recorded, days, events, strict=True)
    ]
    tx.connection.execute(_INSERT_EVENTS, rows)
    return recorded


def since(
    tx: Transaction,
    keys: DayKeys,
    department: str,
    after_seq: int,
    limit: int,
    *,
    damaged: list[int] | None = None,
) -> tuple[Recorded, ...]:
    """At most ``limit`` events after ``after_seq``, in order and without holes.

    They begin at ``after_seq`` + 1, or at the log's ``first_seq`` where that is later: then what lies between is
    forgotten, and the caller has to say so. ``damaged``: gets the numbers of events that cannot be read, which are
    then left out; a hole that the caller has to tell.
    """
    rows = tx.connection.execute(_EVENTS_SINCE, {"of": department, "after": after_seq, "limit": limit})
    found = []
    for row in rows.all():
        try:
            frame = keys.open(tx, row.key_day, row.frame_sealed, aad=_frame_place(department, row.alert_seq))
        except SealError:
            if damaged is None:
                raise
            damaged.append(row.alert_seq)
        else:
            found.append(Recorded(alert_seq=row.alert_seq, frame=frame))
    return tuple(found)


def span(tx: Transaction, department: str) -> Span:
    """From which number to which the department's log goes; 1 to 0 where nothing has ever happened."""
    row = tx.connection.execute(_COUNTER, {"of": department}).one_or_none()
    return Span(first_seq=1, last_seq=0) if row is None else Span(first_seq=row.first_seq, last_seq=row.alert_seq)


def open_alerts(
    tx: Transaction,
    keys: DayKeys,
    department: str,
    limit: int,
    *,
    who: Who = "all",
    damaged: list[str] | None = None,
) -> tuple[Alert, ...]:
    """At most ``limit`` alerts of a department that are not closed: most urgent first, of these the oldest first.

    ``who``: which of their people are read, because they are most of it; the others are missing in ``people``.
    ``damaged``: gets the ids of alerts that cannot be read, which are then left out: one must not hide the others.
    """
    found = tx.connection.execute(_OPEN, {"of": department, "limit": limit}).mappings().all()
    ids = [row["alert_id"] for row in found]
    people = {} if who == "nobody" else _people(tx, ids, _WHO[who])
    called = _called(tx, ids) if who == "all" else {}
    alerts_found = []
    for row in found:
        try:
            alert_id = row["alert_id"]
            alerts_found.append(_opened(tx, keys, row, people.get(alert_id, []), called.get(alert_id)).alert)
        except (SealError, msgspec.MsgspecError):
            if damaged is None:
                raise
            damaged.append(row["alert_id"])
    return tuple(alerts_found)


def by_dedup(tx: Transaction, keys: DayKeys, department: str, dedup_mac: str, not_before: datetime) -> Alert | None:
    """The newest open alert with this ``dedup_mac`` (``DayKeys.dedup_mac``) raised since ``not_before``, held.

    On PostgreSQL another transaction that asks for the same waits until this one ends, so that two alerts at once
    become one.
    """
    tx.alone(f"alert_dedup|{department}|{dedup_mac}")
    asked = {"mac": dedup_mac, "of": department, "not_before": not_before}
    row = tx.connection.execute(_SAME, asked).mappings().one_or_none()
    if row is None:
        return None
    held = tx.held_alerts[row["alert_id"]] = _alert(tx, keys, row)
    return held.alert


def remembered(tx: Transaction, by: str, key: str) -> Remembered | None:
    """What became of the command ``key`` of ``by``; None if it was never taken.

    On PostgreSQL the same command in another transaction waits until this one ends, and then finds what it did.
    """
    tx.alone(f"alert_command|{by}|{key}")
    row = tx.connection.execute(_COMMAND, {"by": by, "key": key}).one_or_none()
    if row is None:
        return None
    return Remembered(body_mac=row.body_mac, alert_id=row.alert_id, alert_seq=row.alert_seq)


def remember(tx: Transaction, by: str, key: str, body_mac: str, alert_id: str, alert_seq: int) -> None:
    """Remember that ``by``'s command ``key`` was taken, as long as its alert is kept."""
    row = {"by_user": by, "command_key": key, "body_mac": body_mac, "alert_id": alert_id, "alert_seq": alert_seq}
    tx.connection.execute(_INSERT_COMMAND, row)


def retire(tx: Transaction, before: date) -> int:
    """Forget what is older than ``before`` and destroy its keys; gives the number of keys destroyed.

    Each department's log begins from now on with its first event of ``before`` or later. Closed alerts of which no
    event is left go with their people, timers and commands. An alert that is open stays, whatever its age, and so
    does each key that something still needs: all that is left in the ledger can be read. Twice, or on two nodes at
    once, does it once.
    """
    limit = before.isoformat()
    # Taken first, so that of two nodes one waits here, and none seals with a key that is being destroyed.
    living = (ledger_keys.c.day < limit) & ledger_keys.c.key_sealed.is_not(None)
    days = tx.connection.execute(tx.locked(select(ledger_keys.c.day).where(living).order_by(ledger_keys.c.day)))
    old = list(days.scalars())
    if not old:
        return 0
    is_old = alert_events.c.key_day.in_(old)
    departments = select(alert_events.c.department).where(is_old).distinct().order_by(alert_events.c.department)
    for department in tx.connection.execute(departments).scalars().all():
        _forget_events(tx, department, limit)
    _forget_alerts(
        tx,
        and_(
            alerts.c.key_day < limit,
            alerts.c.state.in_(_CLOSED),
            ~exists().where(alert_events.c.alert_id == alerts.c.alert_id),
        ),
    )
    needed = union(
        select(alert_events.c.key_day).where(is_old),
        select(alerts.c.key_day).where(alerts.c.key_day.in_(old)),
        select(alert_called.c.key_day).where(alert_called.c.key_day.in_(old)),
    )
    unneeded = sorted(set(old) - set(tx.connection.execute(needed).scalars()))
    if unneeded:
        destroyed = update(ledger_keys).where(ledger_keys.c.day.in_(unneeded)).values(key_sealed=None)
        tx.connection.execute(destroyed)
    return len(unneeded)


def _forget_events(tx: Transaction, department: str, limit: str) -> None:
    mine = alert_counters.c.department == department
    counter = tx.connection.execute(tx.locked(select(alert_counters).where(mine))).one()
    kept = select(func.min(alert_events.c.alert_seq)).where(
        alert_events.c.department == department, alert_events.c.key_day >= limit
    )
    first = tx.connection.execute(kept).scalar()
    first = counter.alert_seq + 1 if first is None else first
    # The number is moved first: the database lets no event go that the log still counts.
    tx.connection.execute(update(alert_counters).where(mine).values(first_seq=first))
    tx.connection.execute(
        delete(alert_events).where(alert_events.c.department == department, alert_events.c.alert_seq < first)
    )


def _forget_alerts(tx: Transaction, which: ColumnElement[bool]) -> None:
    ids = list(
        tx.connection.execute(tx.locked(select(alerts.c.alert_id).where(which).order_by(alerts.c.alert_id))).scalars()
    )
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        for table in (alert_people, alert_called, alert_timers, alert_commands, alerts):
            tx.connection.execute(delete(table).where(table.c.alert_id.in_(some)))


#: Ids in one statement; SQLite takes 32,766 values in one. Source: https://www.sqlite.org/limits.html
_AT_ONCE: Final = 1000


def _take(tx: Transaction, department: str, count: int) -> int:
    """Add ``count`` to the department's counter, hold it, and give the number it stands at."""
    asked = {"of": department, "count": count}
    last = tx.connection.execute(_TAKE_NUMBERS, asked).scalar_one_or_none()
    if last is None:
        new = {"department": department, "alert_seq": 0, "first_seq": 1}
        tx.connection.execute(_NEW_COUNTER[tx.connection.dialect.name], new)
        last = tx.connection.execute(_TAKE_NUMBERS, asked).scalar_one()
    return int(last)


def _store_people(tx: Transaction, keys: DayKeys, alert: Alert, before: HeldAlert | None) -> None:
    """Write what is new of an alert's people, and hold the alert. Who has a row keeps it, whatever they say later."""
    known = before or HeldAlert(alert=msgspec.structs.replace(alert, people=()))
    rows = [n for n, person in enumerate(alert.people) if person.user_id in known.answered or _has_answered(person)]
    is_row = frozenset(rows)
    called = [person for n, person in enumerate(alert.people) if n not in is_row]
    old = {
        person.user_id: (n, person) for n, person in enumerate(known.alert.people) if person.user_id in known.answered
    }
    _write_rows(tx, alert, [n for n in rows if old.get(alert.people[n].user_id) != (n, alert.people[n])])
    answered = frozenset(alert.people[n].user_id for n in rows)
    gone = sorted(known.answered - answered)
    if gone:
        whose = alert_people.c.user_id.in_(gone)
        tx.connection.execute(delete(alert_people).where(alert_people.c.alert_id == alert.alert_id, whose))
    day = keys.hold(tx, alert.updated_at)
    held = HeldAlert(alert=alert, answered=answered, called=tuple(called), called_day=day)
    # Of the same day as the alert's body: else an alert that is changed for weeks would keep the key of its first day.
    if held.called != known.called or (known.called_day and known.called_day != day):
        sealed = keys.seal(tx, day, _encode_called(held.called), aad=_called_place(alert.alert_id))
        row = {"alert_id": alert.alert_id, "key_day": day, "people_sealed": sealed}
        tx.connection.execute(_UPSERT_CALLED[tx.connection.dialect.name], row)
    tx.held_alerts[alert.alert_id] = held


def _has_answered(person: Person) -> bool:
    return person.answer not in _UNANSWERED or person.accepted_at is not None


def _write_rows(tx: Transaction, alert: Alert, which: Sequence[int]) -> None:
    """Write rows of people: they may be many, so the statement is made ready once, not for each row."""
    if not which:
        return
    dialect = tx.connection.dialect
    made = _READY_PEOPLE.get(dialect.name)
    if made is None:
        compiled = _UPSERT_PEOPLE[dialect.name].compile(dialect=dialect, column_keys=_PERSON_COLUMNS)
        made = _READY_PEOPLE[dialect.name] = str(compiled), tuple(getattr(compiled, "positiontup", None) or ())
    sql, order = made
    rows = [_person_columns(alert, n) for n in which]
    given: Any = [tuple(row[name] for name in order) for row in rows] if order else rows
    tx.connection.exec_driver_sql(sql, given)


def _columns(tx: Transaction, keys: DayKeys, alert: Alert) -> dict[str, Any]:
    reasons = {person.user_id: person.reason for person in alert.people if person.reason is not None}
    body = _Body(alert=msgspec.structs.replace(alert, people=()), reasons=reasons)
    day = keys.hold(tx, alert.updated_at)
    return {
        "department": alert.department,
        "state": alert.state,
        "urgency": _URGENCY[alert.priority],
        "raised_at": alert.raised_at,
        "updated_at": alert.updated_at,
        "dedup_mac": None if alert.dedup_key is None else keys.dedup_mac(alert.department, alert.dedup_key),
        "key_day": day,
        "body_sealed": keys.seal(tx, day, _encode_body(body), aad=_body_place(alert.alert_id)),
    }


def _person_columns(alert: Alert, n: int) -> dict[str, Any]:
    """A person's row as the database takes it."""
    person = alert.people[n]
    return {
        "alert_id": alert.alert_id,
        "user_id": person.user_id,
        "n": n,
        "answer": person.answer,
        "at": kept_ms(person.at),
        "step": person.step,
        "eta_at": kept_ms(person.eta_at),
        "slot": person.slot,
        "delivered_at": kept_ms(person.delivered_at),
        "displayed_at": kept_ms(person.displayed_at),
        "accepted_at": kept_ms(person.accepted_at),
    }


def _people(tx: Transaction, alert_ids: Iterable[str], statement: Select[Any] = _PEOPLE) -> dict[str, list[RowMapping]]:
    found: dict[str, list[RowMapping]] = {}
    for row in tx.connection.execute(statement, {"ids": list(alert_ids)}).mappings():
        found.setdefault(row["alert_id"], []).append(row)
    return found


def _called(tx: Transaction, alert_ids: Sequence[str]) -> dict[str, RowMapping]:
    return {row["alert_id"]: row for row in tx.connection.execute(_CALLED, {"ids": list(alert_ids)}).mappings()}


def _alert(tx: Transaction, keys: DayKeys, row: RowMapping) -> HeldAlert:
    alert_id = row["alert_id"]
    return _opened(tx, keys, row, _people(tx, [alert_id]).get(alert_id, []), _called(tx, [alert_id]).get(alert_id))


def _opened(
    tx: Transaction, keys: DayKeys, row: RowMapping, people: Sequence[RowMapping], record: RowMapping | None
) -> HeldAlert:
    alert_id = row["alert_id"]
    body = _decode_body(keys.open(tx, row["key_day"], row["body_sealed"], aad=_body_place(alert_id)))
    called: tuple[Person, ...] = ()
    if record is not None:
        opened = keys.open(tx, record["key_day"], record["people_sealed"], aad=_called_place(alert_id))
        called = _decode_called(opened)
    answered = {
        each["user_id"]: (
            each["n"],
            Person(
                user_id=each["user_id"],
                answer=each["answer"],
                at=each["at"],
                step=each["step"],
                eta_at=each["eta_at"],
                slot=each["slot"],
                reason=body.reasons.get(each["user_id"]),
                delivered_at=each["delivered_at"],
                displayed_at=each["displayed_at"],
                accepted_at=each["accepted_at"],
            ),
        )
        for each in people
    }
    return HeldAlert(
        alert=msgspec.structs.replace(body.alert, people=_in_order(tuple(answered.values()), called, answered)),
        answered=frozenset(answered),
        called=called,
        called_day="" if record is None else record["key_day"],
    )


def _in_order(
    rows: Sequence[tuple[int, Person]], called: Iterable[Person], answered: Container[str]
) -> tuple[Person, ...]:
    """Rows at their places, and the others in between. A row is right: a gateway from before the record wrote it."""
    rest = iter([person for person in called if person.user_id not in answered])
    people: list[Person] = []
    for n, person in rows:
        people += islice(rest, max(0, n - len(people)))
        people.append(person)
    return (*people, *rest)


def _body_place(alert_id: str) -> bytes:
    return f"alert|{alert_id}".encode()


def _called_place(alert_id: str) -> bytes:
    return f"alert_called|{alert_id}".encode()


def _frame_place(department: str, alert_seq: int) -> bytes:
    return f"alert_event|{alert_seq}|{department}".encode()
