// env.AI in Node.js, as frameworks get it: Wrangler's getPlatformProxy on the configuration that our package derives.
import { getPlatformProxy } from "wrangler";

import probe from "./workers/probe.mjs";

const { env, dispose } = await getPlatformProxy({ configPath: process.argv[2], persist: false });
const report = await (await probe.fetch(undefined, env)).json();
await dispose();
console.log(JSON.stringify(report));
