// What may be changed from the page: a job is cancelled, its priority is set. The server decides who may.

import { h } from "./dom.js";
import { Unreachable, ask, lookAgain } from "./server.js";

const path = (id, verb) => `jobs/${encodeURIComponent(id)}/${verb}`;

export function cancelButton(job, words = "Cancel") {
  const label = `Cancel ${job.id}`;
  return h("button", { type: "button", class: "quiet danger", "aria-label": label, title: label, "data-key": `cancel ${job.id}`, click: () => cancel(job.id) }, words);
}

export function priorityButton(job, words) {
  const label = `Priority of ${job.id}: ${job.priority}. Change it`;
  const open = () => changePriority(job.id, job.priority);
  return h("button", { type: "button", class: "quiet number", "aria-label": label, title: label, "data-key": `priority ${job.id}`, click: open }, words ?? String(job.priority));
}

function cancel(id) {
  const choice = (value, checked, title, about) => h("label", { class: "choice" },
    h("input", { type: "radio", name: "mode", value, checked }), h("span", {}, h("b", {}, title), h("small", {}, about)));
  question({
    title: "Cancel", id, action: "Cancel the job", kind: "danger", stay: "Keep it",
    content: [choice("drain", true, "Save a checkpoint first", "It can be resumed from there."), choice("now", false, "At once", "Work since the last checkpoint is lost.")],
    send: (form) => ask(path(id, "stop"), { method: "POST", body: { mode: form.elements.mode.value } }),
  });
}

function changePriority(id, priority) {
  const input = h("input", { type: "number", name: "priority", id: "priority", value: priority, min: -1000, max: 1000, step: 1, required: true });
  question({
    title: "Priority", id, action: "Set", kind: "primary", stay: "Leave it",
    content: [h("label", { for: "priority" }, "From −1000 to 1000; a higher one comes before all lower ones."), input],
    send: () => ask(path(id, "priority"), { method: "POST", body: { priority: Number(input.value) } }),
  });
}

/** A question whose answer changes something; what the server says against it stands in it. */
function question({ title, id, content, action, kind, stay, send }) {
  const problem = h("p", { class: "problem", role: "alert" });
  const submit = h("button", { type: "submit", class: kind }, action);
  const dialog = h("dialog", { close: () => dialog.remove(), "aria-label": `${title} ${id}` });
  const form = h("form", {
    submit: async (event) => {
      event.preventDefault();
      submit.disabled = true;
      try {
        await send(form);
        dialog.close();
        lookAgain();
      } catch (error) {
        problem.textContent = error instanceof Unreachable ? "The server cannot be reached: nothing was changed, as far as is known." : error.message;
        submit.disabled = false;
      }
    },
  }, h("h2", {}, title), h("p", { class: "subject" }, id), content, problem,
    h("div", { class: "buttons" }, h("button", { type: "button", click: () => dialog.close() }, stay), submit));
  dialog.append(form);
  document.body.append(dialog);
  dialog.showModal();
}
