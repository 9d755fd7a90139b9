/**
 * What is known of a department's alerts, and what a person may do with each: no DOM, no socket, no clock.
 *
 * Every alert event of the department comes to every phone; `to` says whose phone rings. The order and the gaps of
 * the log are `ClientSession`'s (protocol.js): what arrives here is each event once and in order. Times are
 * milliseconds of this machine (`now`) unless they are the server's own words.
 */

/** States after which an alert needs nobody any more. */
export const CLOSED = new Set(["resolved", "stood_down", "expired", "done", "closed"]);
/** Events that ring. */
export const RINGING = new Set(["raised", "repeated", "escalated"]);
/** What a person decides; "delivered" and "displayed" a phone says by itself. */
export const DECISIONS = new Set(["accept", "decline", "done", "stand_down"]);
/** What is said about a hand-over; none of them is an answer to the alert itself. */
export const HANDS = new Set(["hand_over", "take_over", "refuse_handover", "revoke_handover"]);
/** Raised this long before it came here: it is said when it came. */
export const LATE_MS = 60_000;
/** "I am there in ... minutes." */
export const ETA_MIN = Object.freeze([2, 5, 10, 15]);
/** Roles that every policy lets call an alert off, beside who raised it (chatd/alerts/data/policies.json). */
export const IN_CHARGE = new Set(["charge_nurse", "charge_doctor"]);
/** Kept in memory; an open alert is never pushed out by newer ones. */
const MAX_ALERTS = 100;
/** Alerts of one's own whose fate is still shown. */
const MAX_RAISES = 20;

const PRIORITY_RANK = { critical: 0, high: 1, normal: 2, low: 3 };

/** The alert's state after a frame; servers of the first version name the event only. */
export function stateOf(frame) {
  if (frame.state) return frame.state;
  if (CLOSED.has(frame.event)) return frame.event;
  return frame.event === "accepted" ? "in_progress" : "delivering";
}

/** Does this frame of the alert log end its alert? */
export function closes(frame) {
  return CLOSED.has(stateOf(frame)) || CLOSED.has(frame.event);
}

/** Does the log say that `answer` (an alert_response) of the person `me` has been taken? */
export function confirms(frame, answer, me) {
  // A hand-over is settled by the server's "accepted" alone, or by the end of the alert.
  if (frame.alert_id !== answer.alert_id || HANDS.has(answer.answer)) return false;
  if (answer.answer === "stand_down") return frame.state === "stood_down" || frame.event === "stood_down";
  if (answer.answer === "done" && (frame.state === "resolved" || frame.event === "resolved")) return true;
  const mine = (frame.who ?? []).filter((one) => one.user_id === me).at(-1);
  if (!mine) return false;
  if (answer.answer === "accept") return mine.answer === "accept" && (!answer.slot || mine.slot === answer.slot);
  return mine.answer === answer.answer;
}

export class AlertBook {
  constructor() {
    this.me = { user_id: "", roles: [], department: "" };
    /** alert_id → alert; see `_alert`. */
    this.alerts = new Map();
    /** alert_id → {id, answer, slot, eta_min, status, code, at}: my answer until the log has it. */
    this.pending = new Map();
    /** "alert_id|giver" → {id, key, answer, colleague, status, code}: what is said of a hand-over until the server has it. */
    this.hands = new Map();
    /** client_msg_id → {id, frame, status, code, alertId, reach, unsure, at}: what I raised here. */
    this.raises = new Map();
    /** The alert that a person has opened from the list, or null. */
    this.opened = null;
    this._serial = 0;
    this._since = new Set();
    this._replaced = { alerts: new Map(), pending: new Map() };
  }

  /** A welcome that does not go on from what we hold: its snapshot follows, and all before it is void. */
  restart() {
    this._since.clear();
  }

  // --- what the log says ---------------------------------------------------------------------------------

