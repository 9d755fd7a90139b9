"""The life of a quick action, second identifiers, reasons and tokens, as pure rules."""

from __future__ import annotations

import base64
import unicodedata
from datetime import UTC, date, datetime, timedelta
from typing import get_args

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chatd.actions import tokens
from chatd.actions.identifiers import second_identifier
from chatd.actions.reasons import dismiss_reasons, is_dismiss_reason
from chatd.actions.rules import (
    LIFE,
    OPEN,
    Actor,
    Proof,
    Proposal,
    Status,
    Step,
    decide,
    needs_patient,
    propose,
    proposed_action,
    wire_time,
)
from context.layers import Action, PatientLayer
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import ActionCommand, ActionUpdate

NOW = datetime(2026, 1, 15, 7, 45, 20, 114000, tzinfo=UTC)
KEY = bytes(range(32))


def action(**changes: object) -> Action:
    fields: dict[str, object] = {
        "id": "schedule_cath_lab",
        "label": "Schedule Cath Lab",
        "label_pt": "Agendar hemodinâmica",
        "risk": "confirm",
        "fhir": "Appointment",
    }
    return Action(**(fields | changes))  # type: ignore[arg-type]


def patient(**changes: object) -> PatientLayer:
    fields: dict[str, object] = {
        "patient_id": "7823",
        "name": "João Silva",
        "as_of": NOW,
        "birth_date": date(1959, 1, 15),
        "identifiers": ("7823", "urn:oid:2.16.620.1|298 765 432"),
    }
    return PatientLayer(**(fields | changes))  # type: ignore[arg-type]


ACTOR = Actor(user_id="dr.santos.cardio", department="cardiology", roles=("physician",), name="Dr. Santos")


def proposal(chosen: Action | None = None, *, about: PatientLayer | None = None, **changes: object) -> Proposal:
    made = propose(
        chosen or action(),
        response_id="resp_1",
        session_id="sess_1",
        department="cardiology",
        user_id=ACTOR.user_id,
        patient=about or patient(),
        context_hash="h-1",
        now=NOW,
    )
    return msgspec.structs.replace(made, **changes)


def command(step: str, **changes: object) -> ActionCommand:
    fields: dict[str, object] = {"client_msg_id": "m1", "action_id": "act_1", "step": step}
    return ActionCommand(**(fields | changes))  # type: ignore[arg-type]


def outcome(
    step: str,
    status: Status = Status.PROPOSED,
    *,
    about: Proposal | None = None,
    actor: Actor = ACTOR,
    opened: PatientLayer | None = None,
    context_hash: str = "h-1",
    proof: Proof = "none",
    now: datetime = NOW,
    **changes: object,
) -> Status | ErrorCode:
    """The status a command leads to, or the code it is refused with."""
    try:
        return decide(
            command(step, **changes),
            about or proposal(),
            status,
            actor=actor,
            patient=opened or patient(),
            context_hash=context_hash,
            proof=proof,
            now=now,
        )
    except RemoteProtocolError as error:
        return error.code if error.client_msg_id == "m1" else ErrorCode.INTERNAL


def test_life_has_a_row_for_every_status() -> None:
    """Every status has its row, and every status but the first can be reached."""
    assert set(LIFE) == set(Status)
    assert {following for steps in LIFE.values() for following in steps.values()} == set(Status) - {Status.PROPOSED}


def test_life_open_statuses_are_those_a_person_decides() -> None:
    """Open is exactly what can still be prepared, confirmed and dismissed, and what expires."""
    assert OPEN == (Status.PROPOSED, Status.PREPARED)
    for status in Status:
        person = {Step.PREPARE, Step.CONFIRM, Step.DISMISS} & set(LIFE[status])
        assert bool(person) == (status in OPEN)


def test_life_statuses_are_the_wires() -> None:
    """Everything but ``proposed`` can be told in an action_update."""
    kinds = get_args(ActionUpdate.__annotations__["status"]) or (
        "prepared", "confirmed", "sent", "accepted", "done", "failed", "expired", "dismissed",
        "handed_over",
    )  # fmt: skip
    assert {status.value for status in Status} - {"proposed"} == set(kinds)


def test_decide_the_usual_way() -> None:
    """Prepare, then confirm with the token; or dismiss with a reason."""
    assert outcome("prepare") == Status.PREPARED
    assert outcome("confirm", Status.PREPARED, proof="valid") == Status.CONFIRMED
    assert outcome("dismiss", reason="already_done") == Status.DISMISSED
    assert outcome("dismiss", Status.PREPARED, reason="other_plan") == Status.DISMISSED


def test_decide_confirm_needs_a_token() -> None:
    """No token, a wrong one and one that has run out are all "confirm again", whatever was prepared."""
    for status in OPEN:
        for proof in ("none", "invalid", "expired"):
            assert outcome("confirm", status, proof=proof) == ErrorCode.CONFIRM_REQUIRED


