import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { networkInterfaces, tmpdir } from "node:os";
import path from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { differences, Lab } from "../../hack/laboratory/lab.ts";
import { LabNames } from "../../hack/laboratory/record.ts";
import { run } from "../../hack/lib/exec.ts";

const lab = new Lab("t-lab");
const domain = "demo.t-lab.groundplane.test";
const hosts = ["host-1", "host-2", "host-3"];
let outerBefore: Record<string, string[]>;

beforeAll(async () => {
	await lab.down();
	outerBefore = await traces();
	await lab.up({ hosts: 3, domains: [domain] });
	for (const host of ["mgmt", ...hosts]) {
		for (const port of host === "mgmt" ? [443, 6443, 80] : [22, 443]) await listen(host, port);
	}
});

afterAll(() => lab.down());

test("every host is a Debian with systemd that says running", async () => {
	for (const host of ["mgmt", ...hosts]) {
		expect((await lab.exec(host, ["systemctl", "is-system-running"])).stdout.trim()).toBe("running");
		expect((await lab.run(host, ["hostname"])).trim()).toBe(host);
		// /sys is the host's own, and so are its cgroups.
		expect((await lab.run(host, ["ls", "/sys/class/net"])).split("\n")).toEqual(expect.not.arrayContaining(["ifb0"]));
		expect(await lab.run(host, ["cat", "/proc/1/cgroup"])).not.toContain("gplab");
	}
	const ids = await Promise.all(hosts.map((host) => lab.run(host, ["cat", "/etc/machine-id"])));
	expect(new Set(ids).size).toBe(3);
});

test("the firewall lets hosts out to the provider's 443 only, and nothing in", async () => {
	const mgmt = await lab.address("mgmt");
	const host = await lab.address("host-1");
	expect(await dial("host-1", domain, 443)).toBe("mgmt:443");
	expect(await dial("host-1", `tunnel.${domain}`, 443)).toBe("mgmt:443");
	expect(await dial("host-1", mgmt, 6443, BLOCKED_S)).toBe("");
	expect(await dial("host-1", mgmt, 80, BLOCKED_S)).toBe("");
	expect(await dial("host-1", mgmt.replace(/\.\d+$/, ".1"), 443, BLOCKED_S)).toBe("");
	expect(await dial("host-1", "host-2", 22)).toBe("host-2:22");

	// The machine that runs the lab is on the provider's side.
	expect(await dialFromHere(mgmt, 443)).toBe("mgmt:443");
	expect(await dialFromHere(domain, 6443)).toBe("mgmt:6443");
	expect(await dialFromHere(host, 443, BLOCKED_S)).toBe("");

	// Also with a route to the site by way of its router, nobody comes in.
	const router = mgmt.replace(/\.\d+$/, ".2");
	await lab.run("mgmt", ["ip", "route", "add", `${host}/32`, "via", router]);
	expect(await dial("mgmt", host, 443, BLOCKED_S)).toBe("");
	expect(await dial("mgmt", router, 3128, BLOCKED_S)).toBe("");
	await lab.run("mgmt", ["ip", "route", "delete", `${host}/32`]);

	// Names that nobody knows are refused at once: a resolver that waits would slow down all that runs on the host.
	const started = Date.now();
	const lookups = "for i in 1 2 3 4 5 6 7 8; do getent hosts unknown$i.example && exit 1; done; true";
	await Promise.all(["mgmt", "host-1"].map((name) => lab.run(name, ["sh", "-c", lookups])));
	expect(Date.now() - started).toBeLessThan(4000);
});