  /**
   * A `system_notification`. Returns {alert, rings, isNew}: `rings` where it wants this person now.
   *
   * `clockOffsetMs`: server clock minus ours; how late an alert came is judged by the server's clock.
   */
  notified(frame, now, clockOffsetMs = 0) {
    const key = frame.alert_id || `alert-${(this._serial += 1)}`;
    const known = this.alerts.get(key);
    const alert = known ?? this._alert(key, now + clockOffsetMs);
    alert.frame = frame;
    alert.state = stateOf(frame);
    alert.event = frame.event || "raised";
    alert.step = frame.step ?? alert.step;
    alert.nextEscalationAt = frame.next_escalation_at ?? null;
    alert.resolveBy = frame.resolve_by ?? null;
    alert.by = frame.by || alert.by;
    if (frame.slots) alert.slots = frame.slots;
    if (frame.who) this._who(alert, frame);
    if (frame.handovers) alert.handovers = frame.handovers;
    const named = this.names(frame.to, frame.department) || (frame.also ?? []).some((to) => this.names(to, frame.department));
    alert.addressed ||= named || (frame.reached ?? []).includes(this.me.user_id);
    this.alerts.set(key, alert);
    this._since.add(key);
    const mine = this.mine(alert);
    // Who has declined is not asked again by a repeat, but by a later step that names them.
    const asks = mine?.answer === "decline" && alert.event === "escalated" && this.names(frame.to, frame.department) && this.isVacant(alert);
    if (asks) alert.askedAgain = true;
    const rings = RINGING.has(alert.event) && named && this.needsMe(alert);
    if (rings) {
      alert.due = true;
      this.opened = null; // what was being read is in the list
    }
    this._after(alert);
    this._trim();
    return { alert, rings, isNew: !known };
  }

  /**
   * An `alert_update`. Returns null for an alert that is not known here, else {alert, taken, reminds}: `taken` is the
   * person who has it now, where it was on this person's screen and somebody else has taken it; `reminds` where this
   * person has it and is asked whether it is done. `handed`: the event of a hand-over that is to or from this person.
   */
  updated(frame) {
    const alert = this.alerts.get(frame.alert_id);
    if (!alert) return null;
    const wanted = this.needsMe(alert);
    alert.state = stateOf(frame);
    alert.event = frame.event || alert.event;
    alert.by = frame.by || alert.by;
    if (frame.counts) alert.counts = frame.counts;
    if (frame.who) this._who(alert, frame);
    if (frame.slots?.length) alert.slots = frame.slots;
    alert.step = frame.step ?? alert.step;
    if (frame.next_escalation_at !== undefined) alert.nextEscalationAt = frame.next_escalation_at;
    alert.resolveBy = frame.resolve_by ?? null;
    const handed = this._handed(alert, frame);
    const reminds = frame.event === "reminded" && this.mine(alert)?.answer === "accept";
    if (reminds) this.opened = alert.key;
    const answered = this.mine(alert) !== null;
    const taken = wanted && !answered && !this.needsMe(alert) && !CLOSED.has(alert.state) ? alert.by || this.holders(alert)[0]?.user_id || "" : null;
    this._after(alert);
    return { alert, taken, reminds, handed };
  }

  /**
   * The open alerts of a snapshot, in place of all that were known before `restart`. Answers that are still on their
   * way stay. Returns the alerts that want this person.
   */
  replace(frames, now, clockOffsetMs = 0) {
    const before = this.alerts;
    this._replaced = { alerts: before, pending: new Map(this.pending) };
    this.alerts = new Map([...before].filter(([key]) => this._since.has(key)));
    const wanted = [];
    for (const frame of frames ?? []) {
      if (this.alerts.has(frame.alert_id)) continue;
      const old = before.get(frame.alert_id);
      const { alert } = this.notified(frame, now, clockOffsetMs);
      if (old) {
        alert.arrivedAt = old.arrivedAt;
        alert.addressed ||= old.addressed;
        alert.given = old.given;
        // A snapshot does not name who has answered; what was known stands as long as the state does.
        if (!frame.who && old.state === alert.state) Object.assign(alert, { who: old.who, by: old.by, counts: old.counts });
      }
      alert.due = this.needsMe(alert) && (old?.due ?? true);
      if (alert.due) wanted.push(alert);
    }
    for (const key of this.pending.keys()) if (!this.alerts.has(key)) this.pending.delete(key);
    for (const [place, hand] of this.hands) if (!this.alerts.has(hand.key)) this.hands.delete(place);
    if (!this.alerts.has(this.opened)) this.opened = null;
    return wanted;
  }

