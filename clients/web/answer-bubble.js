/** <answer-bubble>: the answer to one question, from "in the queue" over streamed text to the final frame. */

import { emit, fill, h, icon, say } from "./dom.js";
import { checks, chartSource, missing, redFlags, scores } from "./facts-card.js";

/** Sections a model may stream; any other is shown under its own name. */
const SECTION_TITLES = {
  headline: "answer.headline",
  findings: "answer.findings",
  interpretation: "answer.interpretation",
  recommendations: "answer.recommendations",
  missing: "answer.missing",
};

export class AnswerBubble extends HTMLElement {
  show(view, item) {
    this._view = view;
    this._item = item;
    this._t = view.texts.t.bind(view.texts);
    this.className = "bubble from-chatd answer";
    if (item.final) {
      this._live = null;
      this._final(item.final);
    } else {
      this._pending();
    }
  }

  /**
   * Before the final frame: built once, then only its texts change. Text arrives many times a second, and a button
   * that is built anew between the finger's down and up never hears of the tap.
   */
  _pending() {
    const { _t: t, _item: item } = this;
    this._live ??= this._build(item);
    const { status, streams, again, gap, stop, label } = this._live;
    say(status, this._state());
    again.hidden = !(item.again || item.stream?.attempt > 1);
    this._stream(streams, item.stream?.sections ?? new Map());
    gap.hidden = !item.stream?.broken;
    stop.disabled = Boolean(item.cancelling);
    say(label, item.cancelling ? t("chat.stopping") : t("chat.stop"));
  }