test("a cut swallows what an open connection sends, and heal lets it go on", async () => {
	await lab.run("mgmt", ["systemctl", "stop", "listen-443"]);
	await lab.run("mgmt", [
		"systemd-run",
		"-qG",
		"--unit=sink",
		"socat",
		"-u",
		"TCP-LISTEN:443,reuseaddr",
		"CREATE:/tmp/sink",
	]);
	// It tries again for a while: the sink may not listen yet when systemd-run has returned.
	const talk = `while sleep 0.1; do echo still here; done | socat -u STDIN TCP:${domain}:443,retry=50,interval=0.1`;
	await lab.run("host-2", ["systemd-run", "-qG", "--unit=talk", "sh", "-c", talk]);
	const received = async () => Number(await lab.run("mgmt", ["stat", "-c", "%s", "/tmp/sink"]).catch(() => 0));
	await expect.poll(received, { timeout: 5000 }).toBeGreaterThan(0);
	await lab.cut();
	const before = await received();
	await sleep(700);
	expect(await received()).toBe(before);
	await lab.heal();
	await expect.poll(received, { timeout: 10_000 }).toBeGreaterThan(before + 50);
	await lab.run("host-2", ["systemctl", "stop", "talk"]);
	await expect.poll(async () => (await lab.exec("mgmt", ["systemctl", "is-active", "sink"])).code).not.toBe(0);
	await listen("mgmt", 443);
});

test("one host is cut, or the whole site", async () => {
	await lab.cut("host-2");
	expect((await lab.list()).filter(({ cut }) => cut).map(({ name }) => name)).toEqual(["host-2"]);
	expect(await dial("host-2", domain, 443, BLOCKED_S)).toBe("");
	expect(await dial("host-1", domain, 443)).toBe("mgmt:443");
	expect(await dial("host-2", "host-1", 22)).toBe("host-1:22");
	await lab.heal("host-2");
	expect(await dial("host-2", domain, 443)).toBe("mgmt:443");

	await lab.cut();
	expect(await Promise.all(hosts.map((host) => dial(host, domain, 443, BLOCKED_S)))).toEqual(["", "", ""]);
	// Running it again must not heal what a test has cut.
	await lab.up();
	expect(await dial("host-1", domain, 443, BLOCKED_S)).toBe("");
	await lab.heal();
	expect(await Promise.all(hosts.map((host) => dial(host, domain, 443)))).toEqual(Array(3).fill("mgmt:443"));
});

test("a reboot, ordered from inside too, keeps the disk and gives a fresh kernel network", async () => {
	await lab.run("host-1", ["sh", "-c", "echo kept >/root/note; ip link add left type bridge; nft add table inet left"]);
	const bootId = await lab.run("host-1", ["cat", "/proc/sys/kernel/random/boot_id"]);
	await lab.reboot("host-1");
	// A neighbour's reboot is nothing that the others notice.
	expect(await dial("host-2", domain, 443, 2)).toBe("mgmt:443");
	expect(await lab.run("host-1", ["cat", "/proc/sys/kernel/random/boot_id"])).not.toBe(bootId);
	expect(await lab.run("host-1", ["cat", "/root/note"])).toBe("kept\n");
	expect(await lab.run("host-1", ["nft", "list", "ruleset"])).toBe("");
	expect((await lab.exec("host-1", ["ip", "link", "show", "left"])).code).not.toBe(0);
	expect(await lab.run("host-1", ["journalctl", "--list-boots", "--no-pager"])).toMatch(/^ *-1 /m);
	expect(await dial("host-1", domain, 443)).toBe("mgmt:443");
});

test("a power cut ends everything in the host at once, and it comes back with its disk", async () => {
	await lab.run("host-3", ["sh", "-c", "echo kept >/root/note; touch /run/gone"]);
	const before = await lab.run("host-3", ["cat", "/etc/machine-id"]);
	const { pid } = (await lab.list()).find(({ name }) => name === "host-3") ?? {};
	await lab.stop("host-3");
	expect((await run("ps", ["-o", "stat=", "-p", String(pid)], { check: false })).stdout).toMatch(/^(Z.*)?$/);
	expect((await lab.list()).find(({ name }) => name === "host-3")?.state).toBe("stopped");
	await expect(lab.exec("host-3", ["true"])).rejects.toMatchObject({ code: "PrerequisiteNotMet" });
	await lab.start("host-3");
	expect(await lab.run("host-3", ["cat", "/root/note"])).toBe("kept\n");
	expect(await lab.run("host-3", ["cat", "/etc/machine-id"])).toBe(before);
	expect((await lab.exec("host-3", ["test", "-e", "/run/gone"])).code).toBe(1);
});

