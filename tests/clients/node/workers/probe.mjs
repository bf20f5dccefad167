// Calls every part of the AI binding and reports what came back, for tests/clients/test_workers.py.
const MODEL = "@cf/meta/llama-3.1-8b-instruct-fast";
const INPUTS = { messages: [{ role: "user", content: "Say hello" }] };

async function attempt(call) {
  try {
    return await call();
  } catch (error) {
    return { name: error.name, message: error.message };
  }
}

async function readThenAbort(ai) {
  const controller = new AbortController();
  let stream;
  try {
    stream = await ai.run(MODEL, { ...INPUTS, stream: true }, { signal: controller.signal });
  } catch {
    return null; // the signal cannot be handed over at all
  }
  const reader = stream.getReader();
  await reader.read();
  controller.abort();
  try {
    while (!(await reader.read()).done);
    return "ended";
  } catch (error) {
    return error.name;
  }
}

export default {
  async fetch(request, { AI: ai }) {
    const report = {};
    report.json = await attempt(() => ai.run(MODEL, INPUTS));
    report.lastRequestId = await attempt(() => ai.lastRequestId);
    report.stream = await attempt(async () => {
      const stream = await ai.run(MODEL, { ...INPUTS, stream: true });
      return { isStream: stream instanceof ReadableStream, text: await new Response(stream).text() };
    });
    report.raw = await attempt(async () => {
      const options = { returnRawResponse: true, extraHeaders: { "x-session-affinity": "a" }, gateway: { id: "g" } };
      const response = await ai.run(MODEL, INPUTS, options);
      return {
        isResponse: response instanceof Response,
        status: response.status,
        type: response.headers.get("content-type"),
        id: response.headers.get("cf-ai-req-id"),
        body: await response.json(),
      };
    });
    report.badInput = await attempt(() => ai.run(MODEL, { ...INPUTS, temperature: 9 }));
    report.badStream = await attempt(() => ai.run(MODEL, { ...INPUTS, temperature: 9, stream: true }));
    report.unknownModel = await attempt(() => ai.run("@cf/none/such", INPUTS));
    report.status = await attempt(() => [ai.lastRequestHttpStatusCode, ai.lastRequestInternalStatusCode]);
    report.models = await attempt(async () => (await ai.models({ per_page: 5 })).map((model) => model.name));
    report.fetch = await attempt(async () => (await ai.fetch("https://workers-binding.ai/ai-api/models/search")).status);
    report.binary = await attempt(() => ai.run(MODEL, { image: { body: new Response("x").body, contentType: "image/png" } }));
    report.abortedBefore = await attempt(() => ai.run(MODEL, INPUTS, { signal: AbortSignal.abort() }));
    report.abortedAfter = await readThenAbort(ai);
    return Response.json(report);
  },
};
