/** <patient-banner>: whose record is open, seen at once. <patient-list>: the department's patients. */

import { emit, fill, h, icon } from "./dom.js";
import { initials } from "./sign-in.js";

const HUES = 8;

/** A colour class of a patient: the same person always looks the same, two persons mostly differ. Never the only sign. */
export function hueOf(patientId) {
  let sum = 0;
  for (const char of String(patientId)) sum = (sum * 31 + char.codePointAt(0)) >>> 0;
  return sum % HUES;
}

/** One of the details in a row of them: a short one is never broken in two, a long record number may be. */
function apart(part, index) {
  return [index > 0 && " · ", h("span", { class: part.length <= 24 ? "nowrap" : null }, part)];
}

export class PatientBanner extends HTMLElement {
  show(view) {
    const t = view.texts.t.bind(view.texts);
    const { patient, patientReason } = view.conversation;
    this.className = patient ? `patient-banner hue-${hueOf(patient.patient_id)}` : "patient-banner no-patient";
    this.setAttribute("role", "region");
    this.setAttribute("aria-label", t("patient.region"));
    if (!patient) {
      fill(
        this,
        h("span", { class: "avatar", "aria-hidden": "true" }, icon("person")),
        h("div", { class: "patient-text" }, h("strong", {}, t("patient.none")), h("span", { class: "small" }, t("patient.none_help"))),
        h("button", { class: "button", type: "button", "data-key": "choose", onclick: () => emit(this, "choose-patient") }, t("patient.choose")),
      );
      return;
    }
    const changed = this._patientId !== undefined && this._patientId !== patient.patient_id;
    this._patientId = patient.patient_id;
    fill(
      this,
      h("span", { class: "avatar", "aria-hidden": "true" }, initials(patient.name)),
      h(
        "div",
        { class: "patient-text" },
        h("strong", { dir: "auto", class: "patient-name" }, patient.name),
        h(
          "span",
          { class: "small" },
          [
            patient.age_years === null || patient.age_years === undefined ? t("patient.age_unknown") : t("patient.age", { age: patient.age_years }),
            view.texts.of("patient.sex", patient.sex, patient.sex),
            patient.birth_date && t("patient.born", { date: patient.birth_date }),
            t("patient.record", { id: patient.patient_id }),
          ].filter(Boolean).map(apart),
        ),
        h(
          "span",
          { class: "patient-marks" },
          patient.deceased && h("span", { class: "mark mark-deceased" }, t("patient.deceased")),
          scriptMark(patient.name, t),
          allergyMark(patient, t),
          patientReason === "stale" && h("span", { class: "mark mark-warning" }, icon("again"), t("patient.stale")),
        ),
      ),
      h(
        "div",
        { class: "patient-buttons" },
        h("button", { class: "button", type: "button", "data-key": "choose", onclick: () => emit(this, "choose-patient") }, t("patient.change")),
        h("button", { class: "icon-button", type: "button", "data-key": "close", "aria-label": t("patient.close"), title: t("patient.close"), onclick: () => emit(this, "close-patient") }, icon("close")),
      ),
    );
    if (changed) {
      this.classList.remove("just-changed");
      void this.offsetWidth; // restart the highlight
      this.classList.add("just-changed");
    }
  }
}

/**
 * The scripts of a name where letters of several that look alike stand in it ("Mаria" with a Cyrillic "а"), else [].
 * As the server's rule (context/lookalike.py); here for every place that shows a name.
 */
export function mixedScripts(name) {
  const found = SCRIPTS.filter(([, pattern]) => pattern.test(name)).map(([script]) => script);
  return found.length > 1 ? found : [];
}

const SCRIPTS = ["Armenian", "Cherokee", "Coptic", "Cyrillic", "Greek", "Latin", "Lisu"].map((script) => [script, new RegExp(`\\p{Script=${script}}`, "u")]);

/** The mark of a name whose letters are of several scripts; null for any other. */
export function scriptMark(name, t) {
  const scripts = mixedScripts(name);
  return scripts.length > 0 && h("span", { class: "mark mark-warning", "data-scripts": scripts.join(" ") }, icon("missing"), t("patient.mixed_scripts", { scripts: scripts.join(", ") }));
}

