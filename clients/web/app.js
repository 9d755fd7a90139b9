/**
 * <chatd-app>: sign-in, then the chat. Joins the session's rules (connection.js), the model of the screen
 * (conversation.js) and the components, and holds the only references to token and cursors: all in memory.
 */

import "./alert-dialogs.js";
import "./alert-sheet.js";
import "./answer-bubble.js";
import "./board.js";
import "./composer.js";
import "./facts-card.js";
import "./handover.js";
import "./message-list.js";
import "./strips.js";
import { presenceText } from "./alert-dialogs.js";
import { personName, sinceText, untilText } from "./alert-words.js";
import { Connection } from "./connection.js";
import { Conversation } from "./conversation.js";
import { openDialog } from "./dialogs.js";
import { fill, h, icon, say } from "./dom.js";
import { Texts, preferredLanguage } from "./i18n.js";
import { namedIn } from "./patient.js";
import { Server } from "./server.js";
import { bind, languageButton } from "./sign-in.js";
import { Bell } from "./sound.js";

const NOTE_MS = 12_000;
/** Ages and what is left are counted in seconds. */
const TICK_MS = 1_000;
const DIALOGS = "action-dialog, patient-dialog, dismiss-dialog, citation-dialog, alert-list, raise-dialog, presence-dialog, handover-dialog";
const PRESENCE_ICONS = { available: "available", busy: "busy", in_procedure: "knife", off: "away" };

/** A wall display is opened as `#board`, `?board` or `/board`. */
export function isBoardAddress({ hash, search, pathname }) {
  return hash === "#board" || new URLSearchParams(search).has("board") || /\/board\/?$/.test(pathname);
}

export class ChatdApp extends HTMLElement {
  connectedCallback() {
    if (this._texts) return;
    this._isListening ??= false;
    this._texts = new Texts(preferredLanguage(navigator.languages));
    this._server = new Server(this.hasAttribute("base") ? new URL(this.getAttribute("base"), document.baseURI) : undefined);
    this._bell = new Bell();
    if (!this._isListening) this._listen();
    this._isListening = true;
    this._polite = h("div", { class: "hidden", "aria-live": "polite", "data-live": "polite" });
    this._assertive = h("div", { class: "hidden", "aria-live": "assertive", "data-live": "assertive" });
    this._screen = h("div", { class: "screen" });
    this.replaceChildren(this._screen, this._polite, this._assertive);
    this._language(this._texts.lang);
    if (this._credentials) this._start(this._credentials);
    else this._signIn(null);
  }

  disconnectedCallback() {
    this._leave();
    this._bell.close();
    this._texts = null;
  }

  /** For a page that embeds this one and signs people in itself: {userId, department, fetchToken}. */
  set credentials(value) {
    this._credentials = value;
    if (this._texts) this._start(value);
  }

  // --- screens -------------------------------------------------------------------------------------------

  _signIn(reason) {
    this._leave();
    this._reason = reason;
    document.title = this._texts.t("app.title");
    const form = document.createElement("chatd-sign-in");
    this._screen.replaceChildren(form);
    form.show({ texts: this._texts, server: this._server, isBoard: this._isBoard() }, reason);
  }

  _isBoard() {
    return this.hasAttribute("board") || isBoardAddress(location);
  }

  _start({ userId, department, fetchToken }) {
    this._leave();
    this._bell.unlock();
    this._conversation = new Conversation();
    this._userId = userId;
    this._department = department;
    this._token = null;
    const app = this;
    const texts = () => this._texts;
    /** What the components see of the application. */
    this._view = {
      conversation: this._conversation,
      get texts() {
        return texts();
      },
      line: { phase: "connecting", offlineSince: null },
      wasLive: false,
      departmentId: department,
      heardAt: () => this._connection?.session.heardAt ?? null,
      patients: null,
      patientsFailed: false,
      now: () => Date.now(),
      isLive: () => this._view.line.phase === "live",
      patientName(id) {
        if (app._conversation.patient?.patient_id === id) return app._conversation.patient.name;
        return this.patients?.find((one) => one.patient_id === id)?.name ?? texts().t("patient.record", { id });
      },
      patientLabel(id) {
        const name = this.patientName(id);
        const record = texts().t("patient.record", { id });
        return name === record ? record : `${name} · ${record}`;
      },
    };
    this._connection = new Connection({
      url: this._server.socketUrl(department, userId),
      lang: this._texts.locale,
      channel: this._isBoard() ? "board" : "app",
      fetchToken: async () => {
        const answer = await fetchToken();
        this._token = answer.token;
        return answer;
      },
    });
    this._connection.addEventListener("deliver", (event) => this._deliver(event.detail.frame));
    this._connection.addEventListener("outgoing", (event) => this._outgoing(event.detail));
    this._connection.addEventListener("line", (event) => this._line(event.detail));
    this._shell();
    this._ticker = setInterval(() => this._tick(), TICK_MS);
    this._connection.start();
    this.querySelector("chat-composer")?.focusField();
  }

