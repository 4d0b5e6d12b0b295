// The page of a guide. No text of a user or a catalogue is ever read as HTML.
import { strings } from "./strings.js";

const TASKS = ["classification", "sentiment", "questions", "recommendation"];
const TAUGHT = ["classification", "sentiment", "questions"];
const byId = (id) => document.getElementById(id);

const state = {
  language: (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en",
  token: "",
  guide: null,
  ask: { task: "classification", drafts: {}, show: null, number: 0 },
  teach: { task: "classification", drafts: {}, examples: {}, shows: {} },
};
for (const task of TASKS) {
  state.ask.drafts[task] = { product: null, history: [] };
  state.teach.drafts[task] = { product: null };
  state.teach.examples[task] = [];
}

// --- texts and elements

function t(key, values = {}) {
  const text = key.split(".").reduce((table, part) => table?.[part], strings[state.language]);
  return (text ?? key).replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

function percent(share) {
  return `${Math.round(100 * share)} %`;
}

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

function bar(share, kind = "") {
  const inner = h("i");
  inner.style.width = percent(share).replace(" ", "");
  return h("div", { class: `bar ${kind}`, "aria-hidden": "true" }, inner);
}

function chances(pairs) {
  const cells = pairs.map(([name, share, kind]) => [
    h("dt", {}, name), bar(share, kind), h("dd", {}, percent(share)),
  ]);
  return h("dl", { class: "chances" }, cells.flat());
}

async function fillPicture(image, id) {
  const path = `/v1/products/${encodeURIComponent(id)}/picture`;
  if (!state.token) {
    image.src = path;
    return;
  }
  // An image cannot send the token itself.
  const response = await fetch(path, { headers: { Authorization: `Bearer ${state.token}` } });
  if (!response.ok) return;
  const address = URL.createObjectURL(await response.blob());
  image.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
  image.src = address;
}

function picture(product) {
  if (!product.has_picture) return null;
  const image = h("img", { class: "picture", alt: "" });
  fillPicture(image, product.id).catch(() => {});
  return image;
}

// --- the server

class Trouble extends Error {
  constructor(message, field = "") {
    super(message);
    this.field = field;
  }
}

async function call(path, body) {
  // A header holds no other characters, and no token has them.
  if (/[^\x20-\x7e]/.test(state.token)) {
    askForToken();
    throw new Trouble(t("errors.unauthorized"));
  }
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  const options = { headers };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let response, found;
  try {
    response = await fetch(path, options);
    found = await response.json();
  } catch {
    throw new Trouble(t("errors.network"));
  }
  if (response.ok) return found;
  const known = strings[state.language].errors[found.code];
  const trouble = new Trouble(known ?? [found.error, found.hint].filter(Boolean).join("; "), found.field ?? "");
  if (response.status === 401) {
    askForToken();
    if (!state.token) trouble.message = "";  // nothing was tried yet
  }
  throw trouble;
}

function askForToken() {
  byId("token-form").hidden = false;
  byId("token").focus();
}

function say(trouble) {
  const place = byId("trouble");
  place.textContent = trouble ? trouble.message : "";
  place.hidden = !place.textContent;
  if (!place.hidden) place.scrollIntoView({ block: "nearest" });
  if (trouble && !(trouble instanceof Trouble)) throw trouble;
}

// Runs one action of a button at a time, and shows what goes wrong. The button keeps the focus.
const running = new WeakMap();  // button -> the run that it waits for
async function busy(button, action) {
  if (running.has(button)) return;
  const run = {};
  running.set(button, run);
  button.setAttribute("aria-disabled", "true");
  try {
    say(null);
    await action();
  } catch (trouble) {
    say(trouble);
  } finally {
    if (running.get(button) === run) free(button);
  }
}

function free(button) {
  running.delete(button);
  button.removeAttribute("aria-disabled");
}

// --- choosing products

function searchField(prefix, choose, label = "search") {
  const hits = h("ul", { class: "hits", "aria-label": t("found"), hidden: true });
  const status = h("p", { class: "soft small", role: "status" });
  let last = 0, shown = 0;
  async function find(focuses = false) {
    const number = ++last;
    const query = new URLSearchParams({ query: input.value, limit: "20" });
    const found = await call(`/v1/products?${query}`);
    if (number !== last) return;
    shown = number;
    hits.hidden = !found.length;
    status.textContent = found.length ? t("hits", { count: found.length }) : t("nothing");
    hits.replaceChildren(...found.map((product) => {
      const pick = () => {
        hits.hidden = true;
        input.value = status.textContent = "";
        try { choose(product); } catch (trouble) { say(trouble); }
      };
      const names = h("span", { dir: "auto" }, product.title, h("small", {}, product.category ?? product.id));
      return h("li", {}, h("button", { type: "button", class: "hit", onclick: pick }, picture(product), names));
    }));
    if (focuses) hits.querySelector("button")?.focus();
  }
  let timer;
  const input = h("input", {
    id: `${prefix}-search`, type: "search", autocomplete: "off", dir: "auto", placeholder: t("searchHint"),
    oninput: () => {
      last += 1;  // what is under way is for other words
      clearTimeout(timer);
      timer = setTimeout(() => find().catch(say), 150);
    },
    onclick: () => { if (hits.hidden) find().catch(say); },
    onkeydown: (event) => {
      if (event.isComposing) return;  // Enter chooses characters of an input method
      if (event.key === "Enter") event.preventDefault();
      if (event.key === "ArrowDown" || event.key === "Enter") {
        clearTimeout(timer);
        if (hits.hidden || shown !== last) find(true).catch(say);
        else hits.querySelector("button").focus();
      }
      if (event.key === "Escape") hits.hidden = true;
    },
  });
  hits.addEventListener("keydown", (event) => {
    const buttons = [...hits.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    if (event.key === "ArrowDown") buttons[Math.min(at + 1, buttons.length - 1)].focus();
    else if (event.key === "ArrowUp") (buttons[at - 1] ?? input).focus();
    else if (event.key === "Escape") { hits.hidden = true; input.focus(); }
    else return;
    event.preventDefault();
  });
  return [h("label", { for: input.id }, t(label)), input, status, hits];
}

function chip(product, drop) {
  const cross = { type: "button", class: "cross", "aria-label": t("remove", { name: product.title }), onclick: drop };
  return h("li", { class: "chip" }, picture(product), h("span", { dir: "auto" }, product.title), h("button", cross, "×"));
}

// A field that keeps what is typed in the draft, whatever language the page is drawn in.
function field(prefix, draft, name, label, tag = "input", attributes = {}) {
  const id = `${prefix}-${name}`;
  const keep = (event) => { draft[name] = event.target.value; };
  const element = h(tag, { id, autocomplete: "off", dir: "auto", oninput: keep, ...attributes });
  element.value = draft[name] ?? "";
  return [h("label", { for: id }, t(label)), element];
}

function productFields(prefix, draft, redraw) {
  const choose = (product) => { draft.product = product; redraw(`${prefix}-chosen`); };
  const drop = () => { draft.product = null; redraw(`${prefix}-search`); };
  if (draft.product) {
    return [
      h("p", { class: "label", id: `${prefix}-chosen`, tabindex: "-1" }, t("chosen")),
      h("ul", { class: "chips" }, chip(draft.product, drop)),
    ];
  }
  const own = h("details", {
    open: Boolean(draft.title || draft.description || !state.guide.products),
  }, h("summary", {}, t("orDescribe")),
  field(prefix, draft, "title", "productTitle"),
  field(prefix, draft, "description", "description", "textarea"));
  return state.guide.products ? [...searchField(prefix, choose), own] : [own];
}

function historyFields(prefix, draft, redraw) {
  const choose = (product) => {
    if (!draft.history.some((one) => one.id === product.id)) draft.history.push(product);
    redraw(`${prefix}-search`);
  };
  const chips = draft.history.map((product) => chip(product, () => {
    draft.history = draft.history.filter((one) => one !== product);
    redraw(`${prefix}-search`);
  }));
  return [
    h("p", { class: "label" }, t("history")),
    chips.length ? h("ol", { class: "chips" }, chips) : h("p", { class: "soft small" }, t("historyEmpty")),
    ...searchField(prefix, choose),
  ];
}

function taskFields(prefix, task, draft, redraw) {
  if (task === "classification") return productFields(prefix, draft, redraw);
  if (task === "recommendation") return historyFields(prefix, draft, redraw);
  if (task === "sentiment") return field(prefix, draft, "text", "review", "textarea");
  return [
    field(prefix, draft, "question", "question"),
    state.guide.products
      ? searchField(prefix, (product) => describe(prefix, draft, product, redraw), "searchPassage") : [],
    field(prefix, draft, "text", "passage", "textarea"),
  ].flat();
}

// The description of a product is the passage of a question about it.
function describe(prefix, draft, product, redraw) {
  if (!product.description) throw new Trouble(t("noDescription", { name: product.title }));
  say(null);
  Object.assign(draft, { text: product.description, answer: "", at: undefined });
  redraw(`${prefix}-question`);
}

// What a draft sends, without its label.
function request(task, draft) {
  const text = (name) => (draft[name] ?? "").trim();
  if (task === "recommendation") return { products: draft.history.map((one) => one.id) };
  if (task === "classification") {
    if (draft.product) return { id: draft.product.id };
    if (!text("title")) throw new Trouble(t("needProduct"));
    return { title: text("title"), description: text("description") };
  }
  if (!text("text") || (task === "questions" && !text("question"))) throw new Trouble(t("needText"));
  // The passage as it is: spans count its characters.
  return task === "sentiment" ? { text: text("text") } : { question: text("question"), text: draft.text };
}

function pickTask(place, names, chosen, choose) {
  const legend = place.querySelector("legend");
  const pills = names.map((task) => {
    const { available, method } = state.guide.tasks[task];
    const usable = available || (place.id === "teach-tasks" && method !== null);
    const input = h("input", {
      type: "radio", name: place.id, value: task, checked: task === chosen,
      onchange: () => choose(task),
    });
    const name = usable ? t(task) : `${t(task)} (${t("unavailable")})`;
    return h("label", { class: usable ? "pill" : "pill off" }, input, h("span", {}, name));
  });
  const hint = h("p", { class: "soft small" }, t(`${chosen}Hint`));
  place.replaceChildren(legend, h("div", { class: "pills" }, pills), hint);
}

// --- asking

function cut(found) {
  return found.read_to_the_end ? null : h("p", { class: "soft small" }, t("cut"));
}

const SHOWN = {
  classification([found]) {
    const pairs = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]);
    const shown = pairs.length > 6 ? 5 : pairs.length;  // none is hidden alone
    const few = pairs.slice(0, shown), rest = pairs.slice(shown);
    const more = rest.length
      ? h("details", {}, h("summary", {}, t("allCategories", { count: pairs.length })), chances(rest))
      : null;
    return [h("p", { class: "verdict", dir: "auto" }, found.category), chances(few), more, cut(found)];
  },
  sentiment([found]) {
    const stars = found.stars == null ? null
      : h("p", { class: "soft" }, t("stars", { stars: found.stars.toFixed(1) }));
    const pairs = [[t("positive"), found.positive, "good"], [t("negative"), 1 - found.positive, "bad"]];
    return [h("p", { class: "verdict" }, t(found.sentiment)), chances(pairs), stars, cut(found)];
  },
  questions([found], sent) {
    if (!found.span) return [h("p", { class: "verdict" }, t("noAnswer"))];
    // Characters as the server counts them: code points, not halves of surrogate pairs.
    const letters = Array.from(sent.text);
    const [start, end] = found.span;
    const parts = [letters.slice(0, start), letters.slice(start, end), letters.slice(end)].map((one) => one.join(""));
    const passage = h("p", { class: "passage", dir: "auto" }, parts[0], h("mark", {}, parts[1]), parts[2]);
    return [h("p", { class: "verdict", dir: "auto" }, found.text), passage];
  },
  recommendation([found]) {
    const cards = found.products.map((product) => h("li", { class: "card" },
      picture(product), h("h3", { dir: "auto" }, product.title),
      product.category ? h("p", { class: "soft small" }, product.category) : null,
      product.description ? h("p", { class: "small clip", dir: "auto" }, product.description) : null,
      h("button", { type: "button", class: "plain", onclick: () => take(product) }, t("take"))));
    const title = t(found.by === "history" ? "byHistory" : "byNoHistory");
    return [h("h2", {}, title), h("ol", { class: "cards" }, cards)];
  },
};

function take(product) {
  const draft = state.ask.drafts.recommendation;
  if (!draft.history.some((one) => one.id === product.id)) draft.history.push(product);
  forgetAnswer();
  drawAsk("ask-search");
  busy(byId("ask-button"), answer);
}

async function answer() {
  const { task, drafts } = state.ask;
  state.ask.show = null;
  drawAnswer();
  const number = ++state.ask.number;
  const sent = request(task, drafts[task]);
  state.ask.show = () => [h("p", { class: "soft" }, t("working"))];
  drawAnswer();
  try {
    const found = await call(state.guide.tasks[task].path, [sent]);
    if (state.ask.number !== number) return;
    const inCard = task !== "recommendation";
    state.ask.show = () => {
      const parts = SHOWN[task](found, sent);
      return inCard ? [h("div", { class: "card" }, parts)] : parts;
    };
  } catch (trouble) {
    if (state.ask.number !== number) return;
    state.ask.show = null;
    throw trouble;
  } finally {
    drawAnswer();
  }
}

// An answer to what is no longer asked misleads, also one that is under way.
function forgetAnswer() {
  state.ask.show = null;
  state.ask.number += 1;
  free(byId("ask-button"));
  drawAnswer();
}

function drawAnswer() {
  byId("ask-answer").replaceChildren(...(state.ask.show?.() ?? []).flat().filter(Boolean));
}

function drawAsk(focus) {
  const { task, drafts } = state.ask;
  pickTask(byId("ask-tasks"), TASKS, task, (chosen) => {
    state.ask.task = chosen;
    forgetAnswer();
    say(null);
    drawAsk();
    document.querySelector(`input[name="ask-tasks"][value="${chosen}"]`).focus();
  });
  const { available, notes } = state.guide.tasks[task];
  const fields = available
    ? taskFields("ask", task, drafts[task], (field) => { forgetAnswer(); drawAsk(field); })
    : [h("p", {}, t("unavailableLong", { reason: notes.join("; ") }))];
  byId("ask-fields").replaceChildren(...fields.flat());
  byId("ask-button").hidden = !available;
  drawAnswer();
  if (focus) byId(focus)?.focus();
}

// --- teaching

function labelFields(task, draft) {
  if (task === "classification") {
    const [label, input] = field("teach", draft, "category", "category", "input", { list: "teach-categories" });
    return [label, input, h("datalist", { id: "teach-categories" })];
  }
  if (task === "sentiment") {
    const pills = ["positive", "negative"].map((value) => {
      const attributes = { type: "radio", name: "teach-sentiment", value, checked: draft.sentiment === value };
      const input = h("input", { ...attributes, onchange: () => { draft.sentiment = value; } });
      return h("label", { class: "pill" }, input, h("span", {}, t(value)));
    });
    return [h("fieldset", {}, h("legend", {}, t("label")), h("div", { class: "pills" }, pills))];
  }
  return [...field("teach", draft, "answer", "answerText"), h("p", { class: "soft small" }, t("answerHint"))];
}

// The name of a category as the guide or an earlier example writes it: "tools" is "Tools".
function categoryOf(said) {
  const known = [...state.guide.categories, ...state.teach.examples.classification.map((one) => one.sent.category)];
  return known.includes(said) ? said : known.find((name) => name.toLowerCase() === said.toLowerCase()) ?? said;
}

function labelled(task, draft) {
  const sent = request(task, draft);
  const most = state.guide.limits.characters;
  const length = Array.from(Object.values(sent).join("")).length;  // code points, as the server counts
  if (length > most) throw new Trouble(t("tooLong", { most }));
  if (task === "classification") {
    const said = (draft.category ?? "").trim();
    if (!said) throw new Trouble(t("needCategory"));
    return { sent: { ...sent, category: categoryOf(said) }, text: draft.product?.title ?? sent.title, product: draft.product };
  }
  if (task === "sentiment") {
    const { sentiment } = draft;
    if (!sentiment) throw new Trouble(t("needLabel"));
    return { sent: { ...sent, sentiment }, text: sent.text };
  }
  const said = (draft.answer ?? "").trim();
  let span = null;
  if (said) {
    const { at: selected = -1 } = draft;
    const at = selected >= 0 && sent.text.startsWith(said, selected) ? selected : sent.text.indexOf(said);
    if (at < 0) throw new Trouble(t("needAnswer"));
    const start = Array.from(sent.text.slice(0, at)).length;
    span = [start, start + Array.from(said).length];
  }
  return { sent: { ...sent, answer: span }, text: `${sent.question} ${sent.text}`, said };
}

function labelOf({ sent, said }) {
  return sent.category ?? (sent.sentiment ? t(sent.sentiment) : said || t("noneLabel"));
}

function addExample() {
  const { task, drafts, examples } = state.teach;
  const draft = drafts[task];
  const made = labelled(task, draft);
  const key = JSON.stringify([made.sent.id, made.sent.title, made.sent.question, made.sent.text]);
  examples[task] = [...examples[task].filter((one) => one.key !== key), { ...made, key, held: null }];
  keepExamples();
  // The label stays: the next example often has the same. So does the passage of a question.
  state.teach.drafts[task] = {
    product: null, category: draft.category, sentiment: draft.sentiment,
    ...(task === "questions" ? { text: draft.text } : {}),
  };
  drawTeach({ classification: "teach-search", sentiment: "teach-text", questions: "teach-question" }[task]);
}

// Examples outlive a reload of the page, in this tab alone.
function keepExamples() {
  try {
    sessionStorage.setItem("examples", JSON.stringify({ guide: identity(), of: state.teach.examples }));
  } catch {  // full, or forbidden
    sessionStorage.removeItem("examples");
  }
}

function restoreExamples() {
  if (Object.values(state.teach.examples).flat().length) return;  // after a token was asked for
  try {
    const kept = JSON.parse(sessionStorage.getItem("examples"));
    if (kept?.guide === identity()) Object.assign(state.teach.examples, kept.of);
  } catch {}  // of another version of the page
}

// What tells guides of one address apart.
function identity() {
  const { domain, products, shots } = state.guide;
  return JSON.stringify([domain, products, shots]);
}

function updateGuide(guide) {
  state.guide = guide;
  if (guide.taught) return;
  // The server knows of no lesson: it was told to forget them, or has started anew.
  for (const one of Object.values(state.teach.examples).flat()) Object.assign(one, { held: null, before: null, after: null });
}

async function teach() {
  const { task } = state.teach;
  const examples = state.teach.examples[task];
  if (examples.length < 2) throw new Trouble(t("needExamples"));
  state.teach.shows[task] = () => [h("p", { class: "soft" }, t("working"))];
  drawResult();
  byId("teach-result").scrollIntoView({ block: "nearest" });
  try {
    // What was taught once is not measured on later, so earlier roles are kept.
    const found = await call("/v1/teach", {
      task, examples: examples.map((one) => ({ ...one.sent, held_back: one.held })),
    });
    found.examples.forEach((one, row) => {
      Object.assign(examples[row], { held: one.held_back, before: one.before, after: one.after });
    });
    state.teach.shows[task] = () => result(found);
    updateGuide(await call("/v1/guide"));
    drawFacts();
  } catch (trouble) {
    state.teach.shows[task] = null;
    const at = /^examples\[(\d+)\]/.exec(trouble.field ?? "");
    if (at) trouble.message += ` ${t("inExample", { number: Number(at[1]) + 1 })}`;
    throw trouble;
  } finally {
    // Not the fields, in which someone may be writing.
    keepExamples();
    drawExamples();
  }
}

function result(found) {
  const lines = [h("p", {}, t(found.taught === 1 ? "resultOfOne" : "result", { taught: found.taught, seconds: found.seconds.toFixed(1) }))];
  if (!state.guide.can_save) lines.push(h("p", { class: "soft small" }, t("notKept")));
  if (found.after === null) lines.push(h("p", {}, t("notMeasured", { count: found.taught })));
  else {
    const kind = found.after > found.before ? "good" : found.after < found.before ? "bad" : "";
    lines.push(h("h3", {}, t("measured", { count: found.held_back })),
      chances([[t("before"), found.before ?? 0], [t("after"), found.after, kind]]));
  }
  if (found.notes.length) {
    lines.push(h("p", { class: "soft small" }, `${t("notes")}: ${found.notes.join("; ")}`));
  }
  return [h("div", { class: "card", id: "lesson" }, lines)];
}

function exampleRow(one) {
  const marks = [];
  if (one.held !== null) marks.push(h("span", { class: "badge" }, t(one.held ? "isHeld" : "isTaught")));
  if (one.held && one.after != null) {
    const said = (right) => t(right ? "right" : "wrong");
    const kind = one.after ? "good" : "bad";
    const text = one.before == null ? said(one.after)
      : t("outcome", { before: said(one.before), after: said(one.after) });
    marks.push(" ", h("span", { class: `badge ${kind}` }, text));
  }
  const drop = () => {
    const { task, examples, shows } = state.teach;
    const row = examples[task].indexOf(one);
    examples[task] = examples[task].filter((other) => other !== one);
    if (one.held === false) shows[task] = () => [h("p", {}, t("stillTaught"))];
    keepExamples();
    drawExamples();
    const crosses = byId("teach-examples").querySelectorAll(".cross");
    (crosses[Math.min(row, crosses.length - 1)] ?? byId("examples-title")).focus();
  };
  const cross = { type: "button", class: "cross", "aria-label": t("remove", { name: one.text.slice(0, 60) }), onclick: drop };
  return h("li", {}, one.product ? picture(one.product) : null,
    h("div", { class: "what" }, h("div", { class: "clip", dir: "auto" }, one.text), h("small", {}, labelOf(one), " ", marks)),
    h("button", cross, "×"));
}

function drawResult() {
  byId("teach-result").replaceChildren(...(state.teach.shows[state.teach.task]?.() ?? []).flat().filter(Boolean));
}

function drawTeach(focus) {
  const { task, drafts } = state.teach;
  pickTask(byId("teach-tasks"), TAUGHT, task, (chosen) => {
    state.teach.task = chosen;
    say(null);
    drawTeach();
    document.querySelector(`input[name="teach-tasks"][value="${chosen}"]`).focus();
  });
  const { method } = state.guide.tasks[task];
  byId("teach-form").hidden = method === null;
  byId("teach-button").hidden = method === null;
  const fields = method === null ? []
    : [...taskFields("teach", task, drafts[task], drawTeach), ...labelFields(task, drafts[task])];
  byId("teach-fields").replaceChildren(...fields.flat());
  const passage = task === "questions" ? byId("teach-text") : null;
  passage?.addEventListener("select", () => {
    const selected = passage.value.slice(passage.selectionStart, passage.selectionEnd);
    if (selected.trim() === passage.value.trim()) return;  // selected to be replaced or copied
    const draft = state.teach.drafts.questions;
    draft.at = passage.selectionStart + selected.length - selected.trimStart().length;
    draft.answer = byId("teach-answer").value = selected.trim();
  });
  passage?.addEventListener("input", () => { delete state.teach.drafts.questions.at; });
  drawExamples();
  if (focus) byId(focus)?.focus();
}

// All but the fields.
function drawExamples() {
  const { task, examples } = state.teach;
  const { method, notes } = state.guide.tasks[task];
  byId("teach-categories")?.replaceChildren(...state.guide.categories.map((name) => h("option", { value: name })));
  const rows = examples[task].map(exampleRow);
  const empty = method === null ? t("unavailableLong", { reason: notes.join("; ") }) : t("noExamples");
  byId("teach-examples").replaceChildren(...(rows.length ? rows : [h("li", { class: "soft" }, empty)]));
  byId("save-button").hidden = !state.guide.can_save;
  byId("reset-button").hidden = !state.guide.taught;
  drawResult();
}

async function change(path, done) {
  const { task } = state.teach;
  await call(path, {});
  updateGuide(await call("/v1/guide"));
  // What other tasks said of their lessons is no longer true once these are forgotten.
  if (!state.guide.taught) state.teach.shows = {};
  state.teach.shows[task] = () => [h("p", {}, t(done))];
  keepExamples();
  drawFacts();
  drawExamples();
}

// --- the page

function drawFacts() {
  const { domain, products, categories, shots, taught } = state.guide;
  const title = t("title", { domain: domain.replaceAll("_", " ") });
  byId("title").textContent = title;
  document.title = title;
  const shelf = products ? t("shelf", { products, categories: categories.length }) : "";
  byId("facts").textContent = t("facts", {
    shelf, shots, taught: taught ? t("taught", { count: taught }) : "",
  });
}

function draw() {
  document.documentElement.lang = state.language === "zh" ? "zh-Hans" : "en";
  for (const one of document.querySelectorAll("[data-text]")) one.textContent = t(one.dataset.text);
  for (const one of document.querySelectorAll("[data-label]")) one.setAttribute("aria-label", t(one.dataset.label));
  byId("language").textContent = t("other");
  byId("language").lang = state.language === "zh" ? "en" : "zh-Hans";
  byId("language").setAttribute("aria-label", t("otherName"));
  if (!state.guide) return;
  drawFacts();
  drawAsk();
  drawTeach();
}

function show(name) {
  for (const one of ["ask", "teach"]) {
    byId(one).hidden = one !== name;
    if (one === name) byId(`to-${one}`).setAttribute("aria-current", "page");
    else byId(`to-${one}`).removeAttribute("aria-current");
  }
  say(null);
  // What it can do may have changed.
  if (state.guide && name === "ask") drawAsk();
}

async function open() {
  const guide = await call("/v1/guide");
  state.guide = guide;
  restoreExamples();
  updateGuide(guide);
  const isAfterToken = !byId("token-form").hidden;
  byId("token-form").hidden = true;
  byId("sections").hidden = false;
  const first = TASKS.find((task) => state.guide.tasks[task].available);
  state.ask.task = first ?? TASKS[0];
  state.teach.task = TAUGHT.find((task) => state.guide.tasks[task].method !== null) ?? TAUGHT[0];
  say(null);
  draw();
  if (isAfterToken) byId("main").focus();
}

function on(id, event, action) {
  byId(id).addEventListener(event, (occurred) => {
    occurred.preventDefault();
    action();
  });
}

function start() {
  const given = /^#token=(.+)$/.exec(location.hash);
  if (given) {
    // Neither the history nor a copied address keeps it.
    let token = given[1];
    try { token = decodeURIComponent(token); } catch {}  // it was not encoded
    sessionStorage.setItem("token", token);
    history.replaceState(null, "", location.pathname);
  }
  state.token = sessionStorage.getItem("token") ?? "";
  state.language = localStorage.getItem("language") ?? state.language;
  on("language", "click", () => {
    state.language = state.language === "zh" ? "en" : "zh";
    localStorage.setItem("language", state.language);
    say(null);
    draw();
  });
  on("to-ask", "click", () => show("ask"));
  on("to-teach", "click", () => show("teach"));
  on("token-form", "submit", () => {
    state.token = byId("token").value;
    sessionStorage.setItem("token", state.token);
    open().catch(say);
  });
  byId("ask-form").addEventListener("input", (event) => {
    if (event.target.type !== "search") forgetAnswer();
  });
  on("ask-form", "submit", () => busy(byId("ask-button"), answer));
  on("teach-form", "submit", () => busy(byId("teach-form").querySelector("[type=submit]"), async () => addExample()));
  on("teach-button", "click", () => busy(byId("teach-button"), teach));
  on("reset-button", "click", () => {
    if (confirm(t("confirmReset"))) busy(byId("reset-button"), () => change("/v1/teach/reset", "resetDone"));
  });
  on("save-button", "click", () => busy(byId("save-button"), () => change("/v1/teach/save", "saveDone")));
  for (const form of document.forms) {
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  }
  draw();
  open().catch(say);
}

start();