  /** The snapshot came without the alerts, because the ledger could not be asked: what was known still stands. */
  snapshotWasBlind() {
    for (const [key, alert] of this._replaced.alerts) if (!this.alerts.has(key)) this.alerts.set(key, alert);
    for (const [key, answer] of this._replaced.pending) if (!this.pending.has(key)) this.pending.set(key, answer);
  }

  // --- what the person does ------------------------------------------------------------------------------

  /** An answer goes out under `id`. False, and nothing changes, while another one is on its way. */
  answer(key, { id, answer, slot = null, eta_min = null, reason = null }, now) {
    const known = this.pending.get(key);
    if (!this.alerts.has(key) || (known && ["waiting", "sent", "retrying"].includes(known.status))) return false;
    this.alerts.get(key).askedAgain = false;
    this.pending.set(key, { id, answer, slot, eta_min, reason, status: "waiting", code: null, at: now });
    return true;
  }

  /** Something about a hand-over goes out under `id`. False, and nothing changes, while the last such is on its way. */
  hand(key, { id, giver, answer, colleague }) {
    const place = `${key}|${giver}`;
    if (!this.alerts.has(key) || ["waiting", "sent", "retrying"].includes(this.hands.get(place)?.status)) return false;
    this.hands.set(place, { id, key, answer, colleague, status: "waiting", code: null });
    return true;
  }

  handOf(key, giver) {
    return this.hands.get(`${key}|${giver}`) ?? null;
  }

  /** An alert that this person raises goes out under `id`. */
  raise(id, frame, now) {
    this.raises.set(id, { id, frame, status: "waiting", code: null, alertId: null, reach: null, unsure: false, at: now });
    for (const [key, one] of this.raises) {
      if (this.raises.size <= MAX_RAISES) break;
      if (["accepted", "failed", "withdrawn"].includes(one.status)) this.raises.delete(key);
    }
  }

  /** What the session says of a command: true if it was one of these. */
  outgoing({ id, status, code = null, alertId = null, reach = null, unsure = false }) {
    const raised = this.raises.get(id);
    if (raised) {
      Object.assign(raised, { status, code, unsure, alertId: alertId ?? raised.alertId, reach: reach ?? raised.reach });
      return true;
    }
    for (const [place, hand] of this.hands) {
      if (hand.id !== id) continue;
      // The log tells what has become of it.
      if (status === "accepted" || (status === "failed" && code === "alert_closed")) this.hands.delete(place);
      else Object.assign(hand, { status, code });
      return true;
    }
    for (const [key, pending] of this.pending) {
      if (pending.id !== id) continue;
      if (status === "failed" && code === "alert_closed") this.pending.delete(key);
      else Object.assign(pending, { status: status === "accepted" ? "confirmed" : status, code });
      const alert = this.alerts.get(key);
      if (alert) this._after(alert);
      return true;
    }
    return false;
  }

  forgetRaise(id) {
    this.raises.delete(id);
  }

  /** Not now: it stays in the list and comes back with the next ring. */
  later(key) {
    const alert = this.alerts.get(key);
    if (alert) alert.due = false;
    if (this.opened === key) this.opened = null;
  }

  open(key) {
    if (this.alerts.has(key)) this.opened = key;
  }

  // --- what is asked of it -------------------------------------------------------------------------------

  /** Does `to` name this person? Nobody in particular is the whole department. */
  names(to, department) {
    if (!to || (!to.user && !to.role && !to.department)) return !department || department === this.me.department;
    if (to.user) return to.user === this.me.user_id;
    if (to.role) return this.me.roles.includes(to.role);
    return to.department === this.me.department;
  }

  isOpen(alert) {
    return !CLOSED.has(alert.state);
  }

  /** My last answer, as far as anybody knows: {answer, slot, eta_at}, or null. */
  mine(alert) {
    const pending = this.pending.get(alert.key);
    if (pending?.status === "confirmed") return { answer: pending.answer, slot: pending.slot, eta_at: null };
    return alert.who.filter((one) => one.user_id === this.me.user_id).at(-1) ?? null;
  }

  raisedByMe(alert) {
    return alert.frame.from !== "" && alert.frame.from === this.me.user_id;
  }

  freeSlots(alert) {
    return alert.slots.filter((slot) => !slot.by);
  }

