/**
 * What is on the screen, as a plain object: frames in, a model of bubbles, alerts and the patient out. No DOM.
 *
 * Every exchange is one question and its one answer: facts first, then text as it is written, then the final
 * frame, which replaces what was streamed. `apply` returns what has changed, as keys: "line", "patient",
 * "alerts", "presence", "list" (a bubble was added or removed) and "x:KEY" for one exchange. `announcements`
 * collects what a screen reader has to say, polite or assertive, until `takeAnnouncements` empties it. Alerts are
 * kept in an `AlertBook` (alerts.js).
 */

import { AlertBook } from "./alerts.js";

/** The screen keeps this many exchanges; older ones are on no disk and in no store, they are gone. */
export const MAX_EXCHANGES = 200;
/** Colleagues whose presence is kept. */
const MAX_PEOPLE = 500;
/** States of an action in which it can be chosen. */
export const ACTION_OPEN = new Set(["proposed", "failed"]);

export class Conversation {
  constructor() {
    this.user = null;
    this.department = null;
    this.model = null;
    this.mode = "normal";
    this.limits = { messages_per_minute: 10, remaining: 10, max_content_chars: 4000 };
    this.patient = null;
    this.patientReason = "set";
    this.layers = [];
    /** server clock minus ours, in ms: what runs out is judged by the server's clock. */
    this.clockOffsetMs = 0;
    /** key → exchange or divider, in the order of the screen. */
    this.items = new Map();
    /** action_id → {proposed, status, by, at, reason, update} */
    this.actions = new Map();
    this.book = new AlertBook();
    /** user_id → the last `presence` of that person. */
    this.presence = new Map();
    this.announcements = [];
    this._byResponse = new Map();
    this._changed = new Set();
    this._serial = 0;
    this._welcomed = false;
    /** The alert that rang last, and the one that somebody else took last ({alert, by}); the page resets them. */
    this.rung = null;
    /** The server has said that it cannot read its alerts now. */
    this.alertsAway = false;
    this.alertsOnly = false;
    this.taken = null;
    /** The last event of a hand-over to or from this person, {key, params, level}; the page says it and resets it. */
    this.handed = null;
  }

  get alerts() {
    return this.book.alerts;
  }

  /** A question of this page, before it is sent. */
  ask({ id, text, patient, urgency, lang, at }) {
    this._exchange(id, { text, at, urgency, lang, status: "waiting", patient, error: null });
    return this._take();
  }

  /** What the session says has become of a command of ours. */
  outgoing(effect, now) {
    if (this.book.outgoing(effect)) return this.alertsChanged();
    const { id, status, code = null, retryable = false, retryAfterMs = 0 } = effect;
    const item = this.items.get(id);
    if (!item?.question || item.final) return [];
    if (status === "withdrawn") {
      this.items.delete(id);
      this._changed.add("list");
      return this._take();
    }
    item.question.status = status;
    item.question.error = status === "failed" ? { code, retryable, retryAt: now + retryAfterMs } : null;
    if (status === "failed") this._announce("assertive", "announce.failed", { code });
    this._changed.add(`x:${id}`);
    return this._take();
  }

  /** Take a failed question off the screen, to be asked again. Returns its question, or null. */
  remove(id) {
    const item = this.items.get(id);
    if (!item?.question || item.question.status !== "failed") return [null, []];
    this.items.delete(id);
    this._changed.add("list");
    return [item.question, this._take()];
  }

  markCancelling(id) {
    const item = this.items.get(id);
    if (item) {
      item.cancelling = true;
      this._changed.add(`x:${id}`);
    }
    return this._take();
  }

  setFeedback(responseId, useful) {
    const item = this.items.get(this._byResponse.get(responseId));
    if (item) {
      item.feedback = useful;
      this._changed.add(`x:${item.key}`);
    }
    return this._take();
  }

  apply(frame, now) {
    const handler = HANDLERS[frame.type];
    if (handler) handler.call(this, frame, now);
    return this._take();
  }

