/** The page: who is signed in, which view the address names, and what is around it. */

import { render } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { get, request } from "cema/api.js";
import { Cohort } from "cema/cohort.js";
import { Device } from "cema/device.js";
import { Devices } from "cema/devices.js";
import { clock } from "cema/format.js";
import { began, ended, live, lost, tell, useLive } from "cema/live.js";
import { themeChanged } from "cema/marks.js";
import { Overview } from "cema/overview.js";
import { ActsRecord } from "cema/record.js";
import { SignIn, signInByLink, tokenInAddress } from "cema/signin.js";
import { Empty, announce, html } from "cema/ui.js";

/** The view that an address names. @param {string} hash */
export function route(hash) {
  const parts = hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decoded);
  if (!parts.length) return { view: "overview" };
  const [kind, cohort, part, device] = parts;
  if (kind !== "c" || !cohort) return { view: "unknown" };
  if (!part) return { view: "cohort", cohort };
  if (part === "devices" && parts.length === 3) return { view: "devices", cohort };
  if (part === "acts" && parts.length === 3) return { view: "acts", cohort };
  if (part === "d" && device) return { view: "device", cohort, device };
  return { view: "unknown" };
}

/** @param {string} part */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function useRoute() {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const changed = () => {
      const token = tokenInAddress();
      if (token) signInByLink(token).catch(() => ended());
      setHash(location.hash);
    };
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return useMemo(() => route(hash), [hash]);
}

const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };

/** Light, dark, or as the system says; kept in this browser. */
function Theme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme ?? "auto");
  const choose = (/** @type {any} */ event) => {
    const chosen = event.currentTarget.value;
    if (chosen === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    try {
      localStorage.setItem("cema.theme", chosen);
    } catch {
      // Storage is refused: the choice holds until the page is closed.
    }
    setTheme(chosen);
    themeChanged();
  };
  return html`<label class="theme"><span>Theme</span>
    <select value=${theme} onChange=${choose}>${Object.entries(THEMES).map(([key, label]) => html`<option value=${key} key=${key}>${label}</option>`)}</select>
  </label>`;
}

const CONNECTION = { live: "Live", connecting: "Connecting", lost: "No connection" };

function Bar() {
  const session = useLive((live) => live.session);
  const connection = useLive((live) => live.connection);
  const out = () => request("DELETE", "v1/session").catch(() => {}).then(ended);
  return html`<header class="topbar">
    <a class="brand" href="#/"><svg viewBox="0 0 32 32" width="22" height="22" aria-hidden="true"><rect width="32" height="32" rx="7" /><path d="M6 20 12 20 16 9 20 23 23 16 26 16" /></svg>CEMA</a>
    ${session ? html`<span class="connection ${connection}"><i aria-hidden="true"></i><span>${CONNECTION[connection]}</span></span>` : null}
    <span class="space"></span>
    <${Theme} />
    ${session ? html`<span class="who"><b>${session.name}</b> <span>${session.role}</span></span><button type="button" class="button quiet" onClick=${out}>Sign out</button>` : null}
  </header>`;
}

/** What is above everything while the cloud does not answer. */
function Lost() {
  const connection = useLive((live) => live.connection);
  const since = useLive((live) => live.since);
  useEffect(() => {
    document.body.toggleAttribute("data-lost", connection === "lost");
  }, [connection]);
  if (connection !== "lost") return null;
  return html`<div class="banner" role="alert"><strong>No connection to the cloud since ${clock(since)}.</strong>
    <span>What is shown is from before. The page tries again by itself.</span></div>`;
}

/** Says aloud when a cohort's level changed. */
function Changes() {
  const cohorts = useLive((live) => live.cohorts);
  const before = useRef(/** @type {Map<string, string>|null} */ (null));
  useEffect(() => {
    if (!cohorts) return;
    const levels = new Map(cohorts.map((cohort) => [cohort.cohort, cohort.level]));
    const changed = cohorts.filter((cohort) => before.current && before.current.get(cohort.cohort) !== cohort.level);
    if (changed.length) announce(changed.map((cohort) => `${cohort.cohort}: ${{ ok: "OK", warn: "warning", bad: "problem" }[cohort.level]}. ${cohort.sentence}`).join(" "));
    before.current = levels;
  }, [cohorts]);
  return null;
}

function View({ route }) {
  const known = useLive((live) => (route.cohort ? live.cohorts === null || live.cohorts.some((cohort) => cohort.cohort === route.cohort) : true));
  if (route.view === "unknown" || !known) {
    return html`<h1 tabindex="-1">Not here</h1><${Empty} title=${route.cohort ? `This token sees no cohort "${route.cohort}".` : "The address names no view."}>
      <a href="#/">Go to all cohorts</a><//>`;
  }
  const View = { overview: Overview, cohort: Cohort, devices: Devices, device: Device, acts: ActsRecord }[route.view];
  return html`<${View} key=${`${route.view} ${route.cohort} ${route.device}`} ...${route} />`;
}

function App({ problem }) {
  const session = useLive((live) => live.session);
  const current = useRoute();
  const first = useRef(true);
  useEffect(() => {
    const heading = document.querySelector("main h1");
    document.title = session ? `${heading?.textContent ?? ""} – CEMA` : "Sign in – CEMA";
    if (first.current && session) {
      first.current = false;
      return;
    }
    // A new view begins at its heading, for eyes and for screen readers.
    if (session) {
      scrollTo(0, 0);
      /** @type {HTMLElement|null} */ (heading)?.focus({ preventScroll: true });
    }
  }, [current, session]);
  return html`<${Bar} /><${Lost} /><${Changes} />
    <main id="main" tabindex="-1">${session === undefined ? html`<p class="muted">Loading …</p>` : session ? html`<${View} route=${current} />` : html`<${SignIn} problem=${problem} />`}</main>
    <${Foot} />`;
}

function Foot() {
  const version = useLive((live) => live.version);
  const session = useLive((live) => live.session);
  return html`<footer>${session ? html`<span>Signed in as ${session.name} (${session.role})</span>` : null}${version ? html`<span>CEMA ${version}</span>` : null}<a href="openapi.json">API</a></footer>`;
}

let drawn = false;
const RETRY = 2000;

async function start() {
  const page = /** @type {HTMLElement} */ (document.getElementById("page"));
  const token = tokenInAddress();
  const draw = (/** @type {Error|null} */ problem) => {
    if (drawn) return;
    drawn = true;
    page.replaceChildren();
    render(html`<${App} problem=${problem} />`, page);
  };
  if (token) {
    try {
      await signInByLink(token);
      return draw(null);
    } catch (error) {
      ended();
      return draw(/** @type {Error} */ (error));
    }
  }
  // Both at once: the second is what the first view shows.
  const [session, overview] = await Promise.allSettled([get("v1/session"), get("v1/overview")]);
  if (session.status === "fulfilled") {
    began(session.value);
    if (overview.status === "fulfilled") tell(overview.value, true);
    return draw(null);
  }
  draw(null);
  if (session.reason.status === 401) ended();
  else {
    lost();
    setTimeout(start, RETRY);
  }
  return undefined;
}

// The address of the skip link is none of a view.
document.querySelector("a.skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main")?.focus();
});

if (live().session === undefined) start();
