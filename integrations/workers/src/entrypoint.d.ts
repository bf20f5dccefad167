import type { WorkerEntrypoint } from "cloudflare:workers";

import type { Model, ModelSearch, RunOptions } from "./ai.js";

/** A Worker for service bindings: `run()` and `models()` like the `Ai` binding, answered by a Tampu server. */
export class TampuAI extends WorkerEntrypoint<{ TAMPU_URL?: string; TAMPU_TOKEN?: string }> {
  run(model: string, inputs: Record<string, unknown>, options?: RunOptions): Promise<any>;
  models(params?: ModelSearch): Promise<Model[]>;
  fetch(request: Request): Promise<Response>;
}

export default TampuAI;
