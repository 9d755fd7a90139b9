"""What a stream of HL7 v2 messages has said about one patient, and how it joins what else is known of her.

Messages come late, twice, and out of order. ``hear`` is the rule that makes the outcome the same: each result has an
identity (order, code, sub-id, time) and a version (when it was sent, how final it is), and only a newer version counts.
Pure; ``Heard`` is kept by ``chatd.hl7``, so that a lost Redis loses nothing that was acknowledged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta, tzinfo
from typing import Final, Literal

import msgspec

from context.fhir import Importer
from context.fhir_layer import merge_patient, within_limits
from context.hl7 import CRITICAL_FLAGS, Json, Message, Problem, Row
from context.layers import ChartRef, Observation, PatientLayer, Report, versioned

#: Marks the refs that came by messages: "Observation/hl7-...".
_MARK: Final = "hl7-"
#: Values kept of one patient beside the ordinary limits of a layer: also what is flagged has an end here, since a
#: monitor sends a value every minute.
MAX_RESULTS: Final = 2_000
#: Versions are kept for at least that long after their items have gone, against a late copy.
_VERSIONS_FOR: Final = timedelta(days=14)
MAX_VERSIONS: Final = 6_000
#: Earlier values of one result that are known again when an engine sends them once more under a new id and time.
_PAST: Final = 8
_CORRECTED: Final = 3


class NotHers(Exception):
    """The message names a person who is visibly not the one with this record number; holds no text of either."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """How one item stands. ``past``: what was said of it before, each as ``_said``. ``flags``: OBX-8 as sent."""

    base: str
    at: datetime | None
    sent_at: datetime
    rank: int
    fingerprint: str
    heard_at: datetime
    taken_back: bool = False
    past: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    code: str = ""
    name: str = ""

    @property
    def is_flagged_critical(self) -> bool:
        return not self.taken_back and bool(CRITICAL_FLAGS & set(self.flags))


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that was raised about a result, and is not yet taken back."""

    alert_id: str
    department: str


class Owed(msgspec.Struct, frozen=True, kw_only=True):
    """Something that must still be said by alerts; kept until it has been, under one idempotency key.

    kind: "critical" raises the alert that somebody must answer; "withdraw" stands it down (``alert_id``);
    "corrected" says that it was wrong.
    """

    kind: Literal["critical", "withdraw", "corrected"]
    key: str
    ref: ChartRef
    department: str
    text: str = ""
    alert_id: str = ""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """All that messages have said about one patient.

    layer: only what came by messages. versions: by ref, of what stands in the layer and of what was taken back.
    admitted_at: when the last admission message was sent; its name and dates go before a laboratory's.
    judged: by ref, the fingerprint of the value that was found critical, as it stands or before it was taken back.
    told: by ref, the alerts that were raised about it and stand. owed: what must still be said, in this order.
    """

    layer: PatientLayer
    versions: dict[ChartRef, Version] = {}
    admitted_at: datetime | None = None
    judged: dict[ChartRef, str] = {}
    told: dict[ChartRef, tuple[Told, ...]] = {}
    owed: tuple[Owed, ...] = ()
    heard_at: datetime


class Hearing(msgspec.Struct, frozen=True, kw_only=True):
    """What one message did. ``results``: refs of the results it speaks of, also where an older one stands.
    ``changed``: those of them that are other than before. ``problems``: beside the message's own."""

    heard: Heard
    results: tuple[ChartRef, ...] = ()
    changed: tuple[ChartRef, ...] = ()
    outdated: int = 0
    problems: tuple[Problem, ...] = ()


