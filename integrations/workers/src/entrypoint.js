/**
 * A Worker that stands behind a service binding and answers `run()` and `models()` like the `Ai` binding.
 *
 * For setups where no plugin can be loaded, and for deployed Workers that use a server of their own. The server's address
 * comes from the variables TAMPU_URL and TAMPU_TOKEN of this Worker. What crosses a service binding is copied, so the
 * properties (`lastRequestId` and so on) are methods' results here, not live values: see guides/wrangler.md.
 */

import { WorkerEntrypoint } from "cloudflare:workers";

import { createAI } from "./ai.js";

export class TampuAI extends WorkerEntrypoint {
  #ai = createAI({ url: this.env.TAMPU_URL, token: this.env.TAMPU_TOKEN });

  run(model, inputs, options) {
    return this.#ai.run(model, inputs, options);
  }

  models(params) {
    return this.#ai.models(params);
  }

  fetch(request) {
    return this.#ai.fetch(request);
  }
}

export default TampuAI;
