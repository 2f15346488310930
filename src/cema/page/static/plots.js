/** Bars, histograms, points on a plane, and tables that can be sorted: drawn as HTML and SVG, with no canvas. */

import { useMemo, useState } from "preact/hooks";
import { count, decimal, percent, short } from "cema/format.js";
import { AsTable, Scrolled, html } from "cema/ui.js";

/** A share of a width as a style. @param {number} share */
const wide = (share) => `${(Math.max(0, Math.min(1, share)) * 100).toFixed(2)}%`;

/**
 * Bars beside their names, with error bars: a table, each row one bar.
 *
 * @param {{bars: {name: any, value: number|null, low?: number, high?: number, main?: boolean, note?: string, key?: string}[],
 *   caption: string, format?: (value: any) => string, most?: number}} props
 */
export function Bars({ bars, caption, format = short, most = 0 }) {
  const top = most || Math.max(1e-12, ...bars.map((bar) => Math.max(bar.value ?? 0, bar.high ?? 0)));
  return html`<table class="bars"><caption class="unseen">${caption}</caption>
    <tbody>${bars.map((bar) => html`<tr key=${bar.key ?? bar.name} class=${bar.main ? "main" : ""}>
      <th scope="row" title=${typeof bar.name === "string" ? bar.name : undefined}>${bar.name}</th>
      <td class="bar" aria-hidden="true"><span style=${{ width: wide((bar.value ?? 0) / top) }}></span>
        ${bar.low !== undefined && bar.high !== undefined ? html`<i style=${{ left: wide(bar.low / top), width: wide((bar.high - bar.low) / top) }}></i>` : null}
      </td>
      <td class="number">${format(bar.value)}${bar.low !== undefined && bar.high !== undefined ? html`<small>${format(bar.low)} to ${format(bar.high)}</small>` : bar.note ? html`<small class="inline">${bar.note}</small>` : null}</td>
    </tr>`)}</tbody>
  </table>`;
}

const MOST_CLASSES = 16;

/**
 * How often each class was predicted: before a version, with it, and by the foundation model.
 *
 * @param {{predictions: {classes: number, before?: number[], after?: number[], teacher?: number[]}, names: string[]|null}} props
 */
export function Histogram({ predictions, names }) {
  const kinds = [["before", "before"], ["after", "with this version"], ["teacher", "foundation model"]].filter(
    ([kind]) => Array.isArray(predictions[kind]),
  );
  const totals = Object.fromEntries(kinds.map(([kind]) => [kind, Math.max(1, predictions[kind].reduce((a, b) => a + b, 0))]));
  const share = (/** @type {string} */ kind, /** @type {number} */ i) => (predictions[kind][i] ?? 0) / totals[kind];
  const classes = useMemo(() => {
    const all = Array.from({ length: predictions.classes }, (_, i) => i);
    const weight = (/** @type {number} */ i) => Math.max(...kinds.map(([kind]) => share(kind, i)));
    return all.length > MOST_CLASSES ? all.sort((a, b) => weight(b) - weight(a)).slice(0, MOST_CLASSES) : all;
  }, [predictions]);
  const top = Math.max(1e-9, ...classes.flatMap((i) => kinds.map(([kind]) => share(kind, i))));
  const left = predictions.classes - classes.length;
  return html`<div class="histogram">
    <p class="legend">${kinds.map(([kind, label]) => html`<span key=${kind}><i class="key ${kind}"></i>${label}</span>`)}</p>
    <table><caption class="unseen">Predictions by class</caption>
      <thead class="unseen"><tr><th scope="col">class</th><td></td>${kinds.map(([kind, label]) => html`<th scope="col" key=${kind}>${label}</th>`)}</tr></thead>
      <tbody>${classes.map((i) => html`<tr key=${i}>
        <th scope="row">${names?.[i] ?? i}</th>
        <td class="bar" aria-hidden="true">${kinds.map(([kind]) => html`<span key=${kind} class=${kind} style=${{ width: wide(share(kind, i) / top) }}></span>`)}</td>
        ${kinds.map(([kind]) => html`<td class="number" key=${kind}>${percent(share(kind, i), 0)}</td>`)}
      </tr>`)}</tbody>
    </table>
    ${left > 0 ? html`<p class="note">${count(left)} more classes, each predicted less often than these.</p>` : null}
  </div>`;
}

/**
 * Points on a plane, joined in order; the last one is marked, and a square is where they came from.
 *
 * @param {{points: {x: number, y: number, name: string, key: string}[], origin: {x: number, y: number}|null, label: string,
 *   axes: [string, string], chosen?: string, onChoose?: (key: string) => void}} props
 */
