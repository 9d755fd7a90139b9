/** <facts-card>: what the record says by itself, the most dangerous first. */

import { emit, fill, h, icon } from "./dom.js";

/** A range up to this long stays on one line, so that "<" never stands apart from its number; a longer one wraps. */
const SHORT_CHARS = 14;

const LIST_KINDS = ["report", "condition", "medication", "procedure", "encounter", "demographic", "note"];
const TRENDS = { up: "up", rising: "up", down: "down", falling: "down", steady: "steady", stable: "steady", unchanged: "steady" };
const LEVEL_ICONS = { critical: "flag", warning: "allergy", info: "check" };
const LEVEL_RANK = { critical: 0, warning: 1, info: 2 };

export class FactsCard extends HTMLElement {
  /** facts: the `facts` frame. */
  show(view, facts) {
    this._view = view;
    this._t = view.texts.t.bind(view.texts);
    this._key = facts.response_id;
    const t = this._t;
    const all = facts.facts ?? [];
    const values = all.filter((one) => one.kind === "value");
    const abnormal = values.filter((one) => one.flag);
    const others = values.filter((one) => !one.flag);
    const allergies = all.filter((one) => one.kind === "allergy");
    const asOf = (facts.context?.layers ?? []).find((layer) => layer.name === "patient")?.as_of;
    const nothing = all.length === 0 && !facts.protocols?.length && !facts.checks?.length && !facts.red_flags?.length;
    fill(
      this,
      h(
        "section",
        { class: "card", "aria-label": t("facts.title") },
        h("h3", { class: "card-title" }, icon("pulse"), t("facts.title"), facts.patient_id !== null && h("span", { class: "card-patient", dir: "auto" }, view.patientLabel(facts.patient_id))),
        redFlags(view, facts.red_flags, (ref) => this._cite(ref, facts)),
        allergies.length > 0 &&
          this._section("facts.allergies", "allergy", "allergies", h("ul", { class: "plain" }, allergies.map((one) => h("li", {}, this._fact(one, one.text))))),
        checks(view, facts.checks, (ref) => this._cite(ref, facts)),
        abnormal.length > 0 && this._section("facts.abnormal", "pulse", "abnormal", this._table(abnormal, t("facts.abnormal"))),
        facts.scores?.length > 0 && this._section("facts.scores", "check", "scores", scores(view, facts.scores)),
        LIST_KINDS.map((kind) => {
          const some = all.filter((one) => one.kind === kind);
          if (some.length === 0) return null;
          return this._section(`facts.kind.${kind}`, null, kind, h("ul", { class: kind === "report" ? "plain reports" : "plain" }, some.map((one) => h("li", { title: one.as_of ?? null }, this._fact(one, one.text)))));
        }),
        others.length > 0 &&
          h("details", { class: "more", "data-key": `others-${this._key}` }, h("summary", { "data-key": `summary-${this._key}` }, t("facts.other_values", { count: others.length })), this._table(others, t("facts.title"))),
        facts.protocols?.length > 0 &&
          this._section(
            "facts.protocols",
            "book",
            "protocols",
            h("ul", { class: "plain" }, facts.protocols.map((one) => h("li", {}, this._protocol(one)))),
          ),
        missing(view, facts.missing),
        nothing && h("p", { class: "quiet" }, t("facts.nothing")),
        asOf && h("p", { class: "quiet small as-of" }, t("facts.as_of", { time: view.texts.time(asOf, view.now()) })),
      ),
    );
  }

  _section(title, sign, kind, ...content) {
    return h("div", { class: `facts-part part-${kind}` }, h("h4", {}, sign && icon(sign), this._t(title)), content);
  }

  /** A text that opens the chart item behind it, where there is one. */
  _fact(fact, text) {
    if (!fact.ref) return h("span", { dir: "auto" }, text);
    return h(
      "button",
      { class: "link", type: "button", dir: "auto", "data-key": `fact-${this._key}-${fact.ref}`, onclick: () => emit(this, "cite", chartSource(fact)) },
      text,
    );
  }

  _table(values, caption) {
    const t = this._t;
    return h(
      "table",
      { class: "values" },
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("facts.col.name")), h("th", { scope: "col" }, t("facts.col.value")), h("th", { scope: "col" }, t("facts.col.range")))),
      h(
        "tbody",
        {},
        values.map((one) =>
          h(
            "tr",
            { class: one.flag ? `flag-${one.flag.length > 1 ? "critical" : "abnormal"}` : null },
            h(
              "th",
              { scope: "row" },
              this._fact(one, one.name),
              h("span", { class: "small quiet" }, one.as_of ? h("time", { datetime: one.as_of, title: one.as_of }, this._view.texts.time(one.as_of, this._view.now())) : t("facts.time_unknown")),
            ),
            h("td", {}, valueCell(this._view, one)),
            h("td", { class: String(one.range).length > SHORT_CHARS ? "range" : "range nowrap", dir: "auto" }, one.range || "–"),
          ),
        ),
      ),
    );
  }

  _protocol(one) {
    const t = this._t;
    return h(
      "button",
      {
        class: "source",
        type: "button",
        "data-key": `protocol-${this._key}-${one.id}-${one.section}`,
        onclick: () => emit(this, "cite", { ...one, kind: "protocol", ref: `${one.id}#${one.section}` }),
      },
      icon("book"),
      h(
        "span",
        { class: "source-text" },
        h("strong", { dir: "auto" }, [one.title, one.section].filter(Boolean).join(", ")),
        h("span", { class: "quote", dir: "auto" }, one.quote),
        h("span", { class: "small quiet", dir: "auto" }, [one.source, one.year].filter(Boolean).join(", ")),
        one.superseded_by && h("span", { class: "mark mark-warning" }, icon("allergy"), t("cite.superseded", { by: one.superseded_by })),
      ),
    );
  }

  _cite(ref, facts) {
    const fact = (facts.facts ?? []).find((one) => one.ref === ref);
    emit(this, "cite", fact ? chartSource(fact) : { kind: "chart", ref, title: "", quote: "" });
  }
}

