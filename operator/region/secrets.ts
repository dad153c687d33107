import { X509Certificate } from "node:crypto";
import type { Region } from "../../crds/region.ts";
import type { OperatorConfig } from "../config.ts";
import { regionNamespace } from "../deps.ts";
import { isAlreadyExists, type KubeClient } from "../kube/client.ts";
import { type Secret, secrets } from "../kube/resources.ts";
import {
	digest,
	dnsNames,
	irreplaceable,
	MANAGED_BY,
	operatorTlsSecret,
	REGION_LABEL,
	regionSecrets,
	rootSecret,
	type SecretPlan,
} from "./wanted.ts";

/** Names of irreplaceable Secrets that were minted once, on the root's Secret. */
const MINTED = "groundplane.io/minted";

/** What there is of a region's Secrets, and what is to be done about them. */
export interface SecretsSeen {
	readonly root: { readonly present: boolean; readonly digest?: string };
	readonly toMint: readonly string[];
	readonly lost: readonly string[];
	readonly toRecord: readonly string[];
	/** Digest of each Secret's content, for the chart. */
	readonly checksums: Readonly<Record<string, string>>;
}

/** The region's Secrets: read, judged, and made. Contents stay in here: nothing of them is logged or returned. */
export class RegionSecrets {
	readonly #client: KubeClient;
	readonly #config: OperatorConfig;
	readonly #now: () => number;

	constructor(client: KubeClient, config: OperatorConfig, now: () => number) {
		this.#client = client;
		this.#config = config;
		this.#now = now;
	}

