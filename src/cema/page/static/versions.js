/** The versions of a cohort: when each came, how it does, who has it; and what one of them changed. */

import { useMemo, useState } from "preact/hooks";
import { at, useData } from "cema/api.js";
import { bytes, capital, count, decimal, duration, moment, percent, plural, short, version, words } from "cema/format.js";
import { useMayAct } from "cema/live.js";
import { isTaken } from "cema/marks.js";
import { Bars, Histogram } from "cema/plots.js";
import { Act, Ago, Empty, Facts, Loaded, Panel, Scrolled, Segmented, html } from "cema/ui.js";

const FEW = 8;
/** Of so many of the newest versions it is asked who has them. */
const ADOPTED = 5;

export function Versions({ cohort, from, history, chosen, choose, ask }) {
  const [all, setAll] = useState(false);
  const kinds = useMemo(() => new Map((history?.versions ?? []).map((/** @type {any} */ one) => [one.version, one.kind])), [history]);
  return html`<${Panel} wide title="Versions" note="Each row is an update that devices were offered, the newest first. Select one to see what it changed.">
    <${Loaded} from=${from}>${(/** @type {any} */ data) => {
      const versions = [...data.versions].sort((a, b) => b.version - a.version);
      if (!versions.length) return html`<${Empty} title="No version yet.">The first one comes when the gate has enough samples and the adapted model is not worse. Devices run the source model until then.<//>`;
      const shown = all ? versions : versions.slice(0, FEW);
      const current = chosen ?? versions[0].version;
      return html`<${Scrolled} label="Versions"><table class="versions"><caption class="unseen">Versions, the newest first</caption>
        <thead><tr><th scope="col">Version</th><th scope="col">How it came</th><th scope="col">When</th><th scope="col" class="number">Agreement</th><th scope="col" class="number wide-only">Unadapted</th><th scope="col">Adoption</th><th scope="col" class="number wide-only">Size</th></tr></thead>
        <tbody>${shown.map((one, i) => html`<${Row} key=${one.version} cohort=${cohort} one=${one} kind=${kinds.get(one.version)} asked=${i < ADOPTED} chosen=${one.version === current} choose=${choose} />`)}</tbody></table><//>
        ${versions.length > FEW ? html`<button type="button" class="button quiet" onClick=${() => setAll(!all)}>${all ? "Show the newest only" : `Show all ${versions.length}`}</button>` : null}
        <${Detail} key=${current} cohort=${cohort} number=${current} newest=${versions[0].version} ask=${ask} />`;
    }}<//>
  <//>`;
}

const KINDS = { learned: "learned", reverted: "went back", "taken back": "taken back", renewed: "signed anew", rollback: "rolled back", pin: "pinned", stop: "stopped", resume: "resumed" };

/** How a version came, and whose content it has where it has that of an earlier one. @param {any} one @param {string|undefined} kind */
function told(one, kind) {
  if (!kind) return "–";
  const of = one.trace?.content_of;
  return `${KINDS[kind] ?? words(kind)}${typeof of === "number" && kind !== "learned" ? ` to ${of ? version(of) : "the source"}` : ""}`;
}

function Row({ cohort, one, kind, asked, chosen, choose }) {
  const detail = useData(asked ? at(cohort, "versions", String(one.version)) : null, { every: 60 });
  const { running, source } = one.agreement ?? {};
  const came = one.trace?.kind ?? kind;
  return html`<tr class=${chosen ? "chosen" : ""}>
    <th scope="row"><button type="button" class="link" aria-pressed=${chosen ? "true" : "false"} onClick=${() => choose(one.version)}>${version(one.version)}</button></th>
    <td><span class=${isTaken(came) ? "kind taken" : "kind"}>${told(one, came)}</span></td>
    <td><${Ago} at=${one.created} /></td>
    <td class="number">${percent(running?.share)}</td>
    <td class="number wide-only">${percent(source?.share)}</td>
    <td><${Adoption} adoption=${detail.data?.adoption} /></td>
    <td class="number wide-only">${bytes(one.payload_bytes)}</td>
  </tr>`;
}

function Adoption({ adoption }) {
  if (!adoption) return html`<span class="muted">–</span>`;
  if (!adoption.offered) return html`<span class="muted">${adoption.runs ? `${count(adoption.runs)} still run it` : "nobody now"}</span>`;
  const share = adoption.offered ? adoption.runs / adoption.offered : 0;
  return html`<span class="adoption"><span class="meter" aria-hidden="true"><i style=${{ width: `${Math.min(100, share * 100)}%` }}></i></span>
    <span>${count(adoption.runs)} of ${count(adoption.offered)}</span></span>`;
}

