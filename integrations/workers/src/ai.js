/**
 * The `Ai` binding as an ordinary object: the same calls, answers and errors, over any fetcher.
 *
 * Used where the runtime's own binding cannot be wired in: in Node.js (`getPlatformProxy`, Miniflare's `getBindings`),
 * behind a service binding, or in a Worker that talks to a Tampu server of its own. Knows the binding's wire format and
 * nothing about models.
 */

const ORIGIN = "https://workers-binding.ai";
const DEFAULT_URL = "http://127.0.0.1:8900";
// Options that steer this object and never reach the server.
const LOCAL_OPTIONS = new Set(["prefix", "extraHeaders", "sessionOptions", "signal"]);
const MODEL_SEARCH_KEYS = ["author", "hide_experimental", "page", "per_page", "search", "source", "task"];

/** What a refused call rejects with: `name` as the server gave it, `message` as `<code>: <text>`. */
export class InferenceUpstreamError extends Error {
  constructor(message, name = "InferenceUpstreamError") {
    super(message);
    this.name = name;
  }
}

/** Something is wrong with the call or the answer itself, not with the model. */
export class AiInternalError extends Error {
  constructor(message, name = "AiInternalError") {
    super(message);
    this.name = name;
  }
}

/** A fetcher for `Ai` that sends everything to one server, whatever the host of the URL. */
export function httpFetcher({ url = DEFAULT_URL, token, fetch: send = globalThis.fetch } = {}) {
  const base = new URL(url);
  return {
    async fetch(input, init) {
      const request = new Request(input, init);
      const { pathname, search } = new URL(request.url);
      const target = new URL(base.pathname.replace(/\/$/, "") + pathname + search, base);
      const headers = new Headers(request.headers);
      if (token !== undefined) {
        headers.set("authorization", `Bearer ${token}`);
      }
      const hasBody = request.body !== null;
      return send(target.href, {
        method: request.method,
        headers,
        signal: request.signal,
        ...(hasBody ? { body: request.body, duplex: "half" } : {}),
      });
    },
  };
}

function isStreamInput(value) {
  return typeof value === "object" && value !== null && "body" in value;
}

/** The request for these inputs: JSON, or the one stream among them as the raw body and the rest in the query. */
function encode(inputs, options) {
  const streams = Object.entries(inputs ?? {}).filter(([, value]) => isStreamInput(value));
  if (streams.length === 0) {
    const path = options.gateway?.id ? "/ai-gateway/run?version=3" : "/run?version=3";
    return { path, body: JSON.stringify({ inputs, options }), contentType: "application/json" };
  }
  const [[key, { body, contentType }]] = streams;
  if (streams.length > 1) {
    throw new AiInternalError("Only one input may be a stream.");
  }
  if (!contentType) {
    throw new AiInternalError(`Input ${JSON.stringify(key)} is a stream and needs a contentType.`);
  }
  if (options.gateway) {
    throw new AiInternalError("A gateway cannot be used with a stream as input.");
  }
  const rest = Object.fromEntries(Object.entries(inputs).filter(([name]) => name !== key));
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(options)) {
    query.set(name, String(value));
  }
  query.set("version", "3");
  query.set("userInputs", JSON.stringify(rest));
  return { path: `/run?${query}`, body, contentType };
}

async function upstreamError(response, ai) {
  const content = await response.text();
  let parsed;
  try {
    parsed = JSON.parse(content);
  } catch {
    return new InferenceUpstreamError(content);
  }
  if (parsed?.internalCode) {
    ai.lastRequestInternalStatusCode = parsed.internalCode;
    return new InferenceUpstreamError(`${parsed.internalCode}: ${parsed.description}`, parsed.name);
  }
  const first = parsed?.errors?.[0];
  return new InferenceUpstreamError(first ? `${first.code}: ${first.message}` : content);
}

export class Ai {
  #fetcher;
  lastRequestId = null;
  aiGatewayLogId = null;
  lastRequestHttpStatusCode = null;
  lastRequestInternalStatusCode = null;

  constructor(fetcher) {
    this.#fetcher = fetcher;
  }

  fetch(input, init) {
    return this.#fetcher.fetch(input, init);
  }

  async run(model, inputs, options = {}) {
    if (options.websocket) {
      throw new AiInternalError("options.websocket is not supported: use stream: true.");
    }
    const sent = Object.fromEntries(Object.entries(options).filter(([key]) => !LOCAL_OPTIONS.has(key)));
    const { path, body, contentType } = encode(inputs, sent);
    const response = await this.#fetcher.fetch(ORIGIN + path, {
      method: "POST",
      body,
      signal: options.signal,
      ...(body instanceof ReadableStream ? { duplex: "half" } : {}),
      headers: {
        ...options.sessionOptions?.extraHeaders,
        ...options.extraHeaders,
        "content-type": contentType,
        "cf-consn-sdk-version": "2.0.0",
        "cf-consn-model-id": options.prefix ? `${options.prefix}:${model}` : model,
      },
    });
    this.lastRequestId = response.headers.get("cf-ai-req-id");
    this.aiGatewayLogId = response.headers.get("cf-aig-log-id");
    this.lastRequestHttpStatusCode = response.status;
    if (options.returnRawResponse) {
      return response;
    }
    if (!response.ok || response.body === null) {
      throw await upstreamError(response, this);
    }
    // The runtime's binding compares the whole header, so a charset parameter means "stream" here too.
    if (!inputs?.stream && response.headers.get("content-type") === "application/json") {
      return response.json();
    }
    return response.body;
  }

  async models(params = {}) {
    const query = new URLSearchParams();
    for (const key of MODEL_SEARCH_KEYS) {
      if (params[key] !== undefined && params[key] !== null) {
        query.set(key, String(params[key]));
      }
    }
    const response = await this.#fetcher.fetch(`${ORIGIN}/ai-api/models/search?${query}`);
    const body = await response.json();
    if (!response.ok) {
      throw new AiInternalError(body?.errors?.[0]?.message ?? `The model list was refused with status ${response.status}.`);
    }
    return body.result;
  }

  gateway() {
    throw new AiInternalError("env.AI.gateway() needs Cloudflare's AI Gateway and is not available offline.");
  }

  autorag() {
    throw new AiInternalError("env.AI.autorag() needs Cloudflare's AI Search and is not available offline.");
  }

  toMarkdown() {
    throw new AiInternalError("env.AI.toMarkdown() needs Cloudflare's conversion service and is not available offline.");
  }
}

/** An `Ai` that talks to the Tampu server at `url` (default http://127.0.0.1:8900). */
export function createAI({ fetcher, ...server } = {}) {
  return new Ai(fetcher ?? httpFetcher(server));
}