  /** Forget everything of the session. */
  _leave() {
    this._connection?.end();
    this._connection = null;
    this._conversation = null;
    this._view = null;
    this._token = null;
    clearTimeout(this._noteTimer);
    clearInterval(this._ticker);
    for (const dialog of this.querySelectorAll(`${DIALOGS}, alert-sheet`)) dialog.remove();
    this._screen?.replaceChildren();
    this._polite?.replaceChildren();
    this._assertive?.replaceChildren();
  }

  _shell() {
    const { t } = bind(this._texts);
    if (this._isBoard()) {
      this._parts = { board: document.createElement("wall-board") };
      this._screen.replaceChildren(this._parts.board);
      this._parts.board.show(this._view);
      return;
    }
    let sheet = this.querySelector("alert-sheet");
    if (!sheet) this.append((sheet = document.createElement("alert-sheet")));
    const composer = this.querySelector("chat-composer") ?? document.createElement("chat-composer");
    this._top = h("header", { class: "top" });
    this._note = h("div", { class: "note-place", role: "alert" });
    this._parts = {
      status: document.createElement("status-line"),
      alerts: document.createElement("alert-strip"),
      banner: document.createElement("patient-banner"),
      list: document.createElement("message-list"),
      side: document.createElement("patient-list"),
      composer,
      sheet,
    };
    this._screen.replaceChildren(
      h(
        "div",
        { class: "app" },
        h("a", { class: "skip", href: "#composer-field", onclick: (event) => { event.preventDefault(); composer.focusField(); } }, t("app.skip")),
        this._top,
        this._parts.status,
        this._parts.alerts,
        h(
          "div",
          { class: "columns" },
          h("aside", { class: "side", "aria-label": t("patient.list") }, h("h2", { class: "side-title" }, t("patient.list")), this._parts.side),
          h("main", { class: "chat" }, h("h1", { class: "hidden" }, t("chat.region")), this._parts.banner, this._parts.list, this._note, composer),
        ),
      ),
    );
    this._drawTop();
    for (const part of Object.values(this._parts)) part.show(this._view);
  }

  _drawTop() {
    const { t } = bind(this._texts);
    const { department, user } = this._conversation;
    fill(
      this._top,
      h("span", { class: "brand" }, icon("pulse"), h("span", { class: "brand-name" }, t("app.title"))),
      h(
        "span",
        { class: "who" },
        h("strong", { dir: "auto" }, department?.name ?? this._department),
        h("span", { class: "small", dir: "auto" }, user?.name ?? this._userId),
      ),
      this._presenceButton(t),
      h("button", { class: "button top-raise", type: "button", "aria-label": t("raise.title"), title: t("raise.title"), "data-key": "raise", onclick: () => this._raiseDialog() }, icon("siren"), h("span", { class: "top-label" }, t("raise.short"))),
      languageButton(this._top, t),
      h("button", { class: "icon-button", type: "button", "aria-label": t("user.sign_out"), title: t("user.sign_out"), "data-key": "sign-out", onclick: () => this._signIn(1000) }, icon("out")),
    );
  }

  _presenceButton(t) {
    const { book, presence } = this._conversation;
    const mine = presence.get(book.me.user_id);
    const text = mine ? presenceText(this._view, mine) : t("presence.unknown");
    return h(
      "button",
      { class: "button quiet-button top-presence", type: "button", "aria-label": t("presence.button", { state: text }), title: text, "data-key": "presence", onclick: () => openDialog(this, "presence-dialog", this._view, this._bell, (frame) => this._submit("w", frame)) },
      icon(PRESENCE_ICONS[mine?.state] ?? "people"),
      h("span", { class: "top-label" }, mine ? this._texts.of("presence", mine.state) : t("presence.short")),
    );
  }

