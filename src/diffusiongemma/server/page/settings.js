// What the user chose, kept over reloads; empty means the checkpoint's own value.

import { load, save } from "./store.js";

const FIRST = { model: null, mode: "diffusion", steps: "", maxTokens: "", seed: "", temperature: "", pace: 140, probabilities: true, earlier: null, face: "mono" };

export const settings = { ...FIRST, ...load("settings", {}) };

export function set(name, value) {
  settings[name] = value;
  save("settings", settings);
  document.dispatchEvent(new CustomEvent("settings", { detail: name }));
}

/** The models the server named; filled by app.js. */
export const server = { models: [] };

const playsSudoku = (model) => model.id === "sudoku";

/** Models one can choose: those that answer in text, all where there are none. */
export function choosable() {
  const text = server.models.filter((model) => !playsSudoku(model));
  return text.length ? text : server.models;
}

export const currentModel = () => choosable().find((model) => model.id === settings.model) ?? choosable()[0] ?? null;

export const sudokuModel = () => server.models.find(playsSudoku) ?? null;

const number = (text) => (String(text).trim() === "" || !Number.isFinite(Number(text)) ? undefined : Number(text));

export const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** Sampling fields of a request. */
export function sampling({ causal = true } = {}) {
  const mode = causal ? settings.mode : "diffusion";
  const fields = { seed: number(settings.seed) ?? newSeed() };
  if (mode === "causal") fields.mode = "causal";
  if (mode === "diffusion" && number(settings.steps)) fields.num_diffusion_steps = number(settings.steps);
  if (number(settings.temperature) !== undefined) fields.temperature = number(settings.temperature);
  return fields;
}

export const maxTokens = () => number(settings.maxTokens);

/** Whether earlier turns go along; small models have only learnt single questions. */
export function earlierTurns(model) {
  return settings.earlier ?? (model?.diffusiongemma?.max_positions ?? 0) > 4096;
}