test("files are copied in and out, with their mode", async () => {
	const here = await mkdtemp(path.join(tmpdir(), "t-lab-"));
	try {
		const content = "x".repeat(3_000_000);
		await writeFile(path.join(here, "tool"), content, { mode: 0o755 });
		await lab.copyTo("host-1", path.join(here, "tool"), "/opt/new/tool");
		await lab.copyTo("host-1", path.join(here, "tool"), "/usr/local/bin");
		await lab.copyTo("host-1", here, "/opt/all");
		expect(
			(
				await lab.run("host-1", ["stat", "-c", "%a %s", "/opt/new/tool", "/usr/local/bin/tool", "/opt/all/tool"])
			).trim(),
		).toBe(Array(3).fill("755 3000000").join("\n"));
		await lab.copyFrom("host-1", "/opt/new/tool", path.join(here, "back"));
		expect(await readFile(path.join(here, "back"), "utf8")).toBe(content);
	} finally {
		await rm(here, { recursive: true });
	}
});

test("snapshots differ by what was changed and by nothing else", async () => {
	const before = await lab.snapshot("host-2");
	expect(Object.keys(before.files).length).toBeGreaterThan(1000);
	expect(differences(before, await lab.snapshot("host-2"))).toEqual([]);
	await lab.run("host-2", [
		"sh",
		"-c",
		"echo hello >/etc/new; chmod 600 /etc/os-release; ip link add left type bridge; nft add table inet left; mkdir /var/lib/kubelet/x; sysctl -qw net.ipv4.ip_forward=1; sleep 3 >/dev/null 2>&1 &",
	]);
	const changes = differences(before, await lab.snapshot("host-2")).map((line) =>
		line.split(" ").slice(0, 3).join(" "),
	);
	for (const expected of [
		"files + /etc/new",
		"files ~ /usr/lib/os-release",
		"files + /var/lib/kubelet/x",
		"network + left",
		"nftables + table",
		"settings ~ net.ipv4.ip_forward",
		"processes + sleep",
	]) {
		expect(changes).toContain(expected);
	}
});

test("the proxy is the only way out for the hosts it is set for", async () => {
	const url = await lab.proxy(["host-1"]);
	const curl = (host: string, ...more: string[]) =>
		lab.exec(host, ["curl", "-sS", "--max-time", "3", "-o", "/dev/null", "-w", "%{http_connect}", ...more]);
	expect(await dial("host-1", domain, 443, BLOCKED_S)).toBe("");
	expect(await dial("host-2", domain, 443)).toBe("mgmt:443");
	await expect.poll(async () => (await curl("host-1", "-x", url, "-p", `http://${domain}:443/`)).stdout).toBe("200");
	expect((await curl("host-1", "-x", url, "-p", `http://${domain}:6443/`)).stdout).toBe("403");
	expect((await curl("host-1", "-x", url, "-p", "http://example.com:443/")).stdout).toBe("403");
	await lab.proxyOff();
	expect(await dial("host-1", domain, 443)).toBe("mgmt:443");
	expect((await curl("host-1", "-x", url, "-p", `http://${domain}:443/`)).stdout).toBe("000");
});

test("up adds hosts and repairs what was broken", async () => {
	const [pid] = (await lab.list()).filter(({ name }) => name === "host-1").map((host) => host.pid);
	await lab.stop("host-2");
	await run("ip", ["netns", "exec", "gplab=t-lab=site", "nft", "flush", "ruleset"]);
	const list = await lab.up({ hosts: 4 });
	expect(list.map(({ name, state }) => `${name} ${state}`)).toEqual(
		["mgmt", "host-1", "host-2", "host-3", "host-4"].map((name) => `${name} running`),
	);
	expect(list.find(({ name }) => name === "host-1")?.pid).toBe(pid);
	expect(await dial("host-4", domain, 443)).toBe("mgmt:443");
	expect(await dial("host-4", await lab.address("mgmt"), 6443, BLOCKED_S)).toBe("");
	expect(await lab.run("host-1", ["getent", "hosts", "host-4"])).toContain(await lab.address("host-4"));
});

