/** <chatd-sign-in>: one of the demo staff and a department, or a token where the server is no demo. */

import { emit, fill, h, icon } from "./dom.js";
import { readToken } from "./server.js";

export class SignIn extends HTMLElement {
  /** view: {texts, server}; reason: close code that led here, or null. */
  show(view, reason) {
    this._view = view;
    this._reason = reason;
    if (this._demo === undefined) this._load();
    else this._render();
  }

  async _load() {
    this._failed = false;
    this._render();
    try {
      this._demo = await this._view.server.demo();
    } catch {
      this._failed = true;
    }
    this._render();
    if (this.isConnected && !this._failed) this.querySelector("input, button[type=submit]")?.focus();
  }

  _render() {
    const { t } = bind(this._view.texts);
    fill(
      this,
      h(
        "main",
        { class: "signin" },
        h(
          "div",
          { class: "signin-card" },
          h("div", { class: "signin-top" }, h("span", { class: "brand" }, icon("pulse"), t("app.title")), languageButton(this, t)),
          h("h1", {}, t(this._view.isBoard ? "signin.board" : "signin.title")),
          h("p", { class: "quiet" }, t("app.tagline")),
          this._reason !== null && h("p", { class: "banner banner-info", role: "status" }, reasonText(this._view.texts, this._reason)),
          this._body(t),
        ),
      ),
    );
  }

  _body(t) {
    if (this._failed) {
      return [
        h("p", { class: "banner banner-critical", role: "alert" }, icon("failed"), t("signin.unreachable")),
        h("button", { class: "button primary", type: "button", onclick: () => this._load() }, t("signin.again")),
      ];
    }
    if (this._demo === undefined) return h("p", { role: "status" }, t("signin.loading"));
    return this._demo ? this._demoForm(t) : this._tokenForm(t);
  }

  _demoForm(t) {
    const { staff, departments, hospital } = this._demo;
    const lang = this._view.texts.lang;
    this._userId ??= staff[0]?.user_id;
    const user = staff.find((one) => one.user_id === this._userId);
    const open = departments.filter((one) => !user?.departments?.length || user.departments.includes(one.id));
    if (!open.some((one) => one.id === this._department)) this._department = open[0]?.id;
    return h(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          this._signIn(this._userId, this._department, () => this._view.server.demoToken(this._userId, this._department));
        },
      },
      h("p", { class: "quiet small" }, t("signin.hospital", { hospital }), h("br"), t("signin.demo_note")),
      h(
        "fieldset",
        { class: "staff" },
        h("legend", {}, t("signin.who")),
        staff.map((one) =>
          h(
            "label",
            { class: "staff-one" },
            h("input", {
              type: "radio",
              name: "staff",
              value: one.user_id,
              checked: one.user_id === this._userId,
              "data-key": `staff-${one.user_id}`,
              onchange: () => {
                this._userId = one.user_id;
                this._render();
              },
            }),
            h("span", { class: "avatar", "aria-hidden": "true" }, initials(one.name)),
            h("span", { class: "staff-text" }, h("strong", { dir: "auto" }, one.name), h("span", { class: "quiet small", dir: "auto" }, [one.specialty || one.role, one.user_id].filter(Boolean).join(" · "))),
          ),
        ),
      ),
      h(
        "label",
        { class: "field" },
        t("signin.department"),
        h(
          "select",
          { name: "department", "data-key": "department", onchange: (event) => (this._department = event.target.value) },
          open.map((one) =>
            h("option", { value: one.id, selected: one.id === this._department }, lang === "pt" ? one.name_pt || one.name : one.name),
          ),
        ),
      ),
      h("button", { class: "button primary wide", type: "submit", disabled: !this._department }, t("signin.go")),
    );
  }

  _tokenForm(t) {
    const field = (name, label, props) => h("label", { class: "field" }, label, h("input", { name, required: true, autocomplete: "off", spellcheck: "false", ...props }));
    return h(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          const data = new FormData(event.target);
          const token = String(data.get("token")).trim();
          const { expiresInS } = readToken(token, Date.now());
          let given = false;
          this._signIn(String(data.get("user")).trim(), String(data.get("department")).trim(), async () => {
            // A pasted token is good for as long as it lives; nobody here can renew it.
            if (given) throw Object.assign(new Error("token cannot be renewed"), { final: true });
            given = true;
            return { token, expires_in_s: expiresInS };
          });
          event.target.reset();
        },
      },
      field("token", t("signin.token"), {
        type: "password",
        "aria-describedby": "token-help",
        oninput: (event) => {
          const said = readToken(event.target.value.trim(), Date.now());
          const form = event.target.form;
          if (said.userId && !form.elements.user.value) form.elements.user.value = said.userId;
          if (said.department && !form.elements.department.value) form.elements.department.value = said.department;
        },
      }),
      h("p", { class: "quiet small", id: "token-help" }, t("signin.token_help")),
      field("user", t("signin.user"), { type: "text" }),
      field("department", t("signin.department"), { type: "text" }),
      h("button", { class: "button primary wide", type: "submit" }, t("signin.go")),
    );
  }

  _signIn(userId, department, fetchToken) {
    emit(this, "sign-in", { userId, department, fetchToken });
  }
}

export function bind(texts) {
  return { t: texts.t.bind(texts) };
}

export function initials(name) {
  const words = String(name).replace(/^((dr|dra|enf|prof|charge|nurse|enfermeir[oa])\.?\s+)+/i, "").split(/\s+/).filter(Boolean);
  return [words[0], words.length > 1 ? words[words.length - 1] : ""].map((word) => [...(word ?? "")][0] ?? "").join("").toUpperCase();
}

export function languageButton(element, t) {
  const pt = t("lang.switch") === "Português";
  return h(
    "button",
    {
      class: "button quiet-button lang",
      type: "button",
      lang: pt ? "pt-PT" : "en",
      "data-key": "lang",
      onclick: () => emit(element, "language", pt ? "pt" : "en"),
    },
    h("span", { class: "lang-long" }, t("lang.switch")),
    h("span", { class: "lang-short", "aria-hidden": "true" }, pt ? "PT" : "EN"),
  );
}

function reasonText(texts, code) {
  const key = `signin.reason.${code}`;
  return texts.has(key) ? texts.t(key) : texts.t("signin.reason.other", { code });
}

customElements.define("chatd-sign-in", SignIn);