  /** The empty places that this person's roles may take; a place without roles is anybody's. */
  slotsForMe(alert) {
    return this.freeSlots(alert).filter((slot) => {
      const roles = [...(slot.roles ?? []), ...(slot.roles_named ?? [])];
      return roles.length === 0 || roles.some((role) => this.me.roles.includes(role));
    });
  }

  /** Why somebody declines: the canned answers of the alert that say no. */
  declineOptions(alert) {
    return (alert.frame.options ?? []).filter((one) => one.answer === "decline");
  }

  /** Still somebody's to take: nobody has it, or a place of its team is empty. */
  isVacant(alert) {
    if (!this.isOpen(alert)) return false;
    return alert.slots.length > 0 ? this.freeSlots(alert).length > 0 : alert.state !== "in_progress";
  }

  needsMe(alert) {
    const mine = this.mine(alert);
    const answered = mine !== null && !(mine.answer === "decline" && alert.askedAgain);
    return alert.addressed && !this.raisedByMe(alert) && this.isVacant(alert) && !answered;
  }

  /** What this person would leave behind: open alerts that they have, or that call them and nobody has. */
  loops() {
    return this.list().filter((alert) => alert.frame.requires_action && alert.frame.alert_id && (this.mine(alert)?.answer === "accept" || this.needsMe(alert)));
  }

  /** What this person is asked to take over: [{alert, offer}], an alert as often as somebody asks. */
  asked() {
    const me = this.me.user_id;
    return this.list().flatMap((alert) => alert.handovers.filter((offer) => offer.to === me).map((offer) => ({ alert, offer })));
  }

  /** The offer of `giver` that stands, or null. */
  offerOf(alert, giver) {
    return alert.handovers.find((offer) => offer.from === giver) ?? null;
  }

  /** Which answers this person may give now. */
  may(alert) {
    const answer = this.mine(alert)?.answer ?? null;
    const open = this.isOpen(alert) && Boolean(alert.frame.alert_id);
    const asked = open && alert.addressed && !this.raisedByMe(alert);
    const has = answer === "accept";
    const action = alert.frame.requires_action;
    return {
      accept: asked && !has && answer !== "done" && this.isVacant(alert) && (alert.slots.length === 0 || this.slotsForMe(alert).length > 0),
      decline: asked && action && answer !== "done" && (has || (answer !== "decline" && this.isVacant(alert))),
      // A team is not sent home before it is whole.
      done: open && action && has && this.freeSlots(alert).length === 0,
      stand_down: open && (this.raisedByMe(alert) || this.me.roles.some((role) => IN_CHARGE.has(role))),
    };
  }

  /** Who has accepted or finished it, with their place in the team: [{user_id, answer, eta_at, slot}]. */
  holders(alert) {
    const last = new Map();
    for (const one of alert.who) last.set(one.user_id, one);
    const found = [...last.values()].filter((one) => one.answer === "accept" || one.answer === "done");
    for (const slot of alert.slots) {
      if (slot.by && !found.some((one) => one.user_id === slot.by)) found.push({ user_id: slot.by, answer: "accept", eta_at: slot.eta_at ?? null, slot: slot.id });
    }
    return found;
  }

  decliners(alert) {
    const last = new Map();
    for (const one of alert.who) last.set(one.user_id, one);
    return [...last.values()].filter((one) => one.answer === "decline");
  }

  /** {filled, total, withEta} of a team's places, or null where it has none. */
  places(alert) {
    if (alert.slots.length === 0) return null;
    const filled = alert.slots.filter((slot) => slot.by);
    return { filled: filled.length, total: alert.slots.length, withEta: filled.filter((slot) => slot.eta_at).length };
  }

  raisedAt(alert) {
    const at = Date.parse(alert.frame.raised_at || alert.frame.timestamp || "");
    return Number.isFinite(at) ? at : alert.arrivedAt;
  }

  /** It came here more than a minute after it was raised. */
  isLate(alert) {
    return alert.arrivedAt - this.raisedAt(alert) > LATE_MS;
  }

  /** Open alerts: the most urgent first, of these the ones that nobody has, then the oldest. */
  list() {
    return [...this.alerts.values()].filter((one) => this.isOpen(one)).sort((a, b) => this._order(a, b));
  }

