/** The dialog before an act: what will happen to how many devices, the confirmation, and what came of it. */

import { useEffect, useRef, useState } from "preact/hooks";
import { at, get, post, useData } from "cema/api.js";
import { DEEDS, outcome } from "cema/acts.js";
import { ago, version } from "cema/format.js";
import { useMayAct } from "cema/live.js";
import { Failure, announce, html } from "cema/ui.js";

const AGAIN = 1500;
const TRIES = 40;

/**
 * @param {{cohort: any, asked: import("cema/acts.js").Asked, versions: any[], onClose: () => void}} props
 */
export function ActDialog({ cohort, asked, versions, onClose }) {
  const box = useRef(/** @type {any} */ (null));
  const deed = DEEDS[asked.type];
  const known = [...versions].sort((a, b) => b.version - a.version).map((one) => one.version);
  const newest = known[0];
  const [values, setValues] = useState(() => ({
    ...asked, to: asked.to ?? (asked.type === "rollback" ? (known[1] ?? newest) : newest) ?? null, first: "10", filter: "all", name: "",
  }));
  const [typed, setTyped] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(/** @type {any} */ (null));
  const [result, setResult] = useState(/** @type {any} */ (null));
  const lost = useMayAct();
  useEffect(() => box.current?.showModal(), []);
  useEffect(() => {
    if (values.to === null && newest) setValues((old) => ({ ...old, to: asked.type === "rollback" ? (known[1] ?? newest) : newest }));
  }, [newest]);
  const filter = values.filter === "device" ? `?device=${encodeURIComponent(values.name)}` : "";
  const kept = useData(deed.needs.includes("filter") ? `${at(cohort.cohort, "data")}${filter}` : null);
  const missing = lost || incomplete(deed, values, cohort, typed, kept.data);
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (busy || missing) return;
    setBusy(true);
    setError(null);
    try {
      const path = deed.path === "device" ? at(cohort.cohort, "devices", values.device ?? "", "acts") : at(cohort.cohort, deed.path);
      const answer = await post(path, deed.body(values));
      setResult(answer ?? {});
      announce("It is written down.");
    } catch (refused) {
      setError(refused);
    }
    setBusy(false);
  };
  return html`<dialog ref=${box} class="act" aria-labelledby="act-title" aria-describedby="act-sentence" onClose=${onClose}
      onClick=${(/** @type {any} */ event) => event.target === box.current && !busy && box.current.close()}>
    <form onSubmit=${send} novalidate>
      <h2 id="act-title">${deed.title}</h2>
      ${result ? null : html`<${Fields} deed=${deed} values=${values} set=${(/** @type {any} */ changes) => setValues({ ...values, ...changes })} versions=${versions} known=${known} fixed=${asked.to !== undefined} />`}
      <p id="act-sentence" class=${deed.danger ? "sentence danger" : "sentence"}>${deed.sentence(values, cohort, kept.data)}</p>
      ${deed.typed && !result ? html`<label>Type <b>${cohort.cohort}</b> to confirm
        <input name="confirm" autocomplete="off" spellcheck=${false} value=${typed} onInput=${(/** @type {any} */ event) => setTyped(event.currentTarget.value)} /></label>` : null}
      ${error ? html`<${Failure} error=${error} />` : null}
      ${result ? html`<${Result} cohort=${cohort.cohort} deed=${deed} first=${result} />` : null}
      <footer>
        <button type="button" class="button" onClick=${() => box.current.close()}>${result ? "Close" : "Cancel"}</button>
        ${result ? null : html`<button class=${`button ${deed.danger ? "danger filled" : "primary"}`} aria-disabled=${busy || missing ? "true" : undefined} title=${missing || undefined}>${busy ? "Sending …" : deed.button}</button>`}
      </footer>
    </form>
  </dialog>`;
}

/** What is still missing before it can be sent; empty when nothing is. */
function incomplete(/** @type {any} */ deed, /** @type {any} */ values, /** @type {any} */ cohort, /** @type {string} */ typed, /** @type {any} */ kept) {
  if (deed.needs.includes("version") && !values.to) return "Choose a version.";
  if (deed.needs.includes("share") && values.first !== "" && !(Number(values.first) > 0 && Number(values.first) <= 100)) return "The share is more than 0 % and at most 100 %.";
  if (values.filter === "device" && deed.needs.includes("filter") && !values.name) return "Name the device.";
  if (values.filter === "device" && kept && !kept.samples) return `No sample of ${values.name} is kept.`;
  return deed.typed && typed !== cohort.cohort ? `Type ${cohort.cohort} first.` : "";
}

function Fields({ deed, values, set, versions, known, fixed }) {
  const now = Date.now() / 1000;
  const made = new Map(versions.map((/** @type {any} */ one) => [one.version, one.created]));
  return html`
    ${deed.needs.includes("version") && !fixed ? html`<label>Version
      <select name="version" value=${values.to} onChange=${(/** @type {any} */ event) => set({ to: Number(event.currentTarget.value) })}>
        ${known.map((/** @type {number} */ one) => html`<option key=${one} value=${one} selected=${one === values.to}>${version(one)}, made ${ago(made.get(one), now)}</option>`)}
      </select></label>` : null}
    ${deed.needs.includes("share") ? html`<label>Share of the devices in percent; empty for what cloud.toml says
      <input name="first" type="number" min="1" max="100" step="1" inputmode="numeric" value=${values.first} onInput=${(/** @type {any} */ event) => set({ first: event.currentTarget.value })} /></label>` : null}
    ${deed.needs.includes("filter") ? html`<fieldset><legend>Which samples</legend>
      ${[["all", "All of this cohort"], ["device", "Those of one device"]].map(([key, label]) => html`<label class="choice" key=${key}><input type="radio" name="filter" value=${key} checked=${values.filter === key} onChange=${() => set({ filter: key })} />${label}</label>`)}
      ${values.filter === "device" ? html`<label>Device <input name="device" autocomplete="off" spellcheck=${false} value=${values.name} onInput=${(/** @type {any} */ event) => set({ name: event.currentTarget.value.trim() })} /></label>` : null}
    </fieldset>` : null}`;
}

/** What came of it; an act that waits is asked after until the worker has done it. */
function Result({ cohort, deed, first }) {
  const [act, setAct] = useState(first);
  useEffect(() => {
    if (act.state !== "waiting" || deed.path !== "acts") return undefined;
    let left = TRIES;
    const timer = setInterval(async () => {
      if (left-- <= 0) return clearInterval(timer);
      const { acts } = await get(`${at(cohort, "acts")}?limit=50`).catch(() => ({ acts: [] }));
      const found = acts.find((/** @type {any} */ one) => one.number === act.number);
      if (!found || found.state === "waiting") return undefined;
      setAct(found);
      announce(outcome(found));
      return clearInterval(timer);
    }, AGAIN);
    return () => clearInterval(timer);
  }, [act]);
  if (deed.path === "device") return html`<p class="outcome" role="status"><strong>Done.</strong> It holds from the device's next request on.</p>`;
  if (deed.path === "deletions") return html`<p class="outcome" role="status"><strong>Deletion ${act.number} is written down.</strong> ${act.samples} samples are gone from the store. The worker still forgets what it learned from them: see Acts.</p>`;
  return html`<p class="outcome" role="status"><strong>Act ${act.number} is written down.</strong> ${outcome(act)}.${act.state === "waiting" ? " You may close this: it goes on." : ""}</p>`;
}
