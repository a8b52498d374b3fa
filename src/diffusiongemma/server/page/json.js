// An answer held to a JSON schema, checked to parse.

import { Answer, copyButton } from "./answer.js";
import { announce, el, growing } from "./dom.js";
import { JSONS } from "./examples.js";
import { currentModel, maxTokens, sampling } from "./settings.js";
import { load, save } from "./store.js";
import { legend } from "./tokens.js";

export class Json {
  constructor() {
    const kept = load("json", { text: JSONS[0].text, schema: JSON.stringify(JSONS[0].schema, null, 2) });
    this.busy = false;
    this.text = el("textarea", { rows: "4", "aria-label": "Message", ".value": kept.text });
    this.schema = el("textarea", { rows: "10", class: "code", "aria-label": "JSON schema", "aria-describedby": "schema-state", spellcheck: "false", ".value": kept.schema });
    this.fits = [growing(this.text), growing(this.schema)];
    this.state = el("p", { class: "state", id: "schema-state" });
    this.button = el("button", { type: "submit", class: "button strong" });
    this.answer = new Answer({ actions: [copyButton(() => this.result.textContent)] });
    this.result = el("pre", { class: "document code", tabindex: "0", "aria-label": "The parsed answer" });
    this.verdict = el("p", { class: "state" });
    const form = el(
      "form",
      { class: "pane" },
      el("div", { class: "chips" }, ...JSONS.map((one) => el("button", { type: "button", class: "chip", on: { click: () => this.#take(one) } }, one.name))),
      el("label", {}, "Message", this.text),
      el("label", {}, "Schema", this.schema),
      this.state,
      el("div", { class: "row" }, this.button, el("span", { class: "faint keys" }, "Ctrl+Enter")),
    );
    this.parsed = el("div", { class: "pane", hidden: true }, el("h2", {}, "Parsed"), this.result, this.verdict);
    this.output = el("div", { class: "pane output", hidden: true }, el("h2", {}, "The canvas"), this.answer.root, this.parsed, legend());
    this.root = el("section", { class: "work" }, form, this.output);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.busy) this.stop();
      else this.#ask();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !this.busy) this.#ask();
    });
    form.addEventListener("input", () => {
      save("json", { text: this.text.value, schema: this.schema.value });
      this.#check();
    });
    this.#check();
    this.#update();
  }

  focus() {
    for (const fit of this.fits) fit();
    if (matchMedia("(pointer: fine)").matches) this.text.focus();
  }

  ready() {}

  stop() {
    this.answer.stop();
  }

  #take({ text, schema }) {
    this.text.value = text;
    this.schema.value = JSON.stringify(schema, null, 2);
    for (const fit of this.fits) fit();
    save("json", { text, schema: this.schema.value });
    this.#check();
    if (!this.busy) this.#ask();
  }

  #check() {
    try {
      const schema = JSON.parse(this.schema.value);
      if (schema === null || typeof schema !== "object") throw new Error("a schema is an object");
      this.state.textContent = "";
      this.state.className = "state";
      return schema;
    } catch (error) {
      this.state.textContent = `The schema is no JSON yet: ${error.message}`;
      this.state.className = "state bad";
      return null;
    } finally {
      this.button.disabled = !this.busy && this.state.textContent !== "";
    }
  }

  #update() {
    this.button.textContent = this.busy ? "Stop" : "Write it";
  }

  async #ask(body = null) {
    const schema = this.#check();
    if (!schema || !this.text.value.trim()) return;
    body ??= {
      model: currentModel()?.id,
      messages: [{ role: "user", content: this.text.value }],
      response_format: { type: "json_schema", json_schema: { name: "answer", schema } },
      stream: true,
      diffusing: true,
      ...sampling({ causal: false }),
      ...(maxTokens() ? { max_tokens: maxTokens() } : {}),
    };
    this.output.hidden = false;
    if (innerWidth < 960) this.output.scrollIntoView({ block: "start" });
    this.parsed.hidden = true;
    this.busy = true;
    this.#update();
    const { recording, status, error, seconds } = await this.answer.send({ path: "v1/chat/completions", body });
    this.busy = false;
    this.#update();
    if (recording.frames.length || recording.text) this.answer.open(recording, { seconds, status });
    else this.answer.empty(status === "stopped" ? "stopped before anything came" : "");
    if (status === "failed") this.answer.complain(error, () => !this.busy && this.#ask(body), recording.steps);
    if (status === "done") this.#judge(recording.text);
  }

  #judge(text) {
    this.parsed.hidden = false;
    try {
      this.result.textContent = JSON.stringify(JSON.parse(text), null, 2);
      this.verdict.textContent = "It parses.";
      this.verdict.className = "state good";
    } catch (error) {
      this.result.textContent = text;
      this.verdict.textContent = `It does not parse: ${error.message}`;
      this.verdict.className = "state bad";
    }
    announce(`${this.verdict.textContent} ${text}`);
  }
}
