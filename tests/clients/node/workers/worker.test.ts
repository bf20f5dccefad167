import { env, exports } from "cloudflare:workers";
import { expect, it } from "vitest";

const MODEL = "@cf/meta/llama-3.1-8b-instruct-fast";

it("runs the Worker", async () => {
  const response = await exports.default.fetch("http://example.com/");
  expect(response.status).toBe(200);
  const isStream = response.headers.get("content-type") === "text/event-stream";
  const body = await response.text();
  expect(isStream ? body.endsWith("data: [DONE]\n\n") : JSON.parse(body).response.length > 0).toBe(true);
});

it("gives the test the same binding", async () => {
  const { response, usage } = await env.AI.run(MODEL, { prompt: "Say hello" });
  expect(typeof response).toBe("string");
  expect(usage.completion_tokens).toBeGreaterThan(0);
  expect(env.AI.lastRequestId).toMatch(/^[0-9a-f-]{36}$/);
  await expect(env.AI.run("@cf/none/such", { prompt: "x" })).rejects.toThrow(/^5007: No such model @cf\/none\/such or task/);
});
