import {
	Alert,
	DescriptionList,
	DescriptionListDescription,
	DescriptionListGroup,
	DescriptionListTerm,
	Icon,
	Label,
	PageSection,
} from "@patternfly/react-core";
import CheckCircleIcon from "@patternfly/react-icons/dist/esm/icons/check-circle-icon";
import ExclamationCircleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon";
import ExclamationTriangleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon";
import { Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import type { ReactNode } from "react";
import { Link, useParams } from "react-router";
import type { Host } from "../api/types.ts";
import { useConsole, useLive } from "../app/context.ts";
import { NotFound } from "../app/faults.tsx";
import { hostPhase, readyMessage } from "../live/derive.ts";
import { ActivityList } from "../ui/activity-list.tsx";
import { ConditionsTable } from "../ui/conditions-table.tsx";
import { Loading } from "../ui/loading.tsx";
import { PageHeading } from "../ui/page-heading.tsx";
import { Panel } from "../ui/panel.tsx";
import { StateLabel } from "../ui/state-label.tsx";
import { Ago } from "../ui/time.tsx";
import { bytes, dateAndTime } from "../ui/words.ts";
import { WorkProgress } from "../ui/work-progress.tsx";
import { ApproveButton, HostMenu } from "./host-actions.tsx";

export function HostPage() {
	const { name = "" } = useParams();
	const { isLoaded, hosts, activity } = useLive();
	const { live } = useConsole();
	const host = hosts.get(name);
	if (!host) {
		if (isLoaded) return <NotFound what={`There is no host ${name} in this region. It may have been removed.`} />;
		return (
			<>
				<PageHeading title={name} parent={{ title: "Hosts", to: "/hosts" }} />
				<PageSection hasBodyWrapper={false}>
					<Loading what={name} />
				</PageSection>
			</>
		);
	}
	const phase = hostPhase(host);
	const { status } = host;
	return (
		<>
			<PageHeading
				title={name}
				parent={{ title: "Hosts", to: "/hosts" }}
				labels={<StateLabel phase={phase} isCompact={false} />}
				description={
					status?.cluster ? (
						<>
							Member of cluster <Link to={`/clusters/${status.cluster}`}>{status.cluster}</Link>
						</>
					) : (
						"In no cluster"
					)
				}
				actions={
					<>
						<ApproveButton host={host} />
						<HostMenu host={host} />
					</>
				}
			/>
			<PageSection hasBodyWrapper={false} isFilled>
				<div className="gp-stack">
					<HostNotice host={host} />
					<div className="gp-columns">
						<div className="gp-column">
							<Panel title="Roles">
								<Roles host={host} />
							</Panel>
							<LeftBehind host={host} />
							<Panel title="Checks">
								<Checks host={host} />
							</Panel>
							<Panel title="Conditions">
								<ConditionsTable conditions={status?.conditions} />
							</Panel>
						</div>
						<div className="gp-column">
							<Panel title="Facts">
								<Facts host={host} />
							</Panel>
							<Panel title="Connection">
								<Connection host={host} />
							</Panel>
							<Panel title="Activity">
								<ActivityList
									activity={activity.filter(
										(each) => (each.kind === "host" && each.name === name) || each.host === name,
									)}
									openedAt={live.openedAt}
									showNames={false}
								/>
							</Panel>
						</div>
					</div>
				</div>
			</PageSection>
		</>
	);
}

/** Says why the host is not ready, if it is not. */
function HostNotice({ host }: { host: Host }) {
	const message = readyMessage(host);
	switch (hostPhase(host)) {
		case "AwaitingApproval":
			return (
				<Alert variant="info" isInline title="This host waits for approval">
					Nothing is done on it, and no cluster takes it, until a person approves it. Compare its facts with the machine
					that you expect.
				</Alert>
			);
		case "Maintenance":
			return (
				<Alert variant="info" isInline title="In maintenance">
					Nothing is changed on this host, and no cluster takes it, until maintenance ends.
				</Alert>
			);
		case "Failed":
			return (
				<Alert variant="danger" isInline title="This host needs a person">
					{message}
				</Alert>
			);
		case "Disconnected":
			return (
				<Alert variant="danger" isInline title="This host is not connected">
					{message}
				</Alert>
			);
		case "Deleting":
			return (
				<Alert variant="warning" isInline title="Being removed">
					{message}
				</Alert>
			);
		default:
			return null;
	}
}

function Roles({ host }: { host: Host }) {
	const roles = host.status?.roles ?? [];
	if (roles.length === 0) {
		return (
			<p className="gp-subtle">
				{host.spec.roles.length > 0
					? `Waiting for the host to begin: ${host.spec.roles.map((role) => role.name).join(", ")}.`
					: hostPhase(host) === "Ready"
						? "This host has no role: it is free for a cluster."
						: "This host has no role."}
			</p>
		);
	}
	return (
		<div aria-live="polite">
			<Table variant="compact" borders={false} aria-label="Roles" gridBreakPoint="grid-md">
				<Thead>
					<Tr>
						<Th>Role</Th>
						<Th>State</Th>
						<Th width={50}>Step</Th>
					</Tr>
				</Thead>
				<Tbody>
					{roles.map(({ name, version, phase, step, progress, reason, message }) => (
						<Tr key={name}>
							<Td dataLabel="Role">
								{name} <span className="gp-subtle">{version}</span>
							</Td>
							<Td dataLabel="State">
								<StateLabel phase={phase} />
							</Td>
							<Td dataLabel="Step" modifier="breakWord">
								{phase === "Applied" ? (
									<span className="gp-subtle">{progress ? `${progress} steps` : "As it should be"}</span>
								) : (
									<>
										{step ?? "Starting"}
										<WorkProgress progress={progress} label={`Steps of ${name}`} />
									</>
								)}
								{message && <div>{message}</div>}
								{reason && <div className="gp-subtle">{reason}</div>}
							</Td>
						</Tr>
					))}
				</Tbody>
			</Table>
		</div>
	);
}

/** What is still here of clusters that are gone, if there is anything. */
function LeftBehind({ host }: { host: Host }) {
	const entries = host.status?.leftBehind ?? [];
	if (entries.length === 0) return null;
	return (
		<Panel title="Left behind">
			<DescriptionList isCompact>
				{entries.map(({ role, cluster, since, message }) => (
					<Fact key={role} term={cluster === undefined ? role : `${role} of cluster ${cluster}`}>
						{message}
						<div className="gp-subtle">
							left <Ago at={since} />
						</div>
					</Fact>
				))}
			</DescriptionList>
		</Panel>
	);
}

function Checks({ host }: { host: Host }) {
	const checks = [...(host.status?.checks ?? [])].sort(
		(a, b) => Number(a.ok) - Number(b.ok) || a.severity.localeCompare(b.severity),
	);
	if (checks.length === 0) return <p className="gp-subtle">The agent has not reported its checks yet.</p>;
	return (
		<Table variant="compact" borders={false} aria-label="Checks" gridBreakPoint="grid-md">
			<Thead>
				<Tr>
					<Th>Check</Th>
					<Th width={70}>Result</Th>
				</Tr>
			</Thead>
			<Tbody>
				{checks.map(({ name, ok, severity, message, next }) => {
					const [tone, ToneIcon, word] = ok
						? (["success", CheckCircleIcon, "Passed"] as const)
						: severity === "error"
							? (["danger", ExclamationCircleIcon, "Problem"] as const)
							: (["warning", ExclamationTriangleIcon, "Warning"] as const);
					return (
						<Tr key={name}>
							<Td dataLabel="Check" modifier="nowrap">
								<Icon status={tone} isInline title={word} aria-label={word} role="img">
									<ToneIcon />
								</Icon>{" "}
								{name}
							</Td>
							<Td dataLabel="Result" modifier="breakWord">
								{message}
								{!ok && next && <div className="gp-next">{next}</div>}
							</Td>
						</Tr>
					);
				})}
			</Tbody>
		</Table>
	);
}

function Fact({ term, children }: { term: string; children: ReactNode }) {
	return (
		<DescriptionListGroup>
			<DescriptionListTerm>{term}</DescriptionListTerm>
			<DescriptionListDescription className="gp-wrap">{children}</DescriptionListDescription>
		</DescriptionListGroup>
	);
}

const list = { isCompact: true, isHorizontal: true, horizontalTermWidthModifier: { default: "10ch" } } as const;

function Facts({ host }: { host: Host }) {
	const facts = host.status?.facts;
	if (!facts) return <p className="gp-subtle">The agent has not reported them yet.</p>;
	const labels = Object.entries(host.metadata.labels ?? {}).filter(([key]) => !key.startsWith("groundplane.io/"));
	return (
		<DescriptionList {...list}>
			<Fact term="System">{facts.os.prettyName}</Fact>
			<Fact term="Kernel">
				{facts.kernel}, {facts.architecture}, cgroup {facts.cgroup}
			</Fact>
			<Fact term="CPU">
				{facts.cpu.cores} × {facts.cpu.model}
			</Fact>
			<Fact term="Memory">{bytes(facts.memoryBytes)}</Fact>
			{facts.disks.length > 0 && (
				<Fact term="Disks">
					{facts.disks.map(({ name, sizeBytes, rotational }) => (
						<div key={name}>
							{name} {bytes(sizeBytes)} <span className="gp-subtle">{rotational ? "rotating" : "solid state"}</span>
						</div>
					))}
				</Fact>
			)}
			{facts.filesystems.length > 0 && (
				<Fact term="Space">
					{facts.filesystems.map(({ path, sizeBytes, availableBytes }) => (
						<div key={path}>
							<span className="gp-mono">{path}</span> {bytes(availableBytes)} free of {bytes(sizeBytes)}
						</div>
					))}
				</Fact>
			)}
			<Fact term="Network">
				{facts.interfaces.map(({ name, mac, addresses }) => (
					<div key={name}>
						{name} {addresses.join(", ") || "no address"} <span className="gp-subtle">{mac}</span>
					</div>
				))}
			</Fact>
			{facts.hostname !== host.metadata.name && <Fact term="Hostname">{facts.hostname}</Fact>}
			{labels.length > 0 && (
				<Fact term="Labels">
					<span className="gp-row">
						{labels.map(([key, value]) => (
							<Label key={key} isCompact variant="outline">
								{value ? `${key}=${value}` : key}
							</Label>
						))}
					</span>
				</Fact>
			)}
		</DescriptionList>
	);
}

function Connection({ host }: { host: Host }) {
	const { connection, agent, desiredState } = host.status ?? {};
	const isCurrent =
		desiredState?.generation !== undefined && desiredState.acknowledgedGeneration === desiredState.generation;
	return (
		<DescriptionList {...list}>
			<Fact term="Tunnel">
				{connection ? (
					<>
						{connection.state} {connection.since && <Ago at={connection.since} suffix="" />}
						{connection.reason && <div className="gp-subtle">{connection.reason}</div>}
					</>
				) : (
					"Never connected"
				)}
			</Fact>
			{connection?.address && <Fact term="From">{connection.address}</Fact>}
			{connection?.gateway && <Fact term="Gateway">{connection.gateway}</Fact>}
			{agent?.version && <Fact term="Agent">{agent.version}</Fact>}
			{agent?.certificateNotAfter && (
				<Fact term="Certificate">
					until {dateAndTime(Date.parse(agent.certificateNotAfter))}
					<div className="gp-subtle">renews by itself</div>
				</Fact>
			)}
			{desiredState?.generation !== undefined && (
				<Fact term="Wanted state">
					{isCurrent ? "Accepted by the host" : "Not accepted yet"}
					{desiredState.validUntil && (
						<div className="gp-subtle">good until {dateAndTime(Date.parse(desiredState.validUntil))} if cut off</div>
					)}
				</Fact>
			)}
			<Fact term="Joined">
				<Ago at={host.metadata.creationTimestamp} />
			</Fact>
		</DescriptionList>
	);
}
