/** One cohort: whether it gets worse, why, what the last version changed, and what can be done. */

import { useMemo, useState } from "preact/hooks";
import { at, useData } from "cema/api.js";
import { ActDialog } from "cema/dialog.js";
import { Domains } from "cema/domains.js";
import { Bytes, Entropy, Losses, Reasons } from "cema/why.js";
import { Chart } from "cema/chart.js";
import { bytes, count, money, moment, percent, plural, version } from "cema/format.js";
import { CohortHead } from "cema/head.js";
import { timeOf, useHistory } from "cema/history.js";
import { MODELS, agreementLines } from "cema/lines.js";
import { useCohort, useMayAct } from "cema/live.js";
import { Problems, publishing } from "cema/overview.js";
import { Bars } from "cema/plots.js";
import { readable } from "cema/stats.js";
import { LatestActs } from "cema/record.js";
import { Act, Ago, Empty, Facts, Loaded, Panel, Segmented, html } from "cema/ui.js";
import { Versions } from "cema/versions.js";
import { Wall } from "cema/wall.js";

const RANGES = { "1h": 3600, "24h": 86_400, "7d": 604_800, "31d": 2_678_400 };
const LABELS = [["1h", "1 h"], ["24h", "24 h"], ["7d", "7 d"], ["31d", "31 d"]];
const SHARE = { share: true };

export function Cohort({ cohort: name }) {
  const cohort = useCohort(name);
  const [range, setRange] = useState("24h");
  const [asked, ask] = useState(/** @type {any} */ (null));
  const [chosen, choose] = useState(/** @type {number|null} */ (null));
  const history = useHistory(name, RANGES[range], { points: 300, every: range === "1h" ? 15 : 60, on: cohort?.changed ?? null });
  const versions = useData(at(name, "versions"), { on: cohort ? `${cohort.version} ${cohort.publishing}` : null });
  const ranged = html`<${Segmented} legend="Time shown" name="range" options=${LABELS} value=${range} onChange=${setRange} />`;
  return html`<${CohortHead} cohort=${name} view="cohort" />
    ${cohort ? html`<${Now} cohort=${cohort} ask=${ask} />` : null}
    <div class="panels">
      <${Panel} wide title="Is it getting worse?" note="The share of samples on which each model chose the foundation model's label. The band is the interval of 95 % of the running version." aside=${ranged}>
        <${Loaded} from=${history} lines=${8}>${(/** @type {any} */ data) => html`<${Agreement} history=${data} name=${name} seconds=${RANGES[range]} />`}<//>
        ${cohort ? html`<${Newest} cohort=${cohort} />` : null}
      <//>
      <${Loaded} from=${history}>${(/** @type {any} */ data) => html`<${Why} history=${data} name=${name} />`}<//>
      <${Versions} cohort=${name} from=${versions} history=${history.data} chosen=${chosen} choose=${choose} ask=${ask} />
      <${Domains} cohort=${name} newest=${cohort?.version} choose=${choose} chosen=${chosen} />
      <${LatestActs} cohort=${name} />
      <${Wall} cohort=${name} on=${cohort ? `${cohort.samples} ${cohort.last_step_at}` : null} />
    </div>
    ${asked ? html`<${ActDialog} cohort=${cohort ?? { cohort: name }} asked=${asked} versions=${versions.data?.versions ?? []} onClose=${() => ask(null)} />` : null}`;
}

const ACTS = [["pause", "Pause"], ["resume", "Resume"], ["canary", "Canary share"], ["rollback", "Roll back"], ["pin", "Pin"], ["stop", "Stop", "danger"], ["deletion", "Delete data", "danger"]];

