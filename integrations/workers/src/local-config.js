/** Derives the local Wrangler configuration from the production one. Pure: reads and writes no file. */

import { PLUGIN_NAME } from "./index.js";

const PLUGIN = { package: "tampu-workers", name: PLUGIN_NAME };

/** Since this version a service binding may name a plugin; before it, only an "unsafe" binding may. */
const SERVICE_PLUGINS_SINCE = [4, 108];

function namesPluginInServices(version) {
  const [major, minor] = version.split(".").map(Number);
  const [sinceMajor, sinceMinor] = SERVICE_PLUGINS_SINCE;
  return major > sinceMajor || (major === sinceMajor && minor >= sinceMinor);
}

function replaceAi({ ai, ...section }, { url, wranglerVersion }) {
  const dev = { plugin: PLUGIN, options: { url } };
  if (namesPluginInServices(wranglerVersion)) {
    return { ...section, services: [...(section.services ?? []), { binding: ai.binding, service: "tampu", dev }] };
  }
  const bindings = [...(section.unsafe?.bindings ?? []), { name: ai.binding, type: "tampu", dev }];
  return { ...section, unsafe: { ...section.unsafe, bindings } };
}

/** The origin that --url means, such as http://127.0.0.1:8900. Throws for anything but http(s)://host[:port]. */
export function serverOrigin(text) {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const isOrigin = url !== undefined && url.pathname === "/" && !/[?#@]/.test(text);
  if (!isOrigin || !["http:", "https:"].includes(url.protocol)) {
    throw new Error(`--url ${JSON.stringify(text)} is not the address of a server: write http://127.0.0.1:8900`);
  }
  return url.origin;
}

/**
 * `config` with every `ai` section (top level and environments) answered by the server at `url`.
 * Throws if there is none.
 */
export function localConfig(config, { url, wranglerVersion }) {
  const environments = Object.entries(config.env ?? {});
  if (config.ai === undefined && environments.every(([, section]) => section.ai === undefined)) {
    throw new Error('The configuration has no AI binding: add "ai": { "binding": "AI" } to it first.');
  }
  const replace = (section) => (section.ai === undefined ? section : replaceAi(section, { url, wranglerVersion }));
  const local = replace(config);
  if (environments.length === 0) {
    return local;
  }
  return { ...local, env: Object.fromEntries(environments.map(([name, section]) => [name, replace(section)])) };
}
