// One job: how it stands, what happened to it, where its time went, what it prints.

import { cancelButton, priorityButton } from "./actions.js";
import { goodput, lossCurve } from "./charts.js";
import { badge, byId, cell, count, duration, figure, h, jobLink, meter, moment, now, percent, replace, short, since, table, until } from "./dom.js";
import { Logs } from "./logs.js";
import { Loop, Problem, ask, mayChange, me, meet, onUser } from "./server.js";

const SHOWN_EVENTS = 500;
const TROUBLE = new Set(["rank_lost", "agent_lost", "hang", "straggler", "supervisor_lost", "corrupt_checkpoint", "warning"]);
const ENDED = new Set(["succeeded", "cancelled", "failed"]);
const id = new URLSearchParams(location.search).get("id") || "";
const path = `jobs/${encodeURIComponent(id)}`;
const events = [];
let seen = 0;
let newest = null;
let etag = null;
let explanation = null;
let curve = null;
let curveTag = null;

document.title = `${id} · orchestrator`;

const loop = new Loop("job", async (signal) => {
  if (!me()) await meet(signal);
  const answer = await ask(`${path}/page`, { signal, etag }).catch(unknown);
  etag = answer.etag;
  if (answer.value) newest = answer.value;
  explanation = newest.job.state === "queued" ? (await ask(`${path}/explanation`, { signal })).value : null;
  if (answer.value || explanation) showJob();
  if (await readEvents(signal)) showEvents();
});

const curveLoop = new Loop("curve", async (signal) => {
  const answer = await ask(`${path}/curve?points=2000`, { signal, etag: curveTag });
  curveTag = answer.etag;
  if (answer.value) curve = answer.value;
  showCurve();
  return newest !== null && ENDED.has(newest.job.state);
}, 10);

const logs = new Logs(path);

/** There is no such job: said in its place, not only in the corner. */
function unknown(error) {
  if (error instanceof Problem && error.status === 404 && !newest) replace(byId("head"), h("p", { class: "problem" }, error.message));
  throw error;
}

/** Those that have come since; whether there are any. */
async function readEvents(signal) {
  const before = seen;
  for (;;) {
    const { value } = await ask(`${path}/events?after=${seen}`, { signal });
    if (signal.aborted || !value.events.length) return seen > before;
    for (const event of value.events) if (event.seq > seen) events.push(event);
    seen = value.next;
  }
}

// the head

function showJob() {
  const { job, ledger } = newest;
  const ended = ENDED.has(job.state);
  const change = !ended && mayChange(job.tenant);
  const state = job.stop_requested && !ended ? "stopping" : job.state;
  document.title = `${job.state} · ${job.id}`;
  replace(byId("head"),
    h("div", { class: "title" }, h("h1", {}, job.id), badge(state),
      h("span", { class: "buttons" }, change && priorityButton({ id: job.id, priority: job.spec.scheduling.priority }, `Priority ${job.spec.scheduling.priority}`), change && !job.stop_requested && cancelButton(job))),
    h("p", { class: "whose" }, [job.tenant || "no tenant", job.user, `${job.spec.workload.name} / ${job.spec.model.name}`, job.run > 1 && `run ${job.run}`].filter(Boolean).join(" · "), links(newest.links)),
    done(job), reason(job, ended), facts(job, ended));
  const held = ledger && ledger.goodput_share !== null;
  byId("ledger-note").textContent = held ? `${percent(ledger.goodput_share, 1)} of ${duration(ledger.held_s)} of all workers` : "";
  replace(byId("ledger"), goodput(ledger));
  byId("spec").textContent = JSON.stringify(job.spec, null, 2);
  logs.offer(job.spec.resources.num_workers);
  showCurve();
}

function links({ mlflow, mlflow_run_id: run, ray }) {
  const outside = (address, words) => /^https?:\/\//.test(address) && h("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, words);
  const kept = !mlflow && run && h("span", {}, "MLflow run ", h("code", {}, run), " (", h("code", {}, "orchestrator dashboard"), ")");
  return h("span", { class: "links" }, outside(mlflow, run ? "MLflow run" : "MLflow"), kept, outside(ray, "Ray's dashboard"));
}

function done({ progress, spec, state }) {
  const all = spec.training.max_steps, share = all ? progress.step / all : 0;
  const ends_s = progress.eta_s !== null && progress.updated_s && !ENDED.has(state) && state !== "queued" ? progress.updated_s + progress.eta_s : null;
  return h("div", { class: "progress" }, meter(share, `${percent(share)} done`),
    h("p", {}, h("span", {}, h("b", {}, percent(share, 1)), ` step ${count(progress.step)} of ${count(all)}`), ends_s && h("span", {}, "ends in ", until(ends_s))));
}

function reason(job, ended) {
  const doing = job.state === "queued" ? job.reason || "waits for the controller" : ended ? job.reason : job.progress.phase === "training" ? "" : job.progress.phase;
  const [first, ...rest] = (doing || "").split("\n");
  const more = rest.join("\n").trim();
  const parts = [first && h("p", { class: "reason" }, first), more && h("details", { open: true }, h("summary", {}, "All it said"), h("pre", {}, more))];
  if (explanation && explanation.job_id === job.id) parts.push(...hints());
  return parts;
}

function hints() {
  const { position, holders, start_s: start, reserved, with_workers: fewer, num_workers: all, at_priority: priority } = explanation;
  const names = holders.slice(0, 8).flatMap((holder, index) => [index ? ", " : "", jobLink(holder)]);
  return [
    position > 0 && h("p", {}, `Position ${count(position)}`, start !== null && [reserved ? "; reserved to start in " : "; predicted to start, if nobody else comes, in ", until(start)]),
    names.length && h("p", {}, "What it needs is held by ", names, holders.length > 8 && ` and ${count(holders.length - 8)} more`),
    fewer && h("p", {}, `Would start now with ${count(fewer)} of ${count(all)} workers.`),
    priority !== null && h("p", {}, `Would start, or have a place cleared for it, now at priority ${priority}.`),
  ].filter(Boolean);
}

