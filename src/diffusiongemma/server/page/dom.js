// Small helpers for elements and numbers. Text from anywhere only ever becomes a text node.

/** Make an element: props are attributes, `class`, `on` (listeners) or DOM properties written as `.name`. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name.startsWith(".")) node[name.slice(1)] = value;
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const ICONS = {
  play: "M5 3.5v9l7.5-4.5z",
  pause: "M4.5 3.5h2.4v9H4.5zM9.1 3.5h2.4v9H9.1z",
  send: "M8 13V3.2M3.8 7.2 8 3l4.2 4.2",
  stop: "M4.5 4.5h7v7h-7z",
  again: "M12.7 6.5A5 5 0 1 0 13 8M13 3v3.6H9.4",
  copy: "M5.5 5.5h7v7h-7zM3.5 10.5v-7h7",
  left: "M9.8 3.8 5.6 8l4.2 4.2",
  right: "M6.2 3.8 10.4 8l-4.2 4.2",
  sliders: "M2.5 5h6M11.5 5h2M2.5 11h2M7.5 11h6M10 3.4v3.2M6 9.4v3.2",
  sun: "M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6M8 1.5v1.4M8 13.1v1.4M1.5 8h1.4M13.1 8h1.4M3.4 3.4l1 1M11.6 11.6l1 1M3.4 12.6l1-1M11.6 4.4l1-1",
  moon: "M13 9.6A5.5 5.5 0 0 1 6.4 3 5.5 5.5 0 1 0 13 9.6z",
  auto: "M8 2.5a5.5 5.5 0 1 0 0 11zM8 2.5a5.5 5.5 0 0 1 0 11",
  close: "M4 4l8 8M12 4l-8 8",
};
const FILLED = new Set(["play", "pause", "stop"]);

export function icon(name) {
  const path = svg("path", { d: ICONS[name] });
  return svg("svg", { viewBox: "0 0 16 16", class: FILLED.has(name) ? "icon filled" : "icon", "aria-hidden": "true" }, path);
}

export function iconButton(name, label, onClick, extra = {}) {
  return el("button", { type: "button", class: "icon-button", title: label, "aria-label": label, on: { click: onClick }, ...extra }, icon(name));
}

export function setIcon(button, name, label) {
  button.replaceChildren(icon(name));
  button.title = label;
  button.setAttribute("aria-label", label);
}

/** Say something to a screen reader, once. */
export function announce(text) {
  const region = document.getElementById("announce");
  region.textContent = "";
  requestAnimationFrame(() => (region.textContent = text));
}

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

export function seconds(value) {
  return value < 0.0995 ? `${(value * 1000).toFixed(0)} ms` : `${value.toFixed(value < 9.95 ? 2 : 1)} s`;
}

export const nats = (value) => `${value.toFixed(value < 0.095 ? 3 : 2)} nats`;

/** A token as one can read it: white space and line breaks made visible. */
export function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "(part of a character)";
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Let a textarea grow with its text. */
export function growing(area) {
  const fit = () => {
    if (!area.offsetParent) return; // in a tab that is not shown it has no height
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
  };
  area.addEventListener("input", fit);
  requestAnimationFrame(fit);
  return fit;
}
