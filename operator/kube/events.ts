import { createHash } from "node:crypto";
import type { Logger } from "pino";
import { asGroundplaneError } from "../../protocol/errors.ts";
import type { KubeClient } from "./client.ts";
import { eventsDropped } from "./metrics.ts";
import { apiVersionOf, type EventObject, events, type KubeObject, type Resource } from "./resources.ts";

/** The same event within this time only raises the count of the first one. */
const seriesWindow = 600_000;
/** A count is written at most this often. */
const writeInterval = 30_000;
const cacheSize = 1000;
/** Events are for people and may be lost: when this many wait (a whole region went away), further ones are dropped, as client-go does. */
const mostWaiting = 1000;
/** Written at the same time, so that they do not stand in the way of what matters. */
const writers = 2;
/** The API server refuses a longer note. */
const maxNote = 1024;

export interface EventRecorderOptions {
	client: KubeClient;
	/** Who reports, such as `groundplane-operator`. */
	component: string;
	/** Which instance of it: the pod's name. */
	instance: string;
	log: Logger;
	now?: () => number;
}

interface Seen {
	name: string;
	count: number;
	firstAt: number;
	writtenAt: number;
}

/** Writes Kubernetes Events (`events.k8s.io/v1`), for people: a repeated one becomes a series. Failures are logged, never thrown. */
export class EventRecorder {
	readonly #options: EventRecorderOptions;
	readonly #seen = new Map<string, Seen>();
	readonly #waiting: (() => Promise<void>)[] = [];
	#writing = 0;

	constructor(options: EventRecorderOptions) {
		this.#options = options;
	}

	/** Tells what happened to `object`; `reason` in CamelCase from a closed list, `note` for a person. */
	event<T extends KubeObject>(
		resource: Resource<T>,
		object: KubeObject,
		type: "Normal" | "Warning",
		reason: string,
		note: string,
	): void {
		if (this.#waiting.length >= mostWaiting) {
			eventsDropped.inc();
			return;
		}
		const { log } = this.#options;
		this.#waiting.push(() =>
			this.#write(resource, object, type, reason, note.slice(0, maxNote)).catch((error) => {
				const { code, message } = asGroundplaneError(error);
				log.warn({ code, err: message, reason }, "an event could not be written");
			}),
		);
		if (this.#writing < writers) void this.#drain();
	}

	async #drain(): Promise<void> {
		this.#writing++;
		for (let write = this.#waiting.shift(); write !== undefined; write = this.#waiting.shift()) await write();
		this.#writing--;
	}

	async #write(resource: Resource, object: KubeObject, type: string, reason: string, note: string): Promise<void> {
		const { client, component, instance, now = Date.now } = this.#options;
		const { name, uid = "", resourceVersion } = object.metadata;
		// Events of objects without a namespace live in `default` (Kubernetes convention).
		const namespace = object.metadata.namespace ?? "default";
		const id = createHash("sha256").update([resource.kind, uid, name, type, reason, note].join("\0")).digest("hex");
		const at = now();
		const time = new Date(at).toISOString().replace("Z", "000Z");
		const seen = this.#seen.get(id);
		if (seen !== undefined && at - seen.firstAt < seriesWindow) {
			seen.count++;
			if (at - seen.writtenAt < writeInterval) return;
			seen.writtenAt = at;
			await client.patch(
				events,
				{ name: seen.name, namespace },
				{ series: { count: seen.count, lastObservedTime: time } },
				{ type: "merge" },
			);
			return;
		}
		const fresh = {
			name: `${name.slice(0, 200)}.${id.slice(0, 8)}${at.toString(16)}`,
			count: 1,
			firstAt: at,
			writtenAt: at,
		};
		this.#seen.delete(id);
		this.#seen.set(id, fresh);
		const [oldest] = this.#seen.keys();
		if (this.#seen.size > cacheSize && oldest !== undefined) this.#seen.delete(oldest);
		const event: EventObject = {
			metadata: { name: fresh.name, namespace },
			eventTime: time,
			reportingController: component,
			reportingInstance: instance,
			action: reason,
			reason,
			note,
			type,
			regarding: {
				apiVersion: apiVersionOf(resource),
				kind: resource.kind,
				name,
				...(object.metadata.namespace === undefined ? {} : { namespace: object.metadata.namespace }),
				uid,
				...(resourceVersion === undefined ? {} : { resourceVersion }),
			},
		};
		await client.create(events, event);
	}
}
