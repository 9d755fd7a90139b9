"""Error and close codes of ``chatd.v1`` with their texts in English and Portuguese: one table each."""

from __future__ import annotations

import enum

import msgspec


class ErrorCode(enum.StrEnum):
    """Why a command was refused; the wire carries the value."""

    BAD_REQUEST = "bad_request"
    UNSUPPORTED_TYPE = "unsupported_type"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNAUTHORIZED = "unauthorized"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a code, not a secret
    FORBIDDEN = "forbidden"
    PATIENT_UNKNOWN = "patient_unknown"
    PATIENT_MISMATCH = "patient_mismatch"
    SECOND_IDENTIFIER_REQUIRED = "second_identifier_required"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    QUEUE_FULL = "queue_full"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    MODEL_UNAVAILABLE = "model_unavailable"
    MODEL_TIMEOUT = "model_timeout"
    OUTPUT_INVALID = "output_invalid"
    SAFETY_BLOCKED = "safety_blocked"
    ACTION_UNKNOWN = "action_unknown"
    ACTION_EXPIRED = "action_expired"
    ACTION_CONFLICT = "action_conflict"
    CONFIRM_REQUIRED = "confirm_required"
    STALE_CONTEXT = "stale_context"
    ALERT_CLOSED = "alert_closed"
    SLOT_TAKEN = "slot_taken"
    HANDOVER_ENDED = "handover_ended"
    ROLE_UNASSIGNED = "role_unassigned"
    SESSION_EXPIRED = "session_expired"
    INTERNAL = "internal"


class ErrorText(msgspec.Struct, frozen=True):
    """What people read beside a code, and whether the same command may be sent again."""

    retryable: bool
    en: str
    pt: str


ERRORS: dict[ErrorCode, ErrorText] = {
    ErrorCode.BAD_REQUEST: ErrorText(
        False, "This message is not in the agreed form.", "Esta mensagem não tem a forma acordada."
    ),
    ErrorCode.UNSUPPORTED_TYPE: ErrorText(
        False,
        "This server does not know this type of message.",
        "Este servidor não conhece este tipo de mensagem.",
    ),
    ErrorCode.UNSUPPORTED_VERSION: ErrorText(
        False,
        "Update the app: this version is not served.",
        "Atualize a aplicação: esta versão não é suportada.",
    ),
    ErrorCode.UNAUTHORIZED: ErrorText(False, "Sign in again.", "Inicie sessão novamente."),
    ErrorCode.TOKEN_EXPIRED: ErrorText(
        True, "The sign-in has run out; fetch a new token.", "A sessão expirou; obtenha um novo token."
    ),
    ErrorCode.FORBIDDEN: ErrorText(False, "You may not do this here.", "Não tem permissão para fazer isto aqui."),
    ErrorCode.PATIENT_UNKNOWN: ErrorText(
        False, "No such patient in this department's list.", "Não há este doente na lista deste serviço."
    ),
    ErrorCode.PATIENT_MISMATCH: ErrorText(
        False,
        "The message names another patient than the one that is open. Switch first.",
        "A mensagem refere outro doente que não o aberto. Mude primeiro de doente.",
    ),
    ErrorCode.SECOND_IDENTIFIER_REQUIRED: ErrorText(
        False,
        "Confirm the patient by a second identifier (date of birth or another record number).",
        "Confirme o doente com um segundo identificador (data de nascimento ou outro número de registo).",
    ),
    ErrorCode.TOO_LARGE: ErrorText(False, "The message is too large.", "A mensagem é demasiado grande."),
    ErrorCode.RATE_LIMITED: ErrorText(
        True,
        "Too many questions in a minute; wait a moment.",
        "Demasiadas perguntas num minuto; aguarde um momento.",
    ),
    ErrorCode.QUEUE_FULL: ErrorText(
        True, "The model is busy; try again shortly.", "O modelo está ocupado; tente daqui a pouco."
    ),
    ErrorCode.DEADLINE_UNREACHABLE: ErrorText(
        True,
        "The wait would be too long now; try again shortly.",
        "A espera seria demasiado longa; tente daqui a pouco.",
    ),
    ErrorCode.MODEL_UNAVAILABLE: ErrorText(
        True,
        "The model is not available; facts and protocols still are.",
        "O modelo não está disponível; os factos e protocolos estão.",
    ),
    ErrorCode.MODEL_TIMEOUT: ErrorText(True, "The model took too long.", "O modelo demorou demasiado."),
    ErrorCode.OUTPUT_INVALID: ErrorText(
        True, "The model's answer could not be used.", "A resposta do modelo não pôde ser usada."
    ),
    ErrorCode.SAFETY_BLOCKED: ErrorText(
        False, "Held back by a safety check.", "Retido por uma verificação de segurança."
    ),
    ErrorCode.ACTION_UNKNOWN: ErrorText(False, "This action is not known.", "Esta ação não é conhecida."),
    ErrorCode.ACTION_EXPIRED: ErrorText(
        False, "This proposal has run out; ask again.", "Esta proposta expirou; pergunte novamente."
    ),
    ErrorCode.ACTION_CONFLICT: ErrorText(
        False, "This action was already confirmed or dismissed.", "Esta ação já foi confirmada ou dispensada."
    ),
    ErrorCode.CONFIRM_REQUIRED: ErrorText(
        False, "Confirm with the token of the preparation.", "Confirme com o token da preparação."
    ),
    ErrorCode.STALE_CONTEXT: ErrorText(
        False,
        "The record has changed since this was proposed; ask again.",
        "O registo mudou desde a proposta; pergunte novamente.",
    ),
    ErrorCode.ALERT_CLOSED: ErrorText(False, "This alert is closed.", "Este alerta está fechado."),
    ErrorCode.SLOT_TAKEN: ErrorText(
        False,
        "Somebody else has this place; choose another.",
        "Outra pessoa já tem este lugar; escolha outro.",
    ),
    ErrorCode.HANDOVER_ENDED: ErrorText(
        False,
        "This hand-over is no longer open; look who has the alert.",
        "Esta passagem já não está aberta; veja quem tem o alerta.",
    ),
    ErrorCode.ROLE_UNASSIGNED: ErrorText(
        False,
        "Nobody holds this role now; choose another way.",
        "Ninguém tem esta função agora; escolha outra via.",
    ),
    ErrorCode.SESSION_EXPIRED: ErrorText(
        False, "The session has ended; start a new one.", "A sessão terminou; inicie uma nova."
    ),
    ErrorCode.INTERNAL: ErrorText(
        True,
        "Something failed on the server; nothing was done. Try again.",
        "Algo falhou no servidor; nada foi feito. Tente novamente.",
    ),
}


