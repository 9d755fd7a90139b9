/** <chat-composer>: the message field at the bottom. Enter sends, Shift+Enter starts a new line. */

import { emit, h, icon } from "./dom.js";

const URGENCIES = ["routine", "urgent", "stat"];

export class ChatComposer extends HTMLElement {
  show(view) {
    this._view = view;
    const t = view.texts.t.bind(view.texts);
    const draft = this._field?.value ?? "";
    const urgency = this._urgency?.value ?? "routine";
    this._field = h("textarea", {
      id: "composer-field",
      rows: "1",
      placeholder: t("composer.placeholder"),
      "aria-label": t("composer.label"),
      "aria-describedby": "composer-hint composer-count",
      dir: "auto",
      enterkeyhint: "send",
      oninput: () => this._grow(),
      onkeydown: (event) => {
        // Enter while an input method composes a character belongs to the input method.
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
          event.preventDefault();
          this._send();
        }
      },
    });
    this._field.value = draft;
    this._urgency = h(
      "select",
      { "aria-label": t("composer.urgency"), title: t("composer.urgency"), onchange: () => this._mark() },
      URGENCIES.map((one) => h("option", { value: one, selected: one === urgency }, t(`urgency.${one}`))),
    );
    this._count = h("p", { class: "small count", id: "composer-count", role: "status" });
    this._button = h("button", { class: "send", type: "submit", "aria-label": t("composer.send"), title: t("composer.send") }, icon("send"));
    this.replaceChildren(
      h(
        "form",
        {
          class: "composer",
          onsubmit: (event) => {
            event.preventDefault();
            this._send();
          },
        },
        this._urgency,
        this._field,
        this._button,
      ),
      this._count,
      h("p", { class: "hidden", id: "composer-hint" }, t("composer.hint")),
    );
    this._grow();
    this._mark();
  }

  focusField() {
    this._field?.focus();
  }

  put(text) {
    this._field.value = text;
    this._grow();
    this._field.focus();
  }

  /** The server has said how long a message may be. */
  limitsChanged() {
    this._grow();
  }

  _max() {
    return this._view.conversation.limits.max_content_chars ?? 4000;
  }

  _mark() {
    this._urgency.className = `urgency urgency-${this._urgency.value}`;
  }

  _grow() {
    const length = [...this._field.value].length;
    const max = this._max();
    const t = this._view.texts.t.bind(this._view.texts);
    this._count.textContent =
      length > max ? t("composer.too_long", { count: length, max }) : length > max * 0.9 ? t("composer.count", { count: length, max }) : "";
    this._count.classList.toggle("too-long", length > max);
    const lines = Math.min(6, this._field.value.split("\n").length);
    this._field.rows = Math.max(1, lines);
    // A long line wraps without a newline; the field grows with what it holds, up to its limit in the style sheet.
    this._field.style.height = "auto";
    if (this._field.scrollHeight > 0) this._field.style.height = `${this._field.scrollHeight + 2}px`;
  }

  _send() {
    const text = this._field.value.trim();
    if (text === "" || [...text].length > this._max()) return;
    const urgency = this._urgency.value;
    // An application that cannot take the question now leaves it in the field.
    const event = new CustomEvent("chatd:ask", { bubbles: true, cancelable: true, detail: { text, urgency } });
    if (!this.dispatchEvent(event)) return;
    this._field.value = "";
    this._urgency.value = "routine";
    this._grow();
    this._mark();
    this._field.focus();
  }
}

customElements.define("chat-composer", ChatComposer);
