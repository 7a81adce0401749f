// The server: questions with the token, looking again and again while somebody looks, and who is signed in.

import { byId, duration, h, now, replace, setClock } from "./dom.js";

const API = new URL("../v1/", document.baseURI);
const TOKEN = "orchestrator-token";
const INTERVAL_S = 3;
const LONGEST_PAUSE_S = 15;
const ANSWER_S = 20;

export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Unreachable extends Error {}

/** The answer as JSON, with its ETag; `null` as value: it is the one with the ETag that was given. */
export async function ask(path, { method = "GET", body, etag, signal, wait_s = 0 } = {}) {
  const headers = { Accept: "application/json" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (etag) headers["If-None-Match"] = etag;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const limit = AbortSignal.timeout(1000 * (ANSWER_S + wait_s));
  let response, value;
  try {
    response = await fetch(new URL(path, API), {
      method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store", credentials: "omit",
      redirect: "error", signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    setClock(response.headers.get("Date"));
    if (response.status === 304) return { value: null, etag };
    value = await response.json();
  } catch (error) {
    if (signal && signal.aborted) throw error;
    throw new Unreachable(error.message);
  }
  if (!response.ok) throw new Problem(response.status, value.message || `the server answers ${response.status}`);
  return { value, etag: response.headers.get("ETag") };
}

// looking again and again

const loops = new Set();
const trouble = new Map();
let lost_s = null;

/** Does `work(signal)` at once and then again and again: a question fails, the same one is asked once more. Not while the tab is hidden. */
export class Loop {
  constructor(name, work, pause_s = INTERVAL_S) {
    Object.assign(this, { name, work, pause_s, failures: 0, running: false, ended: false, timer: 0, abort: null });
    loops.add(this);
  }

  /** Ask now. */
  poke() {
    if (this.running || this.ended || document.hidden || asking()) return;
    clearTimeout(this.timer);
    this.run();
  }

  /** What is on its way is not waited for. */
  restart() {
    this.ended = false;
    if (this.abort) this.abort.abort();
    else this.poke();
  }

  async run() {
    this.running = true;
    this.abort = new AbortController();
    const { signal } = this.abort;
    try {
      this.ended = (await this.work(signal)) === true;
      this.settle(null);
    } catch (error) {
      if (!signal.aborted) this.settle(error);
    }
    const again = signal.aborted;
    this.abort = null;
    this.running = false;
    if (again) this.poke();
    else if (!this.ended) this.timer = setTimeout(() => this.poke(), 1000 * this.pause());
  }

  settle(error) {
    this.failures = error ? this.failures + 1 : 0;
    if (error) trouble.set(this.name, error);
    else trouble.delete(this.name);
    if (error instanceof Problem && error.status === 401 && !declined) signIn(sessionStorage.getItem(TOKEN) ? error.message : "");
    else if (error && !(error instanceof Problem) && !(error instanceof Unreachable)) console.error(error);
    show();
  }

  pause() {
    return this.failures ? Math.min(LONGEST_PAUSE_S, 2 ** (this.failures - 1)) : this.pause_s;
  }
}

export function lookAgain() {
  loops.forEach((loop) => loop.poke());
}

document.addEventListener("visibilitychange", () => {
  for (const loop of loops) {
    clearTimeout(loop.timer);
    if (document.hidden && loop.abort) loop.abort.abort();
    else loop.poke();
  }
  show();
});

function show() {
  const place = byId("status");
  const all = [...trouble.values()];
  const away = all.some((error) => error instanceof Unreachable);
  lost_s = away ? (lost_s ?? now()) : null;
  const [kind, text] = document.hidden ? ["paused", "paused"]
    : asking() ? ["paused", "waits for a token"]
    : away ? ["lost", `The server cannot be reached, for ${duration(now() - lost_s)}. Trying again.`]
    : all.length ? ["lost", all[0].message] : ["live", "live"];
  place.className = `status ${kind}`;
  if (place.textContent !== text) place.textContent = text;
  document.body.classList.toggle("stale", kind === "lost");
}

setInterval(() => {
  if (!document.hidden && trouble.size) show();
}, 1000);

// who is signed in

let user = null;
let dialog = null;
let declined = false;
const asking = () => dialog !== null;
const listeners = [];

/** `{name, tenant, role}`, or null. */
export const me = () => user;
export const mayChange = (tenant) => user !== null && (user.role === "admin" || (user.role === "user" && user.tenant === tenant));

/** Told whenever somebody else is signed in. */
export function onUser(listener) {
  listeners.push(listener);
}

/** Learns whose token it is. */
export async function meet(signal) {
  user = (await ask("user", { signal })).value;
  showUser();
  listeners.forEach((listener) => listener());
}

function showUser() {
  const known = sessionStorage.getItem(TOKEN) !== null;
  const who = known && user ? [h("b", {}, user.name), h("span", { class: "role" }, user.tenant ? `${user.tenant}, ${user.role}` : user.role)] : [];
  const button = known ? h("button", { type: "button", class: "quiet", click: signOut }, "Sign out")
    : h("button", { type: "button", class: "quiet", click: () => signIn("") }, "Sign in");
  replace(byId("user"), ...who, button);
}

function signOut() {
  sessionStorage.removeItem(TOKEN);
  location.reload();
}

/** Asks for a token. It stays in this tab, and goes nowhere but into the header of requests. */
function signIn(message) {
  if (dialog) return;
  const input = h("input", { type: "password", id: "token", required: true, autocomplete: "off", spellcheck: "false", "aria-describedby": "token-problem" });
  const problem = h("p", { class: "problem", id: "token-problem", role: "alert" }, message);
  const form = h("form", { submit: (event) => tryToken(event, input, problem) },
    h("h2", {}, "Sign in"), h("label", { for: "token" }, "Token"), input, problem,
    h("p", { class: "hint" }, "Made by ", h("code", {}, "orchestrator user add NAME"), " beside the server. It is kept until this tab is closed."),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Sign in")));
  dialog = h("dialog", { class: "sign-in", close: closed }, form);
  document.body.append(dialog);
  dialog.showModal();
  show();
}

function closed() {
  dialog.remove();
  dialog = null;
  declined = sessionStorage.getItem(TOKEN) === null;
  showUser();
  trouble.clear();
  lookAgain();
  show();
}

async function tryToken(event, input, problem) {
  event.preventDefault();
  const before = sessionStorage.getItem(TOKEN);
  sessionStorage.setItem(TOKEN, input.value.trim());
  try {
    await meet();
    dialog.close();
  } catch (error) {
    if (before === null) sessionStorage.removeItem(TOKEN);
    else sessionStorage.setItem(TOKEN, before);
    problem.textContent = error instanceof Unreachable ? "The server cannot be reached." : error.message;
    input.select();
  }
}
