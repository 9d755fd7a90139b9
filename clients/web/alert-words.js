/** Words and small parts that the alert sheet, the list and the wall board share. */

import { h, icon } from "./dom.js";

const PRIORITY_ICONS = { critical: "siren", high: "allergy", normal: "alert", low: "info" };

/** One of the four priorities; an unknown one counts as normal. */
export function priorityOf(alert) {
  return alert.frame.priority in PRIORITY_ICONS ? alert.frame.priority : "normal";
}

/** Colour, sign and word of a priority, never the colour alone. */
export function prioritySign(texts, alert) {
  const priority = priorityOf(alert);
  return h("span", { class: "alert-sign" }, icon(PRIORITY_ICONS[priority]), h("strong", {}, texts.of("alerts.priority", alert.frame.priority)));
}

export function personName(view, userId) {
  if (!userId) return view.texts.t("alerts.somebody");
  if (userId === view.conversation.book.me.user_id) return view.texts.t("alerts.you");
  if (userId.startsWith("service:")) return view.texts.t("alerts.automatic", { name: userId.slice("service:".length) });
  return userId;
}

export function roleName(texts, role) {
  return texts.of("role", role, role.replace(/[_.-]+/g, " "));
}

/** Whom an alert is for: the department, a role or a person. */
export function targetName(view, frame) {
  const { to } = frame;
  if (to?.user) return personName(view, to.user);
  if (to?.role) return roleName(view.texts, to.role);
  const id = to?.department || frame.department;
  const { department } = view.conversation;
  return department?.id === id ? department.name : id;
}

export function slotName(texts, slot) {
  return (texts.lang === "pt" && slot.label_pt) || slot.label || slot.id;
}

/** A canned answer in the reader's language. */
export function optionName(texts, option) {
  return (texts.lang === "pt" && option.label_pt) || option.label || option.id;
}

/** A moment of the server's in words that tick: the element carries it, the page's clock rewrites the text. */
export function ago(view, at) {
  return h("span", { class: "ticking", "data-since": String(at) }, sinceText(view, at));
}

export function until(view, value) {
  const at = Date.parse(value ?? "");
  return Number.isFinite(at) ? h("span", { class: "ticking", "data-until": String(at) }, untilText(view, at)) : null;
}

const serverNow = (view) => view.now() + view.conversation.clockOffsetMs;

export function sinceText(view, at) {
  return view.texts.t("alerts.ago", { span: view.texts.span(serverNow(view) - at) });
}

export function untilText(view, at) {
  const left = at - serverNow(view);
  return left > 0 ? view.texts.t("alerts.escalates_in", { span: view.texts.countdown(left) }) : view.texts.t("alerts.escalates_now");
}

/** "at 07:51 (in 4 min)": when somebody arrives. */
export function etaText(view, etaAt) {
  const at = Date.parse(etaAt ?? "");
  if (!Number.isFinite(at)) return "";
  const left = at - serverNow(view);
  const clock = view.texts.clock(at);
  return left > 0 ? view.texts.t("alerts.eta", { clock, span: view.texts.span(left) }) : view.texts.t("alerts.eta_passed", { clock });
}

/** One line that says who has it; nobody is said as loudly as somebody. */
export function whoText(view, alert) {
  const { t } = { t: view.texts.t.bind(view.texts) };
  const { book } = view.conversation;
  const places = book.places(alert);
  const holders = book.holders(alert);
  if (!book.isOpen(alert)) return view.texts.of("alerts.state", alert.state);
  if (places) {
    const counted = t("alerts.places", { filled: places.filled, total: places.total });
    return places.withEta > 0 ? `${counted}, ${t("alerts.with_eta", { count: places.withEta })}` : counted;
  }
  if (!alert.frame.requires_action) return t("alerts.seen_by", { count: holders.length });
  if (holders.length > 0) return t("alerts.has_it", { names: holders.map((one) => named(view, one)).join(", ") });
  if (alert.state === "in_progress") return t("alerts.has_it_unknown");
  return t(alert.state === "unanswered" ? "alerts.unanswered" : "alerts.nobody");
}

function named(view, holder) {
  const eta = etaText(view, holder.eta_at);
  const name = personName(view, holder.user_id);
  return eta ? `${name} (${eta})` : name;
}

/** The places of a team, filled or empty, each with its name, person and time of arrival. */
export function slotList(view, alert) {
  if (alert.slots.length === 0) return null;
  const t = view.texts.t.bind(view.texts);
  return h(
    "ul",
    { class: "plain slots", "aria-label": t("alerts.team") },
    alert.slots.map((slot) =>
      h(
        "li",
        { class: slot.by ? "slot slot-filled" : "slot slot-empty" },
        icon(slot.by ? "tick" : "missing"),
        h(
          "div",
          {},
          h("span", { class: "slot-name" }, slotName(view.texts, slot)),
          " ",
          h("span", { class: "slot-who", dir: "auto" }, slot.by ? [personName(view, slot.by), etaText(view, slot.eta_at)].filter(Boolean).join(" · ") : t("alerts.slot_empty")),
        ),
      ),
    ),
  );
}

/** Where my own answer stands, or "". */
export function myAnswerText(view, alert) {
  const t = view.texts.t.bind(view.texts);
  const { book } = view.conversation;
  const pending = book.pending.get(alert.key);
  if (pending && pending.status !== "confirmed") {
    if (pending.status === "failed") return t("alerts.refused", { text: view.texts.error(pending.code) });
    return view.isLive() && pending.status === "sent" ? t("alerts.sending") : t("alerts.not_sent");
  }
  const mine = book.mine(alert);
  if (mine?.answer === "accept" && !alert.frame.requires_action) return t("alerts.answered.seen");
  return mine ? view.texts.of("alerts.answered", mine.answer, mine.answer) : "";
}

/** "12 online, 3 by push, 2 cannot be reached": numbers first, then who. */
export function reachText(view, reach) {
  const t = view.texts.t.bind(view.texts);
  const count = (list) => (Array.isArray(list) ? list.length : 0);
  const parts = [t("reach.online", { count: count(reach.online) }), t("reach.push", { count: count(reach.push) }), t("reach.unreachable", { count: count(reach.unreachable) })];
  return parts.join(", ");
}

/** Who cannot be reached, and by whom they are covered: [{user, by}]; covered ones that are online are in it too. */
export function coverage(reach) {
  const covered = reach.covered ?? {};
  const users = new Set([...(reach.unreachable ?? []), ...Object.keys(covered)]);
  return [...users].map((user) => ({ user, by: covered[user] ?? null }));
}
