import { createSocket } from "node:dgram";
import type { AddressInfo } from "node:net";

/** A DNS server of a test's own (RFC 1035), on 127.0.0.1 and UDP: addresses and aliases from a map, NXDOMAIN for the rest. */
export interface TestDns {
	readonly port: number;
	/** Names that were asked for, in order. */
	readonly asked: string[];
	/** Name to IPv4 address, or to another name (CNAME). Change it while it runs. */
	readonly records: Map<string, string>;
	close(): void;
}

const TYPE_A = 1;
const TYPE_CNAME = 5;

/** Starts it. */
export async function startDns(records: Readonly<Record<string, string>> = {}): Promise<TestDns> {
	const dns = { asked: [] as string[], records: new Map(Object.entries(records)) };
	const socket = createSocket("udp4");
	socket.on("message", (query, { address, port }) => {
		const { name, type, end } = readQuestion(query);
		dns.asked.push(name);
		const answers: Buffer[] = [];
		let target = dns.records.get(name);
		const known = target !== undefined;
		let owner = name;
		for (; target !== undefined && !/^[\d.]+$/.test(target); target = dns.records.get(owner)) {
			answers.push(record(owner, TYPE_CNAME, encodeName(target)));
			owner = target;
		}
		if (target !== undefined && type === TYPE_A) {
			answers.push(record(owner, TYPE_A, Buffer.from(target.split(".").map(Number))));
		}
		const header = Buffer.alloc(12);
		query.copy(header, 0, 0, 2);
		header.writeUInt16BE(0x8580 | (known ? 0 : 3), 2);
		header.writeUInt16BE(1, 4);
		header.writeUInt16BE(answers.length, 6);
		socket.send(Buffer.concat([header, query.subarray(12, end), ...answers]), port, address);
	});
	await new Promise<void>((resolve) => socket.bind(0, "127.0.0.1", resolve));
	return { ...dns, port: (socket.address() as AddressInfo).port, close: () => socket.close() };
}

function readQuestion(message: Buffer): { name: string; type: number; end: number } {
	const labels: string[] = [];
	let offset = 12;
	for (let length = message[offset] ?? 0; length > 0; length = message[offset] ?? 0) {
		labels.push(message.toString("latin1", offset + 1, offset + 1 + length));
		offset += 1 + length;
	}
	return { name: labels.join(".").toLowerCase(), type: message.readUInt16BE(offset + 1), end: offset + 5 };
}

const encodeName = (name: string): Buffer =>
	Buffer.concat([
		...name.split(".").map((label) => Buffer.from([label.length, ...Buffer.from(label)])),
		Buffer.from([0]),
	]);

function record(owner: string, type: number, data: Buffer): Buffer {
	const fixed = Buffer.alloc(10);
	fixed.writeUInt16BE(type, 0);
	fixed.writeUInt16BE(1, 2);
	fixed.writeUInt32BE(5, 4);
	fixed.writeUInt16BE(data.length, 8);
	return Buffer.concat([encodeName(owner), fixed, data]);
}
