/** What is above each view of one cohort: its name, its state, and the way to its other views. */

import { count, unbroken } from "cema/format.js";
import { useCohort } from "cema/live.js";
import { Level, html } from "cema/ui.js";

/** The address of a view of a cohort. @param {string} cohort @param {string[]} parts */
export const address = (cohort, ...parts) => `#/c/${[cohort, ...parts].map(encodeURIComponent).join("/")}`;

/** @param {{cohort: string, view: "cohort"|"devices"|"device"|"acts", title?: any, children?: any}} props */
export function CohortHead({ cohort: name, view, title = null, children = null }) {
  const cohort = useCohort(name);
  const tabs = [
    ["cohort", "State", address(name)],
    ["devices", `Devices${cohort?.devices ? ` (${count(cohort.devices.registered)})` : ""}`, address(name, "devices")],
    ["acts", "Acts", address(name, "acts")],
  ];
  return html`<nav class="crumbs" aria-label="Where this is"><ol><li><a href="#/">Cohorts</a></li>
      ${title === null ? null : html`<li><a href=${address(name)}>${name}</a></li>`}
      ${view === "device" ? html`<li><a href=${address(name, "devices")}>Devices</a></li>` : null}
      <li aria-current="page">${title ?? name}</li></ol></nav>
    <div class="title"><div class="title-line"><h1 tabindex="-1">${title ?? name}</h1>${view === "cohort" && cohort ? html`<${Level} level=${cohort.level} />` : null}${children}</div>
      ${view === "cohort" && cohort ? html`<p class="lead">${unbroken(cohort.sentence)}</p>` : null}</div>
    ${view === "device" ? null : html`<nav class="tabs" aria-label=${`Views of ${name}`}><ul>
      ${tabs.map(([key, label, link]) => html`<li key=${key}><a href=${link} aria-current=${key === view ? "page" : undefined}>${label}</a></li>`)}
    </ul></nav>`}`;
}
