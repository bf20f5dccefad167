// The official `cloudflare` package, unmodified, on the routes it knows: run, retries, errors, models with paging, schema.
import Cloudflare from "cloudflare";

const MODEL = "@cf/meta/llama-3.1-8b-instruct-fast";
const account_id = "0123456789abcdef0123456789abcdef";
let requests = 0;
const client = new Cloudflare({
  apiToken: "token",
  baseURL: `${process.env.TAMPU_TEST_SERVER}/client/v4`,
  fetch(...given) {
    requests += 1;
    return fetch(...given);
  },
});
const run = (inputs) => client.ai.run(MODEL, { account_id, ...inputs });

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { type: error.constructor.name, status: error.status, errors: error.errors };
  }
}

async function counted(call) {
  requests = 0;
  return { result: await call(), requests };
}

const report = {};
report.prompt = await run({ prompt: "Say hello" });
report.messages = await run({ messages: [{ role: "user", content: "Say hello" }] });
report.flaky = await counted(() => run({ prompt: "flaky for cloudflare" }));
report.down = await counted(() => failure(() => run({ prompt: "always down" })));
report.badInput = await counted(() => failure(() => run({ prompt: "x", temperature: 9 })));
report.unknownModel = await failure(() => client.ai.run("@cf/none/such", { account_id, prompt: "x" }));
report.models = [];
for await (const model of client.ai.models.list({ account_id, per_page: 1 })) {
  report.models.push(model.name);
}
report.schema = Object.keys(await client.ai.models.schema.get({ account_id, model: MODEL }));
report.authors = (await Array.fromAsync(client.ai.authors.list({ account_id }))).length;
report.tasks = (await Array.fromAsync(client.ai.tasks.list({ account_id }))).length;
console.log(JSON.stringify(report));