  _raiseDialog() {
    openDialog(this, "raise-dialog", this._view, (frame) => {
      const id = Connection.makeId("m");
      this._conversation.book.raise(id, frame, Date.now());
      this._changed(this._conversation.alertsChanged());
      this._connection.submit({ ...frame, client_msg_id: id });
      return id;
    });
  }

  _language(lang) {
    this._texts = new Texts(lang);
    document.documentElement.lang = this._texts.locale;
    if (this._connection) this._connection.session.lang = this._texts.locale;
  }

  // --- what components ask for ---------------------------------------------------------------------------

  _listen() {
    const on = (name, handler) => this.addEventListener(`chatd:${name}`, (event) => handler(event.detail, event));
    on("sign-in", (detail) => this._start(detail));
    on("language", (lang) => {
      this._language(lang);
      const form = this.querySelector("chatd-sign-in");
      if (form) form.show({ texts: this._texts, server: this._server, isBoard: this._isBoard() }, this._reason);
      else this._shell();
      this.querySelector("[data-key=lang]")?.focus();
    });
    on("ask", (detail, event) => {
      if (!this._ask(detail)) event.preventDefault();
    });
    on("example", ({ text, patient }) => {
      this._parts.composer.put(text);
      if (!this._conversation.patient) this._choosePatient(patient);
    });
    on("cancel", (item) => {
      this._changed(this._conversation.markCancelling(item.key));
      this._connection.cancel(item.key);
    });
    on("retry", (key) => this._retry(key));
    on("discard", (key) => this._changed(this._conversation.remove(key)[1]));
    on("retry-line", () => this._connection.retryNow());
    on("choose-patient", () => this._choosePatient(null));
    on("patient", (patient) => this._choosePatient(patient));
    on("close-patient", () => this._contextSet(null, null));
    on("cite", (source) => openDialog(this, "citation-dialog", this._view, source));
    on("action", (actionId) => this._actionDialog("action-dialog", actionId));
    on("dismiss", (actionId) => this._actionDialog("dismiss-dialog", actionId));
    on("feedback", ({ item, useful }) => {
      this._changed(this._conversation.setFeedback(item.responseId, useful));
      this._submit("f", { type: "feedback", response_id: item.responseId, useful, codes: [] });
    });
    on("alert", (detail) => this._answerAlert(detail));
    on("hand", (detail) => this._hand(detail));
    on("hand-over", () => this._handoverDialog());
    const change = (work) => {
      work(this._conversation.book);
      this._changed(this._conversation.alertsChanged());
    };
    on("list-alerts", () => openDialog(this, "alert-list", this._view));
    on("raise-alert", () => this._raiseDialog());
    on("alert-later", (key) => change((book) => book.later(key)));
    // An alert that leaves by itself must not let a tap or a key that was meant for it fall on what was below.
    on("sheet-gone", (ms) => {
      this.classList.add("settling");
      clearTimeout(this._settleTimer);
      this._settleTimer = setTimeout(() => this.classList.remove("settling"), ms);
    });
    this.addEventListener("keydown", (event) => {
      if (!this.classList.contains("settling") || (event.key !== "Enter" && event.key !== " ")) return;
      event.preventDefault();
      event.stopPropagation();
    }, { capture: true });
    // Whoever is signed in by another page has not touched this one yet.
    for (const touch of ["pointerdown", "keydown"]) this.addEventListener(touch, () => this._bell.unlock(), { passive: true });
    on("open-alert", (key) => change((book) => book.open(key)));
    on("alert-seen", (key) => {
      const { book } = this._conversation;
      const alert = book.alerts.get(key);
      if (alert?.addressed && !book.raisedByMe(alert)) this._connection.receipt(key, "displayed");
    });
    on("raise-again", (id) => this._connection.sendAnyway(id));
    on("raise-withdraw", (id) => this._connection.withdraw(id));
    on("raise-hide", (id) => change((book) => book.forgetRaise(id)));
    addEventListener("hashchange", () => {
      // The other view is another channel, with a line of its own.
      if (this.isConnected && this._connection && (this._connection.session.channel === "board") !== this._isBoard()) this._signIn(1000);
    });
  }

