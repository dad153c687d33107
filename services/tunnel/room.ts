const MIB = 1024 * 1024;
/** What a gateway takes without hosts, and what each host adds (docs/scale.md). */
const BASE_BYTES = 96 * MIB;
const HOST_BYTES = 100 * 1024;
/** Shares of the limit that are kept free for what live hosts come to need: when hosts are counted, and by what is resident. */
const RESERVE = 1 / 8;
const LAST_RESERVE = 1 / 16;

/** Hosts for which there is room in so many bytes; without a limit as many as come. */
export const hostsIn = (limit: number): number =>
	Math.max(0, Math.floor((limit * (1 - RESERVE) - BASE_BYTES) / HOST_BYTES));

export interface Load {
	/** Tunnels that are open, and the most that ever were at the same time. */
	readonly tunnels: number;
	readonly peak: number;
	/** Memory of the process, in bytes. */
	readonly resident: number;
}

export interface Bounds {
	readonly maxHosts: number;
	/** Bytes from which on the kernel kills the process; infinite where there is no limit. */
	readonly limit: number;
}

/**
 * Whether a gateway can take one more host. It must say no before the kernel does, which would cut off all of its hosts. Counted
 * first: memory that tunnels have left is not given back to the system, but serves as many tunnels again. For the same reason
 * what is resident counts only beyond the most that there have been.
 */
export const hasRoom = ({ tunnels, peak, resident }: Load, { maxHosts, limit }: Bounds): boolean =>
	tunnels < maxHosts && (tunnels < peak || resident < limit * (1 - LAST_RESERVE));

/** The kernel's limit for this process (cgroup v1 or v2), in bytes; infinite where there is none. */
export function memoryLimit(): number {
	const limit = process.constrainedMemory();
	return limit > 0 ? limit : Number.POSITIVE_INFINITY;
}