def test_decide_risk_none_is_one_tap() -> None:
    """Risk "none" needs no token; a wrong one is still refused."""
    harmless = proposal(action(risk="none", fhir="Task"))
    assert outcome("confirm", about=harmless) == Status.CONFIRMED
    assert outcome("confirm", Status.PREPARED, about=harmless, proof="valid") == Status.CONFIRMED
    assert outcome("confirm", about=harmless, proof="invalid") == ErrorCode.CONFIRM_REQUIRED


def test_decide_second_identifier() -> None:
    """Risk "confirm_id" needs a token and a second identifier of the patient, and neither alone is enough."""
    risky = proposal(action(risk="confirm_id"))
    asked = ErrorCode.SECOND_IDENTIFIER_REQUIRED
    confirm = {"step": "confirm", "status": Status.PREPARED, "about": risky}
    assert outcome(**confirm, proof="valid") == asked  # type: ignore[arg-type]
    assert outcome(**confirm, proof="valid", second_identifier="7823") == asked  # type: ignore[arg-type]
    assert (
        outcome(**confirm, proof="none", second_identifier="1959-01-15")  # type: ignore[arg-type]
        == ErrorCode.CONFIRM_REQUIRED
    )
    assert (
        outcome(**confirm, proof="valid", second_identifier="1959-01-15")  # type: ignore[arg-type]
        == Status.CONFIRMED
    )


@pytest.mark.parametrize("step", ["prepare", "confirm"])
def test_decide_is_bound_to_patient_and_context(step: str) -> None:
    """Another open patient, none, or a changed record: nothing is prepared and nothing confirmed."""
    assert outcome(step, proof="valid", opened=patient(patient_id="1044")) == ErrorCode.PATIENT_MISMATCH
    unnamed = proposal(patient_id=None)
    assert outcome(step, proof="valid", about=unnamed) == ErrorCode.BAD_REQUEST
    assert outcome(step, proof="valid", context_hash="h-2") == ErrorCode.STALE_CONTEXT
    with pytest.raises(RemoteProtocolError) as caught:
        decide(
            command(step),
            proposal(),
            Status.PROPOSED,
            actor=ACTOR,
            patient=None,
            context_hash="h-1",
            proof="valid",
            now=NOW,
        )
    assert caught.value.code == ErrorCode.PATIENT_MISMATCH


@pytest.mark.parametrize("step", ["prepare", "confirm", "dismiss"])
@pytest.mark.parametrize(
    "actor",
    [
        Actor(user_id="nurse.ana", department="cardiology", roles=("nurse",)),
        Actor(user_id=ACTOR.user_id, department="icu", roles=("physician",)),
        Actor(user_id=ACTOR.user_id, department="cardiology", roles=("observer",)),
    ],
)
def test_decide_somebody_else_is_forbidden(step: str, actor: Actor) -> None:
    """Another person, another department, and an onlooker can do nothing to a proposal."""
    assert outcome(step, actor=actor, proof="valid", reason="already_done") == ErrorCode.FORBIDDEN


def test_decide_medicines_are_for_prescribers() -> None:
    """A nurse may take a task and not a medicine; a pharmacist may take a medicine."""
    medicine = proposal(action(fhir="MedicationRequest"))
    nurse = msgspec.structs.replace(ACTOR, roles=("nurse",))
    assert outcome("prepare", about=medicine, actor=nurse) == ErrorCode.FORBIDDEN
    assert outcome("prepare", actor=nurse) == Status.PREPARED
    both = msgspec.structs.replace(ACTOR, roles=("nurse", "Pharmacist"))
    assert outcome("prepare", about=medicine, actor=both) == Status.PREPARED


@pytest.mark.parametrize("step", ["prepare", "confirm", "dismiss"])
def test_decide_time_is_up(step: str) -> None:
    """From its last millisecond on, a proposal is expired for every step."""
    end = proposal().expires_at
    for status in (*OPEN, Status.EXPIRED):
        assert outcome(step, status, now=end, proof="valid", reason="later") == ErrorCode.ACTION_EXPIRED
    assert outcome("prepare", now=end - timedelta(milliseconds=1)) == Status.PREPARED


@pytest.mark.parametrize("step", ["prepare", "confirm", "dismiss"])
@pytest.mark.parametrize("status", [status for status in Status if status not in (*OPEN, Status.EXPIRED)])
def test_decide_decided_is_a_conflict(step: str, status: Status) -> None:
    """What was confirmed or dismissed stays so, also after the proposal's time."""
    for now in (NOW, NOW + timedelta(days=1)):
        assert outcome(step, status, now=now, proof="valid", reason="later") == ErrorCode.ACTION_CONFLICT


