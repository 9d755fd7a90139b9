/**
 * <wall-board>: the open alerts of a department on a wall, to be read from three metres. Nothing scrolls: critical
 * alerts are always there, the type shrinks before any other is left out, and what is left out is counted.
 */

import { boardPlan } from "./alerts.js";
import { ago, etaText, personName, prioritySign, priorityOf, slotName, targetName, until, whoText } from "./alert-words.js";
import { fill, h, icon, say } from "./dom.js";

const DENSITIES = 5;
/** Without a word from the server for this long the board says that it may be out of date, in large letters. */
export const SILENT_MS = 30_000;

export class WallBoard extends HTMLElement {
  show(view) {
    this._view = view;
    if (!this._list) this._build();
    // Once for all events of a frame: a storm of alerts must not keep the board from showing any.
    this._frame ??= requestAnimationFrame(() => {
      this._frame = null;
      if (this.isConnected) this._draw();
    });
  }

  disconnectedCallback() {
    this._sizes?.disconnect();
    cancelAnimationFrame(this._frame);
    this._frame = null;
  }

  tick() {
    if (!this._view) return;
    this._drawLine();
    for (const line of this.querySelectorAll("[data-who]")) {
      const alert = this._view.conversation.alerts.get(line.dataset.who);
      if (alert) say(line, whoText(this._view, alert));
    }
    for (const line of this.querySelectorAll("[data-eta]")) say(line, etaText(this._view, line.dataset.eta));
  }

  _build() {
    this._name = h("h1", { class: "board-name", dir: "auto" });
    this._clock = h("span", { class: "board-clock" });
    this._counts = h("p", { class: "board-counts", role: "status" });
    this._line = h("p", { class: "board-line" });
    this._list = h("ul", { class: "plain board-list" });
    this._left = h("p", { class: "board-left" });
    this.replaceChildren(h("main", { class: "board" }, h("header", { class: "board-head" }, this._name, this._counts, this._clock), this._line, this._list, this._left));
    this._sizes = new ResizeObserver(() => this._view && this._fit());
    this._sizes.observe(this);
  }

  _draw() {
    const view = this._view;
    const t = view.texts.t.bind(view.texts);
    const { book, department } = view.conversation;
    const alerts = book.list();
    say(this._name, department?.name ?? view.departmentId);
    const vacant = alerts.filter((one) => book.isVacant(one)).length;
    say(this._counts, alerts.length === 0 ? t("board.none") : t("board.counts", { open: alerts.length, vacant }));
    this._list.setAttribute("aria-label", t("alerts.region"));
    this._alerts = alerts;
    fill(this._list, alerts.map((alert) => this._card(view, t, alert)));
    this._drawLine();
    this._fit();
  }

  _drawLine() {
    const view = this._view;
    const t = view.texts.t.bind(view.texts);
    const heard = view.heardAt();
    const silent = heard === null || !view.isLive() || view.now() - heard > SILENT_MS;
    this._line.className = silent ? "board-line board-silent" : "board-line";
    if (view.conversation.alertsAway) this._line.className = "board-line board-silent";
    const text = view.conversation.alertsAway ? t("alerts.away") : heard === null ? t("board.connecting") : t(silent ? "board.silent" : "board.heard", { clock: view.texts.clockSeconds(heard + view.conversation.clockOffsetMs) });
    if (text !== this._lineText) {
      this._lineText = text;
      fill(this._line, icon(silent || view.conversation.alertsAway ? "failed" : "tick"), h("span", {}, text));
    }
    say(this._clock, view.texts.clock(view.now() + view.conversation.clockOffsetMs));
  }

  _card(view, t, alert) {
    const { frame } = alert;
    const { book } = view.conversation;
    const vacant = book.isVacant(alert);
    return h(
      "li",
      { class: `board-card alert-${priorityOf(alert)} ${vacant ? "board-vacant" : "board-taken"}`, "data-alert": alert.key },
      h("p", { class: "board-top" }, prioritySign(view.texts, alert), frame.drill && h("span", { class: "mark mark-drill" }, t("alerts.drill")), h("span", { class: "board-to", dir: "auto" }, targetName(view, frame)), ago(view, book.raisedAt(alert))),
      h("p", { class: "board-text", dir: "auto" }, frame.content),
      h(
        "p",
        { class: "board-who" },
        h("span", { class: "board-has" }, icon(vacant ? "missing" : "tick"), h("strong", { "data-who": alert.key, dir: "auto" }, whoText(view, alert))),
        frame.patient_id && h("span", { dir: "auto" }, t("patient.record", { id: frame.patient_id })),
        vacant && alert.nextEscalationAt && until(view, alert.nextEscalationAt),
      ),
      alert.slots.length > 0 &&
        h(
          "ul",
          { class: "plain board-slots", "aria-label": t("alerts.team") },
          alert.slots.map((slot) =>
            h("li", { class: slot.by ? "slot-filled" : "slot-empty" }, icon(slot.by ? "tick" : "missing"), h("span", {}, `${slotName(view.texts, slot)}: `), h("span", { dir: "auto" }, slot.by ? personName(view, slot.by) : t("alerts.slot_empty")), slot.by && slot.eta_at && h("span", { "data-eta": slot.eta_at }, etaText(view, slot.eta_at))),
          ),
        ),
    );
  }

  /** Choose the type's size and how many fit; see `boardPlan`. */
  _fit() {
    const cards = [...this._list.children];
    const alerts = this._alerts ?? [];
    const critical = alerts.filter((one) => one.frame.priority === "critical").length;
    const apply = (density, count) => {
      this._list.className = `plain board-list density-${density}`;
      cards.forEach((card, index) => (card.hidden = index >= count));
      say(this._left, count < alerts.length ? this._view.texts.t("board.left", { count: alerts.length - count }) : "");
      this._left.hidden = count >= alerts.length;
    };
    const fits = (density, count) => {
      apply(density, count);
      return this._list.scrollHeight <= this._list.clientHeight + 1;
    };
    const { density, count } = boardPlan(alerts.length, critical, DENSITIES, fits);
    apply(density, count);
  }
}

customElements.define("wall-board", WallBoard);
