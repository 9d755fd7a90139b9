/**
 * <alert-sheet>: an alert that wants this person, over whatever is open, with its answers under the thumb.
 *
 * Nothing moves under a finger: while one is down nothing is drawn again, and for a moment after anything has come
 * up or changed its place no press counts, so that a tap meant for what was there before answers no alert.
 */

import { ETA_MIN } from "./alerts.js";
import { ago, etaText, myAnswerText, optionName, personName, prioritySign, priorityOf, slotList, slotName, targetName, until, whoText } from "./alert-words.js";
import { emit, fill, h, icon, say } from "./dom.js";

/** No press counts for this long after the sheet has come up or its buttons have changed. */
export const GUARD_MS = 600;
/** A finger that never leaves (a lost pointer) holds a change back for no longer than this. */
const HOLD_MS = 2_000;

export class AlertSheet extends HTMLElement {
  show(view) {
    this._view = view;
    this._build();
    if (this._held) {
      this._later = true;
      return;
    }
    this._later = false;
    const { book } = view.conversation;
    const alert = book.sheet(this._key);
    if (!alert) {
      this._close();
      return;
    }
    const isOther = alert.key !== this._key;
    if (isOther) Object.assign(this, { _key: alert.key, _panel: "answer", _eta: null });
    if (!book.may(alert).decline) this._panel = "answer";
    this._draw(alert, isOther);
    if (!this._dialog.open) {
      this._dialog.showModal();
      this._title.focus();
    } else if (isOther) {
      this._title.focus();
    }
    this._seen(alert);
  }

  /** Words that change with the clock only. */
  tick() {
    if (this._dialog?.open && this._view && !this._held) this._drawWho(this._view.conversation.alerts.get(this._key));
  }

  disconnectedCallback() {
    this._key = null;
    this._dialog = null;
    this.replaceChildren();
  }

  _build() {
    if (this._dialog) return;
    this._held = false;
    this._panel = "answer";
    this._title = h("h2", { id: "sheet-title", tabindex: "-1", class: "sheet-title" });
    this._head = h("div", { class: "sheet-head" });
    this._text = h("p", { id: "sheet-text", class: "prose sheet-text", dir: "auto" });
    this._facts = h("div", { class: "sheet-facts" });
    this._who = h("div", { class: "sheet-who" });
    this._more = h("div", { class: "sheet-more", role: "status" });
    this._buttons = h("div", { class: "sheet-buttons" });
    this._dialog = h(
      "dialog",
      {
        class: "sheet",
        role: "alertdialog",
        "aria-labelledby": "sheet-title",
        "aria-describedby": "sheet-text",
        oncancel: (event) => {
          event.preventDefault();
          if (this._ready()) emit(this, "alert-later", this._key);
        },
        onclose: () => {
          // A browser lets nobody be locked in: a second Esc closes it whatever the page says.
          if (this._key !== null) emit(this, "alert-later", this._key);
        },
        onpointerdown: () => this._hold(),
        onpointerup: () => this._release(),
        onpointercancel: () => this._release(),
      },
      this._head,
      h("div", { class: "sheet-scroll" }, this._title, this._text, this._facts, this._who),
      this._more,
      this._buttons,
    );
    this.replaceChildren(this._dialog);
  }

  _close() {
    this._key = null;
    this._drawn = null;
    if (!this._dialog?.open) return;
    this._dialog.close();
    emit(this, "sheet-gone", GUARD_MS);
  }

  _hold() {
    this._held = true;
    clearTimeout(this._holdTimer);
    this._holdTimer = setTimeout(() => this._release(), HOLD_MS);
  }

  _release() {
    clearTimeout(this._holdTimer);
    // The click comes after the pointer has gone up; only then may what was pressed be drawn again.
    setTimeout(() => {
      this._held = false;
      if (this._later && this._view) this.show(this._view);
    });
  }

  _guard() {
    this._dialog.setAttribute("data-guarded", "");
    clearTimeout(this._guardTimer);
    this._guardTimer = setTimeout(() => this._dialog?.removeAttribute("data-guarded"), GUARD_MS);
  }

  _ready() {
    return !this._dialog.hasAttribute("data-guarded");
  }

  /** Tell that it is on the screen as soon as the browser has really drawn it; a hidden page draws nothing. */
  _seen(alert) {
    if (this._told === alert.key) return;
    const { key } = alert;
    requestAnimationFrame(() =>
      requestAnimationFrame(() => {
        if (!this._dialog?.open || this._key !== key || this._told === key || document.visibilityState !== "visible") return;
        this._told = key;
        emit(this, "alert-seen", key);
      }),
    );
  }

  // --- drawing -------------------------------------------------------------------------------------------

