// Counts words. A function in Node: an HTTP server on $PORT with POST /invoke, nothing else.
//
// The body is {"input": ..., "metadata": {...}}; the answer is any JSON. GET /health says when it is ready.
const http = require("node:http");

function handle(input) {
  if (typeof input !== "string") throw new Error("input must be text");
  const words = input.toLowerCase().match(/\p{L}+/gu) ?? [];
  const counts = {};
  for (const word of words) counts[word] = (counts[word] ?? 0) + 1;
  return { words: words.length, counts };
}

const server = http.createServer((request, response) => {
  const answer = (status, value) => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(value));
  };
  if (request.method === "GET" && request.url === "/health") return answer(200, "ok");
  if (request.method !== "POST" || request.url !== "/invoke") return answer(404, { error: "POST /invoke" });
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    try {
      const { input } = JSON.parse(Buffer.concat(pieces));
      console.log(`execution ${request.headers["x-execution-id"]}`); // shown by `flash logs words`
      answer(200, handle(input));
    } catch (error) {
      answer(500, { error: error.message });
    }
  });
});

server.listen(process.env.PORT, "127.0.0.1");
