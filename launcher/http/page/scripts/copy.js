// What puts a text into the clipboard, also where the browser gives a page none.

/** Whether `text` is in the clipboard now. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text); // which only pages have that came over https, or from this machine
    return true;
  } catch {
    const focused = document.activeElement;
    const field = Object.assign(document.createElement("textarea"), { value: text, className: "visually-hidden" });
    (focused.closest("dialog") ?? document.body).append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    focused.focus();
    return isCopied;
  }
}
