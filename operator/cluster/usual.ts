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

/** Seconds, as measured in the lab (`hack/bench lifecycle`) and rounded up: a site's hosts are seldom slower than its machine. */
export const USUAL_SECONDS: Readonly<Record<Work, number>> = {
	make: 45,
	"join-control-plane": 40,
	"join-worker": 25,
	"remove-control-plane": 30,
	"remove-worker": 30,
	"upgrade-control-plane": 90,
	"upgrade-worker": 45,
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
