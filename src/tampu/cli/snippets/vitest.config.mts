// Tests inside the Workers runtime; wrangler.jsonc stays as it is, its AI binding is answered by Tampu.
import { cloudflareTest } from "@cloudflare/vitest-plugin"; // older projects: "@cloudflare/vitest-pool-workers"
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [
    cloudflareTest({
      remoteBindings: false,
      wrangler: { configPath: "./wrangler.jsonc" },
      miniflare: {
        ai: { binding: "AI", remoteProxyConnectionString: new URL("http://127.0.0.1:8900") },
      },
    }),
  ],
});
