/**
 * Runs the page's session rules against a model server over a bad network, from one seed.
 *
 * The server keeps an epoch and a log, answers each accepted question once, knows duplicates, raises and ends alerts,
 * takes answers to them once, and is at times restarted without its memory (the alerts' ledger keeps its own). The network cuts with frames in flight. Returns a list of sentences,
 * each a broken promise; an empty list is a pass.
 */
async (seed, steps) => {
  const { ClientSession, SESSION_DURABLE, ALERT_DURABLE, RULES } = await import("/web/protocol.js");
  let state = seed >>> 0;
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const pick = (list) => list[Math.floor(random() * list.length)];
  const broken = [];
  const expect = (is, sentence) => {
    if (!is && broken.length < 20) broken.push(sentence);
  };

  // --- the model server ---
  const server = { epochs: 1, epoch: "e-1", log: [], known: new Map(), open: [], alerts: [], openAlerts: new Map(), taken: new Map(), got: new Map(), draining: false };
  const restart = () => {
    server.epochs += 1;
    Object.assign(server, { epoch: `e-${server.epochs}`, log: [], known: new Map(), open: [] });
  };
  const append = (frame) => {
    const placed = { ...frame, epoch: server.epoch, seq: server.log.length + 1 };
    server.log.push(placed);
    return placed;
  };
  const raise = () => {
    const alert = { type: "system_notification", alert_id: `al-${server.alerts.length}`, alert_seq: server.alerts.length + 1, state: "delivering", content: "x" };
    server.alerts.push(alert);
    server.openAlerts.set(alert.alert_id, []);
    return alert;
  };
  const update = (alertId, state, event) => {
    const frame = { type: "alert_update", alert_id: alertId, alert_seq: server.alerts.length + 1, state, event, who: [...(server.openAlerts.get(alertId) ?? [])] };
    server.alerts.push(frame);
    if (state === "resolved") server.openAlerts.delete(alertId);
    tell(frame);
  };

  // --- the network: one socket, frames in flight in both directions ---
  let socket = null; // {open, toServer: [], toClient: [], greeted, sent}
  const tell = (frame) => {
    if (socket?.greeted) socket.toClient.push(frame);
  };

  // --- the client ---
  let now = 1_000_000;
  let ids = 0;
  const client = new ClientSession({ deviceId: "d-1", deviceKind: "phone", random, makeId: (prefix) => `${prefix}-${(ids += 1)}` });
  const submitted = []; // ids of questions in the order of asking
  const bodies = new Map();
  const firstSent = [];
  const answered = new Map();
  const gone = new Set(); // failed or withdrawn
  const alertsSeen = new Set();
  const answersGiven = new Map(); // id → alert_id, of answers to alerts
  const alertsHere = new Set(); // raised and delivered here, so their receipt has to arrive
  let alertFloor = 0;
  let cursor = { epoch: "", seq: 0, alertSeq: 0 };
  let tokenNeeded = false;
  const queued = []; // what the page does after a delivery

  const perform = (effects) => {
    for (const effect of effects) {
      if (effect.do === "open") {
        socket = { open: false, toServer: [], toClient: [], greeted: false, synced: false, goaway: false };
      } else if (effect.do === "close") {
        socket = null;
      } else if (effect.do === "token") {
        tokenNeeded = true;
      } else if (effect.do === "send") {
        const { frame } = effect;
        if (!socket?.open) continue; // lost, as with a real socket that is closing
        if (frame.type !== "hello") expect(client.phase === "live" || client.phase === "stopped", `${frame.type} sent while ${client.phase}`);
        if (frame.type === "user_message") {
          const body = JSON.stringify(frame);
          expect(!bodies.has(frame.client_msg_id) || bodies.get(frame.client_msg_id) === body, "a resent question has another body");
          bodies.set(frame.client_msg_id, body);
          if (!firstSent.includes(frame.client_msg_id)) firstSent.push(frame.client_msg_id);
          expect(!socket.goaway, "a question was sent to a server that said goodbye");
          expect(socket.synced, "a question was sent before the state was known");
        }
        if (frame.type === "ack") {
          expect(frame.epoch === cursor.epoch && frame.seq <= cursor.seq, `ack ${frame.seq} beyond what was delivered (${cursor.seq})`);
        }
        socket.toServer.push(frame);
      } else if (effect.do === "outgoing") {
        if (effect.status === "failed" || effect.status === "withdrawn") gone.add(effect.id);
      } else if (effect.do === "deliver") {
        deliver(effect.frame);
      }
    }
  };

  const deliver = (frame) => {
    if (frame.type === "welcome") {
      if (!frame.resumed) {
        cursor = { epoch: frame.epoch, seq: frame.seq, alertSeq: frame.alert_seq };
        alertFloor = frame.alert_seq;
      } else {
        expect(frame.epoch === cursor.epoch, "resumed in another epoch");
        if (socket) socket.synced = true;
      }
    }
    if (frame.type === "snapshot" && socket) socket.synced = true;
    if (frame.type === "goaway" && socket) socket.goaway = true;
    if (SESSION_DURABLE.has(frame.type)) {
      if (frame.epoch === cursor.epoch && frame.seq === cursor.seq + 1) cursor.seq = frame.seq;
      else expect(frame.type === "facts" || frame.type === "ai_response", `${frame.type} ${frame.seq} delivered after ${cursor.seq}`);
    }
    if (ALERT_DURABLE.has(frame.type)) {
      expect(frame.alert_seq === cursor.alertSeq + 1, `alert ${frame.alert_seq} delivered after ${cursor.alertSeq}`);
      expect(!alertsSeen.has(frame.alert_seq), `alert ${frame.alert_seq} delivered twice`);
      cursor.alertSeq = frame.alert_seq;
      alertsSeen.add(frame.alert_seq);
    }
    if (frame.type === "system_notification") received(frame.alert_id);
    if (frame.type === "snapshot") for (const alert of frame.open_alerts) received(alert.alert_id);
    if (frame.type === "ai_response") answered.set(frame.client_msg_id, (answered.get(frame.client_msg_id) ?? 0) + 1);
  };

  const received = (alertId) => {
    alertsHere.add(alertId);
    queued.push(() => perform(client.receipt(alertId, "delivered")));
  };

  const serverTakes = (frame) => {
    if (frame.type === "hello") {
      expect(typeof frame.token === "string", "hello without a token");
      expect(frame.device_kind === "phone", "hello that does not say what it comes from");
      const resume = frame.resume;
      const resumed = Boolean(resume) && resume.epoch === server.epoch && resume.seq <= server.log.length && random() > 0.1;
      socket.greeted = true;
      socket.toClient.push({
        type: "welcome", session_id: "s-1", user: { user_id: "me" }, epoch: server.epoch, seq: server.log.length, alert_seq: server.alerts.length, resumed,
        replay: resumed ? server.log.length - resume.seq : 0, gap_reason: resumed ? null : "first", heartbeat: { interval_s: 10, timeout_s: 10 },
      });
      if (resumed) socket.toClient.push(...server.log.slice(resume.seq), ...server.alerts.slice(resume.alert_seq));
      else socket.toClient.push({ type: "snapshot", open_responses: server.open.map((id) => ({ response_id: `r-${id}`, client_msg_id: id })), open_alerts: [...server.openAlerts.keys()].map((alert_id) => ({ alert_id })) });
    } else if (frame.type === "alert_response" && frame.answer === "delivered") {
      server.got.set(frame.alert_id, (server.got.get(frame.alert_id) ?? new Set()).add(frame.client_msg_id));
    } else if (frame.type === "alert_response") {
      const id = frame.client_msg_id;
      if (server.taken.has(id)) {
        expect(server.taken.get(id) === JSON.stringify(frame), "a resent answer has another body");
        tell({ type: "accepted", client_msg_id: id, alert_id: frame.alert_id, duplicate: true });
      } else if (!server.openAlerts.has(frame.alert_id)) {
        tell({ type: "error", code: "alert_closed", retryable: false, client_msg_id: id });
      } else if (random() < 0.1) {
        tell({ type: "error", code: "internal", retryable: true, retry_after_ms: 500, client_msg_id: id });
      } else {
        server.taken.set(id, JSON.stringify(frame));
        server.openAlerts.get(frame.alert_id).push({ user_id: "me", answer: frame.answer });
        if (random() < 0.5) tell({ type: "accepted", client_msg_id: id, alert_id: frame.alert_id });
        update(frame.alert_id, "delivering", "accepted");
      }
    } else if (frame.type === "user_message") {
      const id = frame.client_msg_id;
      const known = server.known.get(id);
      tell({ type: "accepted", client_msg_id: id, response_id: `r-${id}`, duplicate: known !== undefined });
      if (known === undefined) {
        server.known.set(id, []);
        server.open.push(id);
        const facts = append({ type: "facts", client_msg_id: id, response_id: `r-${id}` });
        server.known.get(id).push(facts);
        tell(facts);
      } else {
        for (const one of known) tell({ ...one, again: true });
      }
    } else if (frame.type === "cancel") {
      if (server.open.includes(frame.client_msg_id)) finish(frame.client_msg_id, "cancelled");
    } else if (frame.type === "ping") {
      tell({ type: "pong", t: frame.t });
    }
  };
  const finish = (id, status) => {
    server.open.splice(server.open.indexOf(id), 1);
    const answer = append({ type: "ai_response", client_msg_id: id, response_id: `r-${id}`, status });
    server.known.get(id).push(answer);
    tell(answer);
  };
  const cut = (code) => {
    if (!socket) return;
    socket = null;
    perform(client.closed(code, now));
  };

  // --- what may happen ---
  const moves = {
    ask() {
      const id = `q-${(ids += 1)}`;
      submitted.push(id);
      perform(client.submit({ type: "user_message", client_msg_id: id, content: `question ${id}` }, now));
    },
    up() {
      if (socket && !socket.open) {
        socket.open = true;
        perform(client.opened(now));
      } else if (socket?.toServer.length) serverTakes(socket.toServer.shift());
    },
    down() {
      if (socket?.open && socket.toClient.length) perform(client.received(socket.toClient.shift(), now));
    },
    answer() {
      if (server.open.length) finish(pick(server.open), "completed");
    },
    alert() {
      tell(raise());
    },
    respond() {
      const open = [...server.openAlerts.keys()].filter((id) => alertsHere.has(id) && ![...answersGiven.values()].includes(id));
      if (!open.length) return;
      const id = `m-${(ids += 1)}`;
      answersGiven.set(id, pick(open));
      perform(client.submit({ type: "alert_response", client_msg_id: id, alert_id: answersGiven.get(id), answer: "accept" }, now));
    },
    others() {
      if (server.openAlerts.size) update(pick([...server.openAlerts.keys()]), random() < 0.3 ? "resolved" : "delivering", "receipts");
    },
    time() {
      now += Math.floor(random() * 4_000);
      perform(client.tick(now));
    },
    sleep() {
      const wake = client.wakeAt();
      if (Number.isFinite(wake)) now = Math.max(now, wake);
      perform(client.tick(now));
    },
    token() {
      if (!tokenNeeded) return;
      tokenNeeded = false;
      if (random() < 0.3) perform(client.tokenFailed(now));
      else perform(client.setToken(`t-${(ids += 1)}`, 30 + random() * 300, now));
    },
  };
  const faults = {
    cut() {
      cut(pick([1006, 1006, 1001, 4000, 4001, 4002, 4003, 4004]));
    },
    cancel() {
      if (submitted.length) perform(client.cancel(pick(submitted)));
    },
    repeat() {
      if (socket?.greeted && server.log.length) socket.toClient.push(pick(server.log));
    },
    lose() {
      // Inside a socket nothing is lost; a server at fault may skip a frame of its log all the same.
      const next = socket?.toClient[0];
      const logged = SESSION_DURABLE.has(next?.type) || ALERT_DURABLE.has(next?.type);
      if (socket?.toClient.length > 1 && logged && !next.again) socket.toClient.shift();
    },
    forget() {
      restart();
      cut(4003);
    },
    goaway() {
      if (socket?.greeted) socket.toClient.push({ type: "goaway", code: 4000, reconnect: true, after_ms: Math.floor(random() * 3_000), reason: "restart" });
    },
    look() {
      perform(client.foreground(now));
    },
    noise() {
      perform(client.received(pick([null, 7, {}, { type: 3 }, { type: "novel" }, { type: "facts" }, { type: "queue", response_id: "r-0" }]), now));
    },
  };

  perform(client.start(now));
  for (let step = 0; step < steps; step += 1) {
    const table = random() < 0.14 ? faults : moves;
    pick(Object.values(table))();
    while (queued.length) queued.shift()();
  }
  let closing = 0;
  // The weather clears: everything in flight arrives, every question is answered.
  for (let step = 0; step < 4_000; step += 1) {
    moves.token();
    while (queued.length) queued.shift()();
    if (socket && (!socket.open || socket.toServer.length)) moves.up();
    else if (socket?.toClient.length) moves.down();
    else if (server.open.length) moves.answer();
    else if (client.phase === "live" && closing < 2) {
      // A frame skipped at the end of a log shows when the next one comes.
      closing += 1;
      moves.alert();
      const marker = append({ type: "context" });
      tell(marker);
    } else if (client.phase === "live" && [...client.outbox.values()].every((entry) => entry.status === "answered") && !queued.length) break;
    else moves.sleep();
  }
  expect(client.phase === "live", `ends ${client.phase} instead of live`);
  for (const id of submitted) {
    const count = answered.get(id) ?? 0;
    if (gone.has(id)) expect(count === 0, `${id} was given up and answered ${count} times`);
    else expect(count === 1, `${id} was answered ${count} times`);
  }
  const asked = submitted.filter((id) => firstSent.includes(id));
  expect(JSON.stringify(asked) === JSON.stringify(firstSent), "questions were first sent in another order than asked");
  for (let seq = alertFloor + 1; seq <= server.alerts.length; seq += 1) {
    expect(alertsSeen.has(seq), `alert ${seq} was never shown`);
  }
  for (const [id, alertId] of answersGiven) {
    expect(server.taken.has(id) !== gone.has(id) || !server.openAlerts.has(alertId), `answer ${id} to the open ${alertId} is neither taken nor refused`);
  }
  for (const alertId of server.openAlerts.keys()) {
    if (alertsHere.has(alertId)) expect(server.got.get(alertId)?.size === 1, `the receipt of ${alertId} came under ${server.got.get(alertId)?.size ?? 0} ids`);
  }
  expect(cursor.epoch === server.epoch && cursor.seq === server.log.length, "the cursor does not stand at the end of the log");
  expect(client.outbox.size === 0, "the outbox is not empty");
  expect(client.outbox.size <= RULES.max_outbox, "the outbox is over its bound");
  return broken;
}
