// The https server in front of a bot that guides for bots paste, with kept connections to the bot and WebSockets.
const fs = require("fs");
const http = require("http");
const https = require("https");

const [, , port, bot, cert, key] = process.argv;
const [host, botPort] = bot.split(":");
const agent = new http.Agent({ keepAlive: true });

function options(request) {
  const headers = {
    ...request.headers,
    "x-forwarded-for": request.socket.remoteAddress,
    "x-forwarded-proto": "https",
  };
  return { host, port: botPort, agent, method: request.method, path: request.url, headers };
}

const server = https.createServer(
  { cert: fs.readFileSync(cert), key: fs.readFileSync(key) },
  (request, response) => {
    const upstream = http.request(options(request), (answer) => {
      response.writeHead(answer.statusCode, {
        ...answer.headers,
        "strict-transport-security": "max-age=31536000",
      });
      answer.pipe(response);
    });
    upstream.on("error", () => response.writeHead(502).end());
    request.pipe(upstream);
  },
);

server.on("upgrade", (request, socket, head) => {
  const upstream = http.request({ ...options(request), agent: undefined });
  upstream.on("upgrade", (answer, origin, rest) => {
    const lines = Object.entries(answer.headers).map(([name, value]) => `${name}: ${value}\r\n`);
    socket.write(`HTTP/1.1 101 Switching Protocols\r\n${lines.join("")}\r\n`);
    socket.write(rest);
    origin.write(head);
    origin.pipe(socket).pipe(origin);
    origin.on("error", () => socket.destroy());
    socket.on("error", () => origin.destroy());
  });
  upstream.on("error", () => socket.destroy());
  upstream.end();
});

server.keepAliveTimeout = 75000;
server.listen(Number(port), "127.0.0.1");
