// The page: what the user asks for goes to the services, what comes back goes on the tiles.

import * as api from "./api.js";
import * as banner from "./banner.js";
import * as channel from "./channel.js";
import { decode, loadDecoders } from "./decoder.js";
import { readFrame } from "./frame.js";
import { fromPng, psnrDb, show } from "./picture.js";

const PAUSE_MS = 150; // from the last move of a slider to the request
const REMEMBERED = 24;
const NAMES = {
  cloud: "The cloud's picture",
  plain: "The edge's picture without alignment",
  edge: "The edge's picture",
  received: "The received picture",
};

// what stands over the edge's picture in each state of its update
const STATES = {
  aligned: { title: "Edge, aligned", note: ({ bundle }) => `with the cloud's update ${short(bundle)}` },
  pinned: { title: "Edge, pinned", note: ({ bundle }) => `with update ${short(bundle)}, which an operator keeps` },
  stale: { title: "Edge, stale", note: ({ bundle, reason }) => `with update ${short(bundle)}: ${reason}` },
  unaligned: { title: "Edge, not aligned", note: ({ reason }) => reason },
};

const short = (id) => id.slice(0, 12);
const find = (selector) => document.querySelector(selector);
const totals = { prompt: 0, air: 0, png: 0 };
const remembered = [];
let config = null;
let current = null; // the picture on the tiles
let drawing = null; // what stops the work for it
let sending = null; // what stops its last way over the air
let pause = null;

/** Draw the prompt everywhere and send the edge's picture. */
async function draw(prompt, seed) {
  drawing?.abort();
  drawing = new AbortController();
  banner.clear();
  const entry = { prompt, seed, noise: 0, pictures: {}, traffic: {} };
  current = entry;
  for (const name of Object.keys(NAMES)) blank(name);
  find("#draw").dataset.busy = "";
  find("#edge").dataset.busy = "";
  const { signal } = drawing;
  const tasks = [
    tile(entry, "plain", () => image("v1/images/generations", { model: "edge/plain", prompt, seed }, { signal })),
    send(entry, signal),
  ];
  if (config.cloud) {
    const url = `${config.cloud}/v1/images/generations`;
    tasks.push(tile(entry, "cloud", () => image(url, { model: "cloud", prompt, seed }, { party: "cloud", signal })));
  }
  await Promise.all(tasks);
  if (current === entry) delete find("#draw").dataset.busy;
}

/** Send the picture on the tiles again, as the controls say once they rest. */
function resend() {
  clearTimeout(pause);
  if (!current) return;
  pause = setTimeout(() => {
    banner.clear();
    send(current, drawing?.signal);
  }, PAUSE_MS);
}

/** One way over the air: the frame of received symbols from the edge, decoded here. */
async function send(entry, stopped) {
  sending?.abort();
  sending = new AbortController();
  const signal = stopped ? AbortSignal.any([stopped, sending.signal]) : sending.signal;
  const { prompt, seed, noise } = entry;
  const told = { settings: channel.settings(), condition: channel.condition() };
  await tile(entry, "received", async () => {
    const asked = { prompt, seed, bundle: "active", condition: told.condition, channel_seed: noise, format: "frame" };
    const response = await api.post("v1/deliveries", asked, { signal });
    const frame = readFrame(await response.arrayBuffer());
    if (!entry.pictures.edge) await drawn(entry, response.headers.get("x-delivery-id"), signal);
    const picture = await decode(frame);
    signal.throwIfAborted();
    Object.assign(entry, { settings: told.settings, bundles: frame.header.bundles });
    picture.psnr = psnrDb(entry.pictures.edge.pixels, picture.pixels);
    count(entry, { air: told.condition.uses });
    remember(entry);
    return picture;
  });
}

/** What the edge drew for a delivery, and what that would have cost as a file. */
async function drawn(entry, delivery, signal) {
  const response = await api.post(`v1/deliveries/${delivery}/image`, { channel_seed: entry.noise }, { signal });
  const told = await response.json();
  const picture = await fromPng(told.drawn_b64_json);
  entry.alignment = told.alignment.find(({ kind }) => kind === "generation");
  put(entry, "edge", picture);
  const { prompt_bytes, seed_bytes, id_bytes } = told.ledger;
  count(entry, { prompt: prompt_bytes + seed_bytes + id_bytes, png: picture.bytes });
}

async function image(url, asked, options) {
  const response = await api.post(url, { ...asked, n: 1, response_format: "b64_json" }, options);
  return fromPng((await response.json()).data[0].b64_json);
}

/** Put what `work` brings on a tile of the entry; say so if it fails, and nothing if it was stopped. */
async function tile(entry, name, work) {
  const figure = find(`#${name}`);
  figure.dataset.busy = "";
  try {
    put(entry, name, await work());
  } catch (error) {
    if (error.name === "AbortError") return;
    delete figure.dataset.busy;
    if (name === "received") delete find("#edge").dataset.busy;
    if (entry === current) banner.failed(error.message, () => draw(entry.prompt, entry.seed));
  }
}

