"""Quick actions in a real ledger, on both databases: once means once, whoever asks and whatever dies in between."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from fhir.resources.R4B import get_fhir_model_class
from fhir.resources.R4B.bundle import Bundle
from hypothesis import given
from hypothesis import strategies as st

from chatd.actions.catalogue import catalogue_of
from chatd.actions.drafts import DRAFTABLE, draft_of
from chatd.actions.rules import Actor, Proposal, Step, propose
from chatd.actions.service import MAX_SUMMARY_CHARS, Actions
from chatd.ledger import Ledger, LedgerUnavailable
from chatd.ledger.pseudonym import pseudonym
from context.layers import Action, PatientLayer
from context.seal import KeyRing, Sealer
from protocols.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocols.frames import ActionCommand, ActionUpdate

pytest_plugins = ("tests.chatd.pg",)

NOW = datetime(2026, 1, 15, 7, 45, 20, 114000, tzinfo=UTC)
#: Far above what any of these tests needs, so that a loaded machine changes no outcome.
PATIENT_S = 60.0
RING = KeyRing({"k1": bytes(32)})
ROOT = str(Path(__file__).resolve().parents[2])

SANTOS = Actor(user_id="dr.santos.cardio", department="cardiology", roles=("physician",), name="Dr. Santos")
JOAO = PatientLayer(
    patient_id="7823", name="João Silva", as_of=NOW, birth_date=date(1959, 1, 15), identifiers=("7823",)
)
OTHER = PatientLayer(patient_id="1044", name="João Silva", as_of=NOW, birth_date=date(1971, 6, 2))
CATH = Action(
    id="schedule_cath_lab",
    label="Schedule Cath Lab",
    label_pt="Agendar hemodinâmica",
    risk="confirm",
    fhir="Appointment",
    priority="stat",
)
ECG = Action(id="order_ecg", label="Order ECG", label_pt="Pedir ECG", risk="none", fhir="ServiceRequest")
PRESSOR = Action(
    id="order_vasopressin",
    label="Order vasopressin",
    label_pt="Pedir vasopressina",
    risk="confirm_id",
    fhir="MedicationRequest",
)


def actions_on(ledger: Ledger, ring: KeyRing = RING) -> Actions:
    sealer = Sealer(ring)
    return Actions(
        ledger,
        token_key=sealer.derive("confirm-token"),
        sealer=sealer,
        pseudonym_key=sealer.derive("pseudonym"),
    )


def proposal(action: Action = CATH, *, lang: str = "en", now: datetime = NOW) -> Proposal:
    return propose(
        action,
        response_id="resp_1",
        session_id="sess_1",
        department="cardiology",
        user_id=SANTOS.user_id,
        patient=JOAO,
        context_hash="h-1",
        now=now,
        lang=lang,
    )


class Phone:
    """One device of one person: sends steps of one proposal and keeps what it hears."""

    def __init__(self, actions: Actions, about: Proposal, name: str = "a", actor: Actor = SANTOS) -> None:
        self.actions, self.about, self.name, self.actor = actions, about, name, actor
        self.count = 0

    async def send(
        self,
        step: Literal["prepare", "confirm", "dismiss"],
        *,
        client_msg_id: str | None = None,
        patient: PatientLayer | None = JOAO,
        context_hash: str = "h-1",
        now: datetime = NOW,
        is_remembered: bool = True,
        **fields: Any,
    ) -> ActionUpdate:
        if client_msg_id is None:
            self.count += 1
            client_msg_id = f"{self.name}{self.count}"
        command = ActionCommand(client_msg_id=client_msg_id, action_id=self.about.action_id, step=step, **fields)
        return await self.actions.command(
            command,
            self.about if is_remembered else None,
            actor=self.actor,
            patient=patient,
            context_hash=context_hash,
            now=now,
        )

    async def refused(self, step: Literal["prepare", "confirm", "dismiss"], **options: Any) -> ErrorCode:
        with pytest.raises(RemoteProtocolError) as caught:
            await self.send(step, **options)
        assert caught.value.client_msg_id is not None
        return caught.value.code


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    opened = Ledger.open(ledger_url, timeout_s=PATIENT_S)
    yield opened
    await opened.close()


@pytest.fixture
def actions(ledger: Ledger) -> Actions:
    return actions_on(ledger)


async def test_prepare_confirm_leaves_a_draft(actions: Actions, ledger: Ledger) -> None:
    """The usual way: a token for two minutes, then a sealed draft in the ledger, and a frame that says so."""
    phone = Phone(actions, proposal())
    prepared = await phone.send("prepare")
    assert (prepared.status, prepared.client_msg_id, prepared.label) == ("prepared", "a1", "Schedule Cath Lab")
    assert (prepared.expires_at, prepared.second_identifier_required) == ("2026-01-15T07:47:20.114Z", False)
    assert prepared.summary == "Schedule Cath Lab · 7823 João Silva"
    confirmed = await phone.send("confirm", confirm_token=prepared.confirm_token)
    assert (confirmed.status, confirmed.by, confirmed.at) == (
        "confirmed",
        "dr.santos.cardio",
        "2026-01-15T07:45:20.114Z",
    )
    assert confirmed.confirm_token is None
    assert confirmed.draft_ref is not None
    assert confirmed.draft_ref.startswith("Appointment/act-")
    assert confirmed.summary.endswith("recorded as a draft, nothing has been sent")
    draft = await actions.draft(phone.about.action_id)
    assert draft is not None
    assert draft["entry"][0]["resource"]["status"] == "proposed"
    row = await ledger.read(lambda tx: tx.action(phone.about.action_id))
    assert row is not None
    assert (row.status, row.risk, row.catalog_id) == ("confirmed", "confirm", "schedule_cath_lab")
    assert row.patient_pseudonym == pseudonym(Sealer(RING).derive("pseudonym"), "7823")


def bytes_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.glob("ledger*"))


async def test_ledger_holds_no_patient_in_clear(actions: Actions, ledger_url: str, tmp_path: Path) -> None:
    """Neither name nor birth date nor record number nor token can be read from the ledger's rows."""
    phone = Phone(actions, proposal(PRESSOR))
    prepared = await phone.send("prepare")
    await phone.send("confirm", confirm_token=prepared.confirm_token, second_identifier="1959-01-15")
    ledger = Ledger.open(ledger_url, timeout_s=PATIENT_S)
    action_id = phone.about.action_id
    row, events = await ledger.read(lambda tx: (tx.action(action_id), tx.events(action_id)))
    await ledger.close()
    kept = repr((row, events)).encode() + bytes_in(tmp_path)
    assert len(events) == 2
    assert prepared.confirm_token is not None
    for secret in ("Silva", "João", "1959", "Vasopressin", "Order vaso", prepared.confirm_token):
        assert secret.encode() not in kept
        assert repr(secret.encode())[2:-1].encode() not in kept


