// Errors, said plainly, with what can be done about them.

import { BrokenError, ServerError } from "./api.js";
import { el } from "./dom.js";
import { key } from "./store.js";

function words(error, steps) {
  if (error instanceof BrokenError) {
    if (!error.began) return `${error.message} Is it still running?`;
    return steps ? `${error.message} What had come by step ${steps} is kept above; it is not a finished answer.` : error.message;
  }
  if (error instanceof ServerError) {
    if (error.status === 401) return "This server asks for an API key.";
    if (error.status === 429) return "The server is full just now.";
    return error.param ? `${error.message} (${error.param})` : error.message;
  }
  return `The page stumbled: ${error.message}`;
}

/** A notice with a button that tries again. `steps` is how many had arrived. */
export function notice(error, retry, steps = 0) {
  const box = el("div", { class: "notice", role: "alert" }, el("p", {}, words(error, steps)));
  if (error instanceof ServerError && error.status === 401) box.append(keyForm(retry));
  else if (retry) box.append(retryButton(error, retry));
  return box;
}

function keyForm(retry) {
  const input = el("input", { type: "password", autocomplete: "off", "aria-label": "API key", placeholder: "API key" });
  const form = el(
    "form",
    { class: "key-form" },
    input,
    el("button", { type: "submit", class: "button" }, "Use it"),
    el("p", { class: "faint" }, "Kept in this tab until it is closed, and sent to this server only."),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!input.value.trim()) return;
    key.set(input.value.trim());
    retry();
  });
  requestAnimationFrame(() => input.focus());
  return form;
}

function retryButton(error, retry) {
  const button = el("button", { type: "button", class: "button retry", on: { click: retry } }, "Try again");
  let left = Math.ceil(error.retryAfter ?? 0);
  const tick = () => {
    button.textContent = left > 0 ? `Try again (ready in ${left} s)` : "Try again";
    if (left-- > 0 && (button.isConnected || left > 0)) setTimeout(tick, 1000);
  };
  if (left) tick();
  return button;
}
