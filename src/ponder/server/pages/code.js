// A request of the playground as code that makes the same one. The key is named, never written.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** As a command line. */
export function curl(body) {
  return [
    `curl ${shell(`${location.origin}/v1/chat/completions`)} \\`,
    `  -H 'Content-Type: application/json' -H "Authorization: Bearer $PONDER_KEY" \\`,
    `  -d ${shell(JSON.stringify(body, null, 2))}`,
  ].join("\n");
}

/** As Python with OpenAI's client. */
export function python(body) {
  const { ponder, stream, stream_options, ...rest } = body;
  const fields = Object.entries(rest).map(([name, value]) => `    ${name}=${literal(value)},`);
  if (ponder) fields.push(`    extra_body={"ponder": ${literal(ponder)}},`);
  return [
    "import os", "", "from openai import OpenAI", "",
    `client = OpenAI(base_url=${literal(`${location.origin}/v1`)}, api_key=os.environ.get("PONDER_KEY", "none"))`,
    "reply = client.chat.completions.create(", ...fields, ")",
    "print(reply.choices[0].message.content)",
  ].join("\n") + "\n";
}

function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${literal(name)}: ${literal(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value); // JSON's strings and numbers are Python's, too
}

/** Shows code, and copies it where the browser lets a page do that. */
export async function offer(title, text) {
  const dialog = document.getElementById("code-dialog");
  const area = document.getElementById("code-text"), status = document.getElementById("code-status");
  document.getElementById("code-title").textContent = title;
  area.value = text;
  status.textContent = "";
  dialog.showModal();
  area.select();
  try {
    await navigator.clipboard.writeText(text);
    status.textContent = "Copied.";
  } catch {
    status.textContent = "Select and copy it.";
  }
}