async def test_command_twice_is_the_same_answer(actions: Actions, ledger: Ledger) -> None:
    """Each step repeated under its id gives the same frame, token included, and adds nothing."""
    phone = Phone(actions, proposal())
    prepared = await phone.send("prepare", client_msg_id="p")
    later = NOW + timedelta(hours=3)
    assert await phone.send("prepare", client_msg_id="p", now=later, context_hash="h-2") == prepared
    confirmed = await phone.send("confirm", client_msg_id="c", confirm_token=prepared.confirm_token)
    again = await phone.send(
        "confirm", client_msg_id="c", confirm_token=prepared.confirm_token, now=later, patient=OTHER
    )
    assert again == confirmed
    assert await phone.send("prepare", client_msg_id="p", now=later) == prepared
    assert len(await ledger.read(lambda tx: tx.events(phone.about.action_id))) == 2


async def test_command_same_id_other_body_is_bad_request(actions: Actions) -> None:
    """One client_msg_id is one command: another step or another reason under it is refused."""
    phone = Phone(actions, proposal())
    await phone.send("dismiss", client_msg_id="x", reason="later")
    assert await phone.refused("dismiss", client_msg_id="x", reason="other_plan") == ErrorCode.BAD_REQUEST
    assert await phone.refused("prepare", client_msg_id="x") == ErrorCode.BAD_REQUEST