function put(entry, name, picture) {
  entry.pictures[name] = picture;
  if (entry === current) reveal(entry, name);
}

function reveal(entry, name) {
  const figure = find(`#${name}`);
  const picture = entry.pictures[name];
  const canvas = figure.querySelector("canvas");
  delete figure.dataset.busy;
  delete figure.dataset.blank;
  show(canvas, picture);
  canvas.setAttribute("aria-label", `${NAMES[name]}: ${entry.prompt}`);
  if (name === "edge") caption(entry.alignment);
  if (name === "received") {
    const psnr = Number.isFinite(picture.psnr) ? `${picture.psnr.toFixed(1)} dB` : "without bound";
    find("#psnr").textContent = `PSNR ${psnr}`;
    figure.querySelector(".note").textContent = `decoded in this page in ${Math.ceil(picture.milliseconds)} ms`;
    tell(entry);
  }
}

/** Say over the edge's picture whether it is aligned; nothing as long as it is not known. */
function caption(alignment) {
  const { title, note } = STATES[alignment?.state] ?? { title: "Edge", note: () => "with the update that it uses" };
  find("#edge b").textContent = title;
  find("#edge .note").textContent = note(alignment);
  find("#edge").dataset.alignment = alignment?.state ?? "";
}

function blank(name) {
  const figure = find(`#${name}`);
  const canvas = figure.querySelector("canvas");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", `${NAMES[name]}, not there yet`);
  figure.dataset.blank = "";
  delete figure.dataset.busy;
  if (name === "received") find("#psnr").textContent = "";
  if (name === "edge") caption(null);
}

function count(entry, traffic) {
  Object.assign(entry.traffic, traffic);
  for (const [name, value] of Object.entries(traffic)) totals[name] += value;
  if (entry === current) tell(entry);
}

function tell({ traffic, bundles }) {
  const number = (value, unit) => (value === undefined ? "" : `${value.toLocaleString("en")} ${unit}`);
  for (const [prefix, values] of [["", traffic], ["all-", totals]]) {
    find(`#${prefix}prompt-bytes`).textContent = number(values.prompt, "B");
    find(`#${prefix}air-uses`).textContent = number(values.air, "uses");
    find(`#${prefix}png-bytes`).textContent = number(values.png, "B");
  }
  if (!bundles) return;
  const ids = Object.entries(bundles).map(([kind, id]) => `${kind} ${short(id)}`);
  find("#bundle").textContent = ids.length ? `Updates: ${ids.join(", ")}.` : "This edge has no update.";
}

/** Into the list of what was drawn before, newest first. */
function remember(entry) {
  if (remembered.includes(entry)) return;
  remembered.unshift(entry);
  find("#no-history").hidden = true;
  const button = document.createElement("button");
  const canvas = document.createElement("canvas");
  const words = document.createElement("span");
  button.type = "button";
  button.title = entry.prompt;
  canvas.setAttribute("aria-hidden", "true");
  words.textContent = entry.prompt;
  show(canvas, entry.pictures.edge);
  button.append(canvas, words);
  button.addEventListener("click", () => comeBack(entry));
  const item = document.createElement("li");
  item.append(button);
  find("#history").prepend(item);
  if (remembered.length > REMEMBERED) {
    remembered.pop();
    find("#history").lastElementChild.remove();
  }
}

function comeBack(entry) {
  drawing?.abort();
  sending?.abort();
  drawing = null;
  current = entry;
  banner.clear();
  delete find("#draw").dataset.busy;
  find("#prompt").value = entry.prompt;
  find("#seed").value = entry.seed;
  channel.restore(entry.settings);
  for (const name of Object.keys(NAMES)) {
    if (entry.pictures[name]) reveal(entry, name);
    else blank(name);
  }
}

function submit() {
  draw(find("#prompt").value.trim(), Number(find("#seed").value));
}

function suggest(examples) {
  for (const example of examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = example;
    button.addEventListener("click", () => {
      find("#prompt").value = example;
      submit();
    });
    find("#examples").append(button);
  }
}

async function start() {
  api.setHooks({ waiting: banner.waiting, token: banner.askToken });
  config = await api.getJson("page/config.json");
  const { defaults, limits } = config;
  find("#prompt").maxLength = limits.prompt;
  find("#prompt").value = defaults.prompt;
  if (!config.cloud) find("#cloud .note").textContent = "no cloud is configured";
  for (const name of Object.keys(NAMES)) blank(name);
  channel.setUp(config, resend);
  suggest(config.examples);
  tell({ traffic: {} });
  find("#prompt-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  find("#noise").addEventListener("click", () => {
    if (current) current.noise += 1;
    resend();
  });
  loadDecoders().catch((error) => banner.failed(error.message, loadDecoders));
  if (defaults.prompt) submit();
}

start().catch((error) => banner.failed(error.message, () => location.reload()));
