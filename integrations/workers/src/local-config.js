/** Derives the local Wrangler configuration from the production one. Pure: reads and writes no file. */

import { PLUGIN_NAME } from "./index.js";

const PACKAGE = "tampu-workers";

/** The binding `name` as a service that Miniflare's plugin answers. */
export function localBinding(name, { url }) {
  return {
    binding: name,
    service: "tampu",
    dev: { plugin: { package: PACKAGE, name: PLUGIN_NAME }, options: { url } },
  };
}

function replaceAi({ ai, ...section }, server) {
  return { ...section, services: [...(section.services ?? []), localBinding(ai.binding, server)] };
}

/** `config` with every `ai` section (top level and environments) replaced; throws if there is none. */
export function localConfig(config, server) {
  const environments = Object.entries(config.env ?? {});
  if (config.ai === undefined && environments.every(([, section]) => section.ai === undefined)) {
    throw new Error('The configuration has no AI binding: add "ai": { "binding": "AI" } to it first.');
  }
  const local = config.ai === undefined ? { ...config } : replaceAi(config, server);
  if (environments.length > 0) {
    local.env = Object.fromEntries(
      environments.map(([name, section]) => [name, section.ai === undefined ? section : replaceAi(section, server)]),
    );
  }
  return local;
}