async def test_command_id_of_another_person_is_no_key(actions: Actions) -> None:
    """Somebody else sending the id of a preparation hears "forbidden" and gets no token."""
    phone = Phone(actions, proposal())
    await phone.send("prepare", client_msg_id="p")
    thief = Phone(actions, phone.about, actor=msgspec.structs.replace(SANTOS, user_id="dr.lopes"))
    assert await thief.refused("prepare", client_msg_id="p") == ErrorCode.FORBIDDEN


async def test_token_is_spent_once(actions: Actions) -> None:
    """After a confirmation its token, and every other of that action, is worth nothing."""
    phone = Phone(actions, proposal())
    first = await phone.send("prepare")
    second = await phone.send("prepare")
    assert first.confirm_token != second.confirm_token
    await phone.send("confirm", confirm_token=first.confirm_token)
    for token in (first.confirm_token, second.confirm_token):
        assert await phone.refused("confirm", confirm_token=token) == ErrorCode.ACTION_CONFLICT


async def test_token_of_another_action_is_refused(actions: Actions, ledger: Ledger) -> None:
    """Tokens of another action, ledger or key confirm nothing; a refused command leaves no step."""
    cath, pressor = Phone(actions, proposal()), Phone(actions, proposal(PRESSOR))
    other = await pressor.send("prepare")
    mine = await cath.send("prepare")
    assert mine.confirm_token is not None
    strangers = actions_on(ledger, KeyRing({"k2": bytes(range(32))}))
    elsewhere = await Phone(strangers, proposal(ECG)).send("prepare")
    wrong = [other.confirm_token, elsewhere.confirm_token, "", "x", mine.confirm_token[:-1], mine.confirm_token + "A"]
    for token in wrong:
        assert await cath.refused("confirm", confirm_token=token) == ErrorCode.CONFIRM_REQUIRED
    assert await cath.refused("confirm") == ErrorCode.CONFIRM_REQUIRED
    assert len(await ledger.read(lambda tx: tx.events(cath.about.action_id))) == 1
    assert (await cath.send("confirm", confirm_token=mine.confirm_token)).status == "confirmed"


async def test_token_of_a_ledger_set_back_is_refused(actions: Actions, tmp_path: Path) -> None:
    """A token whose preparation the ledger does not know is none, though its signature is right."""
    phone = Phone(actions, proposal())
    prepared = await phone.send("prepare")
    empty = Ledger.open(f"sqlite:///{tmp_path / 'restored.sqlite3'}", timeout_s=PATIENT_S)
    restored = Phone(actions_on(empty), phone.about)
    found = await restored.refused("confirm", confirm_token=prepared.confirm_token)
    assert found == ErrorCode.CONFIRM_REQUIRED
    await empty.close()


async def test_token_runs_out_and_is_renewed(actions: Actions) -> None:
    """After two minutes a token is refused and preparing again gives a new one; no token outlives its proposal."""
    phone = Phone(actions, proposal())
    prepared = await phone.send("prepare")
    late = NOW + timedelta(minutes=2)
    assert await phone.refused("confirm", confirm_token=prepared.confirm_token, now=late) == ErrorCode.CONFIRM_REQUIRED
    near_end = NOW + timedelta(minutes=14)
    renewed = await phone.send("prepare", now=near_end)
    assert renewed.expires_at == "2026-01-15T08:00:20.114Z"
    too_late = near_end + timedelta(minutes=1)
    assert await phone.refused("confirm", confirm_token=renewed.confirm_token, now=too_late) == ErrorCode.ACTION_EXPIRED
    confirmed = await phone.send(
        "confirm", confirm_token=renewed.confirm_token, now=too_late - timedelta(milliseconds=1)
    )
    assert confirmed.status == "confirmed"


async def test_confirm_on_another_patient_or_context_is_refused(actions: Actions) -> None:
    """A right token does not confirm while another patient is open, none is, or the record has changed."""
    phone = Phone(actions, proposal())
    token = (await phone.send("prepare")).confirm_token
    assert await phone.refused("confirm", confirm_token=token, patient=OTHER) == ErrorCode.PATIENT_MISMATCH
    assert await phone.refused("confirm", confirm_token=token, patient=None) == ErrorCode.PATIENT_MISMATCH
    assert await phone.refused("confirm", confirm_token=token, context_hash="h-2") == ErrorCode.STALE_CONTEXT
    assert (await phone.send("confirm", confirm_token=token)).status == "confirmed"


