// `@cloudflare/ai-utils`, unmodified: embedded function calling over our binding object.
import { runWithTools } from "@cloudflare/ai-utils";
import { createAI } from "tampu-workers";

const MODEL = "@cf/meta/llama-3.1-8b-instruct-fast";
const called = [];
const weather = {
  name: "get_weather",
  description: "The weather of a city",
  parameters: { type: "object", properties: { city: { type: "string", description: "City" } }, required: ["city"] },
  async function({ city }) {
    called.push(city);
    return JSON.stringify({ city, temperature: 21 });
  },
};
const inputs = () => ({ messages: [{ role: "user", content: "Weather in Lima?" }], tools: [weather] });
const ai = createAI({ url: process.env.TAMPU_TEST_SERVER });

const answer = await runWithTools(ai, MODEL, inputs(), { maxRecursiveToolRuns: 1, strictValidation: true });
const stream = await runWithTools(ai, MODEL, inputs(), { streamFinalResponse: true });
console.log(JSON.stringify({ called, answer, stream: await new Response(stream).text() }));
