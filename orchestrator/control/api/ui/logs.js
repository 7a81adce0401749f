// What the ranks print, followed: each line once, by the offset that comes with every page of lines.

import { byId, count, h } from "./dom.js";
import { Loop, ask } from "./server.js";

const TAIL = 1000;
const MOST = 5000;
const WAIT_S = 20;

export class Logs {
  constructor(path) {
    this.path = path;
    this.rank = "";
    this.clear();
    this.loop = new Loop("logs", (signal) => this.read(signal), 0.3);
    byId("rank").addEventListener("change", (event) => this.choose(event.target.value));
    byId("wrap").addEventListener("change", (event) => byId("log").classList.toggle("wrap", event.target.checked));
    byId("follow").addEventListener("change", () => this.scroll());
    byId("log").addEventListener("wheel", (event) => { if (event.deltaY < 0) byId("follow").checked = false; }, { passive: true });
  }

  clear() {
    this.after = null;
    byId("log").replaceChildren();
  }

  choose(rank) {
    this.rank = rank;
    this.clear();
    this.loop.restart();
  }

  offer(numWorkers) {
    const place = byId("rank");
    for (let rank = place.options.length - 1; rank < Math.min(numWorkers, 4096); rank++) place.append(h("option", { value: rank }, String(rank)));
  }

  /** The last lines first, then what comes after them. True when there is nothing more to come. */
  async read(signal) {
    const query = new URLSearchParams(this.rank === "" ? {} : { rank: this.rank });
    if (this.after === null) query.set("lines", TAIL);
    else [["after", this.after], ["wait_s", WAIT_S]].forEach(([name, value]) => query.set(name, value));
    const { value } = await ask(`${this.path}/${this.after === null ? "tail" : "logs"}?${query}`, { signal, wait_s: WAIT_S });
    if (signal.aborted) return false;
    const cut = this.after === null && value.lines.length === TAIL;
    this.after = value.next;
    this.append(value.lines);
    byId("logs-note").textContent = value.ended ? "the job has ended" : cut ? `from the last ${count(TAIL)} lines on` : "";
    return value.ended;
  }

  append(lines) {
    const place = byId("log");
    place.append(...lines.slice(-MOST).map((line) => h("div", { class: `line rank${line.rank % 8}` }, h("span", { class: "rank" }, String(line.rank)), h("span", {}, line.text))));
    while (place.children.length > MOST) place.firstChild.remove();
    this.scroll();
  }

  scroll() {
    if (byId("follow").checked) byId("log").scrollTop = byId("log").scrollHeight;
  }
}
