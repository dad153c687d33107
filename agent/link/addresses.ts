import { promises as dns, type LookupAddress } from "node:dns";
import { connect as connectTcp, isIP, type Socket } from "node:net";

/** How long the next address waits for the one before (RFC 8305 §5). */
const ATTEMPT_DELAY_MS = 250;
/** How long an address that connected and then was no good goes last. */
const DEMOTED_MS = 60_000;

/** An address of a name. */
export type Address = Pick<LookupAddress, "address" | "family">;

export interface AddressBookOptions {
	lookup?: (host: string) => Promise<Address[]>;
	/** Milliseconds of a clock that never goes back. */
	now?: () => number;
}

/**
 * Where names lead. Each dial asks anew, so a change of DNS counts at once; while the DNS says nothing, what it said last
 * stands in, since TLS tells whether it is still right. An address that let itself be connected to and then was no good
 * goes to the end for a minute: with two front doors a hung one does not hold the host.
 */
export class AddressBook {
	readonly #lookup: (host: string) => Promise<Address[]>;
	readonly #now: () => number;
	/** A name server that hangs holds a thread of Node's pool for each question, so there is never more than one. */
	readonly #asking = new Map<string, Promise<Address[]>>();
	readonly #last = new Map<string, Address[]>();
	readonly #demoted = new Map<string, number>();

	constructor({ lookup, now }: AddressBookOptions = {}) {
		this.#lookup = lookup ?? ((host) => dns.lookup(host, { all: true, order: "verbatim" }));
		this.#now = now ?? (() => performance.now());
	}

	/** The addresses of a name, in the order in which to try them. Rejects with the resolver's error. */
	async find(host: string, ms: number): Promise<Address[]> {
		const family = isIP(host);
		if (family !== 0) return [{ address: host, family }];
		try {
			const found = await Promise.race([this.#ask(host), silence(host, ms)]);
			this.#last.set(host, found);
			return this.#order(found);
		} catch (error) {
			const last = this.#last.get(host);
			if (last === undefined) throw error;
			return this.#order(last);
		}
	}

	/** What was connected to there is no good at the moment. */
	demote(address: string | undefined): void {
		if (address !== undefined) this.#demoted.set(address, this.#now() + DEMOTED_MS);
	}

	#ask(host: string): Promise<Address[]> {
		const underWay = this.#asking.get(host);
		if (underWay) return underWay;
		const asking = this.#lookup(host).finally(() => this.#asking.delete(host));
		// Who gave up waiting does not hear of its failure.
		asking.catch(() => {});
		this.#asking.set(host, asking);
		return asking;
	}

	#order(addresses: readonly Address[]): Address[] {
		for (const [address, until] of this.#demoted) if (until <= this.#now()) this.#demoted.delete(address);
		const good = addresses.filter(({ address }) => !this.#demoted.has(address));
		const bad = addresses.filter(({ address }) => this.#demoted.has(address));
		return [...interleave(good), ...interleave(bad)];
	}
}

/** The families in turns, beginning with the resolver's favourite (RFC 8305 §4). */
export function interleave(addresses: readonly Address[]): Address[] {
	const first = addresses.filter(({ family }) => family === addresses[0]?.family);
	const second = addresses.filter(({ family }) => family !== addresses[0]?.family);
	return Array.from({ length: Math.max(first.length, second.length) }, (_, at) => [first[at], second[at]])
		.flat()
		.filter((address) => address !== undefined);
}

/**
 * Connects to the first address that answers: one after the other, 250 ms apart or as soon as one fails, and none is given up
 * before another has won (RFC 8305 §5). Node's own `autoSelectFamily` gives each address up after 250 ms, so that over a
 * satellite only the last one has a chance. Rejects with the error that says most; `abandon` ends all attempts.
 */
export function connectFastest(
	addresses: readonly Address[],
	port: number,
	connect: (options: { host: string; family: number; port: number }) => Socket = (options) =>
		connectTcp({ ...options, noDelay: true, keepAlive: true }),
): { connected: Promise<Socket>; abandon: () => void } {
	const { promise, resolve, reject } = Promise.withResolvers<Socket>();
	const attempts = new Set<Socket>();
	const failures: NodeJS.ErrnoException[] = [];
	let next = 0;
	let timer: NodeJS.Timeout | undefined;
	const abandon = () => {
		clearTimeout(timer);
		next = addresses.length;
		for (const socket of attempts) socket.destroy();
		attempts.clear();
	};
	const begin = () => {
		clearTimeout(timer);
		const address = addresses[next++];
		if (address === undefined) {
			if (attempts.size === 0) reject(mostTelling(failures));
			return;
		}
		const socket = connect({ host: address.address, family: address.family, port });
		attempts.add(socket);
		// Stays when the attempt is abandoned: nobody else listens to it then.
		socket.on("error", (error) => {
			if (!attempts.delete(socket)) return;
			failures.push(error);
			begin();
		});
		socket.once("connect", () => {
			if (!attempts.delete(socket)) return;
			abandon();
			resolve(socket);
		});
		if (next < addresses.length) timer = setTimeout(begin, ATTEMPT_DELAY_MS);
	};
	begin();
	return { connected: promise, abandon };
}

/** Having no route for a family is the least that can be said. */
function mostTelling(failures: readonly NodeJS.ErrnoException[]): Error {
	const noRoute = new Set(["ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT"]);
	return (
		failures.find(({ code }) => !noRoute.has(code ?? "")) ??
		failures[0] ??
		Object.assign(new Error("the name has no address"), { code: "ENOTFOUND" })
	);
}

function silence(host: string, ms: number): Promise<never> {
	return new Promise((_resolve, reject) => {
		setTimeout(() => reject(Object.assign(new Error(`no answer about ${host}`), { code: "EAI_AGAIN" })), ms).unref();
	});
}