@pytest.mark.parametrize("reason", [None, "", "because I say so", "ALREADY_DONE"])
def test_decide_dismiss_needs_a_code(reason: str | None) -> None:
    """Only codes of the table are taken: free text would be chat in the ledger."""
    assert outcome("dismiss", reason=reason) == ErrorCode.BAD_REQUEST


def test_decide_dismiss_needs_neither_patient_nor_context() -> None:
    """A chip of another patient can be put away, for nothing happens to anybody."""
    found = outcome("dismiss", opened=patient(patient_id="1044"), context_hash="h-2", reason="wrong_patient")
    assert found == Status.DISMISSED


@given(
    step=st.sampled_from(["prepare", "confirm", "dismiss"]),
    status=st.sampled_from(list(Status)),
    risk=st.sampled_from(["none", "confirm", "confirm_id"]),
    proof=st.sampled_from(["none", "valid", "expired", "invalid"]),
    opened=st.sampled_from(["7823", "1044"]),
    context_hash=st.sampled_from(["h-1", "h-2"]),
    late_ms=st.integers(-1_000_000, 1_000_000),
    second=st.sampled_from([None, "1959-01-15", "1960-01-15", "joao silva", "7823"]),
    user=st.sampled_from([ACTOR.user_id, "somebody"]),
)
def test_decide_confirms_only_with_everything_right(
    step: str,
    status: Status,
    risk: str,
    proof: Proof,
    opened: str,
    context_hash: str,
    late_ms: int,
    second: str | None,
    user: str,
) -> None:
    """In any combination, "confirmed" means: open, in time, same person, patient and context, and its risk's proofs."""
    about = proposal(action(risk=risk))
    now = about.expires_at + timedelta(milliseconds=late_ms)
    found = outcome(
        step,
        status,
        about=about,
        actor=msgspec.structs.replace(ACTOR, user_id=user),
        opened=patient(patient_id=opened),
        context_hash=context_hash,
        proof=proof,
        now=now,
        second_identifier=second,
    )
    is_right = (
        step == "confirm"
        and status in OPEN
        and now < about.expires_at
        and user == ACTOR.user_id
        and opened == "7823"
        and context_hash == "h-1"
        and (proof == "valid" or (risk == "none" and proof == "none"))
        and (risk != "confirm_id" or second in ("1959-01-15", "joao silva"))
    )
    assert (found == Status.CONFIRMED) == is_right


def test_propose_same_answer_same_id() -> None:
    """An answer finished twice proposes under one id; another record, answer, person or action has another."""
    first = proposal()
    assert proposal() == first
    others = [
        propose(
            changed.get("chosen", action()),  # type: ignore[arg-type]
            response_id=str(changed.get("response_id", "resp_1")),
            session_id="sess_1",
            department="cardiology",
            user_id=str(changed.get("user_id", ACTOR.user_id)),
            patient=patient(),
            context_hash=str(changed.get("context_hash", "h-1")),
            now=NOW,
        ).action_id
        for changed in (
            {"chosen": action(id="order_ecg")},
            {"response_id": "resp_2"},
            {"user_id": "dr.lopes"},
            {"context_hash": "h-2"},
        )
    ]
    assert len({first.action_id, *others}) == 5


def test_propose_survives_the_session() -> None:
    """A proposal comes back from its bytes equal, with its times and its catalogue row."""
    made = proposal()
    assert msgspec.json.decode(msgspec.json.encode(made), type=Proposal) == made


def test_proposed_action_is_the_wires_chip() -> None:
    """The chip has the label in the answer's language and what it is bound to."""
    chip = proposed_action(proposal(lang="pt-PT"))
    assert (chip.label, chip.risk, chip.intent) == ("Agendar hemodinâmica", "confirm", "proposal")
    assert (chip.bound.patient_id, chip.bound.context) == ("7823", "h-1")
    assert chip.expires_at == "2026-01-15T08:00:20.114Z"
    assert proposed_action(proposal()).label == "Schedule Cath Lab"


@pytest.mark.parametrize(
    ("fhir", "risk", "needed"),
    [
        ("ServiceRequest", "none", True),
        ("Appointment", "confirm", True),
        ("MedicationRequest", "confirm", True),
        ("AllergyIntolerance", "none", True),
        ("CommunicationRequest", "confirm", False),
        ("CommunicationRequest", "confirm_id", True),
        ("Task", "none", False),
    ],
)
def test_needs_patient(fhir: str, risk: str, needed: bool) -> None:
    """A call for help needs no patient; whatever has a subject, or asks who it is, does."""
    assert needs_patient(action(fhir=fhir, risk=risk)) is needed


