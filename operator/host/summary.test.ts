import { describe, expect, it } from "vitest";
import { type Host, hostSpec } from "../../crds/host.ts";
import { FORMER_CLUSTER, givenUp, leftBehindOn, mayBeRemoved, summarize } from "./summary.ts";

const NOW = Date.parse("2026-01-01T01:00:00Z");
const connected = { state: "Connected" as const, since: "2026-01-01T00:00:00Z" };

const host = (
	status: Host["status"],
	spec: Partial<Host["spec"]> = {},
	metadata: Partial<Host["metadata"]> = {},
): Host => ({
	apiVersion: "groundplane.io/v1alpha1",
	kind: "Host",
	metadata: { name: "h1", generation: 3, ...metadata },
	spec: { ...hostSpec.parse({ approved: true }), ...spec },
	...(status === undefined ? {} : { status }),
});
const role = { name: "kubernetes", version: "v1.36.3", parameters: {} };

describe("what is said of a host", () => {
	it.each<[string, Host, string, string, string]>([
		["never seen", host(undefined), "Pending", "Unknown", "systemctl status gp-agent"],
		[
			"not approved",
			host({ connection: connected }, { approved: false }),
			"AwaitingApproval",
			"False",
			"gp host approve h1",
		],
		[
			"cut off",
			host({ connection: { state: "Disconnected", since: "2026-01-01T00:00:00Z", reason: "Timeout" } }),
			"Disconnected",
			"False",
			"since 2026-01-01T00:00:00Z (Timeout)",
		],
		[
			"in maintenance",
			host({ connection: connected }, { maintenance: true }),
			"Maintenance",
			"False",
			"gp host maintenance h1 off",
		],
		[
			"a check failed",
			host({
				connection: connected,
				checks: [{ name: "swap", ok: false, severity: "error", message: "Swap is on.", next: "Run swapoff -a." }],
			}),
			"Failed",
			"False",
			"Swap is on. Run swapoff -a.",
		],
		[
			"a warning only",
			host({
				connection: connected,
				checks: [{ name: "cgroup", ok: false, severity: "warning", message: "cgroup v1" }],
			}),
			"Ready",
			"True",
			"free for use",
		],
		[
			"a role at work",
			host(
				{
					connection: connected,
					roles: [{ name: "kubernetes", phase: "Applying", step: "containerd", progress: "3/19" }],
				},
				{ roles: [role] },
			),
			"Working",
			"False",
			"containerd 3/19",
		],
		[
			"a role not begun",
			host({ connection: connected, roles: [] }, { roles: [role] }),
			"Working",
			"False",
			"waiting for the host",
		],
		[
			"a role failed",
			host(
				{
					connection: connected,
					roles: [
						{ name: "kubernetes", phase: "Failed", step: "kubeadm init", reason: "StepTimeout", message: "No answer." },
					],
				},
				{ roles: [role] },
			),
			"Failed",
			"False",
			"kubeadm init: No answer.",
		],
		[
			"a role done",
			host({ connection: connected, roles: [{ name: "kubernetes", phase: "Applied" }] }, { roles: [role] }),
			"Ready",
			"True",
			"what it should be",
		],
		[
			"a document refused",
			host(
				{
					connection: connected,
					conditions: [
						{
							type: "RolesApplied",
							status: "False",
							reason: "SignatureInvalid",
							message: "The host refused its desired state: wrong key",
							lastTransitionTime: "2026-01-01T00:00:00Z",
						},
					],
				},
				{ roles: [role] },
			),
			"Failed",
			"False",
			"refused its desired state",
		],
		[
			"being deleted",
			host({ connection: connected }, {}, { deletionTimestamp: "2026-01-01T00:00:00Z" }),
			"Deleting",
			"False",
			"revoked",
		],
	])("%s", (_name, subject, phase, status, text) => {
		const summary = summarize(subject);
		expect(summary).toMatchObject({ phase, ready: { status, observedGeneration: 3 } });
		expect(summary.ready.message).toContain(text);
	});
});

