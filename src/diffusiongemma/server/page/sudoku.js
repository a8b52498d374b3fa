// A puzzle whose cells are drawn from the drafts of a canvas.

import { figuresLine, progress } from "./answer.js";
import { announce, el } from "./dom.js";
import { SUDOKUS } from "./examples.js";
import { notice } from "./notice.js";
import { Player } from "./player.js";
import { Run } from "./run.js";
import { sampling, server, sudokuModel } from "./settings.js";
import { load, save } from "./store.js";
import * as tip from "./tip.js";
import { legend, level } from "./tokens.js";

const ROWS = "ABCDEFGHI";
const FEWEST = 17; // clues; with fewer no puzzle has a single solution
// The answer is nine lines of nine digits: cell (r, c) is token 10 r + c of the canvas.
const place = (cell) => 10 * Math.floor(cell / 9) + (cell % 9);

const UNITS = [];
for (let one = 0; one < 9; one++) {
  UNITS.push({ name: `row ${ROWS[one]}`, cells: [...Array(9).keys()].map((c) => 9 * one + c) });
  UNITS.push({ name: `column ${one + 1}`, cells: [...Array(9).keys()].map((r) => 9 * r + one) });
  const corner = 27 * Math.floor(one / 3) + 3 * (one % 3);
  UNITS.push({ name: `box ${one + 1}`, cells: [...Array(9).keys()].map((i) => corner + 9 * Math.floor(i / 3) + (i % 3)) });
}

/** Cells whose digit stands twice in a row, column or box. */
function clashes(digits) {
  const bad = new Set();
  for (const { cells } of UNITS) {
    for (const cell of cells) {
      if (digits[cell] && cells.some((other) => other !== cell && digits[other] === digits[cell])) bad.add(cell);
    }
  }
  return bad;
}

/** The user's message that the sudoku checkpoint has learnt. */
function promptText(clues) {
  const rows = [...ROWS].map((row, r) => [...Array(9).keys()].map((c) => `${row}${c + 1}=${clues[9 * r + c] || "?"}`).join(" "));
  return `Solve this sudoku:\n${rows.join("\n")}`;
}

