// Requests to the server that this page came from.

const PACK = "application/vnd.medserve.pack";

/** What the server, or the way to it, has against a request. */
export class ServerError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Whether the same request may succeed in a moment. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status === 502 || this.status === 503 || this.status === 504;
  }
}

function failure(status, text) {
  try {
    const { code, message } = JSON.parse(text).error;
    return new ServerError(status, code, message);
  } catch {
    return new ServerError(status, status === 0 ? "UNREACHABLE" : "INTERNAL", text.slice(0, 200));
  }
}

/** Ends in the page where the visitor logs in, if that is what the server wants. */
function orLogIn(error) {
  if (error.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
  return error;
}

/** The response to a request; ServerError where it is none of success. */
export async function request(path, { method = "GET", json, body, signal } = {}) {
  const headers = json === undefined ? {} : { "content-type": "application/json" };
  if (json !== undefined) body = JSON.stringify(json);
  let response;
  try {
    response = await fetch(path, { method, body, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "UNREACHABLE", String(error));
  }
  if (!response.ok) throw orLogIn(failure(response.status, await response.text()));
  return response;
}

/** Delete jobs with all that they hold; one that is gone already is as good as deleted. */
export async function deleteJobs(ids) {
  const gone = (error) => error.status === 404 || Promise.reject(error);
  await Promise.all(ids.map((id) => request(`/jobs/${id}`, { method: "DELETE" }).catch(gone)));
}

/** A file as a job lists it. */
export const listed = ({ number, name, file }) => ({ number, name, size: file.size, modified: Math.floor(file.lastModified / 1000) });

/** Send files as one pack; `progress` hears of the part that is on its way, from 0 to 1. */
export function sendPack(path, entries, { progress, signal } = {}) {
  const list = entries.map(listed);
  const pack = new Blob([`${JSON.stringify(list)}\n`, ...entries.map(({ file }) => file)]);
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest(); // fetch tells nothing of an upload under way
    sending.open("POST", path);
    sending.setRequestHeader("content-type", PACK);
    if (progress) sending.upload.addEventListener("progress", (event) => progress(event.loaded / pack.size));
    sending.addEventListener("load", () => {
      if (sending.status < 300) resolve(JSON.parse(sending.responseText));
      else reject(orLogIn(failure(sending.status, sending.responseText)));
    });
    sending.addEventListener("error", () => reject(failure(0, "")));
    sending.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
    signal?.addEventListener("abort", () => sending.abort(), { once: true });
    sending.send(pack);
  });
}
