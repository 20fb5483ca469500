// The same question, asked of Better Auth: an HTTP server of the least code that reads
// `{"api_key"}`, calls the API-key plugin's verification, and answers whose key it is. The plugin
// offers verification as a function and not as a route, so any user of it has such a server.
//
// Usage: node server.mjs DATABASE_FILE PORT. Prints one JSON line with a good key once it listens.
//
// What it leaves out is in its favour: callers are not authenticated, the plugin's rate limit (ten
// calls a day by default) is off, and SQLite runs in WAL mode.

import { randomBytes } from "node:crypto";
import { createServer } from "node:http";

import { apiKey } from "@better-auth/api-key";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import Database from "better-sqlite3";

const [databaseFile, port] = process.argv.slice(2);
const database = new Database(databaseFile);
database.pragma("journal_mode = WAL");

const auth = betterAuth({
  baseURL: `http://127.0.0.1:${port}`,
  secret: randomBytes(32).toString("hex"),
  database,
  telemetry: { enabled: false },
  logger: { level: "error" },
  emailAndPassword: { enabled: true },
  plugins: [apiKey({ rateLimit: { enabled: false } })],
});
await (await getMigrations(auth.options)).runMigrations();

const { user } = await auth.api.signUpEmail({
  body: {
    name: "Bench",
    email: "bench@example.org",
    password: randomBytes(16).toString("hex"),
  },
});
const { key } = await auth.api.createApiKey({ body: { name: "bench", userId: user.id } });

const server = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", async () => {
    try {
      const { api_key } = JSON.parse(Buffer.concat(chunks));
      const verdict = await auth.api.verifyApiKey({ body: { key: api_key } });
      const answer = JSON.stringify({
        is_valid: verdict.valid,
        key_id: verdict.key?.id ?? null,
        user_id: verdict.key?.referenceId ?? null,
      });
      response.writeHead(200, {
        "content-type": "application/json",
        "content-length": Buffer.byteLength(answer),
      });
      response.end(answer);
    } catch (error) {
      response.writeHead(500).end(String(error));
    }
  });
});
server.listen(Number(port), "127.0.0.1", () => console.log(JSON.stringify({ key })));
