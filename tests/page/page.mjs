// The page in a real browser, beside a migration under way.
//
// Arguments: its address, the administrator's token, a token that may only look, a folder for pictures. What the test
// that starts this has to do in between is asked for on standard output and answered on standard input, a line each:
//   calm   the guest is to stop changing its memory, so that the migration ends
//   kill   the control plane is to be killed
// It ends with status 0, or with what is wrong.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import readline from "node:readline";
import { chromium } from "playwright-core";

const [base, admin, reader, pictures] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const WIDTHS = [360, 820, 1440];
const answers = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const ask = async (what) => {
  console.log(`ask ${what}`);
  await answers.next();
};

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
});

// A tab that keeps account of what must not happen.
const tab = async (options = {}) => {
  const context = await browser.newContext({ baseURL: base, viewport: { width: 1440, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  const faults = [];
  page.on("console", (said) => {
    // The browser's own word for a 401 is expected where a wrong token is tried.
    if (["error", "warning"].includes(said.type()) && !/status of 401/.test(said.text())) faults.push(said.text());
  });
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(`${base}/`)) faults.push(`asked for ${request.url()}`);
  });
  return { context, page, faults };
};

const enter = async (page, token) => {
  await page.goto("/");
  assert.equal(new URL(page.url()).pathname, "/ui/login", "nothing is shown before a token");
  await page.getByLabel("Token").fill(token);
  await page.getByRole("button", { name: "Enter" }).click();
};

