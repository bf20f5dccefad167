// `workers-ai-provider` with the AI SDK, unmodified: over our binding object, and over REST by its `fetch` option.
import { createAI } from "tampu-workers";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { createWorkersAI } from "workers-ai-provider";
import { z } from "zod";

const MODEL = "@cf/meta/llama-3.1-8b-instruct-fast";
const server = process.env.TAMPU_TEST_SERVER;
const overBinding = createWorkersAI({ binding: createAI({ url: server }) });
const overRest = createWorkersAI({
  accountId: "0123456789abcdef0123456789abcdef",
  apiKey: "token",
  fetch: (url, init) => fetch(String(url).replace("https://api.cloudflare.com", server), init),
});
const weather = tool({
  description: "The weather of a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => ({ city, temperature: 21 }),
});

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    const last = error.lastError ?? error;
    return { message: last.message, status: last.statusCode };
  }
}

async function exercise(provider) {
  const model = provider(MODEL);
  const report = {};
  const plain = await generateText({ model, prompt: "Say hello" });
  report.plain = { text: plain.text, finishReason: plain.finishReason, usage: plain.usage };
  const streamed = streamText({ model, prompt: "Say hello" });
  report.chunks = await Array.fromAsync(streamed.textStream);
  report.streamFinish = await streamed.finishReason;
  report.streamUsage = await streamed.usage;
  const cut = await generateText({ model, prompt: "one two three four five six", maxOutputTokens: 2 });
  report.cut = cut.finishReason;
  const tools = { get_weather: weather };
  const looped = await generateText({ model, prompt: "Weather in Lima?", tools, stopWhen: stepCountIs(3) });
  report.tools = { text: looped.text, steps: looped.steps.map((step) => step.finishReason) };
  const streamLoop = streamText({ model, prompt: "Weather in Lima?", tools, stopWhen: stepCountIs(3) });
  report.toolStream = (await Array.fromAsync(streamLoop.textStream)).join("");
  const output = Output.object({ schema: z.object({ city: z.string() }) });
  report.object = (await generateText({ model, prompt: "A city", output })).output;
  report.unknownModel = await failure(() => generateText({ model: provider("@cf/none/such"), prompt: "x", maxRetries: 0 }));
  report.down = await failure(() => generateText({ model, prompt: "always down", maxRetries: 0 }));
  return report;
}

const report = { binding: await exercise(overBinding), rest: await exercise(overRest) };
report.flaky = (await generateText({ model: overRest(MODEL), prompt: "flaky for ai-sdk" })).text;
console.log(JSON.stringify(report));
