import { digestOf } from "./desired-state.ts";
import type { OwnStatus } from "./status.ts";

/** What tells whether a status has to be written, and how soon. */
export interface Written {
	/** Digest of all that has no part of its own. */
	readonly report: string;
	/** How far the roles have come. */
	readonly progress: string;
	/** Whether the host is connected, or why not; nothing before it was for the first time. */
	readonly state: string | undefined;
	/** What every reconnection changes. */
	readonly tunnel: string;
}

/** What of our part of a status is compared with what is wanted. */
export function writtenOf({ connection, conditions = [], roles, ...rest }: OwnStatus): Written {
	const connected = connection && conditions.find(({ type }) => type === "Connected");
	const applied = conditions.find(({ type }) => type === "RolesApplied");
	const others = conditions.filter((condition) => condition !== connected && condition !== applied);
	return {
		report: digestOf({
			...rest,
			roles: roles?.map(({ step: _step, progress: _progress, message: _message, ...role }) => role),
			conditions: [...others, { ...applied, message: undefined }],
		}),
		progress: JSON.stringify([
			applied?.message,
			roles?.map(({ step, progress, message }) => [step, progress, message]),
		]),
		state: connection && JSON.stringify([connection.state, connection.reason, connected]),
		tunnel: JSON.stringify([connection?.gateway, connection?.address, connection?.since]),
	};
}

/**
 * What is new: nothing, what every reconnection changes, how far roles have come, whether the host is connected, or anything else,
 * which is told at once.
 */
export type News = "none" | "minor" | "progress" | "flip" | "major";

/** What a status that is wanted says beside the one that is written. */
export function newsOf(written: Written, wanted: Written): News {
	if (wanted.report !== written.report || (written.state === undefined && wanted.state !== undefined)) return "major";
	if (wanted.state !== written.state) return "flip";
	if (wanted.progress !== written.progress) return "progress";
	return wanted.tunnel === written.tunnel ? "none" : "minor";
}