  _draw(alert, isOther) {
    const view = this._view;
    const { texts } = view;
    const t = texts.t.bind(texts);
    const { frame } = alert;
    const { book } = view.conversation;
    this._dialog.className = `sheet sheet-${priorityOf(alert)}`;
    fill(
      this._head,
      prioritySign(texts, alert),
      frame.drill && h("span", { class: "mark mark-drill" }, t("alerts.drill")),
      ago(view, book.raisedAt(alert)),
      h("button", { class: "icon-button sheet-later", type: "button", "aria-label": t("alerts.later"), title: t("alerts.later"), "data-key": "sheet-later", onclick: () => this._press(() => emit(this, "alert-later", this._key)) }, icon("close")),
    );
    const priority = texts.of("alerts.priority", frame.priority);
    say(this._title, [t("alerts.title", { priority }), frame.drill && t("alerts.drill")].filter(Boolean).join(" · "));
    say(this._text, frame.content);
    fill(
      this._facts,
      h("p", { class: "sheet-patient", dir: "auto" }, icon("person"), frame.patient_id ? view.patientLabel(frame.patient_id) : t("alerts.no_patient")),
      h(
        "p",
        { class: "small", dir: "auto" },
        [t("alerts.from", { from: personName(view, frame.from) }), t("alerts.for", { to: targetName(view, frame) }), t("alerts.raised_at", { time: texts.time(new Date(book.raisedAt(alert)).toISOString(), view.now()) })].join(" · "),
      ),
      book.isLate(alert) && h("p", { class: "banner banner-warning" }, icon("clock"), t("alerts.late", { clock: texts.clock(alert.arrivedAt) })),
      alert.event === "repeated" && h("p", { class: "small" }, t("alerts.again")),
      alert.event === "escalated" && h("p", { class: "banner banner-warning" }, icon("up"), t("alerts.escalated_to", { to: targetName(view, frame) })),
      frame.bundled > 0 && h("p", { class: "small" }, t("alerts.bundled", { count: frame.bundled })),
    );
    this._drawWho(alert);
    this._drawMore(alert);
    this._drawButtons(alert, isOther);
  }

  _drawWho(alert) {
    if (!alert) return;
    const view = this._view;
    const t = view.texts.t.bind(view.texts);
    const { book } = view.conversation;
    const names = book.holders(alert).map((one) => [personName(view, one.user_id), etaText(view, one.eta_at)].filter(Boolean).join(" · "));
    const declined = book.decliners(alert).map((one) => [personName(view, one.user_id), one.reason && reasonName(view.texts, alert, one.reason)].filter(Boolean).join(": "));
    const key = JSON.stringify([view.texts.lang, whoText(view, alert), names, declined, alert.slots.map((slot) => [slot, etaText(view, slot.eta_at)]), alert.counts, alert.nextEscalationAt, alert.resolveBy]);
    if (key === this._whoKey) return;
    this._whoKey = key;
    fill(
      this._who,
      h("p", { class: "sheet-has" }, icon("people"), h("strong", {}, whoText(view, alert))),
      slotList(view, alert),
      declined.length > 0 && h("p", { class: "small" }, t("alerts.declined_by", { names: declined.join("; ") })),
      alert.counts && book.raisedByMe(alert) && h("p", { class: "small" }, t("alerts.counts", alert.counts)),
      book.isVacant(alert) && alert.nextEscalationAt && h("p", { class: "small" }, until(view, alert.nextEscalationAt)),
      alert.resolveBy && h("p", { class: "small" }, t("alerts.resolve_by", { time: view.texts.time(alert.resolveBy, view.now()) })),
    );
  }

  _drawMore(alert) {
    const view = this._view;
    const others = view.conversation.book.due().filter((one) => one.key !== alert.key);
    const text = others.length === 0 ? "" : view.texts.t(others.length === 1 ? "alerts.one_more" : "alerts.more", { count: others.length, text: others[0].frame.content });
    say(this._more, text);
  }

  /** The answers; an unchanged row is left alone, a changed one takes no press for a moment. */
  _drawButtons(alert, isOther) {
    const view = this._view;
    const { book } = view.conversation;
    const may = book.may(alert);
    const pending = book.pending.get(alert.key);
    const onTheWay = pending && ["waiting", "sent", "retrying"].includes(pending.status);
    const said = myAnswerText(view, alert);
    const shape = JSON.stringify([view.texts.lang, alert.key, may, this._panel, onTheWay, said, book.slotsForMe(alert).map((slot) => slot.id), (alert.frame.options ?? []).map((one) => one.id), alert.frame.requires_action]);
    if (!isOther && shape === this._drawn) return;
    this._drawn = shape;
    this._guard();
    const t = view.texts.t.bind(view.texts);
    const status = said && h("p", { class: pending?.status === "failed" ? "banner banner-critical" : "banner banner-info", role: "status" }, icon(pending?.status === "failed" ? "failed" : onTheWay ? "clock" : "tick"), said);
    const rows = onTheWay ? [this._row(this._button("close", t("alerts.close"), "", () => emit(this, "alert-later", alert.key)))] : this._panel === "decline" ? this._declining(alert, t) : this._answers(alert, may, t);
    fill(this._buttons, status, rows);
  }