  /** Answer an alert: it counts when the log says so, and is sent until then. */
  _answerAlert({ key, answer, slot, reason, eta_min }) {
    const { book } = this._conversation;
    const id = Connection.makeId("m");
    if (!book.answer(key, { id, answer, slot, reason, eta_min }, Date.now())) return;
    // Who has taken it goes on seeing it, until they put it away.
    if (answer === "accept" && book.alerts.get(key).frame.requires_action) book.open(key);
    const frame = { type: "alert_response", client_msg_id: id, alert_id: key, answer };
    for (const [name, value] of Object.entries({ slot, reason, eta_min })) if (value !== null) frame[name] = value;
    this._connection.submit(frame);
    this._changed(this._conversation.alertsChanged());
  }

  /** Offer an alert to a colleague, take one over, refuse or withdraw: sent until the server has decided. */
  _hand({ key, giver, answer, colleague }) {
    const id = Connection.makeId("m");
    if (!this._conversation.book.hand(key, { id, giver, answer, colleague })) return;
    const frame = { type: "alert_response", client_msg_id: id, alert_id: key, answer };
    if (colleague !== null) frame.colleague = colleague;
    this._connection.submit(frame);
    this._changed(this._conversation.alertsChanged());
  }

  _handoverDialog() {
    openDialog(this, "handover-dialog", this._view, {
      people: () => this._server.people(this._department, this._token),
      act: (frame) => this._submit("a", frame),
    });
  }

  /** Submit a command under a new id, and return the id. */
  _submit(prefix, frame) {
    const id = Connection.makeId(prefix);
    this._connection.submit({ ...frame, client_msg_id: id });
    return id;
  }

  /**
   * Send a question about the patient who is open now. False: it stays in the message field.
   *
   * With no record open, a question that names a patient of the department by the whole name opens that record
   * first; where several have the name, the person says which one.
   */
  _ask({ text, urgency }) {
    if (this._opening) {
      this._say(this._texts.t("patient.opening"));
      return false;
    }
    const patient = this._conversation.patient;
    const named = patient ? [] : namedIn(text, this._view.patients ?? []);
    if (named.length > 0) {
      this._choosePatient(named.length === 1 ? named[0] : null, {
        search: named[0].name,
        done: (isOpen) => {
          if (isOpen) this._ask({ text, urgency });
          else this._parts.composer.put(text); // nobody was opened: the question is the person's again
        },
      });
      return true;
    }
    const id = Connection.makeId("q");
    const at = Date.now();
    const known = patient ? { patient_id: patient.patient_id, name: patient.name } : null;
    this._changed(this._conversation.ask({ id, text, patient: known, urgency, lang: this._texts.locale, at }));
    this._connection.submit({
      type: "user_message",
      client_msg_id: id,
      user_id: this._userId,
      department: this._department,
      patient_id: known?.patient_id ?? null,
      content: text,
      timestamp: new Date(at).toISOString(),
      session_id: this._connection.session.sessionId,
      urgency,
      input: "text",
      lang: this._texts.locale,
    });
    this._parts.list.follow();
    return true;
  }

  /** Ask a failed question again: about the patient it was about, or not at all. */
  _retry(key) {
    const item = this._conversation.items.get(key);
    const asked = item?.question?.patient?.patient_id ?? null;
    const open = this._conversation.patient?.patient_id ?? null;
    if (asked !== null && asked !== open) {
      this._say(this._texts.error("patient_mismatch"));
      return;
    }
    const [question, changed] = this._conversation.remove(key);
    this._changed(changed);
    if (question) this._ask({ text: question.text, urgency: question.urgency });
  }

  _choosePatient(patient, more = {}) {
    if (patient && patient.patient_id === this._conversation.patient?.patient_id) return;
    this._loadPatients();
    const choose = (one, second, reason) => this._contextSet(one.patient_id, second, reason);
    const done = (isOpen) => {
      more.done?.(isOpen);
      if (isOpen) this._parts.composer.focusField();
    };
    openDialog(this, "patient-dialog", this._view, { patient, choose, search: more.search, done });
  }

