/** Which lines a chart draws from a history, and how they are called. */

import { intervals, means } from "cema/stats.js";

/** Whose answers agree with the foundation model, in words. */
export const MODELS = {
  device: "On devices",
  running: "Running version",
  adapted: "In training",
  source: "Unadapted",
};
const STYLE = { device: "dots", running: "main", adapted: "dashed", source: "other" };
const LABELLED = { adapted: ["True accuracy", "ink"], frozen: ["True accuracy, unadapted", "inkdashed"] };

/** Whether there is anything in a measure. @param {any} measure */
const filled = (measure) => Boolean(measure?.count.some((/** @type {number|null} */ value) => value));

/**
 * Lines of agreement, and of true accuracy where someone has reported it.
 *
 * @param {import("cema/stats.js").History} history
 * @param {{of?: string, models?: string[], band?: string[]}} [options] `of`: `agreement` or `random`
 */
export function agreementLines(history, { of = "agreement", models = ["running", "adapted", "source"], band = ["running"] } = {}) {
  const { measures } = history;
  /** @type {import("cema/chart.js").Line[]} */
  const lines = models.filter((model) => filled(measures[`${of}.${model}`])).map((model) => {
    const measure = measures[`${of}.${model}`];
    return { name: MODELS[model], style: STYLE[model], values: means(measure), ...(band.includes(model) ? intervals(measure) : {}) };
  });
  const labelled = Object.keys(measures).filter((name) => name.startsWith("labelled.") && filled(measures[name]));
  for (const name of labelled.sort()) {
    const kind = name.slice("labelled.".length);
    const [told, style] = LABELLED[kind] ?? [`True accuracy, ${kind}`, "inkdashed"];
    lines.push({ name: told, style, sparse: true, values: means(measures[name]) });
  }
  return lines;
}

/** Lines of means of measures that are there: [measure, name, style]. @param {any} history @param {string[][]} wanted */
export const meanLines = (history, wanted) =>
  wanted.filter(([measure]) => filled(history.measures[measure])).map(([measure, name, style]) => ({
    name, style, values: means(history.measures[measure]),
  }));

/** Lines of totals per bin. @param {any} history @param {string[][]} wanted @param {"count"|"total"} [part] */
export const totalLines = (history, wanted, part = "total") =>
  wanted.filter(([measure]) => filled(history.measures[measure])).map(([measure, name, style]) => ({
    name, style, values: history.measures[measure][part].map((value) => value ?? 0),
  }));
