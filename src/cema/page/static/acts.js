/**
 * What an operator can have a cohort or a device do: what is asked first, what it means in one sentence, and what is
 * sent for it.
 *
 * @typedef {{type: string, to?: number|null, device?: string, first?: string, filter?: string, name?: string}} Asked
 * @typedef {{title: string, button: string, danger?: boolean, typed?: boolean, needs: string[],
 *   sentence: (asked: Asked, cohort: any, more: any) => string, path: string, body: (asked: Asked) => any}} Deed
 */

import { bytes, count, plural, version } from "cema/format.js";

/** @param {any} cohort */
const all = (cohort) => {
  const number = cohort.devices?.registered;
  if (number === undefined) return "all devices";
  return number === 1 ? "the 1 device" : `all ${count(number)} devices`;
};

/** @type {Record<string, Deed>} */
export const DEEDS = {
  rollback: {
    title: "Roll back", button: "Roll back", needs: ["version"], path: "acts",
    sentence: ({ to }, cohort) => `This gives ${all(cohort)} of ${cohort.cohort} the content of ${version(to)} under a new number, and learning begins anew at the source models.`,
    body: ({ to }) => ({ type: "rollback", to }),
  },
  pin: {
    title: "Pin a version", button: "Pin", needs: ["version"], path: "acts",
    sentence: ({ to, device }, cohort) => device
      ? `This gives 1 device, ${device}, the content of ${version(to)}, whatever the others of ${cohort.cohort} get, until its pin ends.`
      : `This gives ${all(cohort)} of ${cohort.cohort} the content of ${version(to)}, and nothing else is published until you resume.`,
    body: ({ to, device }) => ({ type: "pin", to, ...(device ? { device } : {}) }),
  },
  unpin: {
    title: "End the pin", button: "End its pin", needs: [], path: "acts",
    sentence: ({ device }, cohort) => `This gives 1 device, ${device}, what all others of ${cohort.cohort} have.`,
    body: ({ device }) => ({ type: "resume", device }),
  },
  release: {
    title: "Release a version", button: "Release", needs: ["version"], path: "acts",
    sentence: ({ to }, cohort) => `This offers ${version(to)}, which waited or was tried by some devices, to ${all(cohort)} of ${cohort.cohort}.`,
    body: ({ to }) => ({ type: "release", to }),
  },
  pause: {
    title: "Pause publishing", button: "Pause", needs: [], path: "acts",
    sentence: (_, cohort) => `This publishes nothing new to ${all(cohort)} of ${cohort.cohort} until you resume; they keep the version they have, and learning goes on.`,
    body: () => ({ type: "pause" }),
  },
  resume: {
    title: "Resume publishing", button: "Resume", needs: [], path: "acts",
    sentence: (_, cohort) => `This publishes to ${all(cohort)} of ${cohort.cohort} again what passes the gate; until then they keep what they have.`,
    body: () => ({ type: "resume" }),
  },
  stop: {
    title: "Stop", button: "Stop", danger: true, typed: true, needs: [], path: "acts",
    sentence: (_, cohort) => `This gives ${all(cohort)} of ${cohort.cohort} the unadapted source model, pinned devices too, and publishes nothing until you resume.`,
    body: () => ({ type: "stop" }),
  },
  canary: {
    title: "Share of canary devices", button: "Set the share", needs: ["share"], path: "acts",
    sentence: ({ first }, cohort) => {
      if (!first) return `From now on new versions of ${cohort.cohort} come to its ${plural(cohort.devices?.registered, "device")} as cloud.toml says.`;
      const some = Math.max(1, Math.round((Number(first) / 100) * (cohort.devices?.registered ?? 0)));
      return `From now on each new version of ${cohort.cohort} is tried by ${first} % of the devices first, about ${count(some)} of ${count(cohort.devices?.registered)}.`;
    },
    body: ({ first }) => ({ type: "canary", first: first ? Number(first) / 100 : null }),
  },
  deletion: {
    title: "Delete data", button: "Delete", danger: true, typed: true, needs: ["filter"], path: "deletions",
    sentence: ({ filter, name }, cohort, kept) => `This deletes ${kept ? `${plural(kept.samples, "sample")} (${bytes(kept.bytes)})` : "the samples"} ${filter === "device" ? `of 1 device, ${name || "…"},` : `of ${all(cohort)}`} of ${cohort.cohort} for good. What models have learned from them stays; roll back for that.`,
    body: ({ filter, name }) => (filter === "device" ? { device: name } : { all: true }),
  },
  quarantine: {
    title: "Quarantine", button: "Quarantine", needs: [], path: "device",
    sentence: ({ device }, cohort) => `This keeps samples of 1 device, ${device}, out of what ${cohort.cohort} learns from, until you release it; it still gets updates.`,
    body: () => ({ type: "quarantine" }),
  },
  unquarantine: {
    title: "Release from quarantine", button: "Release", needs: [], path: "device",
    sentence: ({ device }, cohort) => `This lets ${cohort.cohort} learn from samples of 1 device, ${device}, again.`,
    body: () => ({ type: "release" }),
  },
  revoke: {
    title: "Revoke", button: "Revoke", danger: true, needs: [], path: "device",
    sentence: ({ device }, cohort) => `This ends the token of 1 device, ${device}: it sends nothing to ${cohort.cohort} any more and gets no updates, for ever.`,
    body: () => ({ type: "revoke" }),
  },
};

/** The words for an act in a list. @param {any} act */
export function described(act) {
  const whom = act.device ? ` on ${act.device}` : "";
  switch (act.type) {
    case "rollback": return `Roll back to ${version(act.to)}`;
    case "pin": return `Pin ${version(act.to)}${whom}`;
    case "release": return `Release ${version(act.to)}`;
    case "resume": return act.device ? `End the pin${whom}` : "Resume";
    case "canary": return act.first === null ? "Canary share as configured" : `Canary share ${Math.round(act.first * 100)} %`;
    case "pause": return "Pause";
    case "stop": return "Stop";
    default: return String(act.type);
  }
}

/** What came of an act. @param {any} act */
export function outcome(act) {
  switch (act.state) {
    case "waiting": return "Waits for the worker";
    case "done": return act.version ? `Done: ${version(act.version)}` : "Done";
    case "superseded": return "A later act left nothing to do";
    case "failed": return "Failed";
    default: return String(act.state);
  }
}