def hear(
    before: Heard | None, message: Message, *, departments: Iterable[str], now: datetime, zone: tzinfo | None
) -> Hearing:
    """Take one message in. Twice is once, and of any order of messages the outcome is the newest of each.

    departments: who may ask about the patient from now on, beside those who may already.

    Raises:
        NotHers: the message names somebody else than earlier ones with this record number.
    """
    versions = {} if before is None else dict(before.versions)
    counted: dict[str, int] = {}
    for row in message.rows:
        counted[row.base] = counted.get(row.base, 0) + 1
    placed: dict[ChartRef, Row] = {}
    results: list[ChartRef] = []
    changed: list[ChartRef] = []
    gone: list[ChartRef] = []
    outdated = 0
    for row in message.rows:
        ref = _ref_of(row, versions, is_alone=counted[row.base] == 1, taken=placed)
        if row.kind == "Observation":
            results.append(ref)
        old = versions.get(ref)
        if old is not None and not _is_newer(row, message.sent_at, old):
            outdated += 1
            continue
        is_same = old is not None and (old.fingerprint, old.rank, old.taken_back, old.at, old.flags) == (
            row.fingerprint,
            row.rank,
            row.taken_back,
            row.at,
            row.flags,
        )
        past = () if old is None else old.past
        if old is not None and old.fingerprint != row.fingerprint:
            past = (*past, _said(old))[-_PAST:]
        versions[ref] = Version(
            base=row.base,
            at=row.at,
            sent_at=message.sent_at,
            rank=row.rank,
            fingerprint=row.fingerprint,
            heard_at=now,
            taken_back=row.taken_back,
            past=past,
            flags=row.flags,
            code=row.code,
            name=row.name,
        )
        if not is_same:
            changed.append(ref)
        if row.taken_back:
            gone.append(ref)
        else:
            placed[ref] = row
    layer = _imported(message, placed, departments=departments, now=now, zone=zone)
    admitted_at = None if before is None else before.admitted_at
    if before is not None:
        if not is_hers(before.layer, layer):
            raise NotHers
        is_leading = message.is_admission and (admitted_at is None or message.sent_at >= admitted_at)
        layer = _joined(before.layer, layer, retracted=gone, new_leads=is_leading)
    if message.is_admission:
        admitted_at = message.sent_at if admitted_at is None else max(admitted_at, message.sent_at)
    shown = {item.ref for items in (layer.observations, layer.reports) for item in items}
    lost = [ref for ref, row in placed.items() if row.kind == "Observation" and ref not in shown]
    layer = within_limits(layer)
    layer = msgspec.structs.replace(layer, observations=layer.observations[:MAX_RESULTS])
    for ref in lost:
        del versions[ref]
    heard = Heard(
        layer=versioned(layer),
        versions=_kept(versions, layer, now),
        admitted_at=admitted_at,
        judged={} if before is None else before.judged,
        told={} if before is None else before.told,
        owed=() if before is None else before.owed,
        heard_at=now,
    )
    return Hearing(
        heard=heard,
        results=tuple(ref for ref in dict.fromkeys(results) if ref not in lost),
        changed=tuple(ref for ref in dict.fromkeys(changed) if ref not in lost),
        outdated=outdated,
        problems=tuple(placed[ref].place for ref in lost),
    )


def joined(known: PatientLayer | None, heard: Heard, *, now: datetime) -> PatientLayer:
    """One layer of what files said and what messages say; what messages said earlier is replaced. Twice is once.

    Raises:
        NotHers: the two are visibly different people.
    """
    if known is None:
        return versioned(msgspec.structs.replace(heard.layer, as_of=now))
    if not is_hers(known, heard.layer):
        raise NotHers
    bare = _without(known, heard)
    layer = within_limits(_joined(bare, heard.layer, retracted=(), new_leads=heard.admitted_at is not None))
    return versioned(msgspec.structs.replace(layer, as_of=max(now, known.as_of)))


def is_hers(known: PatientLayer, said: PatientLayer) -> bool:
    """Whether the two may be one person: the same birth date or a common name, or one of them names neither."""
    if known.birth_date is not None and known.birth_date == said.birth_date:
        return True
    names = [_words(layer.name) for layer in (known, said)]
    if not all(names):
        return known.birth_date is None or said.birth_date is None
    return bool(names[0] & names[1])


def _words(name: str) -> frozenset[str]:
    return frozenset() if name == _NAMELESS else frozenset(re.findall(r"\w{2,}", name.casefold()))


_NAMELESS: Final = "(no name)"


def _ref_of(row: Row, versions: dict[ChartRef, Version], *, is_alone: bool, taken: dict[ChartRef, Row]) -> ChartRef:
    """The ref of what a row speaks of, which is the old one where it is about something that was told before."""
    same = [ref for ref, version in versions.items() if version.base == row.base]
    for ref in same:
        if versions[ref].at == row.at and ref not in taken:
            return ref
    # A correction may be of the time itself, and a preliminary result may have had none.
    may_move = row.rank >= _CORRECTED or row.taken_back or (len(same) == 1 and versions[same[0]].rank < row.rank)
    if row.has_order and is_alone and len(same) == 1 and may_move:
        return same[0]
    stamp = "" if row.at is None else f"{row.at:%Y%m%d%H%M%S}"
    ref = f"{row.kind}/{_MARK}{row.base}" + (f"-{stamp}" if stamp else "")
    number = 2
    while ref in taken:
        # Two rows of one message with one name and one time are two results: neither may hide the other.
        ref = f"{row.kind}/{_MARK}{row.base}" + (f"-{stamp}" if stamp else "") + f".{number}"
        number += 1
    return ref


