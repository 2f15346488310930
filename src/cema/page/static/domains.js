/** Where each version's domain lies among the others. */

import { useMemo } from "preact/hooks";
import { at, useData } from "cema/api.js";
import { moment, percent, version } from "cema/format.js";
import { Scatter } from "cema/plots.js";
import { Empty, Loaded, Panel, html } from "cema/ui.js";

export function Domains({ cohort, newest, chosen, choose }) {
  const from = useData(at(cohort, "domains"), { on: newest ?? null });
  return html`<${Panel} title="Domains" note="Each point is the domain that a version was made for, joined in order. Points that are close had like inputs; the large one is the newest.">
    <${Loaded} from=${from}>${(/** @type {any} */ data) => html`<${Map_} data=${data} chosen=${chosen} choose=${choose} />`}<//>
  <//>`;
}

function Map_({ data, chosen, choose }) {
  const points = useMemo(() => data.points.map((/** @type {any} */ point) => ({ x: point.x, y: point.y, key: String(point.version), name: `${version(point.version)}, ${moment(point.at)}` })), [data]);
  if (!points.length) return html`<${Empty} title="No domain is known yet.">A version tells its domain when devices send statistics of their inputs.<//>`;
  const [first, second] = data.explained ?? [];
  const label = `Domains of ${points.length} versions on the two directions that tell most of them apart. The newest is ${points[points.length - 1].name}.`;
  return html`<${Scatter} points=${points} origin=${data.source} label=${label} axes=${[`direction 1 (${percent(first, 0)})`, `direction 2 (${percent(second, 0)})`]}
    chosen=${String(chosen ?? "")} onChoose=${(/** @type {string} */ key) => choose(Number(key))} />`;
}