/** What holds now, and what can be done about it. */
function Now({ cohort, ask }) {
  const why = useMayAct();
  const { devices = {}, day = {}, rollout, act } = cohort;
  const useless = (/** @type {string} */ type) => {
    if (why) return why;
    if (type === "resume" && cohort.publishing === "on") return "It publishes already.";
    if (type === "pause" && cohort.publishing !== "on") return `Nothing is published already: it is ${publishing(cohort)}.`;
    if (["rollback", "pin"].includes(type) && !cohort.version) return "There is no version yet.";
    return "";
  };
  return html`<${Problems} problems=${cohort.problems} level=${cohort.level} />
    <${Facts} large facts=${[
      ["Version", version(cohort.version), html`<${Ago} at=${cohort.version_at} />`],
      ["Publishing", publishing(cohort), act ? `${act.act.type} waits` : null],
      ["Devices", count(devices.seen), `of ${count(devices.registered)}, ${count(devices.silent)} silent`],
      ["Quarantined", count(devices.quarantined), `${count(devices.revoked)} revoked`],
      ["Waiting samples", count(cohort.backlog), html`last step <${Ago} at=${cohort.last_step_at} />`],
      ["Sent in 24 h", bytes(day.bytes_up), `${count(day.samples)} samples`],
      ["Fetched in 24 h", bytes(day.bytes_down)],
      ["Cost a day", money(day.cost, day.currency), day.cost === null || day.cost === undefined ? "no prices set" : null],
    ]} />
    ${rollout?.state === "open" ? html`<p class="notice">Version ${rollout.version} is tried by ${count(rollout.devices?.length ?? 0)} devices since <${Ago} at=${rollout.began} />. All others have ${version(rollout.before)}.
      <${Act} label=${`Release ${version(rollout.version)}`} why=${why} onClick=${() => ask({ type: "release", to: rollout.version })} /></p>` : null}
    <section class="acts" aria-label="Acts on this cohort">
      ${ACTS.map(([type, label, tone]) => html`<${Act} key=${type} label=${label} tone=${tone ?? ""} why=${useless(type)} onClick=${() => ask({ type })} />`)}
      ${why ? html`<p class="note">${why}</p>` : null}
    </section>`;
}

function Agreement({ history, name, seconds }) {
  const shown = useMemo(() => readable(history, "agreement.running", { least: 60 }), [history]);
  const lines = useMemo(() => agreementLines(shown, { models: ["running", "adapted", "device", "source"] }), [shown]);
  if (!lines.length) return html`<${Empty} title="No agreement is known in this time.">Choose a longer time. If there are no samples at all: is a device running, and does it select any? Its status says so.<//>`;
  const time = timeOf(shown);
  return html`${shown.until - time.from < 0.9 * seconds ? html`<p class="note">Nothing is known of before ${moment(time.from)}.</p>` : null}<${Chart} title=${`Agreement with the foundation model in ${name}`} at=${shown.at} lines=${lines} x=${time} y=${SHARE}
    versions=${shown.versions} domains=${shown.domains} height=${260} sync=${`cohort-${name}`} gap=${shown.seconds * 3.5} />`;
}

const share = (/** @type {any} */ value) => percent(value);

/** The agreement of the newest samples, with its uncertainty. */
function Newest({ cohort }) {
  const { agreement = {}, random_agreement: random = {} } = cohort;
  const models = Object.keys(MODELS).filter((model) => agreement[model] || random[model]);
  if (!models.length) return null;
  const bars = (/** @type {any} */ of) => models.filter((model) => of[model]).map((model) => ({ key: model, name: MODELS[model], value: of[model].share, low: of[model].low, high: of[model].high, main: model === "running" }));
  const size = (/** @type {any} */ of) => plural(Math.max(...Object.values(of).map((one) => one.samples)), "sample");
  return html`<div class="pair newest">
    <div><h3>Now, on samples that devices chose</h3><p class="note">The newest ${size(agreement)}.</p>${Object.keys(agreement).length ? html`<${Bars} caption="Agreement on samples that devices chose" most=${1} format=${share} bars=${bars(agreement)} />` : null}</div>
    ${Object.keys(random).length ? html`<div><h3>Now, on all that devices see</h3><p class="note">Estimated from ${size(random)} that were drawn by chance.</p><${Bars} caption="Agreement on all that devices see" most=${1} format=${share} bars=${bars(random)} /></div>` : null}
  </div>`;
}

/** What explains a change: how sure devices are, what they select, what is learned, what it costs. */
function Why({ history, name }) {
  const shown = useMemo(() => readable(history, "entropy", { most: 160 }), [history]);
  const sync = `cohort-${name}`;
  return html`<${Entropy} history=${shown} sync=${sync} /><${Reasons} history=${shown} sync=${sync} />
    <${Losses} history=${shown} sync=${sync} /><${Bytes} history=${shown} sync=${sync} />`;
}
