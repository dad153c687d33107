import type { KV } from "@nats-io/kv";
import { headers } from "@nats-io/nats-core";
import { z } from "zod";
import { type ErrorCode, errorCodes } from "../../protocol/errors.ts";
import { type Bus, EPOCH_HEADER } from "../kit/bus.ts";
import type { Log } from "../kit/log.ts";
import type { GatewayBus } from "./gateway.ts";
import { Routes } from "./routes.ts";

const ADMIT_TIMEOUT_MS = 2_000;
const PUBLISH_TIMEOUT_MS = 3_000;

const cutMessage = z.object({
	reason: z
		.string()
		.transform((code): ErrorCode => (Object.hasOwn(errorCodes, code) ? (code as ErrorCode) : "Forbidden")),
	message: z.string(),
	keepSerial: z.string().optional(),
});
export type CutMessage = z.output<typeof cutMessage>;

/** The gateway's subjects on NATS (docs/architecture.md, Bus). */
export class NatsGatewayBus implements GatewayBus {
	readonly routes: Routes;
	readonly #bus: Bus;
	readonly #gateway: string;
	readonly #address: () => string;
	readonly #log: Log;

	constructor({
		bus,
		kv,
		gateway,
		address,
		log,
	}: { bus: Bus; kv: KV; gateway: string; address: () => string; log: Log }) {
		this.#bus = bus;
		this.routes = new Routes(kv, bus, log);
		this.#gateway = gateway;
		this.#address = address;
		this.#log = log;
	}

	putRoute(
		host: string,
		{ connectionId, connectedAt }: { connectionId: string; connectedAt: string },
	): Promise<number> {
		return this.routes.put(host, { gateway: this.#gateway, address: this.#address(), connectionId, connectedAt });
	}

	removeRoute(host: string, epoch: number): Promise<void> {
		return this.routes.remove(host, epoch);
	}

	async publishUp(host: string, message: Parameters<GatewayBus["publishUp"]>[1], epoch: number): Promise<void> {
		const said = headers();
		said.set(EPOCH_HEADER, String(epoch));
		await this.#bus.js.publish(`hosts.${host}.up.${message.type}`, JSON.stringify(message), {
			headers: said,
			timeout: PUBLISH_TIMEOUT_MS,
		});
	}

	async publishLink(host: string, link: Parameters<GatewayBus["publishLink"]>[1]): Promise<void> {
		await this.#bus.js.publish(`hosts.${host}.link`, JSON.stringify({ ...link, gateway: this.#gateway }), {
			timeout: PUBLISH_TIMEOUT_MS,
		});
	}

	onDown(host: string, listener: (text: string) => void): () => void {
		const subscription = this.#bus.nc.subscribe(`hosts.${host}.down`, {
			callback: (error, message) => {
				if (error) return;
				// The hosts service asks whether anybody still holds this host.
				if (message.data.length === 0) message.respond();
				else listener(message.string());
			},
		});
		return () => subscription.unsubscribe();
	}

	/** Asks the hosts service whether a certificate is still good. */
	async askAdmission(host: string, serial: string): Promise<unknown> {
		const answer = await this.#bus.nc.request("hosts.admit", JSON.stringify({ host, serial }), {
			timeout: ADMIT_TIMEOUT_MS,
		});
		return answer.json();
	}

	/** Calls `cut` for every order to close a host's tunnels. */
	onCut(cut: (host: string, message: CutMessage) => void): void {
		this.#bus.nc.subscribe("hosts.*.cut", {
			callback: (error, message) => {
				const host = message.subject.split(".")[1];
				if (error || host === undefined) return;
				try {
					cut(host, cutMessage.parse(JSON.parse(message.string())));
				} catch (err) {
					this.#log.warn({ host, err }, "an order to cut a tunnel can't be read");
				}
			},
		});
	}
}
