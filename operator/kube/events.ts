import { createHash } from "node:crypto";
import type { Logger } from "pino";
import { asGroundplaneError } from "../../protocol/errors.ts";
import { isNotFound, type KubeClient } from "./client.ts";
import { eventsDropped } from "./metrics.ts";
import { apiVersionOf, type EventObject, events, type KubeObject, type Resource } from "./resources.ts";

/** The same event within this time after the last one only raises its count. */
const seriesWindow = 600_000;
/** Two notes that differ by a time alone tell the same: a host that flaps is away since another one each time. */
const times = /\d{4}-\d\d-\d\dT[\d:.]+Z/g;
/** A count is written at most this often. */
const writeInterval = 30_000;
/** As client-go's: two for each of some hundred hosts that flap would not have found room in much less. */
const cacheSize = 4096;
/** Events are for people and may be lost: when this many wait (a whole region went away), further ones are dropped, as client-go does. */
const mostWaiting = 1000;
/** Written at the same time, so that they do not stand in the way of what matters. */
const writers = 2;
/** The API server refuses a longer note, in bytes. */
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
	/** When it last happened. */
	at: number;
	writtenAt: number;
}

/**
 * Writes Kubernetes Events (`events.k8s.io/v1`), for people: a repeated one becomes a series. Failures are logged, never thrown.
 */
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
			this.#write(resource, object, type, reason, note).catch((error) => {
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
		const { client, now = Date.now } = this.#options;
		const { name, uid = "" } = object.metadata;
		// Events of objects without a namespace live in `default` (Kubernetes convention).
		const namespace = object.metadata.namespace ?? "default";
		const at = now();
		const id = hash([resource.kind, uid, name, type, reason, note.replace(times, "")]);
		const seen = lately(this.#seen.get(id), at);
		if (seen !== undefined) {
			seen.count++;
			seen.at = at;
			remember(this.#seen, id, seen);
			if (at - seen.writtenAt < writeInterval) return;
			seen.writtenAt = at;
			const series = { count: seen.count, lastObservedTime: microTime(at) };
			const written = client.patch(events, { name: seen.name, namespace }, { series }, { type: "merge" });
			const isThere = await written.then(
				() => true,
				(error) => {
					if (isNotFound(error)) return false;
					throw error;
				},
			);
			if (isThere) return;
			// It has run out, or somebody deleted it.
		}
		const fresh = {
			name: `${name.slice(0, 200)}.${id.slice(0, 8)}${at.toString(16)}`,
			count: 1,
			at,
			writtenAt: at,
		};
		remember(this.#seen, id, fresh);
		await client.create(events, this.#eventOf(resource, object, type, reason, note, fresh)).catch((error) => {
			// The next one is the first.
			if (this.#seen.get(id) === fresh) this.#seen.delete(id);
			throw error;
		});
	}

	#eventOf(
		resource: Resource,
		object: KubeObject,
		type: string,
		reason: string,
		note: string,
		{ name, at }: Seen,
	): EventObject {
		const { component, instance } = this.#options;
		const { namespace, uid = "", resourceVersion } = object.metadata;
		return {
			metadata: { name, namespace: namespace ?? "default" },
			eventTime: microTime(at),
			reportingController: component,
			reportingInstance: instance,
			action: reason,
			reason,
			note: cut(note),
			type,
			regarding: {
				apiVersion: apiVersionOf(resource),
				kind: resource.kind,
				name: object.metadata.name,
				...(namespace === undefined ? {} : { namespace }),
				uid,
				...(resourceVersion === undefined ? {} : { resourceVersion }),
			},
		};
	}
}

const hash = (parts: readonly string[]): string => createHash("sha256").update(parts.join("\0")).digest("hex");

const microTime = (at: number): string => new Date(at).toISOString().replace("Z", "000Z");

/** What happened last within the window of a series. */
const lately = (known: Seen | undefined, at: number): Seen | undefined =>
	known !== undefined && at - known.at < seriesWindow ? known : undefined;

/** Puts it at the end, and forgets the first when there are too many. */
function remember<T>(map: Map<string, T>, key: string, value: T): void {
	map.delete(key);
	map.set(key, value);
	const [oldest] = map.keys();
	if (map.size > cacheSize && oldest !== undefined) map.delete(oldest);
}

/** As much of a note as the API server takes, in whole letters. */
function cut(note: string): string {
	const bytes = Buffer.from(note);
	return bytes.length <= maxNote ? note : new TextDecoder().decode(bytes.subarray(0, maxNote), { stream: true });
}
