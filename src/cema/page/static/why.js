/** The charts that explain a cohort's agreement. */

import { useMemo } from "preact/hooks";
import { Chart } from "cema/chart.js";
import { bytes, capital, decimal, duration, short, words } from "cema/format.js";
import { timeOf } from "cema/history.js";
import { meanLines, totalLines } from "cema/lines.js";
import { complete, sum } from "cema/stats.js";
import { Empty, Panel, html } from "cema/ui.js";

const NATS = { format: (/** @type {any} */ value) => decimal(value, 2) };
const IMAGES = { format: short };
const SIZE = { format: bytes };
const LOSSES = [
  ["loss.foundation_loss", "Foundation model", "other"], ["loss.distillation_loss", "Distillation", "main"],
  ["loss.kl", "KL", "dashed"], ["loss.ce", "CE", "inkdashed"], ["loss.entropy", "Entropy", "dots"],
];

/** A panel with one chart over the time of a history. */
function Timed({ title, note, history, lines, y, sync, stack = false, empty }) {
  if (!lines.length) return html`<${Panel} title=${title}><${Empty} title="Nothing in this time.">${empty}<//><//>`;
  return html`<${Panel} title=${title} note=${note}><${Chart} title=${title} at=${history.at} lines=${lines} x=${timeOf(history)} y=${y}
    versions=${history.versions} domains=${history.domains} height=${170} sync=${sync} stack=${stack} gap=${stack ? 0 : history.seconds * 3.5} /><//>`;
}

export function Entropy({ history, sync }) {
  const lines = useMemo(() => meanLines(history, [["entropy", "Mean of samples", "main"], ["threshold.low", "Lower threshold", "faint"], ["threshold.high", "Upper threshold", "inkdashed"]]), [history]);
  return html`<${Timed} title="Entropy" note="How unsure the edge model is, in nats. Devices send what lies between the thresholds." history=${history} lines=${lines} y=${NATS} sync=${sync}
    empty="Entropy is drawn once devices send samples or reports." />`;
}

const MOST_REASONS = 5;
const REASONS = { below: "Too certain", above: "Too uncertain", selected: "Selected" };

/** @param {string} name */
const reason = (name) => REASONS[name] ?? capital(words(name));

export function Reasons({ history: all, sync }) {
  const history = useMemo(() => complete(all), [all]);
  const lines = useMemo(() => {
    const names = Object.keys(history.measures).filter((name) => name.startsWith("selection."));
    const size = (/** @type {string} */ name) => sum(history.measures[name].count);
    const ordered = names.sort((a, b) => size(b) - size(a));
    const shown = totalLines(history, ordered.map((name) => [name, reason(name.slice("selection.".length)), "main"]), "count");
    if (shown.length <= MOST_REASONS) return shown;
    const rest = shown.slice(MOST_REASONS - 1);
    const others = history.at.map((/** @type {number} */ _, /** @type {number} */ i) => sum(rest.map((line) => line.values[i])));
    return [...shown.slice(0, MOST_REASONS - 1), { name: `${rest.length} other reasons`, style: "main", values: others }];
  }, [history]);
  return html`<${Timed} title="What devices select" note=${`Images in ${duration(history.seconds)}, by what the selector said of them.`} history=${history} lines=${lines} y=${IMAGES} sync=${sync} stack
    empty="Devices say it in their reports. Older devices do not." />`;
}

export function Losses({ history, sync }) {
  const lines = useMemo(() => meanLines(history, LOSSES), [history]);
  return html`<${Timed} title="Losses" note="Of the steps in the cloud; lower is closer." history=${history} lines=${lines} y=${NATS} sync=${sync}
    empty="A loss is known once the worker has taken a step: it waits for a batch of samples." />`;
}

export function Bytes({ history: all, sync }) {
  const history = useMemo(() => complete(all), [all]);
  const lines = useMemo(() => totalLines(history, [["bytes.up", "Sent by devices", "main"], ["bytes.down", "Fetched by devices", "inkdashed"]]), [history]);
  return html`<${Timed} title="Traffic" note=${`Bytes in ${duration(history.seconds)}.`} history=${history} lines=${lines} y=${SIZE} sync=${sync}
    empty="Nothing was sent or fetched." />`;
}
