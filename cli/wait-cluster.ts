import { type Cluster, RETRY } from "../crds/cluster.ts";
import { GroundplaneError } from "../protocol/errors.ts";
import type { Session } from "./session.ts";
import { waitFor } from "./wait.ts";

/** Waits until a cluster is as its spec says. Throws when it is a person's turn: it failed, or its change of version stopped. */
export async function waitReady(session: Session, name: string, timeoutMs: number): Promise<void> {
	await waitFor(`Cluster ${name}`, timeoutMs, async () => {
		const { metadata, status } = await session.call<Cluster>("GET", `/api/v1/clusters/${encodeURIComponent(name)}`);
		const ready = status?.conditions?.find(({ type }) => type === "Ready");
		const isCurrent = ready?.observedGeneration === undefined || ready.observedGeneration === metadata.generation;
		// What was told before the last try says nothing about it.
		const stoppedAt = Date.parse(status?.upgrade?.stopped?.at ?? "");
		const isStopped =
			ready?.reason === "UpgradeStopped" && !(Date.parse(metadata.annotations?.[RETRY] ?? "") >= stoppedAt);
		const isBeingPutBack = status?.members?.some(({ phase }) => phase === "Updating") ?? false;
		if (isCurrent && ((isStopped && !isBeingPutBack) || ready?.reason === "UpgradeBlocked")) {
			throw new GroundplaneError("StepFailed", `Cluster ${name}: ${ready?.message}`, {
				next: `See it with gp cluster get ${name}`,
			});
		}
		if (isCurrent && status?.phase === "Failed") {
			throw new GroundplaneError("StepFailed", `Cluster ${name} failed: ${ready?.message ?? "no reason given"}`, {
				next: `See it with gp cluster get ${name}`,
			});
		}
		return { isDone: isCurrent && ready?.status === "True", progress: `${name}: ${progressOf(status)}` };
	});
}

/** What is being done, in one line: step, host, since when, how long it usually takes, what is next. */
export function progressOf(status: Cluster["status"]): string {
	const { phase, ready, progress } = status ?? {};
	if (progress === undefined) return [phase ?? "Pending", ready && `${ready} nodes ready`].filter(Boolean).join(", ");
	const { step, host, detail, since, usual, next } = progress;
	const doing = [
		`${step}${host ? ` on ${host}` : ""}${detail ? ` (${detail})` : ""}`,
		since && `since ${new Date(since).toTimeString().slice(0, 8)}`,
		usual && `usually ${usual}`,
		next && `next ${next}`,
	];
	return [phase ?? "Pending", ready && `${ready} nodes ready`, ...doing].filter(Boolean).join(", ");
}
