import { mkdir } from "node:fs/promises";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { chromiumPath, openBrowser, signIn, type TestBrowser } from "../support/browser.ts";
import { demo, HOSTS, withCluster } from "./support/demo.ts";

const executablePath = await chromiumPath();
const title = executablePath
	? "the console"
	: "the console (left out: there is no Chromium, and it can't be installed)";

/** A person at a browser, outside of the site, looking at what the region has. */
describe.skipIf(!executablePath)(title, () => {
	let browser: TestBrowser;
	let page: Page;

	beforeAll(async () => {
		await withCluster();
		browser = await openBrowser({
			executablePath: executablePath ?? "",
			domain: demo.domain(),
			address: `${await demo.lab.address("mgmt")}:443`,
		});
		page = await browser.context.newPage();
		page.setDefaultTimeout(30_000);
	});
	afterAll(async () => {
		await demo.gp(["host", "maintenance", "host-3", "off"], { check: false });
		await browser?.close();
	});

	const row = (table: string, name: string) =>
		page
			.getByRole("grid", { name: table })
			.getByRole("row")
			.filter({ has: page.getByRole("link", { name, exact: true }) });

	it("lets the administrator in, and shows hosts and the cluster as they are", async () => {
		const secret = await demo.kubectl(["get", "secret", "auth-admin", "-n", demo.namespace, "-o", "json"]);
		const { data } = JSON.parse(secret.stdout) as { data: { username: string; password: string } };
		const decode = (text: string) => Buffer.from(text, "base64").toString();
		await page.goto(`https://${demo.domain()}/`);
		await signIn(page, { name: decode(data.username), password: decode(data.password) });
		await page.getByLabel("Connection to the region: Live").waitFor();
		for (const name of HOSTS) {
			await expect.poll(() => row("Hosts", name).textContent(), { timeout: 30_000 }).toMatch(/Ready.*demo/);
		}
		expect(await row("Clusters", "demo").textContent()).toMatch(/Ready.*3\/3/);
		await mkdir("dist/test", { recursive: true });
		await page.screenshot({ path: "dist/test/console.png", fullPage: true });
	});

	it("shows what is done from elsewhere without a reload", async () => {
		await page.evaluate("window.same = true");
		await demo.gp(["host", "maintenance", "host-3", "on"]);
		await expect.poll(() => row("Hosts", "host-3").textContent(), { timeout: 30_000 }).toContain("Maintenance");
		await row("Hosts", "host-3").getByRole("link", { name: "host-3", exact: true }).click();
		await page.getByRole("heading", { level: 1, name: "host-3" }).waitFor();
		await demo.gp(["host", "maintenance", "host-3", "off"]);
		await expect.poll(() => page.getByText("In maintenance").count(), { timeout: 30_000 }).toBe(0);
		expect(await page.evaluate("window.same")).toBe(true);
	});

	it("gives a kubeconfig that holds no secret", async () => {
		await page.getByRole("navigation").getByRole("link", { name: "Clusters" }).click();
		await row("Clusters", "demo").getByRole("link", { name: "demo", exact: true }).click();
		const [download] = await Promise.all([
			page.waitForEvent("download"),
			page.getByRole("button", { name: "Kubeconfig" }).click(),
		]);
		expect(download.suggestedFilename()).toBe("demo.kubeconfig");
		const text = await (await download.createReadStream()).toArray();
		expect(Buffer.concat(text).toString()).toMatch(/server: https:\/\/[^\n]*\/k8s\/clusters\/demo\n/);
		expect(Buffer.concat(text).toString()).not.toMatch(/token:|client-key/);
	});

	it("asked nothing of anybody but its region, and broke no rule of its policy", () => {
		expect(browser.complaints).toEqual([]);
	});
});
