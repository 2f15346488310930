/** A report: blocks that the page beside this script holds as JSON, drawn one below the other; see `cema.page.reports`. */

import { render } from "preact";
import { Chart } from "cema/chart.js";
import { percent, short } from "cema/format.js";
import { Bars, Sorted } from "cema/plots.js";
import { Facts, html } from "cema/ui.js";

const KINDS = { text: Text, facts: Numbers, table: Table, series: Series, bars: Columns };

function Text({ block }) {
  return [block.text].flat().map((text, i) => html`<p key=${i} class="prose">${String(text)}</p>`);
}

function Numbers({ block }) {
  return html`<${Facts} large facts=${block.facts.map((/** @type {any} */ fact) => [fact.name, typeof fact.value === "number" ? short(fact.value) : fact.value, fact.note])} />`;
}

function Table({ block }) {
  return html`<${Sorted} caption=${block.title ?? "Table"} columns=${block.columns} rows=${block.rows} most=${1000} />`;
}

function Series({ block }) {
  const { x = {}, y = {} } = block;
  return html`<${Chart} title=${block.title ?? "Chart"} at=${block.at} lines=${block.lines} x=${x} y=${y} versions=${block.versions} domains=${block.domains} height=${300} drag />
    <p class="note">${[y.name && `Up: ${y.name}.`, x.name && `Right: ${x.name}.`, "Drag to enlarge a part, click twice to see all."].filter(Boolean).join(" ")}</p>`;
}

function Columns({ block }) {
  const format = block.y?.share ? (/** @type {any} */ value) => percent(value) : short;
  return html`<${Bars} caption=${block.title ?? "Bars"} format=${format} bars=${block.bars} /><p class="note">${block.y?.name ? `${block.y.name}; the thin lines are the intervals.` : ""}</p>`;
}

function Block({ block }) {
  const Kind = KINDS[/** @type {keyof KINDS} */ (block.kind)];
  if (!Kind) return null;
  return html`<section class="panel wide">${block.title ? html`<header><h2>${block.title}</h2></header>` : null}
    ${block.kind !== "text" && block.text ? html`<p class="note">${[block.text].flat().join(" ")}</p>` : null}<${Kind} block=${block} /></section>`;
}

const data = JSON.parse(/** @type {HTMLElement} */ (document.getElementById("data")).textContent ?? "{}");
const main = /** @type {HTMLElement} */ (document.getElementById("main"));
main.replaceChildren();
render(html`<div class="title"><h1>${data.title}</h1></div><div class="panels">${data.blocks.map((/** @type {any} */ block, /** @type {number} */ i) => html`<${Block} key=${i} block=${block} />`)}</div>`, main);
