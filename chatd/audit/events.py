"""The events of the audit, and which of them each way into chatd leaves: tables, and nothing else.

``COMMANDS`` has every frame that a client may send, ``ROUTES`` every HTTP route, ``CLI`` every command of the command
line. What leaves no row says why. A test walks all three and fails where one is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

import msgspec

from chatd.alerts.model import Event as AlertEvent

#: How an event is told by the profiles of IHE BALP; ``login`` and ``none`` have no profile there.
Kind = Literal["read", "query", "create", "update", "delete", "login", "none"]


class Event(msgspec.Struct, frozen=True):
    """One name that a row may have. ``is_ahead``: no row, no action: the row is on disk before it is done."""

    kind: Kind
    text: str
    is_ahead: bool = False


class NoRow(msgspec.Struct, frozen=True):
    """Why something leaves no row."""

    why: str


_ALERTS: Final[Mapping[AlertEvent, tuple[Kind, str]]] = {
    "raised": ("create", "An alert was raised."),
    "repeated": ("update", "An alert rang again."),
    "escalated": ("update", "An alert went on to further people."),
    "joined": ("update", "An alert was joined to one that is open."),
    "receipts": ("read", "Phones received or showed an alert."),
    "accepted": ("update", "Somebody accepted an alert."),
    "declined": ("update", "Somebody declined an alert."),
    "unanswered": ("update", "Nobody answered an alert."),
    "reminded": ("update", "Who accepted an alert was reminded."),
    "resolved": ("update", "An alert was told to be done."),
    "stood_down": ("update", "An alert was called off."),
    "expired": ("update", "An alert ran out."),
    "handover_offered": ("update", "An alert was offered to a colleague."),
    "handed_over": ("update", "A colleague took an alert over."),
    "handover_refused": ("update", "A colleague did not take an alert over."),
    "handover_revoked": ("update", "An offer to take an alert over was taken back."),
    "handover_lapsed": ("update", "An offer to take an alert over ran out."),
}

EVENTS: Final[Mapping[str, Event]] = {
    "session.open": Event("login", "A phone was let in."),
    "session.end": Event("delete", "A person ended the session; what it held was shredded."),
    "token.refused": Event("login", "A token, or the place it was used at, was refused."),
    "token.renewed": Event("login", "A phone that is connected showed a fresh token."),
    "device.met": Event("login", "A phone that was not known came with a good token."),
    "device.approved": Event("update", "A person's phone was approved."),
    "device.list": Event("query", "The phones that are known were listed."),
    "revoked": Event("update", "Tokens of a person, one token or a phone were revoked, or let in again."),
    "break_glass": Event("read", "A record of another department was opened in an emergency.", True),
    "sign_in": Event("login", "The demo's sign-in gave a token."),
    "question": Event("query", "A question was asked; with a patient, the record was read for it.", True),
    "question.cancel": Event("update", "A question was stopped."),
    "answer": Event("read", "An answer was given."),
    "feedback": Event("create", "An answer was judged."),
    "patient.open": Event("read", "A patient's record was opened.", True),
    "patient.close": Event("update", "A patient's record was closed."),
    "patient.list": Event("query", "The patients of a department were listed.", True),
    "patient.show": Event("read", "A patient's layers were shown on the command line.", True),
    "record.import": Event("create", "Records were imported."),
    "people.list": Event("query", "The people of a department were listed."),
    "presence": Event("update", "A person said whether they are available."),
    "action": Event("update", "A step of a quick action; the row is in its transaction.", True),
    **{f"alert.{name}": Event(*told, True) for name, told in _ALERTS.items()},
    "alert.refused": Event("create", "An alert, or an answer to one, was refused."),
    "alert.read": Event("read", "Somebody asked who has an alert."),
    "audit.verify": Event("read", "The audit was verified."),
    "audit.export": Event("query", "The audit was exported.", True),
    "audit.report": Event("query", "A report was made from the audit.", True),
    "audit.missed": Event("none", "So many rows could not be written; they are lost."),
}
assert set(_ALERTS) == set(get_args(AlertEvent))  # noqa: S101 - a new event needs its row here

_PING: Final = NoRow("says only that the line is alive")
_OF_ALL: Final = NoRow("the same for everybody, and of nobody")
_STATE: Final = NoRow("the state of the server, and of nobody")
_FILES: Final = NoRow("files of this machine, no patient and no person")

#: By the tag of the frame: the events that a command may leave.
COMMANDS: Final[Mapping[str, tuple[str, ...] | NoRow]] = {
    "hello": ("session.open", "token.refused", "device.met"),
    "user_message": ("question", "answer"),
    "cancel": ("question.cancel",),
    "ack": NoRow("says only how far a phone has read"),
    "alert_raise": ("alert.raised", "alert.joined", "alert.refused"),
    "alert_response": (
        "alert.receipts",
        "alert.accepted",
        "alert.declined",
        "alert.resolved",
        "alert.stood_down",
        "alert.handover_offered",
        "alert.handed_over",
        "alert.handover_refused",
        "alert.handover_revoked",
        "alert.refused",
    ),
    "action": ("action",),
    "context_set": ("patient.open", "patient.close", "break_glass"),
    "presence": ("presence",),
    "feedback": ("feedback",),
    "refresh": ("token.renewed", "token.refused"),
    "session_end": ("session.end",),
    "ping": _PING,
}

#: By method and path, as the routes have them.
ROUTES: Final[Mapping[str, tuple[str, ...] | NoRow]] = {
    "GET /": _OF_ALL,
    "GET /health": _STATE,
    "GET /health/live": _STATE,
    "GET /health/ready": _STATE,
    "GET /health/model": _STATE,
    "GET /metrics": _STATE,
    "GET /asyncapi.json": _OF_ALL,
    "GET /schema.json": _OF_ALL,
    "GET /v1/demo": NoRow("the made-up people of the demo"),
    "POST /v1/demo/token": ("sign_in",),
    "GET /v1/departments/{department}/patients": ("patient.list", "token.refused"),
    "GET /v1/departments/{department}/people": ("people.list", "token.refused"),
    "POST /v1/departments/{department}/alerts": ("alert.raised", "alert.joined", "alert.refused", "token.refused"),
    "GET /v1/alerts/{alert_id}": ("alert.read", "token.refused"),
    "POST /v1/alerts/{alert_id}/stand_down": ("alert.stood_down", "alert.refused", "token.refused"),
    "POST /v1/fhir/CommunicationRequest": ("alert.raised", "alert.joined", "alert.refused", "token.refused"),
    "WS /chat/{department}/{user_id}": ("session.open", "token.refused"),
    "MOUNT /web": _OF_ALL,
}

#: By the words of the command.
CLI: Final[Mapping[str, tuple[str, ...] | NoRow]] = {
    "up": NoRow("starts processes; what these do leaves their rows"),
    "serve": NoRow("starts a gateway; what it does leaves its rows"),
    "infer": NoRow("sees prompts and no phone; the question that it answers has its row"),
    "model tiny": _FILES,
    "model convert": _FILES,
    "model check": _FILES,
    "token": NoRow("needs the installation's own key; the use of the token has its row"),
    "revoke": ("revoked",),
    "device list": ("device.list",),
    "device approve": ("device.approved",),
    "alert": ("alert.raised", "alert.joined", "alert.refused"),
    "drill": ("alert.raised", "alert.stood_down", "alert.read"),
    "fhir import": ("record.import",),
    "hl7 serve": ("alert.raised", "alert.joined", "alert.stood_down"),
    "context show": ("patient.show",),
    "schema": _OF_ALL,
    "doctor": NoRow("looks at settings, counts and the audit's own form, at no patient; changes nothing"),
    "audit verify": ("audit.verify",),
    "audit export": ("audit.export",),
    "audit report": ("audit.report",),
}
