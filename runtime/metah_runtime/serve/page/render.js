"use strict";
/* From plain values to elements. Every text goes in through textContent: names are hostile. */

const UNSURE = 0.5; // |tanh(logit)| below it: the bit would flip first

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

/** Bits of a code in hex, most significant first: [0 or 1, ...]. */
function bitsOf(hex) {
  return Array.from(hex).flatMap((digit) => {
    const value = parseInt(digit, 16);
    return [8, 4, 2, 1].map((bit) => (value & bit ? 1 : 0));
  });
}

/** hex: hash code and detail code; logits: of the hash code alone, whose bits come first. */
function drawBits(box, hex, logits, length) {
  const bits = bitsOf(hex).slice(0, length);
  let unsure = 0;
  box.replaceChildren(...bits.map((bit, place) => {
    const logit = logits ? logits[place] : null;
    const open = logit !== null && Math.abs(Math.tanh(logit)) < UNSURE;
    unsure += open ? 1 : 0;
    const title = `bit ${place}` + (logit === null ? "" : `: logit ${logit.toFixed(2)}${open ? ", unsure" : ""}`);
    return element("span", { className: `bit${bit ? " one" : ""}${open ? " unsure" : ""}`, textContent: bit, title });
  }));
  const ones = bits.reduce((sum, bit) => sum + bit, 0);
  box.setAttribute("aria-label", `${bits.length} bits, ${ones} of them 1` + (logits ? `, ${unsure} unsure` : ""));
  return { bits: bits.length, unsure: logits ? unsure : null };
}

/** Bars of how many neighbours lie at each distance. */
function drawHistogram(box, distances) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const low = Math.min(...distances), high = Math.max(...distances);
  const counts = new Array(high - low + 1).fill(0);
  for (const distance of distances) counts[distance - low] += 1;
  const most = Math.max(...counts);
  const width = Math.max(320, counts.length * 24), height = 140, step = width / counts.length;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", counts.map((count, place) => `distance ${low + place}: ${count}`).join("; "));
  const add = (tag, attributes, text) => {
    const made = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    svg.append(made);
  };
  counts.forEach((count, place) => {
    const tall = count ? Math.max(2, (count / most) * (height - 40)) : 0;
    const left = place * step, bar = Math.min(step * 0.8, 48), middle = left + step / 2;
    add("rect", { x: middle - bar / 2, y: height - 20 - tall, width: bar, height: tall });
    if (count) add("text", { x: middle, y: height - 25 - tall }, count);
    add("text", { x: middle, y: height - 5 }, low + place);
  });
  box.replaceChildren(svg);
}

function distanceOf(neighbour) {
  const code = neighbour.code_distance;
  return `distance ${neighbour.distance}` + (code === null ? "" : ` (hash code ${code})`);
}

/** One neighbour as a button; choose(id) searches from it, picture(id, image) fills the image. */
function tile(neighbour, choose, picture) {
  const known = [neighbour.label, neighbour.domain].filter((text) => text !== null).join(" · ");
  const frame = element("span", { className: "frame", textContent: picture ? "" : "no picture" });
  const button = element("button", { type: "button", className: "tile", title: neighbour.name },
    frame,
    element("span", { className: "distance", textContent: distanceOf(neighbour) }));
  const more = Object.entries(neighbour.attributes || {})
    .filter(([name]) => name !== "label" && name !== "domain").map(([name, value]) => `${name}: ${value}`);
  if (known) button.append(element("span", { className: "known", textContent: known }));
  button.append(element("span", { className: "name", textContent: neighbour.name }));
  if (more.length) {
    button.append(element("span", { className: "known", textContent: more.join(" · ") }));
    button.title = [neighbour.name, ...more].join("\n");
  }
  button.setAttribute("aria-label",
    `Search from ${neighbour.name}, ${distanceOf(neighbour)}${known ? `, ${known}` : ""}`);
  button.dataset.id = neighbour.id;
  button.addEventListener("click", () => choose(neighbour));
  if (picture) picture(neighbour.id, frame);
  return element("li", {}, button);
}
