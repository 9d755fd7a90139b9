/**
 * The page's dialogs, on the browser's own <dialog>: it keeps the focus inside, closes with Esc and gives the
 * focus back. Each is removed from the page when it closes.
 */

import { fill, h, icon } from "./dom.js";
import { scriptMark } from "./patient.js";

export class Dialog extends HTMLElement {
  /** view: the application's texts, names and clock. */
  open(view, ...rest) {
    this.view = view;
    this.t = view.texts.t.bind(view.texts);
    this._rest = rest;
    const titleId = `${this.localName}-title`;
    this._title = h("h2", { id: titleId, tabindex: "-1" });
    this._body = h("div", { class: "dialog-body" });
    this._dialog = h(
      "dialog",
      {
        class: "dialog",
        "aria-labelledby": titleId,
        onclose: () => {
          this.remove();
          this.closed?.();
        },
        onclick: (event) => {
          if (event.target === this._dialog) this.close();
        },
      },
      h(
        "div",
        { class: "dialog-frame" },
        h(
          "header",
          { class: "dialog-head" },
          this._title,
          h("button", { class: "icon-button", type: "button", "aria-label": this.t("dialog.close"), onclick: () => this.close() }, icon("close")),
        ),
        this._body,
      ),
    );
    this.append(this._dialog);
    this.build(...rest);
    this._dialog.showModal();
    (this._body.querySelector("[autofocus]") ?? this._title).focus();
  }

  close() {
    this._dialog.close();
  }

  title(text) {
    this._title.textContent = text;
  }

  content(...children) {
    fill(this._body, ...children);
  }
}

/** Which quoted text a citation stands for. */
export class CitationDialog extends Dialog {
  /** source: {kind, title, quote, source, year, as_of, ref, section, superseded_by, review_due, approved_by, notice} */
  build(source) {
    const { t, view } = this;
    this.title(source.title || t(`cite.${source.kind}`));
    const protocol = source.kind === "protocol";
    const overdue = source.review_due && Date.parse(source.review_due) < view.now();
    this.content(
      h("p", { class: "kind" }, icon(protocol ? "book" : "person"), t(`cite.${source.kind}`)),
      source.superseded_by && h("p", { class: "banner banner-warning" }, icon("allergy"), t("cite.superseded", { by: source.superseded_by })),
      overdue && h("p", { class: "banner banner-warning" }, icon("allergy"), t("cite.overdue", { date: view.texts.time(source.review_due, view.now()) })),
      source.notice && h("p", { class: "banner banner-info", dir: "auto" }, source.notice),
      source.quote
        ? h("blockquote", { dir: "auto" }, source.quote)
        : h("p", { class: "quiet" }, t("cite.no_quote")),
      h(
        "dl",
        { class: "details" },
        row(t("cite.section"), source.section),
        row(t("cite.source"), source.source),
        row(t("cite.year"), source.year),
        row(t("cite.time"), source.as_of && view.texts.time(source.as_of, view.now())),
        row(t("cite.review"), !overdue && source.review_due && view.texts.time(source.review_due, view.now())),
        row(t(protocol ? "cite.ref" : "cite.item"), source.ref),
      ),
      protocol &&
        h("p", { class: "quiet small" }, source.approved_by ? t("cite.approved", { name: source.approved_by }) : t("cite.not_approved")),
    );
  }
}

function row(term, value) {
  if (value === null || value === undefined || value === "" || value === false) return null;
  return [h("dt", {}, term), h("dd", { dir: "auto" }, String(value))];
}

/**
 * The two steps of a quick action. Step one asks the server to prepare it and shows what it says; step two
 * confirms with the token of that preparation. The token lives in this dialog only.
 */
export class ActionDialog extends Dialog {
  /** send(step, extra) submits the command and returns its id. */
  build(action, send) {
    this._action = action;
    this._send = send;
    this.title(action.proposed.label);
    this._commandId = send("prepare", {});
    this._step("preparing");
  }

  get actionId() {
    return this._action.proposed.action_id;
  }

  update(frame) {
    if (frame.status === "prepared") {
      if (!frame.confirm_token) return; // somebody else's preparation
      this._prepared = frame;
      this._step("prepared");
    } else {
      this.close();
    }
  }

  /** True if the error belongs to this dialog. */
  error(clientMsgId, text, code) {
    if (clientMsgId !== this._commandId) return false;
    if (code === "second_identifier_required" && this._prepared) {
      this._prepared = { ...this._prepared, second_identifier_required: true };
    }
    // These end the preparation: its token will not be taken again.
    if (["action_expired", "action_conflict", "stale_context", "patient_mismatch", "action_unknown"].includes(code)) {
      this._prepared = null;
    }
    this._step(this._prepared ? "prepared" : "failed", text);
    return true;
  }

