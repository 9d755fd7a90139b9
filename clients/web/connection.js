/**
 * Carries out the effects of `ClientSession` with a WebSocket, timers and the page's visibility.
 *
 * Holds no rule of its own. One socket at a time; what an abandoned socket still says is ignored.
 */

import { ClientSession, PROTOCOL, newId } from "./protocol.js";

const EVENTS = ["deliver", "outgoing", "line"];

export class Connection extends EventTarget {
  /**
   * url: the WebSocket address, without any token. channel: "app", or "board" for a wall display.
   * fetchToken: async () => ({token, expires_in_s}); may reject: it is asked again later, unless the error is
   *   marked `final`.
   */
  constructor({ url, lang, channel = "app", fetchToken }) {
    super();
    this.session = new ClientSession({
      lang,
      channel,
      deviceId: Connection.makeId("d"),
      // What a finger works is carried along, and is to be reached whatever else its owner has open.
      deviceKind: matchMedia("(pointer: coarse)").matches ? "phone" : "computer",
      makeId: Connection.makeId,
    });
    this._url = url;
    this._fetchToken = fetchToken;
    this._socket = null;
    this._timer = 0;
    this._ended = false;
    this._effects = [];
    this._running = false;
    this._listeners = new AbortController();
    const signal = this._listeners.signal;
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this._foreground();
    }, { signal });
    window.addEventListener("online", () => this._foreground(), { signal });
    window.addEventListener("pageshow", (event) => {
      if (event.persisted) this._foreground();
    }, { signal });
  }

  static makeId(prefix) {
    return newId(prefix, (bytes) => crypto.getRandomValues(bytes));
  }

  start() {
    this._run(this.session.start(Date.now()));
  }

  submit(frame) {
    this._run(this.session.submit(frame, Date.now()));
  }

  cancel(clientMsgId) {
    this._run(this.session.cancel(clientMsgId));
  }

  receipt(alertId, answer) {
    this._run(this.session.receipt(alertId, answer));
  }

  sendAnyway(clientMsgId) {
    this._run(this.session.sendAnyway(clientMsgId, Date.now()));
  }

  withdraw(clientMsgId) {
    this._run(this.session.withdraw(clientMsgId));
  }

  /** Try at once instead of waiting for the next attempt. */
  retryNow() {
    this._foreground();
  }

  /** Sign out and let go of the socket; nothing is delivered afterwards. */
  end() {
    if (this._ended) return;
    this._run(this.session.end());
    this._ended = true;
    clearTimeout(this._timer);
    this._listeners.abort();
  }

  _foreground() {
    this._run(this.session.foreground(Date.now()));
  }

  /** Carry out effects in order; a listener that causes more of them does not overtake the ones before. */
  _run(effects) {
    this._effects.push(...effects);
    if (this._running) return;
    this._running = true;
    try {
      for (let effect = this._effects.shift(); effect && !this._ended; effect = this._effects.shift()) {
        this._perform(effect);
      }
    } finally {
      this._running = false;
      this._effects.length = 0;
    }
    if (!this._ended) this._arm();
  }

  _perform(effect) {
    if (effect.do === "send") this._send(effect.frame);
    else if (effect.do === "open") this._open();
    else if (effect.do === "close") this._close(effect.code);
    else if (effect.do === "token") this._token();
    else if (EVENTS.includes(effect.do)) this.dispatchEvent(new CustomEvent(effect.do, { detail: effect }));
  }

  _arm() {
    clearTimeout(this._timer);
    const at = this.session.wakeAt();
    // A timer of more than 2^31 - 1 ms would fire at once; an hour is soon enough to look again.
    if (Number.isFinite(at)) {
      const delay = Math.min(3_600_000, Math.max(0, at - Date.now()));
      this._timer = setTimeout(() => this._run(this.session.tick(Date.now())), delay);
    }
  }

  _open() {
    this._close(1000);
    const socket = new WebSocket(this._url, [PROTOCOL]);
    this._socket = socket;
    const current = (handler) => (event) => {
      if (this._socket === socket && !this._ended) handler(event);
    };
    socket.addEventListener("open", current(() => this._run(this.session.opened(Date.now()))));
    socket.addEventListener("message", current((event) => this._message(event.data)));
    socket.addEventListener("close", current((event) => {
      this._socket = null;
      this._run(this.session.closed(event.code, Date.now()));
    }));
  }

  _message(data) {
    if (typeof data !== "string") return;
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      return; // half a frame cannot happen over a WebSocket; anything else is no chatd frame
    }
    this._run(this.session.received(frame, Date.now()));
  }

  _send(frame) {
    // A socket that is closing loses the frame; the outbox still holds it and sends it again.
    if (this._socket?.readyState === WebSocket.OPEN) this._socket.send(JSON.stringify(frame));
  }

  _close(code) {
    const socket = this._socket;
    this._socket = null;
    socket?.close(code);
  }

  async _token() {
    let answer;
    try {
      answer = await this._fetchToken();
    } catch (error) {
      if (this._ended) return;
      // A pasted token cannot be renewed; a live line goes on until the server ends it.
      if (error.final !== true) this._run(this.session.tokenFailed(Date.now()));
      else if (this.session.phase !== "live") this._run(this.session.giveUp(4501));
      return;
    }
    if (!this._ended) this._run(this.session.setToken(answer.token, answer.expires_in_s, Date.now()));
  }
}
