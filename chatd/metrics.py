"""Every metric of chatd, declared once; ``/metrics`` serves them, docs/metrics.md explains them.

Labels hold codes from closed tables and never an id, a name or text.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry(auto_describe=True)

#: Bounds around the goals: 20 ms for accepted, 50 ms for facts.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

CONNECTIONS = Gauge("chatd_connections", "Open WebSockets by channel.", ["channel"], registry=REGISTRY)
HANDSHAKES = Counter(
    "chatd_handshakes_total",
    "WebSocket handshakes by outcome (opened or the close code).",
    ["outcome"],
    registry=REGISTRY,
)
CLOSES = Counter("chatd_closes_total", "Connections closed by the server, by close code.", ["code"], registry=REGISTRY)
FRAMES_IN = Counter("chatd_frames_received_total", "Frames received, by type.", ["type"], registry=REGISTRY)
FRAMES_OUT = Counter("chatd_frames_sent_total", "Frames sent, by type.", ["type"], registry=REGISTRY)
ERRORS = Counter("chatd_errors_total", "Error frames sent, by code.", ["code"], registry=REGISTRY)
QUESTIONS = Counter("chatd_questions_total", "Questions finished, by status.", ["status"], registry=REGISTRY)
ACCEPT_SECONDS = Histogram(
    "chatd_accept_seconds",
    "From a user_message received to accepted handed to the socket.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
FACTS_SECONDS = Histogram(
    "chatd_facts_seconds",
    "From the start of a run (accepted, or taken over) to facts in the session log.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
ANSWER_SECONDS = Histogram(
    "chatd_answer_seconds",
    "From the start of a run (accepted, or taken over) to its ai_response in the session log.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
RUNS_ADOPTED = Counter(
    "chatd_runs_adopted_total", "Questions taken over from a gateway that stopped.", registry=REGISTRY
)
RUNS_OPEN = Gauge("chatd_runs_open", "Questions this node is answering.", registry=REGISTRY)
SLOW_CONSUMERS = Counter(
    "chatd_slow_consumers_total", "Connections closed because their outbox was full.", registry=REGISTRY
)
OUTBOX_BYTES = Gauge("chatd_outbox_bytes", "Bytes waiting in all outboxes.", registry=REGISTRY)
REDIS_ERRORS = Counter("chatd_redis_errors_total", "Redis calls that failed or timed out.", registry=REGISTRY)
LEDGER_ERRORS = Counter("chatd_ledger_errors_total", "Ledger calls that failed or timed out.", registry=REGISTRY)
CONTEXT_LOADED = Gauge(
    "chatd_context_loaded",
    "1 when the layers are in Redis, 0 while they are loaded again.",
    registry=REGISTRY,
)
CONTEXT_RELOADS = Counter(
    "chatd_context_reloads_total", "Times the layers were loaded from their sources.", registry=REGISTRY
)
ACTIONS = Counter("chatd_actions_total", "Steps of quick actions, by resulting status.", ["status"], registry=REGISTRY)
ALERTS = Counter("chatd_alerts_total", "New alerts in the ledger, by priority.", ["priority"], registry=REGISTRY)
ALERT_EVENTS = Counter(
    "chatd_alert_events_total", "Events of alerts that this gateway has recorded.", ["event"], registry=REGISTRY
)
ALERT_SECONDS = Histogram(
    "chatd_alert_seconds",
    "From an alert_raise, on whatever way, to its commit in the ledger.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
#: A sweep comes once a second; what is later than some of them waited for the ledger or for a dead node's timers.
ALERT_LATE_SECONDS = Histogram(
    "chatd_alert_late_seconds",
    "From the moment a step, a repetition or a reminder was due to its being taken here.",
    buckets=(0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0),
    registry=REGISTRY,
)
ALERT_RECEIPTS_DROPPED = Counter(
    "chatd_alert_receipts_dropped_total", "Receipts of alerts dropped because too many waited.", registry=REGISTRY
)
ALERT_CLOCK_STEPPED = Gauge(
    "chatd_alert_clock_stepped",
    "1 when the wall clock, or the ledger's, is off by more than a minute.",
    registry=REGISTRY,
)
AUDIT_ROWS = Counter(
    "chatd_audit_rows_total",
    "Rows of the audit, by where they were written: the chain, or this machine's file.",
    ["place"],
    registry=REGISTRY,
)
AUDIT_MISSED = Counter("chatd_audit_missed_total", "Rows of the audit that no disk took.", registry=REGISTRY)
AUDIT_OPEN = Gauge(
    "chatd_audit_open", "1 while rows of the audit find a disk; at 0 patients' data is refused.", registry=REGISTRY
)
AUDIT_SPOOLED = Gauge(
    "chatd_audit_spooled", "Rows of the audit in this machine's file, waiting for the ledger.", registry=REGISTRY
)
AUDIT_CHECKPOINTS = Counter(
    "chatd_audit_checkpoints_total",
    "Checkpoints of the audit, by sink and result.",
    ["sink", "result"],
    registry=REGISTRY,
)
FEEDBACK = Counter("chatd_feedback_total", "Feedback on answers.", ["useful"], registry=REGISTRY)
#: A wait for the model is seconds to minutes, its first word tenths of a second.
_WAIT_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 45.0, 90.0, 180.0)

QUEUE_WAITING = Gauge("chatd_queue_waiting", "Questions waiting for the model, by lane.", ["lane"], registry=REGISTRY)
QUEUE_REFUSED = Counter(
    "chatd_queue_refused_total", "Questions that the model's queue did not take, by code.", ["code"], registry=REGISTRY
)
QUEUE_SECONDS = Histogram(
    "chatd_queue_seconds",
    "From being queued to being begun by a worker, by lane.",
    ["lane"],
    buckets=_WAIT_SECONDS,
    registry=REGISTRY,
)
MODEL_TTFT_SECONDS = Histogram(
    "chatd_model_ttft_seconds",
    "From being begun by a worker to the first token, by lane.",
    ["lane"],
    buckets=_WAIT_SECONDS,
    registry=REGISTRY,
)
MODEL_SECONDS = Histogram(
    "chatd_model_seconds",
    "From being begun by a worker to the last token, by lane.",
    ["lane"],
    buckets=_WAIT_SECONDS,
    registry=REGISTRY,
)
FIRST_TEXT_SECONDS = Histogram(
    "chatd_first_text_seconds",
    "From the start of a run to the first text handed to its phones.",
    buckets=_WAIT_SECONDS,
    registry=REGISTRY,
)
MODEL_TOKENS = Counter(
    "chatd_model_tokens_total",
    "Tokens of finished texts: in, out, and reused of those in.",
    ["kind"],
    registry=REGISTRY,
)
MODEL_ENDS = Counter(
    "chatd_model_ends_total", "Texts ended, by reason: error means given up.", ["reason"], registry=REGISTRY
)
MODEL_GIVEN_UP = Gauge(
    "chatd_model_given_up", "Texts that /health/model lists as given up, their attempts spent.", registry=REGISTRY
)
MODEL_SHARED = Counter(
    "chatd_model_shared_total", "Answers that took the words of a colleague's same question.", registry=REGISTRY
)
MODEL_HELD_BACK = Counter("chatd_model_held_back_total", "Lines of a model that a check held back.", registry=REGISTRY)
JOB_RESTARTS = Counter(
    "chatd_job_restarts_total", "Texts begun again by another attempt, as seen here.", registry=REGISTRY
)
JOBS_REAPED = Counter(
    "chatd_jobs_reaped_total", "Jobs that this gateway found past their lease or deadline.", registry=REGISTRY
)
MODEL_WORKERS = Gauge("chatd_model_workers", "Workers by state, as seen here.", ["state"], registry=REGISTRY)
MODEL_SLOTS = Gauge("chatd_model_slots", "Slots of ready workers, and those in use.", ["use"], registry=REGISTRY)
MODE = Gauge("chatd_mode", "1 for the mode that this gateway is in.", ["mode"], registry=REGISTRY)
HL7_MESSAGES = Counter("chatd_hl7_messages_total", "HL7 v2 messages, by answer.", ["answer"], registry=REGISTRY)
HL7_ALERTS = Counter(
    "chatd_hl7_alerts_total", "Alerts that HL7 v2 results raised, withdrew or corrected.", ["kind"], registry=REGISTRY
)
HL7_FAULTS = Counter(
    "chatd_hl7_faults_total",
    "What went wrong with HL7 v2 beside refused messages, by kind.",
    ["kind"],
    registry=REGISTRY,
)
HL7_CONNECTIONS = Gauge("chatd_hl7_connections", "Open MLLP connections.", registry=REGISTRY)
LOG_LINES_DROPPED = Counter(
    "chatd_log_lines_dropped_total",
    "Log lines dropped because the log's reader was too slow.",
    registry=REGISTRY,
)
