// The queue: what is in use, who runs, who waits and why, who has ended.

import { cancelButton, priorityButton } from "./actions.js";
import { badge, byId, cell, count, duration, figure, h, jobLink, meter, percent, plural, replace, short, since, table, trimmed, until } from "./dom.js";
import { Loop, ask, mayChange, me, meet, onUser } from "./server.js";

const LIMIT = 25;
const LISTS = ["running", "waiting", "ended"];
const asked = new URLSearchParams(location.hash.slice(1));
const offsets = Object.fromEntries(LISTS.map((name) => [name, Number(asked.get(name)) || 0]));
let find = asked.get("find") || "";
let newest = null;
let etag = null;

const loop = new Loop("queue", async (signal) => {
  if (!me()) await meet(signal);
  const query = new URLSearchParams({ find, limit: LIMIT, ...offsets });
  const answer = await ask(`overview?${query}`, { signal, etag });
  etag = answer.etag;
  if (answer.value) show(answer.value);
});

function show(found) {
  newest = found;
  for (const name of LISTS) {
    if (found[name].jobs.length || !offsets[name]) continue;
    offsets[name] = Math.max(0, LIMIT * Math.floor((found[name].total - 1) / LIMIT));
    return look();
  }
  showTiles(found);
  showNodes(found);
  showTenants(found);
  showList("running", found.running, RUNNING, runningRow, "Nothing runs.");
  showList("waiting", found.waiting, WAITING, waitingRow, "Nobody waits.");
  showList("ended", found.ended, ENDED, endedRow, "No job has ended yet.");
  document.title = `${count(found.running.total)} running, ${count(found.waiting.total)} waiting · orchestrator`;
}

/** Ask for another part, now. */
function look() {
  const named = Object.entries({ find, ...offsets }).filter(([, value]) => value);
  history.replaceState(null, "", named.length ? `#${new URLSearchParams(named)}` : location.pathname);
  etag = null;
  loop.restart();
}

// the cluster

function showTiles({ cluster, jobs }) {
  const used = (title, amount, all) => tile(title, [h("b", {}, trimmed(amount)), h("span", {}, ` of ${trimmed(all)}`)],
    meter(amount / all, `${title}: ${percent(amount / all)} in use`));
  const running = jobs.starting + jobs.running + jobs.recovering + jobs.draining;
  const nodes = cluster.draining ? `${count(cluster.draining)} draining` : cluster.nodes ? "all take jobs" : "none is known";
  const busy = [["starting", jobs.starting], ["recovering", jobs.recovering], ["draining", jobs.draining]].filter(([, number]) => number);
  replace(byId("tiles"),
    cluster.gpus > 0 && used("GPUs", cluster.gpus_used, cluster.gpus),
    used("CPUs", cluster.cpus_used, cluster.cpus || 0),
    tile("Nodes", h("b", {}, count(cluster.nodes)), h("small", {}, nodes)),
    tile("Running", h("b", {}, count(running)), h("small", {}, busy.map(([word, number]) => `${count(number)} ${word}`).join(", ") || "jobs")),
    tile("Waiting", h("b", {}, count(jobs.queued)), h("small", {}, "jobs")),
    tile("Succeeded", h("b", {}, count(jobs.succeeded)), h("small", {}, `${count(jobs.failed)} failed, ${count(jobs.cancelled)} cancelled`)));
}

const tile = (title, amount, below) => h("div", { class: "tile" }, h("h3", {}, title), h("p", { class: "amount" }, amount), below);

function showNodes({ nodes, cluster }) {
  const more = cluster.nodes - nodes.length;
  byId("nodes-note").textContent = more > 0 ? `the first ${count(nodes.length)} of ${count(cluster.nodes)}` : "";
  replace(byId("nodes"), nodes.map(node), !nodes.length && h("p", { class: "empty" }, "No node is known yet."));
}

function node(found) {
  const [used, all, unit] = found.gpus ? [found.gpus_used, found.gpus, "GPUs"] : [found.cpus_used, found.cpus, "CPUs"];
  const state = found.draining ? "draining" : found.standing === "good" ? "" : found.standing;
  const label = `${found.name}: ${trimmed(used)} of ${trimmed(all)} ${unit} in use, ${plural(found.jobs, "job")}${state && `, ${state}`}`;
  return h("div", { class: `node ${state}`, title: label },
    h("span", { class: "name" }, found.name), state && badge(state), h("span", { class: "number" }, `${trimmed(used)}/${trimmed(all)}`), meter(used / all, label));
}

function showTenants({ tenants, cluster }) {
  const gpus = cluster.gpus > 0;
  const columns = [["Tenant"], [gpus ? "GPUs" : "CPUs", "number"], ["", "wide"], ["Quota", "number"], ["Running", "number"], ["Waiting", "number"]];
  const rows = tenants.map((row) => {
    const [used, all] = gpus ? [row.gpus_used, cluster.gpus] : [row.cpus_used, cluster.cpus];
    const name = row.tenant || "no tenant";
    return h("tr", {},
      cell("", h("button", { type: "button", class: "quiet", "data-key": `tenant ${name}`, click: () => search(row.tenant) }, name)),
      cell("number", trimmed(used)), cell("wide", meter(used / all, `${name}: ${percent(used / all)} of the cluster`)),
      cell("number", row.quota === null ? "–" : count(row.quota)), cell("number", count(row.running)), cell("number", count(row.waiting)));
  });
  table(byId("tenants"), columns, rows, "No jobs.");
}