async def test_confirm_asks_for_the_second_identifier(actions: Actions) -> None:
    """A risky action says at its preparation that a second identifier is needed, and is confirmed with it only."""
    phone = Phone(actions, proposal(PRESSOR))
    prepared = await phone.send("prepare")
    assert prepared.second_identifier_required
    token = prepared.confirm_token
    assert await phone.refused("confirm", confirm_token=token) == ErrorCode.SECOND_IDENTIFIER_REQUIRED
    assert (
        await phone.refused("confirm", confirm_token=token, second_identifier="02/06/1971")
        == ErrorCode.SECOND_IDENTIFIER_REQUIRED
    )
    confirmed = await phone.send("confirm", confirm_token=token, second_identifier="15/01/1959")
    assert confirmed.status == "confirmed"


async def test_confirm_after_the_session_was_lost(actions: Actions) -> None:
    """What was prepared can be confirmed though the session's memory is gone; what was only proposed cannot."""
    phone = Phone(actions, proposal())
    assert await phone.refused("prepare", is_remembered=False) == ErrorCode.ACTION_UNKNOWN
    token = (await phone.send("prepare")).confirm_token
    confirmed = await phone.send("confirm", confirm_token=token, is_remembered=False)
    assert confirmed.status == "confirmed"


async def test_command_what_was_bound_first_counts(actions: Actions) -> None:
    """A changed proposal under a known action id changes neither its patient nor its risk nor its end."""
    phone = Phone(actions, proposal(PRESSOR))
    token = (await phone.send("prepare")).confirm_token
    phone.about = msgspec.structs.replace(phone.about, action=ECG, patient_id="1044", context_hash="h-2")
    assert (
        await phone.refused("confirm", confirm_token=token, patient=OTHER, context_hash="h-2")
        == ErrorCode.PATIENT_MISMATCH
    )
    assert await phone.refused("confirm", confirm_token=token) == ErrorCode.SECOND_IDENTIFIER_REQUIRED


async def test_command_proposal_of_another_action_is_our_bug(actions: Actions) -> None:
    """The caller may not pair a command with another action's proposal."""
    command = ActionCommand(client_msg_id="m", action_id="act_other", step="prepare")
    with pytest.raises(LocalProtocolError):
        await actions.command(command, proposal(), actor=SANTOS, patient=JOAO, context_hash="h-1", now=NOW)


async def test_twenty_confirms_at_once_one_wins(ledger_url: str) -> None:
    """Twenty devices confirm one action through four gateways in one instant: one confirmation, nineteen conflicts."""
    ledgers = [Ledger.open(ledger_url, timeout_s=PATIENT_S) for _ in range(4)]
    phones = [Phone(actions_on(ledgers[i % 4]), proposal(), name=f"d{i}-") for i in range(20)]
    tokens = [(await phone.send("prepare")).confirm_token for phone in phones]
    results = await asyncio.gather(
        *(phone.send("confirm", confirm_token=token) for phone, token in zip(phones, tokens, strict=True)),
        return_exceptions=True,
    )
    won = [found for found in results if isinstance(found, ActionUpdate)]
    lost = [found.code for found in results if isinstance(found, RemoteProtocolError)]
    assert len(won) == 1
    assert lost == [ErrorCode.ACTION_CONFLICT] * 19
    events = await ledgers[0].read(lambda tx: tx.events(phones[0].about.action_id))
    assert [event.n for event in events] == list(range(1, 22))
    assert [event.status for event in events].count("confirmed") == 1
    for opened in ledgers:
        await opened.close()