  _step(step, error) {
    const { t, view } = this;
    const prepared = this._prepared;
    const patientId = prepared?.patient_id ?? this._action.proposed.bound?.patient_id ?? null;
    const second = prepared?.second_identifier_required;
    const back = h("button", { class: "button", type: "button", "data-key": "back", onclick: () => this.close() }, t("action.cancel"));
    const head = [
      patientId !== null && h("p", { class: "dialog-patient" }, icon("person"), h("strong", { dir: "auto" }, t("action.for", { name: view.patientName(patientId) })), h("span", { class: "quiet" }, t("patient.record", { id: patientId }))),
      error && h("p", { class: "banner banner-critical", role: "alert" }, icon("failed"), error),
    ];
    if (step !== "prepared") {
      this.content(
        head,
        step !== "failed" && h("p", { role: "status" }, t(step === "confirming" ? "action.confirming" : "action.preparing")),
        h("div", { class: "dialog-buttons" }, back),
      );
      return;
    }
    this.content(
      head,
      prepared.summary && h("p", { class: "summary", dir: "auto" }, prepared.summary),
      h("p", { class: "quiet small" }, t("action.proposal"), prepared.expires_at && ` ${t("action.expires", { time: view.texts.time(prepared.expires_at, view.now()) })}`),
      h(
        "form",
        {
          onsubmit: (event) => {
            event.preventDefault();
            if (!view.isLive()) {
              this._step("prepared", t("line.needed"));
              return;
            }
            const extra = { confirm_token: prepared.confirm_token };
            if (second) extra.second_identifier = String(new FormData(event.target).get("second")).trim();
            this._commandId = this._send("confirm", extra);
            this._step("confirming");
          },
        },
        second &&
          h(
            "label",
            { class: "field" },
            t("action.second_label"),
            h("input", { name: "second", required: true, maxlength: "128", autocomplete: "off", autofocus: true, "aria-describedby": "second-help", "data-key": "second" }),
            h("span", { class: "quiet small", id: "second-help" }, t("action.second_help")),
          ),
        h("div", { class: "dialog-buttons" }, back, h("button", { class: "button primary", type: "submit", "data-key": "confirm", autofocus: !second }, t("action.confirm"))),
      ),
    );
    this._body.querySelector("[autofocus]")?.focus();
  }
}

/**
 * Why a proposal is dismissed: a code and no text, so that reasons can be counted and hold nothing of a patient.
 * The codes are the server's own (chatd/actions/dismiss_reasons.json); a test compares the two.
 */
export const DISMISS_REASONS = [
  "already_done",
  "not_indicated",
  "contraindicated",
  "other_plan",
  "later",
  "patient_declined",
  "goals_of_care",
  "not_available",
  "data_outdated",
  "wrong_patient",
  "not_useful",
];

export class DismissDialog extends Dialog {
  build(action, send) {
    const { t } = this;
    this.title(t("action.dismiss_of", { label: action.proposed.label }));
    this.content(
      h(
        "form",
        {
          onsubmit: (event) => {
            event.preventDefault();
            send("dismiss", { reason: String(new FormData(event.target).get("reason")) });
            this.close();
          },
        },
        h(
          "fieldset",
          { class: "reasons" },
          h("legend", {}, t("action.dismiss_title")),
          DISMISS_REASONS.map((code, index) =>
            h("label", { class: "reason" }, h("input", { type: "radio", name: "reason", value: code, checked: index === 0, autofocus: index === 0 }), t(`reason.${code}`)),
          ),
        ),
        h(
          "div",
          { class: "dialog-buttons" },
          h("button", { class: "button", type: "button", onclick: () => this.close() }, t("action.cancel")),
          h("button", { class: "button primary", type: "submit" }, t("action.dismiss_go")),
        ),
      ),
    );
  }
}

/**
 * Whose roles may open a record of another department in an emergency, and the shortest reason: as the server has them
 * (chatd/identity/data/roles.json, chatd/identity/break_glass.py); a test compares the two. The server decides.
 */
export const EMERGENCY_ROLES = [
  "anaesthesiologist",
  "anaesthetist",
  "cardiologist",
  "charge_doctor",
  "charge_nurse",
  "consultant",
  "doctor",
  "emergency_physician",
  "intensivist",
  "midwife",
  "neurologist",
  "nurse",
  "paramedic",
  "physician",
  "resident",
  "surgeon",
];
export const MIN_REASON_CHARS = 8;

/** An id as the server takes it. */
export const ID_PATTERN = "[A-Za-z0-9][A-Za-z0-9._:@+\\-]{0,127}";

/** Choose a patient of the department; asks for a second identifier where the server wants one. */
export class PatientDialog extends Dialog {
  /**
   * patient: open this one, or null to choose; search: what to filter the list by.
   * choose(patient, second, reason) submits the command and returns its id; done(isOpen) is called once, at the end.
   */
  build({ patient = null, search = "", choose, done = () => {} }) {
    this._choose = choose;
    this._search = search;
    this._isOpen = false;
    this._reason = null;
    this.closed = () => done(this._isOpen);
    if (patient) this._opening(patient);
    else this._list();
  }

