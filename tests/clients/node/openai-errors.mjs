// The official `openai` package, unmodified: how it takes refusals, overload and a stream that breaks off.
import OpenAI from "openai";

const model = "@cf/meta/llama-3.1-8b-instruct-fast";
const say = (content) => [{ role: "user", content }];
let requests = 0;
const client = new OpenAI({
  apiKey: "token",
  baseURL: process.env.TAMPU_TEST_SERVER + process.argv[2],
  fetch(...given) {
    requests += 1;
    return fetch(...given);
  },
});
async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { type: error.constructor.name, status: error.status, code: error.code, message: error.message };
  }
}

async function counted(call) {
  requests = 0;
  return { result: await call(), requests };
}

const chat = client.chat.completions;
const report = {};
report.flaky = await counted(async () => (await chat.create({ model, messages: say(`flaky for openai at ${process.argv[2]}`) })).choices.length);
report.down = await counted(() => failure(() => chat.create({ model, messages: say("always down") })));
report.badInput = await counted(() => failure(() => chat.create({ model, messages: say("x"), temperature: 9 })));
report.badStream = await failure(() => chat.create({ model, messages: say("x"), temperature: 9, stream: true }));
report.unknownModel = await failure(() => chat.create({ model: "@cf/none/such", messages: say("x") }));
report.cut = { chunks: 0 };
try {
  const messages = say("one two three four five six seven");
  for await (const chunk of await chat.create({ model, messages, stream: true }, { headers: { "x-tampu-mock": "cut_after=2" } })) {
    report.cut.chunks += chunk.choices[0].delta.content ? 1 : 0;
  }
} catch (error) {
  report.cut.type = error.constructor.name;
}
console.log(JSON.stringify(report));
