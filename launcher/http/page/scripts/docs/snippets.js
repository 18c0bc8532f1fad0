// The snippets of a route, which ask for what its form sends.

const OTHERWISE = ["stream", "answer_as", "modalities", "extra_body", "response_format"]; // changes how pictures come
const AS_IT_COMES = `    for line in response:
        print(line.decode(), end="")`;

/** Put a request of the form into the snippets of its route. body: its text, if it has one. */
export function follow(route, url, body) {
  const [curl, python] = route.querySelectorAll(".snippet code");
  const address = url.href.replaceAll("'", "%27");
  curl.querySelector(".url").textContent = `'${address}'`;
  python.querySelector(".url").textContent = `"${address}"`;
  if (!body) return;
  const sent = JSON.parse(body);
  curl.querySelector(".sent").textContent = `'${JSON.stringify(sent).replaceAll("'", "'\\''")}'`;
  python.querySelector(".sent").textContent = inPython(sent, "\n");
  const reading = python.querySelector(".reading");
  if (!reading) return;
  reading.dataset.pictures ??= reading.textContent;
  const isOther = OTHERWISE.some((name) => sent?.[name]);
  const named = reading.dataset.pictures.replace(/(picture-{index}\.)\w+/, (all, name) => {
    return typeof sent?.output_format === "string" ? name + sent.output_format : all;
  });
  reading.textContent = isOther ? AS_IT_COMES : named;
}

/** Write a value of JSON as Python does. end: what is between the fields of an object. */
function inPython(value, end = "") {
  if (value === true || value === false) return value ? "True" : "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map((item) => inPython(item)).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const fields = Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${inPython(item)}`);
  return end ? `{${end}${fields.map((field) => `    ${field},${end}`).join("")}}` : `{${fields.join(", ")}}`;
}
