/** Requests to the cloud, and data that a view shows and keeps fresh. */

import { useEffect, useRef, useState } from "preact/hooks";
import { answered, ended, lost, useLive } from "cema/live.js";

/** What the cloud refused, with its reason and its remedy. */
export class Refusal extends Error {
  /** @param {number} status @param {{code?: string, message?: string, remedy?: string}} error */
  constructor(status, error) {
    super(error.message || `The cloud answered ${status}.`);
    this.status = status;
    this.code = error.code ?? "";
    this.remedy = error.remedy ?? "";
  }
}

/** No answer came. */
export class NoAnswer extends Error {
  constructor() {
    super("No answer from the cloud.");
    this.remedy = "The page tries again by itself.";
  }
}

/** Send a request and return the JSON of its answer, null where it has none; see `answer`.
 * @param {string} method @param {string} path @param {any} [body] */
export const request = async (method, path, body) => parsed(await answer(method, path, body));

/**
 * Send a request and return the text of its answer.
 *
 * @param {string} method
 * @param {string} path
 * @param {any} [body]
 * @param {AbortSignal} [signal]
 */
async function answer(method, path, body, signal) {
  /** @type {Record<string, string>} */ const headers = { Accept: "application/json" };
  // A form on another site cannot set this header, so what that site sends in the name of the user is refused.
  if (method !== "GET") headers["CEMA-Page"] = "1";
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  let text;
  try {
    response = await fetch(path, {
      method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), credentials: "same-origin",
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    lost();
    throw new NoAnswer();
  }
  if (response.ok) {
    answered();
    return text;
  }
  const content = parsed(text);
  if (response.status === 401 && path !== "v1/session") ended();
  // What stands between the page and the cloud answers these when there is no cloud.
  if ([502, 504].includes(response.status) && !content?.error) lost();
  throw new Refusal(response.status, content?.error ?? {});
}

/** @param {string} text */
function parsed(text) {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}

/** @param {string} path */
export const get = (path) => request("GET", path);
/** @param {string} path @param {any} body */
export const post = (path, body) => request("POST", path, body);

/** The path of a cohort's part. @param {string} cohort @param {string[]} parts */
export const at = (cohort, ...parts) => ["v1/cohorts", cohort, ...parts].map((part, i) => (i ? encodeURIComponent(part) : part)).join("/");

/**
 * What a path answers, kept while it is asked again.
 *
 * It is asked again `every` so many seconds while the page is seen, soon after `on` has changed, and when the
 * connection came back. What came last stays when a later request fails.
 *
 * @param {string|null|(() => string)} path null: nothing is asked; a function is called for each request
 * @param {{every?: number, on?: any, key?: any, pace?: number}} [options] `key` says of a function when what it asks for
 *   is another; for `on` it is asked once in `pace` seconds at most
 * @returns {{data: any, error: Error|null, loading: boolean, reload: () => void}}
 */
export function useData(path, { every = 0, on = null, key = path, pace = 5 } = {}) {
  const [state, setState] = useState(/** @type {any} */ ({ data: null, error: null, loading: true, key }));
  const epoch = useLive((live) => live.epoch);
  const asked = useRef({ at: 0, timer: 0, text: "" });
  const ask = useRef(() => {});
  useEffect(() => {
    if (path === null) return undefined;
    const stop = new AbortController();
    asked.current.text = "";
    ask.current = async () => {
      clearTimeout(asked.current.timer);
      asked.current.at = Date.now();
      try {
        const text = await answer("GET", typeof path === "function" ? path() : path, undefined, stop.signal);
        // The same answer as before is no news: nothing is rendered for it.
        if (text === asked.current.text) return;
        asked.current.text = text;
        setState({ data: parsed(text), error: null, loading: false, key });
      } catch (error) {
        if (stop.signal.aborted) return;
        setState((before) => ({ data: before.key === key ? before.data : null, error, loading: false, key }));
      }
    };
    ask.current();
    const timer = every ? setInterval(() => document.hidden || ask.current(), every * 1000) : 0;
    return () => {
      stop.abort();
      clearInterval(timer);
      clearTimeout(asked.current.timer);
    };
  }, [key, every, epoch]);
  useEffect(() => {
    if (on === null || !asked.current.at) return;
    const wait = Math.max(300, asked.current.at + pace * 1000 - Date.now());
    clearTimeout(asked.current.timer);
    asked.current.timer = setTimeout(() => ask.current(), wait);
  }, [on]);
  const current = state.key === key ? state : { data: null, error: null, loading: true };
  return { data: current.data, error: current.error, loading: current.loading, reload: () => ask.current() };
}
