// The chat: a conversation that survives a reload, answers in versions, and spans that are denoised again.

import { Answer, copyButton } from "./answer.js";
import { announce, el, growing, iconButton, plural, setIcon } from "./dom.js";
import { CHAT } from "./examples.js";
import { Recording } from "./record.js";
import { currentModel, earlierTurns, maxTokens, newSeed, sampling, set, settings } from "./settings.js";
import { load, save } from "./store.js";
import { legend } from "./tokens.js";

const ROOM = 2_500_000; // characters of storage for the conversation; older steps are dropped first

/** A turn: {role: "user", text} or {role: "assistant", versions: [{recording, seconds, status, seed, remark}], shown, earlier}. */
export class Chat {
  constructor() {
    this.turns = [];
    this.busy = null;
    this.log = el("div", { class: "log", role: "log", "aria-label": "Conversation", "aria-live": "off" });
    this.start = this.#makeStart();
    this.input = el("textarea", { rows: "1", placeholder: "Ask something", "aria-label": "Message", spellcheck: "true", id: "message" });
    this.fit = growing(this.input);
    this.send = el("button", { type: "submit", class: "send" });
    setIcon(this.send, "send", "Send (Enter)");
    this.memory = el("button", { type: "button", class: "quiet memory", on: { click: () => this.#toggleMemory() } });
    this.clear = el("button", { type: "button", class: "quiet", on: { click: () => this.#clear() } }, "Clear");
    this.form = el(
      "form",
      { class: "composer" },
      el("div", { class: "box" }, this.input, this.send),
      el("div", { class: "below" }, this.memory, this.clear, legend()),
    );
    this.root = el("section", { class: "chat" }, this.start, this.log, this.form);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.busy) this.stop();
      else this.#ask(this.input.value);
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.busy) this.#ask(this.input.value);
    });
    document.addEventListener("settings", () => this.#sayMemory());
    this.atEnd = true;
    this.scrolled = 0;
    addEventListener("scroll", () => this.#scroll(), { passive: true });
    this.#restore();
    this.#update();
  }

  focus() {
    this.fit();
    if (matchMedia("(pointer: fine)").matches) this.input.focus();
  }

  /** Models are known now, or have changed. */
  ready() {
    this.#sayMemory();
  }

  #makeStart() {
    const examples = CHAT.map(({ name, hint, text }) =>
      el("button", { type: "button", class: "example", on: { click: () => this.#ask(text) } }, el("b", {}, name), el("span", {}, hint)),
    );
    return el(
      "div",
      { class: "start" },
      el("h1", {}, "Text, denoised"),
      el("p", {}, "The answer begins as noise. Each step sharpens all of it at once: what the model is sure of stays, the rest is noise again."),
      el("div", { class: "examples" }, ...examples),
    );
  }

  #toggleMemory() {
    set("earlier", !earlierTurns(currentModel()));
  }

  #sayMemory() {
    const on = earlierTurns(currentModel());
    this.memory.textContent = on ? "With earlier turns" : "Each message alone";
    this.memory.title = "Whether earlier turns are sent along. The small built-in models have only learnt single questions.";
    this.memory.setAttribute("aria-pressed", String(on));
  }

  #update() {
    this.start.hidden = this.turns.length > 0;
    this.clear.hidden = this.turns.length === 0;
    setIcon(this.send, this.busy ? "stop" : "send", this.busy ? "Stop (Esc)" : "Send (Enter)");
    this.send.classList.toggle("stop", Boolean(this.busy));
  }

  // -- asking ------------------------------------------------------------------------------------------------------

  async #ask(text) {
    if (!text.trim() || this.busy) return;
    this.input.value = "";
    this.fit();
    this.#add({ role: "user", text });
    const turn = { role: "assistant", versions: [], shown: -1, earlier: earlierTurns(currentModel()) };
    this.#add(turn);
    this.#keep();
    await this.#write(turn, this.#body(turn));
  }

  #body(turn) {
    const body = {
      model: currentModel()?.id,
      messages: this.#messages(turn),
      stream: true,
      stream_options: { include_usage: true },
      ...sampling(),
    };
    if (settings.mode === "diffusion") {
      body.diffusing = true;
      if (settings.probabilities) body.logprobs = true;
    }
    if (maxTokens()) body.max_tokens = maxTokens();
    return body;
  }

  /** What is sent for a turn: the question before it, or all before it. */
  #messages(turn) {
    const before = this.turns.slice(0, this.turns.indexOf(turn));
    const taken = turn.earlier ? before : before.slice(-1);
    return taken
      .map((one) => ({ role: one.role, content: one.role === "user" ? one.text : (one.versions[one.shown]?.recording.partial ?? "") }))
      .filter((message) => message.content.trim());
  }

