/** Who did what, when, and what came of it. */

import { at, useData } from "cema/api.js";
import { described, outcome } from "cema/acts.js";
import { actor, bytes, count, moment, words } from "cema/format.js";
import { CohortHead, address } from "cema/head.js";
import { useCohort } from "cema/live.js";
import { Ago, Empty, Loaded, Panel, Scrolled, html } from "cema/ui.js";

const MOST = 100;
const LEVEL = { waiting: "waiting", done: "done", superseded: "muted", failed: "failed" };

export function ActsRecord({ cohort }) {
  const changed = useCohort(cohort)?.changed ?? null;
  const acts = useData(`${at(cohort, "acts")}?limit=${MOST}`, { every: 30, on: changed });
  const deletions = useData(`${at(cohort, "deletions")}?limit=${MOST}`, { every: 60, on: changed });
  return html`<${CohortHead} cohort=${cohort} view="acts" title="Acts" />
    <div class="panels">
      <${Panel} wide title="Acts on versions"><${Loaded} from=${acts}>${(/** @type {any} */ data) => html`<${Acts} acts=${data.acts} />`}<//><//>
      <${Panel} wide title="Deletions of data"><${Loaded} from=${deletions}>${(/** @type {any} */ data) => html`<${Deletions} deletions=${data.deletions} />`}<//><//>
    </div>`;
}

function Acts({ acts }) {
  if (!acts.length) return html`<${Empty} title="Nobody has acted yet.">Acts such as rolling back are on the view State, and each is listed here for ever.<//>`;
  return html`<${Scrolled} label="Acts on versions"><table class="record"><caption class="unseen">Acts on versions, the newest first</caption>
    <thead><tr><th scope="col" class="number">No.</th><th scope="col">Act</th><th scope="col">Who</th><th scope="col">When</th><th scope="col">What came of it</th></tr></thead>
    <tbody>${acts.map((/** @type {any} */ act) => html`<tr key=${act.number}><td class="number">${act.number}</td><th scope="row">${described(act.act)}</th><td>${actor(act.actor)}</td>
      <td><${When} at=${act.at} /></td><td><span class=${`state ${LEVEL[act.state] ?? ""}`}>${outcome(act)}</span>${act.done_at ? html` <small><${Ago} at=${act.done_at} /></small>` : null}</td></tr>`)}</tbody></table><//>`;
}

const FEW = 6;

/** The newest acts, beside what they may explain. */
export function LatestActs({ cohort }) {
  const changed = useCohort(cohort)?.changed ?? null;
  const acts = useData(`${at(cohort, "acts")}?limit=${FEW}`, { every: 60, on: changed });
  return html`<${Panel} title="Latest acts" aside=${html`<a href=${address(cohort, "acts")}>All acts</a>`}>
    <${Loaded} from=${acts}>${(/** @type {any} */ data) => (data.acts.length ? html`<ul class="latest">${data.acts.slice(0, FEW).map((/** @type {any} */ act) => html`<li key=${act.number}>
      <b>${described(act.act)}</b> <span class=${`state ${LEVEL[act.state] ?? ""}`}>${outcome(act)}</span><small>${actor(act.actor)}, <${Ago} at=${act.at} /></small></li>`)}</ul>` : html`<p class="note">Nobody has acted on this cohort yet.</p>`)}<//>
  <//>`;
}

const When = ({ at }) => html`${moment(at)} <small><${Ago} at=${at} /></small>`;

function Deletions({ deletions }) {
  if (!deletions.length) return html`<p class="note">None.</p>`;
  const told = (/** @type {any} */ filter) => Object.entries(filter ?? {}).map(([name, value]) => (name === "all" ? "all samples" : `${words(name)} ${value}`)).join(", ");
  return html`<${Scrolled} label="Deletions of data"><table class="record"><caption class="unseen">Deletions, the newest first</caption>
    <thead><tr><th scope="col" class="number">No.</th><th scope="col">What</th><th scope="col" class="number">Samples</th><th scope="col">Who</th><th scope="col">When</th><th scope="col">State</th></tr></thead>
    <tbody>${deletions.map((/** @type {any} */ one) => html`<tr key=${one.number}><td class="number">${one.number}</td><th scope="row">${told(one.filter)}</th><td class="number">${count(one.samples)} <small>${bytes(one.bytes)}</small></td><td>${actor(one.actor)}</td><td><${When} at=${one.at} /></td>
      <td><span class=${`state ${one.state === "done" ? "done" : "waiting"}`}>${words(one.state)}</span>${one.note ? html` <small>${one.note}</small>` : null}</td></tr>`)}</tbody></table><//>`;
}