export class Sudoku {
  constructor() {
    this.run = null;
    this.recording = null;
    this.frame = -1;
    this.cells = [...Array(81).keys()].map((cell) => this.#cell(cell));
    const rows = [...Array(9).keys()].map((r) => el("div", { role: "row", class: "sudoku-row" }, ...this.cells.slice(9 * r, 9 * r + 9).map((cell) => el("div", { role: "gridcell" }, cell))));
    this.grid = el("div", { class: "sudoku", role: "grid", "aria-label": "Sudoku, nine by nine" }, ...rows);
    this.button = el("button", { type: "submit", class: "button strong" });
    this.edit = el("button", { type: "button", class: "button", on: { click: () => this.#back() } }, "Back to the puzzle");
    this.empty = el("button", { type: "button", class: "button", on: { click: () => this.#take(".".repeat(81), false) } }, "Empty");
    this.name = el("span", {});
    this.state = el("p", { class: "state", "aria-live": "polite" });
    this.status = el("div", { class: "status" });
    this.notes = el("div", { class: "notes" });
    this.player = new Player((frame) => this.#draw(frame));
    this.missing = el("p", { class: "notice", hidden: true }, "This server holds no sudoku model. Start it with the built-in one: diffusiongemma serve --model nano --model sudoku");
    this.form = el(
      "form",
      { class: "pane side" },
      el("p", { class: "lead-text" }, "A whole grid is one canvas. Sure digits come first; the others are noise again until they fit. ", this.name),
      el("div", { class: "chips", role: "group", "aria-label": "Examples" }, ...SUDOKUS.map((one) => el("button", { type: "button", class: "chip", on: { click: () => this.#take(one.cells) } }, one.name))),
      el("div", { class: "row" }, this.button, this.edit, this.empty),
      this.state,
      el("div", { class: "foot" }, this.status),
      this.notes,
      el("p", { class: "faint" }, "Type digits into the grid, or paste 81 cells (a dot for an empty one)."),
      legend({ pinned: false }),
    );
    this.root = el("section", { class: "work sudoku-work" }, el("div", { class: "pane board" }, this.missing, this.grid, this.player.root), this.form);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.run) this.stop();
      else this.#solve();
    });
    this.grid.addEventListener("keydown", (event) => this.#key(event));
    this.grid.addEventListener("paste", (event) => this.#paste(event));
    this.grid.addEventListener("pointerleave", () => tip.hide(this));
    this.clues = [...Array(81).fill("")];
    this.#take(load("sudoku", SUDOKUS[2].cells), false);
  }

  focus() {}

  ready() {
    this.missing.hidden = Boolean(sudokuModel()) || !server.models.length;
    this.name.textContent = sudokuModel() ? `Solved by ${sudokuModel().id}.` : "";
    this.#update();
  }

  stop() {
    this.run?.stop();
  }

  #cell(cell) {
    const input = el("input", { inputmode: "numeric", maxlength: "1", autocomplete: "off", "aria-label": `${ROWS[Math.floor(cell / 9)]}${(cell % 9) + 1}`, tabindex: cell ? "-1" : "0" });
    input.addEventListener("input", () => this.#typed(cell));
    input.addEventListener("focus", () => {
      for (const [at, other] of this.cells.entries()) other.tabIndex = at === cell ? 0 : -1;
      input.select();
      if (this.recording) tip.show(this, place(cell));
    });
    input.addEventListener("blur", () => tip.hide(this));
    input.addEventListener("pointerover", () => this.recording && tip.show(this, place(cell)));
    return input;
  }

  // -- editing -----------------------------------------------------------------------------------------------------

  #take(cells, solve = true) {
    if (this.run) return;
    this.clues = [...cells].map((char) => (/[1-9]/.test(char) ? char : ""));
    this.#back();
    if (solve) this.#solve();
  }

  #back() {
    if (this.run) return;
    this.recording = null;
    this.player.reset();
    this.notes.replaceChildren();
    this.status.replaceChildren();
    tip.hide(this);
    this.cells.forEach((input, cell) => (input.value = this.clues[cell]));
    save("sudoku", this.clues.map((digit) => digit || ".").join(""));
    this.#checkClues();
    this.#update();
  }

  #checkClues() {
    const bad = clashes(this.clues);
    const count = this.clues.filter(Boolean).length;
    this.cells.forEach((input, cell) => (input.className = `${this.clues[cell] ? "clue" : ""}${bad.has(cell) ? " wrong" : ""}`));
    const trouble = bad.size ? "A digit stands twice in a row, column or box." : count < FEWEST ? `${count} clues; a puzzle needs at least ${FEWEST}.` : "";
    this.state.textContent = trouble || `${count} clues`;
    this.state.className = trouble ? "state bad" : "state";
    return trouble === "";
  }

  #typed(cell) {
    const digit = this.cells[cell].value.replace(/[^1-9]/g, "").slice(-1);
    this.cells[cell].value = digit;
    this.clues[cell] = digit;
    save("sudoku", this.clues.map((one) => one || ".").join(""));
    this.#checkClues();
    this.#update();
    if (digit) this.cells[Math.min(cell + 1, 80)].focus();
  }

  #key(event) {
    const cell = this.cells.indexOf(event.target);
    if (cell < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -9, ArrowDown: 9 };
    if (event.key in steps) {
      event.preventDefault();
      const to = cell + steps[event.key];
      if (to >= 0 && to < 81) this.cells[to].focus();
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (!this.run) this.#solve();
    } else if (event.key === "Backspace" && !event.target.value && cell && !this.recording) {
      event.preventDefault();
      this.cells[cell - 1].focus();
    }
  }

  #paste(event) {
    const text = event.clipboardData.getData("text").replace(/[\s,;|+-]/g, "");
    if (text.length !== 81) return;
    event.preventDefault();
    this.#take(text.replace(/[^1-9]/g, "."), false);
  }

  // -- solving -----------------------------------------------------------------------------------------------------

  #update() {
    const solvable = Boolean(sudokuModel()) && !this.state.classList.contains("bad");
    this.button.textContent = this.run ? "Stop" : this.recording ? "Solve again" : "Solve";
    this.button.disabled = !this.run && !solvable && !this.recording;
    this.edit.hidden = !this.recording || Boolean(this.run);
    this.empty.hidden = Boolean(this.recording) || Boolean(this.run);
    for (const input of this.cells) input.readOnly = Boolean(this.recording);
  }

  async #solve(body = null) {
    if (!sudokuModel() || !(this.recording || this.#checkClues())) return;
    body ??= {
      model: sudokuModel().id,
      messages: [{ role: "user", content: promptText(this.clues) }],
      stream: true,
      diffusing: true,
      ...sampling({ causal: false }),
    };
    this.notes.replaceChildren();
    this.player.reset(true);
    this.state.textContent = "";
    this.state.className = "state";
    this.status.replaceChildren(el("span", { class: "waiting" }, "waiting for the first step"));
    this.run = new Run({ path: "v1/chat/completions", body, show: (frame) => this.#draw(frame) });
    this.recording = this.run.recording;
    this.grid.setAttribute("aria-busy", "true");
    this.#update();
    const run = this.run;
    const { status, error, seconds } = await run.go();
    this.run = null;
    this.recording = run.recording;
    this.grid.removeAttribute("aria-busy");
    if (!this.recording.steps) this.#back();
    else {
      this.player.open(this.recording);
      this.#draw(this.recording.frames.length - 1);
      this.status.replaceChildren(figuresLine(this.recording, seconds));
    }
    if (status === "done") this.#judge();
    else if (status === "stopped") this.state.textContent = "Stopped.";
    else this.notes.replaceChildren(notice(error, () => !this.run && this.#solve(body), this.recording?.steps ?? 0));
    this.#update();
  }

  #judge() {
    const lines = this.recording.text.trim().split("\n");
    const whole = lines.length === 9 && lines.every((line) => /^[1-9]{9}$/.test(line));
    const digits = [...lines.join("")];
    const bad = whole ? clashes(digits) : new Set();
    const kept = whole && this.clues.every((digit, cell) => !digit || digit === digits[cell]);
    const solved = whole && kept && bad.size === 0;
    for (const cell of bad) this.cells[cell].classList.add("wrong");
    this.state.textContent = solved
      ? "Solved: each digit once in every row, column and box, and every clue kept."
      : !whole
        ? "Not solved: the answer is not nine lines of nine digits."
        : kept
          ? `Not solved: ${bad.size} cells clash.`
          : "Not solved: a clue was changed.";
    this.state.className = solved ? "state good" : "state bad";
    announce(this.state.textContent);
  }

  #draw(frame) {
    if (this.run) this.recording = this.run.recording;
    this.frame = frame;
    const drawn = this.recording.cells(frame);
    this.cells.forEach((input, cell) => {
      const token = drawn[place(cell)];
      if (!token) return;
      const value = /^[1-9]$/.test(token.text) ? token.text : "·";
      const name = `${this.clues[cell] ? "clue" : "open"} e${level(token.entropy)}${token.accepted ? "" : " noise"}`;
      if (input.value !== value) input.value = value;
      if (input.className !== name) input.className = name;
    });
    if (this.run) this.status.textContent = progress(this.recording, frame);
    tip.refresh(this);
  }

  // What the card asks for, as TokenView has it.
  box(at) {
    return this.cells[9 * Math.floor(at / 10) + (at % 10)]?.getBoundingClientRect() ?? null;
  }

  describe(at) {
    const history = this.recording?.history(at);
    if (!history) return null;
    const s = this.recording.frames[this.frame]?.s ?? -1;
    return { ...history, position: at, now: s < 0 ? history.steps.length - 1 : s, probability: null };
  }
}
