import { register } from "prom-client";
import { z } from "zod";
import { KubeClient } from "../../operator/kube/client.ts";
import { loadKubeConfig } from "../../operator/kube/config.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { enrollRequest, enrollResponse } from "../../protocol/messages.ts";
import { VERSION } from "../../protocol/version.ts";
import { createAuth, requireService } from "../kit/auth.ts";
import { connectBus } from "../kit/bus.ts";
import { busConfig, databaseConfig, durationVariable } from "../kit/config.ts";
import { openDatabase } from "../kit/database.ts";
import { Counter } from "../kit/metrics.ts";
import { Api } from "../kit/routes.ts";
import { defineService, type ServiceContext } from "../kit/service.ts";
import { CertificateAuthority } from "./certificate-authority.ts";
import { HostsController } from "./controller.ts";
import { type HostsDatabase, migrations } from "./database.ts";
import { DesiredStateSigner } from "./desired-state.ts";
import { Enrolment } from "./enrolment.ts";
import { Inventory } from "./inventory.ts";
import { JoinTokens, joinTokenRequest } from "./join-tokens.ts";
import { Reports } from "./reports.ts";
import { clusterOf } from "./status.ts";

const config = {
	...databaseConfig,
	...busConfig,
	natsUser: busConfig.natsUser.default("hosts"),
	hostsCaDir: z.string().default("/etc/groundplane/hosts-ca"),
	desiredStateKeyDir: z.string().default("/etc/groundplane/desired-state-key"),
	certificateLifetime: durationVariable.prefault("720h"),
	desiredStateLifetime: durationVariable.prefault("168h"),
	/** How often to look for tunnels whose gateway has died. */
	probeInterval: durationVariable.prefault("20s"),
	/** The version of the agent that hosts are told to have: that of the release which this service is of. */
	agentVersion: z.string().default(VERSION),
	/** How often to look which hosts are told next. */
	agentRollInterval: durationVariable.prefault("30s"),
};
type Context = ServiceContext<
	z.output<z.ZodObject<typeof config>> & {
		region: string;
		domain: string;
		namespace: string;
		issuer: string;
		audience: string;
		jwksUrl: string;
	}
>;

/** Enrolment, inventory and desired state of the region's hosts. */
export const hostsService = defineService({
	name: "hosts",
	config,
	async start(context: Context) {
		const { config, log, metrics, signal, fail } = context;
		const now = Date.now;
		const signer = await DesiredStateSigner.load(config.desiredStateKeyDir, config.region);
		const kube = new KubeClient(await loadKubeConfig(), { userAgent: "groundplane-hosts" });
		const database = await openDatabase<HostsDatabase>(context, { migrations, maxConnections: 10 });
		const bus = await connectBus(context);

		const { db } = database;
		const inventory = new Inventory(db);
		const tokens = new JoinTokens(db, now);
		const authority = new CertificateAuthority({
			directory: config.hostsCaDir,
			region: config.region,
			lifetimeMs: config.certificateLifetime,
			now,
		});
		const reports = new Reports({
			bus,
			inventory,
			authority,
			changed: (host, delay) => controller.changed(host, delay),
			log,
			metrics,
			probeMs: config.probeInterval,
			now,
		});
		const controller = new HostsController({
			kube,
			namespace: config.namespace,
			inventory,
			signer,
			lifetimeMs: config.desiredStateLifetime,
			agentVersion: config.agentVersion,
			agentsMs: config.agentRollInterval,
			send: (host, message) => reports.send(host, message),
			farewell: (host) => reports.farewell(host),
			log,
			metrics,
			documentsSigned: new Counter({
				name: "groundplane_desired_state_signed_total",
				help: "Desired-state documents signed.",
				registers: [metrics.registry],
			}),
			now,
		});
		const enrolment = new Enrolment({
			db,
			tokens,
			inventory,
			authority,
			kube,
			region: config.region,
			namespace: config.namespace,
			desiredStateJwks: signer.jwks,
			cut: (host, keepSerial) => reports.cut(host, keepSerial),
			now,
		});
		// The reflector and the queue keep theirs in prom-client's own registry.
		for (const metric of register.getMetricsAsArray()) metrics.registry.registerMetric(metric as never);
		const work = Promise.all([reports.run(signal), controller.run(signal)]);
		work.catch(fail);

		const auth = createAuth({ ...config, internal: context.internal });
		const routes = api({ tokens, enrolment, inventory, controller, context });
		return {
			requestClientCert: true,
			app: (app) => app.use(routes.router(auth)),
			checks: {
				database: database.check,
				bus: bus.check,
				kubernetes: async () => {
					if (!controller.hasSynced) throw new Error("the hosts are not listed yet");
				},
			},
			stop: async () => {
				await work.catch(() => undefined);
				await bus.close();
				await database.close();
				kube.close();
			},
		};
	},
});