/** What one version changed. */
function Detail({ cohort, number, newest, ask }) {
  const from = useData(at(cohort, "versions", String(number)), { every: 60 });
  const why = useMayAct();
  return html`<section class="detail" aria-label=${`Version ${number}`}>
    <header><h3>What ${version(number)} changed</h3>
      <span class="acts">
        ${number === newest ? null : html`<${Act} label="Roll back to it" describe=${`Roll back to version ${number}`} why=${why} onClick=${() => ask({ type: "rollback", to: number })} />`}
        <${Act} label="Pin it" describe=${`Pin version ${number}`} why=${why} onClick=${() => ask({ type: "pin", to: number })} />
        <${Act} label="Release it" describe=${`Release version ${number}`} why=${why} onClick=${() => ask({ type: "release", to: number })} />
      </span></header>
    <${Loaded} from=${from} lines=${6}>${(/** @type {any} */ data) => html`<${Changed} data=${data} />`}<//>
  </section>`;
}

function Changed({ data }) {
  const [since, setSince] = useState("before");
  const { trace, adoption, class_names: names } = data;
  const moved = (since === "before" ? data.moved_since : data.moved) ?? data.moved ?? [];
  return html`<${Facts} facts=${[
      ["Made", moment(data.created), html`<${Ago} at=${data.created} />`],
      data.expires ? ["Expires", moment(data.expires)] : null,
      ["Size", bytes(data.payload_bytes)],
      adoption ? ["Offered to", count(adoption.offered), `${count(adoption.has)} fetched it, ${count(adoption.runs)} run it`] : null,
      ...traced(trace),
    ]} />
    <div class="pair">
      <div><h4>Predictions on the gate's samples</h4>
        ${trace?.predictions ? html`<${Histogram} predictions=${trace.predictions} names=${names} />` : html`<p class="note">Not known for this version.</p>`}</div>
      <div><div class="heading-line"><h4>Parameters that moved most</h4>
        <${Segmented} legend="Compared with" name="since" options=${[["before", "since the version before"], ["source", "since the source"]]} value=${since} onChange=${setSince} /></div>
        ${moved.length ? html`<${Bars} caption="Relative change of normalisation parameters" format=${(/** @type {any} */ value) => percent(value, 1)} bars=${moved.slice(0, 10).map((/** @type {any} */ one) => ({ name: one.name, value: one.relative, note: `rms ${short(one.rms)}` }))} />` : html`<p class="note">Not known for this version.</p>`}</div>
    </div>
    <${Agreements} agreement=${data.agreement} />`;
}

/** The facts of a trace. @param {any} trace */
function traced(trace) {
  if (!trace) return [];
  const steps = (trace.steps?.length ?? 0) + (trace.steps_left_out ?? 0);
  const outcomes = Object.entries(trace.outcomes ?? {}).map(([name, n]) => `${words(name)} ${n}`).join(", ");
  const devices = Math.max(0, ...(trace.steps ?? []).map((/** @type {any} */ step) => step.devices ?? 0));
  return [
    ["Learned from", count(trace.samples), `${trace.samples === 1 ? "sample" : "samples"} in ${plural(steps, "step")}${trace.replays ? `, ${plural(trace.replays, "replay")}` : ""}`],
    devices ? ["Devices in a step", count(devices), "at most"] : null,
    trace.published_at && trace.since ? ["Took", duration(trace.published_at - trace.since), trace.evidence_at ? `evidence after ${duration(trace.evidence_at - trace.since)}` : "no new evidence"] : null,
    outcomes ? ["The gate said", outcomes] : null,
    ...Object.entries(trace.reasons ?? {}).map(([device, reason]) => [`Spoiled ${device}`, String(reason)]),
    typeof trace.distance === "number" ? ["Domain's distance", decimal(trace.distance, 1)] : null,
  ].filter(Boolean);
}

const NAMES = { device: "On devices", running: "This version", adapted: "In training then", source: "Unadapted" };

function Agreements({ agreement }) {
  const models = Object.entries(agreement ?? {});
  if (!models.length) return null;
  return html`<div><h4>Agreement with the foundation model while it was the newest</h4>
    <${Bars} caption="Agreement while it was the newest version" most=${1} format=${(/** @type {any} */ value) => percent(value)} bars=${models.map(([model, one]) => ({ key: model, name: NAMES[model] ?? capital(model), value: one.share, low: one.low, high: one.high, main: model === "running" }))} /></div>`;
}
