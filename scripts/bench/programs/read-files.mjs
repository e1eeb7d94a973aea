// read-files.mjs DIR: stats and reads every file below a directory, as tools written in JavaScript do.
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

let bytes = 0;
function walk(dir) {
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    const path = join(dir, entry.name);
    if (entry.isDirectory()) walk(path);
    else bytes += Math.min(statSync(path).size, readFileSync(path).length);
  }
}
walk(process.argv[2]);
console.log(bytes);
