/**
 * The session, and the state of all cohorts as the cloud sends it.
 *
 * One store: views read from it with `useLive`, and are rendered only when what they have read is another object.
 *
 * @typedef {{name: string, role: string, cohorts: string[]}} Session
 * @typedef {{session: Session|null|undefined, connection: "connecting"|"live"|"lost", since: number, epoch: number,
 *   cohorts: Record<string, any>[]|null, version: string}} Live
 */

import { useEffect, useReducer, useRef } from "preact/hooks";

/** @type {Live} */
let state = { session: undefined, connection: "connecting", since: 0, epoch: 0, cohorts: null, version: "" };
/** @type {Set<() => void>} */
const listeners = new Set();
/** @type {EventSource|null} */
let source = null;
let retry = 0;
const RETRY = 3000;

/** @param {Partial<Live>} changes */
function change(changes) {
  state = { ...state, ...changes };
  for (const listener of [...listeners]) listener();
}

export const live = () => state;

/**
 * A part of the state; the component is rendered again when that part changes.
 *
 * @template T
 * @param {(state: Live) => T} select
 * @returns {T}
 */
export function useLive(select) {
  const [, render] = useReducer((/** @type {number} */ n) => n + 1, 0);
  const latest = useRef(/** @type {any} */ ({}));
  latest.current = { select, value: select(state) };
  useEffect(() => {
    const look = () => {
      if (latest.current.select(state) !== latest.current.value) render(null);
    };
    listeners.add(look);
    look();
    return () => {
      listeners.delete(look);
    };
  }, []);
  return latest.current.value;
}

/** One cohort as it is now. @param {string} name */
export const useCohort = (name) => useLive((live) => live.cohorts?.find((cohort) => cohort.cohort === name) ?? null);

/** Whether this session may act, and why not. */
export function useMayAct() {
  const role = useLive((live) => live.session?.role);
  const connection = useLive((live) => live.connection);
  if (connection === "lost") return "There is no connection to the cloud.";
  return role === "admin" ? "" : "Only an admin may act. You are signed in as operator.";
}

/** Someone has signed in. @param {Session} session */
export function began(session) {
  change({ session, connection: "connecting", cohorts: null });
  connect();
}

/** The session has ended, or there is none: the page shows the sign-in. */
export function ended() {
  disconnect();
  if (state.session !== null) change({ session: null, cohorts: null, connection: "connecting" });
}

/** A request got no answer. */
export function lost() {
  if (state.connection !== "lost") change({ connection: "lost", since: Date.now() / 1000 });
  if (state.session && !source) again();
}

/** A request was answered: where the cloud was lost, it is there again. */
export function answered() {
  if (state.connection === "lost" && state.session && (!source || source.readyState === EventSource.CLOSED)) connect();
}

/** Put in what the cloud says of cohorts. @param {{cohorts: any[], version?: string}} overview @param {boolean} all */
export function tell(overview, all) {
  const before = new Map((state.cohorts ?? []).map((cohort) => [cohort.cohort, cohort]));
  const news = new Map(
    overview.cohorts.map((cohort) => {
      const known = before.get(cohort.cohort);
      return [cohort.cohort, known && known.changed === cohort.changed && known.sentence === cohort.sentence ? known : cohort];
    }),
  );
  const merged = all ? news : new Map([...before, ...news]);
  const same = state.cohorts && merged.size === before.size && [...merged].every(([name, cohort]) => before.get(name) === cohort);
  if (!same) change({ cohorts: [...merged.values()], version: overview.version ?? state.version });
}

export function connect() {
  disconnect();
  let first = true;
  source = new EventSource("v1/events");
  source.addEventListener("overview", (event) => {
    heard(JSON.parse(event.data), first);
    first = false;
  });
  source.addEventListener("end", () => {
    disconnect();
    again(0);
  });
  source.addEventListener("error", () => {
    first = true;
    // The browser tries again by itself, but not where it got an answer that is no stream, such as 401, or 503 where
    // too many pages listen: then this one asks from time to time.
    if (source?.readyState !== EventSource.CLOSED) return lost();
    disconnect();
    return again();
  });
}

/** The cloud has said how things are. @param {any} overview @param {boolean} all */
function heard(overview, all) {
  const back = state.connection === "lost";
  if (state.connection !== "live") change({ connection: "live", epoch: state.epoch + (back ? 1 : 0) });
  tell(overview, all);
}

function disconnect() {
  clearTimeout(retry);
  retry = 0;
  source?.close();
  source = null;
}

/** Ask how things are, and listen again if the session is good; try until there is an answer. */
function again(wait = RETRY) {
  if (retry) return;
  retry = setTimeout(async () => {
    retry = 0;
    const response = await fetch("v1/overview").catch(() => null);
    const overview = response?.ok ? await response.json().catch(() => null) : null;
    if (response?.status === 401) return ended();
    if (!overview) {
      lost();
      return again();
    }
    heard(overview, true);
    return connect();
  }, wait);
}
