/** <alert-list>: open alerts, who has them, what was raised here. <raise-dialog>: raise one and hear whom it reaches. <presence-dialog>: what one is available for. */

import { personName, roleName } from "./alert-words.js";
import { Dialog, ID_PATTERN } from "./dialogs.js";
import { emit, h, icon } from "./dom.js";
import { alertRow, raiseRow, raiseText, reachList, tickWho } from "./strips.js";

export class AlertList extends Dialog {
  build() {
    this.title(this.t("alerts.region"));
    this.changed();
  }

  changed() {
    const { t, view } = this;
    const { book } = view.conversation;
    const alerts = book.list();
    const raises = [...book.raises.values()];
    const asked = book.asked().length;
    this.content(
      asked > 0 && h("button", { class: "button primary", type: "button", "data-key": "list-asked", onclick: () => emit(this, "hand-over") }, icon("people"), " ", t("handover.asked_count", { count: asked })),
      raises.length > 0 && h("ul", { class: "plain alert-rows" }, raises.map((one) => raiseRow(view, this, one))),
      alerts.length > 0 ? h("ul", { class: "plain alert-rows" }, alerts.map((alert) => alertRow(view, this, alert))) : h("p", { class: "quiet" }, t("board.none")),
      h("div", { class: "dialog-buttons" }, h("button", { class: "button", type: "button", "data-key": "list-hand-over", onclick: () => emit(this, "hand-over") }, icon("people"), " ", t("handover.title")), h("button", { class: "button primary", type: "button", "data-key": "list-raise", onclick: () => emit(this, "raise-alert") }, icon("siren"), " ", t("raise.title"))),
    );
  }

  tick() {
    tickWho(this, this.view);
  }
}

const PRIORITIES = ["critical", "high", "normal", "low"];
/** Roles that are offered by name; any other can be typed. */
export const ROLES = ["physician", "nurse", "charge_nurse", "cardiologist", "surgeon", "anaesthetist", "intensivist", "technician"];
/** Activations that call a team together. */
export const TEMPLATES = ["stemi", "stroke", "trauma", "arrest"];
const MAX_CHARS = 1000;
/** The form of an id on the wire. */

export class RaiseDialog extends Dialog {
  /** send(frame) submits the alert and returns its id. */
  build(send) {
    const { t, view } = this;
    const { conversation } = view;
    const { patient, department } = conversation;
    this._send = send;
    this.title(t("raise.title"));
    const people = [...conversation.presence.keys()].filter((id) => id !== conversation.book.me.user_id);
    const to = (value, label, checked, more) => h("label", { class: "reason" }, h("input", { type: "radio", name: "to", value, checked, onchange: () => this._target() }), label, more);
    this.content(
      h(
        "form",
        {
          class: "raise-form",
          onsubmit: (event) => {
            event.preventDefault();
            this._submit(new FormData(event.target));
          },
        },
        h(
          "fieldset",
          { class: "reasons" },
          h("legend", {}, t("raise.to")),
          to("department", h("span", { dir: "auto" }, t("raise.department", { name: department?.name ?? "" })), true),
          to("role", t("raise.role"), false),
          h("div", { class: "field-inline", "data-for": "role", hidden: true }, h("input", { name: "role", list: "raise-roles", pattern: ID_PATTERN, maxlength: "128", "aria-label": t("raise.role"), placeholder: t("raise.role_help"), autocomplete: "off" }), h("datalist", { id: "raise-roles" }, ROLES.map((role) => h("option", { value: role }, roleName(view.texts, role))))),
          to("user", t("raise.user"), false),
          h("div", { class: "field-inline", "data-for": "user", hidden: true }, h("input", { name: "user", list: "raise-people", pattern: ID_PATTERN, maxlength: "128", "aria-label": t("raise.user"), placeholder: t("raise.user_help"), autocomplete: "off" }), h("datalist", { id: "raise-people" }, people.map((id) => h("option", { value: id })))),
        ),
        h(
          "fieldset",
          { class: "reasons priorities" },
          h("legend", {}, t("raise.priority")),
          PRIORITIES.map((one) => h("label", { class: `reason priority-choice priority-${one}` }, h("input", { type: "radio", name: "priority", value: one, checked: one === "high" }), view.texts.of("alerts.priority", one))),
        ),
        h("label", { class: "field" }, t("raise.text"), h("textarea", { name: "content", required: true, rows: "3", maxlength: String(MAX_CHARS), dir: "auto", autofocus: true, "data-key": "raise-text" })),
        h("label", { class: "field" }, t("raise.template"), h("select", { name: "template" }, h("option", { value: "" }, t("raise.no_template")), TEMPLATES.map((one) => h("option", { value: one }, t(`template.${one}`))))),
        patient
          ? h("label", { class: "reason" }, h("input", { type: "checkbox", name: "patient", checked: true }), h("span", { dir: "auto" }, t("raise.patient", { label: view.patientLabel(patient.patient_id) })))
          : h("p", { class: "small quiet" }, t("raise.no_patient")),
        h("label", { class: "reason" }, h("input", { type: "checkbox", name: "requires_action", checked: true }), t("raise.requires_action")),
        h("div", { class: "dialog-buttons" }, h("button", { class: "button", type: "button", onclick: () => this.close() }, t("action.cancel")), h("button", { class: "button primary", type: "submit", "data-key": "raise-go" }, t("raise.go"))),
      ),
    );
    // The record that was open when this was: a switch behind the dialog must not change whom the alert is about.
    this._patientId = patient?.patient_id ?? null;
    this._departmentId = department?.id ?? null;
  }

