// The card that tells one token's history.

import { el, nats, svg, visible } from "./dom.js";
import { isPad, isSpecial } from "./record.js";

const MOST = 7;
let card = null;
let owner = null;
let place = null;

const name = (text) => (isPad(text) ? "padding" : isSpecial(text) ? text : visible(text));

function sparkline(steps, now) {
  const [width, height, top] = [176, 30, Math.max(...steps.map((step) => step.entropy), 0.05)];
  const x = (at) => (steps.length === 1 ? width / 2 : 3 + (at * (width - 6)) / (steps.length - 1));
  const y = (entropy) => height - 4 - (height - 8) * Math.sqrt(entropy / top);
  const points = steps.map((step, at) => `${x(at).toFixed(1)},${y(step.entropy).toFixed(1)}`);
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    svg("path", { d: `M${points.join("L")}`, class: "line" }),
    svg("circle", { cx: x(now), cy: y(steps[now].entropy), r: 3 }),
  );
}

/** Steps that follow each other with the same token, as one line. */
function runs(steps) {
  const found = [];
  steps.forEach((step, at) => {
    const last = found.at(-1);
    if (last && last.text === step.text && last.accepted === step.accepted) {
      last.to = at;
      last.entropy = step.entropy;
    } else found.push({ from: at, to: at, ...step });
  });
  return found;
}

function fill(info) {
  const { steps, now } = info;
  const rows = runs(steps);
  const cut = rows.length > MOST ? rows.length - MOST : 0;
  const table = el("table", {});
  if (cut) table.append(el("tr", {}, el("td", { colspan: "3", class: "faint" }, `${cut} earlier changes`)));
  for (const row of rows.slice(cut)) {
    const [from, to] = [steps[row.from].number, steps[row.to].number];
    const label = from === to ? `${from}` : `${from}–${to}`;
    const here = now >= row.from && now <= row.to;
    table.append(
      el(
        "tr",
        { class: here ? "here" : undefined },
        el("td", { class: "faint" }, label),
        el("td", { class: row.accepted ? "token" : "token unsure" }, name(row.text)),
        el("td", { class: "faint number" }, nats(row.entropy)),
      ),
    );
  }
  const shown = steps[now];
  card.replaceChildren(
    el("div", { class: "head" }, el("b", {}, name(shown.text)), el("span", {}, nats(shown.entropy))),
    el("div", { class: "faint" }, info.pinned ? `position ${info.position} · pinned` : `position ${info.position} · ${shown.accepted ? "kept" : "noise again"} at step ${shown.number}`),
    steps.length > 1 ? sparkline(steps, now) : "",
    info.probability === null ? "" : el("div", { class: "faint" }, `final token: ${(100 * info.probability).toFixed(1)}% by the causal role`),
    table,
  );
}

export function show(view, at) {
  card ??= document.getElementById("tip");
  const info = view.describe(at);
  const box = view.box(at);
  if (!info?.steps.length || !box) return hide(view);
  owner = view;
  place = at;
  fill(info);
  card.hidden = false;
  const size = card.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left + box.width / 2 - size.width / 2), innerWidth - size.width - 8);
  // Above the token, where it hides nothing that is still to be read; below it under the page's head.
  const below = box.top - size.height - 8 < 64;
  card.style.left = `${left}px`;
  // Below marked tokens stands the button that denoises them again.
  const gap = view.selected ? 56 : 8;
  card.style.top = `${below ? box.bottom + gap : box.top - size.height - 8}px`;
}

export function hide(view) {
  if (!card || (view && view !== owner)) return;
  card.hidden = true;
  owner = place = null;
}

addEventListener("scroll", () => hide(), { passive: true });
addEventListener("pointerdown", (event) => owner && !owner.root.contains(event.target) && hide());

/** The frame changed below an open card. */
export function refresh(view) {
  if (owner === view && place !== null) show(view, place);
}

export function spoken(view, at) {
  const info = view.describe(at);
  if (!info?.steps.length) return "";
  const step = info.steps[info.now];
  const first = info.steps[0];
  const changed = first.text === step.text ? "" : `, was ${name(first.text)} at step 1`;
  return `${name(step.text)}, position ${at}, ${nats(step.entropy)}${info.pinned ? ", pinned" : ""}${changed}`;
}
