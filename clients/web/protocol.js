/**
 * The rules of one chatd.v1 session, seen from a phone or a page: no DOM, no socket, no clock.
 *
 * Everything that happens is an input (`opened`, `received`, `closed`, `tick`, `submit` ...) with the time `now`
 * in milliseconds; every method returns the list of effects that the adapter has to carry out, in order:
 *
 *   {do: "open"}                     open a socket (an older one is already forgotten)
 *   {do: "send", frame}              write one frame
 *   {do: "close", code}              close the socket and ignore whatever it still says
 *   {do: "token"}                    fetch a new token and hand it to `setToken`
 *   {do: "deliver", frame}           a frame for the screen, each durable one exactly once and in order
 *   {do: "outgoing", id, status, ...} what has become of a command: waiting, sent, retrying, old, accepted, failed,
 *                                     withdrawn
 *   {do: "line", phase, ...}         the state of the line has changed
 *
 * `wakeAt()` says when `tick` is due next. Nothing here throws on what a server sends: a frame that breaks the
 * rules is ignored, or answered by reconnecting where a gap would otherwise stay on the screen.
 */

import { closes, confirms } from "./alerts.js";

export const PROTOCOL = "chatd.v1";

/** Frames of the session's log (epoch, seq) and of the department's alert log (alert_seq). */
export const SESSION_DURABLE = new Set(["facts", "ai_response", "action_update", "context", "stale"]);
export const ALERT_DURABLE = new Set(["system_notification", "alert_update"]);

/** Every number of the rules, in one place. */
export const RULES = Object.freeze({
  // Full jitter over min(cap, base * 2^n): a department's phones do not come back in the same instant.
  backoff_base_ms: 500,
  backoff_cap_ms: 30_000,
  backoff_floor_ms: 100,
  // A hospital's wireless hands over in a few seconds; a socket that has not opened in 10 s will not.
  open_timeout_ms: 10_000,
  welcome_timeout_ms: 10_000,
  // Used until `welcome.heartbeat` says otherwise.
  ping_interval_ms: 10_000,
  pong_timeout_ms: 10_000,
  // Back in the foreground a person is looking: a dead line must be noticed at once.
  probe_timeout_ms: 2_000,
  // One `ack` for a burst of frames; the server keeps its log until then.
  ack_delay_ms: 500,
  ack_every: 16,
  // The same gap this often means that the cursor itself is wrong: start from a snapshot.
  gaps_before_forgetting: 3,
  // Commands that may wait for the line; a person who typed 64 questions into a dead line must be told.
  max_outbox: 64,
  // Alerts and answers to alerts have room of their own: no number of waiting questions may keep one out.
  max_alert_outbox: 64,
  // A refusal that passes (the ledger is away for a moment) is tried again after 1 s, 2 s, 4 s ... with jitter.
  retry_base_ms: 1_000,
  retry_cap_ms: 15_000,
  // An alert that could not be raised for this long may be about what is over: the person is asked first.
  raise_patience_ms: 300_000,
  // Receipts that are told again after a lost line; the server counts each person once.
  max_receipts: 200,
  // A new token is fetched this long before the old one runs out (or at 4/5 of a short life).
  token_margin_ms: 60_000,
  // A server that said goodbye and does not hang up is left alone after this long.
  goaway_patience_ms: 30_000,
});

/** How long to wait before attempt `attempt` (0 is the first), in ms; `random` gives [0, 1). */
export function backoffMs(attempt, random) {
  const cap = Math.min(RULES.backoff_cap_ms, RULES.backoff_base_ms * 2 ** Math.min(attempt, 30));
  return Math.max(RULES.backoff_floor_ms, Math.floor(random() * cap));
}

/** What a close code asks of a client: "reconnect", "token" (fetch one, then reconnect) or "stop". */
export function closeVerdict(code) {
  if (code === 4004) return "token";
  if (code === 1000) return "stop";
  if (code >= 4500 && code <= 4999) return "stop";
  return "reconnect";
}

