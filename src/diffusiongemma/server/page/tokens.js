// Tokens drawn as spans that are changed in place, never made anew while a canvas is denoised.

import { announce, el } from "./dom.js";
import { isPad, isSpecial } from "./record.js";
import * as tip from "./tip.js";

const LEVELS = 11;
const HOTTEST = 3; // nats; hotter is drawn the same
const QUICK = 90; // ms between two frames below which nothing fades: the next one would cut it off, and fading costs most

/** 0 (sure) to 11: even steps of colour for the square root of the entropy. */
export function level(entropy) {
  return entropy === null ? 0 : Math.min(LEVELS, Math.round(LEVELS * Math.sqrt(Math.max(entropy, 0) / HOTTEST)));
}

export function legend({ pinned = true } = {}) {
  const ramp = el("span", { class: "ramp", "aria-hidden": "true" });
  for (let at = 0; at <= LEVELS; at++) ramp.append(el("i", { class: `e${at}` }));
  return el(
    "div",
    { class: "legend", role: "img", "aria-label": "Legend: blurred tokens are noise, colour is entropy from 0 to 3 nats and more, a dotted line marks pinned tokens" },
    el("span", { class: "t noise" }, "noise"),
    el("span", { class: "t" }, "kept"),
    pinned ? el("span", { class: "t pinned" }, "pinned") : null,
    el("span", { class: "scale" }, "sure", ramp, "3 nats"),
  );
}

/** What stands in a span: special tokens as marks, and line breaks of noise as signs, so that lines do not jump. */
function face(cell) {
  if (isPad(cell.text)) return "·";
  if (isSpecial(cell.text)) return "∎";
  if (cell.tail || !cell.accepted) return cell.text.replaceAll("\n", "⏎");
  return cell.text;
}

function classes(cell) {
  let name = `t e${level(cell.entropy)}`;
  if (!cell.accepted) name += " noise";
  if (cell.pinned) name += " pinned";
  if (cell.tail) name += " tail";
  if (isSpecial(cell.text)) name += " special";
  return name;
}

