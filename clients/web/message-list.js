/** <message-list>: the conversation as bubbles, the doctor's on the right, chatd's on the left. */

import { emit, fill, h, icon } from "./dom.js";
import { hueOf } from "./patient.js";

/** Within this many pixels of a place the reader counts as being there. */
const NEAR_PX = 24;

const STATUS_ICONS = { waiting: "clock", sent: "tick", accepted: "ticks", answered: "ticks", failed: "failed" };

export class MessageList extends HTMLElement {
  constructor() {
    super();
    this._rows = new Map();
    this._follow = true;
    this.addEventListener("scroll", () => this._scrolled(), { passive: true });
  }

  /** Build the frame anew, for a first showing or another language. */
  show(view) {
    this._view = view;
    const t = view.texts.t.bind(view.texts);
    this.setAttribute("role", "region");
    this.setAttribute("aria-label", t("chat.region"));
    this.setAttribute("tabindex", "0");
    this._rows.clear();
    this._empty = h("div", { class: "empty" });
    this._list = h("ol", { class: "messages" });
    this._new?.remove();
    this._new = h("button", { class: "new-below", type: "button", hidden: true, onclick: () => this.scrollBy({ top: this.clientHeight * 0.85 }) }, icon("down"), t("chat.new"));
    this.replaceChildren(this._list, this._empty);
    this.after(this._new);
    this.arrange();
    for (const key of this._rows.keys()) this.refresh(key);
    this.follow();
  }

  /** Add and remove rows so that they match the conversation. */
  arrange() {
    const items = this._view.conversation.items;
    for (const [key, row] of this._rows) {
      if (!items.has(key)) {
        row.remove();
        this._rows.delete(key);
      }
    }
    for (const item of items.values()) {
      if (this._rows.has(item.key)) continue;
      const row = h("li", { class: item.kind === "exchange" ? "exchange" : "divider", "data-item": item.key });
      this._rows.set(item.key, row);
      this._list.append(row);
    }
    this.patientChanged();
  }

  /** Draw one exchange again; the list follows if the reader was at its end. */
  refresh(key) {
    const row = this._rows.get(key);
    const item = this._view.conversation.items.get(key);
    if (!row || !item) return;
    // Somebody who has read on to the end stays at the end; nobody is ever moved back up.
    const atEnd = this._atEnd() && this.scrollTop > this._target() + NEAR_PX;
    if (item.kind === "exchange") this._exchange(row, item);
    else this._divider(row, item);
    if (atEnd) this.scrollTop = this.scrollHeight;
    else if (this._follow) this._pin();
    this._tellBelow();
  }

  /** After one's own question its answer is what one wants to see. */
  follow() {
    this._follow = true;
    this._pin();
    this._tellBelow();
  }

  /**
   * "Below is more". Its place stays taken while the list can scroll: would the list grow when a person reaches the
   * end, everything would move under their finger, and the tap would miss.
   */
  _tellBelow() {
    this._new.hidden = this.scrollHeight <= this.clientHeight;
    this._new.classList.toggle("at-end", this._atEnd());
  }

  _atEnd() {
    return this.scrollHeight - this.scrollTop - this.clientHeight < NEAR_PX;
  }

  /**
   * Where following leads: the end, but never past the beginning of the last exchange. Red flags stand at its
   * top, and a long answer below them must not push them out of sight.
   */
  _target() {
    const last = this._list.lastElementChild;
    const end = this.scrollHeight - this.clientHeight;
    return Math.max(0, last ? Math.min(end, last.offsetTop - 8) : end);
  }

  _pin() {
    const target = this._target();
    if (target > this.scrollTop) this.scrollTop = target;
  }

  _scrolled() {
    // Whoever scrolls away reads something; the list stays there until they come back.
    this._follow = this._atEnd() || Math.abs(this.scrollTop - this._target()) < NEAR_PX;
    this._tellBelow();
  }

  _exchange(row, item) {
    const view = this._view;
    const parts = this._parts(row);
    parts.question.hidden = false;
    if (item.question) this._question(parts.question, item);
    else fill(parts.question, h("p", { class: "other-device small quiet" }, view.texts.t("chat.other_device")));
    const mismatch = this._mismatch(item);
    parts.warning.hidden = !mismatch;
    fill(parts.warning, mismatch && h("p", { class: "banner banner-critical", role: "alert" }, icon("failed"), mismatch));
    this._part(parts, "facts", item.facts && !mismatch ? "facts-card" : null, (card) => {
      card.className = "bubble from-chatd facts";
      if (card._shown !== item.facts) card.show(view, item.facts);
      card._shown = item.facts;
    });
    const waiting = item.question && ["sent", "accepted"].includes(item.question.status);
    const answering = item.final || item.stream || item.queue || item.cancelling || waiting || (!item.question && item.responseId);
    this._part(parts, "answer", answering && !mismatch ? "answer-bubble" : null, (bubble) => bubble.show(view, item));
  }

