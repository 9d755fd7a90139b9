"""Quick actions in the ledger: one command is one transaction, and the same command twice is one command."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from chatd.actions import tokens
from chatd.actions.catalogue import alert_of
from chatd.actions.drafts import draft_of, reference_of
from chatd.actions.rules import (
    LIFE,
    OPEN,
    Actor,
    Proof,
    Proposal,
    Status,
    Step,
    decide,
    proposed_action,
    whole_ms,
    wire_time,
)
from chatd.ledger import ActionEvent, ActionRow, Ledger, LedgerUnavailable, Transaction
from chatd.ledger.pseudonym import pseudonym
from context.layers import PatientLayer
from context.seal import Sealer, SealError
from protocols.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocols.frames import ActionCommand, ActionUpdate, ProposedAction

#: At most so many rows in one transaction of the sweep: confirmations wait meanwhile.
SWEEP_ROWS = 200
#: A session proposes a handful of actions an answer; its snapshot shows the oldest of these at most.
MAX_PENDING = 100
#: The summary of a card stays under CDS Hooks' 140 characters. Source: https://cds-hooks.hl7.org/ (card attributes).
MAX_SUMMARY_CHARS = 139

UNRECORDED = "actions cannot be recorded now"
_DRAFT_TEXT = {
    "en": "recorded as a draft, nothing has been sent",
    "pt": "registado como rascunho, nada foi enviado",
}
_ALERT_TEXT = {
    "en": "the team has been alerted",
    "pt": "a equipa foi alertada",
}

#: Begins the ids of the server's own steps; no client's id may begin with it (``protocols.frames.Id``).
_SERVER = "!"

_encode = msgspec.json.Encoder(order="deterministic").encode

#: Called within the transaction of a step, last: the action before it, the step, and the person's roles.
OnStep = Callable[[Transaction, ActionRow, ActionEvent, tuple[str, ...]], None]


class Actions:
    """Commands on quick actions. Holds keys and the ledger, no state: any gateway answers for any other."""

    def __init__(self, ledger: Ledger, *, token_key: bytes, sealer: Sealer, pseudonym_key: bytes) -> None:
        """``token_key`` and ``pseudonym_key``: 32 bytes each, the same on every gateway (``Sealer.derive``)."""
        self._ledger = ledger
        self._token_key = token_key
        self._sealer = sealer
        self._pseudonym_key = pseudonym_key
        #: The audit's row of a step, in the step's own transaction; where it raises, the step is not taken.
        self.on_step: OnStep = _no_row

    async def command(
        self,
        command: ActionCommand,
        proposal: Proposal | None,
        *,
        actor: Actor,
        patient: PatientLayer | None,
        context_hash: str,
        now: datetime,
        also: Callable[[Transaction], object] | None = None,
    ) -> ActionUpdate:
        """Carry out one command; when this returns, the ledger has it.

        The same person sending the same ``client_msg_id`` again gets the same answer, with the same token, also
        after the action has moved on or the gateway has died in between. Of two devices that confirm at once one
        is confirmed; the other hears action_conflict.

        Args:
            proposal: What the session remembers of ``command.action_id``; None if nothing. Once a first command
                is in the ledger, the ledger's own copy counts, and a lost session does no harm.
            actor: Who is speaking, by the connection's token.
            patient: The patient that is open in the session now.
            context_hash: Digest of the layers as they are now.
            also: What a confirmation does besides its draft, or a hand-over besides ending it, in the same
                transaction: both, or neither. It is called once, and not for a command that is sent again.
        Raises:
            RemoteProtocolError: action_unknown, any refusal of ``rules.decide`` or of ``also``, bad_request
                for another command under a known ``client_msg_id``, or internal when the ledger takes no writes: then
                nothing is done.
        """
        if proposal is not None and proposal.action_id != command.action_id:
            raise LocalProtocolError("the proposal of another action")

        def work(tx: Transaction) -> ActionUpdate:
            return self._command(tx, command, proposal, actor, patient, context_hash, whole_ms(now), also)

        try:
            return await self._ledger.transact(work)
        except LedgerUnavailable as error:
            raise RemoteProtocolError(ErrorCode.INTERNAL, UNRECORDED, client_msg_id=command.client_msg_id) from error

    async def pending(
        self, session_id: str, now: datetime, proposals: Sequence[Proposal] = ()
    ) -> tuple[ProposedAction, ...]:
        """Actions of a session that a person may still decide, oldest first: for the snapshot.

        ``proposals``: what the session remembers, of this session only. Those that somebody has prepared are
        known to the ledger too, so they are found after the session's memory was lost.

        Raises:
            LedgerUnavailable: The ledger does not answer; which of ``proposals`` are still open is not known.
        """

        def work(tx: Transaction) -> tuple[dict[str, str], tuple[ActionRow, ...]]:
            statuses = tx.statuses(proposal.action_id for proposal in proposals)
            return statuses, tx.actions_of_session(session_id, Status.PREPARED, limit=MAX_PENDING)

        statuses, rows = await self._ledger.read(work)
        found = {proposal.action_id: proposal for proposal in proposals}
        for row in rows:
            opened = self._open(row)
            if opened is not None:
                found[row.action_id] = opened
        still_open = (
            proposal
            for proposal in found.values()
            if now < proposal.expires_at and statuses.get(proposal.action_id, Status.PREPARED) in OPEN
        )
        in_order = sorted(still_open, key=lambda proposal: (proposal.created_at, proposal.action_id))
        return tuple(proposed_action(proposal) for proposal in in_order[:MAX_PENDING])

    async def expire(self, now: datetime) -> tuple[tuple[str, ActionUpdate], ...]:
        """Expire prepared actions whose time is up, at most ``SWEEP_ROWS``: pairs of session id and its frame.

        Twice, or on two gateways, it expires each action once.

        Raises:
            LedgerUnavailable: Nothing was expired; the next sweep finds the same rows.
        """
        at = whole_ms(now)

        def work(tx: Transaction) -> tuple[tuple[str, ActionUpdate], ...]:
            done = []
            for row in tx.lock_overdue(OPEN, at, limit=SWEEP_ROWS):
                event = ActionEvent(
                    action_id=row.action_id,
                    n=len(tx.events(row.action_id)) + 1,
                    status=LIFE[Status(row.status)][Step.EXPIRE],
                    by_user="chatd",
                    at=at,
                )
                tx.append(event)
                self.on_step(tx, row, event, ())
                proposal = self._open(row)
                if proposal is not None:
                    done.append((row.session_id, self._update(proposal, event)))
            return tuple(done)

        return await self._ledger.transact(work)

    async def advance(
        self, action_id: str, step: Step, *, by: str, now: datetime, reason: str | None = None
    ) -> ActionUpdate:
        """Record what became of a confirmed action outside: sent, accepted, done or failed.

        ``reason``: a code of at most 64 characters, never text. The same step twice is recorded once.

        Raises:
            RemoteProtocolError: action_unknown, or action_conflict if the table of life does not lead there.
            LedgerUnavailable: Nothing was recorded.
        """
        at = whole_ms(now)

        def work(tx: Transaction) -> ActionUpdate:
            row = tx.lock_action(action_id)
            proposal = None if row is None else self._open(row)
            if row is None or proposal is None:
                raise RemoteProtocolError(ErrorCode.ACTION_UNKNOWN)
            events = tx.events(action_id)
            following = LIFE[Status(row.status)].get(step)
            if following is None and events[-1].client_msg_id == f"{_SERVER}{step}":
                return self._update(proposal, events[-1])
            if following is None or step not in (Step.SEND, Step.ACCEPT, Step.FINISH, Step.FAIL):
                raise RemoteProtocolError(ErrorCode.ACTION_CONFLICT, row.status)
            event = ActionEvent(
                action_id=action_id,
                n=len(events) + 1,
                status=following,
                by_user=by,
                at=at,
                reason=reason,
                client_msg_id=f"{_SERVER}{step}",
            )
            tx.append(event)
            self.on_step(tx, row, event, ())
            return self._update(proposal, event)

        return await self._ledger.transact(work)

    async def proposal(self, action_id: str) -> Proposal | None:
        """What the ledger has of an action that somebody has touched; None if nobody has.

        Raises:
            LedgerUnavailable: The ledger does not answer.
        """
        row = await self._ledger.read(lambda tx: tx.action(action_id))
        return None if row is None else self._open(row)

    async def draft(self, action_id: str) -> dict[str, Any] | None:
        """The FHIR R4 draft of a confirmed action; None if there is none, or its key has been destroyed.

        Raises:
            LedgerUnavailable: The ledger does not answer.
        """
        row = await self._ledger.read(lambda tx: tx.action(action_id))
        if row is None or row.draft_sealed is None:
            return None
        try:
            opened = self._sealer.open(row.draft_sealed, aad=_place("draft", action_id))
        except SealError:
            return None
        found: dict[str, Any] = msgspec.json.decode(opened)
        return found

    def _command(
        self,
        tx: Transaction,
        command: ActionCommand,
        given: Proposal | None,
        actor: Actor,
        patient: PatientLayer | None,
        context_hash: str,
        now: datetime,
        also: Callable[[Transaction], object] | None,
    ) -> ActionUpdate:
        if given is not None:
            tx.ensure_action(self._row(given, now))  # rolled back with the rest if the command is refused
        row = tx.lock_action(command.action_id)
        # What the first command bound is what counts from then on.
        proposal = None if row is None else self._open(row)
        if row is None or proposal is None:
            raise RemoteProtocolError(ErrorCode.ACTION_UNKNOWN, client_msg_id=command.client_msg_id)
        events = tx.events(command.action_id)
        mac = self._body_mac(command)
        for event in events:
            if event.by_user == actor.user_id and event.client_msg_id == command.client_msg_id:
                if event.body_mac != mac:
                    raise RemoteProtocolError(
                        ErrorCode.BAD_REQUEST,
                        "client_msg_id: used for another command",
                        client_msg_id=command.client_msg_id,
                    )
                return self._update(proposal, event)
        status = decide(
            command,
            proposal,
            Status(row.status),
            actor=actor,
            patient=patient,
            context_hash=context_hash,
            proof=self._proof(command, proposal, events, now),
            now=now,
        )
        is_prepared = status == Status.PREPARED
        event = ActionEvent(
            action_id=command.action_id,
            n=len(events) + 1,
            status=status,
            by_user=actor.user_id,
            at=now,
            reason=command.reason if status == Status.DISMISSED else None,
            client_msg_id=command.client_msg_id,
            body_mac=mac,
            nonce=secrets.token_bytes(tokens.NONCE_BYTES).hex() if is_prepared else None,
            token_expires_at=min(now + tokens.TOKEN_TTL, proposal.expires_at) if is_prepared else None,
        )
        draft = None
        if status == Status.CONFIRMED:
            bundle = draft_of(proposal, patient=patient, actor=actor, now=now)
            draft = self._sealer.seal(_encode(bundle), aad=_place("draft", command.action_id))
        if also is not None and status in (Status.CONFIRMED, Status.HANDED_OVER):
            also(tx)
        tx.append(event, draft_sealed=draft)
        self.on_step(tx, row, event, actor.roles)
        return self._update(proposal, event)

    def _proof(self, command: ActionCommand, proposal: Proposal, events: Sequence[ActionEvent], now: datetime) -> Proof:
        if command.confirm_token is None:
            return "none"
        token = tokens.verify(self._token_key, _binding(proposal), command.confirm_token)
        if token is None:
            return "invalid"
        # A token with a right MAC and a nonce the ledger does not hold comes from a ledger that was set back.
        if all(event.nonce != token.nonce.hex() for event in events):
            return "invalid"
        return "valid" if now < token.expires_at else "expired"

    def _update(self, proposal: Proposal, event: ActionEvent) -> ActionUpdate:
        """The frame of a step, from the proposal and the step alone: told twice it is the same frame."""
        token, expires_at = None, None
        if event.nonce is not None and event.token_expires_at is not None:
            nonce = bytes.fromhex(event.nonce)
            token = tokens.issue(self._token_key, _binding(proposal), nonce=nonce, expires_at=event.token_expires_at)
            expires_at = wire_time(event.token_expires_at)
        is_server = event.client_msg_id is None or event.client_msg_id.startswith(_SERVER)
        return ActionUpdate(
            action_id=proposal.action_id,
            status=event.status,  # type: ignore[arg-type]  # the table of life knows no others
            by=event.by_user,
            at=wire_time(event.at),
            confirm_token=token,
            client_msg_id=None if is_server else event.client_msg_id,
            catalog_id=proposal.action.id,
            label=proposal.label,
            patient_id=proposal.patient_id,
            expires_at=expires_at,
            reason=event.reason,
            draft_ref=reference_of(proposal) if event.status in _WITH_DRAFT else None,
            second_identifier_required=token is not None and proposal.action.risk == "confirm_id",
            summary=_summary(proposal, event.status),
        )

    def _row(self, proposal: Proposal, now: datetime) -> ActionRow:
        patient = proposal.patient_id
        return ActionRow(
            action_id=proposal.action_id,
            session_id=proposal.session_id,
            response_id=proposal.response_id,
            catalog_id=proposal.action.id,
            department=proposal.department,
            user_id=proposal.user_id,
            patient_pseudonym=None if patient is None else pseudonym(self._pseudonym_key, patient),
            context_hash=proposal.context_hash,
            risk=proposal.action.risk,
            status=Status.PROPOSED,
            created_at=proposal.created_at,
            expires_at=proposal.expires_at,
            updated_at=now,
            proposal_sealed=self._sealer.seal(_encode(proposal), aad=_place("proposal", proposal.action_id)),
        )

    def _open(self, row: ActionRow) -> Proposal | None:
        """The proposal a row was made from; None if its key has been destroyed."""
        try:
            opened = self._sealer.open(row.proposal_sealed, aad=_place("proposal", row.action_id))
        except SealError:
            return None
        return msgspec.json.decode(opened, type=Proposal)

    def _body_mac(self, command: ActionCommand) -> str:
        # Keyed: the body may hold a birth date, which a plain digest would give away.
        said = (command.step, command.confirm_token, command.second_identifier, command.reason)
        body = _encode(said if command.colleague is None else (*said, command.colleague))
        return hmac.new(self._token_key, b"chatd action body 1\n" + body, hashlib.sha256).hexdigest()


def _no_row(_tx: Transaction, _row: ActionRow, _event: ActionEvent, _roles: tuple[str, ...]) -> None:
    """Where nothing is audited."""


_WITH_DRAFT = frozenset({Status.CONFIRMED, Status.SENT, Status.ACCEPTED, Status.DONE, Status.FAILED})


def _binding(proposal: Proposal) -> tokens.Binding:
    return tokens.Binding(
        action_id=proposal.action_id,
        user_id=proposal.user_id,
        patient_id=proposal.patient_id,
        context_hash=proposal.context_hash,
    )


def _place(column: str, action_id: str) -> bytes:
    """The row and column a sealed value belongs to: moved elsewhere it does not open."""
    return f"ledger.actions.{column}:{action_id}".encode()


def _summary(proposal: Proposal, status: str) -> str:
    """One line for people: what, for whom, and what confirming it did: an alert, or nothing but a draft."""
    parts = [proposal.label]
    if proposal.patient_id is not None:
        parts.append(f"{proposal.patient_id} {proposal.patient_name}".rstrip())
    if status == Status.CONFIRMED:
        texts = _DRAFT_TEXT if alert_of(proposal.action.id) is None else _ALERT_TEXT
        parts.append(texts["pt" if proposal.lang.lower().startswith("pt") else "en"])
    line = " · ".join(parts)
    return line if len(line) <= MAX_SUMMARY_CHARS else f"{line[: MAX_SUMMARY_CHARS - 1]}…"
