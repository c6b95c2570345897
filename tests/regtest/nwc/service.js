// Alby's wallet service over lnd's REST interface: the SDK speaks NWC, and what is here asks lnd. lnd's database is the only memory.
//
// Its settings are in the environment: RELAY_URL, WALLET_SECRET, CLIENT_KEY, LND_REST, LND_MACAROON (a file), BUDGET_MSAT (an order
// above it is refused), METHODS (those that it has). lnd's certificate is in NODE_EXTRA_CA_CERTS.
'use strict';

const fs = require('fs');
const https = require('https');

globalThis.WebSocket = require('ws');
globalThis.crypto ??= require('crypto').webcrypto;
const { NWCWalletService, NWCWalletServiceKeyPair } = require('@getalby/sdk');

const { RELAY_URL, WALLET_SECRET, CLIENT_KEY, LND_REST, LND_MACAROON, BUDGET_MSAT, METHODS } = process.env;
const macaroon = fs.readFileSync(LND_MACAROON).toString('hex');
const methods = METHODS.split(' ');
const STATES = { SUCCEEDED: 'settled', FAILED: 'failed', IN_FLIGHT: 'pending', INITIATED: 'pending' };

// Asks lnd, and resolves to the status and the first line of JSON that it answers with, or the last one before the end.
function ask(method, path, body, { firstLine = false } = {}) {
  return new Promise((resolve, reject) => {
    const options = { method, headers: { 'Grpc-Metadata-macaroon': macaroon } };
    const request = https.request(LND_REST + path, options, (response) => {
      let text = '';
      const end = () => {
        const lines = text.split('\n').filter(Boolean);
        if (!lines.length) reject(new Error('lnd says nothing'));
        else resolve({ status: response.statusCode, said: JSON.parse(firstLine ? lines[0] : lines[lines.length - 1]) });
      };
      response.on('data', (data) => {
        text += data;
        if (firstLine && text.includes('\n')) {
          end();
          request.destroy();
        }
      });
      response.on('end', end);
      response.on('error', reject);
    });
    request.on('error', reject);
    request.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

const fault = (code, message) => ({ result: undefined, error: { code, message } });
const limitOf = (amountMsat) => Math.max(10_000, Math.ceil(amountMsat / 100));
const messageOf = (said) => (said.error ?? said).message;

function transaction(payment) {
  const created = Math.floor(Number(payment.creation_time_ns) / 1e9);
  const isPaid = payment.status === 'SUCCEEDED';
  return {
    type: 'outgoing',
    state: STATES[payment.status],
    invoice: payment.payment_request,
    payment_hash: payment.payment_hash,
    preimage: isPaid ? payment.payment_preimage : undefined,
    amount: Number(payment.value_msat),
    fees_paid: Number(payment.fee_msat),
    created_at: created,
    settled_at: isPaid ? created : undefined,
  };
}

const handler = {
  async getInfo() {
    const { said } = await ask('GET', '/v1/getinfo');
    const { alias, color, identity_pubkey: pubkey, block_height, block_hash } = said;
    return { result: { alias, color, pubkey, network: said.chains[0].network, block_height, block_hash, methods }, error: undefined };
  },
  async getBalance() {
    const { said } = await ask('GET', '/v1/balance/channels');
    return { result: { balance: Number(said.local_balance.msat) }, error: undefined };
  },
  async payInvoice({ invoice }) {
    const decoded = await ask('GET', `/v1/payreq/${encodeURIComponent(invoice)}`);
    if (decoded.status !== 200) return fault('OTHER', messageOf(decoded.said));
    const amountMsat = Number(decoded.said.num_msat);
    if (BUDGET_MSAT && amountMsat > Number(BUDGET_MSAT)) return fault('QUOTA_EXCEEDED', 'the budget of this connection is used up');
    const { said: balance } = await ask('GET', '/v1/balance/channels');
    if (amountMsat + limitOf(amountMsat) > Number(balance.local_balance.msat)) {
      return fault('INSUFFICIENT_BALANCE', 'not enough money for this payment');
    }
    const order = {
      payment_request: invoice,
      timeout_seconds: 60,
      fee_limit_msat: String(limitOf(amountMsat)),
      no_inflight_updates: true,
    };
    const { said } = await ask('POST', '/v2/router/send', order);
    const payment = said.result;
    if (!payment) return fault('INTERNAL', messageOf(said));
    if (payment.status !== 'SUCCEEDED') return fault('PAYMENT_FAILED', payment.failure_reason);
    return { result: { preimage: payment.payment_preimage, fees_paid: Number(payment.fee_msat) }, error: undefined };
  },
  async lookupInvoice({ payment_hash }) {
    const path = Buffer.from(payment_hash, 'hex').toString('base64').replace(/\+/g, '-').replace(/\//g, '_');
    const { status, said } = await ask('GET', `/v2/router/track/${encodeURIComponent(path)}`, undefined, { firstLine: true });
    if (status === 404) return fault('NOT_FOUND', messageOf(said));
    if (!said.result) return fault('INTERNAL', messageOf(said));
    return { result: transaction(said.result), error: undefined };
  },
  async listTransactions({ limit = 50, offset = 0 }) {
    const { said } = await ask('GET', '/v1/payments?include_incomplete=true&reversed=true&max_payments=100000');
    const newestFirst = said.payments.sort((a, b) => Number(b.payment_index) - Number(a.payment_index));
    return { result: { transactions: newestFirst.slice(offset, offset + limit).map(transaction) }, error: undefined };
  },
};

const NAMES = {
  get_info: 'getInfo',
  get_balance: 'getBalance',
  pay_invoice: 'payInvoice',
  lookup_invoice: 'lookupInvoice',
  list_transactions: 'listTransactions',
};

async function main() {
  const service = new NWCWalletService({ relayUrls: [RELAY_URL] });
  const permitted = Object.fromEntries(methods.map((name) => [NAMES[name], handler[NAMES[name]]]));
  await service.subscribe(new NWCWalletServiceKeyPair(WALLET_SECRET, CLIENT_KEY), permitted);
  await service.publishWalletServiceInfoEvent(WALLET_SECRET, methods, []);
  console.log('ready');
}

process.on('unhandledRejection', (error) => console.error('unhandled', error));
main().catch((error) => {
  console.error(error);
  process.exit(1);
});