  _build(item) {
    const status = h("span");
    const again = h("p", { class: "small quiet", hidden: true }, this._t("chat.again"));
    const streams = h("div");
    const gap = h("p", { class: "small quiet", hidden: true }, this._t("chat.stream_gap"));
    const label = h("span");
    const stop = h(
      "button",
      { class: "button stop", type: "button", "data-key": `stop-${item.key}`, onclick: () => emit(this, "cancel", this._item) },
      icon("stop"),
      label,
    );
    // Stop stands above the text: below it, it would run away from the finger with each line.
    this.replaceChildren(
      h(
        "div",
        { class: "pending-head" },
        h("p", { class: "pending", role: "status" }, h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), status),
        stop,
      ),
      again,
      streams,
      gap,
    );
    return { status, streams, again, gap, stop, label };
  }

  _state() {
    const { _t: t, _item: item } = this;
    if (item.queue?.state === "stalled") return t("chat.stalled");
    if (item.stream || item.queue?.state === "running") return t("chat.writing");
    if (!item.queue || item.queue.position <= 0) return t(item.queue?.state === "restarted" ? "chat.restarted" : "chat.working");
    const { position, eta_ms } = item.queue;
    if (eta_ms === null || eta_ms === undefined) return t("chat.queue", { position });
    return t("chat.queue_eta", { position, seconds: Math.max(1, Math.round(eta_ms / 1000)) });
  }

  /** One element per section, in the order of `sections`; what is there already only grows. */
  _stream(parent, sections) {
    const there = new Map([...parent.children].map((one) => [one.dataset.section, one]));
    for (const [section, element] of there) if (!sections.has(section)) element.remove();
    for (const [section, text] of sections) {
      let element = there.get(section);
      if (!element) {
        const title = SECTION_TITLES[section] ? this._t(SECTION_TITLES[section]) : section;
        element = h("div", { class: "stream", "data-section": section }, section && h("h4", {}, title), h("p", { dir: "auto", class: "prose" }));
        parent.append(element);
      }
      say(element.lastElementChild, text);
    }
  }

  _final(frame) {
    const { _t: t, _view: view, _item: item } = this;
    const data = frame.content?.structured_data ?? {};
    const shownFlags = new Set((item.facts?.red_flags ?? []).map((one) => one.id));
    const shownChecks = new Set((item.facts?.checks ?? []).map((one) => one.id));
    const newFlags = (data.red_flags ?? []).filter((one) => !shownFlags.has(one.id));
    const newChecks = (data.checks ?? []).filter((one) => !shownChecks.has(one.id));
    const structured = Boolean(data.headline || data.findings?.length || data.recommendations?.length || data.interpretation?.length);
    const why = frame.status === "degraded" && view.texts.has(`answer.degraded.${frame.finish_reason}`) && t(`answer.degraded.${frame.finish_reason}`);
    const statusText = why || (frame.status !== "completed" && view.texts.of("answer.status", frame.status, frame.status));
    const about = frame.patient_id ?? item.facts?.patient_id ?? null;
    const model = Boolean(frame.model);
    fill(
      this,
      h("h3", { class: "hidden" }, t("answer.title")),
      about !== null && h("p", { class: "about small", dir: "auto" }, icon("person"), view.patientLabel(about)),
      item.stale && h("p", { class: "banner banner-warning", role: "alert" }, icon("again"), t("answer.stale", { field: item.stale.field, time: view.texts.time(item.stale.new_as_of, view.now()) })),
      statusText && h("p", { class: `banner ${["failed", "blocked"].includes(frame.status) ? "banner-critical" : "banner-warning"}` }, icon("failed"), statusText),
      redFlags(view, newFlags, null),
      frame.is_shared && h("p", { class: "small quiet" }, t("answer.shared")),
      data.headline && h("p", { class: "headline", dir: "auto" }, this._cited(data.headline, data)),
      this._list("answer.findings", data.findings, data),
      this._list("answer.interpretation", data.interpretation, data),
      this._list("answer.recommendations", data.recommendations, data, "recommendations"),
      !item.facts && data.scores?.length > 0 && h("div", { class: "facts-part" }, h("h4", {}, t("facts.scores")), scores(view, data.scores)),
      checks(view, newChecks, null),
      missing(view, data.missing, "answer.missing"),
      !structured && frame.content?.text && h("p", { class: "prose", dir: "auto" }, this._cited(frame.content.text, data)),
      structured &&
        frame.content?.text &&
        h("details", { class: "more", "data-key": `text-${item.key}` }, h("summary", { "data-key": `text-summary-${item.key}` }, t("answer.text")), h("p", { class: "prose", dir: "auto" }, frame.content.text)),
      this._sources(data),
      this._actions(data),
      h("p", { class: "notice small" }, icon("check"), h("span", {}, t(model ? "answer.made_ai" : "answer.made_facts"), " ", frame.notice ? h("span", { dir: "auto" }, frame.notice) : t("answer.verify"))),
      this._footer(frame),
    );
  }

  /** "... [1] ..." with each mark that has a source as a button that opens it. */
  _cited(text, data) {
    const known = new Map((data.citations ?? []).map((one) => [one.n, one]));
    const parts = String(text).split(/(\[\d{1,3}\])/);
    return parts.map((part, index) => {
      const n = /^\[(\d{1,3})\]$/.exec(part)?.[1];
      const citation = n === undefined ? undefined : known.get(Number(n));
      if (!citation) return part;
      return h(
        "button",
        { class: "cite", type: "button", "aria-label": this._t("answer.cite", { n }), "data-key": `mark-${this._item.key}-${index}-${text.length}-${n}`, onclick: () => this._open(citation) },
        part,
      );
    });
  }

  _list(title, lines, data, kind = "") {
    if (!lines?.length) return null;
    return h(
      "div",
      { class: `answer-part ${kind}` },
      h("h4", {}, this._t(title)),
      h("ul", {}, lines.map((line) => h("li", { dir: "auto" }, this._cited(line, data)))),
    );
  }

  _sources(data) {
    const t = this._t;
    if (!data.citations?.length) return null;
    return h(
      "details",
      { class: "more", "data-key": `sources-${this._item.key}` },
      h("summary", { "data-key": `sources-summary-${this._item.key}` }, `${t("answer.sources")} (${data.citations.length})`),
      h(
        "ol",
        { class: "plain sources" },
        data.citations.map((one) =>
          h(
            "li",
            {},
            h(
              "button",
              { class: "source", type: "button", "data-key": `source-${this._item.key}-${one.n}`, onclick: () => this._open(one) },
              h("span", { class: "source-n" }, `[${one.n}]`),
              h(
                "span",
                { class: "source-text" },
                h("strong", { dir: "auto" }, one.title || one.ref),
                h("span", { class: "small quiet", dir: "auto" }, [t(`cite.${one.kind}`), one.source, one.year, one.as_of && this._view.texts.time(one.as_of, this._view.now())].filter(Boolean).join(" · ")),
              ),
            ),
          ),
        ),
      ),
    );
  }

  /** The citation with what the facts of the same question know about it: approval, review date, the item's text. */
  _open(citation) {
    const facts = this._item.facts;
    let extra = {};
    if (citation.kind === "protocol") {
      const [id, section] = String(citation.ref).split("#");
      const same = (facts?.protocols ?? []).filter((one) => one.id === id);
      extra = same.find((one) => one.section === section || one.quote === citation.quote) ?? (same.length === 1 && !citation.quote ? same[0] : {});
      if (!extra.id && section) extra = { section };
    } else {
      const fact = (facts?.facts ?? []).find((one) => one.ref === citation.ref);
      if (fact) extra = chartSource(fact);
    }
    const told = Object.fromEntries(Object.entries(citation).filter(([, value]) => value !== null && value !== ""));
    emit(this, "cite", { ...extra, ...told });
  }

  /** Chips appear on the final frame only; each opens the two-step dialog. */
  _actions(data) {
    const { _t: t, _view: view, _item: item } = this;
    if (!data.actions?.length) return null;
    const blocks = new Set();
    const chips = data.actions.map((one) => {
      const action = view.conversation.actions.get(one.action_id);
      const block = view.conversation.actionBlock(one.action_id, item, view.now());
      const state = action?.status ?? "proposed";
      const update = action?.update;
      if (block === "state") {
        const by = update?.by ? t("action.by", { state: t(`action.state.${state}`), by: update.by, time: view.texts.time(update.at, view.now()) }) : t(`action.state.${state}`);
        return h(
          "li",
          { class: `action action-${state}` },
          h("span", { class: "chip chip-settled" }, icon(["dismissed", "expired"].includes(state) ? "close" : "tick"), h("span", { dir: "auto" }, one.label), h("span", { class: "small" }, by)),
        );
      }
      if (block) blocks.add(block);
      return h(
        "li",
        { class: `action action-${state}` },
        h(
          "button",
          { class: "chip", type: "button", disabled: Boolean(block), "data-key": `action-${one.action_id}`, onclick: () => emit(this, "action", one.action_id) },
          h("span", { dir: "auto" }, one.label),
          state === "failed" && h("span", { class: "small" }, t("action.state.failed")),
        ),
        h("button", { class: "icon-button", type: "button", disabled: Boolean(block), "aria-label": t("action.dismiss_of", { label: one.label }), title: t("action.dismiss"), "data-key": `dismiss-${one.action_id}`, onclick: () => emit(this, "dismiss", one.action_id) }, icon("close")),
      );
    });
    return h(
      "div",
      { class: "actions" },
      h("h4", {}, t("answer.actions")),
      [...blocks].map((block) => h("p", { class: "small banner banner-info" }, t(`action.block.${block}`))),
      h("ul", { class: "plain chips" }, chips),
    );
  }

  _footer(frame) {
    const { _t: t, _view: view, _item: item } = this;
    const useful = (value, sign, label) =>
      h(
        "button",
        { class: "icon-button", type: "button", "aria-label": label, title: label, "aria-pressed": String(item.feedback === value), "data-key": `feedback-${value}-${item.key}`, onclick: () => item.feedback === null && emit(this, "feedback", { item, useful: value }) },
        icon(sign),
      );
    return h(
      "p",
      { class: "bubble-foot small quiet" },
      h("span", { class: "feedback" }, useful(true, "yes", t("answer.useful")), useful(false, "no", t("answer.not_useful")), item.feedback !== null && h("span", { role: "status" }, t("answer.thanks"))),
      h(
        "span",
        { class: "meta" },
        [
          frame.model && t("answer.model", { id: frame.model.id }),
          typeof frame.confidence === "number" && t("answer.confidence", { value: frame.confidence, basis: frame.confidence_basis }),
        ].filter(Boolean).join(" · "),
      ),
      frame.timestamp && h("time", { datetime: frame.timestamp, title: frame.timestamp }, view.texts.time(frame.timestamp, view.now())),
    );
  }
}

customElements.define("answer-bubble", AnswerBubble);