  /** Open alerts that want this person on the screen now, the first one first. */
  due() {
    return this.list().filter((alert) => alert.due && this.needsMe(alert));
  }

  /**
   * Which alert the sheet shows: the one it shows already (`shown`) as long as it wants this person and nothing more
   * urgent does, else the most urgent one, else the one that was opened from the list.
   */
  sheet(shown) {
    const due = this.due();
    const current = this.alerts.get(shown);
    const answering = current && ["waiting", "sent", "retrying"].includes(this.pending.get(shown)?.status);
    if (due.length > 0) {
      const stays = current && (due.includes(current) || answering) && rank(due[0]) >= rank(current);
      return stays ? current : due[0];
    }
    return this.alerts.get(this.opened) ?? null;
  }

  // --- inside --------------------------------------------------------------------------------------------

  _alert(key, arrivedAt) {
    return {
      key,
      frame: null,
      state: "delivering",
      event: "raised",
      by: "",
      who: [],
      slots: [],
      counts: null,
      step: 0,
      nextEscalationAt: null,
      resolveBy: null,
      arrivedAt,
      addressed: false,
      due: false,
      askedAgain: false,
      handovers: [],
      given: null,
    };
  }

  /** The offers that stand, and how the last one of this person has ended. Returns the event if it is theirs, or null. */
  _handed(alert, frame) {
    if (frame.handovers) alert.handovers = frame.handovers;
    const about = frame.handover;
    const me = this.me.user_id;
    if (!about || (about.from !== me && about.to !== me)) return null;
    if (about.from === me) alert.given = frame.event === "handover_offered" ? null : { event: frame.event, to: about.to, at: Date.parse(frame.timestamp ?? "") };
    if (frame.event === "handed_over" && about.to === me) alert.addressed = true;
    return { event: frame.event, from: about.from, to: about.to };
  }

  /** The log's word on who has answered; it ends what was only known from the server's "accepted". */
  _who(alert, frame) {
    alert.who = frame.who;
    const pending = this.pending.get(alert.key);
    if (!pending) return;
    if (pending.status === "confirmed" || confirms(frame, { ...pending, alert_id: alert.key }, this.me.user_id)) this.pending.delete(alert.key);
  }

  _after(alert) {
    if (!this.needsMe(alert)) alert.due = false;
    if (this.isOpen(alert)) return;
    this.pending.delete(alert.key);
    for (const [place, hand] of this.hands) if (hand.key === alert.key) this.hands.delete(place);
    if (this.opened === alert.key) this.opened = null;
  }

  _trim() {
    for (const [key, one] of this.alerts) {
      if (this.alerts.size <= MAX_ALERTS) break;
      if (this.isOpen(one)) continue;
      this.alerts.delete(key);
      this._since.delete(key);
    }
  }

  _order(a, b) {
    return rank(a) - rank(b) || Number(this.isVacant(b)) - Number(this.isVacant(a)) || this.raisedAt(a) - this.raisedAt(b) || (a.frame.alert_seq ?? 0) - (b.frame.alert_seq ?? 0);
  }
}

export function rank(alert) {
  return PRIORITY_RANK[alert.frame.priority] ?? 2;
}

/**
 * How a wall board fills its height: everything that fits, critical alerts always.
 *
 * `fits(density, count)` says whether `count` alerts of a list fit at a density (0 is the largest type). Returns
 * {density, count} with count at least `critical`: type shrinks before an alert is left out, and only others than
 * critical ones are left out. What fits is asked a few times only, since each time the browser lays the board out.
 */
export function boardPlan(total, critical, densities, fits) {
  for (let density = 0; density < densities; density += 1) {
    if (fits(density, total)) return { density, count: total };
  }
  const last = densities - 1;
  // The type a board keeps for what it leaves out: one size above the smallest, if the critical ones fit there.
  for (let density = Math.max(0, last - 1); density <= last; density += 1) {
    let [low, high] = [Math.max(1, critical) - 1, total - 1]; // the most that fit lie in (low, high], or nothing does
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (fits(density, middle)) low = middle;
      else high = middle - 1;
    }
    if (low >= Math.max(1, critical)) return { density, count: low };
  }
  return { density: last, count: critical };
}