  _contextSet(patientId, second, reason) {
    const frame = { type: "context_set", patient_id: patientId };
    if (second) frame.second_identifier = second;
    if (reason) frame.reason = reason;
    this._opening = this._submit("c", frame);
    return this._opening;
  }

  _actionDialog(name, actionId) {
    const action = this._conversation.actions.get(actionId);
    if (!action) return;
    openDialog(this, name, this._view, action, (step, extra) =>
      this._submit("a", { type: "action", action_id: actionId, step, ...extra }),
    );
  }

  async _loadPatients() {
    const view = this._view;
    if (!this._token) return;
    try {
      const patients = await this._server.patients(this._department, this._token);
      if (view !== this._view) return;
      view.patients = patients;
      view.patientsFailed = false;
    } catch {
      if (view !== this._view) return;
      view.patientsFailed = true;
    }
    for (const list of this.querySelectorAll("patient-list")) list.show(view);
    this._parts.list.patientChanged();
  }

  // --- what the session tells ----------------------------------------------------------------------------

  _deliver(frame) {
    const conversation = this._conversation;
    this._changed(conversation.apply(frame, Date.now()));
    if (frame.type === "welcome" && !this._parts.board) {
      this._parts.composer.limitsChanged();
      this._drawTop();
      if (this._view.patients === null) this._loadPatients();
    }
    if (frame.type === "action_update") {
      for (const dialog of this.querySelectorAll("action-dialog")) {
        if (dialog.actionId === frame.action_id) dialog.update(frame);
      }
      for (const dialog of this.querySelectorAll("handover-dialog")) dialog.changed();
    }
    if (frame.type === "context" || frame.type === "snapshot") {
      if (frame.type === "snapshot" || frame.client_msg_id === this._opening) this._opening = null;
      for (const dialog of this.querySelectorAll("patient-dialog")) dialog.opened(frame);
    }
    if (frame.type === "presence") for (const dialog of this.querySelectorAll("presence-dialog")) dialog.told(frame);
    if (frame.type === "system_notification" || frame.type === "snapshot") this._tellArrived();
    this._signal();
    if (frame.type === "error") this._error(frame);
  }

  /** The server counts whom an alert has reached; a wall display is nobody. */
  _tellArrived() {
    if (this._parts.board) return;
    const { book } = this._conversation;
    for (const alert of book.list()) {
      if (alert.addressed && alert.frame.alert_id && !book.raisedByMe(alert)) this._connection.receipt(alert.key, "delivered");
    }
  }

  /** Ring, and say who has taken what was on the screen. */
  _signal() {
    const conversation = this._conversation;
    const { rung, taken, handed } = conversation;
    conversation.rung = conversation.taken = conversation.handed = null;
    if (rung && !this._parts.board) this._bell.ring(rung.frame.priority);
    if (taken && !this._parts.board) this._say(this._texts.t("alerts.taken", { by: personName(this._view, taken.by), text: taken.alert.frame.content }), "info");
    if (handed && !this._parts.board) this._say(this._spoken(handed.key, handed.params), handed.level === "polite" ? "info" : "critical");
  }

  _error(frame) {
    const id = frame.client_msg_id;
    const text = this._texts.error(frame.code, frame.message);
    if (id && id === this._opening) this._opening = null;
    for (const dialog of this.querySelectorAll("action-dialog, patient-dialog, presence-dialog, handover-dialog")) {
      if (dialog.error(id, text, frame.code)) return;
    }
    const item = id ? this._conversation.items.get(id) : undefined;
    if (item?.question) {
      if (item.question.error) item.question.error.message = frame.message;
      item.cancelling = false;
      this._changed([`x:${id}`]);
      return; // it stands beside its message
    }
    if (!id && frame.detail?.startsWith("alerts:")) {
      this._say(this._texts.t("alerts.away"));
      return;
    }
    if (id?.startsWith("n-")) return; // "delivered" of an alert that is closed meanwhile
    const { book } = this._conversation;
    if (book.raises.has(id) || [...book.pending.values(), ...book.hands.values()].some((one) => one.id === id)) return; // it stands beside its alert
    this._say(text);
  }