  async #write(turn, body, kept = null) {
    this.busy = turn.answer;
    this.#update();
    turn.pager.hidden = turn.again.hidden = true;
    const follow = new ResizeObserver(() => this.#follow());
    follow.observe(turn.answer.root);
    this.#toEnd();
    const outcome = await turn.answer.send({ path: "v1/chat/completions", body });
    follow.disconnect();
    this.busy = null;
    const { recording, status, error, seconds } = outcome;
    const arrived = recording.partial !== "" || recording.finished;
    if (arrived) {
      const version = { recording, seconds, status, seed: body.seed, remark: kept ? kept(recording) : "" };
      turn.versions.push(version);
      turn.shown = turn.versions.length - 1;
    }
    this.#show(turn);
    if (!turn.versions.length) turn.answer.empty(status === "stopped" ? "stopped before anything came" : "");
    // The same request once more: a retry is not another draw.
    if (status === "failed") turn.answer.complain(error, () => this.#retry(turn, body, kept, arrived), recording.steps);
    this.#update();
    this.#keep();
    if (status === "done") announce(`Answer: ${recording.text}`);
    else if (status === "stopped") announce("Stopped");
    this.#follow();
  }

  #retry(turn, body, kept, arrived) {
    if (this.busy) return;
    if (arrived) {
      turn.versions.pop();
      turn.shown = turn.versions.length - 1;
    }
    this.#write(turn, body, kept);
  }

  #redenoise(turn, positions) {
    if (this.busy) return;
    const version = turn.versions[turn.shown];
    const ids = version.recording.ids;
    const open = new Set(positions);
    const body = this.#body(turn);
    body.pins = ids.map((id, at) => [at, id]).filter(([at]) => !open.has(at));
    body.max_tokens = ids.length;
    body.seed = newSeed();
    body.diffusing = true;
    delete body.mode;
    const kept = (recording) => {
      const now = recording.ids;
      if (!now) return "";
      const same = ids.every((id, at) => open.has(at) || now[at] === id);
      const changed = positions.filter((at) => now[at] !== ids[at]).length;
      if (!same) return "the rest changed too: the server did not keep the pins";
      return `${changed ? `${changed} of ${plural(positions.length, "token")} changed` : "the same tokens again"}, the rest is unchanged`;
    };
    this.#write(turn, body, kept);
  }

  stop() {
    this.busy?.stop();
  }

  // -- showing -----------------------------------------------------------------------------------------------------

  #add(turn) {
    this.turns.push(turn);
    this.log.append(this.#element(turn));
    this.#update();
    return turn;
  }

  #element(turn) {
    if (turn.role === "user") return el("div", { class: "turn user" }, el("div", { class: "said" }, turn.text.trimEnd()));
    turn.again = iconButton("again", "Again, with another seed", () => !this.busy && this.#write(turn, { ...this.#body(turn), seed: newSeed() }));
    turn.count = el("span", { class: "count" });
    const page = (by) => () => {
      turn.shown = Math.min(Math.max(turn.shown + by, 0), turn.versions.length - 1);
      this.#show(turn);
      this.#keep();
    };
    turn.pager = el("span", { class: "pager" }, iconButton("left", "Version before", page(-1)), turn.count, iconButton("right", "Version after", page(1)));
    turn.copy = copyButton(() => turn.versions[turn.shown]?.recording.partial ?? "");
    turn.answer = new Answer({ onRedenoise: (positions) => this.#redenoise(turn, positions), actions: [turn.pager, turn.copy, turn.again] });
    this.#show(turn);
    return el("div", { class: "turn model" }, turn.answer.root);
  }

  #show(turn) {
    const version = turn.versions[turn.shown];
    turn.pager.hidden = turn.versions.length < 2;
    turn.copy.hidden = !version;
    turn.again.hidden = false;
    turn.count.textContent = `${turn.shown + 1} / ${turn.versions.length}`;
    turn.answer.notes.replaceChildren();
    if (version) turn.answer.open(version.recording, version);
    else turn.answer.empty("no answer");
  }

  #toEnd() {
    this.atEnd = true;
    scrollTo({ top: document.documentElement.scrollHeight });
  }

  // Only going up leaves the end: the text may have grown again before an event of going down comes.
  #scroll() {
    const left = document.documentElement.scrollHeight - innerHeight - scrollY;
    this.atEnd = left < 80 || (this.atEnd && scrollY >= this.scrolled);
    this.scrolled = scrollY;
  }

  // Stay at the end until someone scrolls away from it.
  #follow() {
    if (this.atEnd && !this.root.parentElement.hidden) this.#toEnd();
  }

  // -- keeping -----------------------------------------------------------------------------------------------------

  #clear() {
    this.stop();
    this.turns = [];
    this.log.replaceChildren();
    save("chat", []);
    this.#update();
    this.input.focus();
    announce("Conversation cleared");
  }

  #keep() {
    // Newest first: the steps of old answers go when there is no room for them.
    let room = ROOM;
    const packed = [...this.turns].reverse().map((turn) => {
      if (turn.role === "user") return { role: "user", text: turn.text };
      const versions = turn.versions.map((version) => {
        let recording = version.recording.pack(true);
        const size = JSON.stringify(recording).length;
        if (size > room) recording = version.recording.pack(false);
        else room -= size;
        return { ...version, recording };
      });
      return { role: "assistant", shown: turn.shown, earlier: turn.earlier, versions };
    });
    save("chat", packed.reverse());
  }

  #restore() {
    try {
      for (const turn of load("chat", [])) {
        if (turn.role === "user") this.#add(turn);
        else this.#add({ ...turn, versions: turn.versions.map((version) => ({ ...version, recording: Recording.unpack(version.recording) })) });
      }
    } catch {
      // Written by another version of the page: a fresh start is better than none.
      this.turns = [];
      this.log.replaceChildren();
    }
  }
}
