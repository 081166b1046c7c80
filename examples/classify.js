// Classify images over gRPC, with stubs that are made from protos/ while it runs.
//
//     npm install @grpc/grpc-js @grpc/proto-loader
//     node examples/classify.js ADDRESS MODEL FILE...
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const definition = loader.loadSync("medserve/v1/imaging.proto", {
  includeDirs: [path.join(__dirname, "..", "protos")],
  defaults: true,
  keepCase: true,
  longs: Number,
});
const { ImagingService } = grpc.loadPackageDefinition(definition).medserve.v1;

const [address, model, ...files] = process.argv.slice(2);
const service = new ImagingService(address, grpc.credentials.createInsecure());
const lines = new Map(); // answers come in no particular order

const call = service.Classify();
call.on("data", ({ index, id, classification, error }) => {
  const answer = classification
    ? `${classification.label} ${classification.probability.toFixed(4)}`
    : error.message;
  lines.set(Number(index), `${id} ${answer}`);
});
call.on("error", (error) => {
  console.error(error.details);
  process.exitCode = 1;
});
call.on("end", () => {
  for (const index of [...lines.keys()].sort((a, b) => a - b)) console.log(lines.get(index));
});
call.write({ settings: { model_name: model } });
for (const file of files) {
  call.write({ image: { id: path.basename(file), content: fs.readFileSync(file) } });
}
call.end();
