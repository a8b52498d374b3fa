// A text with a hole: several lengths are denoised at once, and the best one comes back.

import { announce, el, growing } from "./dom.js";
import { INFILLS } from "./examples.js";
import { notice } from "./notice.js";
import { Player } from "./player.js";
import { Run } from "./run.js";
import { currentModel, sampling } from "./settings.js";
import { load, save } from "./store.js";
import { TokenView, legend } from "./tokens.js";

const BEHIND = 6; // pinned tokens shown behind a candidate

export class Infill {
  constructor() {
    const kept = load("infill", { ...INFILLS[0], most: "8" });
    this.run = null;
    this.before = el("textarea", { rows: "3", "aria-label": "Text before the hole", spellcheck: "false", ".value": kept.before });
    this.after = el("textarea", { rows: "2", "aria-label": "Text behind the hole", spellcheck: "false", ".value": kept.after });
    this.most = el("input", { type: "number", min: "1", max: "64", "aria-label": "Most tokens of the hole", ".value": kept.most });
    this.fits = [growing(this.before), growing(this.after)];
    this.button = el("button", { type: "submit", class: "button strong" });
    this.hole = el("span", { class: "hole" });
    this.text = el("div", { class: "document" });
    this.rows = el("div", { class: "rows" });
    this.status = el("div", { class: "status" });
    this.notes = el("div", { class: "notes" });
    this.views = [];
    this.player = new Player((frame) => this.#draw(frame));
    const form = el(
      "form",
      { class: "pane" },
      el("div", { class: "chips" }, ...INFILLS.map((one) => el("button", { type: "button", class: "chip", on: { click: () => this.#take(one) } }, one.name))),
      el("div", { class: "holed" }, this.before, el("div", { class: "gap" }, el("span", {}, "the hole, at most"), this.most, el("span", {}, "tokens")), this.after),
      el("div", { class: "row" }, this.button, el("span", { class: "faint keys" }, "Ctrl+Enter")),
    );
    this.output = el(
      "div",
      { class: "pane output", hidden: true },
      el("h2", {}, "The text"),
      this.text,
      el("h2", {}, "Candidates"),
      el("p", { class: "faint" }, "How long the hole is nobody knows: each line tries another length. The causal role judges which whole text is most probable."),
      this.rows,
      this.player.root,
      el("div", { class: "foot" }, this.status),
      this.notes,
      legend(),
    );
    this.root = el("section", { class: "work" }, form, this.output);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.run) this.stop();
      else this.#fill();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !this.run) this.#fill();
    });
    form.addEventListener("input", () => this.#keep());
    this.#update();
  }

  focus() {
    for (const fit of this.fits) fit();
    if (matchMedia("(pointer: fine)").matches) this.before.focus();
  }

  ready() {}

  stop() {
    this.run?.stop();
  }

  #take({ before, after }) {
    this.before.value = before;
    this.after.value = after;
    for (const fit of this.fits) fit();
    this.#keep();
    if (!this.run) this.#fill();
  }

  #keep() {
    save("infill", { before: this.before.value, after: this.after.value, most: this.most.value });
  }

  #update() {
    this.button.textContent = this.run ? "Stop" : "Fill the hole";
  }

  async #fill(body = null) {
    body ??= {
      model: currentModel()?.id,
      prompt: this.before.value,
      suffix: this.after.value,
      max_tokens: Number(this.most.value) || 8,
      stream: true,
      diffusing: true,
      ...sampling({ causal: false }),
    };
    this.output.hidden = false;
    if (innerWidth < 960) this.output.scrollIntoView({ block: "start" });
    this.notes.replaceChildren();
    this.player.reset(true);
    this.views = [];
    this.rows.replaceChildren();
    this.hole.textContent = "…";
    this.hole.className = "hole open";
    this.text.replaceChildren(body.prompt, this.hole, body.suffix);
    this.status.replaceChildren(el("span", { class: "waiting" }, "waiting for the first step"));
    let filled = null;
    const onEvent = ({ data }) => {
      const text = data.choices?.[0]?.text;
      if (text !== undefined) filled = (filled ?? "") + text;
    };
    this.run = new Run({ path: "v1/fim/completions", body, onEvent, show: (frame) => this.#draw(frame) });
    this.shown = this.run;
    this.#update();
    const { status, error, seconds } = await this.run.go();
    this.run = null;
    this.#update();
    const longest = this.#recordings().reduce((best, one) => (one.frames.length > (best?.frames.length ?? 0) ? one : best), null);
    if (longest) {
      this.#draw(longest.frames.length - 1);
      this.player.open(longest);
    }
    this.hole.className = filled === null ? "hole none" : "hole";
    this.hole.textContent = filled ?? " ";
    const tried = this.#recordings().length;
    if (status === "done") {
      this.status.replaceChildren(
        el("span", { class: "figures" }, el("span", {}, `${tried} candidates`), el("span", {}, `${longest?.steps ?? 0} steps at most`), el("span", {}, `${seconds.toFixed(2)} s`)),
      );
      announce(`Filled: ${filled}`);
    } else if (status === "stopped") this.status.textContent = "stopped";
    else {
      this.status.textContent = "";
      this.notes.replaceChildren(notice(error, () => !this.run && this.#fill(body), longest?.steps ?? 0));
    }
  }

  #recordings() {
    return this.shown.recordings.filter((one) => one?.steps);
  }

  #draw(frame) {
    this.shown.recordings.forEach((recording, row) => {
      if (!recording?.steps) return;
      if (!this.views[row]) {
        this.views[row] = new TokenView({ window: BEHIND });
        this.views[row].root.setAttribute("aria-label", `Candidate ${row + 1}`);
        this.rows.append(this.views[row].root);
      }
      const view = this.views[row];
      if (view.recording !== recording) view.reset(recording);
      view.show(Math.min(frame, recording.frames.length - 1));
    });
    if (this.run) this.status.textContent = `step ${frame + 1} · ${this.#recordings().length} candidates`;
  }
}
