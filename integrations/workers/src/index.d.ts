/** A Miniflare plugin that wires the runtime's own `Ai` binding to a Tampu server. */

export * from "./ai.js";

export const PLUGIN_NAME: "tampu-ai";

/** What a binding that names the plugin may set; the variables TAMPU_URL and TAMPU_TOKEN win over it. */
export interface PluginOptions {
  url?: string;
  token?: string;
}

/** Read by Miniflare; the shape is Miniflare's own and changes with it. */
export const plugins: Record<typeof PLUGIN_NAME, unknown>;