def _is_newer(row: Row, sent_at: datetime, old: Version) -> bool:
    """Whether a row replaces what stands; an equal copy does (and changes nothing)."""
    if sent_at < old.sent_at or (sent_at == old.sent_at and row.rank < old.rank):
        return False
    if row.rank < old.rank:
        # Less final than what stands: a late preliminary, or an old final one that was sent once more. Something
        # that was taken back may come anew, with another value.
        if row.rank < 2 and not old.taken_back:
            return False
        return _said(row) not in old.past
    return row.rank > old.rank or row.fingerprint == old.fingerprint or _said(row) not in old.past


def _said(what: Row | Version) -> str:
    """A value and how final it was said to be: what was final and is now said as a correction is no copy of it."""
    return f"{what.rank} {what.fingerprint}"


def _imported(
    message: Message, placed: dict[ChartRef, Row], *, departments: Iterable[str], now: datetime, zone: tzinfo | None
) -> PatientLayer:
    """The message's resources through the one import."""
    entries: list[Json] = [message.patient]
    entries += [row.resource | {"id": ref.partition("/")[2]} for ref, row in placed.items()]
    importer = Importer(departments=tuple(departments), now=now, zone=zone)
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": entry} for entry in entries]}
    importer.add_file("hl7", msgspec.json.encode(bundle))
    layer = importer.finish().patients[0].layer
    return msgspec.structs.replace(layer, identifiers=tuple(n for n in layer.identifiers if n != "p"))


def _joined(old: PatientLayer, new: PatientLayer, *, retracted: Iterable[ChartRef], new_leads: bool) -> PatientLayer:
    """``merge_patient``, with the names and dates of whichever of the two leads."""
    layer = merge_patient(old, new, retracted=tuple(retracted))
    leading, other = (new, old) if new_leads else (old, new)
    if leading.name == _NAMELESS:
        leading, other = other, leading
    return msgspec.structs.replace(
        layer,
        name=leading.name,
        birth_date=leading.birth_date or other.birth_date,
        sex=leading.sex if leading.sex != "unknown" else other.sex,
    )


def _without(known: PatientLayer, heard: Heard) -> PatientLayer:
    """``known`` without what messages said earlier, and without the copies that files have of the same results."""
    ours: dict[tuple[str, datetime], tuple[Version, Observation | None]] = {}
    shown = {item.ref: item for item in heard.layer.observations}
    for ref, version in heard.versions.items():
        if version.at is not None and ref.startswith("Observation/"):
            for name in {version.code, version.name.casefold()} - {""}:
                ours[name, version.at] = (version, shown.get(ref))

    def is_copy(item: Observation) -> bool:
        if item.as_of is None:
            return False
        found = ours.get((item.code or "", item.as_of)) or ours.get((item.name.casefold(), item.as_of))
        if found is None:
            return False
        version, own = found
        if version.rank >= _CORRECTED:
            # The correction goes before a copy that knows nothing of it.
            return item.status not in ("corrected", "amended")
        return own is not None and (own.value, own.text, own.unit) == (item.value, item.text, item.unit)

    def is_ours(item: object) -> bool:
        ref = getattr(item, "ref", "")
        return ref.partition("/")[2].startswith(_MARK)

    return msgspec.structs.replace(
        known,
        conditions=tuple(item for item in known.conditions if not is_ours(item)),
        allergies=tuple(item for item in known.allergies if not is_ours(item)),
        observations=tuple(item for item in known.observations if not is_ours(item) and not is_copy(item)),
        reports=tuple(item for item in known.reports if not is_ours(item)),
        events=tuple(item for item in known.events if not is_ours(item)),
    )


def _kept(versions: dict[ChartRef, Version], layer: PatientLayer, now: datetime) -> dict[ChartRef, Version]:
    """The versions of what stands, and of what has gone lately."""
    items: list[Report | Observation] = [*layer.observations, *layer.reports]
    standing = {item.ref for item in items}
    kept = {
        ref: version
        for ref, version in versions.items()
        if ref in standing or version.taken_back or now - version.heard_at < _VERSIONS_FOR
    }
    newest = sorted(kept, key=lambda ref: kept[ref].heard_at, reverse=True)[:MAX_VERSIONS]
    return {ref: kept[ref] for ref in kept if ref in set(newest)}