function facts(job, ended) {
  const { progress, spec: { resources, training, parallelism } } = job;
  const placed = job.placement.reduce((sum, [, workers]) => sum + workers, 0);
  const asked = resources.num_workers, gpus = resources.gpus_per_worker;
  const pace = progress.tokens_per_s ? [progress.tokens_per_s, "tokens/s"] : [progress.samples_per_s, "samples/s"];
  const shown = [
    ["Loss", figure(progress.loss)], ["Validation loss", figure(progress.val_loss)], ["Pace", pace[0] ? `${short(pace[0])} ${pace[1]}` : "–"],
    ["Checkpoint", progress.committed_step === null ? "none yet" : `step ${count(progress.committed_step)}`],
    ["Best", progress.best_value === null ? "–" : `${figure(progress.best_value)} at ${count(progress.best_step)}`],
    ["Workers", placed && placed !== asked ? `${count(placed)} of ${count(asked)}` : count(asked)], ["GPUs", gpus ? count((placed || asked) * gpus) : "none"],
    ["Nodes", job.placement.length ? count(job.placement.length) : "–"], ["ZeRO stage", parallelism.zero_stage], ["Batch", count(training.global_batch_size)],
    ["Restarts", count(progress.restarts)], ["Preemptions", count(progress.preemptions)],
    ["Submitted", since(job.submitted_s), "ago"], ["Placed", job.started_s ? since(job.started_s) : "–", job.started_s ? "ago" : ""],
    ended ? ["Ended", since(job.ended_s), "ago"] : null,
  ];
  return h("dl", { class: "facts" }, shown.filter(Boolean).map(([title, value, after]) => h("div", {}, h("dt", {}, title), h("dd", {}, value, after && ` ${after}`))));
}

function showCurve() {
  if (!curve) return;
  const training = [...curve.training];
  const { step, loss } = newest ? newest.job.progress : {};
  if (loss !== null && loss !== undefined && (!training.length || step > training.at(-1)[0])) training.push([step, loss]);
  const part = Number(byId("part").value), width = Math.max(240, byId("curve").clientWidth);
  const key = JSON.stringify([training.at(-1), training.length, curve.validation.length, curveTag, part, width]);
  if (byId("curve").dataset.shown === key) return;
  byId("curve").dataset.shown = key;
  replace(byId("curve"), lossCurve({ training, validation: curve.validation }, part, width));
}

// what happened

function showEvents() {
  const shown = events.slice(-SHOWN_EVENTS).reverse();
  byId("events").querySelector("small").textContent = events.length > SHOWN_EVENTS ? `the newest ${count(SHOWN_EVENTS)} of ${count(events.length)}` : count(events.length);
  table(byId("events").querySelector("table"), [["When", "number"], ["What"], ["", "reason"]], shown.map(eventRow), "Nothing has happened yet.");
  const bad = events.filter((event) => event.fields.incident || TROUBLE.has(event.kind)).reverse();
  part("incidents", bad, [["When", "number"], ["What"], ["Node"], ["", "reason"]], (event) => h("tr", {}, when(event), cell("state", badge(words(event), "bad")), cell("", event.fields.node || "–"), said(event)));
  part("receipts", events.filter((event) => event.kind === "receipt").reverse(),
    [["When", "number"], ["Order"], ["For"], ["Lost", "number", "GPU-seconds, or worker-seconds on CPUs"], ["Expected", "number"], ["", "reason"]], receiptRow);
}

function part(name, rows, columns, row) {
  byId(name).hidden = !rows.length;
  if (name === "incidents") byId(name).querySelector("small").textContent = count(rows.length);
  if (rows.length) table(byId(name).querySelector("table"), columns, rows.slice(0, SHOWN_EVENTS).map(row), "");
}

const words = (event) => (event.fields.incident ? event.fields.incident.toLowerCase() : event.kind).replaceAll("_", " ");
const when = (event) => cell("number when", h("time", { title: moment(event.time_s), datetime: new Date(1000 * event.time_s).toISOString() }, clock(event.time_s)));

function clock(time_s) {
  const date = new Date(1000 * time_s);
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  return now() - time_s < 20 * 3600 ? time : `${date.toLocaleDateString([], { month: "short", day: "numeric" })} ${time}`;
}

function said(event) {
  const [first, ...rest] = event.message.split("\n");
  return cell("reason", first, rest.length > 0 && h("details", {}, h("summary", {}, "more"), h("pre", {}, rest.join("\n"))));
}

const eventRow = (event) => h("tr", {}, when(event), cell("state", badge(words(event), TROUBLE.has(event.kind) ? "bad" : event.kind)), said(event));

function receiptRow(event) {
  const { order, for_job: whom, lost_gpu_s: lost, expected_gpu_s: expected } = event.fields;
  const amount = (seconds) => (typeof seconds === "number" ? seconds.toFixed(1) : "–");
  return h("tr", {}, when(event), cell("", order || "–"), cell("", whom ? jobLink(whom) : "–"), cell("number", amount(lost)), cell("number", amount(expected)), said(event));
}

byId("part").addEventListener("change", showCurve);
new ResizeObserver(showCurve).observe(byId("curve"));
onUser(() => { if (newest) showJob(); });
loop.poke();
curveLoop.poke();
logs.loop.poke();