export class TokenView {
  /**
   * @param options.onSelect called with the selected positions (sorted) or null, where tokens may be selected
   * @param options.window shows only open tokens and so many pinned ones behind them
   */
  constructor({ onSelect = null, window = null } = {}) {
    this.root = el("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": "Canvas" });
    this.onSelect = onSelect;
    this.window = window;
    this.spans = [];
    this.faces = [];
    this.names = [];
    this.recording = null;
    this.frame = -1;
    this.current = null;
    this.anchor = null;
    this.selected = null;
    this.drawn = 0;
    this.#listen();
  }

  reset(recording) {
    this.recording = recording;
    this.frame = -1;
    this.spans = [];
    this.faces = [];
    this.names = [];
    this.current = this.anchor = null;
    this.select(null);
    this.root.replaceChildren();
    this.root.classList.remove("plain");
  }

  /** Draw a frame of the recording. */
  show(index) {
    this.frame = index;
    const now = performance.now();
    this.root.classList.toggle("quick", now - this.drawn < QUICK);
    this.drawn = now;
    const cells = this.recording.cells(index);
    if (!cells.length) return this.#showPlain();
    const shown = this.window === null ? null : this.#inWindow(cells);
    for (let at = 0; at < cells.length; at++) {
      if (at === this.spans.length) this.#grow();
      const hidden = shown && !shown(at, cells[at]);
      const text = hidden ? "" : face(cells[at]);
      const name = hidden ? "t hidden" : classes(cells[at]);
      if (text !== this.faces[at]) {
        this.spans[at].textContent = text;
        this.faces[at] = text;
      }
      if (name !== this.names[at]) {
        this.spans[at].className = name;
        this.names[at] = name;
        this.#marks(at);
      }
    }
    for (let at = cells.length; at < this.spans.length; at++) {
      if (this.names[at] === "t hidden") continue;
      this.spans[at].className = this.names[at] = "t hidden";
      this.spans[at].textContent = this.faces[at] = "";
    }
    tip.refresh(this);
  }

  #inWindow(cells) {
    const lastOpen = cells.findLastIndex((cell) => !cell.pinned);
    return (at) => at <= lastOpen + this.window;
  }

  #showPlain() {
    this.root.classList.add("plain");
    if (this.root.textContent !== this.recording.text) this.root.textContent = this.recording.text;
  }

  #grow() {
    const span = el("span", {});
    span.dataset.at = this.spans.length;
    this.spans.push(span);
    this.faces.push("");
    this.names.push(null);
    this.root.append(span);
  }

  /** Whether tokens may be selected now. */
  get selectable() {
    return this.onSelect !== null && this.recording?.finished && this.recording.ids !== null && this.recording.steps > 0;
  }

  select(positions) {
    const old = this.selected;
    this.selected = positions?.length ? positions : null;
    for (const at of old ?? []) this.#marks(at);
    for (const at of this.selected ?? []) this.#marks(at);
    if (this.onSelect && (old || this.selected)) this.onSelect(this.selected);
  }

  #marks(at) {
    const span = this.spans[at];
    if (!span) return;
    span.classList.toggle("selected", this.selected?.includes(at) ?? false);
    span.classList.toggle("current", this.current === at);
  }

  #move(to) {
    const old = this.current;
    this.current = to;
    if (old !== null) this.#marks(old);
    if (to === null) return tip.hide(this);
    this.#marks(to);
    tip.show(this, to);
    announce(tip.spoken(this, to));
  }

  /** Positions a token can stand at: those one sees, and of a finished answer those that belong to it. */
  #reachable() {
    const end = this.recording.finished ? (this.recording.ids?.length ?? 0) : this.spans.length;
    return [...this.spans.keys()].filter((at) => at < end && this.faces[at] !== "");
  }

  #listen() {
    this.root.addEventListener("pointerover", (event) => {
      const at = event.target.dataset?.at;
      if (at !== undefined) tip.show(this, Number(at));
    });
    // A finger leaves as soon as it is lifted: what it touched stays until it touches something else.
    this.root.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && tip.hide(this));
    this.root.addEventListener("blur", () => this.#move(null));
    this.root.addEventListener("keydown", (event) => this.#key(event));
    if (this.onSelect) document.addEventListener("selectionchange", () => this.#fromSelection());
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 };
    if (event.ctrlKey || event.metaKey || event.altKey || !this.spans.length) return;
    if (event.key === "Escape" && (this.current !== null || this.selected)) {
      this.select(null);
      this.#move(null);
      event.stopPropagation();
      return;
    }
    if (!(event.key in steps)) return;
    event.preventDefault();
    const places = this.#reachable();
    if (!places.length) return;
    const here = this.current === null ? (steps[event.key] > 0 ? -1 : places.length) : places.indexOf(this.current);
    const to = places[Math.min(Math.max(here + steps[event.key], 0), places.length - 1)];
    if (event.shiftKey && this.selectable) {
      this.anchor ??= this.current ?? to;
      const [low, high] = [Math.min(this.anchor, to), Math.max(this.anchor, to)];
      this.select(places.filter((at) => at >= low && at <= high));
    } else {
      this.anchor = null;
      this.select(null);
    }
    this.#move(to);
  }

  // What the mouse or a finger marked, widened to whole tokens.
  #fromSelection() {
    const selection = document.getSelection();
    if (!selection.rangeCount || !this.root.contains(selection.anchorNode) || !this.root.contains(selection.focusNode)) return;
    if (selection.isCollapsed) {
      if (this.anchor === null) this.select(null);
      return;
    }
    if (!this.selectable) return;
    const range = selection.getRangeAt(0);
    const count = this.recording.ids.length;
    const found = [];
    for (let at = 0; at < count; at++) {
      const text = this.spans[at].firstChild;
      if (!text) continue;
      const whole = document.createRange();
      whole.selectNodeContents(this.spans[at]);
      const starts = range.compareBoundaryPoints(Range.END_TO_START, whole) < 0;
      const ends = range.compareBoundaryPoints(Range.START_TO_END, whole) > 0;
      if (starts && ends) found.push(at);
    }
    this.anchor = null;
    this.select(found);
  }

  /** Where a token is on the screen. */
  box(at) {
    return this.spans[at]?.getClientRects()[0] ?? null;
  }

  describe(at) {
    const history = this.recording?.history(at);
    if (!history) return null;
    const finished = this.recording.finished && this.recording.frames[this.frame]?.s === -1;
    const frame = this.recording.frames[this.frame];
    const now = finished || frame?.c !== history.canvas ? history.steps.length - 1 : frame.s;
    return { ...history, position: at, now, probability: this.recording.probability(at) };
  }
}