  _outgoing(effect) {
    this._changed(this._conversation.outgoing(effect, Date.now()));
    if (effect.status === "failed" && effect.code === "outbox_full") {
      if (effect.id === this._opening) this._opening = null;
      this._say(this._texts.error(effect.code));
    }
  }

  _line(line) {
    const view = this._view;
    if (line.phase === "stopped") {
      this._signIn(line.code ?? 1000);
      return;
    }
    const wasLive = view.line.phase === "live";
    view.line = line;
    if (line.phase === "live") {
      if (view.wasLive) this._announce("polite", this._texts.t("announce.online"));
      view.wasLive = true;
    } else if (wasLive) {
      this._announce("polite", this._texts.t("announce.offline"));
    }
    this._parts.status?.show(view);
    // "Sent" and "not sent, retrying" depend on the line.
    this._changed(this._conversation.alertsChanged());
  }

  // --- drawing -------------------------------------------------------------------------------------------

  /** Draw what has changed, once per turn of the event loop. */
  _changed(keys) {
    const pending = (this._pending ??= new Set());
    for (const key of keys) pending.add(key);
    if (pending.size === 0 || this._drawing) return;
    this._drawing = true;
    queueMicrotask(() => {
      this._drawing = false;
      const due = new Set(pending);
      pending.clear();
      if (this._conversation) this._draw(due);
    });
  }

  _draw(due) {
    const { list, banner, alerts, status, side, sheet, board } = this._parts;
    if (board) {
      board.show(this._view);
      this._conversation.takeAnnouncements(); // nobody stands at a wall with a screen reader
      return;
    }
    if (due.has("line")) status.show(this._view);
    if (due.has("presence")) this._drawTop();
    if (due.has("alerts")) {
      alerts.show(this._view);
      sheet.show(this._view);
      for (const dialog of this.querySelectorAll("alert-list, raise-dialog, handover-dialog")) dialog.changed();
      const open = this._conversation.openAlerts().length;
      document.title = this._texts.t(open > 0 ? "app.alerts_title" : "app.title", { count: open });
    }
    if (due.has("list")) list.arrange();
    if (due.has("patient")) {
      banner.show(this._view);
      side.show(this._view);
      list.patientChanged();
    }
    for (const key of due) if (key.startsWith("x:")) list.refresh(key.slice(2));
    for (const { level, key, params } of this._conversation.takeAnnouncements()) this._announce(level, this._spoken(key, params));
  }

  _spoken(key, params) {
    const { t } = bind(this._texts);
    if (key === "announce.failed") return t(key, { text: this._texts.error(params.code) });
    if (key === "announce.alert") return t(key, { ...params, priority: this._texts.of("alerts.priority", params.priority) });
    if (key === "announce.action") return t(key, { ...params, status: this._texts.of("action.state", params.status) });
    if (key === "announce.alert_over") return t(key, { ...params, state: this._texts.of("alerts.state", params.state) });
    if (key.startsWith("announce.alert_") || key.startsWith("announce.handover_")) return t(key, { ...params, by: personName(this._view, params.by) });
    return t(key, params);
  }

  _announce(level, text) {
    const place = level === "assertive" ? this._assertive : this._polite;
    place.append(h("p", {}, text));
    while (place.children.length > 5) place.firstChild.remove();
  }

  /** Something that belongs to no message: said for a while above the message field. */
  _say(text, kind = "critical") {
    clearTimeout(this._noteTimer);
    fill(this._note, h("p", { class: `banner banner-${kind}` }, icon(kind === "info" ? "tick" : "failed"), text));
    this._noteTimer = setTimeout(() => this._note.replaceChildren(), NOTE_MS);
  }

  /** What changes with the clock alone: ages, what is left, the board's last word. */
  _tick() {
    for (const part of this.querySelectorAll("[data-since]")) say(part, sinceText(this._view, Number(part.dataset.since)));
    for (const part of this.querySelectorAll("[data-until]")) say(part, untilText(this._view, Number(part.dataset.until)));
    this._parts.alerts?.tick();
    this._parts.sheet?.tick();
    this.querySelector("alert-list")?.tick();
    this._parts.board?.tick();
  }
}

customElements.define("chatd-app", ChatdApp);