  takeAnnouncements() {
    return this.announcements.splice(0);
  }

  /** Open alerts, the most urgent first. */
  openAlerts() {
    return this.book.list();
  }

  /** Something in the alert book was changed by the person or the session. */
  alertsChanged() {
    this._changed.add("alerts");
    return this._take();
  }

  /**
   * May this action be chosen now? "" or the reason why not: "state", "expired", "stale" or "other_patient".
   *
   * An action of another patient than the open one is never offered, whatever the server would say to it.
   */
  actionBlock(actionId, item, now) {
    const action = this.actions.get(actionId);
    if (!action || !ACTION_OPEN.has(action.status)) return "state";
    const bound = action.proposed.bound?.patient_id ?? null;
    if (this.patient && bound !== null && bound !== this.patient.patient_id) return "other_patient";
    if (item?.stale) return "stale";
    const expires = Date.parse(action.proposed.expires_at ?? "");
    if (Number.isFinite(expires) && now + this.clockOffsetMs >= expires) return "expired";
    return "";
  }

  // --- inside --------------------------------------------------------------------------------------------

  _take() {
    const changed = [...this._changed];
    this._changed.clear();
    return changed;
  }

  _announce(level, key, params = {}) {
    this.announcements.push({ level, key, params });
    if (this.announcements.length > 50) this.announcements.shift();
  }

  /** An offer is said to who is asked, its outcome to who has offered; what is still theirs is said aloud. */
  _handed(alert, { event, from, to }) {
    const mine = from === this.book.me.user_id;
    const key = mine ? { handed_over: "taken", handover_refused: "refused", handover_lapsed: "lapsed" }[event] : { handover_offered: "asked" }[event];
    if (!key) return;
    const level = key === "refused" || key === "lapsed" ? "assertive" : "polite";
    const said = { level, key: `announce.handover_${key}`, params: { by: mine ? to : from, text: alert.frame.content } };
    this.handed = said;
    this._announce(said.level, said.key, said.params);
  }

  _exchange(key, question) {
    const item = {
      key,
      kind: "exchange",
      question,
      responseId: null,
      facts: null,
      stream: null,
      queue: null,
      again: false,
      final: null,
      stale: null,
      cancelling: false,
      feedback: null,
    };
    this._put(item);
    return item;
  }

  _put(item) {
    this.items.set(item.key, item);
    while (this.items.size > MAX_EXCHANGES) {
      const [oldest] = this.items.keys();
      const gone = this.items.get(oldest);
      if (gone.responseId) this._byResponse.delete(gone.responseId);
      for (const one of gone.final?.content?.structured_data?.actions ?? []) this.actions.delete(one.action_id);
      this.items.delete(oldest);
    }
    this._changed.add("list");
    this._changed.add(`x:${item.key}`);
  }

  _divider(kind, params) {
    this._serial += 1;
    this._put({ key: `divider-${this._serial}`, kind, params });
  }

  /** The exchange that a frame belongs to; one asked on another device of the session is made here. */
  _of(frame) {
    const known = this._byResponse.get(frame.response_id) ?? frame.client_msg_id;
    let item = known ? this.items.get(known) : undefined;
    if (!item) item = this._exchange(known || frame.response_id, null);
    if (frame.response_id) {
      item.responseId = frame.response_id;
      this._byResponse.set(frame.response_id, item.key);
    }
    this._changed.add(`x:${item.key}`);
    return item;
  }
}

