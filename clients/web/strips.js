/** <alert-strip>: the open alerts and who has them. <status-line>: the line and the mode. */

import { ago, coverage, myAnswerText, personName, prioritySign, priorityOf, reachText, until, whoText } from "./alert-words.js";
import { emit, fill, h, icon, say } from "./dom.js";

const SETTLED = new Set(["accepted", "failed", "withdrawn"]);

/**
 * One line of fixed height: the most urgent thing, and how many more. It is there without alerts too, so that a new
 * one moves nothing that a finger is about to press.
 */
export class AlertStrip extends HTMLElement {
  show(view) {
    this._view = view;
    const t = view.texts.t.bind(view.texts);
    const { book } = view.conversation;
    const alerts = book.list();
    // What was raised here and is not with the server is the worst to overlook.
    const [raise] = [...book.raises.values()].filter((one) => !["accepted", "withdrawn"].includes(one.status));
    const [first] = alerts;
    const more = alerts.length + Number(Boolean(raise)) - 1;
    const asked = book.asked().length;
    this.setAttribute("role", "region");
    this.setAttribute("aria-label", t("alerts.region"));
    const kind = raise ? "alert-high" : first ? `alert-${priorityOf(first)}` : "alert-none";
    fill(
      this,
      h(
        "button",
        { class: `alert ${kind}`, type: "button", "data-key": "alert-bar", "aria-haspopup": "dialog", onclick: () => emit(this, "list-alerts") },
        raise
          ? [h("span", { class: "alert-sign" }, icon("clock"), h("strong", {}, raiseText(view, raise))), h("span", { class: "alert-content", dir: "auto" }, raise.frame.content)]
          : first
            ? [prioritySign(view.texts, first), h("span", { class: "alert-content", dir: "auto" }, first.frame.content), h("span", { class: "alert-who small", "data-who": first.key }, whoText(view, first))]
            : h("span", { class: "alert-sign" }, icon("alert"), t("board.none")),
        asked > 0 && h("span", { class: "mark alert-more" }, icon("people"), h("span", { class: "asked-long" }, t("handover.asked_count", { count: asked })), h("span", { class: "asked-short", "aria-hidden": "true" }, String(asked))),
        more > 0 && h("span", { class: "mark alert-more" }, t("alerts.plus", { count: more })),
      ),
    );
  }

  tick() {
    tickWho(this, this._view);
  }
}

/** Who-has-it lines hold times of arrival, which pass. */
export function tickWho(element, view) {
  for (const line of element.querySelectorAll("[data-who]")) {
    const alert = view.conversation.alerts.get(line.dataset.who);
    if (alert) say(line, whoText(view, alert));
  }
}

/** One open alert of the list: who has it, how old it is, what comes next. */
export function alertRow(view, element, alert) {
  const t = view.texts.t.bind(view.texts);
  const { frame, key } = alert;
  const { book } = view.conversation;
  const mine = myAnswerText(view, alert);
  return h(
    "li",
    {},
    h(
      "button",
      { class: `alert-row alert-${priorityOf(alert)}`, type: "button", "data-key": `alert-${key}`, "aria-haspopup": "dialog", onclick: () => emit(element, "open-alert", key) },
      h("span", { class: "alert-top" }, prioritySign(view.texts, alert), frame.drill && h("span", { class: "mark mark-drill" }, t("alerts.drill")), ago(view, book.raisedAt(alert))),
      h("span", { class: "alert-content", dir: "auto" }, frame.content),
      h(
        "span",
        { class: "alert-meta small" },
        h("span", { class: "alert-who", "data-who": key }, whoText(view, alert)),
        frame.patient_id && h("span", { dir: "auto" }, view.patientLabel(frame.patient_id)),
        mine && h("span", { class: "mark" }, mine),
        alert.handovers.map((offer) => h("span", { class: "mark" }, t("handover.between", { from: personName(view, offer.from), to: personName(view, offer.to) }))),
        book.isVacant(alert) && alert.nextEscalationAt && until(view, alert.nextEscalationAt),
      ),
    ),
  );
}

