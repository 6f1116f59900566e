// Elements without markup: whatever a model says becomes a text node, never HTML.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    const spoken = name.startsWith("aria-"); // where false is a value
    if (value === undefined || value === null || (value === false && !spoken)) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name === "vars") for (const [key, each] of Object.entries(value)) element.style.setProperty(`--${key}`, each);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true && !spoken ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element; strings among the children are text. */
export const h = (tag, properties = {}, ...children) => filled(document.createElement(tag), properties, children);

/** An SVG element. */
export const svg = (tag, properties = {}, ...children) => filled(document.createElementNS(SVG, tag), properties, children);

/** Puts children in the place of what an element holds. */
export const put = (element, ...children) => element.replaceChildren(...children.flat().filter(Boolean));

/** What is shown where there is nothing to show. */
export const empty = (...words) => h("p", { class: "empty" }, ...words);

/** What went wrong, for people and for screen readers. */
export const trouble = (error) => h("p", { class: "trouble", role: "alert" }, error.message);

let last = 0;
/** An id that nothing else on the page has. */
export const fresh = (name) => `${name}-${++last}`;

/** A label over a control. */
export function field(label, control, note) {
  control.id ||= fresh("field");
  const about = note ? h("small", { id: fresh("about") }, note) : null;
  if (about) control.setAttribute("aria-describedby", about.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, about);
}

/** A choice. options: [value, text]. */
export const select = (options, value, on) =>
  h("select", { on }, options.map(([name, text]) => h("option", { value: name, selected: name === value }, text)));

/** A table. columns: [title, cell of a row, class]. */
export function table(caption, columns, rows) {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, columns.map(([title, , kind]) => h("th", { scope: "col", class: kind }, title)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map(([, cell, kind], place) =>
        h(place ? "td" : "th", { class: kind, scope: place ? null : "row" }, cell(row))))))));
}
