// Talks to the service: JSON and problem+json, keys, waiting where it is busy. Addresses are relative, so that the page works below any prefix.

const TRIES = 6;
const LONGEST_WAIT_S = 30;
const KEY = "uniovseg.key";

/** The service refused or could not be reached: `title`, `detail`, perhaps `code`, `seen`, `allowed`. */
export class ServiceError extends Error {
  constructor(problem) {
    super(problem.detail ?? problem.title);
    Object.assign(this, problem);
  }
}

const UNREACHABLE = { title: "The service does not answer", detail: "Look whether it runs and whether you are online, then try again.", code: "unreachable" };

export class Service {
  /** `askKey(refused)` resolves with a key, `refused` where the one before was wrong; `onWait(seconds, problem)` is told of each wait. */
  constructor({ askKey, onWait }) {
    this.askKey = askKey;
    this.onWait = onWait;
  }

  async json(path, options) {
    return (await this.fetch(path, options)).json();
  }

  /** POSTs a JSON body. */
  post(path, body, options) {
    return this.json(path, { ...options, method: "POST", body: JSON.stringify(body), type: "application/json" });
  }

  /** A Response that is ok. Throws ServiceError, or AbortError where `signal` said so. */
  async fetch(path, { method = "GET", body, type, signal } = {}) {
    for (let attempt = 1; ; attempt++) {
      const key = sessionStorage.getItem(KEY);
      const response = await this.#once(path, key, { method, body, type, signal });
      if (response.ok) return response;
      const problem = await problemOf(response);
      if (response.status === 401) {
        if (key === sessionStorage.getItem(KEY)) sessionStorage.setItem(KEY, await stoppable(this.askKey(key !== null), signal));
      } else if (response.status === 503 && attempt < TRIES) {
        const seconds = Math.min(LONGEST_WAIT_S, Math.max(1, Number(response.headers.get("Retry-After")) || 1));
        this.onWait(seconds, problem);
        await stoppable(new Promise((resolve) => setTimeout(resolve, seconds * 1000)), signal);
      } else {
        throw new ServiceError(problem);
      }
    }
  }

  async #once(path, key, { method, body, type, signal }) {
    const headers = type ? { "Content-Type": type } : {};
    if (key) headers.Authorization = `Bearer ${key}`;
    try {
      return await fetch(new URL(path, document.baseURI), { method, body, headers, signal });
    } catch (error) {
      throw error.name === "AbortError" ? error : new ServiceError(UNREACHABLE);
    }
  }
}

async function problemOf(response) {
  try {
    const problem = await response.json();
    if (typeof problem.title === "string") return problem;
  } catch {
    // Not from the service, but from what stands between.
  }
  return { title: `The service answered ${response.status}`, detail: response.statusText || "There is no more to be known.", code: "unknown" };
}

/** The promise, or an AbortError once `signal` says so. */
export function stoppable(promise, signal) {
  if (!signal) return promise;
  const stopped = new Promise((_, reject) => {
    const stop = () => reject(new DOMException("stopped", "AbortError"));
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
  });
  return Promise.race([promise, stopped]);
}