async def test_twenty_first_steps_at_once_one_binds(ledger_url: str) -> None:
    """An untouched one-tap action that twenty devices confirm or dismiss at once is decided once."""
    ledgers = [Ledger.open(ledger_url, timeout_s=PATIENT_S) for _ in range(4)]
    phones = [Phone(actions_on(ledgers[i % 4]), proposal(ECG), name=f"d{i}-") for i in range(20)]
    results = await asyncio.gather(
        *(
            phone.send("confirm") if i % 2 else phone.send("dismiss", reason="already_done")
            for i, phone in enumerate(phones)
        ),
        return_exceptions=True,
    )
    won = [found for found in results if isinstance(found, ActionUpdate)]
    assert len(won) == 1
    assert all(
        isinstance(found, RemoteProtocolError) and found.code == ErrorCode.ACTION_CONFLICT
        for found in results
        if found is not won[0]
    )
    row = await ledgers[0].read(lambda tx: tx.action(phones[0].about.action_id))
    assert row is not None
    assert row.status == won[0].status
    assert (row.draft_sealed is not None) == (won[0].status == "confirmed")
    for opened in ledgers:
        await opened.close()


async def test_same_command_at_once_is_one_step(ledger_url: str) -> None:
    """One command that reaches four gateways at once is carried out once, and all four answer the same."""
    ledgers = [Ledger.open(ledger_url, timeout_s=PATIENT_S) for _ in range(4)]
    phones = [Phone(actions_on(opened), proposal()) for opened in ledgers]
    answers = await asyncio.gather(*(phone.send("prepare", client_msg_id="p") for phone in phones))
    assert all(found == answers[0] for found in answers)
    events = await ledgers[0].read(lambda tx: tx.events(phones[0].about.action_id))
    assert len(events) == 1
    for opened in ledgers:
        await opened.close()


KILLED = """
import asyncio, os, signal, sys
from chatd.ledger import Ledger
import tests.chatd.test_actions as t

async def main():
    ledger = Ledger.open(sys.argv[1], timeout_s=60.0)
    phone = t.Phone(t.actions_on(ledger), t.proposal())
    prepared = await phone.send("prepare", client_msg_id="p")
    await phone.send("confirm", client_msg_id="c", confirm_token=prepared.confirm_token)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.journeys
async def test_killed_before_the_answer_resend_gets_it(actions: Actions, ledger_url: str) -> None:
    """A gateway killed between commit and answer: the phone sends again, elsewhere, and hears what was done."""
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, ledger_url],
        check=False,
        timeout=PATIENT_S,
        env=os.environ | {"PYTHONPATH": ROOT},
        cwd=ROOT,
    )
    assert killed.returncode == -9
    phone = Phone(actions, proposal())
    later = NOW + timedelta(minutes=5)
    prepared = await phone.send("prepare", client_msg_id="p", now=later)
    assert (prepared.status, prepared.at) == ("prepared", "2026-01-15T07:45:20.114Z")
    confirmed = await phone.send("confirm", client_msg_id="c", confirm_token=prepared.confirm_token, now=later)
    assert (confirmed.status, confirmed.at) == ("confirmed", "2026-01-15T07:45:20.114Z")


async def test_ledger_locked_refuses_every_step_and_recovers(tmp_path: Path) -> None:
    """While the ledger takes no writes each step hears "cannot be recorded now" and nothing is done."""
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger.open(f"sqlite:///{path}", timeout_s=0.8)
    patient = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S)
    assert await patient.healthy()
    phone = Phone(actions_on(ledger), proposal(ECG))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for send in (
        phone.send("prepare"),
        phone.send("confirm"),
        phone.send("dismiss", reason="later"),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            await send
        assert (caught.value.code, caught.value.detail) == (
            ErrorCode.INTERNAL,
            "actions cannot be recorded now",
        )
    other.execute("ROLLBACK")
    other.close()
    phone.actions = actions_on(patient)
    assert (await phone.send("confirm")).status == "confirmed"
    await ledger.close()
    await patient.close()


async def test_pending_is_what_a_person_may_still_decide(actions: Actions) -> None:
    """Pending: proposed and prepared ones in time, also after the session's memory was lost; decided ones not."""
    cath, ecg, pressor = proposal(), proposal(ECG), proposal(PRESSOR)
    old = msgspec.structs.replace(proposal(), action_id="act_old", expires_at=NOW)
    await Phone(actions, ecg).send("confirm")
    await Phone(actions, pressor).send("prepare")
    found = await actions.pending("sess_1", NOW, [cath, ecg, pressor, old])
    assert {chip.action_id for chip in found} == {cath.action_id, pressor.action_id}
    assert [chip.action_id for chip in await actions.pending("sess_1", NOW)] == [pressor.action_id]
    assert await actions.pending("sess_2", NOW) == ()
    assert await actions.pending("sess_1", cath.expires_at, [cath, pressor]) == ()


