// next-l402's handler for API routes, with its own client of lnd's REST. Node's HTTP server stands where Next.js would.
'use strict';

const fs = require('fs');
const http = require('http');
const { createRestLightningClient, withL402 } = require('next-l402');

const lightning = createRestLightningClient({
  host: process.env.LND_REST,
  macaroon: fs.readFileSync(process.env.LND_MACAROON).toString('base64'),
});

const sold = withL402(
  async (request) => Response.json({ method: request.method, path: new URL(request.url).pathname, body: await request.text() }),
  { lightning, priceSats: 10, secretKey: Buffer.from(process.env.SERVER_KEY, 'hex'), location: 'http://127.0.0.1' },
);

http.createServer(async (incoming, outgoing) => {
  const chunks = [];
  for await (const chunk of incoming) chunks.push(chunk);
  const request = new Request(`http://127.0.0.1${incoming.url}`, {
    method: incoming.method,
    headers: incoming.headers,
    body: chunks.length ? Buffer.concat(chunks) : undefined,
  });
  let answer;
  try {
    answer = await sold(request);
  } catch (error) {
    console.error(error);
    answer = new Response('Internal Server Error', { status: 500 });
  }
  outgoing.writeHead(answer.status, Object.fromEntries(answer.headers));
  outgoing.end(Buffer.from(await answer.arrayBuffer()));
}).listen(Number(process.env.SERVER_PORT), '127.0.0.1');
