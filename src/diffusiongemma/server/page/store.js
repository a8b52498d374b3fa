// What outlives a reload: settings, fields and the conversation in localStorage, an API key in sessionStorage only.

const PREFIX = "diffusiongemma.";

export function load(name, fallback) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

/** Returns whether it could be stored. */
export function save(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function loadRaw(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

export function saveRaw(name, text) {
  try {
    if (text === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, text);
  } catch {
    // Without storage the page works; it forgets.
  }
}

let heldKey = null;

export const key = {
  get() {
    try {
      return sessionStorage.getItem(PREFIX + "key") ?? heldKey;
    } catch {
      return heldKey;
    }
  },
  set(value) {
    heldKey = value || null;
    try {
      if (value) sessionStorage.setItem(PREFIX + "key", value);
      else sessionStorage.removeItem(PREFIX + "key");
    } catch {
      // Kept in memory then.
    }
  },
};