	async observe(region: Region, signal: AbortSignal): Promise<SecretsSeen> {
		const { name } = region.metadata;
		const { namespace: core } = this.#config;
		const [root, operatorTls, { items }] = await Promise.all([
			this.#client.find(secrets, rootSecret(name), core, { signal }),
			this.#client.find(secrets, operatorTlsSecret(name), core, { signal }),
			this.#client.list(secrets, {
				namespace: regionNamespace(name),
				labelSelector: `app.kubernetes.io/managed-by=${MANAGED_BY}`,
				signal,
			}),
		]);
		const present = new Map(items.map((secret) => [secret.metadata.name, secret]));
		const rootCrt = dataOf(root)["tls.crt"];
		const minted = mintedOf(root);
		const lost = minted.filter((secret) => !present.has(secret));
		const toMint = regionSecrets
			.filter((plan) => !lost.includes(plan.name))
			.filter((plan) => {
				const secret = present.get(plan.name);
				return secret === undefined || (plan.kind === "tls" && this.#isStale(secret, rootCrt));
			})
			.map((plan) => plan.name);
		if (operatorTls === undefined || this.#isStale(operatorTls, rootCrt)) toMint.push(operatorTlsSecret(name));
		return {
			root: {
				present: rootCrt !== undefined,
				...(rootCrt === undefined ? {} : { digest: fingerprint(rootCrt) }),
			},
			toMint,
			lost,
			toRecord: irreplaceable.filter((secret) => present.has(secret) && !minted.includes(secret)),
			checksums: Object.fromEntries(
				regionSecrets.flatMap(({ name: secret }) => {
					const found = present.get(secret);
					return found === undefined ? [] : [[secret, digest(found.data ?? {}).slice(0, 16)]];
				}),
			),
		};
	}

	/** Makes the region's root; one that somebody else made in the meantime stays. */
	async mintRoot(region: Region, signal: AbortSignal): Promise<void> {
		const { mintRoot } = await import("./pki.ts");
		const name = region.metadata.name;
		await this.#create(
			region,
			rootSecret(name),
			this.#config.namespace,
			{ ...(await mintRoot(name, this.#now())) },
			signal,
		);
	}

	/** Makes Secrets that are missing, and gives services new certificates. */
	async mint(region: Region, names: readonly string[], signal: AbortSignal): Promise<void> {
		const regionName = region.metadata.name;
		const root = dataOf(await this.#client.get(secrets, rootSecret(regionName), this.#config.namespace, { signal }));
		for (const name of names) {
			if (name === operatorTlsSecret(regionName)) {
				const plan = { name, kind: "tls" as const, service: "operator" };
				await this.#mintOne(region, plan, this.#config.namespace, root, signal);
			}
			const plan = regionSecrets.find((candidate) => candidate.name === name);
			if (plan !== undefined) await this.#mintOne(region, plan, regionNamespace(regionName), root, signal);
		}
	}

	/** Notes that irreplaceable Secrets exist, so that their loss is noticed and they are never made anew behind a region's back. */
	async record(region: Region, names: readonly string[], signal: AbortSignal): Promise<void> {
		const name = rootSecret(region.metadata.name);
		const { namespace } = this.#config;
		const root = await this.#client.get(secrets, name, namespace, { signal });
		const minted = [...new Set([...mintedOf(root), ...names])].sort().join(",");
		await this.#client.patch(
			secrets,
			{ name, namespace },
			{ metadata: { annotations: { [MINTED]: minted }, resourceVersion: root.metadata.resourceVersion } },
			{ signal },
		);
	}

	async #mintOne(
		region: Region,
		plan: SecretPlan,
		namespace: string,
		root: Record<string, string>,
		signal: AbortSignal,
	): Promise<void> {
		const pki = await import("./pki.ts");
		const now = this.#now();
		const rootPair = { "tls.crt": root["tls.crt"] ?? "", "tls.key": root["tls.key"] ?? "" };
		const create = (data: Record<string, string>) => this.#create(region, plan.name, namespace, data, signal);
		switch (plan.kind) {
			case "tls": {
				const old = await this.#client.find(secrets, plan.name, namespace, { signal });
				// The front's key is pinned in join commands that were handed out: its certificate is new, its key stays.
				const key = plan.service === "front" ? dataOf(old)["tls.key"] : undefined;
				const names = dnsNames(plan.service, region, this.#config.clusterDomain);
				const pair = await pki.mintService(
					{ name: plan.service, dnsNames: names, ...(key === undefined ? {} : { key }) },
					rootPair,
					now,
				);
				if (old === undefined) return create({ ...pair });
				await this.#client.replace(secrets, { ...old, data: encode({ ...pair }) }, { signal });
				return;
			}
			case "hosts-ca":
				return create({ ...(await pki.mintHostsCa(region.metadata.name, rootPair, now)) });
			case "desired-state-key":
				return create(pki.mintDesiredStateKey());
			case "auth-keys":
				return create(pki.mintAuthKeys());
			case "passwords":
				return create({
					...(plan.username === undefined ? {} : { username: plan.username }),
					...Object.fromEntries(plan.keys.map((key) => [key, pki.mintPassword()])),
				});
		}
	}

	/** Creates and never overwrites: what exists was minted by an earlier run and is in use. */
	async #create(
		region: Region,
		name: string,
		namespace: string,
		data: Record<string, string>,
		signal: AbortSignal,
	): Promise<void> {
		const secret: Secret = {
			metadata: {
				name,
				namespace,
				labels: {
					[REGION_LABEL]: region.metadata.name,
					"app.kubernetes.io/part-of": "groundplane",
					"app.kubernetes.io/managed-by": MANAGED_BY,
				},
			},
			type: data["tls.crt"] === undefined ? "Opaque" : "kubernetes.io/tls",
			data: encode(data),
		};
		await this.#client.create(secrets, secret, { manager: "groundplane-region", signal }).catch((error) => {
			if (!isAlreadyExists(error)) throw error;
		});
	}

	/** Whether a service's certificate is past two thirds of its life, can't be read, or comes from another root. */
	#isStale(secret: Secret, rootCrt: string | undefined): boolean {
		const data = dataOf(secret);
		try {
			const certificate = new X509Certificate(data["tls.crt"] ?? "");
			const from = certificate.validFromDate.getTime();
			const to = certificate.validToDate.getTime();
			const trusted = rootCrt === undefined || certificate.checkIssued(new X509Certificate(rootCrt));
			return !trusted || this.#now() > from + ((to - from) * 2) / 3;
		} catch {
			return true;
		}
	}
}

const mintedOf = (root: Secret | undefined): string[] =>
	(root?.metadata.annotations?.[MINTED] ?? "").split(",").filter((name) => name !== "");

const encode = (data: Record<string, string>): Record<string, string> =>
	Object.fromEntries(Object.entries(data).map(([key, value]) => [key, Buffer.from(value).toString("base64")]));

const dataOf = (secret: Secret | undefined): Record<string, string> =>
	Object.fromEntries(
		Object.entries(secret?.data ?? {}).map(([key, value]) => [key, Buffer.from(value, "base64").toString("utf8")]),
	);

/** SHA-256 of a certificate (DER), hex. */
const fingerprint = (pem: string): string => new X509Certificate(pem).fingerprint256.replaceAll(":", "").toLowerCase();
