/** Small parts that all views use. */

import { h } from "preact";
import { useEffect, useReducer } from "preact/hooks";
import htm from "htm";
import { ago, machine, whole } from "cema/format.js";

export const html = htm.bind(h);

const LEVELS = {
  ok: { word: "OK", path: "M3 8.5 6.5 12 13 4.5" },
  warn: { word: "Warning", path: "M8 2 15 14H1Z M8 6.5v3.5 M8 12v.2" },
  bad: { word: "Problem", path: "M5.2 1.5h5.6l3.7 3.7v5.6l-3.7 3.7H5.2L1.5 10.8V5.2Z M8 4.5v4.2 M8 11.2v.2" },
};

/** A level as a shape and a word. */
export function Level({ level, word = "" }) {
  const known = LEVELS[level] ?? LEVELS.warn;
  return html`<span class="level level-${level in LEVELS ? level : "warn"}">
    <svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true"><path d=${known.path} /></svg>${word || known.word}
  </span>`;
}

/** @type {Set<() => void>} */
const clocks = new Set();
let ticking = 0;

/** Seconds since 1970, again each ten seconds: one timer for all that say how long ago something was. */
function useNow() {
  const [, tick] = useReducer((/** @type {number} */ n) => n + 1, 0);
  useEffect(() => {
    const turn = () => tick(null);
    clocks.add(turn);
    ticking ||= setInterval(() => document.hidden || clocks.forEach((one) => one()), 10_000);
    return () => {
      clocks.delete(turn);
    };
  }, []);
  return Date.now() / 1000;
}

/** How long ago; the whole moment when pointed at. */
export function Ago({ at }) {
  const now = useNow();
  if (typeof at !== "number") return html`<span>${ago(at, now)}</span>`;
  return html`<time datetime=${machine(at)} title=${whole(at)}>${ago(at, now)}</time>`;
}

/** Names and values: `facts` are [name, value, note]; null entries are left out. */
export function Facts({ facts, large = false }) {
  return html`<dl class=${large ? "facts large" : "facts"}>
    ${facts.filter(Boolean).map(([name, value, note]) => html`<div key=${name}>
      <dt>${name}</dt>
      <dd>${value}${note ? html`<small>${note}</small>` : null}</dd>
    </div>`)}
  </dl>`;
}

/** What went wrong, and what to do. */
export function Failure({ error, children = null }) {
  return html`<div class="failure" role="alert">
    <p><strong>${error.message}</strong></p>
    ${error.remedy ? html`<p>${error.remedy}</p>` : null}${children}
  </div>`;
}

/** Nothing is here yet, and what to do next. */
export const Empty = ({ title, children }) => html`<div class="empty"><p><strong>${title}</strong></p><p>${children}</p></div>`;

/** A part of a view: what it asks for while it is not there, why it failed, or what it shows. */
export function Loaded({ from, children, lines = 3 }) {
  if (from.data !== null) return children(from.data);
  if (from.error) return html`<${Failure} error=${from.error} />`;
  return html`<div class="loading" role="status" aria-label="Loading">${Array.from({ length: lines }, (_, i) => html`<span key=${i} />`)}</div>`;
}

/** A panel with a heading. */
export const Panel = ({ title, note = null, aside = null, wide = false, id = undefined, children }) =>
  html`<section class=${wide ? "panel wide" : "panel"} id=${id}>
    <header><h2>${title}</h2>${aside}</header>
    ${note ? html`<p class="note">${note}</p>` : null}${children}
  </section>`;

/** One of several: radio buttons that look like one control. */
export function Segmented({ legend, name, options, value, onChange }) {
  return html`<fieldset class="segmented">
    <legend class="unseen">${legend}</legend>
    ${options.map(([key, label]) => html`<label key=${key}>
      <input type="radio" name=${name} value=${key} checked=${key === value} onChange=${() => onChange(key)} /><span>${label}</span>
    </label>`)}
  </fieldset>`;
}

/** A button that acts, or says why it may not. */
export function Act({ label, onClick, why = "", tone = "", describe = undefined }) {
  return html`<button type="button" class="button ${tone}" aria-disabled=${why ? "true" : undefined} title=${why || undefined}
    aria-label=${describe} onClick=${() => why || onClick()}>${label}</button>`;
}

/** What a chart shows, as a table; its rows are made when it is opened. */
export function AsTable({ label = "Show as a table", table }) {
  const [open, toggle] = useReducer((/** @type {boolean} */ _, event) => event.currentTarget.open, false);
  return html`<details class="as-table" onToggle=${toggle}><summary>${label}</summary>${open ? table() : null}</details>`;
}

/** A region that scrolls by itself where it is too wide, with the keyboard too. */
export const Scrolled = ({ label, children }) =>
  html`<div class="scrolled" role="region" aria-label=${label} tabindex="0">${children}</div>`;

let timer = 0;

/** Say something to users of screen readers. @param {string} text */
export function announce(text) {
  const place = document.getElementById("announce");
  if (!place) return;
  clearTimeout(timer);
  // What says the same again is not read unless it was empty between.
  place.textContent = "";
  timer = setTimeout(() => (place.textContent = text), 100);
}
