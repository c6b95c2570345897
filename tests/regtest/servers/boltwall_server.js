// boltwall, with its own client of lnd's gRPC. A token opens the whole server for an hour.
'use strict';

const fs = require('fs');

process.env.LND_SOCKET = process.env.LND_GRPC;
process.env.LND_TLS_CERT = fs.readFileSync(process.env.LND_CERT).toString('base64');
process.env.LND_MACAROON = fs.readFileSync(process.env.LND_MACAROON).toString('base64');
process.env.SESSION_SECRET = process.env.SERVER_KEY;
process.env.LOG_LEVEL = 'error';

const express = require('express');
const { boltwall, TIME_CAVEAT_CONFIGS } = require('boltwall');

const PRICE_SAT = 10;
const app = express();
app.use(express.text({ type: '*/*' }));
app.use((request, response, next) => {
  // boltwall reads the fields of a form in the body, which this server has none of.
  request.sent = typeof request.body === 'string' ? request.body : '';
  request.body = {};
  next();
});
app.use(boltwall({ ...TIME_CAVEAT_CONFIGS, minAmount: PRICE_SAT, rate: PRICE_SAT / 3600 }));
app.use((request, response) => response.json({ method: request.method, path: request.path, body: request.sent }));
app.listen(Number(process.env.SERVER_PORT), '127.0.0.1');