const joinToken = z.object({
	id: z.string(),
	uses: z.int(),
	usesLeft: z.int(),
	approve: z.boolean(),
	hostName: z.string().optional(),
	createdBy: z.string(),
	createdAt: z.string(),
	expiresAt: z.string(),
});

function api({
	tokens,
	enrolment,
	inventory,
	controller,
	context: { config, metrics, tls, log },
}: {
	tokens: JoinTokens;
	enrolment: Enrolment;
	inventory: Inventory;
	controller: HostsController;
	context: Context;
}): Api {
	const enrolments = new Counter({
		name: "groundplane_enrolments_total",
		help: "Enrolments by result: Enrolled, or the code of the error.",
		labelNames: ["result"],
		registers: [metrics.registry],
	});
	return new Api({ title: `Groundplane hosts of region ${config.region}`, version: "v1" })
		.route({
			method: "post",
			path: "/api/v1/join-tokens",
			summary: "Make a join token; it is shown this once.",
			roles: ["operator"],
			body: joinTokenRequest,
			answer: joinToken.extend({ token: z.string() }),
			status: 201,
			handler: async ({ body, user }) => {
				const made = await tokens.create(body, user.name);
				log.info({ id: made.id, uses: made.uses, expiresAt: made.expiresAt, by: user.name }, "made a join token");
				return made;
			},
		})
		.route({
			method: "get",
			path: "/api/v1/join-tokens",
			summary: "Join tokens that are still good.",
			roles: ["operator"],
			answer: z.object({ items: z.array(joinToken) }),
			handler: async () => ({ items: await tokens.list() }),
		})
		.route({
			method: "delete",
			path: "/api/v1/join-tokens/:id",
			summary: "Revoke a join token.",
			roles: ["operator"],
			params: z.object({ id: z.string() }),
			handler: async ({ params, user }) => {
				await tokens.revoke(params.id);
				log.info({ id: params.id, by: user.name }, "revoked a join token");
			},
		})
		.route({
			method: "post",
			path: "/enroll/v1/hosts",
			summary: "Enrol a host with a join token.",
			roles: "anyone",
			body: enrollRequest,
			answer: enrollResponse,
			status: 201,
			handler: async ({ body, request }) => {
				const bearer = /^Bearer (\S+)$/i.exec(request.headers.authorization ?? "")?.[1];
				try {
					const answer = await enrolment.enrol(bearer, body);
					enrolments.inc({ result: "Enrolled" });
					log.info({ host: body.name, address: request.ip, approved: answer.approved }, "enrolled a host");
					controller.changed(body.name);
					return answer;
				} catch (err) {
					const code = err instanceof GroundplaneError ? err.code : "Internal";
					enrolments.inc({ result: code });
					log.warn({ err, host: body.name, address: request.ip }, "refused an enrolment");
					throw err;
				}
			},
		})
		.route({
			method: "post",
			path: "/internal/v1/join-tokens/verify",
			summary: "Whether a join token may be used.",
			roles: "anyone",
			before: [requireService(tls, "artifacts")],
			body: z.object({ token: z.string() }),
			answer: joinToken,
			handler: async ({ body }) => tokens.verify(body.token),
		})
		.route({
			method: "get",
			path: "/internal/v1/targets",
			summary: "What Prometheus scrapes through the tunnel (http_sd).",
			roles: "anyone",
			before: [requireService(tls, "prometheus", "monitor")],
			query: z.object({ service: z.enum(["metrics", "kube-apiserver"]).default("metrics") }),
			answer: z.array(z.object({ targets: z.array(z.string()), labels: z.record(z.string(), z.string()) })),
			handler: async ({ query }) => {
				const connected = await inventory.connected();
				return connected.flatMap(({ name }) => target(query.service, name, controller));
			},
		});
}

const CONTROL_PLANE_MODES: readonly unknown[] = ["init", "join-control-plane", "adopt-control-plane"];

function target(service: "metrics" | "kube-apiserver", name: string, controller: HostsController) {
	const host = controller.host(name);
	if (!host?.spec.approved) return [];
	const cluster = clusterOf(host);
	const isControlPlane = host.spec.roles.some(
		({ name, parameters }) => name === "kubernetes" && CONTROL_PLANE_MODES.includes(parameters.mode),
	);
	if (service === "kube-apiserver" && !isControlPlane) return [];
	return [{ targets: [`${service}.${name}:80`], labels: { host: name, ...(cluster && { cluster }) } }];
}