export function chartSource(fact) {
  return { kind: "chart", title: fact.name, quote: fact.text, as_of: fact.as_of, ref: fact.ref, source: "" };
}

/** The number exactly as it came, its unit, its flag in words and the trend in words. */
function valueCell(view, fact) {
  const t = view.texts.t.bind(view.texts);
  const flag = fact.flag;
  const trend = TRENDS[String(fact.trend).toLowerCase()];
  return [
    h(
      "span",
      { class: "value" },
      h("strong", {}, fact.value === null || fact.value === undefined ? fact.text : String(fact.value)),
      typeof fact.value === "number" && (fact.unit ? ` ${fact.unit}` : h("span", { class: "mark mark-warning" }, t("facts.unit_missing"))),
      typeof fact.value !== "number" && fact.unit && ` ${fact.unit}`,
    ),
    flag && h("span", { class: "mark mark-flag" }, icon(flag.startsWith("L") ? "down" : flag.startsWith("H") ? "up" : "flag"), h("b", {}, flag), ` ${view.texts.of("flag", flag, "")}`),
    fact.trend && h("span", { class: "trend small" }, trend && icon(trend), trend ? t(`trend.${trend}`) : fact.trend),
  ];
}

export function redFlags(view, flags, cite) {
  if (!flags?.length) return null;
  const t = view.texts.t.bind(view.texts);
  return h(
    "div",
    { class: "facts-part part-red" },
    h("h4", {}, icon("flag"), t("facts.red_flags")),
    h(
      "ul",
      { class: "plain" },
      flags.map((one) =>
        h(
          "li",
          {},
          one.ref && cite
            ? h("button", { class: "link", type: "button", dir: "auto", "data-key": `red-${one.id}-${one.ref}`, onclick: () => cite(one.ref) }, one.text)
            : h("span", { dir: "auto" }, one.text),
        ),
      ),
    ),
  );
}

export function checks(view, list, cite) {
  if (!list?.length) return null;
  const t = view.texts.t.bind(view.texts);
  const sorted = [...list].sort((a, b) => (LEVEL_RANK[a.level] ?? 3) - (LEVEL_RANK[b.level] ?? 3));
  return h(
    "div",
    { class: "facts-part part-checks" },
    h("h4", {}, icon("check"), t("facts.checks")),
    h(
      "ul",
      { class: "plain" },
      sorted.map((one) =>
        h(
          "li",
          { class: `check check-${one.level}` },
          h("span", { class: `mark mark-${one.level}` }, icon(LEVEL_ICONS[one.level] ?? "check"), view.texts.of("level", one.level, one.level)),
          " ",
          one.ref && cite && one.ref.includes("/")
            ? h("button", { class: "link", type: "button", dir: "auto", "data-key": `check-${one.id}-${one.ref}`, onclick: () => cite(one.ref) }, one.text)
            : h("span", { dir: "auto" }, one.text),
        ),
      ),
    ),
  );
}

export function scores(view, list) {
  const t = view.texts.t.bind(view.texts);
  return h(
    "ul",
    { class: "plain scores" },
    list.map((one) => {
      const parts = Object.entries(one.parts ?? {}).filter(([, points]) => points !== 0);
      return h(
        "li",
        {},
        h("strong", {}, one.name),
        " ",
        one.value === null || one.value === undefined
          ? h("span", { class: "mark" }, t("facts.score_none"))
          : [h("span", { class: "score-value" }, String(one.value)), one.band && h("span", { class: "mark", dir: "auto" }, one.band)],
        one.text && h("span", { class: "small", dir: "auto" }, ` ${one.text}`),
        parts.length > 0 && h("span", { class: "small quiet" }, ` ${parts.map(([name, points]) => `${name} ${points}`).join(", ")}`),
        one.missing?.length > 0 && h("span", { class: "small quiet" }, ` ${t("facts.score_missing", { list: one.missing.join(", ") })}`),
        one.as_of && h("time", { class: "small quiet", datetime: one.as_of, title: one.as_of }, ` ${view.texts.time(one.as_of, view.now())}`),
      );
    }),
  );
}

export function missing(view, list, title = "facts.missing") {
  if (!list?.length) return null;
  return h(
    "div",
    { class: "facts-part part-missing" },
    h("h4", {}, icon("missing"), view.texts.t(title)),
    h("ul", {}, list.map((one) => h("li", { dir: "auto" }, one))),
  );
}

customElements.define("facts-card", FactsCard);
