import { existsSync } from "node:fs";
import { type BrowserContext, chromium, type Page } from "playwright-core";
import { run } from "../../hack/lib/exec.ts";

const places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const findChromium = () => places.find((path) => existsSync(path));

/** Chromium of this machine; as root it is installed when it is missing (Debian's package), else there may be none. */
export async function chromiumPath(): Promise<string | undefined> {
	if (findChromium() === undefined && process.getuid?.() === 0) {
		const options = { timeoutMs: 5 * 60_000, check: false, env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" } };
		await run("apt-get", ["update"], options).catch(() => undefined);
		await run("apt-get", ["install", "-y", "--no-install-recommends", "chromium"], options).catch(() => undefined);
	}
	return findChromium();
}

export interface TestBrowser {
	readonly context: BrowserContext;
	/** What the pages complained about: errors on the console, exceptions, refused loads, requests to anywhere else. */
	readonly complaints: string[];
	close(): Promise<void>;
}

/** A browser for which `domain` is at `address` (host:port). The region's CA is its own, so certificates are not checked. */
export async function openBrowser(options: {
	executablePath: string;
	domain: string;
	address: string;
}): Promise<TestBrowser> {
	const browser = await chromium.launch({
		executablePath: options.executablePath,
		args: [
			"--headless=new",
			"--no-sandbox",
			"--disable-gpu",
			"--disable-quic",
			"--no-first-run",
			"--disable-background-networking",
			"--disable-component-update",
			"--disable-sync",
			"--ignore-certificate-errors",
			`--host-resolver-rules=MAP ${options.domain}:443 ${options.address}`,
		],
	});
	const context = await browser.newContext({
		viewport: { width: 1440, height: 1000 },
		ignoreHTTPSErrors: true,
		permissions: ["clipboard-read", "clipboard-write"],
	});
	const complaints: string[] = [];
	context.on("console", (message) => {
		if (message.type() === "error") complaints.push(message.text());
	});
	context.on("weberror", (error) => complaints.push(String(error.error())));
	context.on("request", (request) => {
		const { protocol, hostname } = new URL(request.url());
		if (protocol !== "data:" && protocol !== "blob:" && hostname !== options.domain) complaints.push(request.url());
	});
	return { context, complaints, close: () => browser.close() };
}

/** Signs in on the page that asks for it, and waits for the console. */
export async function signIn(page: Page, { name, password }: { name: string; password: string }): Promise<void> {
	await page.getByLabel("User name").fill(name);
	await page.getByLabel("Password").fill(password);
	await page.getByRole("button", { name: "Sign in" }).click();
	await page.getByRole("navigation", { name: "Sections" }).waitFor();
}