/** What has become of an alert that was raised here: nothing is called sent before the server has it. */
export function raiseRow(view, element, one) {
  const t = view.texts.t.bind(view.texts);
  const button = (name, label, event, primary = false) => h("button", { class: primary ? "button primary" : "button", type: "button", "data-key": `raise-${one.id}-${name}`, onclick: () => emit(element, event, one.id) }, label);
  const { status } = one;
  return h(
    "li",
    { class: `raise ${status === "accepted" ? "raise-taken" : "raise-open"}` },
    h("p", { class: "raise-state" }, icon(status === "accepted" ? "tick" : status === "failed" ? "failed" : "clock"), h("strong", {}, raiseText(view, one))),
    h("p", { class: "alert-content", dir: "auto" }, one.frame.content),
    one.reach && reachList(view, one.reach),
    h(
      "div",
      { class: "dialog-buttons" },
      status === "old" && button("again", t("raise.send_anyway"), "raise-again", true),
      SETTLED.has(status) ? button("hide", t("alerts.hide"), "raise-hide") : button("withdraw", t("raise.withdraw"), "raise-withdraw"),
    ),
  );
}

/** Where an alert of one's own stands, in words. */
export function raiseText(view, one) {
  const t = view.texts.t.bind(view.texts);
  if (one.status === "accepted") return t("raise.accepted");
  if (one.status === "failed") return t("raise.failed", { text: view.texts.error(one.code) });
  if (one.status === "old") return t("raise.old");
  if (one.status === "withdrawn") return t(one.unsure ? "raise.unsure" : "raise.withdrawn");
  return one.status === "sent" && view.isLive() ? t("raise.sending") : t("raise.not_sent");
}

/** Whom the alert reaches, counted, and who is covered by whom. */
export function reachList(view, reach) {
  const t = view.texts.t.bind(view.texts);
  const covered = coverage(reach);
  const online = Array.isArray(reach.online) ? reach.online.length : 0;
  const push = Array.isArray(reach.push) ? reach.push.length : 0;
  return h(
    "div",
    { class: "reach" },
    h("p", {}, reachText(view, reach)),
    online + push === 0 && h("p", { class: "banner banner-critical" }, icon("failed"), t("reach.nobody")),
    covered.length > 0 &&
      h(
        "ul",
        { class: "plain small" },
        covered.map(({ user, by }) => h("li", { dir: "auto" }, by ? t("reach.covered", { user: personName(view, user), by: personName(view, by) }) : t("reach.uncovered", { user: personName(view, user) }))),
      ),
  );
}

export class StatusLine extends HTMLElement {
  show(view) {
    const t = view.texts.t.bind(view.texts);
    const { phase, offlineSince } = view.line;
    const live = phase === "live";
    const first = phase !== "live" && !view.wasLive;
    const mode = view.conversation.alertsOnly ? "alerts_only" : view.conversation.mode;
    this.setAttribute("role", "status");
    this.className = `status-line ${live ? `is-live mode-${mode}` : first ? "is-connecting" : "is-offline"}`;
    fill(
      this,
      h("span", { class: "dot", "aria-hidden": "true" }),
      h("span", {}, live ? t("line.connected") : first ? t("line.connecting") : t("line.reconnecting", { time: view.texts.clock(offlineSince ?? view.now()) })),
      live && h("span", { class: "mode" }, h("span", { class: "mode-long" }, t(`mode.${mode}`)), h("span", { class: "mode-short", "aria-hidden": "true" }, t(`mode.short.${mode}`))),
      !live && !first && h("button", { class: "link", type: "button", "data-key": "retry-line", onclick: () => emit(this, "retry-line") }, t("line.retry")),
    );
  }
}

customElements.define("alert-strip", AlertStrip);
customElements.define("status-line", StatusLine);