function allergyMark(patient, t) {
  if (patient.allergies?.length) {
    return h("span", { class: "mark mark-allergy", dir: "auto" }, icon("allergy"), t("patient.allergies", { list: patient.allergies.join(", ") }));
  }
  // Nobody asked is not the same as no allergies, and must not look like it.
  const none = patient.allergy_status === "none_known";
  return h("span", { class: none ? "mark" : "mark mark-warning" }, !none && icon("missing"), t(none ? "patient.allergy.none_known" : "patient.allergy.not_recorded"));
}

export class PatientList extends HTMLElement {
  show(view, search = this.querySelector("input")?.value ?? "") {
    this._view = view;
    const t = view.texts.t.bind(view.texts);
    this._results = h("ul", { class: "patients", "aria-label": t("patient.list") });
    fill(
      this,
      h(
        "label",
        { class: "search" },
        icon("search"),
        h("span", { class: "hidden" }, t("patient.search")),
        h("input", { type: "text", inputmode: "search", enterkeyhint: "search", placeholder: t("patient.search"), value: search, autocomplete: "off", spellcheck: "false", "data-key": "search", oninput: () => this._filter() }),
      ),
      this._results,
      (this._note = h("p", { class: "quiet small", role: "status" })),
    );
    this._filter();
  }

  _filter() {
    const view = this._view;
    const t = view.texts.t.bind(view.texts);
    const words = plain(this.querySelector("input").value).split(/\s+/).filter(Boolean);
    const all = view.patients ?? [];
    const found = all.filter((one) => {
      const text = plain(`${one.name} ${one.birth_date ?? ""} ${one.patient_id}`);
      return words.every((word) => text.includes(word));
    });
    const names = new Map();
    for (const one of all) names.set(plain(one.name), (names.get(plain(one.name)) ?? 0) + 1);
    const openId = view.conversation.patient?.patient_id;
    fill(
      this._results,
      found.map((one) =>
        h(
          "li",
          {},
          h(
            "button",
            {
              type: "button",
              class: `patient-row hue-${hueOf(one.patient_id)}`,
              "aria-current": one.patient_id === openId ? "true" : null,
              "data-key": `patient-${one.patient_id}`,
              onclick: () => emit(this, "patient", one),
            },
            h("span", { class: "avatar", "aria-hidden": "true" }, initials(one.name)),
            h(
              "span",
              { class: "patient-text" },
              h("strong", { dir: "auto" }, one.name),
              h(
                "span",
                { class: "small quiet" },
                [
                  one.age_years === null || one.age_years === undefined ? t("patient.age_unknown") : t("patient.age", { age: one.age_years }),
                  view.texts.of("patient.sex", one.sex, one.sex),
                  one.birth_date,
                  t("patient.record", { id: one.patient_id }),
                ].filter(Boolean).map(apart),
              ),
              names.get(plain(one.name)) > 1
                ? h("span", { class: "mark mark-warning" }, icon("missing"), t("patient.same_name"))
                : one.look_alike === true && h("span", { class: "mark mark-warning" }, icon("missing"), t("patient.like_name")),
              scriptMark(one.name, t),
              one.patient_id === openId && h("span", { class: "mark mark-open" }, icon("tick"), t("patient.is_open")),
            ),
          ),
        ),
      ),
    );
    this._note.textContent = view.patientsFailed
      ? t("patient.load_failed")
      : all.length === 0 && view.patients
        ? t("patient.empty")
        : found.length === 0 && view.patients
          ? t("patient.no_match")
          : "";
  }
}

/** Lower case without accents, so that "joao" finds "João". */
function plain(text) {
  return String(text).normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
}

/**
 * The patients whose whole name stands in a text, word for word; accents, case and signs aside.
 *
 * "Ana Costa Pereira" names nobody called "Ana Costa" while somebody has the longer name. Several patients of one
 * name are all returned: the caller has to ask which one is meant.
 */
export function namedIn(text, patients) {
  const words = (value) => ` ${plain(value).replace(/[^\p{L}\p{N}]+/gu, " ").trim()} `;
  const said = words(text);
  const found = patients.map((one) => [words(one.name), one]).filter(([name]) => name.trim().includes(" ") && said.includes(name));
  return found.filter(([name]) => !found.some(([other]) => other !== name && other.includes(name))).map(([, one]) => one);
}

customElements.define("patient-banner", PatientBanner);
customElements.define("patient-list", PatientList);
