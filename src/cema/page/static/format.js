/**
 * Numbers, moments and sizes as people read them. Pure functions: text comes out, nothing else happens.
 *
 * What is not known (null or undefined) is a dash.
 */

export const DASH = "–";
const NARROW = "\u202f";
const counts = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const hourFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const dayFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const momentFormat = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit",
});
const wholeFormat = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** @param {any} value @returns {value is number} */
const known = (value) => typeof value === "number" && Number.isFinite(value);

/** A whole number with separators: 12,345. @param {number|null|undefined} value */
export const count = (value) => (known(value) ? counts.format(value) : DASH);

/** A share from 0 to 1 in percent. @param {number|null|undefined} value @param {number} [digits] */
export const percent = (value, digits = 1) => (known(value) ? `${(value * 100).toFixed(digits)}${NARROW}%` : DASH);

/** A number with so many digits after the point. @param {number|null|undefined} value @param {number} [digits] */
export const decimal = (value, digits = 2) => (known(value) ? value.toFixed(digits) : DASH);

/** A number of unknown size with three digits that count. @param {number|null|undefined} value */
export function short(value) {
  if (!known(value)) return DASH;
  if (Number.isInteger(value)) return counts.format(value);
  const size = Math.abs(value);
  if (size >= 1000) return counts.format(value);
  if (size >= 0.001) return String(Number(value.toPrecision(3)));
  return value.toExponential(1);
}

/** Bytes in powers of 1000: 1.2 MB. @param {number|null|undefined} value */
export function bytes(value) {
  if (!known(value)) return DASH;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (Math.abs(value) >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 99.5 ? value.toFixed(0) : value.toFixed(1)}${NARROW}${units[unit]}`;
}

/** An amount of money. @param {number|null|undefined} amount @param {string|null|undefined} currency */
export function money(amount, currency) {
  if (!known(amount)) return DASH;
  const text = amount !== 0 && Math.abs(amount) < 0.01 ? amount.toPrecision(2) : amount.toFixed(2);
  return currency ? `${text}${NARROW}${currency}` : text;
}

/** A span of seconds in its largest unit: 4 min. @param {number|null|undefined} seconds */
export function duration(seconds) {
  if (!known(seconds)) return DASH;
  const size = Math.max(0, seconds);
  if (size < 59.5) return `${Math.round(size)}${NARROW}s`;
  if (size < 3570) return `${Math.round(size / 60)}${NARROW}min`;
  if (size < 172_800) return `${Math.round(size / 3600)}${NARROW}h`;
  return `${Math.round(size / 86_400)} days`;
}

/** How long ago a moment was. @param {number|null|undefined} at unix seconds @param {number} now */
export function ago(at, now) {
  if (!known(at)) return "never";
  const passed = now - at;
  if (passed < -60) return `in ${duration(-passed)}`;
  return passed < 5 ? "just now" : `${duration(passed)} ago`;
}

const date = (/** @type {number} */ at) => new Date(at * 1000);

/** 14:03:12. @param {number|null|undefined} at */
export const clock = (at) => (known(at) ? clockFormat.format(date(at)) : DASH);
/** 14:03. @param {number} at */
export const hour = (at) => hourFormat.format(date(at));
/** 1 Dec. @param {number} at */
export const day = (at) => dayFormat.format(date(at));
/** 1 Dec, 14:03. @param {number|null|undefined} at */
export const moment = (at) => (known(at) ? momentFormat.format(date(at)) : DASH);
/** 1 Dec 2026, 14:03:12. @param {number|null|undefined} at */
export const whole = (at) => (known(at) ? wholeFormat.format(date(at)) : DASH);
/** For `<time datetime>`. @param {number} at */
export const machine = (at) => {
  const moment = date(at);
  return Number.isNaN(moment.getTime()) ? "" : moment.toISOString();
};

/** "1 device", "2 devices". @param {number|null|undefined} value @param {string} one @param {string} [many] */
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** A version's name. @param {number|null|undefined} version */
export const version = (version) => (!known(version) ? DASH : version === 0 ? "source" : `v${version}`);

/** Who acted: "token:ann" or "os:root". @param {string} actor */
export function actor(actor) {
  const at = actor.indexOf(":");
  const [kind, name] = at < 0 ? ["", actor] : [actor.slice(0, at), actor.slice(at + 1)];
  return { token: `${name} (token)`, os: `${name} (command line)` }[kind] ?? actor;
}

/** A sentence in which no line begins with a unit or a margin: "89 % ± 2". @param {string} text */
export const unbroken = (text) => text.replace(/ (?=[%±])|(?<=±) /g, "\u00a0");

/** A name of a program in words: "foundation_loss" is "foundation loss". @param {string} name */
export const words = (name) => name.replaceAll("_", " ").replaceAll(".", " · ");

/** A sentence's first letter large. @param {string} text */
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
