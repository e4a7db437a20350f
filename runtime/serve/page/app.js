// The page: what is chosen, asked and shown.

import { Choice, menu } from "./choices.js";
import { Panel } from "./panel.js";
import { read } from "./image.js";
import { Told, answer, models } from "./stream.js";

const find = (id) => document.getElementById(id);
const page = Object.fromEntries(
  ["model", "form", "file", "drop", "preview", "hint", "question", "settings", "both", "show", "more", "tokens", "key",
    "go", "stop", "problem", "status", "answers"].map((id) => [id, find(id)]),
);
const titles = ["Answer A", "Answer B"];
const choices = titles.map((title) => new Choice(find("setting"), title));
const panels = titles.map((title) => new Panel(find("answer"), title));
let image = null;
let choosing = 0;
let asking = null;

function complain(error, at) {
  page.problem.textContent = error.message;
  page.status.textContent = "";
  at?.focus();
}

/** Ask the server what there is to choose from. */
async function load() {
  try {
    const found = await models(page.key.value);
    const [first] = found;
    page.model.textContent = `${first.id} (${first.divprune.family}), ${first.divprune.candidates} visual tokens an image`;
    const groups = menu(found);
    const chosen = [...groups].find(([, budgets]) => budgets.some((budget) => budget.chosen))?.[0];
    choices[0].offer(groups, chosen);
    choices[1].offer(groups, chosen === "none" ? [...groups.keys()][0] : "none");
    page.problem.textContent = "";
  } catch (error) {
    if (error.code === "api-key-wrong") page.more.open = true;
    complain(error, error.code === "api-key-wrong" ? page.key : null);
  }
}

async function choose(file) {
  if (file !== page.file.files[0]) page.file.value = ""; // it was dropped or pasted
  choosing += 1;
  const own = choosing;
  try {
    const found = await read(file);
    if (own !== choosing) return URL.revokeObjectURL(found.shown.src); // another one was chosen meanwhile
    if (image) URL.revokeObjectURL(image.shown.src);
    image = found;
    page.preview.src = found.shown.src;
    page.preview.alt = `The image that is asked about, ${file.name}`;
    page.preview.hidden = false;
    page.hint.textContent = file.name + (found.changed ? ", sent as a JPEG" : "");
    page.problem.textContent = "";
  } catch (error) {
    if (own !== choosing) return;
    page.file.value = ""; // the image that is shown is asked about, not the one that could not be read
    complain(error, page.file);
  }
}

/** Return the page's sides that are asked. */
const sides = () => (page.both.checked ? [0, 1] : [0]);

function arrange() {
  const shown = sides();
  page.settings.replaceChildren(...shown.map((side) => choices[side].element));
  if (!asking) page.answers.replaceChildren(...shown.map((side) => panels[side]).filter((panel) => panel.image)
    .map((panel) => panel.element));
  for (const part of [page.settings, page.answers]) part.classList.toggle("two", shown.length > 1);
}

async function ask() {
  if (asking) return;
  const text = page.question.value.trim();
  if (!image) return complain(new Told("Choose an image first."), page.file);
  if (!text) return complain(new Told("Ask a question."), page.question);
  if (!page.tokens.checkValidity() || !page.tokens.value) {
    page.more.open = true;
    return complain(new Told("Tokens at most: expected a number from 1."), page.tokens);
  }
  asking = new AbortController();
  page.go.setAttribute("aria-disabled", "true");
  page.stop.disabled = false;
  const { shown, url } = image;
  const question = { image: url, text, tokens: page.tokens.valueAsNumber };
  let chosen = [];
  try {
    if (!choices[0].value) await load();
    asking.signal.throwIfAborted();
    chosen = sides().filter((side) => choices[side].value);
    if (!chosen.length) return;
    page.problem.textContent = "";
    for (const side of chosen) panels[side].begin(choices[side].value.id.split(":").pop(), shown);
    page.answers.replaceChildren(...chosen.map((side) => panels[side].element));
    page.answers.scrollIntoView({ block: "nearest" });
    // One after the other: neither answer's times suffer from the other's.
    for (const side of chosen) await write(panels[side], { ...question, model: choices[side].value.id });
  } catch (error) {
    if (error.name === "AbortError") page.status.textContent = "Stopped.";
    else if (error.code === "api-key-wrong") {
      page.more.open = true;
      complain(error, page.key);
    } else complain(error);
  } finally {
    for (const side of chosen) panels[side].end();
    const stopped = document.activeElement === page.stop;
    asking = null;
    page.go.removeAttribute("aria-disabled");
    if (stopped) page.go.focus(); // a disabled button would lose it
    page.stop.disabled = true;
    arrange();
  }
}

async function write(panel, question) {
  page.status.textContent = `${panel.title} is being written.`;
  const began = performance.now();
  for await (const chunk of answer(page.key.value, question, asking.signal)) {
    panel.take(chunk, performance.now() - began, page.show.checked);
  }
  panel.end();
  page.status.textContent = panel.summary;
}

page.form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
page.question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  page.form.requestSubmit();
});
page.stop.addEventListener("click", () => asking?.abort());
page.both.addEventListener("change", arrange);
page.show.addEventListener("change", () => panels.forEach((panel) => panel.paint(page.show.checked)));
page.key.addEventListener("change", load);
page.file.addEventListener("change", () => page.file.files[0] && choose(page.file.files[0]));
document.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData;
  const file = [...files].find(({ type }) => type.startsWith("image/"));
  const rich = types.includes("text/html") && types.includes("text/plain"); // a text that comes with its image
  if (file && !rich) choose(file);
});
// Wherever a file is dropped, the browser does not leave the page for it; a text goes where it is dropped.
const brings = (event) => event.dataTransfer.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  page.drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || page.drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  page.drop.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) choose(file);
});

arrange();
load();
