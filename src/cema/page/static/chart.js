/**
 * Lines over time (or over a number), drawn by uPlot, with what a canvas lacks: a legend that tells the values at a
 * place, keys that move the place, a sentence for screen readers, and a table of the same numbers.
 *
 * @typedef {{name: string, values: (number|null)[], low?: (number|null)[], high?: (number|null)[], style?: string, sparse?: boolean}} Line
 * @typedef {{at: number[], lines: Line[], title: string, x?: {time?: boolean, name?: string, from?: number, until?: number},
 *   y?: {share?: boolean, name?: string, format?: (value: number|null|undefined) => string, range?: any},
 *   versions?: {at: number, version: number, kind?: string}[], domains?: {at: number, until?: number, name?: string}[],
 *   height?: number, sync?: string, stack?: boolean, gap?: number, drag?: boolean}} Drawing
 */

import { useEffect, useMemo, useRef } from "preact/hooks";
import uPlot from "uplot";
import { clock, day, hour, moment, percent, short } from "cema/format.js";
import { colour, drawDomains, drawVersions, faded, isTaken, onTheme } from "cema/marks.js";
import { gapped, nearest, shareRange, stacked, thin } from "cema/stats.js";
import { AsTable, Scrolled, html } from "cema/ui.js";

/** How lines look: colour and dashes, so that they differ without colour too. */
const STYLES = {
  main: { colour: "accent", width: 2.2, dash: [] },
  other: { colour: "muted", width: 1.5, dash: [] },
  dashed: { colour: "accent", width: 1.5, dash: [6, 4] },
  ink: { colour: "ink", width: 2, dash: [] },
  inkdashed: { colour: "ink", width: 1.5, dash: [2, 3] },
  dots: { colour: "ink", width: 1.5, dash: [1, 3] },
  faint: { colour: "muted", width: 1, dash: [2, 4] },
};
const SHADES = [0.95, 0.7, 0.48, 0.32, 0.2];
const MOST_POINTS = 2000;
const MOST_ROWS = 48;

/** @param {Line} line */
const style = (line) => STYLES[/** @type {keyof STYLES} */ (line.style ?? "main")] ?? STYLES.other;
const shade = (/** @type {number} */ i) => SHADES[Math.min(i, SHADES.length - 1)];

/**
 * A drawing as uPlot's columns: places, then of each line its values, and the ends of its band if it has one.
 *
 * @returns {any}
 */
function columns(/** @type {Drawing} */ drawing) {
  const { at, lines, stack, gap } = drawing;
  const values = stack ? stacked(lines.map((line) => line.values)) : lines.map((line) => line.values);
  const bands = lines.flatMap((line) => (line.low && line.high && !stack ? [line.low, line.high] : []));
  let found = thin(at, [...values, ...bands], MOST_POINTS);
  if (gap) found = gapped(found.at, found.lines, gap);
  return [found.at, ...found.lines];
}

/** The series and bands of a drawing; uPlot must be made anew when they change. */
function series(/** @type {Drawing} */ { lines, stack }) {
  /** @type {any[]} */ const all = [{}];
  /** @type {any[]} */ const bands = [];
  lines.forEach((line, i) => {
    const { colour: name, width, dash } = style(line);
    all.push({
      label: line.name, width: stack ? 1 : width, dash: stack ? undefined : dash, spanGaps: Boolean(line.sparse),
      stroke: stack ? () => faded("accent", Math.min(1, shade(i) + 0.15)) : () => colour(name),
      points: stack ? { show: false } : { show: true, filter: alone, size: 4, stroke: () => colour(name), fill: () => colour(name) },
    });
    if (stack && i) bands.push({ series: [i + 1, i], fill: () => faded("accent", shade(i)) });
    else if (stack) all[1].fill = () => faded("accent", shade(0));
  });
  let next = lines.length + 1;
  for (const line of lines) {
    if (!line.low || !line.high || stack) continue;
    const hidden = { stroke: "transparent", width: 0, points: { show: false } };
    all.push(hidden, { ...hidden });
    bands.push({ series: [next + 1, next], fill: () => faded(style(line).colour, 0.16) });
    next += 2;
  }
  return { series: all, bands };
}

