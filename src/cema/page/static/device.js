/** One device: what it says of itself, what it has and sent, and what can be done with it. */

import { useState } from "preact/hooks";
import { at, useData } from "cema/api.js";
import { ActDialog } from "cema/dialog.js";
import { standing } from "cema/devices.js";
import { bytes, capital, count, decimal, duration, moment, percent, short, version, words } from "cema/format.js";
import { CohortHead } from "cema/head.js";
import { useCohort, useMayAct } from "cema/live.js";
import { Problems } from "cema/overview.js";
import { Act, Ago, Empty, Facts, Level, Loaded, Panel, html } from "cema/ui.js";
import { Wall } from "cema/wall.js";

export function Device({ cohort: name, device: of }) {
  const cohort = useCohort(name);
  const [asked, ask] = useState(/** @type {any} */ (null));
  const from = useData(at(name, "devices", of), { every: 20, on: cohort?.changed ?? null });
  const versions = useData(at(name, "versions"), { on: cohort?.version ?? null });
  const status = useData(at(name, "status"), { every: 20, on: cohort?.changed ?? null });
  const done = () => {
    ask(null);
    from.reload();
    status.reload();
  };
  return html`<${CohortHead} cohort=${name} view="device" title=${of}>
      ${from.data ? html`<${Level} level=${from.data.level ?? "ok"} />${standing(from.data) ? html`<span class="tag">${standing(from.data)}</span>` : null}` : null}
    <//>
    <${Loaded} from=${from} lines=${8}>${(/** @type {any} */ device) => html`<${Whole} cohort=${name} device=${device} pinned=${status.data?.pinned} ask=${ask} />`}<//>
    ${asked ? html`<${ActDialog} cohort=${cohort ?? { cohort: name }} asked=${{ ...asked, device: of }} versions=${versions.data?.versions ?? []} onClose=${done} />` : null}`;
}

function Whole({ cohort, device, pinned, ask }) {
  const { report } = device;
  const pin = pinned?.[device.name];
  return html`<${Problems} problems=${device.problems} level=${device.level} />
    <${Facts} large facts=${[
      ["Last seen", html`<${Ago} at=${device.seen_at} />`, device.reported_at ? html`reported <${Ago} at=${device.reported_at} />` : null],
      ["Has", version(device.has), pin === undefined ? null : `pinned to ${version(pin)}`],
      ["Runs", version(device.ran ?? report?.serving?.version)],
      ["Samples sent", count(device.samples), html`last <${Ago} at=${device.received_at} />`],
      ["Bytes sent", bytes(device.bytes)],
    ]} />
    <${Deeds} device=${device} pinned=${pinned} ask=${ask} />
    <div class="panels">
      <${Serving} report=${report} />
      <${Counts} report=${report} device=${device} />
      <${Adopted} adopted=${device.adopted} />
      <div class="stack"><${Telemetry} device=${device} /><${Token} device=${device} /></div>
      <${Wall} cohort=${cohort} device=${device.name} on=${device.samples} />
    </div>`;
}

const DEEDS = [["pin", "Pin a version"], ["unpin", "End its pin"], ["quarantine", "Quarantine"], ["unquarantine", "Release from quarantine"], ["revoke", "Revoke", "danger"]];

function Deeds({ device, pinned, ask }) {
  const why = useMayAct();
  const useless = (/** @type {string} */ type) => {
    if (why) return why;
    if (device.revoked_at) return "It is revoked.";
    if (type === "unpin" && pinned && !(device.name in pinned)) return "It is not pinned.";
    if (type === "quarantine" && device.quarantined_at) return "It is quarantined already.";
    if (type === "unquarantine" && !device.quarantined_at) return device.quarantined_by_worker ? "The worker has quarantined it, and releases it by itself." : "It is not quarantined.";
    return "";
  };
  return html`<section class="acts" aria-label="Acts on this device">
    ${DEEDS.map(([type, label, tone]) => html`<${Act} key=${type} label=${label} tone=${tone ?? ""} why=${useless(type)} onClick=${() => ask({ type })} />`)}
    ${why ? html`<p class="note">${why}</p>` : null}
  </section>`;
}

/** What the version does there, beside the one before. */
function Serving({ report }) {
  if (!report?.serving) return html`<${Panel} title="Versions and guard"><${Empty} title="No report has come.">Devices report once a minute. Those that run an older CEMA do not.<//><//>`;
  const { serving, before, refused } = report;
  const column = (/** @type {any} */ one) => [count(one?.predicted), one?.predicted ? percent(one.guarded / one.predicted) : "–", one?.predicted > one?.guarded ? decimal(one.entropy) : "–"];
  const [now, then] = [column(serving), column(before)];
  const rows = ["Images predicted", "Guarded: by the source model", "Mean entropy, nats"];
  return html`<${Panel} title="Versions and guard" note="What each version did on this device since it began to serve there.">
    <table class="plain"><thead><tr><td></td><th scope="col" class="number">${version(serving.version)} serves</th><th scope="col" class="number">${before ? `${version(before.version)} before` : "none before"}</th></tr></thead>
      <tbody>${rows.map((row, i) => html`<tr key=${row}><th scope="row">${row}</th><td class="number">${now[i]}</td><td class="number">${then[i]}</td></tr>`)}</tbody></table>
    ${refused ? html`<p class="notice">It refused ${refused.version ? version(refused.version) : "an update"}: ${words(refused.reason)}.</p>` : null}
  <//>`;
}

