/**
 * What charts do with numbers before they draw them. Pure functions.
 *
 * @typedef {{count: (number|null)[], total: (number|null)[]}} Measure
 * @typedef {{since: number, until: number, seconds: number, at: number[], measures: Record<string, Measure>,
 *   versions: {version: number, at: number, kind: string}[], domains: {at: number, distance: number|null}[]}} History
 */

/**
 * Wilson's interval of 95 % for a share.
 *
 * @param {number} total what agreed
 * @param {number} count of how many
 * @returns {[number, number]}
 */
export function wilson(total, count) {
  const z = 1.959964;
  const share = total / count;
  const spread = (z / (1 + (z * z) / count)) * Math.sqrt((share * (1 - share)) / count + (z * z) / (4 * count * count));
  const middle = (share + (z * z) / (2 * count)) / (1 + (z * z) / count);
  return [Math.max(0, middle - spread), Math.min(1, middle + spread)];
}

/** The mean of each bin: total / count, null where nothing is known. @param {Measure|undefined} measure */
export const means = (measure) =>
  measure ? measure.total.map((total, i) => (measure.count[i] ? (total ?? 0) / /** @type {number} */ (measure.count[i]) : null)) : [];

/** The ends of Wilson's interval in each bin. @param {Measure|undefined} measure */
export function intervals(measure) {
  /** @type {(number|null)[]} */ const low = [];
  /** @type {(number|null)[]} */ const high = [];
  measure?.total.forEach((total, i) => {
    const count = measure.count[i];
    const ends = count ? wilson(Math.min(total ?? 0, count), count) : [null, null];
    low.push(ends[0]);
    high.push(ends[1]);
  });
  return { low, high };
}

/**
 * A history without its last bin where that has not ended: of sums over a bin it would show a fall that is none.
 *
 * @param {History} history
 * @returns {History}
 */
export function complete(history) {
  const length = history.at.findLastIndex((at) => at + history.seconds <= history.until) + 1;
  if (length === history.at.length) return history;
  const cut = ([name, { count, total }]) => [name, { count: count.slice(0, length), total: total.slice(0, length) }];
  return { ...history, at: history.at.slice(0, length), measures: Object.fromEntries(Object.entries(history.measures).map(cut)) };
}

/** The mean over all bins, or null. @param {Measure|undefined} measure */
export function overall(measure) {
  const count = sum(measure?.count);
  return count ? sum(measure?.total) / count : null;
}

/** @param {(number|null)[]|undefined} values */
export const sum = (values) => (values ?? []).reduce((/** @type {number} */ all, value) => all + (value ?? 0), 0);

/**
 * A history with wider bins: sums stay exact, as counts and totals are added.
 *
 * @param {History} history
 * @param {number} factor how many bins become one
 * @returns {History}
 */
export function coarsen(history, factor) {
  if (factor <= 1) return history;
  const seconds = history.seconds * factor;
  // From round moments on, not from the first one: bins stay the same ones while the time that is shown moves on.
  const place = history.at.map((at) => Math.floor(at / seconds));
  const bins = [...new Set(place)].sort((a, b) => a - b);
  const index = new Map(bins.map((bin, i) => [bin, i]));
  const to = place.map((bin) => /** @type {number} */ (index.get(bin)));
  /** @type {Record<string, Measure>} */ const measures = {};
  for (const [name, measure] of Object.entries(history.measures)) {
    measures[name] = { count: added(measure.count, to, bins.length), total: added(measure.total, to, bins.length) };
  }
  return { ...history, seconds, at: bins.map((bin) => bin * seconds), measures };
}

/** @param {(number|null)[]} values @param {number[]} to @param {number} length */
function added(values, to, length) {
  /** @type {(number|null)[]} */ const sums = new Array(length).fill(null);
  values.forEach((value, i) => {
    if (value !== null) sums[to[i]] = (sums[to[i]] ?? 0) + value;
  });
  return sums;
}