/** The places of a series without a neighbour: no line shows them. */
function alone(/** @type {any} */ u, /** @type {number} */ which, /** @type {boolean} */ show) {
  const values = u.data[which];
  const empty = (/** @type {any} */ value) => value === null || value === undefined;
  if (!show) return [];
  // A line that spans its gaps shows all its places, unless there is only one.
  if (u.series[which].spanGaps && values.filter((/** @type {any} */ value) => !empty(value)).length > 1) return [];
  /** @type {number[]} */ const found = [];
  for (let i = 0; i < values.length; i++) if (!empty(values[i]) && empty(values[i - 1]) && empty(values[i + 1])) found.push(i);
  return found;
}

/** @param {Drawing} drawing @param {{current: any}} latest @param {(u: any) => void} told @returns {any} */
function options(drawing, latest, told) {
  const { x = {}, y = {}, sync, drag } = drawing;
  const format = formatOf(drawing);
  const axis = {
    stroke: () => colour("muted"), font: "11px system-ui, sans-serif", ticks: { show: false },
    grid: { stroke: () => faded("ink", 0.09), width: 1 },
  };
  return {
    width: 300, height: drawing.height ?? 180, ...series(drawing), legend: { show: false },
    padding: [(drawing.domains ?? []).some((domain) => domain.name) ? 24 : 10, 12, 0, 0],
    cursor: {
      drag: { x: Boolean(drag), y: false }, y: false, points: { size: 7 },
      ...(sync ? { sync: { key: sync, setSeries: false, scales: ["x", null] } } : {}),
    },
    scales: {
      x: { time: false, range: drag ? undefined : (/** @type {any} */ u, /** @type {number} */ low, /** @type {number} */ high) => {
        const { from, until } = latest.current.x ?? {};
        return [from ?? low, Math.max(until ?? high, (from ?? low) + 1)];
      } },
      y: { range: y.range ?? (y.share
        ? (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => shareRange(low, high)
        : (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => uPlot.rangeNum(Math.min(0, low ?? 0), high ?? 1, 0.1, true)) },
    },
    axes: [
      { ...axis, size: 26, gap: 6, space: 64, incrs: x.time ? TIMES : undefined, splits: x.time ? timeSplits : undefined,
        values: (/** @type {any} */ u, /** @type {number[]} */ splits) => splits.map((at) => (x.time ? moments(at, splits) : short(at))) },
      { ...axis, size: 46, gap: 4, space: 34, values: (/** @type {any} */ _, /** @type {number[]} */ splits) =>
        splits.map((value) => (y.share ? percent(value, 0) : format(value))) },
    ],
    hooks: {
      drawClear: [(/** @type {any} */ u) => drawDomains(u, latest.current.domains ?? [])],
      draw: [(/** @type {any} */ u) => drawVersions(u, latest.current.versions ?? [], !latest.current.stack)],
      setCursor: [told],
    },
  };
}

const TIMES = [10, 30, 60, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 345_600, 604_800];

/** Round moments of the local clock. */
function timeSplits(/** @type {any} */ u, /** @type {number} */ axis, /** @type {number} */ low, /** @type {number} */ high, /** @type {number} */ step) {
  const shift = new Date(low * 1000).getTimezoneOffset() * 60;
  const found = [];
  for (let at = Math.ceil((low - shift) / step) * step + shift; at <= high; at += step) found.push(at);
  return found;
}

/** @param {number} at @param {number[]} splits */
function moments(at, splits) {
  const step = splits.length > 1 ? splits[1] - splits[0] : 0;
  const start = new Date(at * 1000);
  if (step >= 86_400 || (start.getHours() === 0 && start.getMinutes() === 0)) return day(at);
  return step && step < 60 ? clock(at) : hour(at);
}

/** How a drawing's values are told. @param {Drawing} drawing */
const formatOf = ({ y = {} }) => y.format ?? (y.share ? (/** @type {any} */ value) => percent(value, 1) : short);
/** @param {Drawing} drawing @param {number} at */
const placeOf = ({ x = {} }, at) => (x.time ? moment(at) : `${short(at)}${x.name ? ` ${x.name}` : ""}`);

/** What a drawing shows, in words. @param {Drawing} drawing */
export function summary(drawing) {
  const format = formatOf(drawing);
  const told = drawing.lines.map(({ name, values }) => {
    const known = values.filter((value) => value !== null && value !== undefined);
    if (!known.length) return `${name}: nothing known.`;
    const low = known.reduce((a, b) => (Number(b) < Number(a) ? b : a));
    const high = known.reduce((a, b) => (Number(b) > Number(a) ? b : a));
    return `${name}: from ${format(known[0])} to ${format(known[known.length - 1])}, lowest ${format(low)}, highest ${format(high)}.`;
  });
  const { versions = [], domains = [] } = drawing;
  if (versions.length) told.push(`Versions: ${versions.length}, the last one v${versions[versions.length - 1].version}.`);
  if (domains.length) told.push(`Changes of the domain: ${domains.length}.`);
  return told.join(" ");
}

/** What makes another uPlot necessary; other numbers do not. @param {Drawing} drawing */
const shape = ({ lines, stack, sync, height, drag, domains = [], x = {}, y = {} }) =>
  JSON.stringify([lines.map((line) => [line.name, line.style, Boolean(line.low)]), stack, sync, height, drag, x.time, y.share, domains.some((domain) => domain.name)]);

/** A chart; see `Drawing`. */
export function Chart(/** @type {Drawing} */ drawing) {
  const host = useRef(/** @type {any} */ (null));
  const box = useRef(/** @type {any} */ (null));
  const plot = useRef(/** @type {any} */ (null));
  const latest = useRef(drawing);
  latest.current = drawing;
  const told = useMemo(() => () => tell(box.current, plot.current, latest.current), []);
  useEffect(() => {
    plot.current = new uPlot(options(drawing, latest, told), columns(latest.current), host.current);
    told();
    const sized = new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width > 0 && width !== plot.current.width) plot.current.setSize({ width, height: drawing.height ?? 180 });
    });
    sized.observe(host.current);
    const off = onTheme(() => plot.current.redraw(true, false));
    return () => {
      off();
      sized.disconnect();
      plot.current.destroy();
    };
  }, [shape(drawing)]);
  usePaced(() => {
    if (!plot.current) return;
    plot.current.setData(columns(latest.current), true);
    told();
  }, [drawing.at, drawing.lines, drawing.versions, drawing.domains, drawing.x?.from, drawing.x?.until]);
  const described = useMemo(() => summary(drawing), [drawing.at, drawing.lines]);
  const { title, lines, versions = [], domains = [], stack } = drawing;
  return html`<figure class="chart" ref=${box}>
    <div class="legend">
      ${lines.map((line, i) => html`<span key=${line.name}><${Swatch} line=${line} shade=${stack ? shade(i) : null} />${line.name} <b data-line=${i}></b></span>`)}
      <span class="when" data-when></span>
    </div>
    <div class="plot" ref=${host} role="slider" tabindex="0" aria-label=${`${title}: place on the chart`} aria-valuemin="0"
      aria-valuemax=${Math.max(0, drawing.at.length - 1)}
      onKeyDown=${(/** @type {KeyboardEvent} */ event) => moved(event, plot.current)}></div>
    <figcaption>
      <span class="unseen">${title}. ${described}</span>
      ${versions.length || domains.length ? html`<span class="marks">
        ${versions.length ? html`<span><i class="mark">▲</i> new version</span>` : null}
        ${versions.some((one) => isTaken(one.kind)) ? html`<span><i class="mark taken">■</i> went back</span>` : null}
        ${domains.length ? html`<span><i class="mark">◆</i> the domain changed</span>` : null}
      </span>` : null}
      <${AsTable} table=${() => html`<${ChartTable} drawing=${drawing} />`} />
    </figcaption>
  </figure>`;
}

