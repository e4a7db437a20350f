// One answer: the image with what was kept of it, the text as it comes, and how long that took.

import { draw } from "./image.js";

/** Return a time as people read it. */
export const duration = (ms) => (ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(2)} s`);

/** One of the page's `answer`s. */
export class Panel {
  constructor(template, title) {
    this.element = template.content.firstElementChild.cloneNode(true);
    const find = (name) => this.element.querySelector(name);
    this.title = title;
    this.heading = find("h2");
    this.heading.id = `${title} title`.replaceAll(" ", "-");
    this.element.setAttribute("aria-labelledby", this.heading.id);
    [this.canvas, this.caption, this.text, this.stages] = ["canvas", "figcaption", ".text", ".stages"].map(find);
    const numbers = [".first", ".fed", ".speed", ".visual", ".prompt"].map(find);
    [this.first, this.fed, this.speed, this.visual, this.prompt] = this.numbers = numbers;
    this.begin("", null);
  }

  /** Forget the last answer and wait for one about an image, by a selector. */
  begin(selector, image) {
    this.heading.textContent = selector ? `${this.title}: ${selector}` : this.title;
    [this.image, this.seen] = [image, null];
    for (const part of this.numbers) part.textContent = "–";
    for (const part of [this.text, this.stages, this.caption]) part.textContent = "";
    this.text.setAttribute("aria-busy", String(Boolean(image)));
    this.paint(false);
  }

  /** Take a chunk of the answer; `ms` have passed since it was asked for. */
  take(chunk, ms, show) {
    const { choices: [choice] = [], divprune, usage } = chunk;
    if (choice?.delta.content) {
      if (!this.text.textContent) this.first.textContent = duration(ms);
      this.text.append(choice.delta.content);
    }
    if (divprune && !this.seen) {
      this.seen = divprune.images[0] ?? null;
      this.paint(show);
    }
    if (divprune?.timings_ms) {
      const { queue, encode, select, prefill } = divprune.timings_ms;
      const stages = { waiting: queue, encoder: encode, selector: select, prefill };
      this.stages.textContent = Object.entries(stages).map(([name, time]) => `${name} ${duration(time)}`).join(" · ");
      // The second answer finds the image encoded: this is what the two have in common.
      this.fed.textContent = duration(select + prefill);
      const speed = divprune.tokens_per_second;
      this.speed.textContent = speed ? `${speed.toFixed(1)} tokens/s` : "one token";
    }
    if (usage) {
      const reused = usage.prompt_tokens_details.cached_tokens;
      this.visual.textContent = `${usage.visual_tokens} of ${usage.visual_tokens_before_pruning}`;
      this.prompt.textContent = `${usage.prompt_tokens} tokens${reused ? `, ${reused} known already` : ""}`;
    }
  }

  /** The answer is whole, or there will be none. */
  end() {
    this.text.setAttribute("aria-busy", "false");
  }

  /** Draw the image, with or without what was kept of it. */
  paint(show) {
    this.canvas.hidden = !this.image;
    if (!this.image) return;
    draw(this.canvas, this.image, show ? this.seen : null);
    const { kept, candidates } = this.seen ?? {};
    const text = kept ? `${kept} of ${candidates} patches kept${kept < candidates && show ? ", the others darkened" : ""}` : "";
    this.caption.textContent = text;
    this.canvas.setAttribute("aria-label", `The image${text && `: ${text}`}`);
  }

  /** Return what a screen reader says once the answer is whole. */
  get summary() {
    return `${this.heading.textContent}: ${this.text.textContent || "nothing"}. First token after ${this.first.textContent}.`;
  }
}
