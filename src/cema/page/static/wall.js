/** The newest samples: the image, what the edge and the foundation model call it, and whether they agree. */

import { useState } from "preact/hooks";
import { at, useData } from "cema/api.js";
import { count, decimal, percent, version } from "cema/format.js";
import { address } from "cema/head.js";
import { Ago, Empty, Loaded, Panel, Segmented, html } from "cema/ui.js";

const SHOWN = 60;
const FEW = 24;

export function Wall({ cohort, on = null, device = null }) {
  const [which, setWhich] = useState("all");
  const query = `?limit=${device ? FEW : SHOWN}${device ? `&device=${encodeURIComponent(device)}` : ""}`;
  const from = useData(at(cohort, "samples") + query, { on, pace: 15 });
  const choice = html`<${Segmented} legend="Which samples" name="wall" options=${[["all", "All"], ["differ", "They disagree"]]} value=${which} onChange=${setWhich} />`;
  return html`<${Panel} wide title=${device ? "Last uploads" : "Newest samples"} aside=${choice}>
    <${Loaded} from=${from} lines=${6}>${(/** @type {any} */ data) => html`<${Tiles} cohort=${cohort} data=${data} which=${which} named=${!device} />`}<//>
  <//>`;
}

const differs = (/** @type {any} */ sample) => sample.teacher !== null && sample.teacher !== undefined && sample.teacher !== sample.label;
const name = (/** @type {any} */ given, /** @type {any} */ number) => given ?? (number === null || number === undefined ? "not yet" : String(number));

function Tiles({ cohort, data, which, named }) {
  const { samples } = data;
  if (!samples.length) return html`<${Empty} title="No samples yet.">They are here as soon as devices send some: a device sends what its selection rule chooses.<//>`;
  const known = samples.filter((/** @type {any} */ sample) => sample.teacher !== null && sample.teacher !== undefined);
  const different = known.filter(differs);
  const shown = which === "differ" ? different : samples;
  return html`<p class="note">${known.length ? `The edge and the foundation model disagree on ${count(different.length)} of these ${count(known.length)} (${percent(different.length / known.length, 0)}).` : "None of these has been looked at by the foundation model yet."}</p>
    ${data.private ? html`<p class="notice">This cohort is private: its images are shown to nobody. Labels and entropy are.</p>` : null}
    ${shown.length ? null : html`<p class="note">None.</p>`}
    <ul class=${data.private ? "wall private" : "wall"}>${shown.map((/** @type {any} */ sample) => html`<${Tile} key=${sample.id} cohort=${cohort} sample=${sample} hidden=${data.private} named=${named} />`)}</ul>`;
}

function Tile({ cohort, sample, hidden, named }) {
  const [broken, setBroken] = useState(false);
  const edge = name(sample.label_name, sample.label);
  const teacher = name(sample.teacher_name, sample.teacher);
  const truth = sample.truth === null || sample.truth === undefined ? null : name(sample.truth_name, sample.truth);
  const different = differs(sample);
  return html`<li class=${different ? "tile differs" : "tile"}>
    ${hidden ? null : broken ? html`<span class="no-image">no image</span>` : html`<img src=${at(cohort, "samples", sample.id, "image")} alt=${`Sample of ${sample.device}`} loading="lazy" decoding="async" width="120" height="120" onError=${() => setBroken(true)} />`}
    <dl>
      ${different ? html`<div><dt>Edge</dt> <dd>${edge}</dd></div><div class="teacher"><dt>≠ Foundation</dt> <dd>${teacher}</dd></div>`
        : sample.teacher === null || sample.teacher === undefined ? html`<div><dt>Edge</dt> <dd>${edge}<small>${sample.waiting ? ", waits" : ", not judged"}</small></dd></div>`
          : html`<div><dt>Both</dt> <dd>${edge}</dd></div>`}
      ${truth === null ? null : html`<div><dt>True</dt> <dd>${truth}</dd></div>`}
    </dl>
    ${named ? html`<p class="small"><a href=${address(cohort, "d", sample.device)}>${sample.device}</a></p>` : null}
    <p class="small"><span title="entropy in nats">H ${decimal(sample.entropy)}</span> · ${version(sample.version)}${sample.drawn ? html` · <span title="drawn by chance, not chosen">drawn</span>` : ""}</p>
    <p class="small"><${Ago} at=${sample.received_at} /></p>
  </li>`;
}