describe("when a deleted host may go", () => {
	const deleted = { deletionTimestamp: "2026-01-01T00:30:00Z" };
	it.each<[string, Host, ReturnType<typeof mayBeRemoved>]>([
		["never connected", host(undefined, {}, deleted), "clean"],
		[
			"still has a role",
			host(
				{
					connection: connected,
					roles: [{ name: "kubernetes", phase: "Removing" }],
					desiredState: { reportedGeneration: 3 },
				},
				{},
				deleted,
			),
			"no",
		],
		[
			"reported before it was deleted",
			host({ connection: connected, roles: [], desiredState: { reportedGeneration: 2 } }, {}, deleted),
			"no",
		],
		[
			"clean",
			host({ connection: connected, roles: [], desiredState: { reportedGeneration: 3 } }, {}, deleted),
			"clean",
		],
		[
			"gone for long, with a role",
			host(
				{
					connection: { state: "Disconnected", since: "2026-01-01T00:00:00Z" },
					roles: [{ name: "kubernetes", phase: "Applied" }],
				},
				{},
				deleted,
			),
			"forced",
		],
		[
			"gone for a moment, with a role",
			host(
				{
					connection: { state: "Disconnected", since: "2026-01-01T00:55:00Z" },
					roles: [{ name: "kubernetes", phase: "Applied" }],
				},
				{},
				deleted,
			),
			"no",
		],
		[
			"gone, without a role",
			host({ connection: { state: "Disconnected", since: "2026-01-01T00:55:00Z" }, roles: [] }, {}, deleted),
			"clean",
		],
	])("%s", (_name, subject, verdict) => expect(mayBeRemoved(subject, "10m", NOW)).toBe(verdict));
});

describe("what is left behind", () => {
	const applied = { name: "kubernetes", phase: "Applied" as const };
	const at = Date.parse("2026-01-01T10:00:00Z");
	const out = { state: "Disconnected" as const, since: "2026-01-01T09:00:00Z" };
	const known = [{ role: "kubernetes", cluster: "shop", since: "2026-01-01T09:30:00Z", message: "…" }];
	const entry = { role: "kubernetes", cluster: "shop" };
	it("is told when the host is given up, since it goes with it", () => {
		const gone = host({ roles: [applied] }, {}, { annotations: { [FORMER_CLUSTER]: "shop" } });
		expect(givenUp(gone)).toBe(
			"Host h1 could not be reached, so its roles (kubernetes of cluster shop) were not undone and may still run there: join it to a region again, which undoes them, or install its system anew.",
		);
		expect(givenUp(host(undefined))).toContain("so its roles were not undone");
	});

	it.each<[string, Host["spec"]["roles"], Host["status"], ReturnType<typeof leftBehindOn>]>([
		["nothing while the role is wanted", [role], { connection: out, roles: [applied] }, []],
		["nothing while a connected host cleans itself", [], { connection: connected, roles: [applied] }, []],
		[
			"a role that was taken away while the host was out of reach",
			[],
			{ connection: out, roles: [applied] },
			[{ ...entry, since: "2026-01-01T10:00:00Z", message: expect.stringMatching(/still is, and may run/) }],
		],
		[
			"the entry stays while the host cleans itself, with its time",
			[],
			{ connection: connected, roles: [{ ...applied, phase: "Removing" }], leftBehind: known },
			[{ ...entry, since: "2026-01-01T09:30:00Z", message: "Being undone." }],
		],
		["and goes when the role is gone", [], { connection: connected, roles: [], leftBehind: known }, []],
		[
			"a host that can't be cleaned",
			[],
			{ connection: connected, roles: [{ ...applied, phase: "Failed", message: "busy." }] },
			[
				{
					...entry,
					since: "2026-01-01T10:00:00Z",
					message: "Being undone, and failing: busy. It is tried again.",
				},
			],
		],
	])("%s", (_name, roles, status, expected) => {
		expect(leftBehindOn(host(status, { roles }, { annotations: { [FORMER_CLUSTER]: "shop" } }), at)).toEqual(expected);
	});
});
