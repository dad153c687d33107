import type { Known } from "./members.ts";
import type { UpgradeStatus } from "./state.ts";

/** What takes long in a cluster's life. */
export type Work =
	| "make"
	| "join-control-plane"
	| "join-worker"
	| "remove-control-plane"
	| "remove-worker"
	| "upgrade-control-plane"
	| "upgrade-worker";

/** Seconds, as seen in the lab on a busy machine of two cores and rounded up: a site's hosts are seldom slower. */
export const USUAL_SECONDS: Readonly<Record<Work, number>> = {
	make: 60,
	"join-control-plane": 60,
	"join-worker": 30,
	"remove-control-plane": 30,
	"remove-worker": 30,
	"upgrade-control-plane": 50,
	"upgrade-worker": 60,
};

/** How long a piece of work takes: as it took on this cluster's hosts of that role in the same change, else as it did in the lab. */
export function usualSeconds(
	work: "upgrade-control-plane" | "upgrade-worker",
	entries: UpgradeStatus["hosts"],
	members: ReadonlyMap<string, Pick<Known, "member">>,
): number {
	const took = entries
		.filter(({ host, finished }) => finished !== undefined && work === `upgrade-${members.get(host)?.member.role}`)
		.map(({ since, finished = since }) => (Date.parse(finished) - Date.parse(since)) / 1000)
		.sort((a, b) => a - b);
	return took[Math.floor(took.length / 2)] ?? USUAL_SECONDS[work];
}
