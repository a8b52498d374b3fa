// One request from its start to its end: events into recordings, frames to the screen at a pace one can follow.

import { stream } from "./api.js";
import { calm } from "./dom.js";
import { Recording } from "./record.js";
import { settings } from "./settings.js";

const LAG = 2500; // ms the screen may be behind the server before it hurries

/** Shows the frames of recordings as they come, each for as long as the chosen pace says. */
class Playback {
  constructor(show) {
    this.show = show;
    this.count = 0;
    this.at = 0;
    this.last = -1e9;
    this.ended = null;
    this.handle = null;
    this.skipped = false;
  }

  /** There are so many frames now. */
  grew(count) {
    this.count = count;
    this.#wake();
  }

  /** Resolves when the last frame has been on the screen. */
  end() {
    return new Promise((resolve) => {
      this.ended = resolve;
      this.#wake();
    });
  }

  skip() {
    this.skipped = true;
    this.#wake();
  }

  #wake() {
    if (this.handle !== null) return;
    // A hidden page gets no animation frames; a timer, seldom, but still.
    if (document.hidden) this.handle = setTimeout(() => this.#tick(performance.now()), 0);
    else this.handle = requestAnimationFrame((now) => this.#tick(now));
  }

  #tick(now) {
    this.handle = null;
    const behind = this.count - this.at;
    const pace = this.skipped || document.hidden || calm() ? 0 : Math.min(settings.pace, LAG / Math.max(behind, 1));
    if (behind > 0 && now - this.last >= pace - 4) {
      this.at = pace < 16 ? this.count : this.at + 1;
      this.last = now;
      this.show(this.at - 1);
    }
    if (this.at < this.count) this.#wake();
    else if (this.ended) {
      // The last frame stays as long as any other.
      const wait = this.skipped || document.hidden || calm() ? 0 : Math.max(0, this.last + settings.pace - now);
      setTimeout(this.ended, wait);
      this.ended = null;
    }
  }
}

/**
 * @typedef Outcome
 * @property status "done", "stopped" or "failed"
 * @property error the error of a failed run
 * @property seconds wall time as this page saw it
 */
export class Run {
  /**
   * @param options.path, options.body the request
   * @param options.show called with (recordings, frame) when a frame is due
   * @param options.onEvent called with each event
   */
  constructor({ path, body, show, onEvent = null }) {
    this.path = path;
    this.body = body;
    this.recordings = [new Recording()];
    this.onEvent = onEvent;
    this.controller = new AbortController();
    this.playback = new Playback((frame) => show(frame));
    this.network = true;
  }

  get recording() {
    return this.recordings[0];
  }

  /** The first time it stops the request; once the server is done it skips what is left to show. */
  stop() {
    if (this.network) this.controller.abort();
    this.playback.skip();
  }

  async go() {
    const began = performance.now();
    let outcome;
    try {
      for await (const event of stream(this.path, this.body, this.controller.signal)) this.#take(event);
      outcome = { status: "done" };
    } catch (error) {
      outcome = error.name === "AbortError" ? { status: "stopped" } : { status: "failed", error };
      this.playback.skip();
    }
    this.network = false;
    outcome.seconds = (performance.now() - began) / 1000;
    if (this.playback.count) await this.playback.end();
    if (outcome.status === "done") for (const recording of this.recordings) recording.close();
    return outcome;
  }

  #take(event) {
    const index = event.data.index ?? 0;
    if (event.event === "draft" && event.data.canvas === 0 && event.data.step === 1) this.recordings[index] = new Recording();
    const recording = (this.recordings[index] ??= new Recording());
    recording.take(event);
    this.onEvent?.(event);
    const frames = Math.max(...this.recordings.map((one) => one?.frames.length ?? 0));
    if (event.event === "draft") this.playback.grew(frames);
    else if (!frames && recording.text) this.playback.grew(this.playback.count + 1);
  }
}
