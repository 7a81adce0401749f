// Elements and words. Whatever comes from outside gets into the page here, and only as text.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Attributes that are functions listen to the event of that name; null and false are left out; children are nodes or text. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** New content in place of the old; what has the keyboard keeps it if the new content has an element of the same `data-key`. */
export function replace(element, ...children) {
  const key = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  if (key === undefined) return;
  for (const found of element.querySelectorAll("[data-key]")) if (found.dataset.key === key) found.focus({ preventScroll: true });
}

/** Rows under a head of columns `[title, class]`. */
export function table(element, columns, rows, empty) {
  const head = h("tr", {}, columns.map(([title, kind, about]) => h("th", { class: kind, scope: "col", title: about }, title)));
  const body = rows.length ? rows : [h("tr", { class: "empty" }, h("td", { colspan: columns.length }, empty))];
  replace(element, h("thead", {}, head), h("tbody", {}, body));
}

export const cell = (kind, ...children) => h("td", { class: kind || null }, ...children);

/** A part of a whole as a bar; `share` from 0 to 1. */
export function meter(share, label, kind = "") {
  const fill = h("span", { class: "fill" });
  fill.style.width = `${100 * Math.min(1, Math.max(0, share || 0))}%`;
  return h("span", { class: `meter ${kind}`, role: "img", "aria-label": label, title: label }, fill);
}

export const badge = (word, kind) => h("span", { class: `badge ${kind || word}` }, word);

export const jobLink = (id) => h("a", { href: `job?id=${encodeURIComponent(id)}`, class: "job", "data-key": `job ${id}`, title: id }, id);

// numbers and times

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (number) => whole.format(number);
export const short = (number) => (number === null || number === undefined ? "–" : compact.format(number));
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
export const percent = (share, digits = 0) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`);
export const trimmed = (number) => (Number.isInteger(number) ? count(number) : number.toFixed(1));

export function figure(number) {
  if (number === null || number === undefined) return "–";
  return Math.abs(number) >= 1e4 || (number !== 0 && Math.abs(number) < 1e-3) ? number.toExponential(2) : number.toFixed(Math.abs(number) < 10 ? 4 : 2);
}

/** 95 -> `1m 35s`. */
export function duration(seconds) {
  const left = Math.max(0, Math.round(seconds));
  const parts = [[Math.floor(left / 86400), "d"], [Math.floor(left / 3600) % 24, "h"], [Math.floor(left / 60) % 60, "m"], [left % 60, "s"]];
  const first = parts.findIndex(([amount]) => amount > 0);
  if (first < 0) return "0s";
  const [[large, unit], next] = [parts[first], parts[first + 1]];
  return next ? `${large}${unit} ${String(next[0]).padStart(2, "0")}${next[1]}` : `${large}${unit}`;
}

export const moment = (seconds) => new Date(1000 * seconds).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });

let skew_s = 0;
/** The server's clock, in seconds since 1970. */
export const now = () => Date.now() / 1000 + skew_s;

export function setClock(date) {
  const found = Date.parse(date || "") / 1000 - Date.now() / 1000;
  if (Math.abs(found - skew_s) > 2) skew_s = found;
}

const LATEST_S = 8e12; // a date holds little more

/** How long ago, or until when: it goes on by itself. */
export const since = (time_s) => ticking(time_s, "since");
export const until = (time_s) => ticking(time_s, "until");

function ticking(time_s, kind) {
  if (time_s === null || time_s === undefined || Math.abs(time_s) > LATEST_S) return h("span", { class: "none" }, "–");
  return tick(h("time", { [`data-${kind}`]: time_s, title: moment(time_s), datetime: new Date(1000 * time_s).toISOString() }));
}

function tick(element) {
  const { since: past, until: future } = element.dataset;
  const text = past !== undefined ? duration(now() - Number(past)) : Number(future) > now() ? duration(Number(future) - now()) : "soon";
  if (element.textContent !== text) element.textContent = text;
  return element;
}

setInterval(() => {
  if (!document.hidden) document.querySelectorAll("time[data-since], time[data-until]").forEach(tick);
}, 1000);
