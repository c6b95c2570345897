// Loaded before each server (`node --require`): no connection leaves this machine, and the clock is set ahead where the tests want it so.
// A connection to another machine, or a look-up of its name, fails and is written to the log as `OUTSIDE`.
'use strict';

const dns = require('dns');
const net = require('net');

function isLoopback(host) {
  return host === 'localhost' || host === '::1' || host.startsWith('127.');
}

function check(host) {
  if (typeof host !== 'string' || isLoopback(host)) return;
  process.stderr.write(`OUTSIDE ${host}\n`);
  throw new Error(`${host} is another machine`);
}

const connect = net.Socket.prototype.connect;
net.Socket.prototype.connect = function (...args) {
  const first = Array.isArray(args[0]) ? args[0][0] : args[0];
  check(first !== null && typeof first === 'object' ? first.host : args[1]);
  return connect.apply(this, args);
};

for (const [resolver, name] of [[dns, 'lookup'], [dns.promises, 'lookup'], [dns, 'resolve'], [dns, 'resolveTxt']]) {
  const original = resolver[name];
  resolver[name] = function (host, ...rest) {
    check(host);
    return original.call(this, host, ...rest);
  };
}

const aheadMs = Number(process.env.SERVER_CLOCK_AHEAD_S) * 1000;
const now = Date.now;
Date.now = () => now() + aheadMs;

// Node 18 has it, but not as a global.
globalThis.crypto ??= require('crypto').webcrypto;
