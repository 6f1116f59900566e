// Numbers and times as people read them.

const plain = new Intl.NumberFormat("en-US");
const SIZES = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const count = (value) => (known(value) ? plain.format(Math.round(value)) : "–");

export function short(value) {
  if (!known(value)) return "–";
  const size = SIZES.find(([each]) => Math.abs(value) >= each);
  return size && Math.abs(value) >= 1e4 ? digits(value / size[0]) + " " + size[1] : digits(value);
}

export const digits = (value) => Number(value.toPrecision(3)).toLocaleString("en-US", { maximumSignificantDigits: 3 });

export function seconds(value) {
  if (!known(value)) return "–";
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  return value < 100 ? `${digits(value)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

export function dollars(value) {
  if (!known(value)) return "–";
  if (value === 0) return "$0";
  const places = value >= 1 ? 2 : Math.min(9, 1 - Math.floor(Math.log10(value)));
  return `$${value.toFixed(places)}`;
}

export const percent = (share) => (known(share) ? `${(100 * share).toFixed(1)}%` : "–");

export const clock = (when) => new Date(when * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

export function day(text) {
  const when = new Date(text);
  return Number.isNaN(when.getTime()) ? text : when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

export const some = (number, one, many = one + "s") => `${count(number)} ${number === 1 ? one : many}`;

/** The least of the values that a share of them does not exceed; null where there are none. */
export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))] : null;
}