/**
 * A history with bins wide enough to read: the middle bin of a measure holds `least` at least, and there are `most`
 * bins at most. Few samples in a bin make a line that shows chance and hides what changed.
 *
 * @param {History} history
 * @param {string} name of the measure to look at
 * @param {{least?: number, most?: number, fewest?: number}} [limits]
 */
export function readable(history, name, { least = 30, most = 400, fewest = 24 } = {}) {
  let factor = Math.max(1, Math.ceil(history.at.length / most));
  const samples = (history.measures[name]?.count ?? []).filter((value) => value).sort((a, b) => Number(a) - Number(b));
  const middle = Number(samples[samples.length >> 1] ?? least);
  const bins = (history.until - history.since) / history.seconds;
  const wanted = Math.ceil(least / Math.max(1, middle));
  return coarsen(history, Math.max(factor, Math.min(wanted, Math.floor(bins / fewest))));
}

/**
 * At most about `most` places of many lines over one axis, with the lowest and highest value of the first line kept.
 *
 * @param {number[]} at
 * @param {(number|null)[][]} lines
 * @param {number} most
 * @returns {{at: number[], lines: (number|null)[][]}}
 */
export function thin(at, lines, most) {
  if (at.length <= most || !lines.length) return { at, lines };
  const width = at.length / Math.max(1, Math.floor(most / 2));
  const keep = [0];
  for (let begin = 0; begin < at.length; begin += width) {
    const end = Math.min(at.length, Math.floor(begin + width));
    let low = -1;
    let high = -1;
    for (let i = Math.floor(begin); i < end; i++) {
      const value = lines[0][i];
      if (value === null || value === undefined) continue;
      if (low < 0 || value < Number(lines[0][low])) low = i;
      if (high < 0 || value >= Number(lines[0][high])) high = i;
    }
    for (const i of low < high ? [low, high] : [high, low]) if (i > keep[keep.length - 1]) keep.push(i);
  }
  if (keep[keep.length - 1] !== at.length - 1) keep.push(at.length - 1);
  return { at: keep.map((i) => at[i]), lines: lines.map((line) => keep.map((i) => line[i])) };
}

/**
 * The same places and values with a gap where nothing was known for longer than `seconds`.
 *
 * @param {number[]} at
 * @param {(number|null)[][]} lines
 * @param {number} seconds
 */
export function gapped(at, lines, seconds) {
  /** @type {number[]} */ const places = [];
  /** @type {(number|null)[][]} */ const values = lines.map(() => []);
  at.forEach((moment, i) => {
    if (i && moment - at[i - 1] > seconds) {
      places.push((at[i - 1] + moment) / 2);
      values.forEach((line) => line.push(null));
    }
    places.push(moment);
    values.forEach((line, k) => line.push(lines[k][i] ?? null));
  });
  return { at: places, lines: values };
}

/** Lines put on top of each other. @param {(number|null)[][]} lines the lowest first */
export function stacked(lines) {
  const heights = new Array(lines[0]?.length ?? 0).fill(0);
  return lines.map((line) => line.map((value, i) => (heights[i] += value ?? 0)));
}

/** The nearest place. @param {number[]} at sorted @param {number} moment */
export function nearest(at, moment) {
  let low = 0;
  let high = at.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (at[middle] < moment) low = middle + 1;
    else high = middle;
  }
  return low > 0 && moment - at[low - 1] < at[low] - moment ? low - 1 : low;
}

/** Ends of an axis of shares: tenths around the values, within 0 and 1. @param {number} low @param {number} high */
export const shareRange = (low, high) =>
  Number.isFinite(low) && Number.isFinite(high) && low <= high
    ? [Math.max(0, Math.floor((low - 0.02) * 10) / 10), Math.min(1, Math.ceil((high + 0.02) * 10) / 10)]
    : [0, 1];
