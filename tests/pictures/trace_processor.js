// Perfetto's trace processor, as its web page runs it in a worker, under Node and without a network:
//   node trace_processor.js FOLDER < requests > replies
// FOLDER holds engine_bundle.js and trace_processor*.wasm. Requests and replies are
// perfetto.protos.TraceProcessorRpcStream messages, each request behind its length (4 bytes, little-endian).
'use strict';
const fs = require('fs');
const path = require('path');
const vm = require('vm');

const folder = process.argv[2];
const read = (url) => fs.readFileSync(path.join(folder, path.basename(String(url))));
const write = (fd, bytes) => { for (let at = 0; at < bytes.length; at += fs.writeSync(fd, bytes, at)); };

// What the bundle looks for in a worker.
globalThis.self = globalThis;
globalThis.location = {href: 'http://localhost/engine/'};
globalThis.WorkerGlobalScope = function () {};
globalThis.importScripts = () => {};
globalThis.fetch = async (url) =>
  new Response(read(url), {headers: {'content-type': 'application/wasm'}});
globalThis.XMLHttpRequest = class {
  open(_method, url) { this.url = url; }
  send() { this.status = 200; this.response = new Uint8Array(read(this.url)).buffer; }
};
const node = process;
const {exit} = process;
Object.defineProperty(globalThis, 'process', {value: undefined, configurable: true, writable: true});
// Its own lines must not stand among the replies.
console.log = console.info = console.debug = (...words) => console.error(...words);

const requests = fs.readFileSync(0);
vm.runInThisContext(read('engine_bundle.js').toString(), {filename: 'engine_bundle.js'});
const port = {onmessage: null, postMessage: (reply) => write(1, Buffer.from(reply))};
globalThis.onmessage({data: port});
const timer = setInterval(() => {
  if (port.onmessage === null) return; // The engine is not compiled yet.
  clearInterval(timer);
  try {
    for (let at = 0; at < requests.length;) {
      const length = requests.readUInt32LE(at);
      port.onmessage({data: new Uint8Array(requests.subarray(at + 4, at + 4 + length))});
      at += 4 + length;
    }
    exit.call(node, 0);
  } catch (error) {
    console.error(error);
    exit.call(node, 1);
  }
}, 20);
