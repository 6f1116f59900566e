// The frame of the pages: tabs, theme, key. Each page loads when it is first opened.

import { trouble, put } from "/pages/dom.js";
import { key } from "/pages/wire.js";

const PAGES = {
  playground: () => import("/pages/playground.js"),
  dashboard: () => import("/pages/dashboard.js"),
  traces: () => import("/pages/traces.js"),
  prompts: () => import("/pages/prompts.js"),
  curves: () => import("/pages/curves.js"),
};
const names = Object.keys(PAGES);
const tab = (name) => document.getElementById(`tab-${name}`);
const panel = (name) => document.getElementById(`panel-${name}`);
const opened = {};

async function show() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  if (!names.includes(name)) {
    if (!names.some((each) => !panel(each).hidden)) location.replace("#playground");
    return;
  }
  for (const each of names) {
    const chosen = each === name;
    tab(each).setAttribute("aria-selected", chosen);
    tab(each).tabIndex = chosen ? 0 : -1;
    if (!chosen && !panel(each).hidden) (await opened[each])?.leave?.();
    panel(each).hidden = !chosen;
  }
  document.title = `${tab(name).textContent} · ponder`;
  opened[name] ??= PAGES[name]().then((module) => module.open(panel(name)));
  try {
    const page = await opened[name];
    if (!panel(name).hidden) await page?.enter?.(decodeURIComponent(rest.join("/")));
  } catch (error) {
    put(panel(name), trouble(error));
    delete opened[name];
  }
}

document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  const at = names.findIndex((name) => tab(name) === document.activeElement);
  const places = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 };
  if (at < 0 || !(event.key in places)) {
    if (event.key === " ") { event.preventDefault(); document.activeElement.click(); }
    return;
  }
  event.preventDefault();
  const name = names[(places[event.key] + names.length) % names.length];
  tab(name).focus();
  location.hash = name;
});

// ---------------------------------------------------------------- theme

const THEMES = ["auto", "light", "dark"];
const themeButton = document.getElementById("theme-button");

function told() {
  const theme = document.documentElement.dataset.theme ?? "auto";
  themeButton.textContent = { auto: "◐", light: "☀", dark: "☾" }[theme];
  themeButton.setAttribute("aria-label", `Theme: ${{ auto: "as the system's", light: "light", dark: "dark" }[theme]}`);
  themeButton.title = themeButton.getAttribute("aria-label");
}

themeButton.addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % THEMES.length];
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("ponder.theme", theme); } catch { /* storage is switched off */ }
  told();
});

// ---------------------------------------------------------------- key

const dialog = document.getElementById("key-dialog");
const input = document.getElementById("key-input");
const keyButton = document.getElementById("key-button");
const marked = () => keyButton.classList.toggle("set", Boolean(key.get()));

function unlock() {
  if (dialog.open) return;
  input.value = key.get();
  dialog.showModal();
}

function use(value) {
  key.set(value);
  dialog.close();
}

keyButton.addEventListener("click", unlock);
addEventListener("ponder-locked", unlock);
addEventListener("ponder-key", async () => {
  marked();
  for (const page of Object.values(opened)) (await page.catch(() => null))?.leave?.();
  show();
});
document.getElementById("key-form").addEventListener("submit", (event) => { event.preventDefault(); use(input.value.trim()); });
document.getElementById("key-forget").addEventListener("click", () => use(""));

// ---------------------------------------------------------------- code

const code = document.getElementById("code-dialog");
document.getElementById("code-close").addEventListener("click", () => code.close());
for (const each of [dialog, code]) {
  each.addEventListener("click", (event) => { if (event.target === each) each.close(); });
}

told();
marked();
addEventListener("hashchange", show);
show();