/** Run an effect when something changed, but not the first time, and at most once a second. */
function usePaced(/** @type {() => void} */ effect, /** @type {any[]} */ on) {
  const pace = useRef({ at: 0, timer: 0, first: true });
  useEffect(() => {
    const now = pace.current;
    if (now.first) {
      now.first = false;
      return;
    }
    clearTimeout(now.timer);
    const run = () => {
      now.at = performance.now();
      effect();
    };
    const wait = now.at + 1000 - performance.now();
    if (wait <= 0) run();
    else now.timer = setTimeout(run, wait);
  }, on);
  useEffect(() => () => clearTimeout(pace.current.timer), []);
}

/** Write the values at the cursor, or the last ones, into the legend. */
function tell(/** @type {HTMLElement|null} */ box, /** @type {any} */ u, /** @type {Drawing} */ drawing) {
  if (!box || !u) return;
  const format = formatOf(drawing);
  const free = u.cursor.idx === null || u.cursor.idx === undefined || u.cursor.left < 0;
  const place = free ? drawing.at.length - 1 : nearest(drawing.at, u.data[0][u.cursor.idx]);
  const values = drawing.lines.map(({ values }) => (free ? lastOf(values) : values[place]));
  box.querySelectorAll("[data-line]").forEach((/** @type {any} */ part, i) => (part.textContent = format(values[i])));
  const when = /** @type {HTMLElement} */ (box.querySelector("[data-when]"));
  const at = drawing.at.length ? placeOf(drawing, drawing.at[place]) : "";
  when.textContent = free ? "" : at;
  const slider = /** @type {HTMLElement} */ (box.querySelector("[role=slider]"));
  slider.setAttribute("aria-valuenow", String(Math.max(0, place)));
  slider.setAttribute("aria-valuetext", free ? summary(drawing) : `${at}: ${drawing.lines.map((line, i) => `${line.name} ${format(values[i])}`).join(", ")}`);
}

