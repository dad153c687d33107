import { z } from "zod";
import { lanes } from "./stream.ts";

const bytesByLane = z.record(z.enum(lanes), z.int());

/** How a host's tunnel is doing, live: what the gateway tells, the API answers and `gp host link` shows. */
export const linkFigures = z.object({
	host: z.string(),
	state: z
		.enum(["Connected", "Leaving", "Disconnected"])
		.describe("Leaving: it was told to connect elsewhere, and its streams come to their ends."),
	gateway: z.string().optional().describe("The gateway that holds the tunnel, or held it last."),
	since: z.string().optional().describe("RFC 3339."),
	address: z.string().optional().describe("Where the host dials from."),
	reason: z.string().optional().describe("Why it is disconnected."),
	tunnel: z
		.object({
			agent: z.string().describe("Version of the agent."),
			connectionId: z.string(),
			epoch: z.int().describe("Order among the connections of a host."),
			rttMs: z.number().optional().describe("Round trip between gateway and host."),
			streams: z.object({
				open: z.int(),
				opened: z.int(),
				refused: z.int(),
				stalled: z.int().describe("Have data that the other end does not read."),
			}),
			services: z.record(z.string(), z.int()).describe("Open streams by service."),
			queuedBytes: z.int().describe("Bytes that wait to be sent to the host."),
			bytesFromHost: bytesByLane,
			bytesToHost: bytesByLane,
			reconnects: z.int().describe("Times that the host came back to this gateway."),
			ends: z
				.array(z.object({ at: z.string(), reason: z.string(), message: z.string() }))
				.describe("Why its last tunnels at this gateway ended, the newest last."),
		})
		.optional(),
});
export type LinkFigures = z.output<typeof linkFigures>;
