/** <alert-strip>: open alerts with their answers. <status-line>: the line and the mode. */

import { emit, fill, h, icon } from "./dom.js";

const ANSWERS = new Set(["accept", "decline", "done", "stand_down"]);

export class AlertStrip extends HTMLElement {
  show(view) {
    const t = view.texts.t.bind(view.texts);
    const alerts = view.conversation.openAlerts();
    this.setAttribute("role", "region");
    this.setAttribute("aria-label", t("alerts.region"));
    this.hidden = alerts.length === 0;
    fill(this, h("ul", { class: "alerts" }, alerts.map((alert) => this._alert(view, t, alert))));
  }

  _alert(view, t, alert) {
    const { frame } = alert;
    const state = view.texts.has(`alerts.state.${alert.state}`) ? t(`alerts.state.${alert.state}`, { by: alert.by || "?" }) : alert.state;
    return h(
      "li",
      { class: `alert alert-${frame.priority}` },
      h("span", { class: "alert-sign" }, icon("alert"), h("strong", {}, view.texts.of("alerts.priority", frame.priority, frame.priority))),
      h(
        "div",
        { class: "alert-text" },
        h("p", { class: "prose", dir: "auto" }, frame.content),
        h(
          "p",
          { class: "small" },
          [
            frame.from && t("alerts.from", { from: frame.from }),
            frame.patient_id && t("alerts.patient", { id: frame.patient_id }),
            frame.timestamp && view.texts.time(frame.timestamp, view.now()),
            state,
            alert.counts && t("alerts.counts", alert.counts),
            frame.next_escalation_at && !alert.answer && t("alerts.escalates", { time: view.texts.time(frame.next_escalation_at, view.now()) }),
            alert.answer && t(`alerts.answered.${alert.answer}`),
          ].filter(Boolean).join(" · "),
        ),
      ),
      h("div", { class: "alert-buttons" }, this._buttons(t, alert)),
    );
  }

  _buttons(t, alert) {
    const { frame, key } = alert;
    const button = (id, label, primary = false) =>
      h(
        "button",
        {
          class: primary ? "button primary" : "button",
          type: "button",
          "data-key": `alert-${key}-${id}`,
          onclick: () => emit(this, "alert", { alert, answer: ANSWERS.has(id) ? id : "accept", slot: ANSWERS.has(id) ? null : id }),
        },
        label,
      );
    if (alert.answer === "accept") return button("done", t("alerts.done"), true);
    if (!alert.answer && frame.options?.length) return frame.options.map((one, index) => button(one.id, one.label, index === 0));
    if (!alert.answer && frame.requires_action) return [button("accept", t("alerts.accept"), true), button("decline", t("alerts.decline"))];
    return h("button", { class: "icon-button", type: "button", "aria-label": t("alerts.hide"), title: t("alerts.hide"), "data-key": `hide-${key}`, onclick: () => emit(this, "hide-alert", key) }, icon("close"));
  }
}

export class StatusLine extends HTMLElement {
  show(view) {
    const t = view.texts.t.bind(view.texts);
    const { phase, offlineSince } = view.line;
    const live = phase === "live";
    const first = phase !== "live" && !view.wasLive;
    const mode = view.conversation.mode;
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
