// Pictures that are dropped on the page, or pasted.

const isOpen = () => document.querySelector("dialog[open]") !== null; // which has other things to do

/** Give the first of the files that arrive at once to `onFile`, and how many there are; `place` is marked while one hangs over the page. */
export function listenForFiles(place, onFile) {
  const mark = (isOver) => place.classList.toggle("awaits", isOver);
  const bringsFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files") && !isOpen();
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      if (!bringsFiles(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
      mark(true);
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
  document.addEventListener("drop", (event) => {
    mark(false);
    if (!bringsFiles(event)) return;
    event.preventDefault(); // the browser would open it in place of the page
    if (event.dataTransfer.files.length) onFile(event.dataTransfer.files[0], event.dataTransfer.files.length);
  });
  document.addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData ?? { files: [], types: [] };
    const isText = types.includes("text/plain") && event.target.matches?.("input, textarea");
    if (!files.length || isText || isOpen()) return; // a table is copied as text and as a picture of it
    event.preventDefault();
    onFile(files[0], files.length);
  });
}