// the lists

function showList(name, part, columns, row, empty) {
  const section = byId(name);
  section.querySelector("small").textContent = part.total ? count(part.total) : "";
  table(section.querySelector("table"), columns, part.jobs.map(row), find ? "None is found." : empty);
  const last = part.offset + part.jobs.length;
  const turn = (words, label, offset, off) => h("button", {
    type: "button", disabled: off, "aria-label": label, "data-key": `${name} ${label}`, click: () => { offsets[name] = offset; look(); },
  }, words);
  replace(section.querySelector(".pager"), part.total > LIMIT && [
    turn("«", "First page", 0, !part.offset), turn("‹", "Page before", Math.max(0, part.offset - LIMIT), !part.offset),
    h("span", {}, `${count(part.offset + 1)}–${count(last)} of ${count(part.total)}`),
    turn("›", "Next page", part.offset + LIMIT, last >= part.total),
    turn("»", "Last page", LIMIT * Math.floor((part.total - 1) / LIMIT), last >= part.total),
  ]);
}

const RUNNING = [["Job"], ["State"], ["Done", "done"], ["Step", "number wide"], ["Loss", "number mid"], ["Pace", "number wide", "Tokens or samples a second"], ["Ends in", "number"],
  ["Size", "number mid", "GPUs, or workers of a job on CPUs, that it has"], ["Goodput", "number mid", "Share of the time with a place that went into training steps"], ["Recoveries", "number wide"], ["", "act"]];
const WAITING = [["#", "number"], ["Job"], ["Priority", "number"], ["Size", "number mid", "GPUs, or workers of a job on CPUs"], ["Waits", "number mid"],
  ["Starts in", "number", "As reserved, or predicted if nobody else comes"], ["Why", "reason"], ["", "act"]];
const ENDED = [["Job"], ["State"], ["Ended", "number"], ["Took", "number wide"], ["Steps", "number wide"], ["Loss", "number mid"], ["Size", "number wide"], ["Goodput", "number wide"], ["How", "reason"]];

const whose = (job) => [job.tenant, job.user].filter(Boolean).join(" · ") || job.workload;
const name = (job, why) => cell("job", jobLink(job.id), h("small", {}, whose(job)), why && h("small", { class: "narrow" }, why));
const why = (job) => (job.stop_requested ? "is to stop" : job.reason);
const act = (job) => cell("act", mayChange(job.tenant) && !job.stop_requested && cancelButton(job));

function size(job) {
  const [has, wants, unit] = job.gpus_asked ? [job.gpus, job.gpus_asked, "GPU"] : [job.workers, job.workers_asked, "worker"];
  const shown = has && has !== wants ? `${count(has)} of ${count(wants)}` : count(wants);
  return cell(`number mid ${has && has < wants ? "short" : ""}`, shown, h("small", {}, wants === 1 ? unit : `${unit}s`));
}

function runningRow(job) {
  const share = job.max_steps ? job.step / job.max_steps : 0;
  const state = job.stop_requested ? "stopping" : job.leaving ? "preempted" : job.state;
  const phase = job.phase && job.phase !== "training" && job.phase !== job.state ? job.phase : "";
  return h("tr", {}, name(job), cell("state", badge(state), h("small", {}, phase)),
    cell("done", h("span", { class: "number" }, percent(share)), meter(share, `${job.id}: ${percent(share)} done`)),
    cell("number wide", count(job.step), h("small", {}, `of ${count(job.max_steps)}`)), cell("number mid", figure(job.loss)),
    cell("number wide", job.pace ? short(job.pace) : "–", h("small", {}, job.pace ? `${job.pace_of}/s` : "")), cell("number", until(job.ends_s)), size(job),
    cell("number mid", percent(job.goodput)), cell("number wide", job.recoveries ? count(job.recoveries) : "–"), act(job));
}

function waitingRow(job) {
  const priority = mayChange(job.tenant) ? priorityButton(job) : String(job.priority);
  return h("tr", {}, cell("number place", job.position ? count(job.position) : "–"), name(job, why(job)), cell("number", priority), size(job),
    cell("number mid", since(job.waits_since_s)), cell("number", until(job.start_s), h("small", {}, job.start_s ? (job.reserved ? "reserved" : "predicted") : "")),
    cell("reason", why(job)), act(job));
}

function endedRow(job) {
  const took_s = job.started_s && job.ended_s ? job.ended_s - job.started_s : null;
  return h("tr", {}, name(job, job.reason), cell("state", badge(job.state)), cell("number", since(job.ended_s), h("small", {}, "ago")),
    cell("number wide", took_s === null ? "–" : duration(took_s)), cell("number wide", count(job.step)), cell("number mid", figure(job.loss)),
    h("td", { class: "number wide" }, ...size(job).childNodes), cell("number wide", percent(job.goodput)), cell("reason", job.reason));
}

// finding

function search(text) {
  find = text;
  byId("find").value = text;
  LISTS.forEach((list) => { offsets[list] = 0; });
  look();
}

let typed = 0;
byId("find").value = find;
byId("find").addEventListener("input", (event) => {
  clearTimeout(typed);
  typed = setTimeout(() => search(event.target.value.trim()), 250);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName) || document.querySelector("dialog")) return;
  event.preventDefault();
  byId("find").focus();
});

onUser(() => { if (newest) show(newest); });
loop.poke();
