import type { Host } from "../../crds/host.ts";
import { GroundplaneError } from "../../protocol/errors.ts";
import { type LinkFigures, linkFigures } from "../../protocol/link.ts";
import type { InternalFetch } from "../kit/internal.ts";

/** How a host's tunnel is doing: what the gateways say now, and for a host that is away what its status remembers. */
export async function linkOf(
	{ metadata, status }: Pick<Host, "metadata" | "status">,
	{ tunnelUrl, internal }: { tunnelUrl: string; internal: InternalFetch },
): Promise<LinkFigures> {
	const host = metadata.name;
	const answer = await internal(`${tunnelUrl}/internal/v1/links/${host}`).catch((cause: unknown) => {
		throw unanswered("does not answer", cause);
	});
	if (answer.status === 200) return linkFigures.parse(await answer.json());
	const { code, detail } = (await answer.json().catch(() => ({}))) as { code?: string; detail?: string };
	if (code !== "HostNotConnected") throw unanswered(`answered ${answer.status}: ${detail}`);
	const { gateway, since, address, reason } = status?.connection ?? {};
	return {
		host,
		state: "Disconnected",
		...(gateway && { gateway }),
		...(since && { since }),
		...(address && { address }),
		...(reason && { reason }),
	};
}

const unanswered = (what: string, cause?: unknown) =>
	new GroundplaneError("Overloaded", `The region's tunnel gateway ${what}.`, {
		next: "Try again in a moment; if it lasts, look at the pods tunnel of the region.",
		cause,
	});
