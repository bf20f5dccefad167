// What `tampu-workers local` derives, for several versions of Wrangler.
import { localConfig } from "../../../integrations/workers/src/local-config.js";

const url = "http://127.0.0.1:8900";
const production = { name: "w", ai: { binding: "AI" }, services: [{ binding: "DB" }] };
const report = {};
for (const wranglerVersion of ["4.107.0", "4.108.0", "5.0.0"]) {
  report[wranglerVersion] = localConfig(production, { url, wranglerVersion });
}
const environments = { env: { staging: { ai: { binding: "MODEL" } }, other: { vars: {} } } };
report.environments = localConfig(environments, { url, wranglerVersion: "4.156.2" });
try {
  localConfig({ name: "w" }, { url, wranglerVersion: "4.156.2" });
} catch (error) {
  report.none = error.message;
}
console.log(JSON.stringify(report));
