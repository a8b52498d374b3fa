// The page: tabs, models, theme, keys.

import { models } from "./api.js";
import { Chat } from "./chat.js";
import { el, iconButton, setIcon } from "./dom.js";
import { Infill } from "./infill.js";
import { Json } from "./json.js";
import { notice } from "./notice.js";
import { openSettings } from "./panel.js";
import { choosable, currentModel, server, set, settings } from "./settings.js";
import { loadRaw, saveRaw } from "./store.js";
import { Sudoku } from "./sudoku.js";
import * as tip from "./tip.js";

const TABS = ["chat", "infill", "json", "sudoku"];
const views = { chat: new Chat(), infill: new Infill(), json: new Json(), sudoku: new Sudoku() };
const tab = (name) => document.getElementById(`tab-${name}`);
const panel = (name) => document.getElementById(`panel-${name}`);
let open = null;

function go(name, focusTab = false) {
  if (!TABS.includes(name)) name = "chat";
  open = name;
  for (const one of TABS) {
    const chosen = one === name;
    tab(one).setAttribute("aria-selected", String(chosen));
    tab(one).tabIndex = chosen ? 0 : -1;
    panel(one).hidden = !chosen;
  }
  if (location.hash.slice(1) !== name) history.replaceState(null, "", `#${name}`);
  if (focusTab) tab(name).focus();
  else views[name].focus();
}

for (const name of TABS) {
  panel(name).append(views[name].root);
  tab(name).addEventListener("click", () => go(name));
  tab(name).addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) go(TABS[(TABS.indexOf(name) + by + TABS.length) % TABS.length], true);
  });
}
addEventListener("hashchange", () => go(location.hash.slice(1)));

addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.altKey) && !event.metaKey && /^Digit[1-4]$/.test(event.code)) {
    event.preventDefault();
    go(TABS[Number(event.code.at(-1)) - 1]);
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    tip.hide();
    views[open].stop();
  }
});

// -- models --------------------------------------------------------------------------------------------------------

const chooser = document.getElementById("model");
const banner = document.getElementById("banner");

async function loadModels() {
  try {
    server.models = await models(AbortSignal.timeout(10_000));
    banner.replaceChildren();
  } catch (error) {
    banner.replaceChildren(notice(error, loadModels));
    return;
  }
  chooser.replaceChildren(...choosable().map(({ id }) => el("option", { value: id, selected: id === currentModel()?.id }, id)));
  for (const view of Object.values(views)) view.ready();
}

chooser.addEventListener("change", () => {
  set("model", chooser.value);
  for (const view of Object.values(views)) view.ready();
});

// -- theme and face ------------------------------------------------------------------------------------------------

const THEMES = { auto: ["auto", "Theme: as the system"], light: ["sun", "Theme: light"], dark: ["moon", "Theme: dark"] };
let theme = loadRaw("theme") ?? "auto";
const themeButton = iconButton("auto", "Theme", () => {
  const names = Object.keys(THEMES);
  theme = names[(names.indexOf(theme) + 1) % names.length];
  saveRaw("theme", theme === "auto" ? null : theme);
  dress();
});

function dress() {
  if (!(theme in THEMES)) theme = "auto";
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  setIcon(themeButton, ...THEMES[theme]);
  document.documentElement.dataset.face = settings.face;
}

document.addEventListener("settings", dress);
document.getElementById("buttons").append(iconButton("sliders", "Settings", openSettings), themeButton);
dress();
go(location.hash.slice(1) || "chat");
await loadModels();
