#!/usr/bin/env node
/**
 * `tampu-workers local`: writes wrangler.local.jsonc, the production configuration with its AI binding answered by Tampu.
 *
 * The production file is read with the project's own Wrangler (so TOML, JSON and JSONC all work) and never written.
 */

import { writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

import { PLUGIN_NAME } from "./index.js";
import { localConfig, serverOrigin } from "./local-config.js";

const USAGE = `Usage: tampu-workers local [CONFIG] [--out wrangler.local.jsonc] [--url http://127.0.0.1:8900]

Reads CONFIG (default: wrangler.jsonc, wrangler.json or wrangler.toml of this folder) and writes, beside it, the same
configuration with its AI binding answered by the Tampu server at --url. Then: wrangler dev -c wrangler.local.jsonc`;

async function loadWrangler(folder) {
  const require = createRequire(path.join(folder, "package.json"));
  let entry;
  try {
    entry = require.resolve("wrangler");
  } catch {
    throw new Error(`Wrangler is not installed in ${folder}: run npm install --save-dev wrangler`);
  }
  const wrangler = await import(pathToFileURL(entry).href);
  const readRawConfig = wrangler.experimental_readRawConfig ?? wrangler.default?.experimental_readRawConfig;
  const { version } = require("wrangler/package.json");
  const [major, minor] = version.split(".").map(Number);
  if (readRawConfig === undefined || major < 4 || (major === 4 && minor < 36)) {
    throw new Error(`Wrangler ${version} cannot load a plugin for a binding: use 4.36 or newer.`);
  }
  return { readRawConfig, version };
}

async function writeLocal(args) {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { out: { type: "string" }, url: { type: "string", default: "http://127.0.0.1:8900" } },
  });
  const url = serverOrigin(values.url);
  const folder = positionals[0] ? path.dirname(path.resolve(positionals[0])) : process.cwd();
  const { readRawConfig, version } = await loadWrangler(folder);
  const { rawConfig, configPath } = readRawConfig(positionals[0] ? { config: path.resolve(positionals[0]) } : {});
  if (configPath === undefined) {
    throw new Error("No Wrangler configuration found: name the file, as in tampu-workers local wrangler.jsonc");
  }
  const out = path.resolve(values.out ?? path.join(path.dirname(configPath), "wrangler.local.jsonc"));
  if (path.dirname(out) !== path.dirname(path.resolve(configPath))) {
    throw new Error(`--out must be in the folder of ${configPath}, because the paths in it are relative to that folder.`);
  }
  const local = localConfig(rawConfig, { url, wranglerVersion: version });
  const header = `// Written by tampu-workers from ${path.basename(configPath)}; do not edit, run it again.\n`;
  await writeFile(out, header + JSON.stringify(local, null, 2) + "\n");
  console.log(`Wrote ${path.relative(process.cwd(), out) || out}: plugin ${PLUGIN_NAME}, server ${url}`);
}

const [command, ...args] = process.argv.slice(2);
if (command === "local") {
  try {
    await writeLocal(args);
  } catch (error) {
    console.error(`tampu-workers: ${error.message}`);
    process.exitCode = 1;
  }
} else {
  const askedForHelp = command === "--help" || command === "-h";
  (askedForHelp ? console.log : console.error)(USAGE);
  process.exitCode = askedForHelp ? 0 : 2;
}
