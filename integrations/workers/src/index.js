/**
 * A Miniflare plugin that gives a Worker the runtime's own `Ai` binding, wired to a Tampu server instead of an account.
 *
 * Wrangler, Miniflare and everything built on them load it when a binding names it (see README.md). Knows how Miniflare
 * plugins describe bindings and services; refuses to know what the server answers.
 */

import { createAI } from "./ai.js";

export { Ai, AiInternalError, InferenceUpstreamError, createAI, httpFetcher } from "./ai.js";

/** The plugin's name, as written in `dev.plugin.name`. */
export const PLUGIN_NAME = "tampu-ai";
const DEFAULT_URL = "http://127.0.0.1:8900";

/** Options of one binding: those in the configuration file, then the environment, then the defaults. */
function serverOf(options = {}) {
  const url = new URL(process.env.TAMPU_URL ?? options.url ?? DEFAULT_URL);
  if (!["http:", "https:"].includes(url.protocol)) {
    throw new TypeError(`tampu-workers: url must start with http:// or https://, not ${JSON.stringify(url.href)}`);
  }
  if (url.pathname !== "/" || url.search !== "") {
    throw new TypeError(`tampu-workers: url must be a bare origin such as ${DEFAULT_URL}, not ${JSON.stringify(url.href)}`);
  }
  return { url, token: process.env.TAMPU_TOKEN ?? options.token };
}

/**
 * The bindings meant for this plugin, as [name, options]. Miniflare 4 hands over the list of such bindings (or nothing),
 * Miniflare 5 the whole worker.
 */
function bindingsOf(given) {
  if (given === undefined) {
    return [];
  }
  if (Array.isArray(given)) {
    return given.map((binding) => [binding.name, binding.options]);
  }
  return Object.entries(given.config?.env ?? {})
    .filter(([, binding]) => binding.dev?.plugin?.name === PLUGIN_NAME)
    .map(([name, binding]) => [name, binding.dev.options]);
}

function serviceName({ url, token }) {
  return `${PLUGIN_NAME}:${url.host}${token === undefined ? "" : ":token"}`;
}

/** A workerd service that carries every request of the binding to the server. */
function externalService(server) {
  const { url, token } = server;
  const isTls = url.protocol === "https:";
  const http = token === undefined ? {} : { injectRequestHeaders: [{ name: "authorization", value: `Bearer ${token}` }] };
  const address = `${url.hostname}:${url.port || (isTls ? 443 : 80)}`;
  const external = isTls
    ? { address, https: { options: http, tlsOptions: { trustBrowserCas: true }, certificateHost: url.hostname } }
    : { address, http };
  return { name: serviceName(server), external };
}

export const plugins = {
  [PLUGIN_NAME]: {
    bindingTypeDescription: "Tampu AI",
    getBindings(given) {
      return bindingsOf(given).map(([name, options]) => ({
        name,
        wrapped: {
          moduleName: "cloudflare-internal:ai-api",
          innerBindings: [{ name: "fetcher", service: { name: serviceName(serverOf(options)) } }],
        },
      }));
    },
    // Outside workerd there is no wrapped binding; the same calls go straight to the server.
    getNodeBindings(given) {
      return Object.fromEntries(
        bindingsOf(given).map(([name, options]) => {
          const { url, token } = serverOf(options);
          return [name, createAI({ url: url.href, token })];
        }),
      );
    },
    getServices({ options: given }) {
      return bindingsOf(given).map(([, options]) => externalService(serverOf(options)));
    },
  },
};
