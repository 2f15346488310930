/** Signing in with a token: by hand, or by a link that holds it. */

import { useState } from "preact/hooks";
import { Refusal, get, request } from "cema/api.js";
import { began } from "cema/live.js";
import { Failure, html } from "cema/ui.js";

const PREFIX = "#sign-in=";

/** @param {string} token */
export async function signIn(token) {
  try {
    began(await request("POST", "v1/session", { token }));
  } catch (error) {
    // What the API says of it is for programs, which send a header.
    throw error instanceof Refusal && error.status === 401 ? new Refusal(401, UNKNOWN) : error;
  }
}

const UNKNOWN = {
  message: "This cloud does not know the token.",
  remedy: "Paste all of it. Tokens that were revoked, replaced or have expired are not known either.",
};

/**
 * Sign in with the token of a link. Whoever is signed in as somebody else is asked: the link may be anybody's.
 *
 * @param {string} token
 */
export async function signInByLink(token) {
  const session = await get("v1/session").catch(() => null);
  if (!session) return signIn(token);
  const other = await holder(token);
  const question = `This link signs you in as ${other?.name} (${other?.role}). You are signed in as ${session.name} (${session.role}). Change that?`;
  if (other && other.name !== session.name && confirm(question)) return signIn(token);
  return began(session);
}

/** Whose token it is, without a session; null where it is nobody's. @param {string} token */
async function holder(token) {
  const response = await fetch("v1/session", { headers: { Authorization: `Bearer ${token}` }, credentials: "omit" }).catch(() => null);
  return response?.ok ? response.json().catch(() => null) : null;
}

/** The token that the address holds, which is taken out of it at once; or an empty text. */
export function tokenInAddress() {
  if (!location.hash.startsWith(PREFIX)) return "";
  const text = location.hash.slice(PREFIX.length);
  history.replaceState(null, "", `${location.pathname}#/`);
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** What someone sees who has not signed in. @param {{problem?: Error|null}} props */
export function SignIn({ problem = null }) {
  const [error, setError] = useState(problem);
  const [busy, setBusy] = useState(false);
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    const token = String(new FormData(form).get("token")).trim();
    if (!token) return setError(new Refusal(0, { message: "The token is missing.", remedy: "Paste the token of an operator or an admin." }));
    setBusy(true);
    try {
      await signIn(token);
    } catch (refused) {
      setError(/** @type {Error} */ (refused));
      setBusy(false);
    }
  };
  return html`<section class="signin">
    <h1 tabindex="-1">Sign in</h1>
    <p>Use the token of an operator, who looks, or of an admin, who also acts.</p>
    <form onSubmit=${submit} novalidate>
      <label for="token">Token</label>
      <input id="token" name="token" type="password" autocomplete="current-password" spellcheck=${false} required
        aria-describedby="token-note" autofocus />
      <p class="note" id="token-note">The token is exchanged for a cookie that scripts cannot read, and is kept nowhere in this page.</p>
      ${error ? html`<${Failure} error=${error} />` : null}
      <button class="button primary" aria-disabled=${busy ? "true" : undefined}>${busy ? "Signing in …" : "Sign in"}</button>
    </form>
    <details class="how"><summary>Where is a token?</summary>
      <p><code>cema init</code> wrote one into <code>admin.token</code>. Whoever runs the cloud makes others: <code>cema device add NAME --role operator</code>.</p></details>
  </section>`;
}
