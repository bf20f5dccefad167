// The official `openai` package, unmodified: chat with and without streaming, tools, JSON, models.
import OpenAI from "openai";

const model = "@cf/meta/llama-3.1-8b-instruct-fast";
const say = (content) => [{ role: "user", content }];
const client = new OpenAI({
  apiKey: "token",
  baseURL: process.env.TAMPU_TEST_SERVER + process.argv[2],
});
const tool = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather of a city",
    parameters: { type: "object", properties: { city: { type: "string", description: "City" } }, required: ["city"] },
    parse: JSON.parse,
    function: ({ city }) => ({ city, temperature: 21 }),
  },
};

const chat = client.chat.completions;
const report = {};
report.plain = await chat.create({ model, messages: say("Say hello") });
const stream = await chat.create({ model, messages: say("Say hello"), stream: true, stream_options: { include_usage: true } });
report.chunks = [];
for await (const chunk of stream) {
  report.chunks.push(chunk);
}
report.helper = await chat.stream({ model, messages: say("Say hello") }).finalContent();
report.tools = (await chat.create({ model, messages: say("Weather?"), tools: [tool], tool_choice: "required" })).choices[0];
const callStream = await chat.create({ model, messages: say("Weather?"), tools: [tool], stream: true });
report.callDeltas = [];
for await (const chunk of callStream) {
  report.callDeltas.push(...(chunk.choices[0].delta.tool_calls ?? []));
}
const streamed = chat.stream({ model, messages: say("Weather?"), tools: [tool] });
report.argumentDeltas = [];
streamed.on("tool_calls.function.arguments.delta", ({ arguments_delta }) => report.argumentDeltas.push(arguments_delta));
report.streamedCall = (await streamed.finalChatCompletion()).choices[0];
report.runTools = await chat.runTools({ model, messages: say("Weather in Lima?"), tools: [tool] }).finalContent();
report.runToolsStreaming = await chat
  .runTools({ model, messages: say("Weather in Lima?"), tools: [tool], stream: true })
  .finalContent();
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
report.json = (
  await chat.create({
    model,
    messages: say("A city"),
    response_format: { type: "json_schema", json_schema: { name: "city", strict: true, schema } },
  })
).choices[0].message.content;
report.models = (await Array.fromAsync(client.models.list())).map(({ id }) => id);
report.completion = (await client.completions.create({ model, prompt: "Say hello" })).choices[0];
console.log(JSON.stringify(report));