  _answers(alert, may, t) {
    const view = this._view;
    const { book } = view.conversation;
    const action = alert.frame.requires_action;
    const slots = may.accept ? book.slotsForMe(alert) : [];
    const rows = [];
    if (may.accept && action) rows.push(this._etas(t));
    if (slots.length > 0) {
      rows.push(h("div", { class: "sheet-slots" }, slots.map((slot) => this._button(`slot-${slot.id}`, t("alerts.take", { slot: slotName(view.texts, slot) }), "accept", () => this._answer("accept", { slot: slot.id })))));
    }
    const accept = may.accept && slots.length === 0 && this._button("accept", t(action ? "alerts.accept" : "alerts.seen"), "accept", () => this._answer("accept"));
    const decline = may.decline && this._button("decline", t(book.mine(alert)?.answer === "accept" ? "alerts.give_back" : "alerts.decline"), "decline", () => this._decline(alert));
    const done = may.done && this._button("done", t("alerts.done"), "", () => this._answer("done"));
    const standDown = may.stand_down && this._button("stand_down", t("alerts.stand_down"), "decline", () => this._answer("stand_down"));
    // Where Accept was, "Close" stands afterwards: a second tap must not say that it is done.
    const close = !may.accept && this._button("close", t("alerts.close"), "", () => emit(this, "alert-later", alert.key));
    rows.push(this._row(standDown, decline, done, close, accept));
    return rows;
  }

  _etas(t) {
    const choose = (minutes, event) => {
      this._eta = this._eta === minutes ? null : minutes;
      for (const one of event.currentTarget.parentElement.querySelectorAll("button")) one.setAttribute("aria-pressed", String(one.dataset.key === `eta-${this._eta}`));
    };
    return h(
      "div",
      { class: "sheet-etas", role: "group", "aria-label": t("alerts.eta_choose") },
      h("span", { class: "small", "aria-hidden": "true" }, t("alerts.eta_choose")),
      ETA_MIN.map((minutes) =>
        h("button", { class: "eta", type: "button", "aria-pressed": String(this._eta === minutes), "data-key": `eta-${minutes}`, onclick: (event) => this._press(() => choose(minutes, event)) }, t("alerts.minutes", { count: minutes })),
      ),
    );
  }

  _declining(alert, t) {
    const { texts } = this._view;
    const { book } = this._view.conversation;
    return [
      h("p", { class: "small" }, t("alerts.decline_why")),
      h(
        "div",
        { class: "sheet-slots" },
        book.declineOptions(alert).map((one) => this._button(`why-${one.id}`, optionName(texts, one), "", () => this._answer("decline", { reason: one.reason ?? one.id }))),
      ),
      this._row(
        this._button("why-none", t("alerts.decline_plain"), "decline", () => this._answer("decline")),
        this._button("back", t("action.cancel"), "", () => this._turn("answer")),
      ),
    ];
  }

  _decline(alert) {
    if (this._view.conversation.book.declineOptions(alert).length > 0) this._turn("decline");
    else this._answer("decline");
  }

  _turn(panel) {
    this._panel = panel;
    this._later = true; // drawn when the finger is gone
    if (!this._held) this.show(this._view);
  }

  _answer(answer, more = {}) {
    const detail = { key: this._key, answer, slot: more.slot ?? null, reason: more.reason ?? null, eta_min: answer === "accept" ? this._eta : null };
    this._panel = "answer";
    emit(this, "alert", detail);
  }

  _row(...buttons) {
    return h("div", { class: "sheet-row" }, buttons);
  }

  _button(key, label, kind, onpress) {
    return h("button", { class: `button big ${kind && `big-${kind}`}`, type: "button", "data-key": `sheet-${key}`, onclick: () => this._press(onpress) }, label);
  }

  _press(action) {
    if (this._ready()) action();
  }
}

/** A reason of the alert's own canned answers in words; any other is shown as it came. */
function reasonName(texts, alert, reason) {
  const option = (alert.frame.options ?? []).find((one) => (one.reason ?? one.id) === reason);
  return option ? optionName(texts, option) : reason;
}

customElements.define("alert-sheet", AlertSheet);
