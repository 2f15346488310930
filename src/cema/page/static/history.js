/** The history of a cohort over the last hours or days, kept fresh. */

import { useEffect, useRef } from "preact/hooks";
import { at, useData } from "cema/api.js";

/** Where less than this share of the time has anything known, only that part is asked for, in finer bins. */
const SPARSE = 0.6;

/**
 * The history of the last `seconds`; of a cohort that is younger, its history since it began.
 *
 * @param {string} cohort
 * @param {number} seconds
 * @param {{points: number, every: number, on: any}} options `every` and `on` as those of `useData`
 */
export function useHistory(cohort, seconds, { points, every, on }) {
  const key = `${cohort} ${seconds}`;
  const known = useRef({ key, begin: 0 });
  if (known.current.key !== key) known.current = { key, begin: 0 };
  const path = () => {
    const now = Math.floor(Date.now() / 1000);
    const since = Math.max(now - seconds, known.current.begin);
    return `${at(cohort, "history")}?since=${since}&until=${Math.max(now, since + 60)}&points=${points}`;
  };
  const from = useData(path, { key, every, on });
  useEffect(() => {
    const begin = from.data?.at[0];
    if (begin === undefined || known.current.begin) return;
    const { since, until } = from.data;
    if (until - begin >= SPARSE * (until - since)) return;
    known.current.begin = Math.floor(begin);
    from.reload();
  }, [from.data]);
  return from;
}

/**
 * The ends of the time axis: all that was asked for, or what is known of it where that is much less.
 *
 * @param {import("cema/stats.js").History} history
 */
export function timeOf(history) {
  const begin = history.at[0] ?? history.since;
  const { since, until } = history;
  const sparse = until - begin < SPARSE * (until - since);
  return { time: true, from: sparse ? begin : Math.min(since, begin), until };
}
