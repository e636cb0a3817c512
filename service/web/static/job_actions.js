// The dialogs of a job's actions: <button data-dialog="NAME"> opens dialog-NAME, whose form is sent.
"use strict";

(() => {
  const valueOf = (input) => (input.type === "checkbox" ? input.checked : Number(input.value));

  /** Returns what a form says, by the names of its inputs. */
  function given(form) {
    return Object.fromEntries([...form.querySelectorAll("input[name]")].map((input) => [input.name, valueOf(input)]));
  }

  /** Queues a job that goes on from the last checkpoint of this one; returns its id. */
  async function extend(path, length) {
    const job = await ask("GET", path);
    const { user, ...source } = job.spec.source ?? {}; // who submitted that one, not this one
    const spec = {
      ...job.spec,
      training: { ...job.spec.training, ...length },
      start_from: { job: job.id, checkpoint: "last", state: "all" },
      source: job.spec.source ? source : null,
    };
    return (await ask("POST", "v1/jobs", spec)).id;
  }

  async function send(form) {
    const { jobAction: name, path, method, done } = form.dataset;
    const values = given(form);
    if (name === "extend") {
      location.assign(address(`jobs/${await extend(path, values)}`));
    } else if (name === "delete") {
      await ask(method, `${path}?with_run=${values.with_run}`);
      location.assign(address("jobs"));
    } else {
      await ask(method, path, values);
      notify(done);
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-dialog], button[data-close]");
    if (!button) return;
    if (button.dataset.close !== undefined) return void button.closest("dialog").close();
    const dialog = document.getElementById(`dialog-${button.dataset.dialog}`);
    const current = dialog.querySelector("[data-current]");
    if (current) current.value = button.dataset.value;
    dialog.querySelector(".problem").hidden = true;
    dialog.showModal();
  });

  document.addEventListener("submit", async (event) => {
    const form = event.target.closest("form[data-job-action]");
    if (!form) return;
    event.preventDefault(); // the dialog stays open if the service refuses
    const [button, problem] = [form.querySelector("[type=submit]"), form.querySelector(".problem")];
    button.disabled = true;
    problem.hidden = true;
    try {
      await send(form);
      form.closest("dialog").close();
    } catch (error) {
      const details = (error.problem?.errors ?? []).map(({ key, message }) => `${key}: ${message}`);
      problem.textContent = details.length ? `${error.message}: ${details.join("; ")}` : error.message;
      problem.hidden = false;
    } finally {
      button.disabled = false;
    }
  });
})();