/** Counters of the device's life; of the spool what came in and what went out. */
function Counts({ report, device }) {
  const counts = Object.entries(report?.counts ?? {});
  if (!counts.length) return html`<${Panel} title="Counters and spool"><${Empty} title="No counters are known.">They come with the device's reports.<//><//>`;
  const { selected = 0, uploaded = 0, dropped = 0 } = report.counts;
  const waiting = Math.max(0, selected - uploaded - dropped);
  return html`<${Panel} title="Counters and spool" note=${`Of its whole life. ${count(waiting)} selected samples were neither uploaded nor dropped when it last reported.`}>
    <${Facts} facts=${counts.map(([name, value]) => [capital(words(name)), count(/** @type {number} */ (value))])} />
    ${device.reports ? html`<p class="note">${count(device.reports.received)} reports came, ${count(device.reports.lost)} were lost.</p>` : null}
  <//>`;
}

const TOLD = new Set(["format", "boot", "number", "serving", "before", "refused", "counts", "problem", "sent_at"]);

/** What else a device tells, by the names that it gave it: members may be added that this page does not know. */
function Telemetry({ device }) {
  const members = { ...(device.telemetry ?? {}), ...Object.fromEntries(Object.entries(device.report ?? {}).filter(([name]) => !TOLD.has(name))) };
  const facts = leaves(members);
  const { report } = device;
  if (!report && !facts.length) return null;
  return html`<${Panel} title="Telemetry"><${Facts} facts=${[
    report?.problem ? ["In its own words", report.problem] : null,
    ["Clock", device.clock_offset === null || device.clock_offset === undefined ? "–" : `${duration(Math.abs(device.clock_offset))} ${device.clock_offset < 0 ? "behind" : "ahead"}`],
    report?.number ? ["Reports since it started", count(report.number)] : null,
    ...facts,
  ]} /><//>`;
}

/** @param {any} value @param {string} [path] @returns {[string, string][]} */
function leaves(value, path = "") {
  if (value === null || value === undefined) return [];
  if (typeof value === "object") return Object.entries(value).flatMap(([name, inner]) => leaves(inner, path ? `${path} ${words(name)}` : capital(words(name))));
  return [[path, typeof value === "number" ? (path.includes("bytes") ? bytes(value) : short(value)) : String(value)]];
}

const FEW = 8;

function Adopted({ adopted }) {
  const [all, setAll] = useState(false);
  if (!adopted?.length) return html`<${Panel} title="Versions fetched"><p class="note">None that is known.</p><//>`;
  return html`<${Panel} title="Versions fetched"><table class="plain"><thead><tr><th scope="col">Version</th><th scope="col">Fetched</th></tr></thead>
    <tbody>${(all ? adopted : adopted.slice(0, FEW)).map((/** @type {any} */ one) => html`<tr key=${one.version}><th scope="row">${version(one.version)}</th><td>${moment(one.fetched_at)} (<${Ago} at=${one.fetched_at} />)</td></tr>`)}</tbody></table>
    ${adopted.length > FEW ? html`<button type="button" class="button quiet" onClick=${() => setAll(!all)}>${all ? "Show the newest only" : `Show all ${adopted.length}`}</button>` : null}<//>`;
}

function Token({ device }) {
  const limits = Object.entries(device.limits ?? {}).filter(([, value]) => value !== null);
  return html`<${Panel} title="Token and limits"><${Facts} facts=${[
    ["Added", moment(device.created_at), html`<${Ago} at=${device.created_at} />`],
    ["Token expires", device.expires_at ? moment(device.expires_at) : "never"],
    device.older_token_until ? ["Older token until", moment(device.older_token_until)] : null,
    device.quarantined_at ? ["Quarantined", moment(device.quarantined_at), `by ${device.quarantined_by}`] : null,
    device.revoked_at ? ["Revoked", moment(device.revoked_at)] : null,
    ...limits.map(([name, value]) => [capital(words(name)), value === 0 ? "no limit" : name.startsWith("bytes") ? bytes(/** @type {number} */ (value)) : count(/** @type {number} */ (value))]),
    limits.length ? null : ["Limits", "as configured"],
  ]} /><//>`;
}
