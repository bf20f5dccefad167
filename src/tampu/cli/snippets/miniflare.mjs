// Your Worker in Miniflare, its AI binding answered by Tampu.
import * as miniflare from "miniflare";

const options = {
  modules: true,
  scriptPath: "dist/index.js",
  compatibilityDate: "2025-01-01",
  port: Number(process.env.PORT ?? 8787),
  cf: false, // do not ask the network for the Request.cf object
  ai: { binding: "AI", remoteProxyConnectionString: new URL("http://127.0.0.1:8900") },
};

// Miniflare 5 has new options and converts the ones of Miniflare 4; Miniflare 4 takes them as they are.
const { Miniflare, convertV4MiniflareOptions = (given) => given } = miniflare;
const worker = new Miniflare(convertV4MiniflareOptions(options));
console.log(`Ready on ${await worker.ready}`);
