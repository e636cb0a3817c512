// Buttons that copy a text of the page: <button data-copy="id of the element">
"use strict";

/** Copies a text; where a page is not served by HTTPS, the browser allows that for what is selected alone. */
async function copyText(element) {
  if (navigator.clipboard) return navigator.clipboard.writeText(element.textContent);
  const range = document.createRange();
  range.selectNodeContents(element);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  if (!document.execCommand("copy")) throw new Error("refused");
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  try {
    await copyText(document.getElementById(button.dataset.copy));
    notify("Copied.");
  } catch {
    notify("The browser does not allow this page to copy. Select the text, and copy it by hand.", true);
  }
});
