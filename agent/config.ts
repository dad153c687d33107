import { existsSync, readFileSync } from "node:fs";
import { BlockList, isIP } from "node:net";
import { hostname } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { GroundplaneError } from "../protocol/errors.ts";
import { agentConfig } from "../protocol/messages.ts";
import { certificatesIn, proxyUrl } from "./link/dial.ts";

/** Where the agent's files are. `root` is `/` but in tests. */
export class Paths {
	readonly config: string;
	/** The customer's own words about the way to the region; no package has this file, so it survives them all. */
	readonly link: string;
	/** CA of a proxy of the customer's that opens up TLS. */
	readonly proxyCa: string;
	/** `https_proxy` and `no_proxy` of the service. */
	readonly environment: string;
	readonly joinToken: string;
	readonly policy: string;
	/** Transcripts of support shells; mode 0700. */
	readonly shells: string;
	readonly services: string;
	/** Identity, last desired state, journals of the engine; mode 0700. */
	readonly state: string;
	/** Release bundles. */
	readonly releases: string;
	/** etcd's data on a control plane. */
	readonly etcd: string;
	/** Versions of the agent itself beside the package's own; the launcher in agent/package knows this path too. */
	readonly versions: string;
	/** What `gp-agent status` shows. */
	readonly status: string;

	constructor(root = "/") {
		this.config = join(root, "etc/groundplane/agent.json");
		this.link = join(root, "etc/groundplane/link.json");
		this.proxyCa = join(root, "etc/groundplane/proxy-ca.pem");
		this.environment = join(root, "etc/default/groundplane-agent");
		this.joinToken = join(root, "etc/groundplane/join-token");
		this.policy = join(root, "etc/groundplane/policy.json");
		this.shells = join(root, "var/log/groundplane/shells");
		this.services = join(root, "etc/groundplane/services.d");
		this.state = join(root, "var/lib/groundplane/agent");
		this.releases = join(root, "var/lib/groundplane");
		this.etcd = join(root, "var/lib/etcd");
		this.versions = join(root, "var/lib/groundplane/versions");
		this.status = join(root, "run/groundplane/status.json");
	}
}

/** `agent.json`, with the name that the host goes by and how the customer wants the region to be reached. */
export type Config = Omit<z.output<typeof agentConfig>, "hostName" | "proxy"> & {
	readonly hostName: string;
	readonly proxy: string | undefined;
	/** PEM. */
	readonly proxyCa?: string | undefined;
};

/** `link.json`: what of `agent.json` the customer wants otherwise. */
const linkConfig = z.strictObject(
	agentConfig.pick({ address: true, tunnelServerName: true, tunnelPath: true, proxy: true }).partial().shape,
);

/**
 * Reads `agent.json`, and `link.json` and `proxy-ca.pem` where the customer has put them. Fields that are not known are
 * passed over, so that a newer region's package does. Throws InvalidConfiguration.
 */
export function loadConfig(paths: Paths, env: Readonly<Record<string, string | undefined>> = process.env): Config {
	const stamped = read(paths.config, agentConfig, {
		missing: "Install the package groundplane-agent-config of your region: run the command of gp host join-command.",
		wrong: "Correct it, or install the package groundplane-agent-config again.",
	});
	const { hostName, proxy, ...rest } = { ...stamped, ...readOwn(paths.link) };
	return {
		...rest,
		hostName: hostName || ownName(),
		proxy: proxy ?? proxyFor(rest.address, env),
		proxyCa: readProxyCa(paths.proxyCa),
	};
}

function readOwn(path: string): Partial<Record<keyof z.output<typeof linkConfig>, string>> {
	if (!existsSync(path)) return {};
	return read(path, linkConfig, {
		missing: "Correct it so that it is JSON, or remove it.",
		wrong: "Correct it: it may hold address, tunnelServerName, tunnelPath and proxy. Or remove it.",
	}) as Record<string, string>;
}

function read<Schema extends z.ZodType>(
	path: string,
	schema: Schema,
	next: { missing: string; wrong: string },
): z.output<Schema> {
	let content: unknown;
	try {
		content = JSON.parse(readFileSync(path, "utf8"));
	} catch (cause) {
		throw new GroundplaneError("InvalidConfiguration", `${path} can't be read`, { next: next.missing, cause });
	}
	const parsed = schema.safeParse(content);
	if (parsed.success) return parsed.data;
	throw new GroundplaneError(
		"InvalidConfiguration",
		`${path}: ${z.prettifyError(parsed.error).replaceAll("\n", " ")}`,
		{ next: next.wrong },
	);
}