async def test_expire_tells_each_once(ledger_url: str) -> None:
    """Two sweeps at once expire every overdue preparation exactly once, and leave the others."""
    ledgers = [Ledger.open(ledger_url, timeout_s=PATIENT_S) for _ in range(2)]
    both = [actions_on(opened) for opened in ledgers]
    overdue = [proposal(CATH), proposal(PRESSOR)]
    fresh = msgspec.structs.replace(proposal(ECG, now=NOW + timedelta(minutes=10)), action_id="act_fresh")
    for about in (*overdue, fresh):
        await Phone(both[0], about).send("prepare")
    end = overdue[0].expires_at
    assert await both[0].expire(end - timedelta(milliseconds=1)) == ()
    told = [*await asyncio.gather(both[0].expire(end), both[1].expire(end))]
    flat = [item for sweep in told for item in sweep]
    assert sorted(update.action_id for _, update in flat) == sorted(about.action_id for about in overdue)
    assert {(session, update.status, update.by) for session, update in flat} == {("sess_1", "expired", "chatd")}
    assert await both[0].expire(end) == ()
    phone = Phone(both[0], overdue[0], name="late")
    assert await phone.refused("confirm", now=end) == ErrorCode.ACTION_EXPIRED
    for opened in ledgers:
        await opened.close()


async def test_advance_follows_the_table(actions: Actions) -> None:
    """A confirmed action can be sent, accepted and done, each told once; an open one cannot."""
    phone = Phone(actions, proposal(ECG))
    action_id = phone.about.action_id

    async def advance(step: Step) -> ActionUpdate:
        return await actions.advance(action_id, step, by="ris", now=NOW)

    with pytest.raises(RemoteProtocolError) as caught:
        await advance(Step.SEND)
    assert caught.value.code == ErrorCode.ACTION_UNKNOWN
    await phone.send("confirm")
    sent = await advance(Step.SEND)
    assert (sent.status, sent.by, sent.client_msg_id) == ("sent", "ris", None)
    assert sent.draft_ref is not None
    assert await advance(Step.SEND) == sent
    assert (await advance(Step.ACCEPT)).status == "accepted"
    assert (await advance(Step.FINISH)).status == "done"
    with pytest.raises(RemoteProtocolError) as caught:
        await advance(Step.FAIL)
    assert caught.value.code == ErrorCode.ACTION_CONFLICT


async def test_destroyed_key_shreds_draft_and_proposal(actions: Actions, ledger: Ledger) -> None:
    """Without the key the rows stay and say nothing about the patient."""
    phone = Phone(actions, proposal(ECG))
    await phone.send("confirm")
    after = actions_on(ledger, KeyRing({"k9": bytes(range(32))}))
    assert await after.draft(phone.about.action_id) is None
    assert await after.draft("act_unknown") is None
    phone.actions = after
    assert await phone.refused("prepare") == ErrorCode.ACTION_UNKNOWN


async def test_pending_and_expire_say_when_the_ledger_is_away(ledger: Ledger, actions: Actions) -> None:
    """What is not known is not made up."""
    await ledger.close()
    with pytest.raises(LedgerUnavailable):
        await actions.pending("sess_1", NOW, [proposal()])
    with pytest.raises(LedgerUnavailable):
        await actions.expire(NOW)


def draft(action: Action, patient: PatientLayer | None = JOAO, lang: str = "en") -> dict[str, Any]:
    about = propose(
        action,
        response_id="resp_1",
        session_id="sess_1",
        department="icu",
        user_id=SANTOS.user_id,
        patient=patient,
        context_hash="h-1",
        now=NOW,
        lang=lang,
    )
    return draft_of(about, patient=patient, actor=SANTOS, now=NOW)


def validated(bundle: dict[str, Any]) -> dict[str, Any]:
    """The drafted resource, after the whole Bundle passed FHIR R4B validation."""
    Bundle.model_validate_json(msgspec.json.encode(bundle))
    for entry in bundle["entry"]:
        resource = entry["resource"]
        get_fhir_model_class(resource["resourceType"]).model_validate_json(msgspec.json.encode(resource))
    found: dict[str, Any] = bundle["entry"][0]["resource"]
    return found


