// The settings, in a dialog.

import { el, iconButton } from "./dom.js";
import { currentModel, earlierTurns, set, settings } from "./settings.js";
import { key } from "./store.js";

const PACES = [
  ["0", "as it comes"],
  ["60", "brisk"],
  ["140", "easy to follow"],
  ["400", "slow"],
];

function field(label, hint, control) {
  return el("label", { class: "field" }, el("span", {}, label), control, hint ? el("small", {}, hint) : null);
}

function number(name, placeholder, extra = {}) {
  const input = el("input", { type: "number", inputmode: "decimal", placeholder, ".value": settings[name], ...extra });
  input.addEventListener("change", () => set(name, input.validity.valid ? input.value : ""));
  return input;
}

function choice(name, options) {
  const select = el("select", {}, ...options.map(([value, text]) => el("option", { value, selected: String(settings[name]) === value }, text)));
  select.addEventListener("change", () => set(name, typeof settings[name] === "number" ? Number(select.value) : select.value));
  return select;
}

export function openSettings() {
  const defaults = currentModel()?.diffusiongemma?.defaults ?? {};
  const own = (value) => (value === undefined || value === null ? "the checkpoint's" : String(value));
  const dialog = el("dialog", { class: "settings", "aria-labelledby": "settings-title" });
  const earlier = el("input", { type: "checkbox", ".checked": earlierTurns(currentModel()) });
  earlier.addEventListener("change", () => set("earlier", earlier.checked));
  const asked = el("input", { type: "checkbox", ".checked": settings.probabilities });
  asked.addEventListener("change", () => set("probabilities", asked.checked));
  const forget = el("button", { type: "button", class: "button", on: { click: () => (key.set(null), (forget.disabled = true)) } }, "Forget the API key");
  forget.disabled = !key.get();
  dialog.append(
    el("div", { class: "dialog-head" }, el("h2", { id: "settings-title" }, "Settings"), iconButton("close", "Close", () => dialog.close())),
    el(
      "div",
      { class: "fields" },
      field("Mode", "Diffusion denoises a canvas; causal writes token by token with the same weights.", choice("mode", [["diffusion", "diffusion"], ["causal", "causal"]])),
      field("Steps", "Most denoising steps a canvas.", number("steps", own(defaults.num_diffusion_steps), { min: "1", max: "1000", step: "1" })),
      field("Most tokens", "Of an answer.", number("maxTokens", own(defaults.max_tokens), { min: "1", step: "1" })),
      field("Seed", "Empty: another one each time.", number("seed", "random", { min: "0", step: "1" })),
      field("Temperature", "Diffusion: scales the schedule, 1 leaves it. Causal: 0 takes the most probable token.", number("temperature", settings.mode === "causal" ? own(defaults.temperature) : "1", { min: "0", max: "2", step: "0.1" })),
      field("Pace", "How long a step stays on the screen at least.", choice("pace", PACES)),
      field("Letters", null, choice("face", [["mono", "typewriter"], ["text", "book"]])),
    ),
    el("label", { class: "check" }, earlier, el("span", {}, "Send earlier turns of the conversation along")),
    el("label", { class: "check" }, asked, el("span", {}, "Ask the causal role how probable each token is (one pass more a canvas)")),
    el("div", { class: "row" }, forget),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