class CloseCode(enum.IntEnum):
    """Why the server closed. 4000-4499: reconnect with backoff; 4500-4999: do not reconnect by yourself.

    Source: RFC 6455 section 7.4.2 leaves 4000-4999 to applications; the split is Centrifuge's idea.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    RESTART = 4000
    NO_PONG = 4001
    SLOW_CONSUMER = 4002
    INSUFFICIENT_STATE = 4003
    TOKEN_CHANGED = 4004
    FULL = 4005
    BAD_PROTOCOL = 4500
    UNAUTHORIZED = 4501
    REVOKED = 4502
    FORBIDDEN_PATH = 4503
    SESSION_TIMEOUT = 4504
    TOO_MANY_CONNECTIONS = 4505
    UNSUPPORTED_VERSION = 4506
    TOO_MANY_ERRORS = 4507

    @property
    def reconnect(self) -> bool:
        """True if the client should come back by itself."""
        return self == CloseCode.GOING_AWAY or 4000 <= self < 4500


CLOSE_REASONS: dict[CloseCode, str] = {
    CloseCode.NORMAL: "bye",
    CloseCode.GOING_AWAY: "going away",
    CloseCode.RESTART: "server restart",
    CloseCode.NO_PONG: "no sign of life",
    CloseCode.SLOW_CONSUMER: "frames were not read in time",
    CloseCode.INSUFFICIENT_STATE: "session state was lost, start again",
    CloseCode.TOKEN_CHANGED: "fetch a new token",
    CloseCode.FULL: "this server is full",
    CloseCode.BAD_PROTOCOL: "not chatd.v1",
    CloseCode.UNAUTHORIZED: "unauthorized",
    CloseCode.REVOKED: "revoked",
    CloseCode.FORBIDDEN_PATH: "path and token differ",
    CloseCode.SESSION_TIMEOUT: "session timed out",
    CloseCode.TOO_MANY_CONNECTIONS: "too many connections",
    CloseCode.UNSUPPORTED_VERSION: "unsupported version",
    CloseCode.TOO_MANY_ERRORS: "too many bad frames",
}


class ChatdError(Exception):
    """Root of chatd's own exceptions."""


class LocalProtocolError(ChatdError):
    """Our bug: the server was about to send a frame that the rules forbid."""


class RemoteProtocolError(ChatdError):
    """The peer's fault, told to it as an ``error`` frame.

    ``code`` selects the text; ``detail`` names the field or rule and never holds input; ``strike`` counts
    towards the limit of bad frames; ``close``: close with this code after the ``error`` frame, None keeps the
    connection.
    """

    def __init__(
        self,
        code: ErrorCode,
        detail: str | None = None,
        *,
        client_msg_id: str | None = None,
        retry_after_ms: int | None = None,
        strike: bool = False,
        close: CloseCode | None = None,
    ) -> None:
        super().__init__(code.value)
        self.code = code
        self.detail = detail
        self.client_msg_id = client_msg_id
        self.retry_after_ms = retry_after_ms
        self.strike = strike
        self.close = close


def error_text(code: ErrorCode, lang: str) -> str:
    """The message for people; Portuguese where ``lang`` begins with "pt", else English."""
    text = ERRORS[code]
    return text.pt if lang.lower().startswith("pt") else text.en