  get raiseId() {
    return this._id ?? null;
  }

  _target() {
    const chosen = this._body.querySelector("input[name=to]:checked").value;
    for (const part of this._body.querySelectorAll("[data-for]")) {
      part.hidden = part.dataset.for !== chosen;
      const field = part.querySelector("input");
      field.required = !part.hidden;
      if (!part.hidden) field.focus();
    }
  }

  _submit(data) {
    const content = String(data.get("content")).trim();
    if (!content) return;
    const kind = data.get("to");
    const to = kind === "department" ? { department: this._departmentId } : { [kind]: String(data.get(kind)).trim() };
    const frame = { type: "alert_raise", to, priority: String(data.get("priority")), content, requires_action: data.get("requires_action") !== null };
    if (this._patientId !== null && data.get("patient") !== null) frame.patient_id = this._patientId;
    if (data.get("template")) frame.template = String(data.get("template"));
    this._id = this._send(frame);
    this.changed();
  }

  /** What became of it; shown here as long as the dialog is open, and in the list of alerts afterwards. */
  changed() {
    const { t, view } = this;
    const one = view.conversation.book.raises.get(this._id);
    if (!one) return;
    const kind = one.status === "accepted" ? "info" : one.status === "failed" ? "critical" : "warning";
    const settled = ["accepted", "failed", "withdrawn"].includes(one.status);
    this.content(
      h("p", { class: `banner banner-${kind}`, role: "status" }, icon(one.status === "accepted" ? "tick" : one.status === "failed" ? "failed" : "clock"), h("strong", {}, raiseText(view, one))),
      h("p", { class: "summary", dir: "auto" }, one.frame.content),
      one.frame.patient_id && h("p", { class: "dialog-patient" }, icon("person"), view.patientLabel(one.frame.patient_id)),
      one.reach && reachList(view, one.reach),
      !settled && h("p", { class: "small quiet" }, t("raise.goes_on")),
      h("div", { class: "dialog-buttons" }, h("button", { class: "button primary", type: "button", "data-key": "raise-close", autofocus: true, onclick: () => this.close() }, t("dialog.close"))),
    );
    if (!this.contains(document.activeElement)) this._body.querySelector("[autofocus]")?.focus();
  }
}

export const STATES = ["available", "busy", "in_procedure", "off"];
const SPANS_MIN = [30, 60, 120, 240, 480];

/** What a person has said of themselves, as long as it holds at `now` (server's Unix ms); null: nothing does. */
export function stillSaid(presence, now) {
  if (!presence || presence.state === "available") return presence ?? null;
  return presence.until && Date.parse(presence.until) <= now ? null : presence;
}

/** The command of the form. until: "" (open), minutes from `now` on, or the moment that was known already. One that is over by then the server refuses: left out, it would hold for half a day. */
export function presenceFrame(state, until, delegate, now) {
  const frame = { type: "presence", state };
  if (state === "available") return frame;
  if (until) frame.until = /^\d+$/.test(until) ? new Date(now + Number(until) * 60_000).toISOString() : until;
  if (delegate.trim()) frame.delegate_to = delegate.trim();
  return frame;
}

