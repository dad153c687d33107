import { isDeepStrictEqual } from "node:util";
import { type KubeClient, KubeError } from "./client.ts";
import type { KubeObject, Resource } from "./resources.ts";

/** Field managers of the operator's controllers (docs/architecture.md). */
export type FieldManager = "groundplane-region" | "groundplane-cluster" | "groundplane-host" | (string & {});

/**
 * Writes the status fields that `manager` owns, by server-side apply. What the manager wrote before and is not in `status` any
 * more is removed. Nothing is sent when the object's status is this already; an object that has changed meanwhile is a conflict.
 * Answers whether it wrote.
 */
export async function applyStatus<T extends KubeObject & { status?: unknown }>(
	client: KubeClient,
	resource: Resource<T>,
	object: T,
	status: NonNullable<T["status"]>,
	manager: FieldManager,
	signal?: AbortSignal,
): Promise<boolean> {
	const wanted: unknown = JSON.parse(JSON.stringify(status));
	if (isDeepStrictEqual(object.status, wanted)) return false;
	const { name, namespace, resourceVersion } = object.metadata;
	await client.apply(
		resource,
		{
			// The version keeps a status that was computed from an old object from landing on a new one, even one of the same name
			// (the uid would not: the status subresource does not look at it).
			metadata: {
				name,
				...(namespace === undefined ? {} : { namespace }),
				...(resourceVersion === undefined ? {} : { resourceVersion }),
			},
			status: wanted,
		},
		{ manager, force: true, subresource: "status", ...(signal === undefined ? {} : { signal }) },
	);
	return true;
}

/**
 * Adds a finalizer unless it is there, and in the same write the annotations that go with it. Answers the object as it is then;
 * a concurrent change is a conflict.
 */
export async function addFinalizer<T extends KubeObject>(
	client: KubeClient,
	resource: Resource<T>,
	object: T,
	finalizer: string,
	signal?: AbortSignal,
	annotations: Readonly<Record<string, string>> = {},
): Promise<T> {
	const { finalizers = [], annotations: old = {} } = object.metadata;
	if (finalizers.includes(finalizer)) return object;
	return setFinalizers(client, resource, object, [...finalizers, finalizer], signal, { ...old, ...annotations });
}

/** Removes a finalizer if it is there. An object that is gone by then is no failure. */
export async function removeFinalizer<T extends KubeObject>(
	client: KubeClient,
	resource: Resource<T>,
	object: T,
	finalizer: string,
	signal?: AbortSignal,
): Promise<void> {
	const finalizers = object.metadata.finalizers ?? [];
	if (!finalizers.includes(finalizer)) return;
	await setFinalizers(
		client,
		resource,
		object,
		finalizers.filter((other) => other !== finalizer),
		signal,
	).catch((error) => {
		if (error instanceof KubeError && error.httpStatus === 404) return;
		throw error;
	});
}

/** A JSON patch that tests the resourceVersion first: a list of finalizers must never be written over a newer one. */
async function setFinalizers<T extends KubeObject>(
	client: KubeClient,
	resource: Resource<T>,
	object: T,
	finalizers: string[],
	signal?: AbortSignal,
	annotations?: Readonly<Record<string, string>>,
): Promise<T> {
	const { name, namespace, resourceVersion } = object.metadata;
	return client
		.patch(
			resource,
			{ name, namespace },
			[
				{ op: "test", path: "/metadata/resourceVersion", value: resourceVersion },
				{ op: "add", path: "/metadata/finalizers", value: finalizers },
				// All of them: a single one can't be added where there is none.
				...(annotations === undefined ? [] : [{ op: "add", path: "/metadata/annotations", value: annotations }]),
			],
			{ type: "json", ...(signal === undefined ? {} : { signal }) },
		)
		.catch((error) => {
			// The API server answers a failed test with 422 and no reason of its own.
			if (error instanceof KubeError && error.httpStatus === 422 && error.reason !== "Forbidden") {
				throw new KubeError("Conflict", `${resource.kind} ${name} has changed: its finalizers were not written`, {
					httpStatus: 409,
					reason: "Conflict",
					next: "Read the object again and retry.",
					cause: error,
				});
			}
			throw error;
		});
}
