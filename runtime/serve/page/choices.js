// Which selector, and how much it keeps: a menu and a slider over what the server has.

/** Return the models by selector, each with its budgets in ascending order. */
export function menu(models) {
  const groups = new Map();
  for (const { id, divprune } of models) {
    const { selector, keep, candidates } = divprune;
    if (!id.endsWith(`:${selector}`)) continue; // the bundle's own name stands for one of the others
    const name = selector === "none" ? "none" : selector.replace(new RegExp(`-${keep}(?=-|$)`), "");
    groups.set(name, [...(groups.get(name) ?? []), { id, keep, candidates, chosen: divprune.default }]);
  }
  for (const budgets of groups.values()) budgets.sort((a, b) => a.keep - b.keep);
  return groups;
}

/** A menu and a slider, one of the page's `setting`s. */
export class Choice {
  constructor(template, title) {
    this.element = template.content.firstElementChild.cloneNode(true);
    const find = (name) => this.element.querySelector(name);
    find("legend").textContent = title;
    [this.select, this.slider, this.note] = ["select", "input", ".note"].map(find);
    const [selector, budget] = this.element.querySelectorAll("label");
    [this.select.id, this.slider.id] = [`${title} selector`, `${title} budget`].map((id) => id.replaceAll(" ", "-"));
    [selector.htmlFor, budget.htmlFor] = [this.select.id, this.slider.id];
    this.select.addEventListener("change", () => this.#budgets());
    this.slider.addEventListener("input", () => this.#say());
    this.groups = new Map();
  }

  /** Offer what there is; what was chosen stays so, else `name` with its default budget, or the first there is. */
  offer(groups, name) {
    const before = this.value?.id;
    this.groups = groups;
    const options = [...groups.keys()].map((key) => new Option(key === "none" ? "none: every token" : key, key));
    this.select.replaceChildren(...options);
    const kept = [...groups].find(([, budgets]) => budgets.some(({ id }) => id === before))?.[0];
    this.select.value = kept ?? (groups.has(name) ? name : options[0]?.value ?? "");
    this.#budgets();
    if (kept) this.slider.value = groups.get(kept).findIndex(({ id }) => id === before);
    this.#say();
  }

  /** What is chosen: `id`, `keep`, `candidates`; nothing while the models are not known. */
  get value() {
    return this.groups.get(this.select.value)?.[this.slider.value];
  }

  #budgets() {
    const budgets = this.groups.get(this.select.value) ?? [];
    this.slider.max = Math.max(budgets.length - 1, 0);
    this.slider.value = Math.max(budgets.findIndex((budget) => budget.chosen), 0);
    this.slider.disabled = budgets.length < 2;
    this.#say();
  }

  #say() {
    const { keep, candidates } = this.value ?? {};
    const text = keep ? `keeps ${keep} of ${candidates} visual tokens (${percent(keep / candidates)})` : "";
    this.note.textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
  }
}

/** Return a share as people read it. */
export const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
