// One answer on the page: the canvas, its scrubber, its numbers, and what can be done with it.

import { announce, el, iconButton, plural, seconds } from "./dom.js";
import { notice } from "./notice.js";
import { Player } from "./player.js";
import { Run } from "./run.js";
import * as tip from "./tip.js";
import { TokenView } from "./tokens.js";

/** Tokens, steps, tokens per forward pass, tokens a second, seconds: the server's counts where it gave them. */
export function figures(recording, wall) {
  const usage = recording.usage;
  const diffusion = usage?.diffusion;
  const tokens = usage?.completion_tokens ?? recording.ids?.length;
  const spent = diffusion?.canvases?.length ? diffusion.canvases.reduce((sum, canvas) => sum + canvas.seconds, 0) : wall;
  const steps = diffusion?.denoising_steps || recording.steps;
  const found = [];
  if (tokens !== undefined) found.push([plural(tokens, "token"), "Tokens of the answer, its end token included"]);
  if (steps) {
    found.push([plural(steps, "step"), "Denoising passes over the canvas"]);
    if (tokens) found.push([`${(tokens / steps).toFixed(1)} per forward`, "Tokens for each denoising pass"]);
  }
  if (spent > 0) {
    if (tokens) found.push([`${Math.round(tokens / spent).toLocaleString("en")} tokens/s`, "Tokens a second"]);
    found.push([seconds(spent), diffusion?.canvases?.length ? "On the server, from the first pass to the last" : "As this page saw it"]);
  }
  return found;
}

export function figuresLine(recording, wall) {
  return el("span", { class: "figures" }, ...figures(recording, wall).map(([text, title]) => el("span", { title }, text)));
}

/** What a draft says about how far its canvas is. */
export function progress(recording, frame) {
  const { c, s } = recording.frames[frame] ?? {};
  const step = recording.canvases[c]?.steps[s];
  if (!step) return "";
  const kept = step.accepted.reduce((sum, one) => sum + one, 0);
  const name = recording.canvases.length > 1 ? `canvas ${c + 1}, step ${step.number}` : `step ${step.number}`;
  return `${name} · ${kept} of ${step.tokens.length} kept`;
}

export class Answer {
  /**
   * @param options.onRedenoise called with positions; without it nothing can be selected
   * @param options.actions buttons beside the numbers
   */
  constructor({ onRedenoise = null, actions = [] } = {}) {
    this.onRedenoise = onRedenoise;
    this.view = new TokenView({ onSelect: onRedenoise ? (positions) => this.#selected(positions) : null });
    this.player = new Player((frame) => {
      this.view.show(frame);
      this.#grow();
    });
    this.status = el("div", { class: "status" });
    this.tools = el("div", { class: "tools" }, ...actions);
    this.notes = el("div", { class: "notes" });
    this.bar = el("div", { class: "selection-bar", hidden: true });
    this.paper = el("div", { class: "paper" }, this.view.root, this.bar);
    this.foot = el("div", { class: "foot" }, this.status, this.tools);
    this.root = el("div", { class: "answer" }, this.paper, this.player.root, this.foot, this.notes);
    this.run = null;
    this.tallest = 0;
  }

  /** Send a request and show what comes; resolves with its outcome. */
  async send({ path, body, onEvent = null }) {
    const run = new Run({ path, body, onEvent, show: (frame) => this.#draw(run, frame) });
    this.run = run;
    this.player.reset(body.mode !== "causal");
    this.notes.replaceChildren();
    this.view.reset(run.recording);
    this.status.replaceChildren(el("span", { class: "waiting" }, "waiting for the first step"));
    this.root.classList.add("running");
    this.root.classList.remove("failed", "bare");
    this.view.root.setAttribute("aria-busy", "true");
    this.#grow();
    const outcome = await run.go();
    this.root.classList.remove("running");
    this.view.root.removeAttribute("aria-busy");
    this.run = null;
    return { ...outcome, recording: run.recording };
  }

  #draw(run, frame) {
    if (this.view.recording !== run.recording) this.view.reset(run.recording);
    this.view.show(Math.min(frame, Math.max(run.recording.frames.length - 1, 0)));
    this.#grow();
    this.status.textContent = progress(run.recording, frame) || "writing token by token";
  }

  // Noise takes a line more here and there: the paper only grows while steps are shown, so that nothing below it jumps.
  #grow() {
    const height = this.paper.offsetHeight;
    if (height <= this.tallest) return;
    this.tallest = height;
    this.paper.style.minHeight = `${height}px`;
  }

  /** Show a recording that has its end, or what there is of one that was cut. */
  open(recording, { seconds: wall, status = "done", remark = "" } = {}) {
    this.root.classList.remove("bare");
    this.tallest = 0;
    this.paper.style.minHeight = "";
    if (this.view.recording !== recording) this.view.reset(recording);
    this.view.show(recording.frames.length - 1);
    this.view.root.setAttribute("aria-label", `Answer; arrow keys go from token to token${this.onRedenoise ? ", with Shift they mark tokens to denoise again" : ""}`);
    if (recording.frames.length) this.player.open(recording);
    else this.player.reset();
    const lead = status === "done" ? "" : status === "stopped" ? "stopped" : "broken off";
    this.status.replaceChildren(
      ...(lead ? [el("span", { class: "lead" }, lead)] : []),
      figuresLine(recording, wall),
      ...(recording.finish === "length" ? [el("span", { class: "remark" }, "cut: the most tokens are reached")] : []),
      ...(remark ? [el("span", { class: "remark" }, remark)] : []),
    );
    this.root.classList.toggle("failed", status === "failed");
  }

  /** Nothing came: an empty canvas would say less than nothing. */
  empty(text = "") {
    this.root.classList.add("bare");
    this.status.textContent = text;
    this.player.reset();
  }

  complain(error, retry, steps) {
    this.status.textContent = "";
    this.notes.replaceChildren(notice(error, retry, steps));
    this.root.classList.add("failed");
  }

  stop() {
    this.run?.stop();
  }

  #selected(positions) {
    this.bar.hidden = positions === null;
    if (positions === null) return;
    const button = el("button", { type: "button", class: "button strong redenoise" }, `Denoise ${plural(positions.length, "token")} again`);
    // A press must not take the selection away before it counts.
    button.addEventListener("pointerdown", (event) => event.preventDefault());
    button.addEventListener("click", () => this.redenoise());
    this.bar.replaceChildren(button);
    const [first, paper] = [this.view.box(positions[0]), this.paper.getBoundingClientRect()];
    const last = this.view.box(positions.at(-1)) ?? first;
    if (!first) return;
    const width = this.bar.offsetWidth;
    this.bar.style.left = `${Math.min(Math.max(8, first.left - paper.left), Math.max(8, paper.width - width - 8))}px`;
    this.bar.style.top = `${last.bottom - paper.top + 8}px`;
  }

  redenoise() {
    const positions = this.view.selected;
    if (!positions) return;
    document.getSelection().removeAllRanges();
    tip.hide(this.view);
    this.view.select(null);
    this.onRedenoise(positions);
  }
}

export function copyButton(text) {
  const button = iconButton("copy", "Copy the text", async () => {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      const area = el("textarea", { class: "sr-only" });
      area.value = text();
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.classList.add("did");
    announce("Copied");
    setTimeout(() => button.classList.remove("did"), 900);
  });
  return button;
}
