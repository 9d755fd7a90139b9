/**
 * Builds elements. Data only ever becomes text nodes and attributes, so nothing a record, a colleague or a model
 * wrote can become markup; no inline style or script is made, so the strictest Content-Security-Policy holds.
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * h("button", {class: "chip", onclick: f, "aria-label": "..."}, "text", child, [children])
 *
 * `null`, `undefined` and `false` properties and children are left out; `on*` are listeners; `true` is an empty
 * attribute.
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

export function append(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/**
 * Replace the children of `parent` and keep the keyboard where it was: elements carry `data-key`, and open
 * `<details>` stay open.
 */
export function fill(parent, ...children) {
  const active = document.activeElement;
  const key = parent.contains(active) ? active.dataset.key : undefined;
  const open = new Set([...parent.querySelectorAll("details[open][data-key]")].map((one) => one.dataset.key));
  const fresh = document.createDocumentFragment();
  append(fresh, children);
  for (const one of fresh.querySelectorAll("details[data-key]")) {
    if (open.has(one.dataset.key)) one.open = true;
  }
  parent.replaceChildren(fresh);
  if (key !== undefined) {
    const again = [...parent.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key);
    again?.focus({ preventScroll: true });
  }
}

/** Set an element's text; an unchanged one is left alone, so that a screen reader does not say it again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Tell the application something; it listens on the root element. */
export function emit(element, name, detail) {
  element.dispatchEvent(new CustomEvent(`chatd:${name}`, { bubbles: true, detail }));
}

const PATHS = {
  send: "M4 12 20 4l-5 16-3.5-6.5L4 12Zm7.5 1.5L20 4",
  stop: "M7 7h10v10H7z",
  clock: "M12 7v5l3 2M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Z",
  tick: "m5 12.5 4.5 4.5L19 7.5",
  ticks: "m2 12.5 4.5 4.5L15 8M11 16l1 1L21.5 7.5",
  failed: "M12 7v6m0 3.5v.5M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Z",
  flag: "M6 21V4m0 0h11l-2.5 4.5L17 13H6",
  allergy: "M12 3.5 2.5 20h19L12 3.5ZM12 10v5m0 2.2v.3",
  check: "M12 3 4.5 6v5.5c0 4.5 3 8 7.5 9.5 4.5-1.5 7.5-5 7.5-9.5V6L12 3Zm-3.5 9 2.5 2.5 4.5-5",
  missing: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Zm-2.6 6.6c.2-1.4 1.2-2.3 2.6-2.3 1.5 0 2.6.9 2.6 2.3 0 2-2.6 2.1-2.6 4m0 2.9v.3",
  up: "M12 19V5m-6 6 6-6 6 6",
  down: "M12 5v14m6-6-6 6-6-6",
  steady: "M4 12h15m-5-5 5 5-5 5",
  close: "m6 6 12 12M18 6 6 18",
  person: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8Zm-7.5 8.5c.6-4 3.6-6 7.5-6s6.9 2 7.5 6",
  book: "M5 4.5h10a4 4 0 0 1 4 4v11H9a4 4 0 0 1-4-4v-11Zm0 11a4 4 0 0 1 4-4h10",
  alert: "M12 4a5.5 5.5 0 0 0-5.5 5.5c0 5-2 6.5-2 6.5h15s-2-1.5-2-6.5A5.5 5.5 0 0 0 12 4Zm-2 15a2 2 0 0 0 4 0",
  yes: "M8 11v9H4.5v-9H8Zm0 0 4-7.5c1.5 0 2.5 1 2.5 2.5L14 9.5h5c1 0 1.8 1 1.5 2l-1.8 7c-.2.9-1 1.5-1.9 1.5H8",
  no: "M16 13V4h3.5v9H16Zm0 0-4 7.5c-1.5 0-2.5-1-2.5-2.5l.5-3.5H5c-1 0-1.8-1-1.5-2l1.8-7C5.500 4.600 6.300 4 7.200 4H16",
  out: "M14 4h5v16h-5M4 12h11m-4-4 4 4-4 4",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14Zm5 12 4.500 4.500",
  pulse: "M2.500 12.500h4l2.500-7 4.500 13 3-8.500 1 2.500h4",
  siren: "M5 19h14M7 19v-6a5 5 0 0 1 10 0v6M12 4V2.500M5 6.500 4 5.500m15 1 1-1M12 13v2",
  info: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Zm0 8v5.500m0-9v.300",
  people: "M9 11a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7Zm-6.500 8.500c.5-3.500 3-5.500 6.500-5.500s6 2 6.500 5.500M15.500 4.300a3.500 3.500 0 0 1 0 6.400m2 3.600c2.200.7 3.600 2.500 4 5.200",
  bell: "M12 4a5.500 5.500 0 0 0-5.500 5.500c0 5-2 6.500-2 6.500h15s-2-1.500-2-6.500A5.500 5.500 0 0 0 12 4Zm-2 15a2 2 0 0 0 4 0",
  away: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM8 12h8",
  busy: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM6 18 18 6",
  available: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Zm-4 9.300 2.800 2.700L16 9.500",
  knife: "M4 20 16.500 4.500c2.500 2.500 3 5 .500 8L12 15.500l-2-2",
  again: "M19.500 12a7.500 7.500 0 1 1-2.200-5.300M19.500 3.500v4h-4",
};

/** A drawn sign for the eye; what it means always stands beside it as text, so it is hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
