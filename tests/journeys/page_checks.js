/** Accessibility checks of what is on the screen now; returns a list of sentences, each a fault. */
() => {
  const faults = [];
  const visible = (element) => {
    const box = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    return box.width > 0 && box.height > 0 && style.visibility !== "hidden" && !element.closest("[hidden], .hidden, [aria-hidden=true]");
  };
  const modal = document.querySelector("dialog[open]");
  const root = modal ?? document.body;
  const describe = (element) => `${element.localName}.${element.className} "${(element.textContent ?? "").trim().slice(0, 40)}"`;

  // Every control has a name that is not only a placeholder.
  const nameOf = (element) => {
    const labelled = (element.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join(" ");
    const labels = [...(element.labels ?? [])].map((label) => label.textContent).join(" ");
    const own = ["INPUT", "SELECT", "TEXTAREA"].includes(element.tagName) ? "" : element.textContent;
    return [element.getAttribute("aria-label"), labelled, labels, own, element.title].map((text) => (text ?? "").trim()).find(Boolean) ?? "";
  };
  for (const control of root.querySelectorAll("button, input, select, textarea, a[href], summary, dialog[open], [role=region], [role=img]")) {
    if (!visible(control)) continue;
    if (!nameOf(control)) faults.push(`no name: ${describe(control)}`);
    const box = control.getBoundingClientRect();
    // WCAG 2.2, 2.5.8: 24 by 24 CSS pixels, links inside a sentence excepted.
    const inline = control.matches(".link, .cite, .skip") || control.tagName === "INPUT";
    if (control.matches("button, select, textarea") && !inline && (box.width < 24 || box.height < 24)) faults.push(`too small: ${describe(control)}`);
    if (control.tabIndex > 0) faults.push(`positive tabindex: ${describe(control)}`);
  }

  // Text against its ground: 4.5 to 1, or 3 to 1 where it is large.
  // Drawn on a canvas first, so that every way to write a colour comes out as red, green, blue, alpha.
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  const parse = (text) => {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = text;
    brush.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [br, bg, bb]) => [r * a + br * (1 - a), g * a + bg * (1 - a), b * a + bb * (1 - a), 1];
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const groundOf = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, colour) => over(colour, below), [255, 255, 255, 1]);
  };
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  let texts = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || seen.has(element) || !visible(element) || element.closest(":disabled, option, noscript")) continue;
    seen.add(element);
    texts += 1;
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize);
    const ground = groundOf(element);
    const ink = over(parse(style.color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) faults.push(`contrast ${ratio.toFixed(2)}: ${describe(element)}`);
    if (size < 12) faults.push(`smaller than 12 px: ${describe(element)}`);
  }
  if (texts === 0) faults.push("no text on the screen");

  // Landmarks, headings, ids and the page's width.
  if (document.querySelectorAll("main").length !== 1) faults.push("not exactly one main landmark");
  if (document.querySelectorAll("h1").length !== 1) faults.push("not exactly one h1");
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  if (new Set(ids).size !== ids.length) faults.push("an id is used twice");
  if (!["en-GB", "pt-PT"].includes(document.documentElement.lang)) faults.push("the page's language is not said");
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) faults.push(`${wide} px wider than the window`);
  for (const box of document.querySelectorAll(".screen, message-list, .side, dialog[open], .bubble, patient-banner, .alert")) {
    if (box.scrollWidth > box.clientWidth + 1) faults.push(`${box.localName}.${box.className} scrolls sideways by ${box.scrollWidth - box.clientWidth} px`);
  }
  return faults;
}
