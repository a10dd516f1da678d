/** The data of a stream of server-sent events, event by event. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) yield part.slice(6);
    }
  }
}

/** The chat box. `headers()` are those of a request. */
class Chat {
  constructor(headers) {
    this.headers = headers;
    this.messages = [];
    this.said = document.getElementById("said");
    this.stop = null;
    document.getElementById("say").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.stop) {
        this.stop.abort();
        return;
      }
      const input = event.target.elements.text;
      if (input.value.trim()) this.say(input.value);
      input.value = "";
    });
    document.getElementById("anew").addEventListener("click", () => {
      this.stop?.abort();
      this.messages = [];
      this.said.textContent = "";
    });
  }

  add(role, text) {
    const line = document.createElement("div");
    line.className = role;
    line.textContent = text;
    this.said.append(line);
    this.said.scrollTop = this.said.scrollHeight;
    return line;
  }

  async say(text) {
    this.messages.push({ role: "user", content: text });
    this.add("user", text);
    const line = this.add("assistant", "");
    this.stop = new AbortController();
    document.getElementById("send").textContent = "Stop";
    try {
      const response = await fetch("v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json", ...this.headers() },
        body: JSON.stringify({ messages: this.messages, stream: true, max_tokens: 256 }),
        signal: this.stop.signal,
      });
      if (!response.ok) throw new Error((await response.json()).error.message);
      for await (const data of events(response)) {
        if (data !== "[DONE]") line.textContent += JSON.parse(data).choices[0]?.delta.content ?? "";
        this.said.scrollTop = this.said.scrollHeight;
      }
    } catch (error) {
      if (error.name !== "AbortError") this.add("soft", error.message);
    }
    this.messages.push({ role: "assistant", content: line.textContent });
    this.stop = null;
    document.getElementById("send").textContent = "Send";
  }
}
