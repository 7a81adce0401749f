// The loss curve and the goodput ledger.

import { count, duration, figure, h, meter, percent, svg } from "./dom.js";

const HEIGHT = 290, LEFT = 52, RIGHT = 10, TOP = 10, BOTTOM = 24;

/** Round numbers between two. */
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) || rough;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

const tickWords = (value) => (Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(0) : count(value) === String(value) || Number.isInteger(value) ? count(value) : String(value));

/** Lists of [step, loss], of the last `part` of the steps, on so many pixels; the pointer, or the arrow keys, read a point off. */
export function lossCurve(curve, part, width) {
  const end = Math.max(0, ...[...curve.training, ...curve.validation].map(([step]) => step));
  const [training, validation] = [curve.training, curve.validation].map((points) => points.filter(([step]) => step >= end * (1 - part)));
  const all = [...training, ...validation];
  if (!all.length) return h("p", { class: "empty" }, "No loss is in the store yet: it comes with each checkpoint.");
  const steps = all.map(([step]) => step), losses = all.map(([, loss]) => loss);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  let [low, high] = [Math.min(...losses), Math.max(...losses)];
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  [low, high] = [low - margin, high + margin];
  const x = (step) => LEFT + ((step - first) / (last - first || 1)) * (width - LEFT - RIGHT);
  const y = (loss) => HEIGHT - BOTTOM - ((loss - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, class: "curve", role: "img", tabindex: 0, "aria-label": told(training, validation) });
  for (const value of ticks(low, high, 5)) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: LEFT - 7, y: y(value) + 3.5, "text-anchor": "end" }, tickWords(value)));
  }
  for (const value of ticks(first, last, Math.max(2, width / 110)).filter(Number.isInteger)) {
    picture.append(svg("text", { class: "tick", x: x(value), y: HEIGHT - 6, "text-anchor": value === last ? "end" : "middle" }, tickWords(value)));
  }
  picture.append(svg("polyline", { class: "training", points: training.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ") }));
  if (validation.length > 1) picture.append(svg("polyline", { class: "validation", points: validation.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ") }));
  for (const [step, loss] of validation) picture.append(svg("circle", { class: "validation", cx: x(step), cy: y(loss), r: 2.5 }));
  const cursor = svg("g", { class: "cursor", visibility: "hidden" }, svg("line", { y1: TOP, y2: HEIGHT - BOTTOM }), svg("circle", { r: 3.5 }));
  picture.append(cursor);
  const readout = h("figcaption", {}, legend());
  reading(picture, cursor, width, training.length ? training : validation, x, y, (point) => {
    readout.replaceChildren(point ? h("span", {}, `step ${count(point[0])}: loss ${figure(point[1])}`) : legend());
  });
  return h("figure", {}, picture, readout);
}

const legend = () => h("span", {}, h("i", { class: "key training" }), "training ", h("i", { class: "key validation" }), "validation");

function told(training, validation) {
  const ends = (name, points) => points.length && `${name} loss ${figure(points[0][1])} at step ${points[0][0]}, ${figure(points.at(-1)[1])} at step ${points.at(-1)[0]}`;
  return [ends("training", training), ends("validation", validation)].filter(Boolean).join("; ");
}

function reading(picture, cursor, width, points, x, y, tell) {
  let at = -1;
  const move = (index) => {
    at = Math.max(0, Math.min(points.length - 1, index));
    const [step, loss] = points[at];
    const [line, dot] = cursor.children;
    for (const [element, name] of [[line, "x1"], [line, "x2"], [dot, "cx"]]) element.setAttribute(name, x(step));
    dot.setAttribute("cy", y(loss));
    cursor.setAttribute("visibility", "visible");
    tell(points[at]);
  };
  const leave = () => { cursor.setAttribute("visibility", "hidden"); tell(null); };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * width;
    move(points.reduce((best, [step], index) => (Math.abs(x(step) - place) < Math.abs(x(points[best][0]) - place) ? index : best), 0));
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("blur", leave);
  picture.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -points.length, End: points.length }[event.key];
    if (!by) return;
    event.preventDefault();
    move(at < 0 ? points.length - 1 : at + by);
  });
}

/** Where the workers' time went: all of it in one bar, then a bar for each bucket. */
export function goodput(ledger) {
  const parts = ledger ? Object.entries(ledger.seconds).filter(([, seconds]) => seconds > 0) : [];
  const total = parts.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (!total) return [h("p", { class: "empty" }, "No time has passed yet.")];
  const whole = h("div", { class: "stack", role: "img", "aria-label": parts.map(([name, seconds]) => `${name} ${percent(seconds / total, 1)}`).join(", ") },
    parts.map(([name, seconds]) => {
      const part = h("span", { class: `bucket ${name}`, title: `${name}: ${percent(seconds / total, 1)}` });
      part.style.flexGrow = String(seconds / total);
      return part;
    }));
  const rows = parts.map(([name, seconds]) => h("tr", {},
    h("th", { scope: "row" }, h("i", { class: `key bucket ${name}` }), name), h("td", { class: "number" }, duration(seconds)),
    h("td", { class: "number" }, percent(seconds / total, 1)), h("td", {}, meter(seconds / total, `${name}: ${percent(seconds / total, 1)}`, `bucket ${name}`))));
  return [whole, h("table", { class: "ledger" }, h("tbody", {}, rows))];
}
