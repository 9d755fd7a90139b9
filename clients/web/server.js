/**
 * The few HTTP questions of the page, and its addresses. Everything is relative to where the page's files lie,
 * so it also works behind a path. Tokens travel in headers and in `hello`, never in an address.
 */

/** The root that `/web/` hangs under. */
export const HOME = new URL("../", import.meta.url);

const TIMEOUT_MS = 10_000;

export class HttpError extends Error {
  /** `final`: asking again with the same token will not help. */
  constructor(status) {
    super(`HTTP ${status}`);
    this.status = status;
    this.final = status === 401 || status === 403;
  }
}

async function json(url, options = {}) {
  const answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS), ...options });
  if (!answer.ok) throw new HttpError(answer.status);
  return answer.json();
}

export class Server {
  constructor(base = HOME) {
    this._base = base;
  }

  /** The demo hospital's staff and departments, or null where this server is no demo. */
  async demo() {
    try {
      return await json(new URL("v1/demo", this._base));
    } catch (error) {
      if (error instanceof HttpError && error.status === 404) return null;
      throw error;
    }
  }

  demoToken(userId, department) {
    return json(new URL("v1/demo/token", this._base), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ user_id: userId, department }),
    });
  }

  async patients(department, token) {
    const url = new URL(`v1/departments/${encodeURIComponent(department)}/patients`, this._base);
    const answer = await json(url, { headers: { Authorization: `Bearer ${token}` } });
    return Array.isArray(answer.patients) ? answer.patients : [];
  }

  /** Who may be asked to take alerts over: {people: [{user_id, roles, state, is_here}], is_whole}. */
  async people(department, token) {
    const url = new URL(`v1/departments/${encodeURIComponent(department)}/people`, this._base);
    const answer = await json(url, { headers: { Authorization: `Bearer ${token}` } });
    return { people: Array.isArray(answer.people) ? answer.people : [], is_whole: answer.is_whole !== false };
  }

  socketUrl(department, userId) {
    const path = `chat/${encodeURIComponent(department)}/${encodeURIComponent(userId)}`;
    const url = new URL(path, this._base);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    return url.href;
  }
}

/**
 * What a token says of itself, unverified, only to fill in the form: {userId, department, expiresInS}.
 * Returns nulls for anything that is no JWT.
 */
export function readToken(token, now) {
  const nothing = { userId: null, department: null, expiresInS: null };
  try {
    const part = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
    const bytes = Uint8Array.from(atob(part), (char) => char.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(bytes));
    const departments = claims.departments ?? [claims.department];
    return {
      userId: typeof claims.sub === "string" ? claims.sub : null,
      department: typeof departments[0] === "string" ? departments[0] : null,
      expiresInS: Number.isFinite(claims.exp) ? claims.exp - now / 1000 : null,
    };
  } catch {
    return nothing;
  }
}