/** A new id: 128 bits, in the alphabet that `protocols.frames.Id` allows. `fill` fills a Uint8Array with random bytes. */
export function newId(prefix, fill) {
  const bytes = new Uint8Array(16);
  fill(bytes);
  return `${prefix}-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Commands about alerts: they wait in a room of their own, and are tried again until the server has decided. */
const ALERT_COMMANDS = new Set(["alert_raise", "alert_response"]);

const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
const bounded = (value, low, high, fallback) =>
  Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : fallback;

/**
 * One session of one person in one department, over any number of sockets.
 *
 * Phases: idle → connecting → greeting → (syncing →) live; from each of them → waiting → connecting on a lost
 * line, → token where a new token is needed first, → stopped where a person has to do something.
 */
export class ClientSession {
  /** `random` gives [0, 1); `makeId(prefix)` gives a fresh id. */
  constructor({ deviceId, deviceKind, lang = "en", channel = "app", random = Math.random, makeId }) {
    this.phase = "idle";
    this.lang = lang;
    this.sessionId = null;
    this.epoch = "";
    this.seq = 0;
    this.alertSeq = 0;
    this.stopCode = null;
    this.userId = null;
    /** When anything was last heard from the server, in ms; null before the first frame. */
    this.heardAt = null;
    /** client_msg_id → {frame, status, responseId, cancelled, isPast, at, tries, notBefore, wasSent}; the order of insertion is the order of sending. */
    this.outbox = new Map();
    this.offlineSince = null;
    /** The server has no memory now: what is no alert waits here, as while there is no line. */
    this.alertsOnly = false;
    /** alert_id → {delivered, displayed}: receipts of open alerts, told again on each new line. */
    this._receipts = new Map();
    this._deviceId = deviceId;
    this._deviceKind = deviceKind;
    this.channel = channel;
    this._random = random;
    this._makeId = makeId;
    this._token = null;
    this._tokenRenewAt = Infinity;
    this._tokenDeadAt = Infinity;
    this._tokenAsked = false;
    this._hasCursor = false;
    this._attempt = 0;
    this._gaps = 0;
    this._goaway = null;
    this._intervalMs = RULES.ping_interval_ms;
    this._timeoutMs = RULES.pong_timeout_ms;
    this._deadline = Infinity; // of connecting, greeting, syncing, or of a server that said goodbye
    this._reconnectAt = Infinity;
    this._pingAt = Infinity;
    this._pongBy = Infinity;
    this._ackAt = Infinity;
    this._unacked = 0;
  }

  // --- inputs from the person and the page ---------------------------------------------------------------

  /** Begin; the token may also come later through `setToken`. */
  start(now) {
    if (this.phase !== "idle") return [];
    this.offlineSince = now;
    return this._connect(now);
  }

  /** A token and how long it lives; sent as `refresh` on a live line, and in every later `hello`. */
  setToken(token, expiresInS, now) {
    this._token = token;
    this._tokenAsked = false;
    const lifeMs = Number.isFinite(expiresInS) ? expiresInS * 1000 : Infinity;
    this._tokenDeadAt = now + lifeMs;
    this._tokenRenewAt = now + Math.max(lifeMs * 0.8, lifeMs - RULES.token_margin_ms);
    if (this.phase === "token") return this._connect(now);
    if (this.phase !== "live") return [];
    return [
      { do: "send", frame: { type: "refresh", token, client_msg_id: this._makeId("r") } },
      ...this._flush(now),
    ];
  }

  /** The token could not be fetched now: try again with backoff, as for a lost line. */
  tokenFailed(now) {
    this._tokenAsked = false;
    if (this.phase === "token") return this._wait(now, backoffMs(this._attempt++, this._random));
    this._tokenRenewAt = now + RULES.backoff_cap_ms;
    return [];
  }

  /**
   * Send a command that carries a `client_msg_id`, now or as soon as the line is there, until it is answered.
   *
   * The id is fixed before the first attempt, so sending twice is the same as sending once. A command whose id
   * is already waiting changes nothing. Beyond `max_outbox` it fails with the code `outbox_full`.
   */
  submit(frame, now) {
    const id = frame.client_msg_id;
    if (this.outbox.has(id)) return [];
    if (this.phase === "stopped") return [{ do: "outgoing", id, status: "failed", code: "session_expired" }];
    const isAlert = ALERT_COMMANDS.has(frame.type);
    const waiting = [...this.outbox.values()].filter((entry) => ALERT_COMMANDS.has(entry.frame.type) === isAlert).length;
    if (waiting >= (isAlert ? RULES.max_alert_outbox : RULES.max_outbox)) {
      return [{ do: "outgoing", id, status: "failed", code: "outbox_full", retryable: true }];
    }
    this.outbox.set(id, {
      frame: Object.freeze({ ...frame }),
      status: "waiting",
      responseId: null,
      cancelled: false,
      isPast: false,
      at: now,
      tries: 0,
      notBefore: -Infinity,
      wasSent: false,
    });
    return [{ do: "outgoing", id, status: "waiting" }, ...this._flush(now)];
  }

  /**
   * Say that an alert has been "delivered" or "displayed" here: once, now or as soon as the line is there, and again
   * on each new line as long as the alert is open. No answer comes; the server keeps the furthest.
   */
  receipt(alertId, answer) {
    const told = this._receipts.get(alertId) ?? { delivered: null, displayed: null };
    if (told[answer] || this.phase === "stopped") return [];
    told[answer] = Object.freeze({ type: "alert_response", client_msg_id: this._makeId("n"), alert_id: alertId, answer });
    this._receipts.set(alertId, told);
    if (this._receipts.size > RULES.max_receipts) this._receipts.delete(this._receipts.keys().next().value);
    return this.phase === "live" ? [{ do: "send", frame: told[answer] }] : [];
  }

  /** An alert that grew old while it waited: the person wants it sent all the same. */
  sendAnyway(id, now) {
    const entry = this.outbox.get(id);
    if (!entry || entry.status !== "old") return [];
    Object.assign(entry, { status: "waiting", at: now, notBefore: -Infinity });
    return [{ do: "outgoing", id, status: "waiting" }, ...this._flush(now)];
  }

  /** Give up an alert of one's own. `unsure`: it has been sent once, so the server may have it all the same. */
  withdraw(id) {
    const entry = this.outbox.get(id);
    if (!entry || entry.frame.type !== "alert_raise") return [];
    this.outbox.delete(id);
    return [{ do: "outgoing", id, status: "withdrawn", unsure: entry.wasSent }];
  }

  /** Stop a question. One that never left is withdrawn here; any other still ends in an `ai_response`. */
  cancel(id) {
    const entry = this.outbox.get(id);
    if (!entry || entry.frame.type !== "user_message") return [];
    if (entry.status === "waiting") {
      this.outbox.delete(id);
      return [{ do: "outgoing", id, status: "withdrawn" }];
    }
    if (entry.cancelled) return [];
    entry.cancelled = true;
    return this.phase === "live" && !this.alertsOnly ? [this._cancelFrame(id)] : [];
  }

  /** The page is looked at again, or the network has come back: probe the line, or try at once. */
  foreground(now) {
    if (this.phase === "live") {
      this._pongBy = Math.min(this._pongBy, now + RULES.probe_timeout_ms);
      this._pingAt = now + this._intervalMs;
      return [{ do: "send", frame: { type: "ping", t: now } }];
    }
    // A server that named a time to come back (goaway) is obeyed, also by an impatient person.
    if (this.phase === "waiting" && !this._goaway) return this._connect(now);
    return [];
  }

  /** Sign out: everything of the session is shredded on the server, and forgotten here. */
  end() {
    const effects = [];
    if (this.phase === "live") effects.push({ do: "send", frame: { type: "session_end" } });
    return [...effects, ...this._stop(1000)];
  }

  /** No token can be had any more: stop as if the server had refused it. */
  giveUp(code) {
    return this.phase === "stopped" ? [] : this._stop(code);
  }

  // --- inputs from the socket ----------------------------------------------------------------------------

  opened(now) {
    if (this.phase !== "connecting") return [];
    this.phase = "greeting";
    this._deadline = now + RULES.welcome_timeout_ms;
    const hello = {
      type: "hello",
      token: this._token,
      device_id: this._deviceId,
      device_kind: this._deviceKind,
      channel: this.channel,
      lang: this.lang,
    };
    if (this.sessionId) hello.session_id = this.sessionId;
    if (this._hasCursor) hello.resume = { epoch: this.epoch, seq: this.seq, alert_seq: this.alertSeq };
    return [{ do: "send", frame: hello }];
  }

  received(frame, now) {
    if (!frame || typeof frame !== "object" || typeof frame.type !== "string") return [];
    if (this.phase !== "greeting" && this.phase !== "syncing" && this.phase !== "live") return [];
    this._pongBy = Infinity; // any frame is a sign of life
    this.heardAt = now;
    if (frame.type === "goaway") return this._onGoaway(frame, now);
    if (frame.type === "welcome") return this.phase === "greeting" ? this._onWelcome(frame, now) : [];
    if (frame.type === "error") return this._onError(frame, now);
    if (this.phase === "greeting") return [];
    if (frame.type === "snapshot") return this.phase === "syncing" ? this._onSnapshot(frame, now) : [];
    const place = this._place(frame);
    if (place === "gap") return this._onGap(now);
    if (place === "drop") return [];
    const effects = [...this._settle(frame), { do: "deliver", frame }];
    if (place === "next") {
      this._gaps = 0;
      // After the delivery: an ack says that the frame is held here.
      if (SESSION_DURABLE.has(frame.type)) effects.push(...this._countAck(now));
    }
    return effects;
  }

  /** The socket is gone. `code` is the close code, 1006 where there was none. */
  closed(code, now) {
    if (this.phase === "idle" || this.phase === "waiting" || this.phase === "token" || this.phase === "stopped") {
      return [];
    }
    const goaway = this._goaway;
    // A browser or a proxy may hide a private code; the goaway frame said it first.
    const told = goaway && (code === 1005 || code === 1006 || code === 1001) ? goaway.code : code;
    if (goaway && !goaway.reconnect) return this._stop(told);
    const verdict = closeVerdict(told);
    if (verdict === "stop") return this._stop(told);
    if (told === 4003) this._suspectCursor();
    if (verdict === "token") {
      this._token = null;
      this._tokenDeadAt = Infinity;
    }
    // Counted from the goaway: a draining server says it early and hangs up later. Our jitter comes on top.
    const told_ms = goaway ? Math.max(0, goaway.at + goaway.after_ms - now) : 0;
    return this._wait(now, told_ms + backoffMs(this._attempt++, this._random));
  }

  // --- input from the clock ------------------------------------------------------------------------------

  tick(now) {
    if (this.phase === "waiting") return now >= this._reconnectAt ? this._connect(now) : [];
    if (now >= this._deadline || now >= this._pongBy) return this._drop(now);
    if (this.phase !== "live") return [];
    const effects = [];
    if (now >= this._ackAt) effects.push(...this._ack());
    if (now >= this._retryAt()) effects.push(...this._flush(now));
    if (now >= this._pingAt) {
      effects.push({ do: "send", frame: { type: "ping", t: now } });
      this._pingAt = now + this._intervalMs;
      // Silence counts from the ping and not from the last frame: a page in the background is woken rarely.
      this._pongBy = Math.min(this._pongBy, now + this._timeoutMs);
    }
    if (now >= this._tokenRenewAt && !this._tokenAsked) {
      this._tokenAsked = true;
      effects.push({ do: "token" });
    }
    return effects;
  }

  /** When `tick` has something to do, in ms; Infinity if only an input can change anything. */
  wakeAt() {
    if (this.phase === "waiting") return this._reconnectAt;
    if (this.phase === "connecting" || this.phase === "greeting") return this._deadline;
    if (this.phase === "syncing") return Math.min(this._deadline, this._pongBy);
    if (this.phase !== "live") return Infinity;
    const renew = this._tokenAsked ? Infinity : this._tokenRenewAt;
    return Math.min(this._deadline, this._pingAt, this._pongBy, this._ackAt, this._retryAt(), renew);
  }

  // --- the line ------------------------------------------------------------------------------------------

  _connect(now) {
    this._reconnectAt = Infinity;
    this._goaway = null;
    if (!this._token || now >= this._tokenDeadAt) {
      this.phase = "token";
      this._tokenAsked = true;
      return [this._line(), { do: "token" }];
    }
    this.phase = "connecting";
    this._deadline = now + RULES.open_timeout_ms;
    return [this._line(), { do: "open" }];
  }

  _wait(now, delayMs) {
    this.phase = "waiting";
    this.offlineSince ??= now;
    this._resetLine();
    this._reconnectAt = now + delayMs;
    return [this._line()];
  }

  /** The line is dead without a word: close it and come back. */
  _drop(now) {
    if (this._goaway) return [{ do: "close", code: 1000 }, ...this.closed(1006, now)];
    const probe = this.phase === "live" && now < this._deadline;
    const delay = probe ? RULES.backoff_floor_ms : backoffMs(this._attempt++, this._random);
    return [{ do: "close", code: 4001 }, ...this._wait(now, delay)];
  }

  _stop(code) {
    this.phase = "stopped";
    this.stopCode = code;
    this._token = null;
    this._resetLine();
    return [{ do: "close", code: 1000 }, this._line()];
  }

  _resetLine() {
    this._deadline = Infinity;
    this._pingAt = Infinity;
    this._pongBy = Infinity;
    this._ackAt = Infinity;
    this._unacked = 0;
  }

  _line() {
    return { do: "line", phase: this.phase, offlineSince: this.offlineSince, code: this.stopCode };
  }

  _onWelcome(frame, now) {
    this._attempt = 0;
    this._intervalMs = bounded(frame.heartbeat?.interval_s * 1000, 1_000, 60_000, RULES.ping_interval_ms);
    this._timeoutMs = bounded(frame.heartbeat?.timeout_s * 1000, 1_000, 60_000, RULES.pong_timeout_ms);
    this._pingAt = now + this._intervalMs;
    this._deadline = Infinity;
    this.sessionId = frame.session_id;
    this.userId = frame.user?.user_id ?? this.userId;
    this.alertsOnly = frame.alerts_only === true;
    const resumed = frame.resumed === true && this._hasCursor && frame.epoch === this.epoch;
    if (resumed && isCount(frame.alert_seq) && frame.alert_seq < this.alertSeq) {
      // The alert log is shorter than we know it (a ledger put back from a copy): its next alerts would look old.
      this._forgetCursor();
      return this._onGap(now);
    }
    if (resumed) {
      this.phase = "live";
      this.offlineSince = null;
      return [{ do: "deliver", frame }, this._line(), ...this._resendOutbox(null, now)];
    }
    // "Resumed" from a cursor that we do not hold would hide what is missing.
    if (frame.resumed === true) return this._onGap(now);
    this.epoch = typeof frame.epoch === "string" ? frame.epoch : "";
    this.seq = isCount(frame.seq) ? frame.seq : 0;
    this.alertSeq = isCount(frame.alert_seq) ? frame.alert_seq : 0;
    // Without its snapshot this cursor is half a state: a line lost in between must not be resumed from it.
    this._hasCursor = false;
    this.phase = "syncing"; // nothing is sent before the snapshot says what is still being answered
    this._deadline = now + RULES.welcome_timeout_ms;
    return [{ do: "deliver", frame }];
  }

  _onSnapshot(frame, now) {
    this.phase = "live";
    this._hasCursor = true;
    this._deadline = Infinity;
    this.offlineSince = null;
    const alerts = new Set((frame.open_alerts ?? []).map((one) => one.alert_id));
    for (const id of this._receipts.keys()) if (!alerts.has(id)) this._receipts.delete(id);
    const open = new Map((frame.open_responses ?? []).map((one) => [one.client_msg_id, one.response_id]));
    // Without its memory the server does not know what is being answered; that stays as it is.
    return [{ do: "deliver", frame }, this._line(), ...this._resendOutbox(this.alertsOnly ? null : open, now)];
  }

  _onGoaway(frame, now) {
    this._goaway = {
      at: now,
      code: Number.isInteger(frame.code) ? frame.code : 4000,
      reconnect: frame.reconnect !== false,
      after_ms: bounded(frame.after_ms, 0, 300_000, 0),
    };
    this._deadline = now + RULES.goaway_patience_ms;
    return [{ do: "deliver", frame }];
  }

  _onGap(now) {
    const delay = backoffMs(this._gaps, this._random);
    this._suspectCursor();
    return [{ do: "close", code: 4000 }, ...this._wait(now, delay)];
  }

  /** The log does not go on from our cursor. Once is weather; again and again, the cursor itself is given up. */
  _suspectCursor() {
    this._gaps += 1;
    if (this._gaps < RULES.gaps_before_forgetting) return;
    this._forgetCursor();
    this._gaps = 0;
  }

  _forgetCursor() {
    this._hasCursor = false;
    this.epoch = "";
    this.seq = 0;
    this.alertSeq = 0;
  }

  // --- the logs ------------------------------------------------------------------------------------------

  /** Where a frame stands: "free" (no log), "next", "late" (an answer we still wait for), "drop" or "gap". */
  _place(frame) {
    if (ALERT_DURABLE.has(frame.type)) {
      if (!isCount(frame.alert_seq) || frame.alert_seq === 0) return "free";
      if (frame.alert_seq <= this.alertSeq) return "drop";
      if (frame.alert_seq > this.alertSeq + 1) return "gap";
      this.alertSeq = frame.alert_seq;
      return "next";
    }
    if (!SESSION_DURABLE.has(frame.type)) return "free";
    if (!isCount(frame.seq) || frame.seq === 0) return "free";
    if (frame.epoch === this.epoch) {
      if (frame.seq === this.seq + 1) {
        this.seq = frame.seq;
        return "next";
      }
      if (frame.seq > this.seq + 1) return "gap";
    }
    // A resent question whose answer was already given gets that answer again, under its first number.
    if (this._isAwaited(frame)) return "late";
    return frame.epoch === this.epoch ? "drop" : "gap";
  }

  _isAwaited(frame) {
    if (!frame.client_msg_id || !this.outbox.has(frame.client_msg_id)) return false;
    const type = this.outbox.get(frame.client_msg_id).frame.type;
    if (frame.type === "ai_response" || frame.type === "facts") return type === "user_message";
    if (frame.type === "action_update") return type === "action";
    if (frame.type === "presence") return type === "presence";
    return frame.type === "context" && type === "context_set";
  }

  _countAck(now) {
    this._unacked += 1;
    if (this._unacked >= RULES.ack_every) return this._ack();
    this._ackAt = Math.min(this._ackAt, now + RULES.ack_delay_ms);
    return [];
  }

  _ack() {
    this._unacked = 0;
    this._ackAt = Infinity;
    return [{ do: "send", frame: { type: "ack", epoch: this.epoch, seq: this.seq } }];
  }

  // --- the outbox ----------------------------------------------------------------------------------------

  /** A server that said goodbye takes only answers to alerts, and one without its memory only what is about them. */
  _isHeld(entry) {
    const { type } = entry.frame;
    return (this._goaway && type !== "alert_response") || (this.alertsOnly && !ALERT_COMMANDS.has(type));
  }

  /** Send what has not been sent on this line and may be sent now. */
  _flush(now) {
    if (this.phase !== "live") return [];
    const effects = [];
    for (const [id, entry] of this.outbox) {
      if (entry.status !== "waiting" || entry.notBefore > now || this._isHeld(entry)) continue;
      if (entry.frame.type === "alert_raise" && now - entry.at > RULES.raise_patience_ms) {
        entry.status = "old";
        effects.push({ do: "outgoing", id, status: "old", unsure: entry.wasSent });
        continue;
      }
      entry.status = "sent";
      entry.wasSent = true;
      effects.push({ do: "send", frame: entry.frame }, { do: "outgoing", id, status: "sent" });
    }
    return effects;
  }

  /**
   * After a reconnect: everything not yet accepted is sent again, in its order and under its id.
   *
   * `open` null: resumed, so an accepted question's answer comes by replay, unless it may lie before our cursor
   * (`isPast`). Otherwise the map of questions that are still being answered; an accepted question that is not
   * among them is sent again too.
   */
  _resendOutbox(open, now) {
    const cancelled = [];
    for (const [id, entry] of this.outbox) {
      if (entry.status === "accepted") {
        if (open?.has(id)) entry.responseId = open.get(id);
        else if (open !== null || entry.isPast) entry.status = "waiting";
      } else if (entry.status === "sent") {
        entry.status = "waiting";
      }
      entry.notBefore = -Infinity;
      if (entry.cancelled && !this.alertsOnly) cancelled.push(this._cancelFrame(id));
    }
    const receipts = [...this._receipts.values()].flatMap((told) => [told.delivered, told.displayed]).filter(Boolean);
    return [...this._flush(now), ...cancelled, ...receipts.map((frame) => ({ do: "send", frame }))];
  }

  /** When a command that was refused for now is tried again. */
  _retryAt() {
    let at = Infinity;
    for (const entry of this.outbox.values()) {
      if (entry.status === "waiting" && entry.notBefore > -Infinity && !this._isHeld(entry)) at = Math.min(at, entry.notBefore);
    }
    return at;
  }

  _cancelFrame(id) {
    return { do: "send", frame: { type: "cancel", client_msg_id: id } };
  }

  /** Take what a frame answers out of the outbox. */
  _settle(frame) {
    const id = frame.client_msg_id;
    const entry = id ? this.outbox.get(id) : undefined;
    if (frame.type === "accepted" && entry) {
      if (entry.frame.type !== "user_message") {
        this.outbox.delete(id);
        return [{ do: "outgoing", id, status: "accepted", alertId: frame.alert_id ?? null, reach: frame.reach ?? null }];
      }
      entry.status = "accepted";
      entry.responseId = frame.response_id ?? null;
      // Accepted before: its answer may be behind our cursor, where no replay would bring it.
      entry.isPast ||= frame.duplicate === true;
      return [{ do: "outgoing", id, status: "accepted" }];
    }
    if (this._isAwaited(frame) && frame.type !== "facts") this.outbox.delete(id);
    return ALERT_DURABLE.has(frame.type) ? this._settleAlert(frame) : [];
  }

  /**
   * The log confirms an answer, or ends the alert and with it every answer to it. Another person's event changes
   * nothing: an answer that is still on its way must not be taken for one that has arrived.
   */
  _settleAlert(frame) {
    const closed = closes(frame);
    if (closed) this._receipts.delete(frame.alert_id);
    const effects = [];
    for (const [id, entry] of this.outbox) {
      if (entry.frame.type !== "alert_response" || entry.frame.alert_id !== frame.alert_id) continue;
      const confirmed = confirms(frame, entry.frame, this.userId);
      if (!confirmed && !closed) continue;
      this.outbox.delete(id);
      effects.push(confirmed ? { do: "outgoing", id, status: "accepted" } : { do: "outgoing", id, status: "failed", code: "alert_closed" });
    }
    return effects;
  }

  _onError(frame, now) {
    const id = frame.client_msg_id;
    const entry = id ? this.outbox.get(id) : undefined;
    if (frame.code === "token_expired") {
      // Not the command's fault: it is sent again with the new token.
      if (entry && entry.status === "sent") entry.status = "waiting";
      if (this._tokenAsked) return [];
      this._tokenAsked = true;
      return [{ do: "token" }];
    }
    if (entry?.status === "sent" && frame.retryable === true && ALERT_COMMANDS.has(entry.frame.type)) {
      // Nobody should have to press twice for an alert because a disk was busy for a second.
      const wait = Math.min(RULES.retry_cap_ms, RULES.retry_base_ms * 2 ** Math.min(entry.tries, 10));
      const told = isCount(frame.retry_after_ms) ? Math.min(frame.retry_after_ms, 60_000) : 0;
      Object.assign(entry, { status: "waiting", tries: entry.tries + 1, notBefore: now + told + Math.ceil(wait * (0.5 + this._random() / 2)) });
      return [{ do: "outgoing", id, status: "retrying", code: frame.code }];
    }
    const effects = [];
    // An accepted question still ends in its ai_response; this error is about something else (a cancel).
    if (entry && entry.status !== "accepted") {
      this.outbox.delete(id);
      effects.push({
        do: "outgoing",
        id,
        status: "failed",
        code: frame.code,
        retryable: frame.retryable === true,
        retryAfterMs: isCount(frame.retry_after_ms) ? frame.retry_after_ms : 0,
      });
    }
    effects.push({ do: "deliver", frame });
    return effects;
  }
}
