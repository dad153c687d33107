import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import { mkdirSync, readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { JSONWebKeySet } from "jose";
import { asGroundplaneError, GroundplaneError } from "../protocol/errors.ts";
import type { HostCheck, HostFacts } from "../protocol/facts.ts";
import { VERSION } from "../protocol/version.ts";
import { RemoteBundles } from "./bundles.ts";
import { type Config, type Paths, policyAllows } from "./config.ts";
import { Control } from "./control.ts";
import { Engine } from "./engine/engine.ts";
import { clockOffset, clockSkewSeconds, enroll, mayPass, readJoinToken } from "./enroll.ts";
import { readFacts } from "./facts.ts";
import { type Identity, loadIdentity } from "./identity.ts";
import { Link } from "./link/link.ts";
import { LocalServices } from "./link/services.ts";
import type { Log } from "./log.ts";
import { Measurer, readMeasured } from "./measure.ts";
import { memoryKeeper } from "./memory.ts";
import { MetricsServer } from "./metrics.ts";
import { evaluate, probe } from "./preflight.ts";
import { SupportShells } from "./shell.ts";
import { type AgentStatus, readStatus, writeStatus } from "./status.ts";
import { Updater, type UpdaterOptions } from "./update/updater.ts";
import { Versions } from "./update/versions.ts";

const ENROLL_RETRY_MS = 30_000;
const TOKEN_POLL_MS = 3_000;
const STATUS_MS = 60_000;

/** The agent: enrols if it has to, keeps the tunnel open, and makes the host what the region wants it to be. Ends with `signal`. */
export async function run({
	config,
	paths,
	log,
	signal: stop,
	updates,
	now = Date.now,
}: {
	config: Config;
	paths: Paths;
	log: Log;
	signal: AbortSignal;
	/** Given when whoever started this process can start another version of it in its place. */
	updates?: Pick<UpdaterOptions, "steadyMs"> | undefined;
	now?: () => number;
}): Promise<void> {
	mkdirSync(paths.state, { recursive: true, mode: 0o700 });
	const restart = new AbortController();
	const signal = AbortSignal.any([stop, restart.signal]);
	const before = readStatus(paths.status);
	let skew = await clockSkewSeconds(config, signal);
	let installed = false;
	let measured = readMeasured(paths.state);
	const observe = (): { facts: HostFacts; checks: HostCheck[] } => ({
		facts: readFacts(measured),
		checks: evaluate(probe({ installed, clockSkewSeconds: skew })),
	});
	const report = (more: Partial<AgentStatus>) =>
		writeStatus(paths.status, {
			version: VERSION,
			pid: process.pid,
			at: new Date().toISOString(),
			region: config.region,
			host: config.hostName,
			enrolled: false,
			checks: observe().checks,
			roles: [],
			...more,
		});

	const identity = await enrolled({ config, paths, log, signal, observe, report });
	if (!identity) return;
	log.info({ version: VERSION, region: identity.region, host: identity.host }, "agent starts");

	const link = new Link({
		target: () => ({
			address: config.address,
			serverName: config.tunnelServerName,
			path: config.tunnelPath,
			ca: control.identity.caBundle,
			proxyCa: config.proxyCa,
			certificate: control.identity.certificate,
			key: control.identity.key,
			proxy: config.proxy,
		}),
		hostName: identity.host,
		bootId: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
		onStream: (incoming) => services.onStream(incoming),
		log,
	});
	const bundlesIn = (directory: string) =>
		new RemoteBundles({
			directory,
			releaseJwks: config.releaseJwks as unknown as JSONWebKeySet,
			session: async (waiting) => {
				while (!link.session) await once(link, "up", { signal: waiting });
				return link.session;
			},
			log,
		});
	const engine = new Engine({ stateDir: paths.state, bundles: bundlesIn(paths.releases), log });
	const versions = new Versions(paths.versions);
	const updater = updates
		? new Updater({
				...updates,
				stateDir: paths.state,
				versions,
				bundles: bundlesIn(versions.downloads),
				running: VERSION,
				desired: () => control.desired,
				roles: () => engine.status(),
				link: () => link.state,
				lastError: before && before.version !== VERSION ? lastErrorOf(before) : undefined,
				restart: () => restart.abort(),
				log,
				now,
			})
		: undefined;
	const update = () => updater?.state;
	const control = new Control({ stateDir: paths.state, identity, engine, observe, update, log, now });
	const metrics = new MetricsServer(() => ({
		checks: observe().checks,
		roles: engine.status(),
		certificateNotAfter: notAfter(control.identity).getTime() / 1000,
		reconnects: Math.max(0, link.state.reconnects),
	}));
	const shells = new SupportShells({ directory: paths.shells, log });
	const services = new LocalServices({
		directory: paths.services,
		allows: (service) => policyAllows(paths, service),
		metrics: (stream) => metrics.attach(stream),
		shell: (incoming) => shells.serve(incoming),
		log,
	});

	const tell = () => {
		const roles = engine.status();
		const wasInstalled = installed;
		installed = roles.length > 0;
		// Whose the ports of Kubernetes are depends on it.
		if (installed !== wasInstalled) control.observeNow();
		const { desired, refusal } = control;
		report({
			region: control.identity.region,
			host: control.identity.host,
			enrolled: true,
			link: link.state,
			certificateNotAfter: notAfter(control.identity).toISOString(),
			...(desired && {
				desiredState: {
					epoch: desired.epoch,
					generation: desired.generation,
					validUntil: new Date(desired.validUntil * 1000).toISOString(),
					paused: desired.paused,
				},
			}),
			...(refusal && { refusedDesiredState: refusal }),
			...(updater && { update: updater.state }),
			roles,
		});
	};
	link.on("state", tell);
	control.on("changed", tell);
	control.on("renewed", () => link.renew());
	link.on("up", (session) => void control.attend(session));
	link.on("down", () => updater?.down());
	control.on("accepted", () => updater?.accepted());
	updater?.on("changed", () => {
		control.observeNow();
		tell();
	});
	const measurer = new Measurer({
		stateDir: paths.state,
		etcdDir: paths.etcd,
		desired: () => control.desired,
		roles: () => engine.status(),
		clock: () => clockOffset(config, signal),
		onMeasured: (figures) => {
			measured = figures;
			control.observeNow();
		},
		log,
	});
	control.on("changed", () => measurer.look());
	const tidy = memoryKeeper();
	const timer = setInterval(() => {
		tell();
		tidy();
		measurer.look();
	}, STATUS_MS);
	const clock = setInterval(() => {
		void clockSkewSeconds(config, signal).then((seconds) => {
			skew = seconds ?? skew;
		});
	}, 6 * 3_600_000);
	await control.restore();
	tell();
	await Promise.all([engine.run(signal), link.run(signal), control.run(signal), updater?.run(signal)]);
	clearInterval(timer);
	clearInterval(clock);
	log.info({}, "agent stopped");
}

const lastErrorOf = ({ link }: AgentStatus): string | undefined =>
	link?.lastError && `${link.lastError.code}: ${link.lastError.detail}`;

const notAfter = (identity: Identity): Date => new X509Certificate(identity.certificate).validToDate;

interface EnrolmentContext {
	config: Config;
	paths: Paths;
	log: Log;
	signal: AbortSignal;
	observe: () => { facts: HostFacts; checks: HostCheck[] };
	report: (more: Partial<AgentStatus>) => void;
}

/**
 * The identity of this host: the one it has, or a new one when there is a join token. Goes on trying while that may help,
 * and otherwise waits for another token. Undefined when `signal` aborts first.
 */
async function enrolled(context: EnrolmentContext): Promise<Identity | undefined> {
	const { config, paths, log, signal, observe, report } = context;
	const complain = (error: GroundplaneError) => {
		log.error({ code: error.code, next: error.next }, error.message);
		const { code, detail, next } = error.toJSON();
		report({ problem: { code, detail, next } });
	};
	for (let attempt = 0; !signal.aborted; attempt++) {
		const own = readOwn(paths, complain);
		const token = readJoinToken(paths);
		const usable = own?.region === config.region ? own : undefined;
		if (token === undefined) {
			if (usable) return usable;
			complain(
				new GroundplaneError(
					"JoinTokenInvalid",
					`this host is not enrolled in ${config.region}, and there is no join token`,
					{
						next: "Run the command that gp host join-command prints.",
					},
				),
			);
			await otherToken(paths, token, signal);
			continue;
		}
		try {
			const { approved, ...identity } = await enroll({ config, paths, token, observed: observe(), signal });
			log.info({ host: identity.host, region: identity.region, approved }, "enrolled");
			return identity;
		} catch (error) {
			if (signal.aborted) return undefined;
			const problem = asGroundplaneError(error);
			if (usable) {
				log.warn({ code: problem.code }, `enrolling again failed, the old identity stays in use: ${problem.message}`);
				return usable;
			}
			complain(problem);
			if (mayPass(problem)) {
				await delay(Math.random() * Math.min(ENROLL_RETRY_MS, 500 * 2 ** attempt), undefined, { signal }).catch(
					() => {},
				);
			} else {
				await otherToken(paths, token, signal);
				attempt = -1;
			}
		}
	}
	return undefined;
}

function readOwn(paths: Paths, complain: (error: GroundplaneError) => void): Identity | undefined {
	try {
		return loadIdentity(paths.state);
	} catch (error) {
		complain(asGroundplaneError(error));
		return undefined;
	}
}

/** Resolves when there is a join token other than this one. */
async function otherToken(paths: Paths, token: string | undefined, signal: AbortSignal): Promise<void> {
	while (!signal.aborted) {
		await delay(TOKEN_POLL_MS, undefined, { signal }).catch(() => {});
		const now = readJoinToken(paths);
		if (now !== undefined && now !== token) return;
	}
}