function readProxyCa(path: string): string | undefined {
	if (!existsSync(path)) return undefined;
	try {
		const pem = readFileSync(path, "utf8");
		if (certificatesIn(pem).length > 0) return pem;
	} catch {
		// Said below.
	}
	throw new GroundplaneError("InvalidConfiguration", `${path} holds no certificate that can be read`, {
		next: "Put the proxy's CA there in PEM (-----BEGIN CERTIFICATE-----), or remove the file.",
	});
}

/** The host's own name as a DNS label (RFC 1123 §2.1). */
function ownName(): string {
	const label = (hostname().split(".")[0] ?? "")
		.toLowerCase()
		.replace(/[^a-z0-9-]/g, "-")
		.replace(/^-+|-+$/g, "");
	return label.slice(0, 63) || "host";
}

/**
 * What the service has in its environment, for commands that a person runs in a shell: they are to see what the agent sees.
 * Assignments as in systemd.exec(5), `EnvironmentFile`, as far as the join script writes them.
 */
export function serviceEnvironment(paths: Paths): Record<string, string> {
	let lines: string[];
	try {
		lines = readFileSync(paths.environment, "utf8").split("\n");
	} catch {
		return {};
	}
	return Object.fromEntries(
		lines.flatMap((line) => {
			const [, name, value] = /^\s*([A-Za-z_][A-Za-z0-9_]*)=(.*?)\s*$/.exec(line) ?? [];
			return name === undefined || value === undefined ? [] : [[name, value.replace(/^(["'])(.*)\1$/, "$2")]];
		}),
	);
}

/** `https_proxy`, unless `no_proxy` names the address: as a name, the end of one, an address or a network (10.0.0.0/8). */
export function proxyFor(address: string, env: Readonly<Record<string, string | undefined>>): string | undefined {
	const proxy = env.https_proxy || env.HTTPS_PROXY;
	if (!proxy || !URL.canParse(proxyUrl(proxy))) return undefined;
	const host = address.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");
	const except = (env.no_proxy || env.NO_PROXY || "").split(",").map((one) => one.trim().replace(/^\*?\./, ""));
	const names = (one: string) => one === "*" || (one !== "" && (host === one || host.endsWith(`.${one}`)));
	return except.some((one) => names(one) || isWithin(host, one)) ? undefined : proxy;
}

/** Whether an address lies in a network, `ADDRESS/BITS`. */
function isWithin(host: string, network: string): boolean {
	const [, start = "", bits] = /^([0-9a-f.:]+)\/(\d{1,3})$/i.exec(network) ?? [];
	const family = isIP(start);
	if (family === 0 || isIP(host) !== family || Number(bits) > (family === 4 ? 32 : 128)) return false;
	const type = family === 4 ? "ipv4" : "ipv6";
	const list = new BlockList();
	list.addSubnet(start, Number(bits), type);
	return list.check(host, type);
}

const services = z.object({ services: z.array(z.string()) });
/** A file with the shell alone is strict: what was to be a limit, and is misspelt, must not open the rest. */
const policySchema = z.union([
	z.object({ allow: services, supportShell: z.boolean().optional() }),
	z.strictObject({ allow: z.undefined().optional(), supportShell: z.boolean() }),
]);

/**
 * Which of the agent's services the region may open, by the customer's own word: `/etc/groundplane/policy.json`,
 * `{"allow": {"services": ["metrics", "kube-apiserver"]}, "supportShell": true}`. All but `shell` are allowed when there is no
 * such file, or it does not limit them; none when it can't be understood. `shell` takes `supportShell`. Read at each stream, so
 * a change counts at once.
 */
export function policyAllows(paths: Pick<Paths, "policy">, service: string): boolean {
	let text: string;
	try {
		text = readFileSync(paths.policy, "utf8");
	} catch (error) {
		return service !== "shell" && (error as NodeJS.ErrnoException).code === "ENOENT";
	}
	try {
		const { allow, supportShell } = policySchema.parse(JSON.parse(text));
		return service === "shell" ? supportShell === true : (allow?.services.includes(service) ?? true);
	} catch {
		return false;
	}
}
