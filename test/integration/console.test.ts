import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Page } from "playwright-core";
import { build } from "vite";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Cluster } from "../../crds/cluster.ts";
import type { Host } from "../../crds/host.ts";
import { clusters, hosts } from "../../operator/kube/resources.ts";
import { chromiumPath, openBrowser, signIn, type TestBrowser } from "../support/browser.ts";
import { startRegionServices, type TestRegion } from "../support/region-services.ts";

const executablePath = await chromiumPath();
const title = executablePath
	? "the console in Chromium"
	: "the console (left out: there is no Chromium, and only root can install it)";

describe.skipIf(!executablePath)(title, () => {
	let region: TestRegion;
	let browser: TestBrowser;
	let page: Page;
	let consoleDir: string;

	beforeAll(async () => {
		consoleDir = await mkdtemp(join(tmpdir(), "gp-console-"));
		await build({
			root: "services/console",
			logLevel: "error",
			build: { outDir: consoleDir, emptyOutDir: true },
		});
		region = await startRegionServices({ consoleDir });
		await makeHost("host-1", { phase: "Ready" });
		await makeHost("host-2", { phase: "Ready" });
		browser = await openBrowser({
			executablePath: executablePath ?? "",
			domain: region.domain,
			address: `127.0.0.1:${region.port}`,
		});
		page = await browser.context.newPage();
		page.setDefaultTimeout(15_000);
	});
	afterAll(async () => {
		await browser?.close();
		await region?.close();
		await rm(consoleDir, { recursive: true, force: true });
	});

	const origin = () => `https://${region.domain}`;
	const row = (name: string, table = "Hosts") =>
		page
			.getByRole("grid", { name: table })
			.getByRole("row")
			.filter({ has: page.getByRole("link", { name, exact: true }) });
	const status = (name: string, value: Partial<Host["status"]>) =>
		region.kube.patch(hosts, { name, namespace: region.namespace }, { status: value }, { subresource: "status" });
	async function makeHost(
		name: string,
		value: Partial<Host["status"]>,
		spec: Partial<Host["spec"]> = { approved: true },
	) {
		await region.kube.create(hosts, { metadata: { name, namespace: region.namespace }, spec } as never);
		await status(name, value);
	}

	it("asks who it is, and comes back to the page that was asked for", async () => {
		await page.goto(`${origin()}/hosts?sort=state`);
		await signIn(page, region.admin);
		await page.getByRole("heading", { level: 1, name: "Hosts" }).waitFor();
		expect(page.url()).toBe(`${origin()}/hosts?sort=state`);
		await expect.poll(() => row("host-1").textContent()).toContain("Ready");
		// Nothing that a script of another origin or another tab could read.
		expect(
			await page.evaluate("JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])"),
		).not.toMatch(/ey[JK]/);
	});

	it("shows a change without a reload, and a cluster with what is done on which host", async () => {
		await page.getByRole("navigation").getByRole("link", { name: "Overview" }).click();
		await page.getByRole("heading", { level: 1, name: "Overview" }).waitFor();
		await page.evaluate("window.same = true");
		await status("host-2", {
			phase: "Working",
			cluster: "demo",
			connection: { state: "Connected" },
			roles: [{ name: "kubernetes", version: "v1.36.3", phase: "Applying", step: "Import images", progress: "7/19" }],
		});
		await expect.poll(() => row("host-2").textContent()).toMatch(/Working[\s\S]*Import images[\s\S]*7\/19/);

		const name = "demo";
		await region.kube.create(clusters, {
			metadata: { name, namespace: region.namespace },
			spec: { version: "v1.36.3", controlPlane: { hosts: ["host-2"] } },
		} as never);
		const making: Cluster["status"] = {
			phase: "Provisioning",
			progress: { step: "Making the first control plane", host: "host-2", since: new Date().toISOString() },
			members: [{ host: "host-2", role: "control-plane", phase: "Joining" }],
		};
		await region.kube.patch(
			clusters,
			{ name, namespace: region.namespace },
			{ status: making },
			{ subresource: "status" },
		);
		await expect.poll(() => row(name, "Clusters").textContent()).toContain("Making the first control plane on host-2");
		await row(name, "Clusters").getByRole("link", { name, exact: true }).click();
		await page.getByRole("heading", { level: 1, name }).waitFor();
		expect(await row("host-2", "Members").textContent()).toMatch(/Control plane[\s\S]*Joining[\s\S]*7\/19/);
		expect(await page.evaluate("window.same")).toBe(true);
	});

	it("says that the line is lost, and catches up by itself", async () => {
		await page.getByRole("navigation").getByRole("link", { name: "Hosts" }).click();
		region.cut();
		await page.getByText("Connection lost, reconnecting.").waitFor();
		await status("host-1", { phase: "Maintenance" });
		expect(await row("host-1").textContent()).toContain("Ready");
		region.heal();
		await expect.poll(() => row("host-1").textContent(), { timeout: 15_000 }).toContain("Maintenance");
		await expect.poll(() => page.getByText("Connection lost").count()).toBe(0);
		// What the browser itself has to say of the cut.
		browser.complaints.splice(0);
	});

	it("approves a host that waits, from where it is named", async () => {
		await makeHost("host-3", { phase: "AwaitingApproval" }, { approved: false });
		await page.getByRole("navigation").getByRole("link", { name: "Overview" }).click();
		await page.getByRole("button", { name: "Approve" }).click();
		await page.getByText("host-3 is approved").waitFor();
		expect((await region.kube.get(hosts, "host-3", region.namespace)).spec.approved).toBe(true);
	});

	it("makes a join command, and copies it", async () => {
		await page.goto(`${origin()}/hosts`);
		await page.getByRole("button", { name: "Add host" }).click();
		await page.getByRole("button", { name: "Make the command" }).click();
		await page.getByText("Waiting for it to join").waitFor();
		await page.getByRole("button", { name: "Copy" }).click();
		await page.getByRole("button", { name: "Copied" }).waitFor();
		expect(await page.evaluate("navigator.clipboard.readText()")).toMatch(
			/^curl -fsSLk --pinnedpubkey 'sha256\/\/\S{44}' -H 'Authorization: Bearer gpj_\S{43}' https:\/\/demo\.example\.com\/artifacts\/v1\/join \| sh$/,
		);
		await makeHost("host-4", { phase: "Pending" });
		await page.getByRole("dialog").getByRole("link", { name: "host-4" }).waitFor();
		await page.keyboard.press("Escape");
	});

	it("removes a host only when its name was typed", async () => {
		await page.getByRole("button", { name: "Actions on host-4" }).click();
		await page.getByRole("menuitem", { name: "Remove from the region" }).click();
		const button = page.getByRole("dialog").getByRole("button", { name: "Remove" });
		expect(await button.isDisabled()).toBe(true);
		await page.getByLabel("Type host-4 to confirm").fill("host-4");
		await button.click();
		await expect.poll(() => row("host-4").count()).toBe(0);
		expect(await region.kube.find(hosts, "host-4", region.namespace)).toBeUndefined();
	});

	it("shows what the API refuses with its reason and what to do", async () => {
		await page.route("**/api/v1/hosts/host-1", (route) =>
			route.fulfill({
				status: 409,
				contentType: "application/problem+json",
				body: JSON.stringify({ code: "Conflict", detail: "The host was changed.", next: "Repeat the change." }),
			}),
		);
		await page.getByRole("button", { name: "Actions on host-1" }).click();
		await page.getByRole("menuitem", { name: /maintenance/ }).click();
		const alert = page.locator(".pf-v6-c-alert", { hasText: "host-1 was not changed" });
		await alert.waitFor();
		expect(await alert.textContent()).toMatch(/The host was changed\.[\s\S]*Repeat the change\.[\s\S]*Conflict/);
		await page.unroute("**/api/v1/hosts/host-1");
		expect(browser.complaints.splice(0)).toEqual([expect.stringContaining("409")]);
	});

	it("can be used by keyboard: the first stop leads past the navigation, and places are named", async () => {
		await page.goto(`${origin()}/clusters/demo`);
		await page.getByRole("heading", { level: 1, name: "demo" }).waitFor();
		await page.keyboard.press("Tab");
		expect(await page.evaluate("document.activeElement.textContent")).toBe("Skip to content");
		expect(await page.getByRole("main").count()).toBe(1);
		expect(await page.locator("[aria-current=page]").textContent()).toContain("Clusters");
		await page.getByRole("navigation").getByRole("link", { name: "Hosts" }).click();
		await expect.poll(() => page.title()).toBe("Hosts · Groundplane");
		expect(await page.evaluate("document.activeElement.tagName")).toBe("H1");
		await page.goBack();
	});

	it("renews its token before it ends, and after a reload needs no password", async () => {
		await page.clock.install();
		await page.reload();
		await page.getByRole("heading", { level: 1, name: "demo" }).waitFor();
		const renewal = page.waitForRequest(
			(request) =>
				request.url().endsWith("/auth/token") && (request.postData() ?? "").includes("grant_type=refresh_token"),
		);
		await page.clock.fastForward("13:00");
		expect((await (await renewal).response())?.status()).toBe(200);
		await page.getByLabel("Connection to the region: Live").waitFor();
	});

	it("signs out, here and at the issuer", async () => {
		await page.getByRole("button", { name: "Signed in as admin" }).click();
		await page.getByRole("menuitem", { name: "Sign out" }).click();
		await page.getByRole("button", { name: "Sign out" }).click();
		await page.getByLabel("Password").waitFor();
	});

	it("asked nothing of anybody but its region, and broke no rule of its policy", () => {
		expect(browser.complaints).toEqual([]);
	});
});