  _parts(row) {
    if (!row._parts) {
      row._parts = { question: h("div", { class: "question-row" }), warning: h("div", { class: "warning-row" }), facts: null, answer: null };
      row.replaceChildren(row._parts.question, row._parts.warning);
    }
    return row._parts;
  }

  _part(parts, name, tag, draw) {
    if (!tag) {
      parts[name]?.remove();
      parts[name] = null;
      return;
    }
    if (!parts[name]) {
      parts[name] = document.createElement(tag);
      if (name === "facts") parts.warning.after(parts.facts);
      else (parts.facts ?? parts.warning).after(parts.answer);
    }
    draw(parts[name]);
  }

  /** An answer about another patient than asked about is never shown, whoever mixed them up. */
  _mismatch(item) {
    const asked = item.question?.patient?.patient_id;
    if (!asked) return "";
    for (const frame of [item.facts, item.final]) {
      const answered = frame?.patient_id;
      if (answered !== null && answered !== undefined && answered !== asked) {
        return this._view.texts.t("chat.mismatch", { asked, answered });
      }
    }
    return "";
  }

  _question(part, item) {
    const view = this._view;
    const t = view.texts.t.bind(view.texts);
    const { question } = item;
    const status = t(`chat.status.${question.status}`);
    fill(
      part,
      h(
        "div",
        { class: `bubble from-me status-${question.status}` },
        h("span", { class: "hidden" }, `${t("chat.you")}: `),
        h("p", { class: "prose", dir: "auto" }, question.text),
        h(
          "p",
          { class: "bubble-foot small" },
          question.urgency !== "routine" && h("span", { class: `mark mark-${question.urgency === "stat" ? "critical" : "warning"}` }, t(`urgency.${question.urgency}`)),
          h("span", { class: "about", dir: "auto" }, question.patient ? t("chat.about", { name: question.patient.name }) : t("chat.about_nobody")),
          h("time", { datetime: new Date(question.at).toISOString() }, view.texts.time(question.at, view.now())),
          h("span", { class: `ticks ticks-${question.status}`, title: status, role: "img", "aria-label": status }, icon(STATUS_ICONS[question.status])),
        ),
      ),
      question.status === "failed" && this._failure(item),
    );
  }

  _failure(item) {
    const view = this._view;
    const t = view.texts.t.bind(view.texts);
    const { error } = item.question;
    const wait = Math.ceil((error.retryAt - view.now()) / 1000);
    if (wait > 0) setTimeout(() => this.isConnected && this.refresh(item.key), Math.min(wait * 1000, 60_000));
    return h(
      "div",
      { class: "failure", role: "group", "aria-label": t("chat.status.failed") },
      h("p", {}, icon("failed"), h("span", {}, view.texts.error(error.code, error.message), wait > 0 && ` ${t("error.retry_in", { seconds: wait })}`)),
      h(
        "div",
        { class: "dialog-buttons" },
        h("button", { class: "button", type: "button", "data-key": `discard-${item.key}`, onclick: () => emit(this, "discard", item.key) }, t("chat.discard")),
        h("button", { class: "button primary", type: "button", disabled: wait > 0, "data-key": `retry-${item.key}`, onclick: () => emit(this, "retry", item.key) }, t("chat.retry")),
      ),
    );
  }

  _divider(row, item) {
    const t = this._view.texts.t.bind(this._view.texts);
    if (item.kind === "switched") {
      row.className = `divider hue-${hueOf(item.params.patientId)}`;
      fill(row, h("span", { dir: "auto" }, icon("person"), t("patient.switched", { name: item.params.name, id: item.params.patientId })));
    } else {
      row.className = `divider ${item.kind === "reloaded" ? "divider-warning" : ""}`;
      fill(row, h("span", {}, t(item.kind === "reloaded" ? "chat.reloaded" : "patient.closed")));
    }
  }

  _showEmpty(empty) {
    const view = this._view;
    const t = view.texts.t.bind(view.texts);
    this._empty.hidden = !empty;
    if (!empty) return;
    const patient = view.conversation.patient;
    // Without an open record an example opens one first: a question about nobody would have no facts.
    const about = patient ?? view.patients?.[0] ?? null;
    const examples = about ? [t("chat.example.1", { name: about.name }), t("chat.example.2"), t("chat.example.3")] : [];
    fill(
      this._empty,
      h("span", { class: "empty-sign" }, icon("pulse")),
      h("p", { class: "headline" }, t("chat.empty")),
      h("p", { class: "quiet" }, t("chat.empty_help")),
      h(
        "ul",
        { class: "plain chips", "aria-label": t("chat.examples") },
        examples.map((text) => h("li", {}, h("button", { class: "chip", type: "button", dir: "auto", onclick: () => emit(this, "example", { text, patient: about }) }, text))),
      ),
    );
  }

  /** The open patient has changed: the examples name them. */
  patientChanged() {
    this._showEmpty([...this._view.conversation.items.values()].every((item) => item.kind !== "exchange"));
  }
}

customElements.define("message-list", MessageList);