def test_dismiss_reasons_are_codes_with_both_languages() -> None:
    """Codes are unique and plain, fit the ledger's column, and both texts are there."""
    table = dismiss_reasons()
    assert len({reason.code for reason in table}) == len(table) >= 8
    for reason in table:
        assert reason.code.replace("_", "").isalpha()
        assert reason.code.islower()
        assert len(reason.code) <= 64
        assert reason.en != reason.pt
        assert is_dismiss_reason(reason.code)


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ("1959-01-15", "birth_date"),
        ("15/01/1959", "birth_date"),
        ("15-1-1959", "birth_date"),
        (" 15.01.1959 ", "birth_date"),
        ("João Silva", "name"),
        ("JOAO  SILVA", "name"),
        ("silva, joão", "name"),
        (unicodedata.normalize("NFD", "João Silva"), "name"),
        ("298765432", "identifier"),
        ("298 765 432", "identifier"),
        (None, None),
        ("", None),
        ("7823", None),
        ("1959", None),
        ("01/15/1959", None),
        ("15/01/59", None),
        ("1959-01-16", None),
        ("1959-13-45", None),
        ("João", None),
        ("Silva", None),
        ("Silva João", None),
        ("João Silvas", None),
        ("João da Silva", None),
        ("765", None),
        ("2.16.620.1", None),
        ("João\x00Silva\n", "name"),
    ],
)
def test_second_identifier(typed: str | None, kind: str | None) -> None:
    """Birth date, full name or another number of the record identify; parts and near misses do not."""
    assert second_identifier(typed, patient()) == kind


def test_second_identifier_unknown_facts_identify_nobody() -> None:
    """A record without birth date, with one name and no other number, cannot be identified a second time."""
    bare = patient(birth_date=None, name="Desconhecido", identifiers=("7823", "MR|7823"))
    for typed in ("1959-01-15", "Desconhecido", "7823", "MR|7823", "None", "-", ","):
        assert second_identifier(typed, bare) is None


@given(st.text(max_size=40))
def test_second_identifier_takes_any_text(typed: str) -> None:
    """No text makes the rule fail, and none that is not one of the identifiers is taken."""
    found = second_identifier(typed, patient())
    if found == "birth_date":
        assert "1959" in unicodedata.normalize("NFKC", typed)


bindings = st.builds(
    tokens.Binding,
    action_id=st.text(min_size=1, max_size=20),
    user_id=st.text(min_size=1, max_size=20),
    patient_id=st.none() | st.text(max_size=10),
    context_hash=st.text(max_size=10),
)
nonces = st.binary(min_size=16, max_size=16)


@given(bindings, nonces)
def test_token_opens_for_its_binding(binding: tokens.Binding, nonce: bytes) -> None:
    """A token says its nonce and its end to the millisecond, is the same each time, and is plain URL text."""
    token = tokens.issue(KEY, binding, nonce=nonce, expires_at=NOW)
    assert tokens.verify(KEY, binding, token) == tokens.Token(nonce=nonce, expires_at=NOW)
    assert token == tokens.issue(KEY, binding, nonce=nonce, expires_at=NOW)
    assert len(token) == 75
    assert token.replace("-", "").replace("_", "").isalnum()


@given(bindings, bindings, nonces)
def test_token_of_another_binding_is_nothing(one: tokens.Binding, other: tokens.Binding, nonce: bytes) -> None:
    """A token for one action, person, patient and context is none for any other."""
    assume(one != other)
    assert tokens.verify(KEY, other, tokens.issue(KEY, one, nonce=nonce, expires_at=NOW)) is None


@given(bindings, nonces, st.data())
def test_token_tampered_is_nothing(binding: tokens.Binding, nonce: bytes, data: st.DataObject) -> None:
    """Any changed, added or missing character makes a token worthless."""
    token = tokens.issue(KEY, binding, nonce=nonce, expires_at=NOW)
    place = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("ABCxyz019-_=+/ \né"))
    changed = data.draw(
        st.sampled_from(
            [
                token[:place] + letter + token[place + 1 :],
                token[:place] + letter + token[place:],
                token[:place] + token[place + 1 :],
                token[:place],
                token + letter,
                "",
            ]
        )
    )
    assume(changed != token)
    assert tokens.verify(KEY, binding, changed) is None


def test_token_later_end_is_nothing() -> None:
    """The end is part of what is signed: nobody gives himself more time."""
    binding = tokens.Binding(action_id="a", user_id="u", patient_id="p", context_hash="h")
    token = tokens.issue(KEY, binding, nonce=bytes(16), expires_at=NOW)
    raw = bytearray(base64.urlsafe_b64decode(token + "="))
    raw[23] += 1
    longer = base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=").decode()
    assert tokens.verify(KEY, binding, longer) is None
    assert tokens.verify(bytes(32), binding, token) is None


def test_wire_time() -> None:
    """Times on the wire are UTC with milliseconds."""
    assert wire_time(datetime.fromisoformat("2026-07-01T01:02:03.999999+01:00")) == "2026-07-01T00:02:03.999Z"
