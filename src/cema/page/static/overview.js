/** All cohorts on one page, the worst first. */

import { useMemo } from "preact/hooks";
import { Chart } from "cema/chart.js";
import { bytes, count, money, plural, version } from "cema/format.js";
import { timeOf, useHistory } from "cema/history.js";
import { agreementLines } from "cema/lines.js";
import { useLive } from "cema/live.js";
import { readable } from "cema/stats.js";
import { Ago, Empty, Facts, Level, Loaded, html } from "cema/ui.js";

const ORDER = { bad: 0, warn: 1, ok: 2 };
const DAY = 86_400;

export function Overview() {
  const cohorts = useLive((live) => live.cohorts);
  const sorted = useMemo(
    () => [...(cohorts ?? [])].sort((a, b) => (ORDER[a.level] ?? 1) - (ORDER[b.level] ?? 1) || a.cohort.localeCompare(b.cohort)),
    [cohorts],
  );
  return html`<div class="title"><h1 tabindex="-1">Cohorts</h1><p class="lead">${cohorts ? state(cohorts) : "Loading …"}</p></div>
    ${cohorts && !cohorts.length ? html`<${Empty} title="There is no cohort yet.">Add a [[cohort]] to cloud.toml and start the cloud again.<//>` : null}
    <div class="cards">${sorted.map((cohort) => html`<${Card} key=${cohort.cohort} cohort=${cohort} />`)}</div>`;
}

/** All of it in one sentence. @param {any[]} cohorts */
function state(cohorts) {
  const of = (/** @type {string} */ level) => cohorts.filter((cohort) => cohort.level === level).length;
  const parts = [[of("bad"), "with a problem"], [of("warn"), "with a warning"], [of("ok"), "OK"]].filter(([n]) => n).map(([n, word]) => `${n} ${word}`);
  const devices = cohorts.reduce((all, cohort) => all + (cohort.devices?.registered ?? 0), 0);
  const silent = cohorts.reduce((all, cohort) => all + (cohort.devices?.silent ?? 0), 0);
  return `${plural(cohorts.length, "cohort")}: ${parts.join(", ")}. ${plural(devices, "device")}, ${count(silent)} silent.`;
}

const PUBLISHING = { on: "on", paused: "paused", pinned: "pinned", stopped: "stopped" };

/** What publishing is, in a word. @param {any} cohort */
export const publishing = (cohort) => PUBLISHING[cohort.publishing] ?? cohort.publishing ?? "–";

function Card({ cohort }) {
  const { cohort: name, devices = {}, day = {} } = cohort;
  const address = `#/c/${encodeURIComponent(name)}`;
  return html`<article class="card level-edge-${cohort.level}" aria-label=${`Cohort ${name}`}>
    <div class="card-text">
      <header><h2><a href=${address}>${name}</a></h2><${Level} level=${cohort.level} /></header>
      <p class="sentence">${cohort.sentence}</p>
      <${Problems} problems=${cohort.problems} level=${cohort.level} />
      <${Facts} facts=${[
        ["Version", version(cohort.version), html`<${Ago} at=${cohort.version_at} />`],
        ["Publishing", publishing(cohort), cohort.act ? `${cohort.act.act.type} waits` : cohort.rollout?.state === "open" ? `${version(cohort.rollout.version)} on ${cohort.rollout.mode === "canary" ? "canary devices" : "no device yet"}` : null],
        ["Devices", html`<a href=${`${address}/devices`}>${count(devices.registered)}</a>`, `${count(devices.silent)} silent`],
        ["Sent in 24 h", bytes(day.bytes_up), `${count(day.samples)} samples`],
        ["Fetched in 24 h", bytes(day.bytes_down)],
        ["Cost a day", money(day.cost, day.currency), day.cost === null || day.cost === undefined ? "no prices set" : null],
      ]} />
    </div>
    <div class="card-chart"><${DayChart} cohort=${cohort} /></div>
  </article>`;
}

/** What is wrong, one line each. */
export const Problems = ({ problems, level = "bad" }) =>
  problems?.length ? html`<ul class=${`problems ${level}`}>${problems.map((/** @type {string} */ text, /** @type {number} */ i) => html`<li key=${i}>${text}</li>`)}</ul>` : null;

/** Agreement over the last day. */
function DayChart({ cohort }) {
  const from = useHistory(cohort.cohort, DAY, { points: 144, every: 60, on: cohort.changed });
  return html`<${Loaded} from=${from} lines=${6}>${(/** @type {any} */ history) => html`<${Drawn} history=${history} name=${cohort.cohort} />`}<//>`;
}

function Drawn({ history, name }) {
  const shown = useMemo(() => readable(history, "agreement.running", { least: 120, most: 144 }), [history]);
  const lines = useMemo(() => agreementLines(shown), [shown]);
  if (!lines.length) {
    return html`<${Empty} title="No samples in the last 24 hours.">Agreement is drawn once devices send samples. Is a device set up? <code>cema device add</code> adds one.<//>`;
  }
  return html`<${Chart} title=${`Agreement with the foundation model in ${name}, 24 hours`} at=${shown.at} lines=${lines} x=${timeOf(shown)}
    y=${SHARE} versions=${shown.versions} domains=${shown.domains} height=${168} gap=${shown.seconds * 3.5} />`;
}

const SHARE = { share: true };
