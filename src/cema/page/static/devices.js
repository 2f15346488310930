/** The devices of a cohort, those with a problem first; searched and paged by the cloud. */

import { useEffect, useRef, useState } from "preact/hooks";
import { at, useData } from "cema/api.js";
import { bytes, count, version } from "cema/format.js";
import { CohortHead, address } from "cema/head.js";
import { useCohort } from "cema/live.js";
import { Ago, Empty, Failure, Level, Segmented, announce, html } from "cema/ui.js";

const PAGE = 50;

export function Devices({ cohort }) {
  const [order, setOrder] = useState("trouble");
  const [search, setSearch] = useState("");
  const [page, setPage] = useState(0);
  const changed = useCohort(cohort)?.changed ?? null;
  const query = new URLSearchParams({ order, limit: String(PAGE), offset: String(page * PAGE), ...(search ? { search } : {}) });
  const from = useData(`${at(cohort, "devices")}?${query}`, { every: 30, on: changed });
  // The rows stay, greyed, until those of another page or search are here.
  const shown = useRef(/** @type {any} */ (null));
  if (from.data) shown.current = from.data;
  const data = shown.current;
  useEffect(() => {
    if (from.data && search) announce(`${count(from.data.total)} devices found.`);
  }, [from.data, search]);
  const find = (/** @type {string} */ text) => {
    setSearch(text);
    setPage(0);
  };
  return html`<${CohortHead} cohort=${cohort} view="devices" title="Devices" />
    <div class="tools" role="search" aria-label="Devices">
      <${Search} onFind=${find} />
      <${Segmented} legend="Order" name="order" options=${[["trouble", "Problems first"], ["name", "By name"]]} value=${order} onChange=${(/** @type {string} */ key) => { setOrder(key); setPage(0); }} />
    </div>
    ${from.error ? html`<${Failure} error=${from.error} />` : null}
    ${data ? html`<${Rows} cohort=${cohort} data=${data} search=${search} old=${from.data === null} />
      <${Pages} total=${data.total ?? data.devices.length} page=${page} turn=${setPage} />` : html`<div class="loading" role="status" aria-label="Loading"><span /><span /><span /><span /></div>`}`;
}

/** A search that asks when typing has stopped for a moment. */
function Search({ onFind }) {
  const timer = useRef(0);
  const typed = (/** @type {any} */ event) => {
    const text = event.currentTarget.value.trim();
    clearTimeout(timer.current);
    timer.current = setTimeout(() => onFind(text), 250);
  };
  useEffect(() => () => clearTimeout(timer.current), []);
  return html`<label class="search"><span class="unseen">Search by name</span>
    <input type="search" placeholder="Search by name" autocomplete="off" spellcheck=${false} onInput=${typed} /></label>`;
}

function Rows({ cohort, data, search, old }) {
  if (!data.devices.length) {
    return search ? html`<${Empty} title=${`No device's name has "${search}" in it.`}>Try a shorter part of the name.<//>`
      : html`<${Empty} title="This cohort has no device yet.">Add one where the cloud runs: <code>cema device add NAME --cohort ${cohort}</code>. It prints the token that goes into the device's edge.toml.<//>`;
  }
  return html`<table class=${old ? "devices old" : "devices"}><caption class="unseen">Devices of ${cohort}</caption>
    <thead><tr><th scope="col">Device</th><th scope="col">State</th><th scope="col" class="wide-only">What is wrong</th><th scope="col">Seen</th><th scope="col" class="number wide-only">Has</th><th scope="col" class="number wide-only">Runs</th><th scope="col" class="number wide-only">Samples</th><th scope="col" class="number wide-only">Sent</th></tr></thead>
    <tbody>${data.devices.map((/** @type {any} */ device) => html`<${Row} key=${device.name} cohort=${cohort} device=${device} />`)}</tbody></table>`;
}

/** What a device is, when it is not simply a device. @param {any} device */
export function standing(device) {
  if (device.revoked_at) return "Revoked";
  if (device.quarantined_at || device.quarantined_by_worker) return "Quarantined";
  return device.role && device.role !== "device" ? device.role : "";
}

function Row({ cohort, device }) {
  const problems = device.problems ?? [];
  const special = standing(device);
  return html`<tr class=${`row-${device.level ?? "ok"}`}>
    <th scope="row">${device.role && device.role !== "device" ? device.name : html`<a href=${address(cohort, "d", device.name)}>${device.name}</a>`}
      ${problems.length ? html`<span class="narrow-only why">${problems.join("; ")}</span>` : null}</th>
    <td><${Level} level=${device.level ?? "ok"} />${special ? html` <span class="tag">${special}</span>` : null}</td>
    <td class="wide-only why">${problems.join("; ")}</td>
    <td><${Ago} at=${device.seen_at} /></td>
    <td class="number wide-only">${version(device.has)}</td><td class="number wide-only">${version(device.ran)}</td>
    <td class="number wide-only">${count(device.samples)}</td><td class="number wide-only">${bytes(device.bytes)}</td>
  </tr>`;
}

function Pages({ total, page, turn }) {
  const last = Math.max(0, Math.ceil(total / PAGE) - 1);
  const from = total ? page * PAGE + 1 : 0;
  return html`<nav class="pages" aria-label="Pages of devices">
    <span>${count(from)} to ${count(Math.min(total, (page + 1) * PAGE))} of ${count(total)}</span>
    ${last ? html`<button type="button" class="button" disabled=${page === 0} onClick=${() => turn(page - 1)}>Previous</button>
      <button type="button" class="button" disabled=${page >= last} onClick=${() => turn(page + 1)}>Next</button>` : null}
  </nav>`;
}
