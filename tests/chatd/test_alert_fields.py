"""Every field of an alert and of its people is stored: what a new one needs is asked of the shapes themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from chatd.alerts.model import Alert, Person
from chatd.ledger import Ledger, alert_rows
from chatd.ledger.day_keys import DayKeys
from context.seal import KeyRing, Sealer
from protocols.frames import AlertTarget

pytest_plugins = ("tests.chatd.pg",)

NOW = datetime(2026, 1, 15, 7, 45, 20, 114000, tzinfo=UTC)
_NUMBER = count(1)


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    opened = Ledger.open(ledger_url, timeout_s=60)
    yield opened
    await opened.close()


def value(of: inspect.Type, default: object) -> Any:
    """A value of this type that is no other field's, as far as the type has more than one, and not the default."""
    n = next(_NUMBER)
    match of:
        case inspect.UnionType(types=types):
            return value(next(each for each in types if not isinstance(each, inspect.NoneType)), default)
        case inspect.LiteralType(values=values):
            return next(each for each in values if each != default)
        case inspect.BoolType():
            return default is not True
        case inspect.IntType():
            return n
        case inspect.StrType():
            return f"v-{n}"
        case inspect.DateTimeType():
            return NOW + timedelta(seconds=n)
        case inspect.VarTupleType(item_type=item):
            return (value(item, None), value(item, None))
        case inspect.DictType(key_type=key, value_type=item):
            return {value(key, None): value(item, None)}
        case inspect.StructType(cls=cls):
            # Exactly one of its three fields may be set.
            return AlertTarget(role=f"v-{n}") if cls is AlertTarget else full(cls)
    raise NotImplementedError(of)  # a new kind of field: say here what a value of it is


def full(cls: type[Any], **given: object) -> Any:
    """A Struct with no field at its default, but for those that are given."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    made = {each.name: value(each.type, each.default) for each in info.fields if each.name not in given}
    return cls(**made, **given)


def lost(given: msgspec.Struct, found: msgspec.Struct) -> list[str]:
    """Names of the fields that came back otherwise."""
    names = [field.name for field in msgspec.structs.fields(type(given))]
    return [name for name in names if getattr(given, name) != getattr(found, name)]


def test_a_full_value_has_no_default() -> None:
    """What is stored below could not pass by being left out."""
    for made in (full(Alert), full(Person)):
        for field in msgspec.structs.fields(type(made)):
            default = field.default_factory() if callable(field.default_factory) else field.default
            assert getattr(made, field.name) != default, field.name


@pytest.mark.parametrize("is_new", [True, False], ids=["inserted", "changed"])
async def test_every_field_of_an_alert_and_its_people_is_stored(ledger: Ledger, is_new: bool) -> None:
    """Whatever an alert says when it is written, as new or as changed, it says when it is read."""
    keys = DayKeys(Sealer(KeyRing.generate()))
    alert = full(Alert, alert_id="al-1")
    (first, second) = alert.people
    if is_new:
        await ledger.transact(lambda tx: alert_rows.insert(tx, keys, alert))
    else:
        bare = Alert(
            alert_id="al-1",
            department="d",
            to=AlertTarget(department="d"),
            priority="normal",
            content="c",
            requires_action=False,
            raised_by="r",
            raised_at=NOW,
            updated_at=NOW,
            policy="p",
            people=(Person(user_id=second.user_id, at=NOW), Person(user_id=first.user_id, at=NOW)),
        )
        await ledger.transact(lambda tx: alert_rows.insert(tx, keys, bare))

        def change(tx: Any) -> None:
            alert_rows.lock(tx, keys, "al-1")
            alert_rows.store(tx, keys, alert)

        await ledger.transact(change)
    found = await ledger.read(lambda tx: alert_rows.read(tx, keys, "al-1"))
    assert found is not None
    assert [lost(given, person) for given, person in zip(alert.people, found.people, strict=True)] == [[], []]
    assert lost(alert, found) == []
