// The tutorial's session with openapi-typescript's types: node session.js URL
import assert from "node:assert/strict";
import process from "node:process";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Hero = components["schemas"]["HeroPublic"];

const client = createClient<paths>({ baseUrl: process.argv[2] ?? "" });

const ready = await client.GET("/readyz");
assert.equal(ready.data?.status, "ready");

const created = await client.POST("/heroes/", { body: { name: "Deadpond", secret_name: "Dive Wilson" } });
assert(created.data);
const hero: Hero = created.data;
assert.equal(hero.age, null);

const listed = await client.GET("/heroes/", { params: { query: { limit: 10 } } });
assert.deepEqual(listed.data, [hero]);

const params = { path: { hero_id: hero.id } };
const changed = await client.PATCH("/heroes/{hero_id}", { params, body: { age: 28 } });
assert.deepEqual(changed.data, { ...hero, age: 28 });

const refused = await client.PATCH("/heroes/{hero_id}", { params, body: { name: "" } });
assert.equal(refused.response.status, 422);

const deleted = await client.DELETE("/heroes/{hero_id}", { params });
assert.deepEqual(deleted.data, { ok: true });

const missing = await client.GET("/heroes/{hero_id}", { params });
assert.equal(missing.response.status, 404);
assert.deepEqual(missing.error, { detail: "Hero not found" });

// What the schema forbids does not compile.
// @ts-expect-error A name can be changed, but not set to null.
void ({ name: null } satisfies components["schemas"]["HeroUpdate"]);
// @ts-expect-error A response has no secret.
void hero.secret_name;
