import { Icon } from "@patternfly/react-core";
import CheckCircleIcon from "@patternfly/react-icons/dist/esm/icons/check-circle-icon";
import ExclamationCircleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon";
import ExclamationTriangleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon";
import type { ReactNode } from "react";
import { Link } from "react-router";
import type { Host } from "../api/types.ts";
import { failedChecks, hostPhase, workOf } from "../live/derive.ts";
import { compareUrgency, StateLabel } from "../ui/state-label.tsx";
import { byName, bytes, plural, shortSystem } from "../ui/words.ts";
import { WorkProgress } from "../ui/work-progress.tsx";

export interface HostColumn {
	readonly key: string;
	readonly title: string;
	readonly compare?: (a: Host, b: Host) => number;
	readonly modifier?: "nowrap" | "breakWord";
	readonly cell: (host: Host) => ReactNode;
}

const name: HostColumn = {
	key: "name",
	title: "Name",
	compare: (a, b) => byName(a.metadata.name, b.metadata.name),
	cell: ({ metadata, status }) => (
		<>
			<Link to={`/hosts/${metadata.name}`} className="gp-name">
				{metadata.name}
			</Link>
			<div className="gp-subtle">{status?.facts?.primaryAddress}</div>
		</>
	),
};

const state: HostColumn = {
	key: "state",
	title: "State",
	compare: (a, b) => compareUrgency(hostPhase(a), hostPhase(b)),
	cell: (host) => <StateLabel phase={hostPhase(host)} />,
};

const cluster: HostColumn = {
	key: "cluster",
	title: "Cluster",
	compare: (a, b) => byName(a.status?.cluster ?? "", b.status?.cluster ?? ""),
	modifier: "breakWord",
	cell: ({ status }) =>
		status?.cluster ? (
			<Link to={`/clusters/${status.cluster}`}>{status.cluster}</Link>
		) : (
			<span className="gp-subtle">free</span>
		),
};

const work: HostColumn = {
	key: "work",
	title: "Under way",
	cell: (host) => {
		const doing = workOf(host);
		if (!doing) return <span className="gp-subtle">–</span>;
		return (
			<div className="gp-doing">
				{doing.what}
				{doing.detail && <div className="gp-subtle">{doing.detail}</div>}
				<WorkProgress progress={doing.progress} label={`${doing.what} on ${host.metadata.name}`} />
			</div>
		);
	},
};

const checks: HostColumn = {
	key: "checks",
	title: "Checks",
	compare: (a, b) => failedChecks(b).length - failedChecks(a).length,
	modifier: "nowrap",
	cell: (host) => {
		const { checks: all = [] } = host.status ?? {};
		if (all.length === 0) return <span className="gp-subtle">none yet</span>;
		const failed = failedChecks(host);
		const errors = failed.filter(({ severity }) => severity === "error").length;
		const [status, CheckIcon, text] =
			errors > 0
				? (["danger", ExclamationCircleIcon, plural(errors, "problem")] as const)
				: failed.length > 0
					? (["warning", ExclamationTriangleIcon, plural(failed.length, "warning")] as const)
					: (["success", CheckCircleIcon, `${all.length} passed`] as const);
		return (
			<span title={failed.map(({ message }) => message).join("\n")}>
				<Icon status={status} isInline>
					<CheckIcon />
				</Icon>{" "}
				{text}
			</span>
		);
	},
};

const machine: HostColumn = {
	key: "machine",
	title: "Machine",
	modifier: "nowrap",
	compare: (a, b) => (a.status?.facts?.memoryBytes ?? 0) - (b.status?.facts?.memoryBytes ?? 0),
	cell: ({ status }) =>
		status?.facts ? (
			<>
				{plural(status.facts.cpu.cores, "core")}, {bytes(status.facts.memoryBytes)}
				<div className="gp-subtle">{shortSystem(status.facts.os.prettyName)}</div>
			</>
		) : (
			<span className="gp-subtle">–</span>
		),
};

/** Of every table of hosts. */
export const hostColumns: readonly HostColumn[] = [name, state, cluster, work, checks, machine];
