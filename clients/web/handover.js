/**
 * <handover-dialog>: what one is asked to take over, each accepted by itself; and one's own open items, to be given
 * to a colleague who is here. Until the colleague takes one it stays whose it was, and its row says so on both sides.
 */

import { personName, prioritySign, priorityOf, roleName } from "./alert-words.js";
import { Dialog } from "./dialogs.js";
import { emit, h, icon } from "./dom.js";

const ON_THE_WAY = new Set(["waiting", "sent", "retrying"]);

export class HandoverDialog extends Dialog {
  /** people(): {people, is_whole} of the department; act(frame): submits a step of an action and returns its id. */
  build({ people, act }) {
    this._people = people;
    this._act = act;
    this._found = null;
    this._failed = false;
    this._colleague = "";
    /** action_id → {id, to, text}: what was sent of it from here, and why it was refused. */
    this._acted = new Map();
    this._ticked = new Set([...this._loops().map((alert) => alert.key), ...this._actions().map((one) => one.proposed.action_id)]);
    this.title(this.t("handover.title"));
    this.changed();
    this._load();
  }

  async _load() {
    this._failed = false;
    try {
      this._found = await this._people();
    } catch {
      this._failed = true;
    }
    if (this.isConnected) this.changed();
  }

  /** A refusal of an action's hand-over; alerts' are in the book. */
  error(clientMsgId, text) {
    for (const acted of this._acted.values()) {
      if (acted.id !== clientMsgId) continue;
      acted.text = text;
      this.changed();
      return true;
    }
    return false;
  }

  changed() {
    const asked = this.view.conversation.book.asked();
    this.content(asked.length > 0 && this._asked(asked), this._mine());
  }

  // --- what one is asked for -----------------------------------------------------------------------------

  _asked(asked) {
    const { t } = this;
    return h("section", { class: "handover-part", "aria-labelledby": "handover-asked" }, h("h3", { id: "handover-asked" }, t("handover.asked")), h("ul", { class: "plain handover-rows" }, asked.map((one) => this._askedRow(one))));
  }

  _askedRow({ alert, offer }) {
    const { t, view } = this;
    const { book } = view.conversation;
    const hand = book.handOf(alert.key, offer.from);
    const onTheWay = ON_THE_WAY.has(hand?.status);
    const name = personName(view, offer.from);
    const button = (answer, label, kind) =>
      h("button", { class: `button ${kind}`, type: "button", disabled: onTheWay, "data-key": `${answer}-${alert.key}-${offer.from}`, "aria-label": `${label}: ${alert.frame.content}`, onclick: () => emit(this, "hand", { key: alert.key, giver: offer.from, answer, colleague: offer.from }) }, label);
    return h(
      "li",
      { class: `handover-row alert-${priorityOf(alert)}` },
      this._about(alert),
      h("p", { class: "handover-state" }, icon("person"), `${t("handover.asks", { name })} · ${t("handover.until", { clock: view.texts.clock(Date.parse(offer.until)) })}`),
      this._progress(hand),
      h("div", { class: "dialog-buttons" }, button("refuse_handover", t("handover.refuse"), ""), button("take_over", t("handover.take"), "primary")),
    );
  }

  // --- what one gives ------------------------------------------------------------------------------------

  _loops() {
    return this.view.conversation.book.loops();
  }

  /** Proposals that could still be chosen; an expired one is nothing to hand over. */
  _actions() {
    const { conversation } = this.view;
    const now = this.view.now() + conversation.clockOffsetMs;
    return [...conversation.actions.values()].filter((one) => one.status === "proposed" && !(Date.parse(one.proposed.expires_at ?? "") <= now));
  }

  _mine() {
    const { t, view } = this;
    const { book } = view.conversation;
    const me = book.me.user_id;
    const loops = this._loops();
    const taken = book.list().filter((alert) => alert.given?.event === "handed_over" && !loops.includes(alert));
    const actions = this._actions();
    const rows = [...loops.map((alert) => this._loopRow(alert, me)), ...actions.map((one) => this._actionRow(one)), ...taken.map((alert) => this._takenRow(alert))];
    if (rows.length === 0) return h("p", { class: "quiet" }, t("handover.none"));
    const free = this._chosen(loops, actions);
    return h(
      "form",
      {
        class: "handover-part",
        "aria-labelledby": "handover-mine",
        onsubmit: (event) => {
          event.preventDefault();
          this._submit();
        },
      },
      h("h3", { id: "handover-mine" }, t("handover.mine")),
      h("p", { class: "small quiet" }, t("handover.help")),
      h("ul", { class: "plain handover-rows" }, rows),
      this._choice(),
      h("div", { class: "dialog-buttons" }, h("button", { class: "button primary wide", type: "submit", "data-key": "handover-go", disabled: free.length === 0 || !this._colleague }, t("handover.go", { count: free.length }))),
    );
  }

  _choice() {
    const { t, view } = this;
    if (this._failed) return h("p", { class: "banner banner-warning" }, icon("failed"), t("handover.failed"), " ", h("button", { class: "button", type: "button", "data-key": "handover-again", onclick: () => this._load() }, t("line.retry")));
    if (!this._found) return h("p", { class: "quiet", role: "status" }, t("handover.loading"));
    const me = view.conversation.book.me.user_id;
    const people = this._found.people.filter((one) => one.user_id !== me);
    if (people.length === 0) return h("p", { class: "banner banner-warning" }, icon("people"), t("handover.nobody"));
    return [
      h(
        "label",
        { class: "field" },
        t("handover.to"),
        h(
          "select",
          {
            name: "colleague",
            required: true,
            "data-key": "handover-to",
            onchange: (event) => {
              this._colleague = event.target.value;
              this.changed();
            },
          },
          h("option", { value: "" }, t("handover.choose")),
          people.map((one) => h("option", { value: one.user_id, selected: one.user_id === this._colleague }, this._personText(one))),
        ),
      ),
      this._found.is_whole === false && h("p", { class: "small quiet" }, t("handover.partly")),
    ];
  }