export function Scatter({ points, origin, label, axes, chosen = "", onChoose = undefined }) {
  const [width, height, margin] = [440, 300, 28];
  const all = origin ? [...points, origin] : points;
  const range = (/** @type {"x"|"y"} */ axis) => {
    const low = Math.min(...all.map((point) => point[axis]));
    const high = Math.max(...all.map((point) => point[axis]));
    const spare = (high - low || 1) * 0.08;
    return [low - spare, high + spare];
  };
  const [[left, right], [bottom, top]] = [range("x"), range("y")];
  const x = (/** @type {number} */ value) => margin + ((value - left) / (right - left)) * (width - margin - 12);
  const y = (/** @type {number} */ value) => 10 + (1 - (value - bottom) / (top - bottom)) * (height - margin - 14);
  const last = points[points.length - 1];
  // A name on the right of such a point would leave the picture.
  const rightHalf = (/** @type {any} */ point) => x(point.x) > width / 2;
  const path = points.map((point, i) => `${i ? "L" : "M"}${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`).join("");
  return html`<figure class="scatter">
    <svg viewBox=${`0 0 ${width} ${height}`} role="img" aria-label=${label}>
      <path class="axis" d=${`M${margin} 6V${height - margin + 4}H${width - 4}`} />
      <text class="axis-name" x=${width - 4} y=${height - 6} text-anchor="end">${axes[0]}</text>
      <text class="axis-name" x=${-10} y="14" text-anchor="end" transform="rotate(-90)">${axes[1]}</text>
      ${origin ? html`<g><rect class="origin" x=${x(origin.x) - 4} y=${y(origin.y) - 4} width="8" height="8" /><text x=${x(origin.x) + 8} y=${y(origin.y) + 4}>source</text></g>` : null}
      <path class="way" d=${path} />
      ${points.map((point, i) => html`<g key=${point.key} class=${`${point === last ? "last" : ""} ${point.key === chosen ? "chosen" : ""}`} onClick=${() => onChoose?.(point.key)}>
        <circle cx=${x(point.x)} cy=${y(point.y)} r=${point === last ? 6 : 3 + (2 * i) / points.length} fill-opacity=${0.35 + (0.65 * (i + 1)) / points.length}><title>${point.name}</title></circle>
        ${point === last || point.key === chosen ? html`<text x=${x(point.x) + (rightHalf(point) ? -9 : 9)} y=${y(point.y) - 7} text-anchor=${rightHalf(point) ? "end" : "start"}>${point.name}</text>` : null}
      </g>`)}
    </svg>
    <figcaption><${AsTable} table=${() => html`<${Sorted} caption=${label} columns=${[{ name: "point" }, { name: axes[0], digits: 2 }, { name: axes[1], digits: 2 }]} rows=${points.map((point) => [point.name, point.x, point.y])} />`} /></figcaption>
  </figure>`;
}

/**
 * A table that each column can sort.
 *
 * @param {{caption: string, columns: {name: string, digits?: number}[], rows: (string|number|null)[][], most?: number}} props
 */
export function Sorted({ caption, columns, rows, most = 200 }) {
  const [by, setBy] = useState({ column: -1, down: false });
  const sorted = useMemo(() => (by.column < 0 ? rows : [...rows].sort((a, b) => compared(a[by.column], b[by.column], by.down))), [rows, by]);
  const turn = (/** @type {number} */ column) => setBy((old) => ({ column, down: old.column === column ? !old.down : columns[column].digits !== undefined }));
  const aria = (/** @type {number} */ i) => (by.column !== i ? undefined : by.down ? "descending" : "ascending");
  const numeric = (/** @type {number} */ i) => columns[i].digits !== undefined;
  return html`<${Scrolled} label=${caption}><table class="sorted"><caption class="unseen">${caption}</caption>
    <thead><tr>${columns.map((column, i) => html`<th key=${i} scope="col" class=${numeric(i) ? "number" : ""} aria-sort=${aria(i)}>
      <button type="button" onClick=${() => turn(i)}>${column.name}<span aria-hidden="true">${aria(i) ? (by.down ? " ↓" : " ↑") : ""}</span></button></th>`)}</tr></thead>
    <tbody>${sorted.slice(0, most).map((row, n) => html`<tr key=${n}>${columns.map((column, i) => html`<td key=${i} class=${numeric(i) ? "number" : ""}>${cell(row[i], column.digits)}</td>`)}</tr>`)}</tbody>
  </table><//>${sorted.length > most ? html`<p class="note">The first ${count(most)} of ${count(sorted.length)} rows. Sort to see others.</p>` : null}`;
}

/** @param {any} value @param {number|undefined} digits */
const cell = (value, digits) => (typeof value === "number" ? (digits === undefined ? short(value) : decimal(value, digits)) : String(value ?? "–"));

/** What is not known comes last either way. @param {any} a @param {any} b @param {boolean} down */
function compared(a, b, down) {
  const missing = Number(a === null || a === undefined) - Number(b === null || b === undefined);
  if (missing) return missing;
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -order : order;
}
