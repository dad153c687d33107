import type { Cluster } from "../../../../crds/cluster.ts";
import type { Condition } from "../../../../crds/common.ts";
import type { Host } from "../../../../crds/host.ts";

export type { Cluster, Condition, Host };
export type HostPhase = NonNullable<NonNullable<Host["status"]>["phase"]>;
export type HostRoleStatus = NonNullable<NonNullable<Host["status"]>["roles"]>[number];
export type ClusterPhase = NonNullable<NonNullable<Cluster["status"]>["phase"]>;
export type ClusterMember = NonNullable<NonNullable<Cluster["status"]>["members"]>[number];

/** `GET /api/v1/region`. */
export interface Region {
	readonly name: string;
	readonly customer?: string;
	readonly domain: string;
	readonly version: string;
}

/** `POST /api/v1/join-tokens`: what it takes, and what it answers, once. */
export interface JoinTokenRequest {
	readonly uses: number;
	readonly lifetime: string;
	readonly approve: boolean;
	readonly hostName?: string;
}
export interface JoinToken {
	readonly id: string;
	readonly token: string;
	readonly expiresAt: string;
}

/** What `PATCH /api/v1/hosts/NAME` can change. */
export interface HostChange {
	readonly approved?: boolean;
	readonly maintenance?: boolean;
}