export class PresenceDialog extends Dialog {
  /** bell: the page's sound; send(frame) submits the presence and returns its id. */
  build(bell, send) {
    const { t, view } = this;
    const { conversation } = view;
    const mine = stillSaid(conversation.presence.get(conversation.book.me.user_id), this._serverNow());
    const people = [...conversation.presence.keys()].filter((id) => id !== conversation.book.me.user_id);
    this._send = send;
    this.title(t("presence.title"));
    const now = mine?.state ?? "available";
    this.content(
      h(
        "form",
        {
          onsubmit: (event) => {
            event.preventDefault();
            this._submit(new FormData(event.target));
          },
        },
        mine && h("p", { class: "small", dir: "auto" }, presenceText(view, mine)),
        h(
          "fieldset",
          { class: "reasons" },
          h("legend", {}, t("presence.state")),
          STATES.map((state) => h("label", { class: "reason" }, h("input", { type: "radio", name: "state", value: state, checked: state === now, autofocus: state === now, onchange: () => this._more() }), t(`presence.${state}`))),
        ),
        h(
          "div",
          { "data-more": true, hidden: now === "available" },
          h("label", { class: "field" }, t("presence.until"), h("select", { name: "until" }, mine?.until && h("option", { value: mine.until, selected: true }, t("presence.until_time", { time: view.texts.time(mine.until, view.now()) })), h("option", { value: "" }, t("presence.until_open")), SPANS_MIN.map((minutes) => h("option", { value: String(minutes) }, t("presence.for", { span: view.texts.span(minutes * 60_000) }))))),
          h("label", { class: "field" }, t("presence.delegate"), h("input", { name: "delegate", value: mine?.delegate_to ?? "", list: "presence-people", pattern: ID_PATTERN, maxlength: "128", autocomplete: "off", "aria-describedby": "delegate-help", placeholder: t("raise.user_help") }), h("datalist", { id: "presence-people" }, people.map((id) => h("option", { value: id })))),
          h("p", { class: "small quiet", id: "delegate-help" }, t("presence.delegate_help")),
        ),
        h("label", { class: "reason" }, h("input", { type: "checkbox", name: "sound", checked: bell.on, onchange: (event) => { bell.on = event.target.checked; if (bell.on) bell.unlock(); } }), t("presence.sound")),
        h("div", { class: "dialog-buttons" }, h("button", { class: "button", type: "button", onclick: () => this.close() }, t("action.cancel")), h("button", { class: "button primary", type: "submit", "data-key": "presence-go" }, t("presence.go"))),
      ),
    );
  }

  _more() {
    this._body.querySelector("[data-more]").hidden = this._body.querySelector("input[name=state]:checked").value === "available";
  }

  _serverNow() {
    return this.view.now() + this.view.conversation.clockOffsetMs;
  }

  _submit(data) {
    const { view } = this;
    this._id = this._send(presenceFrame(String(data.get("state")), String(data.get("until")), String(data.get("delegate")), this._serverNow()));
    this.content(h("p", { role: "status" }, view.isLive() ? this.t("presence.saving") : this.t("presence.waiting")));
  }

  /** The server knows it now. */
  told(frame) {
    if (this._id && frame.client_msg_id === this._id) this.close();
  }

  error(clientMsgId, text) {
    if (!this._id || clientMsgId !== this._id) return false;
    this.content(h("p", { class: "banner banner-critical", role: "alert" }, icon("failed"), text));
    return true;
  }
}

export function presenceText(view, presence) {
  const t = view.texts.t.bind(view.texts);
  return [
    view.texts.of("presence", presence.state),
    presence.until && t("presence.until_time", { time: view.texts.time(presence.until, view.now()) }),
    presence.delegate_to && t(presence.is_accepted ? "presence.stands_in" : "presence.covered", { name: personName(view, presence.delegate_to) }),
  ].filter(Boolean).join(" · ");
}

customElements.define("alert-list", AlertList);
customElements.define("raise-dialog", RaiseDialog);
customElements.define("presence-dialog", PresenceDialog);