/** @param {(number|null)[]} values */
function lastOf(values) {
  for (let i = values.length - 1; i >= 0; i--) if (values[i] !== null && values[i] !== undefined) return values[i];
  return null;
}

/** Keys move the cursor from place to place. */
function moved(/** @type {KeyboardEvent} */ event, /** @type {any} */ u) {
  const last = u.data[0].length - 1;
  const here = u.cursor.left < 0 || u.cursor.idx === null ? last + 1 : u.cursor.idx;
  const step = Math.max(1, Math.round(last / 20));
  const places = /** @type {Record<string, number>} */ ({
    ArrowLeft: here - 1, ArrowRight: here + 1, PageUp: here + step, PageDown: here - step, Home: 0, End: last,
  });
  if (!(event.key in places) || last < 0) return;
  event.preventDefault();
  const place = Math.min(last, Math.max(0, places[event.key]));
  u.setCursor({ left: Math.max(0, u.valToPos(u.data[0][place], "x")), top: u.over.clientHeight / 2 });
}

/** How a line looks, in the legend. */
function Swatch({ line, shade: part }) {
  const { colour: name, dash, width } = style(line);
  if (part !== null) return html`<svg class="swatch" viewBox="0 0 22 10" width="22" height="10" aria-hidden="true"><rect x="3" width="16" height="10" rx="2" fill="var(--accent)" fill-opacity=${part} /></svg>`;
  return html`<svg class="swatch" viewBox="0 0 22 10" width="22" height="10" aria-hidden="true">
    ${line.low ? html`<rect width="22" height="10" fill=${`var(--${name})`} fill-opacity=".16" />` : null}
    <line x1="0" x2="22" y1="5" y2="5" stroke=${`var(--${name})`} stroke-width=${width} stroke-dasharray=${dash.join(" ")} />
  </svg>`;
}

/** The numbers of a chart; of many places some, evenly. */
function ChartTable({ drawing }) {
  const format = formatOf(drawing);
  const step = Math.max(1, Math.ceil(drawing.at.length / MOST_ROWS));
  const places = drawing.at.map((/** @type {number} */ _, /** @type {number} */ i) => i).filter((/** @type {number} */ i) => (drawing.at.length - 1 - i) % step === 0).reverse();
  return html`<${Scrolled} label=${`${drawing.title}, as a table`}><table>
    <thead><tr><th scope="col">${drawing.x?.time ? "from" : (drawing.x?.name ?? "place")}</th>${drawing.lines.map((/** @type {Line} */ line) => html`<th scope="col" class="number">${line.name}</th>`)}</tr></thead>
    <tbody>${places.map((/** @type {number} */ i) => html`<tr key=${i}><th scope="row">${drawing.x?.time ? moment(drawing.at[i]) : short(drawing.at[i])}</th>${drawing.lines.map((/** @type {Line} */ line) => html`<td class="number">${format(line.values[i])}</td>`)}</tr>`)}</tbody>
  </table><//>`;
}
