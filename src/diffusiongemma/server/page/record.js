// What an answer looked like after every step, kept compact: typed arrays, and each token's text once.

const SPECIAL = /^<(pad|eos|bos|unk|mask|turn\||\|turn|end_of_turn|start_of_turn)>$/;
const TOP = 16; // nats: entropies are stored as the square root of their share of it, in 16 bits

export const isSpecial = (text) => SPECIAL.test(text);
export const isPad = (text) => text === "<pad>";

const squeeze = (value) => Math.round(65535 * Math.sqrt(Math.min(Math.max(value, 0), TOP) / TOP));
const expand = (stored) => TOP * (stored / 65535) ** 2;

function toBase64(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

function fromBase64(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  return new Kind(bytes.buffer);
}

/**
 * One answer. A canvas is {length, steps: [{tokens, entropy, accepted}], pinned, ids, seconds}; ids are its final tokens.
 * A frame is what one looks at: after step s of canvas c, or (s = -1) the finished answer.
 */
export class Recording {
  constructor() {
    this.canvases = [];
    this.frames = [];
    this.texts = new Map();
    this.text = "";
    this.committed = "";
    this.finish = null;
    this.usage = null;
    this.answerIds = null;
    this.logprobs = null;
  }

  /** Take one event of a stream. */
  take({ event, data }) {
    if (event === "draft") this.#draft(data);
    else if (event === "commit") this.#commit(data);
    else if (event === "finish") {
      this.finish = data.finish_reason;
      this.usage = data.usage ?? this.usage;
      if (data.token_ids) this.answerIds = data.token_ids;
    } else {
      const choice = data.choices?.[0];
      if (choice?.delta?.content) this.text += choice.delta.content;
      if (choice?.finish_reason) this.finish ??= choice.finish_reason;
      if (choice?.logprobs?.content) this.logprobs = [...(this.logprobs ?? []), ...choice.logprobs.content.map((one) => one.logprob)];
      if (data.usage) this.usage = data.usage;
    }
  }

  #draft(data) {
    const length = data.tokens.length;
    data.tokens.forEach((id, at) => this.texts.set(id, data.texts[at]));
    const canvas = (this.canvases[data.canvas] ??= { length, steps: [], pinned: new Uint8Array(length), ids: null });
    data.pinned.forEach((fixed, at) => (canvas.pinned[at] = fixed ? 1 : 0));
    canvas.steps.push({
      number: data.step,
      tokens: Int32Array.from(data.tokens),
      entropy: Uint16Array.from(data.entropy, squeeze),
      accepted: Uint8Array.from(data.accepted, (kept) => (kept ? 1 : 0)),
    });
    this.frames.push({ c: data.canvas, s: canvas.steps.length - 1 });
  }

  #commit(data) {
    data.token_ids.forEach((id, at) => this.texts.set(id, data.texts[at]));
    this.committed += data.text;
    const last = this.canvases.at(-1);
    let canvas = last?.steps.length && !last.ids ? last : this.canvases[data.canvas];
    if (!canvas) {
      // Token by token there are no drafts: everything committed is one row of tokens.
      canvas = this.canvases[data.canvas] = { length: 0, steps: [], pinned: new Uint8Array(0), ids: [] };
    }
    canvas.ids = canvas.steps.length ? data.token_ids : [...canvas.ids, ...data.token_ids];
    if (!canvas.steps.length) canvas.length = canvas.ids.length;
  }

  /** The answer is whole: the last frame shows it. */
  close() {
    this.frames.push({ c: Math.max(this.canvases.length - 1, 0), s: -1 });
    this.#align();
  }

  get finished() {
    return this.frames.length > 0 && this.frames.at(-1).s === -1;
  }

  /** The answer's token ids, or null while they are not final. */
  get ids() {
    if (this.answerIds) return this.answerIds;
    if (!this.canvases.length || this.canvases.some((canvas) => !canvas.ids)) return null;
    return this.canvases.flatMap((canvas) => canvas.ids);
  }

  textOf(id) {
    return this.texts.get(id) ?? "";
  }

  /** Text so far: what is committed, and of the last draft what stands before its end. */
  get partial() {
    const last = this.canvases.at(-1);
    if (!last || last.ids || !last.steps.length) return this.text;
    const frame = { c: this.canvases.length - 1, s: last.steps.length - 1 };
    const { ids, tail } = this.#drafted(frame);
    let draft = "";
    ids.forEach((id, at) => {
      const text = this.textOf(id);
      if (!tail[at] && !isSpecial(text)) draft += text;
    });
    return this.text + draft;
  }

  // The answer ends at the first special token that stands behind the last pin.
  #drafted({ c, s }) {
    const canvas = this.canvases[c];
    const ids = canvas.steps[s].tokens;
    const tail = new Uint8Array(canvas.length);
    const lastPin = canvas.pinned.lastIndexOf(1);
    let ended = false;
    for (let at = 0; at < canvas.length; at++) {
      tail[at] = ended ? 1 : 0;
      if (at >= lastPin && isSpecial(this.textOf(ids[at]))) ended = true;
    }
    return { ids, tail };
  }

  /** Everything one sees in a frame, position by position. */
  cells(index) {
    const frame = this.frames[index];
    const cells = [];
    if (!frame) return cells;
    for (let c = 0; c <= frame.c && c < this.canvases.length; c++) {
      const canvas = this.canvases[c];
      const live = c === frame.c && frame.s >= 0;
      const step = canvas.steps[live ? frame.s : canvas.steps.length - 1];
      const settled = !live && canvas.ids;
      const drafted = step ? this.#drafted({ c, s: live ? frame.s : canvas.steps.length - 1 }) : null;
      for (let at = 0; at < canvas.length; at++) {
        const id = settled && at < canvas.ids.length ? canvas.ids[at] : drafted.ids[at];
        cells.push({
          id,
          text: (settled ? this.shown?.get(cells.length) : undefined) ?? this.textOf(id),
          entropy: step ? expand(step.entropy[at]) : null,
          accepted: Boolean(settled || step?.accepted[at]),
          pinned: canvas.pinned[at] === 1,
          tail: settled ? at >= canvas.ids.length : drafted.tail[at] === 1,
        });
      }
    }
    return cells;
  }

  /** A position's tokens and entropies over the steps of its canvas. */
  history(position) {
    let start = 0;
    for (const [c, canvas] of this.canvases.entries()) {
      if (position < start + canvas.length) {
        const at = position - start;
        return {
          canvas: c,
          at,
          pinned: canvas.pinned[at] === 1,
          steps: canvas.steps.map((step) => ({
            number: step.number,
            text: this.textOf(step.tokens[at]),
            entropy: expand(step.entropy[at]),
            accepted: step.accepted[at] === 1,
          })),
        };
      }
      start += canvas.length;
    }
    return null;
  }

  /** Probability by the causal role of a position's final token, where it was asked for; end tokens have none. */
  probability(position) {
    const ids = this.ids;
    if (!this.logprobs || !ids || position >= ids.length) return null;
    const isText = (id) => !isSpecial(this.textOf(id));
    if (!isText(ids[position])) return null;
    const logprob = this.logprobs[ids.slice(0, position).filter(isText).length];
    return logprob === undefined ? null : Math.exp(logprob);
  }

  /** Mean entropy of each frame's canvas, in nats. */
  means() {
    return this.frames.map(({ c, s }) => {
      const steps = this.canvases[c]?.steps ?? [];
      const step = steps[s < 0 ? steps.length - 1 : s];
      return step ? step.entropy.reduce((sum, stored) => sum + expand(stored), 0) / step.entropy.length : 0;
    });
  }

  get steps() {
    return this.canvases.reduce((sum, canvas) => sum + canvas.steps.length, 0);
  }

  // A character may be spread over several tokens, none of which is text alone. The answer's text says what they are together:
  // the first of them shows it, the others nothing.
  #align() {
    this.shown = new Map();
    const places = [];
    let start = 0;
    for (const canvas of this.canvases) {
      (canvas.ids ?? []).forEach((id, at) => {
        const text = this.textOf(id);
        if (!isSpecial(text)) places.push({ at: start + at, text });
      });
      start += canvas.length;
    }
    const text = this.committed;
    if (!text || places.map((place) => place.text).join("") === text) return;
    let from = 0;
    for (let i = 0; i < places.length; i++) {
      const { at, text: alone } = places[i];
      if (!alone.includes("\ufffd") && text.startsWith(alone, from)) {
        from += alone.length;
        continue;
      }
      let next = i;
      let found = -1;
      while (++next < places.length) {
        if (places[next].text.includes("\ufffd")) continue;
        found = text.indexOf(places[next].text, from + 1);
        if (found >= 0) break;
      }
      const end = found < 0 ? text.length : found;
      this.shown.set(at, text.slice(from, end));
      for (let j = i + 1; j < next && j < places.length; j++) this.shown.set(places[j].at, "");
      from = end;
      i = next - 1;
    }
  }

  /** Plain values for storage; without the steps only the answer remains. */
  pack(withSteps = true) {
    return {
      text: this.text,
      committed: this.committed,
      finish: this.finish,
      usage: this.usage,
      logprobs: this.logprobs,
      closed: this.finished,
      texts: [...this.texts].filter(([id]) => withSteps || this.ids?.includes(id)),
      canvases: this.canvases.map((canvas) => {
        const steps = withSteps || !canvas.ids ? canvas.steps : canvas.steps.slice(-1);
        return {
          length: canvas.length,
          ids: canvas.ids,
          pinned: toBase64(canvas.pinned),
          steps: steps.map((step) => [step.number, toBase64(step.tokens), toBase64(step.entropy), toBase64(step.accepted)]),
        };
      }),
    };
  }

  static unpack(packed) {
    const recording = new Recording();
    for (const name of ["text", "committed", "finish", "usage", "logprobs"]) recording[name] = packed[name];
    recording.texts = new Map(packed.texts);
    packed.canvases.forEach((canvas, c) => {
      const steps = canvas.steps.map(([number, tokens, entropy, accepted]) => ({
        number,
        tokens: fromBase64(tokens, Int32Array),
        entropy: fromBase64(entropy, Uint16Array),
        accepted: fromBase64(accepted, Uint8Array),
      }));
      recording.canvases.push({ length: canvas.length, ids: canvas.ids, pinned: fromBase64(canvas.pinned, Uint8Array), steps });
      steps.forEach((_, s) => recording.frames.push({ c, s }));
    });
    if (packed.closed) recording.close();
    return recording;
  }
}
