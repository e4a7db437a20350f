// What the server says: the list of its models, and answers as they are written.

/** An error that the server, or the way to it, tells of in a sentence. */
export class Told extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

/** Return the objects of server-sent events, as their bytes come in. */
export async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(brokeOff);
      text += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const parts = text.split(/\r?\n\r?\n/); // a proxy may end lines in its own way
      text = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5)).join("\n").trim();
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
      if (done) brokeOff();
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function brokeOff(error) {
  if (error?.name === "AbortError") throw error;
  throw new Told("The answer broke off: ask again.", "broke-off");
}

/** Call the server; what it refuses becomes a Told. */
async function call(path, key, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Told("The server cannot be reached: is it running?", "unreachable");
  }
  if (answer.ok) return answer;
  const said = (await answer.json().catch(() => ({}))).error ?? {};
  throw new Told(said.message ?? `The server answered with status ${answer.status}.`, said.code);
}

/** Return the models that may be asked. */
export async function models(key) {
  return (await (await call("v1/models", key)).json()).data;
}

/** Ask, and return the chunks of the answer. */
export async function* answer(key, question, signal) {
  const body = JSON.stringify({
    model: question.model,
    messages: [{
      role: "user",
      content: [
        { type: "image_url", image_url: { url: question.image } },
        { type: "text", text: question.text },
      ],
    }],
    max_tokens: question.tokens,
    stream: true,
    stream_options: { include_usage: true },
  });
  const headers = { "Content-Type": "application/json" };
  const stream = await call("v1/chat/completions", key, { method: "POST", headers, body, signal });
  for await (const chunk of events(stream.body)) {
    if (chunk.error) throw new Told(chunk.error.message, chunk.error.code);
    yield chunk;
  }
}