@pytest.mark.parametrize("fhir", sorted(DRAFTABLE))
@pytest.mark.parametrize("priority", ["routine", "urgent", "asap", "stat"])
def test_drafts_are_valid_and_no_orders(fhir: str, priority: str) -> None:
    """Each kind in each priority is valid FHIR, a draft about this patient by this person, with its Provenance."""
    action = msgspec.structs.replace(CATH, fhir=fhir, priority=priority)
    bundle = draft(action)
    resource = validated(bundle)
    assert resource["resourceType"] == fhir
    assert resource.get("intent", "proposal") == "proposal"
    assert resource.get("status", "draft") in ("draft", "proposed")
    text = msgspec.json.encode(resource)
    assert b'"Patient/7823"' in text
    assert b'"dr.santos.cardio"' in text
    provenance = bundle["entry"][1]["resource"]
    assert provenance["target"] == [{"reference": f"{fhir}/{resource['id']}"}]
    assert [agent["who"]["type"] for agent in provenance["agent"]] == ["Device", "Practitioner"]
    assert draft(action) == bundle


def test_draft_states_are_each_resources_own() -> None:
    """Draft, proposal and priority stand where each resource has them."""
    by_kind = {kind: validated(draft(msgspec.structs.replace(CATH, fhir=kind))) for kind in DRAFTABLE}
    for kind in ("ServiceRequest", "Task", "MedicationRequest"):
        assert (by_kind[kind]["status"], by_kind[kind]["intent"], by_kind[kind]["priority"]) == (
            "draft",
            "proposal",
            "stat",
        )
    assert (by_kind["CommunicationRequest"]["status"], by_kind["CommunicationRequest"]["priority"]) == (
        "draft",
        "stat",
    )
    assert (by_kind["Appointment"]["status"], by_kind["Appointment"]["priority"]) == ("proposed", 1)
    verification = by_kind["AllergyIntolerance"]["verificationStatus"]["coding"][0]["code"]
    assert verification == "unconfirmed"


@pytest.mark.parametrize("department", ["cardiology", "emergency", "surgery", "icu"])
def test_every_action_of_the_catalogue_has_a_valid_draft(department: str) -> None:
    """Whatever a department may propose can be drafted, in both languages."""
    rows = catalogue_of(department)
    assert rows
    for action in rows:
        for lang in ("en", "pt"):
            assert validated(draft(action, lang=lang))["resourceType"] == action.fhir


@pytest.mark.parametrize("fhir", ["CommunicationRequest", "Task"])
def test_draft_without_a_patient(fhir: str) -> None:
    """A call for help or a task may be about nobody in the record."""
    resource = validated(draft(msgspec.structs.replace(CATH, fhir=fhir), patient=None))
    assert not {"subject", "for"} & set(resource)


def test_draft_is_in_the_answers_language() -> None:
    """People read the label in their language; the code's display stays the catalogue's."""
    code = validated(draft(ECG, lang="pt-PT"))["code"]
    assert (code["text"], code["coding"][0]["display"]) == ("Pedir ECG", "Order ECG")


@given(
    patient_id=st.text(min_size=1, max_size=80),
    name=st.text(min_size=1, max_size=80),
    fhir=st.sampled_from(sorted(DRAFTABLE)),
)
def test_draft_is_valid_for_any_record_number(patient_id: str, name: str, fhir: str) -> None:
    """A record number that is no FHIR id is referred to by identifier; the draft stays valid."""
    patient = msgspec.structs.replace(JOAO, patient_id=f"x{patient_id}x".replace(" ", ""), name=f"x{name}x")
    validated(draft(msgspec.structs.replace(CATH, fhir=fhir), patient=patient))


async def test_summary_stays_short(actions: Actions) -> None:
    """However long a name is, the line stays under 140 characters."""
    phone = Phone(actions, msgspec.structs.replace(proposal(), patient_name="Maria " * 60))
    assert len((await phone.send("prepare")).summary) <= MAX_SUMMARY_CHARS