  _personText(one) {
    const { t, view } = this;
    const roles = one.roles.map((role) => roleName(view.texts, role)).join(", ");
    const state = !one.is_here ? t("handover.not_here") : one.state !== "available" && view.texts.of("presence", one.state);
    return [one.user_id, roles, state].filter(Boolean).join(" · ");
  }

  _loopRow(alert, me) {
    const { t, view } = this;
    const { book } = view.conversation;
    const hand = book.handOf(alert.key, me);
    const offer = book.offerOf(alert, me);
    const free = !offer && !ON_THE_WAY.has(hand?.status);
    const has = book.mine(alert)?.answer === "accept";
    const ended = this._outcome(alert);
    return h(
      "li",
      { class: `handover-row alert-${priorityOf(alert)}` },
      this._tick(alert.key, free, this._about(alert), alert.frame.content),
      offer
        ? h("p", { class: "handover-state" }, icon("clock"), t("handover.offered", { name: personName(view, offer.to), clock: view.texts.clock(Date.parse(offer.until)) }))
        : h("p", { class: "handover-state" }, icon(ended ? "info" : has ? "tick" : "bell"), ended ?? t(has ? "handover.have" : "handover.calls")),
      this._progress(hand),
      offer && h("div", { class: "dialog-buttons" }, h("button", { class: "button", type: "button", disabled: ON_THE_WAY.has(hand?.status), "data-key": `revoke-${alert.key}`, "aria-label": `${t("handover.withdraw")}: ${alert.frame.content}`, onclick: () => emit(this, "hand", { key: alert.key, giver: me, answer: "revoke_handover", colleague: null }) }, t("handover.withdraw"))),
    );
  }

  _takenRow(alert) {
    return h("li", { class: "handover-row handover-taken" }, this._about(alert), h("p", { class: "handover-state" }, icon("ticks"), this._outcome(alert)));
  }

  /** How the last offer of mine has ended, or null. */
  _outcome(alert) {
    const { given } = alert;
    if (!given) return null;
    return this.t(`handover.${given.event}`, { name: personName(this.view, given.to), clock: this.view.texts.clock(given.at) });
  }

  _actionRow(action) {
    const { t, view } = this;
    const { proposed } = action;
    const acted = this._acted.get(proposed.action_id);
    const patient = proposed.bound?.patient_id ?? null;
    const about = h("span", { class: "handover-about" }, h("span", { class: "alert-sign" }, icon("check"), h("strong", {}, t("handover.action"))), h("span", { class: "alert-content", dir: "auto" }, proposed.label), patient !== null && h("span", { class: "small", dir: "auto" }, view.patientLabel(patient)));
    return h(
      "li",
      { class: "handover-row" },
      this._tick(proposed.action_id, !acted || Boolean(acted.text), about, proposed.label),
      h("p", { class: "small" }, t("handover.action_help")),
      acted && this._progress({ status: acted.text ? "failed" : "sent", text: acted.text }),
    );
  }

  _tick(key, free, about, label) {
    if (!free) return about;
    const toggle = (event) => {
      if (event.target.checked) this._ticked.add(key);
      else this._ticked.delete(key);
      this.changed();
    };
    return h("label", { class: "handover-tick" }, h("input", { type: "checkbox", checked: this._ticked.has(key), "aria-label": label, "data-key": `tick-${key}`, onchange: toggle }), about);
  }

  _about(alert) {
    const { view } = this;
    const { frame } = alert;
    return h(
      "span",
      { class: "handover-about" },
      prioritySign(view.texts, alert),
      frame.drill && h("span", { class: "mark mark-drill" }, this.t("alerts.drill")),
      h("span", { class: "alert-content", dir: "auto" }, frame.content),
      frame.patient_id && h("span", { class: "small", dir: "auto" }, view.patientLabel(frame.patient_id)),
    );
  }

  /** Where what was pressed stands: nothing is called done before the server has it. */
  _progress(hand) {
    const { t, view } = this;
    if (!hand) return null;
    if (hand.status === "failed") return h("p", { class: "banner banner-critical", role: "alert" }, icon("failed"), t("handover.not_taken", { text: hand.text ?? view.texts.error(hand.code) }));
    return h("p", { class: "handover-state", role: "status" }, icon("clock"), t(view.isLive() && hand.status === "sent" ? "handover.sending" : "handover.not_sent"));
  }

  /** The keys of what is ticked and may be offered now. */
  _chosen(loops, actions) {
    const { book } = this.view.conversation;
    const me = book.me.user_id;
    const free = loops.filter((alert) => !book.offerOf(alert, me) && !ON_THE_WAY.has(book.handOf(alert.key, me)?.status)).map((alert) => alert.key);
    const open = actions.map((one) => one.proposed.action_id).filter((id) => !this._acted.has(id) || this._acted.get(id).text);
    return [...free, ...open].filter((key) => this._ticked.has(key));
  }

  _submit() {
    const { book } = this.view.conversation;
    const [loops, actions, colleague] = [this._loops(), this._actions(), this._colleague];
    if (!colleague) return;
    for (const key of this._chosen(loops, actions)) {
      if (book.alerts.has(key)) emit(this, "hand", { key, giver: book.me.user_id, answer: "hand_over", colleague });
      else this._acted.set(key, { id: this._act({ type: "action", action_id: key, step: "hand_over", colleague }), text: null });
    }
    this.changed();
  }
}

customElements.define("handover-dialog", HandoverDialog);