const HANDLERS = {
  welcome(frame, now) {
    const serverTime = Date.parse(frame.server_time ?? "");
    if (Number.isFinite(serverTime)) this.clockOffsetMs = serverTime - now;
    this.user = frame.user;
    this.department = frame.department;
    this.model = frame.model;
    this.mode = frame.mode;
    this.limits = { ...this.limits, ...frame.limits };
    // The server has no memory now: of the session it says nothing, and what is shown stays.
    this.alertsOnly = frame.alerts_only === true;
    if (!frame.resumed && this.items.size > 0 && this._welcomed && !this.alertsOnly) {
      this._divider("reloaded", { reason: frame.gap_reason });
    }
    this._welcomed = true;
    this.alertsAway = false;
    this.book.me = { user_id: frame.user?.user_id ?? "", roles: frame.user?.roles ?? [], department: frame.department?.id ?? "" };
    if (!frame.resumed) this.book.restart();
    // Null: the server does not know it now, and what is shown stays.
    if (frame.presence && frame.user) HANDLERS.presence.call(this, { ...frame.presence, user_id: frame.user.user_id });
    this._changed.add("line");
    this._changed.add("presence");
  },

  snapshot(frame, now) {
    const [first] = this.book.replace(frame.open_alerts, now, this.clockOffsetMs);
    if (first) this.rung = first;
    this._changed.add("alerts");
    if (this.alertsOnly) return;
    for (const open of frame.open_responses ?? []) {
      const item = this._of(open);
      if (item.question && !item.final) item.question.status = "accepted";
    }
    for (const proposed of frame.pending_actions ?? []) {
      if (!this.actions.has(proposed.action_id)) this.actions.set(proposed.action_id, { proposed, status: "proposed" });
    }
    this.patient = frame.active_patient ?? null;
    this._changed.add("patient");
  },

  accepted(frame) {
    if (frame.rate) this.limits = { ...this.limits, remaining: frame.rate.remaining };
    if (!frame.response_id) return;
    const item = this._of(frame);
    if (frame.queue && !item.final) item.queue = frame.queue;
  },

  queue(frame) {
    const item = this._of(frame);
    if (item.final) return;
    item.queue = frame;
    if (frame.state === "restarted") {
      item.stream = null; // its worker is lost, and what it wrote is void
      item.again = true;
    }
  },

  mode(frame) {
    this.mode = frame.mode;
    this.model = frame.model;
    this._changed.add("line");
  },

  facts(frame) {
    const item = this._of(frame);
    const first = item.facts === null;
    item.facts = frame;
    if (!first || item.final) return;
    for (const flag of frame.red_flags ?? []) this._announce("assertive", "announce.red_flag", { text: flag.text });
    this._announce("polite", "announce.facts", { count: (frame.facts ?? []).length });
  },

  ai_delta(frame) {
    const item = this._of(frame);
    if (item.final) return; // the final frame is authoritative
    const attempt = frame.attempt ?? 1;
    // idx counts from 0 on each connection, so 0 starts the text over; a higher attempt is another text.
    if (!item.stream || frame.idx === 0 || attempt > item.stream.attempt) {
      const idx = frame.idx === 0 ? -1 : (item.stream?.idx ?? -1);
      item.stream = { idx, attempt, sections: new Map(), broken: false };
    }
    const { stream } = item;
    if (frame.idx <= stream.idx || attempt < stream.attempt) return;
    // Deltas are a courtesy: what was lost with a line comes with the final frame.
    if (frame.idx > stream.idx + 1) stream.broken = true;
    stream.idx = frame.idx;
    stream.sections.set(frame.section, (stream.sections.get(frame.section) ?? "") + frame.text);
    item.queue = null;
  },

  ai_response(frame) {
    const item = this._of(frame);
    if (item.final) return; // exactly one; a second one changes nothing
    item.final = frame;
    item.stream = null;
    item.queue = null;
    item.cancelling = false;
    if (item.question) {
      item.question.status = "answered";
      item.question.error = null;
    }
    const data = frame.content?.structured_data ?? {};
    for (const proposed of data.actions ?? []) {
      const known = this.actions.get(proposed.action_id);
      if (known) known.proposed = proposed;
      else this.actions.set(proposed.action_id, { proposed, status: "proposed" });
    }
    const told = new Set((item.facts?.red_flags ?? []).map((flag) => flag.id));
    for (const flag of data.red_flags ?? []) {
      if (!told.has(flag.id)) this._announce("assertive", "announce.red_flag", { text: flag.text });
    }
    this._announce("polite", "announce.answer", { text: data.headline || frame.content?.text?.slice(0, 140) || "" });
  },

  stale(frame) {
    const key = this._byResponse.get(frame.response_id);
    const item = key ? this.items.get(key) : undefined;
    if (!item) return;
    item.stale = frame.cause;
    this._changed.add(`x:${key}`);
    this._announce("assertive", "announce.stale", { field: frame.cause?.field ?? "" });
  },

  context(frame) {
    const before = this.patient?.patient_id ?? null;
    const after = frame.patient?.patient_id ?? null;
    this.patient = frame.patient;
    this.patientReason = frame.reason;
    this.layers = frame.layers ?? [];
    this._changed.add("patient");
    if (before !== after) {
      if (frame.patient) this._divider("switched", { name: frame.patient.name, patientId: after });
      else this._divider("closed", {});
      for (const key of this.items.keys()) this._changed.add(`x:${key}`);
      this._announce("assertive", frame.patient ? "announce.patient" : "announce.no_patient", {
        name: frame.patient?.name ?? "",
      });
    }
  },

  action_update(frame) {
    const known = this.actions.get(frame.action_id);
    const action = known ?? {
      proposed: {
        action_id: frame.action_id,
        catalog_id: frame.catalog_id,
        label: frame.label || frame.action_id,
        risk: "confirm",
        bound: { patient_id: frame.patient_id ?? null, context: "" },
      },
      status: "proposed",
    };
    // "prepared" is a step inside a dialog; the chip stays what it was until somebody confirms.
    if (frame.status !== "prepared") action.status = frame.status;
    action.update = { ...frame, confirm_token: undefined }; // a token is for the dialog, never for the model
    this.actions.set(frame.action_id, action);
    for (const item of this.items.values()) {
      const actions = item.final?.content?.structured_data?.actions ?? [];
      if (actions.some((one) => one.action_id === frame.action_id)) this._changed.add(`x:${item.key}`);
    }
    if (frame.status !== "prepared") {
      this._announce("polite", "announce.action", { label: action.proposed.label, status: frame.status });
    }
  },

  system_notification(frame, now) {
    const { alert, rings } = this.book.notified(frame, now, this.clockOffsetMs);
    this._changed.add("alerts");
    this.alertsAway = false;
    // What rings comes up as a dialog, which a screen reader says by itself; the rest is said when there is time.
    if (!this.book.isOpen(alert)) {
      if (alert.addressed || this.book.raisedByMe(alert)) this._announce("polite", "announce.alert_over", { state: alert.state, text: alert.frame.content });
    } else if (!rings && ["raised", "escalated"].includes(frame.event || "raised") && !this.book.raisedByMe(alert)) {
      this._announce("polite", "announce.alert", { priority: frame.priority, text: frame.content });
    }
    if (rings) this.rung = alert;
  },

  alert_update(frame) {
    const told = this.book.updated(frame);
    if (!told) return;
    this._changed.add("alerts");
    const { alert, taken, reminds, handed } = told;
    if (reminds) this.rung = alert;
    if (handed) this._handed(alert, handed);
    if (taken !== null) {
      this.taken = { alert, by: taken };
      this._announce("polite", "announce.alert_taken", { by: taken, text: alert.frame.content });
    } else if (this.book.raisedByMe(alert) && ["accepted", "declined", "unanswered"].includes(frame.event)) {
      this._announce("polite", `announce.alert_${frame.event}`, { by: frame.by, text: alert.frame.content });
    }
  },

  error(frame) {
    if (frame.client_msg_id || !frame.detail?.startsWith("alerts:")) return;
    this.alertsAway = true;
    this.book.snapshotWasBlind();
    this._changed.add("alerts");
  },

  presence(frame) {
    this.presence.set(frame.user_id, frame);
    while (this.presence.size > MAX_PEOPLE) this.presence.delete(this.presence.keys().next().value);
    this._changed.add("presence");
  },
};
