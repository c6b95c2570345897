// mppx with a lightning method for charges. The method does what the one of the Spark SDK (lightning-mpp-sdk) does, with an lnd in place of
// Spark's wallet: an invoice for each challenge, a preimage for a payment, used preimages kept in memory, and, where a credential came that
// isn't taken, a fresh challenge for the same invoice.
//
// The modules are imported by file: the package's own door imports all its methods, and with them viem (70 MB).
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const https = require('https');
const path = require('path');
const { pathToFileURL } = require('url');

// mppx reads the clock by `new Date()`, which the guard leaves alone.
const aheadMs = Number(process.env.SERVER_CLOCK_AHEAD_S) * 1000;
const RealDate = Date;
globalThis.Date = class extends RealDate {
  constructor(...parts) {
    if (parts.length) super(...parts);
    else super(Date.now());
  }
};
if (aheadMs && Math.abs(new Date() - new RealDate() - aheadMs) > 60000) throw new Error('the clock is not ahead');

const dist = path.dirname(require.resolve(process.env.SERVER_PACKAGE));
const load = (file) => import(pathToFileURL(path.join(dist, file)));

function ask(method, route, body) {
  return new Promise((resolve, reject) => {
    const request = https.request(process.env.LND_REST + route, {
      method,
      headers: { 'Grpc-Metadata-macaroon': fs.readFileSync(process.env.LND_MACAROON).toString('hex') },
      ca: fs.readFileSync(process.env.LND_CERT),
    }, (answer) => {
      const chunks = [];
      answer.on('data', (chunk) => chunks.push(chunk));
      answer.on('end', () => resolve(JSON.parse(Buffer.concat(chunks).toString())));
    });
    request.on('error', reject);
    request.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

function lightning({ Method, z }) {
  const used = new Set();
  const charge = Method.from({
    name: 'lightning',
    intent: 'charge',
    schema: {
      credential: { payload: z.object({ preimage: z.string() }) },
      request: z.object({
        amount: z.string(),
        currency: z.string(),
        methodDetails: z.optional(z.object({ invoice: z.string(), paymentHash: z.string(), network: z.string() })),
      }),
    },
  });
  return Method.toServer(charge, {
    async request({ credential, request }) {
      if (credential) return credential.challenge.request;
      const made = await ask('POST', '/v1/invoices', { value: request.amount, memo: '' });
      const paymentHash = Buffer.from(made.r_hash, 'base64').toString('hex');
      return { ...request, methodDetails: { invoice: made.payment_request, paymentHash, network: 'regtest' } };
    },
    async verify({ credential }) {
      const { paymentHash } = credential.challenge.request.methodDetails;
      const { preimage } = credential.payload;
      if (crypto.createHash('sha256').update(Buffer.from(preimage, 'hex')).digest('hex') !== paymentHash) {
        throw new Error(`Invalid preimage: sha256(${preimage}) != ${paymentHash}`);
      }
      if (used.has(paymentHash)) throw new Error(`Preimage already consumed for payment: ${paymentHash}`);
      used.add(paymentHash);
      return { method: 'lightning', status: 'success', timestamp: new Date().toISOString(), reference: paymentHash };
    },
  });
}

async function main() {
  const [Mppx, Method, z] = [await load('server/Mppx.js'), await load('Method.js'), await load('zod.js')];
  const mppx = Mppx.create({ methods: [lightning({ Method, z })], realm: 'mppx.test', secretKey: process.env.SERVER_KEY });

  async function sold(request) {
    const expires = new Date(Date.now() + Number(process.env.SERVER_LIFE_S) * 1000).toISOString();
    const { pathname } = new URL(request.url);
    const result = await mppx.charge({ amount: '10', currency: 'sat', description: `Weather for ${pathname}`, expires })(request);
    if (result.status !== 200) return result.challenge;
    return result.withReceipt(Response.json({ method: request.method, path: pathname, body: await request.text() }));
  }

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
}

main();