  _list() {
    this.title(this.t("patient.choose"));
    this._reason = null;
    const list = document.createElement("patient-list");
    const mayBreak = this.view.conversation.book.me.roles.some((role) => EMERGENCY_ROLES.includes(role.toLowerCase()));
    this.content(
      list,
      mayBreak &&
        h("div", { class: "dialog-buttons" }, h("button", { class: "button", type: "button", "data-key": "emergency", onclick: () => this._emergency(null) }, this.t("emergency.button"))),
    );
    list.show(this.view, this._search);
    list.addEventListener("chatd:patient", (event) => {
      event.stopPropagation();
      this._opening(event.detail);
    });
    queueMicrotask(() => list.querySelector("input")?.focus());
  }

  /** The record's number and the reason, which its departments are told before it opens. */
  _emergency(error) {
    const { t } = this;
    this.title(t("emergency.title"));
    this.content(
      error && h("p", { class: "banner banner-critical", role: "alert" }, icon("failed"), error),
      h("p", { class: "banner banner-warning" }, icon("allergy"), t("emergency.help")),
      h(
        "form",
        {
          onsubmit: (event) => {
            event.preventDefault();
            const data = new FormData(event.target);
            const id = String(data.get("record")).trim();
            this._reason = String(data.get("reason")).trim();
            this._patient = { patient_id: id, name: t("emergency.title") };
            if (this._reason.length < MIN_REASON_CHARS) this._emergency(t("emergency.short", { count: MIN_REASON_CHARS }));
            else this._opening(this._patient);
          },
        },
        h("label", { class: "field" }, t("emergency.record"), h("input", { name: "record", required: true, pattern: ID_PATTERN, maxlength: "128", autocomplete: "off", spellcheck: "false", autofocus: true, value: this._reason === null ? "" : this._patient.patient_id })),
        h("label", { class: "field" }, t("emergency.reason", { count: MIN_REASON_CHARS }), h("textarea", { name: "reason", required: true, rows: "2", maxlength: "500", dir: "auto" }, this._reason ?? "")),
        h("div", { class: "dialog-buttons" }, h("button", { class: "button", type: "button", "data-key": "back", onclick: () => this._list() }, t("action.cancel")), h("button", { class: "button primary", type: "submit", "data-key": "emergency-go" }, t("emergency.go"))),
      ),
    );
    this._body.querySelector("[autofocus]").focus();
  }

  _opening(patient) {
    this._patient = patient;
    if (!this.view.isLive()) {
      if (this._reason === null) this._second(this.t("line.needed"), false);
      else this._emergency(this.t("line.needed"));
      return;
    }
    this._commandId = this._choose(patient, null, this._reason);
    this.title(patient.name);
    this.content(h("p", { role: "status" }, this.t("patient.opening")));
  }

  opened(frame) {
    if (frame.client_msg_id !== this._commandId) return;
    this._isOpen = true;
    this.close();
  }

  error(clientMsgId, text, code) {
    if (clientMsgId !== this._commandId) return false;
    if (this._reason !== null && code !== "second_identifier_required" && !this._asked) {
      this._emergency(text);
      return true;
    }
    this._second(code === "second_identifier_required" && !this._asked ? null : text, code === "second_identifier_required" || this._asked);
    return true;
  }

  _second(error, ask) {
    const { t } = this;
    this._asked = ask;
    this.title(ask ? t("patient.second_title") : this._patient.name);
    this.content(
      h("p", { class: "dialog-patient" }, icon("person"), h("strong", { dir: "auto" }, this._patient.name), h("span", { class: "quiet" }, t("patient.record", { id: this._patient.patient_id })), scriptMark(this._patient.name, t)),
      error && h("p", { class: "banner banner-critical", role: "alert" }, icon("failed"), error),
      ask &&
        h(
          "form",
          {
            onsubmit: (event) => {
              event.preventDefault();
              const second = String(new FormData(event.target).get("second")).trim();
              this._commandId = this._choose(this._patient, second, this._reason);
              this.content(h("p", { role: "status" }, t("patient.opening")));
            },
          },
          h("p", { class: "quiet small", id: "patient-second-help" }, t("patient.second_help")),
          h("label", { class: "field" }, t("patient.second_label"), h("input", { name: "second", required: true, maxlength: "128", autocomplete: "off", autofocus: true, "aria-describedby": "patient-second-help" })),
          h("div", { class: "dialog-buttons" }, h("button", { class: "button", type: "button", onclick: () => this.close() }, t("action.cancel")), h("button", { class: "button primary", type: "submit" }, t("patient.open"))),
        ),
      !ask && h("div", { class: "dialog-buttons" }, h("button", { class: "button", type: "button", onclick: () => this._list() }, t("patient.choose"))),
    );
    this._body.querySelector("[autofocus]")?.focus();
  }
}

customElements.define("citation-dialog", CitationDialog);
customElements.define("action-dialog", ActionDialog);
customElements.define("dismiss-dialog", DismissDialog);
customElements.define("patient-dialog", PatientDialog);

/** Put a dialog on the page. */
export function openDialog(root, name, view, ...rest) {
  const dialog = document.createElement(name);
  root.append(dialog);
  dialog.open(view, ...rest);
  return dialog;
}
