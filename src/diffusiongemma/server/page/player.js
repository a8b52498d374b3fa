// A scrubber over the frames of a recording: drag, arrow keys, a play button, and the mean entropy behind it.

import { calm, el, iconButton, nats, setIcon, svg } from "./dom.js";

const PLAY = 170; // ms a frame

export class Player {
  /** @param show draws a frame, by number */
  constructor(show) {
    this.show = show;
    this.recording = null;
    this.button = iconButton("play", "Play the steps", () => this.toggle());
    this.range = el("input", { type: "range", min: "0", max: "0", step: "1", "aria-label": "Step of the canvas" });
    this.range.addEventListener("input", () => {
      this.pause();
      this.#go(Number(this.range.value));
    });
    this.curve = svg("path", { class: "curve" });
    this.label = el("output", { class: "step" });
    this.root = el(
      "div",
      { class: "player" },
      this.button,
      el("div", { class: "track" }, svg("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, this.curve), this.range),
      this.label,
    );
    this.root.hidden = true;
    this.timer = null;
  }

  /** Away, but for its room where one will be needed, so that nothing jumps. */
  reset(room = false) {
    this.pause();
    this.recording = null;
    this.root.hidden = !room;
    this.root.classList.add("waiting-room");
  }

  /** Stand at the end of a finished recording. */
  open(recording) {
    this.recording = recording;
    const last = recording.frames.length - 1;
    this.root.hidden = recording.steps === 0;
    this.root.classList.remove("waiting-room");
    this.range.max = String(last);
    this.range.value = String(last);
    this.means = recording.means();
    this.#draw(this.means);
    this.#say(last);
  }

  #draw(means) {
    const top = Math.max(...means, 0.02);
    const x = (at) => (means.length < 2 ? 50 : (100 * at) / (means.length - 1));
    const y = (mean) => 23 - 20 * Math.sqrt(mean / top);
    const line = means.map((mean, at) => `${x(at).toFixed(2)},${y(mean).toFixed(2)}`).join("L");
    this.curve.setAttribute("d", `M0,24L${line}L100,24Z`);
  }

  #go(index) {
    this.range.value = String(index);
    this.show(index);
    this.#say(index);
  }

  #say(index) {
    const { c, s } = this.recording.frames[index];
    const canvases = this.recording.canvases.length;
    const steps = this.recording.canvases[c]?.steps ?? [];
    const text = s < 0 ? "final" : `step ${steps[s].number} of ${steps.at(-1).number}${canvases > 1 ? `, canvas ${c + 1}` : ""}`;
    this.label.textContent = text;
    this.range.setAttribute("aria-valuetext", `${text}, mean entropy ${nats(this.means[index])}`);
  }

  toggle() {
    if (this.timer !== null) return this.pause();
    const last = this.recording.frames.length - 1;
    if (Number(this.range.value) >= last) this.#go(0);
    setIcon(this.button, "pause", "Pause");
    const next = () => {
      const at = Number(this.range.value) + 1;
      this.#go(at);
      if (at >= last) this.pause();
    };
    this.timer = setInterval(next, calm() ? 2 * PLAY : PLAY);
  }

  pause() {
    if (this.timer === null) return;
    clearInterval(this.timer);
    this.timer = null;
    setIcon(this.button, "play", "Play the steps");
  }
}