test("a second lab stands beside it, and down leaves no trace, also of a killed run", async () => {
	const other = new Lab("t-lab2");
	await other.down();
	try {
		await other.up({ hosts: 1 });
		expect(await other.address("mgmt")).not.toBe(await lab.address("mgmt"));
		// The supervisors and one nspawn are shot; their hosts and all that belongs to them stay behind.
		const [host] = await lab.list();
		const record = JSON.parse(await readFile(path.join(lab.directory, "hosts/host-1/machine.json"), "utf8"));
		process.kill(record.supervisor.pid, "SIGKILL");
		process.kill(host?.pid ?? 0, "SIGKILL");
		await rm(path.join(lab.directory, "lab.json"));
		await lab.down();
		expect((await other.list()).map(({ state }) => state)).toEqual(["running", "running"]);
	} finally {
		await other.down();
	}
	expect(await traces()).toEqual(outerBefore);
});

/** Serves `HOST:PORT` to whoever connects. */
async function listen(host: string, port: number): Promise<void> {
	await lab.run(host, [
		...["systemd-run", "-qG", `--unit=listen-${port}`],
		...["socat", `TCP-LISTEN:${port},fork,reuseaddr`, `SYSTEM:echo ${host}\\:${port}`],
	]);
	// systemd-run returns when socat was started, which is not when it listens.
	const listening = async () => expect(await lab.run(host, ["ss", "-Hltn", `sport = :${port}`])).not.toBe("");
	await vi.waitFor(listening, { timeout: 10_000, interval: 50 });
}

/** Seconds after which a connection that does not come about counts as blocked; one that should come about gets more. */
const BLOCKED_S = 0.7;

/** What a host reads from an address, or nothing when it doesn't get through. */
async function dial(host: string, to: string, port: number, patience = 10): Promise<string> {
	const { stdout } = await lab.exec(host, [
		"socat",
		"-u",
		`-T${patience}`,
		`TCP:${to}:${port},connect-timeout=${patience}`,
		"STDOUT",
	]);
	return stdout.trim();
}

/** The same from the machine that runs the lab. It only listens: who sends something to a listener that doesn't read may be reset before it has read the answer. */
async function dialFromHere(to: string, port: number, patience = 10): Promise<string> {
	const socket = connect({ host: to, port, family: 4 });
	socket.setTimeout(patience * 1000, () => socket.destroy());
	return text(socket).then(
		(answer) => answer.trim(),
		() => "",
	);
}

/** Everything of the outer machine that these labs could leave behind, and what they could spoil. Others may come and go meanwhile. */
async function traces(): Promise<Record<string, string[]>> {
	const list = (directory: string) => {
		try {
			return readdirSync(directory).sort();
		} catch {
			return [];
		}
	};
	const ours = (names: string[]) => names.filter((name) => name.includes("t-lab"));
	const cgroups = await run("find", ["/sys/fs/cgroup", "-type", "d", "-name", "gplab.t-lab*"]);
	const processes = await run("ps", ["-e", "-o", "args="]);
	return {
		mounts: readFileSync("/proc/self/mounts", "utf8")
			.split("\n")
			.filter((line) => line.includes("t-lab")),
		links: Object.keys(networkInterfaces()).filter((name) =>
			["t-lab", "t-lab2"].some((of) => new LabNames(of).uplink === name),
		),
		namespaces: ours(list("/run/netns")),
		cgroups: cgroups.stdout.split("\n").filter(Boolean),
		processes: processes.stdout.split("\n").filter((line) => /supervisor\.ts t-lab|gplab[.=]t-lab/.test(line)),
		nspawn: ours(list("/run/systemd/nspawn/propagate")),
		state: ours(list("/var/lib/groundplane-lab")),
		hosts: readFileSync("/etc/hosts", "utf8")
			.replace(/^# begin groundplane lab (?!t-lab)(\S+)\n.*?^# end groundplane lab \1\n/gms, "")
			.split("\n"),
	};
}
