// Stored prompts: their versions, their labels, and two versions side by side.

import { h, put, empty, trouble, field, select } from "/pages/dom.js";
import { get } from "/pages/wire.js";
import { day, some } from "/pages/format.js";

export function open(panel) {
  const names = h("ul", { class: "found" });
  const detail = h("article", { class: "detail", tabindex: -1, "aria-label": "Prompt" });
  let heads = [], chosen = "";
  put(panel, h("h1", { class: "hidden" }, "Prompts"), h("div", { class: "split" }, h("div", { class: "side" }, names), detail));

  async function show(name) {
    chosen = name;
    for (const link of names.querySelectorAll("a")) {
      if (link.dataset.id === name) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
    const head = heads.find((each) => each.name === name);
    if (!head) return put(detail, empty(heads.length ? "Choose a prompt." : "Prompts are stored with: ponder prompts put NAME"));
    try {
      const texts = await get(`/api/prompt?name=${encodeURIComponent(name)}`);
      if (chosen === name) drawn(detail, head, texts);
    } catch (error) {
      put(detail, trouble(error));
    }
    return undefined;
  }

  return {
    async enter(name) {
      try {
        heads = await get("/api/prompts");
      } catch (error) {
        return put(names, h("li", {}, trouble(error)));
      }
      put(names, heads.length ? heads.map((each) => h("li", {}, h("a", { href: `#prompts/${encodeURIComponent(each.name)}`, data: { id: each.name } },
        h("span", { class: "ask-line" }, each.name), h("small", {}, some(each.versions, "version")), labels(each)))) : h("li", {}, empty("There are no stored prompts.")));
      return show(name || heads[0]?.name || "");
    },
  };
}

const labels = (head, version) => h("span", { class: "labels" }, Object.entries(head.labels).filter(([, at]) => version === undefined || at === version)
  .map(([label, at]) => h("span", { class: "chip" }, version === undefined ? `${label} → ${at}` : label)));

function drawn(detail, head, texts) {
  const versions = [...texts].sort((a, b) => b.version - a.version);
  const newest = versions[0], prod = versions.find((each) => each.version === head.labels.prod && each !== newest);
  const options = versions.map((each) => [String(each.version), `${head.name}@${each.version}`]);
  const before = select(options, String((prod ?? versions[1] ?? newest).version), { change: compare });
  const after = select(options, String(newest.version), { change: compare });
  const sides = h("div", { class: "diff" });
  const at = (choice) => versions.find((each) => String(each.version) === choice.value);

  function compare() {
    put(sides, diffs(at(before), at(after)).map(([role, rows]) => h("section", { "aria-label": `Message: ${role}` },
      h("h3", {}, role),
      h("table", {}, h("caption", { class: "hidden" }, `${options.find(([each]) => each === before.value)[1]} beside ${options.find(([each]) => each === after.value)[1]}`),
        h("thead", { class: "hidden" }, h("tr", {}, h("th", { scope: "col" }, "before"), h("th", { scope: "col" }, "after"))),
        h("tbody", {}, rows.map(([old, now]) => h("tr", { class: old === now ? "" : "changed" },
          h("td", { class: old === null ? "none" : old === now ? "" : "gone" }, old ?? ""), h("td", { class: now === null ? "none" : old === now ? "" : "new" }, now ?? ""))))))));
  }
  compare();
  put(detail, h("h2", {}, head.name),
    h("ul", { class: "versions" }, versions.map((each) => h("li", {}, h("b", {}, `@${each.version}`), " ", labels(head, each.version),
      h("span", { class: "soft" }, [each.created && day(each.created), each.note, each.variables.length && `fills ${each.variables.join(", ")}`].filter(Boolean).join(" · "))))),
    h("div", { class: "pair" }, field("Before", before), field("After", after)), sides);
}

/** The messages of two versions, pair by pair, as rows of lines: [before, after], null where there is none. */
export function diffs(before, after) {
  const n = Math.max(before.messages.length, after.messages.length);
  return Array.from({ length: n }, (_, at) => {
    const [oldRole, old] = before.messages[at] ?? [null, ""], [nowRole, now] = after.messages[at] ?? [null, ""];
    const role = oldRole === nowRole || !oldRole || !nowRole ? nowRole ?? oldRole : `${oldRole} → ${nowRole}`;
    return [role, lines(oldRole === null ? [] : old.split("\n"), nowRole === null ? [] : now.split("\n"))];
  });
}

/** A longest common subsequence of lines; what is gone and what is new at one place stand side by side. */
function lines(old, now) {
  const length = Array.from({ length: old.length + 1 }, () => new Uint32Array(now.length + 1));
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = now.length - 1; j >= 0; j--) {
      length[i][j] = old[i] === now[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const rows = [];
  let gone = [], fresh = [], i = 0, j = 0;
  const flush = () => {
    for (let at = 0; at < Math.max(gone.length, fresh.length); at++) rows.push([gone[at] ?? null, fresh[at] ?? null]);
    gone = []; fresh = [];
  };
  while (i < old.length || j < now.length) {
    if (i < old.length && j < now.length && old[i] === now[j]) { flush(); rows.push([old[i++], now[j++]]); }
    else if (j === now.length || (i < old.length && length[i + 1][j] >= length[i][j + 1])) gone.push(old[i++]);
    else fresh.push(now[j++]);
  }
  flush();
  return rows;
}
