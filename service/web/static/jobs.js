// The list of jobs: its form leaves empty fields out of the URL, so that it can be read and shared.
"use strict";

document.querySelector("form.filters")?.addEventListener("formdata", (event) => {
  for (const name of new Set([...event.formData.keys()])) {
    const values = event.formData.getAll(name).filter((value) => value.trim() !== "");
    event.formData.delete(name);
    for (const value of values) event.formData.append(name, value);
  }
});