// No fault that axe knows of, at this width; and nothing hangs over the side.
const accessible = async (page, what) => {
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run());
  const told = found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(" | ")}`);
  assert.deepEqual(told, [], what);
  const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(over <= 0, `${what} hangs over by ${over} px`);
};

const look = async (page, name) => {
  for (const width of WIDTHS) {
    await page.setViewportSize({ width, height: 900 });
    await accessible(page, `${name} at ${width}`);
    await page.screenshot({ path: `${pictures}/${name}-${width}.png`, fullPage: true });
  }
};

// The door.
const first = await tab();
await enter(first.page, "0123456789abcdef-wrong");
await first.page.getByRole("alert").waitFor();
assert.equal(await first.page.getByLabel("Token").inputValue(), "", "a token came back");
await look(first.page, "door");
await first.page.getByLabel("Token").fill(admin);
await first.page.keyboard.press("Enter");
await first.page.getByRole("heading", { name: "Migrations", exact: true }).waitFor();
const [cookie] = await first.context.cookies();
assert.deepEqual([cookie.httpOnly, cookie.sameSite], [true, "Strict"]);
assert.equal(await first.page.evaluate(() => document.cookie), "", "a script reads the cookie");
assert.ok(!(await first.page.content()).includes(cookie.value), "the page shows the cookie");

// A migration under way: every figure, and it moves.
const { page } = first;
await page.getByRole("status").getByText("Live").waitFor();
const card = page.locator("article.card");
await card.locator("svg polyline.throughput").waitFor();
await card.locator("svg polyline.dirty").waitFor();
for (const words of [
  "The guest runs at the source.", "Throughput", "Dirty rate", "Saved", "Predicted downtime", "Downtime limit",
  "both ends may use it and the flags let it", "faster than it is carried",
]) await card.getByText(words).first().waitFor();
const passes = () => card.locator("div", { has: page.locator("dt", { hasText: "Left to send" }) }).last().innerText();
const before = await passes();
await page.waitForFunction(
  (before) => ![...document.querySelectorAll("article.card dl div")].some((one) => one.innerText === before),
  before,
);
await look(page, "moving");
await page.emulateMedia({ colorScheme: "dark" });
await accessible(page, "dark");
await page.screenshot({ path: `${pictures}/moving-dark.png`, fullPage: true });
await page.emulateMedia({ colorScheme: "light" });

// The keyboard alone: the first stop leads past the head, and the switch is opened and stays open.
await page.reload();
await page.keyboard.press("Tab");
assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
await page.locator("#turn summary").focus();
await page.keyboard.press("Enter");
const throwing = page.getByRole("button", { name: "Everything back to v1 now" });
await throwing.waitFor();
await page.waitForTimeout(1_500);
assert.ok(await throwing.isVisible(), "what was opened was closed");

// Without scripts all of it can be read.
const plain = await tab({ javaScriptEnabled: false });
await enter(plain.page, reader);
assert.equal(new URL(plain.page.url()).pathname, "/ui/");
for (const words of ["As of", "load again", "Dirty rate", "Predicted downtime", "Off: the flags decide.", "Round trip"]) {
  await plain.page.getByText(words).first().waitFor();
}
assert.equal(await plain.page.locator("svg polyline.throughput").count(), 1);
await plain.page.screenshot({ path: `${pictures}/plain-820.png`, fullPage: true });

// Who may only look sees no way to turn the switch, and has none.
assert.equal(await plain.page.locator("#turn").count(), 0);
const looker = await tab();
await enter(looker.page, reader);
await looker.page.getByText("scope operate").waitFor();
const proof = await looker.page.locator("input[name=proof]").first().inputValue();
const post = (path, form) => looker.page.evaluate(async ([path, form]) => {
  const answer = await fetch(path, { method: "POST", body: new URLSearchParams(form), redirect: "manual" });
  return answer.type === "opaqueredirect" ? 303 : answer.status;
}, [path, form]);
looker.faults.length = 0;
assert.equal(await post("/ui/switch", { proof, force_v1: "true" }), 403);
assert.equal(await post("/ui/logout", { proof: "0".repeat(64) }), 403);
looker.faults.length = 0;
await looker.page.getByRole("button", { name: "Leave" }).click();
await looker.page.getByLabel("Token").waitFor();
assert.deepEqual(await looker.context.cookies(), [], "the cookie outlives the session");

// Another site cannot turn it: its form comes without the cookie, and is not from here.
const foreign = await (await browser.newContext()).newPage();
await foreign.setContent(`<form method="post" action="${base}/ui/switch"><input name="force_v1" value="true"><button>go</button></form>`);
const [refused] = await Promise.all([
  foreign.waitForResponse((answer) => answer.url() === `${base}/ui/switch`),
  foreign.getByRole("button").click(),
]);
assert.equal(refused.status(), 401);

// The switch, as a form; the other tab hears of it by itself.
const watching = await first.context.newPage();
await watching.goto("/ui/");
await watching.getByText("Off: the flags decide.").waitFor();
await throwing.click();
await page.getByText("On: everything runs in v1.").waitFor();
await watching.getByText("On: everything runs in v1.").waitFor();
await card.getByText("the first batch in v1 left").waitFor();
await page.locator("#versions").getByText("The kill switch is on.").first().waitFor();
await look(page, "forced");
await page.locator("#turn summary").click();
await page.getByRole("button", { name: "Let the flags decide" }).click();
await page.getByText("Off: the flags decide.").waitFor();
await watching.close();

// The end: measured beside predicted.
await ask("calm");
const row = page.locator("#migrations table tbody tr").first();
await row.getByText("completed").waitFor({ timeout: 180_000 });
await page.getByText("Nothing is moving.").waitFor();
const cells = await row.locator("td").allInnerTexts();
assert.match(cells[3], /ms|s/, "a measured downtime");
assert.match(cells[4], /ms|s/, "a predicted downtime");
await look(page, "over");

// Nobody there any more: the page says since when.
await ask("kill");
await page.getByRole("status").getByText("Stale").waitFor();
await accessible(page, "stale");
await page.setViewportSize({ width: 820, height: 900 });
await page.screenshot({ path: `${pictures}/stale-820.png` });

// When nobody answers, the browser says so: that alone is expected.
const faults = [first, plain, looker].flatMap((one) => one.faults);
assert.deepEqual(faults.filter((fault) => !/net::ERR_/.test(fault)), []);
await browser.close();
console.log("the page is good");
process.exit(0);
