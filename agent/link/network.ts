import { networkInterfaces } from "node:os";

/** How this machine stands in time and in the network. */
export interface Surroundings {
	/** Milliseconds since the epoch: goes on while the machine sleeps, and jumps when the clock is set. */
	wall: number;
	/** Milliseconds of a clock that never goes back; Linux stops it while the machine sleeps. */
	steady: number;
	/** Addresses by which others could know this machine. */
	addresses: ReadonlySet<string>;
}

/** What may have broken the tunnel without a sound. */
export type Disturbance = "slept" | "address-gone" | "network-changed";

/** How often to look. */
export const LOOK_MS = 5_000;
/** A look that comes this much too late, or a clock that jumped this far, means that the machine slept or was stopped. */
const GAP_MS = 10_000;

/** What happened between two looks, as far as it matters to a tunnel from `localAddress`. Pure. */
export function disturbance(
	before: Surroundings,
	now: Surroundings,
	localAddress: string | undefined,
): Disturbance | undefined {
	const wall = now.wall - before.wall;
	const steady = now.steady - before.steady;
	if (steady > LOOK_MS + GAP_MS || Math.abs(wall - steady) > GAP_MS) return "slept";
	if (localAddress !== undefined && before.addresses.has(localAddress) && !now.addresses.has(localAddress)) {
		return "address-gone";
	}
	for (const address of now.addresses) if (!before.addresses.has(address)) return "network-changed";
	return undefined;
}

/** Looks at this machine. */
export function surroundings(): Surroundings {
	const addresses = new Set<string>();
	for (const list of Object.values(networkInterfaces())) {
		for (const { address, internal, scopeid } of list ?? []) {
			// Link-local ones come and go with every pod of a node.
			if (!internal && !scopeid) addresses.add(address);
		}
	}
	return { wall: Date.now(), steady: performance.now(), addresses };
}
